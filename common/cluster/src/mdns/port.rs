//! Whether mDNS can have its port on this machine.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

use super::MdnsError;

/// The port of multicast DNS (RFC 6762, section 5).
const PORT: u16 = 5353;

/// mdns-sd keeps to itself that it could not have the port. A version of IP that this machine does
/// not have is no reason to do without the other.
pub(super) fn check() -> Result<(), MdnsError> {
    let v4 = bind(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, PORT).into());
    let v6 = bind(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, PORT).into());
    let in_use = [&v4, &v6]
        .into_iter()
        .any(|bound| bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse));
    let checked = if in_use { v4.and(v6) } else { v4.or(v6) };
    checked.map_err(|source| MdnsError::Port { source })
}

/// Whether the address can be shared, in the way of mdns-sd.
fn bind(domain: Domain, address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(true)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())
}
