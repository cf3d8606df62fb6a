//! The door of a server: connections are accepted at once and proved before they count, whoever knocks.
//!
//! A connection without a key must begin like HTTP/2, one with a key must complete a TLS handshake,
//! both within a few seconds. Of those that have not, only so many are kept: one more pushes out the
//! oldest of the place that has most, so that a crowd from one place keeps nobody else out.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;
use widemap_cluster::{Distrust, Identity};
use widemap_common::limits::{CONNECTIONS_MAX, HANDSHAKES_MAX, REFUSALS_REMEMBERED};
use widemap_common::time::Timers;

use crate::peer::Peer;
use crate::server::Host;

/// The pause after a connection could not be accepted, for lack of files say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A refusal of one address for one reason is said once in so long.
const REFUSAL_PAUSE: Duration = Duration::from_secs(60);

/// How every HTTP/2 connection begins (RFC 9113, section 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0";

/// How long to wait for the rest of a beginning that has come in part.
const REST: Duration = Duration::from_millis(20);

/// What a TLS record of a handshake begins with.
const TLS_HANDSHAKE: u8 = 0x16;

/// The bits of an IPv6 address that are its network's, a `/64`.
const NETWORK_OF_IPV6: u128 = u128::MAX << 64;

/// Who may come in, and how long that may take to show.
pub struct Door {
    prover: Prover,
    patience: Duration,
    places: Arc<Semaphore>,
    handshakes: JoinSet<Result<Connection, (SocketAddr, Refusal)>>,
    pending: VecDeque<Pending>,
    refusals: Refusals,
}

/// How a connection is proved.
#[derive(Clone)]
enum Prover {
    /// It is not: it only has to speak HTTP/2.
    Nobody(Host),
    /// By mutual TLS.
    Tls(TlsAcceptor, Arc<Identity>),
}

/// A connection that is not proved yet.
struct Pending {
    address: IpAddr,
    task: AbortHandle,
}

/// Why a connection was not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    /// It did not prove itself in time.
    TooSlow,
    /// It left before it had.
    Left,
    /// It began a TLS handshake with a server that has no key.
    Tls(Host),
    /// It speaks something else.
    NotHttp2,
    /// It is not believed, or does not believe this server.
    Distrust(Distrust),
    /// There are as many connections as are kept.
    Full,
}

/// A connection that has been let in, one of a bounded number.
pub struct Connection {
    stream: Stream,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

/// Plain, or encrypted.
type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

impl Door {
    /// A door for members of the identity's cluster; without one, for everybody who can reach it.
    ///
    /// # Errors
    /// If the identity's certificate cannot be used.
    pub fn new(host: Host, identity: Option<Arc<Identity>>, timers: &Timers) -> io::Result<Self> {
        let prover = match identity {
            None => Prover::Nobody(host),
            Some(identity) => {
                let config = identity.server().map_err(io::Error::other)?;
                Prover::Tls(TlsAcceptor::from(config), identity)
            }
        };
        Ok(Self {
            prover,
            patience: Duration::from_millis(timers.handshake_ms),
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            handshakes: JoinSet::new(),
            pending: VecDeque::new(),
            refusals: Refusals::default(),
        })
    }

