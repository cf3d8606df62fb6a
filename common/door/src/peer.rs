//! Who is at the other end of a connection.

use std::net::SocketAddr;

use widemap_cluster::Role;

/// The other end, as far as its connection has shown it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it dials from.
    pub address: SocketAddr,
    /// What its certificate lets it be; none without TLS, or with a certificate for no role.
    pub role: Option<Role>,
}
