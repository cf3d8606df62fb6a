//! The usual port of a worker on this host: free, taken by a worker, or by something else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use widemap_cluster::ClusterId;
use widemap_cluster::interfaces::{Interface, is_dialable};

use super::finding::{Check, Finding};
use super::worker::{Answer, Fault, ask};
use crate::places::WORKER_PORT;
use crate::session::{DialError, Greeting};

/// Looks at the port, and asks whoever has it.
pub(super) async fn check(
    ours: &[Interface],
    cluster: Option<ClusterId>,
    greeting: Greeting,
) -> Finding {
    // Given back at once: nobody has connected, so that nothing keeps a worker from it.
    let bound = TcpListener::bind((Ipv4Addr::UNSPECIFIED, WORKER_PORT)).map(drop);
    match bound {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            taken(ask(own_addresses(ours), greeting).await, cluster)
        }
        bound => unused(bound),
    }
}

/// A worker may listen on one address of this host alone.
fn own_addresses(ours: &[Interface]) -> Vec<String> {
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let others = ours.iter().map(|interface| interface.address).filter(|ip| is_dialable(*ip));
    let all = loopback.into_iter().chain(others);
    all.map(|ip| SocketAddr::new(ip, WORKER_PORT).to_string()).collect()
}

fn unused(bound: io::Result<()>) -> Finding {
    match bound {
        Ok(()) => {
            Finding::ok(Check::Port, format!("TCP {WORKER_PORT} is free for a worker on this host"))
        }
        Err(error) => Finding::warning(
            Check::Port,
            format!("TCP {WORKER_PORT} cannot be used on this host: {error}"),
            "start a worker here with --listen 0.0.0.0:PORT, and name it with --worker HOST:PORT",
        ),
    }
}

fn taken(asked: Result<Answer, Fault>, cluster: Option<ClusterId>) -> Finding {
    let key = |whose: &str| {
        Finding::warning(
            Check::Port,
            format!("TCP {WORKER_PORT} on this host: a worker listens there that {whose}"),
            "start it with the key that this user has (`widemap key show` tells its cluster)",
        )
    };
    match asked {
        Ok(Answer { hello, .. }) => {
            let of = cluster.map_or("without a key".to_owned(), |id| format!("of cluster {id}"));
            let what = format!("TCP {WORKER_PORT} on this host: worker {}, {of}", hello.name);
            Finding::ok(Check::Port, what)
        }
        Err(Fault::Dial(DialError::OtherKey { .. })) => key("has another cluster key"),
        Err(Fault::Dial(DialError::WantsKey { .. })) => key("has a key, and none is usable here"),
        Err(_) => Finding::warning(
            Check::Port,
            format!("TCP {WORKER_PORT} on this host: something listens there that is no worker"),
            "stop it (`ss -ltnp` shows what it is), or start a worker here with --listen \
             0.0.0.0:PORT and name it with --worker HOST:PORT",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::super::worker::tests::answer;
    use super::*;

    #[test]
    fn whoever_has_the_port_is_told_apart() {
        let ours = taken(Ok(answer("ann")), "0011223344556677".parse().ok());
        assert_eq!(ours.status, Status::Ok);
        assert!(ours.what.ends_with("worker ann, of cluster 0011223344556677"), "{ours:?}");
        let host = "127.0.0.1:7433".to_owned();
        let keyed = taken(Err(Fault::Dial(DialError::WantsKey { host })), None);
        assert!(keyed.what.contains("has a key, and none is usable here"), "{keyed:?}");
        let other = taken(Err(Fault::Cut("it makes no sense".to_owned())), None);
        assert!(other.what.ends_with("that is no worker"), "{other:?}");
        assert_eq!(unused(Ok(())).status, Status::Ok);
        let denied = unused(Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(denied.status, Status::Warning);
    }

    #[test]
    fn all_addresses_that_can_be_dialled_are_asked() {
        let interface = |address: &str| Interface {
            name: "eth0".to_owned(),
            index: 2,
            address: address.parse().unwrap(),
            prefix_bits: 24,
            up: true,
            point_to_point: false,
        };
        let ours = [interface("127.0.0.1"), interface("10.0.0.1"), interface("fe80::1")];
        assert_eq!(own_addresses(&ours), ["127.0.0.1:7433", "[::1]:7433", "10.0.0.1:7433"]);
    }
}