    /// Lets connections of `listener` into `connections` until nobody takes them any more.
    pub async fn keep(
        mut self,
        listener: TcpListener,
        connections: mpsc::Sender<io::Result<Connection>>,
    ) {
        loop {
            tokio::select! {
                // One that was pushed out has its file open until its task has ended, so a crowd that
                // comes faster than that waits before the door.
                accepted = listener.accept(), if self.handshakes.len() <= HANDSHAKES_MAX => match accepted {
                    Ok((stream, address)) => self.begin(stream, address),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = self.handshakes.join_next() => {
                    self.pending.retain(|pending| !pending.task.is_finished());
                    match ended {
                        Ok(Ok(connection)) => {
                            if connections.send(Ok(connection)).await.is_err() {
                                return;
                            }
                        }
                        Ok(Err((address, refusal))) => self.refusals.say(address, &refusal),
                        Err(error) if error.is_panic() => {
                            std::panic::resume_unwind(error.into_panic());
                        }
                        // It was pushed out.
                        Err(_) => {}
                    }
                }
                () = connections.closed() => return,
            }
        }
    }

    /// Starts to prove a connection.
    fn begin(&mut self, stream: TcpStream, address: SocketAddr) {
        // Small messages must not wait for each other; where it fails they only do.
        let _ = stream.set_nodelay(true);
        if self.pending.len() >= HANDSHAKES_MAX {
            self.push_out();
        }
        let (prover, places, patience) = (self.prover.clone(), self.places.clone(), self.patience);
        let task = self.handshakes.spawn(async move {
            let proved = tokio::time::timeout(patience, prover.prove(stream, address)).await;
            let proved = proved.unwrap_or(Err(Refusal::TooSlow)).and_then(|(stream, peer)| {
                let place = places.try_acquire_owned().map_err(|_| Refusal::Full)?;
                Ok(Connection { stream, peer, _place: place })
            });
            proved.map_err(|refusal| (address, refusal))
        });
        self.pending.push_back(Pending { address: address.ip(), task });
    }

    /// Makes room for one more unproved connection.
    fn push_out(&mut self) {
        let going = to_push_out(self.pending.iter().map(|pending| pending.address));
        if let Some(pending) = going.and_then(|index| self.pending.remove(index)) {
            pending.task.abort();
            self.refusals.say(SocketAddr::new(pending.address, 0), &Refusal::TooSlow);
        }
    }
}

/// Which of the connections goes whose addresses these are, the oldest first: the oldest of the place
/// that has most. Among places with as many it is the oldest of all, which has had the most time; were
/// it the newest, a crowd from many places would keep out whoever comes after it.
fn to_push_out(addresses: impl Iterator<Item = IpAddr>) -> Option<usize> {
    let places: Vec<_> = addresses.map(place_of).collect();
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for place in &places {
        *counts.entry(*place).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    places.iter().position(|place| counts[place] == most)
}

/// What stands for all addresses that one machine may have at will: of IPv6 the first 64 bits, which
/// are its network's. An IPv4 address in the form of IPv6 is the IPv4 one.
fn place_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & NETWORK_OF_IPV6)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Prover {
    async fn prove(
        self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Result<(Stream, Peer), Refusal> {
        match self {
            Self::Nobody(host) => {
                if let Err(refusal) = begins_like_http2(&stream, host).await {
                    if refusal == Refusal::Tls(host) {
                        answer_in_plain_text(&stream, host).await;
                    }
                    return Err(refusal);
                }
                Ok((Either::Left(stream), Peer { address, role: None }))
            }
            Self::Tls(acceptor, identity) => {
                let stream = acceptor.accept(stream).await.map_err(|error| {
                    Distrust::of_io(&error).map_or(Refusal::Left, Refusal::Distrust)
                })?;
                let certificates = stream.get_ref().1.peer_certificates();
                let role = certificates.and_then(|chain| identity.peer_role(chain.first()?));
                Ok((Either::Right(Box::new(stream)), Peer { address, role }))
            }
        }
    }
}

/// Waits for the first bytes of a connection, which stay unread.
async fn begins_like_http2(stream: &TcpStream, host: Host) -> Result<(), Refusal> {
    let mut bytes = [0; HTTP2.len()];
    loop {
        let count = stream.peek(&mut bytes).await.map_err(|_| Refusal::Left)?;
        match &bytes[..count] {
            [] => return Err(Refusal::Left),
            [TLS_HANDSHAKE, ..] => return Err(Refusal::Tls(host)),
            begun if !HTTP2.starts_with(begun) => return Err(Refusal::NotHttp2),
            begun if begun.len() == HTTP2.len() => return Ok(()),
            _ => tokio::time::sleep(REST).await,
        }
    }
}

/// Tells whoever began a TLS handshake that there is none to be had: it is no record of TLS, which is
/// how the other side knows, and a person who reads it knows as well.
async fn answer_in_plain_text(stream: &TcpStream, host: Host) {
    let mut begun = [0; 4096];
    // What is left unread would make the system reset the connection.
    let _ = stream.try_read(&mut begun);
    if stream.writable().await.is_ok() {
        // Who does not take a line at once does without it.
        let answer = format!("this {} has no key, and speaks no TLS\n", host.program());
        let _ = stream.try_write(answer.as_bytes());
    }
}

/// What was said lately, so that a crowd at the door does not fill the log.
#[derive(Default)]
struct Refusals {
    said: VecDeque<(IpAddr, Refusal, Instant)>,
    unsaid: u64,
}

impl Refusals {
    fn say(&mut self, address: SocketAddr, refusal: &Refusal) {
        if *refusal == Refusal::Left {
            // As a probe of the port does.
            return tracing::debug!("{} left before it had proved itself", address.ip());
        }
        let now = Instant::now();
        self.said.retain(|(.., at)| now.duration_since(*at) < REFUSAL_PAUSE);
        let known =
            |(said, why, _): &(IpAddr, Refusal, Instant)| *said == address.ip() && why == refusal;
        if self.said.iter().any(known) || self.said.len() >= REFUSALS_REMEMBERED {
            self.unsaid += 1;
            return;
        }
        self.said.push_back((address.ip(), refusal.clone(), now));
        match std::mem::take(&mut self.unsaid) {
            0 => tracing::warn!("refused a connection from {}: {refusal}", address.ip()),
            unsaid => tracing::warn!(
                "refused a connection from {}: {refusal}; {unsaid} more were refused meanwhile",
                address.ip()
            ),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSlow => f.write_str("it did not prove itself in time"),
            Self::Left => f.write_str("it left before it had proved itself"),
            Self::Tls(host) => write!(
                f,
                "it speaks TLS, and this {} has no key: give it the key of the cluster \
                 (--key FILE)",
                host.name()
            ),
            Self::NotHttp2 => f.write_str("it does not speak HTTP/2"),
            Self::Distrust(Distrust::NotTls) => {
                f.write_str("it does not speak TLS: has it no key, or is it no widemap at all?")
            }
            Self::Distrust(distrust) => distrust.fmt(f),
            Self::Full => write!(f, "there are {CONNECTIONS_MAX} connections already"),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed_out(addresses: &[&str]) -> Option<usize> {
        to_push_out(addresses.iter().map(|address| address.parse().unwrap()))
    }

    #[test]
    fn the_oldest_of_the_place_that_has_most_goes() {
        assert_eq!(pushed_out(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.2"]), Some(1));
        assert_eq!(pushed_out(&["10.0.0.1"]), Some(0));
        assert_eq!(pushed_out(&[]), None);
    }

    #[test]
    fn among_places_with_as_many_the_oldest_connection_goes() {
        assert_eq!(pushed_out(&["10.0.0.3", "10.0.0.1", "10.0.0.2"]), Some(0));
        let twice = ["10.0.0.9", "10.0.0.2", "10.0.0.1", "10.0.0.1", "10.0.0.2"];
        assert_eq!(pushed_out(&twice), Some(1));
    }

    #[test]
    fn a_network_of_ipv6_is_one_place_and_ipv4_addresses_are_not() {
        let network = ["10.0.0.1", "2001:db8::1", "2001:db8:0:1::1", "2001:db8::ffff:0:0:2"];
        assert_eq!(pushed_out(&network), Some(1));
        let mapped = ["::ffff:10.0.0.1", "::ffff:10.0.0.2", "10.0.0.2", "::ffff:10.0.0.3"];
        assert_eq!(pushed_out(&mapped), Some(1));
    }
}
