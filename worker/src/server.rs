//! The worker as a gRPC server: the one file that knows tonic's server.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream as Incoming, StreamExt as _};
use tonic::transport::server::Router;
use tonic::{Request, Response, Status, Streaming};
use widemap_common::limits::{CALLS_OPENING_MAX, SESSIONS_MAX, STREAM_QUEUE};
use widemap_common::time::Timers;
use widemap_door::{Gate, Host, Layers};
use widemap_proto::wire::worker_server::{Worker as WorkerService, WorkerServer};
use widemap_proto::wire::{ArtifactPart, ArtifactStored, FromWorker, ToWorker};

use crate::artifacts::ArtifactCache;
use crate::receive::{Stored, receive};
use crate::session::Stream;

/// Streams that wait for their hello to be read.
pub(crate) const STREAMS_WAITING: usize = SESSIONS_MAX;

/// Builds the server: the worker's service, health, and reflection if wanted. Where roles are required,
/// each call must come from a [`Peer`](widemap_door::Peer) whose certificate is for it.
pub(crate) async fn build(
    streams: mpsc::Sender<Stream>,
    artifacts: Option<Arc<ArtifactCache>>,
    timers: &Timers,
    reflection: bool,
    roles_required: bool,
) -> Result<Router<Layers>, tonic_reflection::server::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let gate = Gate { host: Host::Worker, roles_required, calls_max: CALLS_OPENING_MAX };
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
    Ok(gate
        .server(timers)
        .add_service(WorkerServer::new(Service { streams, artifacts }))
        .add_service(health_service)
        .add_optional_service(reflection))
}

struct Service {
    streams: mpsc::Sender<Stream>,
    artifacts: Option<Arc<ArtifactCache>>,
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

    type PutArtifactsStream = Pin<Box<dyn Incoming<Item = Result<ArtifactStored, Status>> + Send>>;

    async fn put_artifacts(
        &self,
        request: Request<Streaming<ArtifactPart>>,
    ) -> Result<Response<Self::PutArtifactsStream>, Status> {
        let Some(cache) = &self.artifacts else {
            return Err(Status::failed_precondition("this worker runs no commands"));
        };
        let stored: Stored = receive(cache.clone(), request.into_inner());
        Ok(Response::new(stored))
    }
}

/// The one connection of an embedded worker. No other comes, and none is known not to: a server whose
/// listener has ended opens no more calls on the connections that it has.
pub(crate) fn only(stream: UnixStream) -> impl Incoming<Item = io::Result<UnixStream>> {
    tokio_stream::once(Ok(stream)).chain(tokio_stream::pending())
}
