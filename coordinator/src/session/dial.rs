//! How a worker is reached: the only file that builds a gRPC channel.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use widemap_common::time::Timers;

/// The HTTP/2 window of one connection: a few parts of payload on the way.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// What the place of embedded workers is called.
pub(crate) const HERE: &str = "this machine";

/// Where a worker is.
#[derive(Debug)]
pub(crate) enum Dial {
    /// At an address, `HOST:PORT`.
    Address(String),
    /// In this process, behind one end of a socket pair: can be taken once.
    Embedded(Mutex<Option<UnixStream>>),
}

/// Why a worker could not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DialError {
    /// Nobody listens there: proof that no worker lives at the address.
    #[error("connection refused (is widemap-worker running there?)")]
    Refused,
    /// The host did not answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The address means nothing.
    #[error("not an address: {0}")]
    Address(String),
    /// Something else: no route, no such name.
    #[error("{0}")]
    Other(String),
}

impl Dial {
    /// Dials the worker behind the other end of a socket pair.
    pub(crate) fn embedded(end: UnixStream) -> Self {
        Self::Embedded(Mutex::new(Some(end)))
    }

    /// What a person calls the place.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Address(address) => address.clone(),
            Self::Embedded(_) => HERE.to_owned(),
        }
    }

    /// Connects.
    pub(crate) async fn connect(&self, timers: &Timers) -> Result<Channel, DialError> {
        match self {
            Self::Address(address) => connect_tcp(address, timers).await,
            Self::Embedded(end) => {
                let end = end.lock().expect("no holder of this lock panics").take();
                connect_embedded(end.ok_or(DialError::Refused)?).await
            }
        }
    }
}

async fn connect_tcp(address: &str, timers: &Timers) -> Result<Channel, DialError> {
    let limit = Duration::from_millis(timers.connect_ms);
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| DialError::Address(error.to_string()))?
        .tcp_nodelay(true)
        .connect_timeout(limit)
        .http2_keep_alive_interval(Duration::from_millis(timers.keepalive_ms))
        .keep_alive_timeout(Duration::from_millis(timers.keepalive_timeout_ms))
        .keep_alive_while_idle(true);
    match tokio::time::timeout(limit, open(sized(endpoint), address)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(explain(&error, limit)),
        Err(_) => Err(DialError::TimedOut(limit)),
    }
}

#[cfg(not(test))]
async fn open(endpoint: Endpoint, _: &str) -> Result<Channel, tonic::transport::Error> {
    endpoint.connect().await
}

/// In a simulated network the connection is made there.
#[cfg(test)]
async fn open(endpoint: Endpoint, address: &str) -> Result<Channel, tonic::transport::Error> {
    let address = address.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let address = address.clone();
        async move { turmoil::net::TcpStream::connect(address).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}

async fn connect_embedded(end: UnixStream) -> Result<Channel, DialError> {
    let mut end = Some(end);
    let connector = tower::service_fn(move |_: Uri| {
        let end = end
            .take()
            .map(TokioIo::new)
            .ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused));
        std::future::ready(end)
    });
    sized(Endpoint::from_static("http://embedded"))
        .connect_with_connector(connector)
        .await
        .map_err(|error| DialError::Other(error.to_string()))
}

/// Windows and buffers that let payload parts of 1 MiB flow.
fn sized(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .buffer_size(64)
}

fn explain(error: &tonic::transport::Error, limit: Duration) -> DialError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut last = String::new();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => return DialError::Refused,
                io::ErrorKind::TimedOut => return DialError::TimedOut(limit),
                _ => {}
            }
        }
        last = cause.to_string();
        source = cause.source();
    }
    DialError::Other(last)
}
