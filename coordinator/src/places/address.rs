//! `HOST[:PORT]` as it is typed.

/// The port of a worker, where none is named.
pub(crate) const WORKER_PORT: u16 = 7433;

/// The port of a coordinator that serves, where none is named.
pub(crate) const COORDINATOR_PORT: u16 = 7434;

/// Why an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not HOST or HOST:PORT (an IPv6 address with a port goes in brackets: [::1]:7433)"
)]
pub(crate) struct AddressError {
    text: String,
}

/// Completes the address of a worker with the usual port.
///
/// # Errors
/// If it is not `HOST`, `HOST:PORT`, `ADDRESS`, or `[IPV6]:PORT`.
pub(crate) fn parse(text: &str) -> Result<String, AddressError> {
    complete(text, WORKER_PORT)
}

/// The same of a coordinator.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_coordinator(text: &str) -> Result<String, AddressError> {
    complete(text, COORDINATOR_PORT)
}

fn complete(text: &str, usual_port: u16) -> Result<String, AddressError> {
    let bad = || AddressError { text: text.to_owned() };
    if let Ok(address) = text.parse::<std::net::Ipv6Addr>() {
        return Ok(format!("[{address}]:{usual_port}"));
    }
    if let Some(inner) = text.strip_prefix('[') {
        let (host, port) = inner.split_once(']').ok_or_else(bad)?;
        let host: std::net::Ipv6Addr = host.parse().map_err(|_| bad())?;
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| bad())?,
            None if port.is_empty() => usual_port,
            None => return Err(bad()),
        };
        return Ok(format!("[{host}]:{port}"));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| bad())?),
        None => (text, usual_port),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if host.is_empty() || !host.chars().all(plain) || port == 0 {
        return Err(bad());
    }
    Ok(format!("{host}:{port}"))
}

/// Splits `NAME[:PORT]` of a DNS name, with the usual port.
///
/// # Errors
/// If it is not that: an address has no addresses to ask for.
pub(crate) fn parse_name(text: &str) -> Result<(String, u16), AddressError> {
    let bad = || AddressError { text: text.to_owned() };
    let address = parse(text)?;
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    if host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok() {
        return Err(bad());
    }
    Ok((host.to_owned(), port.parse().map_err(|_| bad())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed() {
        for (text, want) in [
            ("ann", "ann:7433"),
            ("ann.lab:99", "ann.lab:99"),
            ("10.0.0.7", "10.0.0.7:7433"),
            ("::1", "[::1]:7433"),
            ("[fd00::2]:5", "[fd00::2]:5"),
            ("[::1]", "[::1]:7433"),
        ] {
            assert_eq!(parse(text).unwrap(), want);
        }
        assert_eq!(parse_coordinator("ann").unwrap(), "ann:7434");
        assert_eq!(parse_coordinator("::1").unwrap(), "[::1]:7434");
        assert_eq!(parse_coordinator("ann:7433").unwrap(), "ann:7433");
        for bad in ["", ":7", "a:b", "a:0", "a:70000", "http://a", "[::1", "[x]:1", "a b"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
