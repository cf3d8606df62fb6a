//! Which of a machine's addresses others can reach it at, and which of another's to try first.
//!
//! A machine has addresses that mean nothing elsewhere: of loopback, of one link, of the bridges
//! that containers hang on. Announced, they cost those who dial them a timeout, or lead them to a
//! bridge of their own that happens to have the same address. Inside a container its only interface
//! is an ordinary `eth0`, which stays.

use std::cmp::Reverse;
use std::fmt;
use std::io;
use std::net::IpAddr;

use if_addrs::IfAddr;

/// One address of an interface of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// What the system calls it.
    pub name: String,
    /// Its number, shared by all addresses of one interface.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// How many leading bits its neighbours share with it.
    pub prefix_bits: u8,
    /// Whether it is up and its link is.
    pub up: bool,
    /// Whether it ends at one peer, as those of a VPN do: no multicast.
    pub point_to_point: bool,
}

impl From<&if_addrs::Interface> for Interface {
    fn from(interface: &if_addrs::Interface) -> Self {
        let (address, prefix_bits) = match &interface.addr {
            IfAddr::V4(v4) => (IpAddr::V4(v4.ip), v4.prefixlen),
            IfAddr::V6(v6) => (IpAddr::V6(v6.ip), v6.prefixlen),
        };
        Self {
            name: interface.name.clone(),
            index: interface.index.unwrap_or(0),
            address,
            prefix_bits,
            up: interface.is_oper_up(),
            point_to_point: interface.is_p2p(),
        }
    }
}

/// Why an address of this machine is neither announced nor listened at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PassedOver {
    /// It leads back to this machine.
    Loopback,
    /// It joins containers or virtual machines to this machine.
    Internal,
    /// Others are named.
    NotNamed,
    /// It is down, or its link is.
    Down,
    /// It ends at one peer.
    PointToPoint,
    /// Its address means something on its own link alone.
    LinkLocal,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "loopback",
            Self::Internal => "container or virtual machine bridge",
            Self::NotNamed => "not among the named ones",
            Self::Down => "down",
            Self::PointToPoint => "point-to-point, as of a VPN",
            Self::LinkLocal => "link-local address only",
        })
    }
}

impl Interface {
    /// Whether it is worth announcing, and listening for announcements: up, reached by others, and
    /// one of those that are `wanted` by name; where none is, any but those of containers and
    /// machines that run on this one.
    #[must_use]
    pub fn is_useful(&self, wanted: &[String]) -> bool {
        self.passed_over(wanted).is_none()
    }

    /// Why it is not useful in this sense, if it is not.
    #[must_use]
    pub fn passed_over(&self, wanted: &[String]) -> Option<PassedOver> {
        let is_named = wanted.contains(&self.name);
        if self.address.is_loopback() {
            Some(PassedOver::Loopback)
        } else if wanted.is_empty() && is_internal(&self.name) {
            Some(PassedOver::Internal)
        } else if !wanted.is_empty() && !is_named {
            Some(PassedOver::NotNamed)
        } else if !self.up {
            Some(PassedOver::Down)
        } else if self.point_to_point {
            Some(PassedOver::PointToPoint)
        } else {
            (!is_dialable(self.address)).then_some(PassedOver::LinkLocal)
        }
    }

    /// Whether `other` is in its subnet.
    #[must_use]
    pub fn is_near(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = u32::from(own) ^ u32::from(other);
                differing.leading_zeros() >= u32::from(self.prefix_bits)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = u128::from(own) ^ u128::from(other);
                differing.leading_zeros() >= u32::from(self.prefix_bits)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// All addresses of this machine, useful or not.
///
/// # Errors
/// If the system does not tell them.
pub fn local() -> io::Result<Vec<Interface>> {
    let interfaces = if_addrs::get_if_addrs()?;
    Ok(interfaces.iter().map(Interface::from).collect())
}

/// Whether another machine could be reached at this address at all.
#[must_use]
pub fn is_dialable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let is_special = v4.is_loopback() || v4.is_unspecified() || v4.octets()[0] == 0;
            !is_special && !v4.is_link_local() && !v4.is_multicast() && !v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            let is_special = v6.is_loopback() || v6.is_unspecified();
            // A mapped address is an IPv4 one in disguise, and none that is announced.
            let is_mapped = v6.to_ipv4_mapped().is_some();
            !is_special && !is_mapped && !v6.is_unicast_link_local() && !v6.is_multicast()
        }
    }
}

