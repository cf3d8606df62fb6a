//! A proved connection to one of several addresses, which are tried side by side: one that answers and
//! cannot prove itself keeps no other from being used. In a simulated network, there.

use super::dial::Secured;

/// The connection that was proved first.
pub(super) struct Winner<S> {
    /// The address, of those that were given, that it leads to.
    pub(super) address: String,
    /// The same, resolved.
    pub(super) reached: String,
    pub(super) stream: Secured<S>,
}

#[cfg(not(test))]
mod real {
    use std::io;
    use std::net::SocketAddr;
    use std::time::Duration;

    use tokio::net::TcpStream;
    use tokio::task::JoinSet;
    use widemap_common::limits::ADDRESSES_MAX;

    use crate::session::DialError;
    use crate::session::dial::Trust;

    use super::Winner;

    /// Between the starts of two attempts: the better address, which comes first, gets a lead
    /// (RFC 8305, section 5, has 250 ms for the wide Internet).
    const LEAD: Duration = Duration::from_millis(100);

    /// The first connection that is proved.
    pub(crate) async fn race(
        addresses: &[String],
        trust: &Trust,
    ) -> Result<Winner<TcpStream>, DialError> {
        let mut attempts = JoinSet::new();
        let mut fault: Option<DialError> = None;
        let mut started = 0;
        for address in addresses {
            match tokio::net::lookup_host(address).await {
                Ok(resolved) => {
                    for socket in resolved.take(ADDRESSES_MAX - started) {
                        let (lead, address, trust) =
                            (lead(started), address.clone(), trust.clone());
                        started += 1;
                        attempts.spawn(async move {
                            tokio::time::sleep(lead).await;
                            let stream = TcpStream::connect(socket).await;
                            let stream = stream.map_err(|error| explain(&error, socket))?;
                            // Small messages must not wait for each other; where it fails they only do.
                            let _ = stream.set_nodelay(true);
                            let stream = trust.secure(&address, stream).await?;
                            Ok(Winner { address, reached: socket.to_string(), stream })
                        });
                    }
                }
                Err(_) => {
                    let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                    fault = Some(worse(fault, DialError::Name(host.to_owned())));
                }
            }
        }
        while let Some(ended) = attempts.join_next().await {
            match ended {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error)) => fault = Some(worse(fault, error)),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        Err(fault.unwrap_or(DialError::NoRoute))
    }

    /// Refused is a proof that nobody lives there, if all addresses say so.
    fn worse(former: Option<DialError>, error: DialError) -> DialError {
        match (former, error) {
            (Some(DialError::Refused(mut at)), DialError::Refused(more)) => {
                at.extend(more);
                DialError::Refused(at)
            }
            (Some(former), DialError::Refused(_)) => former,
            (_, error) => error,
        }
    }

    fn lead(started: usize) -> Duration {
        LEAD * u32::try_from(started).unwrap_or(u32::MAX)
    }

    fn explain(error: &io::Error, socket: SocketAddr) -> DialError {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => DialError::Refused(vec![socket.to_string()]),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                DialError::NoRoute
            }
            _ => DialError::Other(error.to_string()),
        }
    }
}

#[cfg(not(test))]
pub(super) use real::race;

/// In tests: a simulated network, beside this machine's own loopback.
#[cfg(test)]
pub(super) async fn race(
    addresses: &[String],
    trust: &super::dial::Trust,
) -> Result<
    Winner<tokio_util::either::Either<turmoil::net::TcpStream, tokio::net::TcpStream>>,
    super::DialError,
> {
    use tokio_util::either::Either;
    let address = addresses.first().ok_or(super::DialError::NoRoute)?.clone();
    let connected = match address.starts_with("127.") {
        true => tokio::net::TcpStream::connect(address.as_str()).await.map(Either::Right),
        false => turmoil::net::TcpStream::connect(address.as_str()).await.map(Either::Left),
    };
    match connected {
        Ok(stream) => {
            let stream = trust.secure(&address, stream).await?;
            Ok(Winner { reached: address.clone(), address, stream })
        }
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err(super::DialError::Refused(vec![address]))
        }
        Err(error) => Err(super::DialError::Other(error.to_string())),
    }
}
