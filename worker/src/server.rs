//! The worker as a gRPC server: the one file that knows tonic's server.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::{Connected, Router, TcpConnectInfo};
use tonic::{Request, Response, Status, Streaming};
use widemap_common::limits::{CONNECTIONS_MAX, PART_BYTES_MAX, SESSIONS_MAX, STREAM_QUEUE};
use widemap_common::time::Timers;
use widemap_proto::wire::worker_server::{Worker as WorkerService, WorkerServer};
use widemap_proto::wire::{FromWorker, ToWorker};

use crate::session::Stream;

/// The HTTP/2 windows: a few parts of payload on the way.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// Calls of one connection at a time: a session, health checks, reflection.
const CALLS_MAX: u32 = 32;

/// The pause after a connection could not be accepted, for lack of files say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Streams that wait for their hello to be read.
pub(crate) const STREAMS_WAITING: usize = SESSIONS_MAX;

/// Builds the server: the worker's service, health, and reflection if wanted.
pub(crate) async fn build(
    streams: mpsc::Sender<Stream>,
    timers: &Timers,
    reflection: bool,
) -> Result<Router, tonic_reflection::server::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let mut server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_millis(timers.keepalive_ms)))
        .http2_keepalive_timeout(Some(Duration::from_millis(timers.keepalive_timeout_ms)))
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .max_frame_size(u32::try_from(PART_BYTES_MAX).expect("a part is far below 4 GiB"))
        .max_concurrent_streams(CALLS_MAX)
        .concurrency_limit_per_connection(CALLS_MAX as usize);
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

/// A connection over TCP, one of a bounded number.
#[derive(Debug)]
pub(crate) struct Connection {
    tcp: TcpStream,
    _place: OwnedSemaphorePermit,
}

/// Accepts connections into `connections` until nobody takes them any more.
pub(crate) async fn accept(
    listener: TcpListener,
    connections: mpsc::Sender<io::Result<Connection>>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closed() => return,
        };
        match accepted {
            Ok((tcp, _)) => {
                // Small messages must not wait for each other; where it fails they only do.
                let _ = tcp.set_nodelay(true);
                if connections.send(Ok(Connection { tcp, _place: place })).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The one connection of an embedded worker.
pub(crate) fn only(stream: UnixStream) -> ReceiverStream<io::Result<UnixStream>> {
    let (sender, connections) = mpsc::channel(1);
    sender.try_send(Ok(stream)).expect("the channel has room for one");
    // The channel is closed behind it: the server accepts nothing more.
    ReceiverStream::new(connections)
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