/// The addresses of another machine that are worth dialling from here, `most` at the most: those in
/// a subnet of ours first, then the IPv4 ones, else in their own order, so that the answer is
/// the same each time.
#[must_use]
pub fn in_dialling_order(
    peer: impl IntoIterator<Item = IpAddr>,
    ours: &[Interface],
    most: usize,
) -> Vec<IpAddr> {
    let is_near = |address: IpAddr, internal: bool| {
        let up = ours.iter().filter(|interface| interface.up);
        let mut of_kind = up.filter(|interface| is_internal(&interface.name) == internal);
        of_kind.any(|interface| interface.is_near(address))
    };
    let mut addresses: Vec<IpAddr> = peer
        .into_iter()
        .filter(|address| is_dialable(*address))
        // In the subnet of a bridge of ours, but of no network: it would be dialled on the bridge.
        .filter(|address| is_near(*address, false) || !is_near(*address, true))
        .collect();
    addresses.sort_unstable_by_key(|address| (Reverse(is_near(*address, false)), *address));
    addresses.dedup();
    addresses.truncate(most);
    addresses
}

/// Whether an interface of this name joins containers or virtual machines to this machine.
fn is_internal(name: &str) -> bool {
    const PREFIXES: [&str; 8] =
        ["docker", "veth", "cni", "flannel", "cali", "podman", "lxc", "virbr"];
    let is_docker_network = name.strip_prefix("br-").is_some_and(|id| {
        // A bridge that a person has named, as `br-lan`, is a network like any other.
        id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    is_docker_network || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, address: &str) -> Interface {
        let (address, bits) = address.split_once('/').expect("an address and a prefix");
        Interface {
            name: name.to_owned(),
            index: 0,
            address: ip(address),
            prefix_bits: bits.parse().expect("a number"),
            up: true,
            point_to_point: false,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn useful(interfaces: &[Interface], wanted: &[&str]) -> Vec<String> {
        let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        let useful = interfaces.iter().filter(|interface| interface.is_useful(&wanted));
        useful.map(|interface| interface.address.to_string()).collect()
    }

    #[test]
    fn an_ordinary_machine_is_reached_at_its_network_alone() {
        let machine = [
            interface("lo", "127.0.0.1/8"),
            interface("lo", "::1/128"),
            interface("eth0", "192.168.1.5/24"),
            interface("eth0", "2001:db8::5/64"),
            interface("eth0", "fe80::5/64"),
            interface("eth1", "169.254.7.7/16"),
            interface("docker0", "172.17.0.1/16"),
            interface("docker_gwbridge", "172.19.0.1/16"),
            interface("br-0123456789ab", "172.18.0.1/16"),
            interface("veth12", "10.9.0.1/24"),
            interface("cni0", "10.244.0.1/24"),
            interface("flannel.1", "10.244.0.0/32"),
            interface("cali1234", "10.245.0.1/32"),
            interface("podman0", "10.88.0.1/16"),
            interface("lxcbr0", "10.0.3.1/24"),
            interface("virbr0", "192.168.122.1/24"),
            Interface { up: false, ..interface("eth2", "10.1.0.1/24") },
            Interface { point_to_point: true, ..interface("wg0", "10.2.0.1/24") },
        ];
        assert_eq!(useful(&machine, &[]), ["192.168.1.5", "2001:db8::5"]);
    }

    #[test]
    fn what_is_passed_over_has_a_reason() {
        let down = Interface { up: false, ..interface("eth2", "10.1.0.1/24") };
        let vpn = Interface { point_to_point: true, ..interface("wg0", "10.2.0.1/24") };
        for (interface, why) in [
            (interface("lo", "127.0.0.1/8"), Some(PassedOver::Loopback)),
            (interface("docker0", "172.17.0.1/16"), Some(PassedOver::Internal)),
            (interface("eth1", "169.254.7.7/16"), Some(PassedOver::LinkLocal)),
            (down, Some(PassedOver::Down)),
            (vpn, Some(PassedOver::PointToPoint)),
            (interface("eth0", "192.168.1.5/24"), None),
        ] {
            assert_eq!(interface.passed_over(&[]), why, "{interface:?}");
        }
        let named = ["eth7".to_owned()];
        let why = interface("eth0", "192.168.1.5/24").passed_over(&named);
        assert_eq!(why, Some(PassedOver::NotNamed));
    }

    #[test]
    fn a_container_and_a_bridge_that_a_person_named_are_kept() {
        let container = [interface("lo", "127.0.0.1/8"), interface("eth0", "172.17.0.2/16")];
        assert_eq!(useful(&container, &[]), ["172.17.0.2"]);
        assert_eq!(useful(&[interface("br-lan", "192.168.1.1/24")], &[]), ["192.168.1.1"]);
        let not_hexadecimal = interface("br-0123456789xy", "192.168.1.1/24");
        assert_eq!(useful(&[not_hexadecimal], &[]), ["192.168.1.1"]);
    }

    #[test]
    fn whoever_names_interfaces_gets_those_alone_even_a_bridge() {
        let machine = [
            interface("eth0", "192.168.1.5/24"),
            interface("docker0", "172.17.0.1/16"),
            interface("docker0", "fe80::1/64"),
        ];
        assert_eq!(useful(&machine, &["docker0"]), ["172.17.0.1"]);
    }

    #[test]
    fn neighbours_come_first_and_useless_addresses_not_at_all() {
        let ours = [
            interface("lo", "127.0.0.1/8"),
            interface("eth0", "192.168.1.5/24"),
            interface("docker0", "172.17.0.1/16"),
            Interface { up: false, ..interface("eth1", "10.1.0.1/24") },
        ];
        let peer = [
            "2001:db8::7",
            "10.1.0.9",
            "192.168.1.9",
            "172.17.0.1",
            "172.18.0.1",
            "127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.251",
            "255.255.255.255",
            "169.254.1.1",
            "fe80::9",
            "::1",
            "::",
            "ff02::fb",
            "::ffff:192.168.1.9",
            "192.168.1.9",
        ];
        let order = in_dialling_order(peer.map(ip), &ours, 16);
        let wanted = ["192.168.1.9", "10.1.0.9", "172.18.0.1", "2001:db8::7"];
        assert_eq!(order, wanted.map(ip));
        assert_eq!(in_dialling_order(peer.map(ip), &ours, 2), [ip("192.168.1.9"), ip("10.1.0.9")]);
    }

    #[test]
    fn from_within_a_container_its_own_subnet_is_near() {
        let ours = [interface("eth0", "172.17.0.2/16")];
        let peer = ["10.0.0.1", "172.17.0.1"];
        assert_eq!(in_dialling_order(peer.map(ip), &ours, 16), ["172.17.0.1", "10.0.0.1"].map(ip));
    }

    #[test]
    fn a_subnet_may_be_everything_or_one_address() {
        assert!(interface("eth0", "10.0.0.1/0").is_near(ip("192.168.0.1")));
        assert!(!interface("eth0", "10.0.0.1/32").is_near(ip("10.0.0.2")));
        assert!(interface("eth0", "2001:db8::1/64").is_near(ip("2001:db8::ffff")));
        assert!(!interface("eth0", "2001:db8::1/64").is_near(ip("10.0.0.1")));
    }

    #[test]
    fn this_machine_tells_its_loopback_address() {
        let local = local().expect("the system tells them");
        assert!(local.iter().any(|interface| interface.address.is_loopback()), "{local:?}");
    }
}
