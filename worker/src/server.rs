//! The worker as a gRPC server: the one file that knows tonic's server.

use std::io;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status, Streaming};
use widemap_common::limits::{CALLS_OPENING_MAX, PART_BYTES_MAX, SESSIONS_MAX, STREAM_QUEUE};
use widemap_common::time::Timers;
use widemap_proto::wire::worker_server::{Worker as WorkerService, WorkerServer};
use widemap_proto::wire::{FromWorker, ToWorker};

use crate::layers::{Layers, LimitLayer, RoleLayer, TraceLayer};
use crate::session::Stream;

/// The HTTP/2 windows: a few parts of payload on the way.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// Calls of one connection at a time: a session, health checks, reflection.
const CALLS_MAX: u32 = 32;

/// Streams that wait for their hello to be read.
pub(crate) const STREAMS_WAITING: usize = SESSIONS_MAX;

/// Builds the server: the worker's service, health, and reflection if wanted. Where roles are required,
/// each call must come from a [`Peer`](crate::peer::Peer) whose certificate is for it.
pub(crate) async fn build(
    streams: mpsc::Sender<Stream>,
    timers: &Timers,
    reflection: bool,
    roles_required: bool,
) -> Result<Router<Layers>, tonic_reflection::server::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let mut server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_millis(timers.keepalive_ms)))
        .http2_keepalive_timeout(Some(Duration::from_millis(timers.keepalive_timeout_ms)))
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .max_frame_size(u32::try_from(PART_BYTES_MAX).expect("a part is far below 4 GiB"))
        .max_concurrent_streams(CALLS_MAX)
        .concurrency_limit_per_connection(CALLS_MAX as usize)
        .layer(TraceLayer)
        .layer(RoleLayer::required(roles_required))
        .layer(LimitLayer::new(CALLS_OPENING_MAX));
    // The service is there as long as the process is.
    health.set_serving::<WorkerServer<Service>>().await;
    let reflection = if reflection {
        let description = widemap_proto::DESCRIPTOR;
        Some(
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(description)
                .build_v1()?,
        )
    } else {
        None
    };
    Ok(server
        .add_service(WorkerServer::new(Service { streams }))
        .add_service(health_service)
        .add_optional_service(reflection))
}

struct Service {
    streams: mpsc::Sender<Stream>,
}

#[tonic::async_trait]
impl WorkerService for Service {
    type SessionStream = ReceiverStream<Result<FromWorker, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<ToWorker>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbound, reports) = mpsc::channel(STREAM_QUEUE);
        let stream = Stream { inbound: request.into_inner(), outbound };
        self.streams.try_send(stream).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Status::resource_exhausted("too many streams at once")
            }
            mpsc::error::TrySendError::Closed(_) => Status::unavailable("this worker is ending"),
        })?;
        Ok(Response::new(ReceiverStream::new(reports)))
    }
}

/// The one connection of an embedded worker.
pub(crate) fn only(stream: UnixStream) -> ReceiverStream<io::Result<UnixStream>> {
    let (sender, connections) = mpsc::channel(1);
    sender.try_send(Ok(stream)).expect("the channel has room for one");
    // The channel is closed behind it: the server accepts nothing more.
    ReceiverStream::new(connections)
}
