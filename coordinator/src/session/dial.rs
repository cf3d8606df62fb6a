//! How a worker is reached: the only file that builds a gRPC channel.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint, Uri};
use widemap_cluster::Distrust;
use widemap_common::time::Timers;

use super::observed::Observed;
use super::tcp;
use crate::error::Mismatch;

/// The HTTP/2 window of one connection: a few parts of payload on the way.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// What comes in at once: of parts of payload, a quarter. A whole one costs memory and is no faster.
const FRAME_BYTES: u32 = 256 * 1024;

/// What the place of embedded workers is called.
pub(crate) const HERE: &str = "this machine";

/// Where a worker is.
#[derive(Debug)]
pub(crate) enum Dial {
    /// At one of these addresses, `HOST:PORT` each, which are tried side by side.
    Addresses(Vec<String>),
    /// In this process, behind one end of a socket pair: can be taken once.
    Embedded(Mutex<Option<UnixStream>>),
}

/// How a worker is proved, and this coordinator to it; nobody is without a configuration.
#[derive(Clone, Default)]
pub(crate) struct Trust(pub(crate) Option<Arc<ClientConfig>>);

/// Why a worker could not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DialError {
    /// Nobody listens at these addresses: proof that no worker lives there.
    #[error("connection refused (is widemap-worker running there?)")]
    Refused(Vec<String>),
    /// The host did not answer in time.
    #[error("no answer within {0:?} (is the host up, does a firewall drop the port?)")]
    TimedOut(Duration),
    /// No network leads there.
    #[error("no route to the host")]
    NoRoute,
    /// The name is unknown.
    #[error("no such host: {0}")]
    Name(String),
    /// It has another key.
    #[error("cluster key mismatch with {host}: {distrust}")]
    OtherKey {
        /// Who.
        host: String,
        /// Which side does not believe which.
        distrust: Distrust,
    },
    /// It has no key.
    #[error(
        "{host} has no key: start the worker there with the key of this cluster (or say --insecure here \
         too, if everybody on the network is trusted)"
    )]
    NoKey {
        /// Who.
        host: String,
    },
    /// It has a key, and this side has none.
    #[error("{host} asks for a key, and there is none here: name it with --key FILE")]
    WantsKey {
        /// Who.
        host: String,
    },
    /// It is not believed, or does not believe this side, for another reason.
    #[error("{host} and this coordinator do not trust each other: {distrust}")]
    Distrust {
        /// Who.
        host: String,
        /// Why.
        distrust: Distrust,
    },
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// Plain, or encrypted and proved.
pub(super) type Secured<S> = Either<S, Box<TlsStream<S>>>;

/// A connection to a worker.
pub(crate) struct Line {
    /// What calls go through.
    pub(crate) channel: Channel,
    /// Where it leads, as an address and not as a name.
    pub(crate) address: String,
    /// What its bytes have shown to be wrong with it, if something is.
    pub(crate) fault: Arc<OnceLock<DialError>>,
}

impl DialError {
    /// What is amiss where both sides are there and do not trust each other.
    pub(crate) fn mismatch(&self) -> Option<Mismatch> {
        match self {
            Self::Distrust {
                distrust: Distrust::OtherAuthority | Distrust::RefusesAuthority,
                ..
            } => Some(Mismatch::Authority),
            Self::OtherKey { .. }
            | Self::NoKey { .. }
            | Self::WantsKey { .. }
            | Self::Distrust { .. } => Some(Mismatch::Key),
            _ => None,
        }
    }
}

impl Dial {
    /// Dials the worker behind the other end of a socket pair.
    pub(crate) fn embedded(end: UnixStream) -> Self {
        Self::Embedded(Mutex::new(Some(end)))
    }

    /// Connects.
    pub(crate) async fn connect(&self, trust: &Trust, timers: &Timers) -> Result<Line, DialError> {
        match self {
            Self::Addresses(addresses) => {
                let limit = Duration::from_millis(timers.connect_ms);
                let connecting = connect_tcp(addresses, trust, timers);
                tokio::time::timeout(limit, connecting)
                    .await
                    .unwrap_or(Err(DialError::TimedOut(limit)))
            }
            Self::Embedded(end) => {
                let end = end.lock().expect("no holder of this lock panics").take();
                let end = end.ok_or_else(|| DialError::Refused(vec![HERE.to_owned()]))?;
                let channel = over(sized(Endpoint::from_static("http://embedded")), end).await?;
                Ok(Line { channel, address: HERE.to_owned(), fault: Arc::default() })
            }
        }
    }
}

async fn connect_tcp(
    addresses: &[String],
    trust: &Trust,
    timers: &Timers,
) -> Result<Line, DialError> {
    let fault = Arc::new(OnceLock::new());
    let tcp::Winner { address, reached, stream } = tcp::race(addresses, trust).await?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| DialError::Other(error.to_string()))?
        .http2_keep_alive_interval(Duration::from_millis(timers.keepalive_ms))
        .keep_alive_timeout(Duration::from_millis(timers.keepalive_timeout_ms))
        .keep_alive_while_idle(true);
    let channel = match stream {
        Either::Left(stream) => {
            over(sized(endpoint), Observed::plain(stream, address, fault.clone())).await?
        }
        Either::Right(stream) => {
            over(sized(endpoint), Observed::encrypted(stream, address, fault.clone())).await?
        }
    };
    Ok(Line { channel, address: reached, fault })
}

impl Trust {
    /// Encrypts a connection and proves who is at its other end, if there is anything to prove it by.
    pub(super) async fn secure<S>(&self, address: &str, stream: S) -> Result<Secured<S>, DialError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(config) = &self.0 else { return Ok(Either::Left(stream)) };
        let connecting = TlsConnector::from(config.clone()).connect(server_name(address)?, stream);
        let connected = connecting.await.map_err(|error| untrusted(address, &error))?;
        Ok(Either::Right(Box::new(connected)))
    }
}

/// The host of `HOST:PORT`, as certificates made elsewhere name it.
fn server_name(address: &str) -> Result<ServerName<'static>, DialError> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).map_err(|_| DialError::Name(host.to_owned()))
}

/// What an error of an encrypted connection says of the other side.
pub(super) fn untrusted(host: &str, error: &io::Error) -> DialError {
    let host = host.to_owned();
    match Distrust::of_io(error) {
        Some(distrust @ (Distrust::OtherKey | Distrust::RefusesUs)) => {
            DialError::OtherKey { host, distrust }
        }
        Some(Distrust::NotTls) => DialError::NoKey { host },
        Some(distrust) => DialError::Distrust { host, distrust },
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            DialError::Other("it hung up before it had proved itself".to_owned())
        }
        None => DialError::Other(error.to_string()),
    }
}

/// A channel over a stream that is open already. Where it breaks, the link dials anew.
async fn over<S>(endpoint: Endpoint, stream: S) -> Result<Channel, DialError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream
            .take()
            .map(TokioIo::new)
            .ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused));
        std::future::ready(stream)
    });
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|error| DialError::Other(root_cause(&error)))
}

/// Windows and buffers that let payload parts of 1 MiB flow.
fn sized(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .buffer_size(64)
}

/// The last of an error's causes, which names what has happened.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}
