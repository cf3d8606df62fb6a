//! Which network interfaces of this host can carry mDNS, and why others are passed over.

use std::collections::BTreeMap;
use std::path::Path;

use widemap_cluster::interfaces::Interface;

use super::finding::{Check, Finding};

/// The kernel's flag of an interface that can send to many at once.
const IFF_MULTICAST: u32 = 0x1000;

/// What is known of the interfaces.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Checked {
    /// What to tell.
    pub(super) finding: Finding,
    /// The names of those that can carry mDNS.
    pub(super) usable: Vec<String>,
}

/// Judges the addresses of this host. `wanted` names the only interfaces to use, unless empty; with
/// `places` named, mDNS is not needed.
pub(super) fn check(
    ours: &[Interface],
    wanted: &[String],
    places: bool,
    can_multicast: impl Fn(&str) -> bool,
) -> Checked {
    let mut by_name: BTreeMap<&str, Vec<&Interface>> = BTreeMap::new();
    for interface in ours {
        by_name.entry(&interface.name).or_default().push(interface);
    }
    let (mut usable, mut carrying, mut passed) = (Vec::new(), Vec::new(), Vec::new());
    for (name, addresses) in by_name {
        let useful: Vec<_> = addresses
            .iter()
            .filter(|interface| interface.is_useful(wanted))
            .map(|interface| interface.address.to_string())
            .collect();
        if useful.is_empty() {
            // The address that is nearest to being useful has the reason that counts.
            let why = addresses.iter().find_map(|interface| interface.passed_over(wanted));
            let why = why.map_or_else(|| "not useful".to_owned(), |why| why.to_string());
            passed.push(format!("{name} ({why})"));
        } else if can_multicast(name) {
            usable.push(name.to_owned());
            carrying.push(format!("{name} ({})", useful.join(", ")));
        } else {
            passed.push(format!("{name} (no multicast)"));
        }
    }
    passed.extend(
        wanted
            .iter()
            .filter(|name| !ours.iter().any(|i| i.name == **name))
            .map(|name| format!("{name} (there is none of this name)")),
    );
    let passed = if passed.is_empty() {
        String::new()
    } else {
        format!("; passed over: {}", passed.join(", "))
    };
    let finding = if carrying.is_empty() {
        let what = format!("none can carry mDNS{passed}");
        let action = "name the workers (--worker HOST, or --dns NAME); `ip address` shows the \
                      interfaces";
        Finding::problem(Check::Interface, what, action).grave(!places)
    } else {
        Finding::ok(Check::Interface, format!("mDNS by {}{passed}", carrying.join(", ")))
    };
    Checked { finding, usable }
}

/// Whether the kernel sends to many by this interface; where that is not told it may.
pub(super) fn can_multicast(name: &str) -> bool {
    let path = Path::new("/sys/class/net").join(name).join("flags");
    std::fs::read_to_string(path).ok().and_then(|text| flag(&text)).unwrap_or(true)
}

fn flag(text: &str) -> Option<bool> {
    let digits = text.trim().strip_prefix("0x")?;
    Some(u32::from_str_radix(digits, 16).ok()? & IFF_MULTICAST != 0)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    fn interface(name: &str, address: &str) -> Interface {
        Interface {
            name: name.to_owned(),
            index: 0,
            address: address.parse().unwrap(),
            prefix_bits: 24,
            up: true,
            point_to_point: false,
        }
    }

    #[test]
    fn each_is_named_with_its_address_or_the_reason() {
        let ours = [
            interface("lo", "127.0.0.1"),
            interface("eth0", "fe80::1"),
            interface("eth0", "10.0.0.1"),
            interface("docker0", "172.17.0.1"),
            interface("eth1", "fe80::2"),
            interface("tap0", "10.3.0.1"),
            Interface { up: false, ..interface("eth2", "10.1.0.1") },
            Interface { point_to_point: true, ..interface("wg0", "10.2.0.1") },
        ];
        let Checked { finding, usable } = check(&ours, &[], false, |name| name != "tap0");
        assert_eq!((finding.status, usable), (Status::Ok, vec!["eth0".to_owned()]));
        assert_eq!(
            finding.what,
            "mDNS by eth0 (10.0.0.1); passed over: docker0 (container or virtual machine bridge), \
             eth1 (link-local address only), eth2 (down), lo (loopback), tap0 (no multicast), wg0 \
             (point-to-point, as of a VPN)"
        );
    }

    #[test]
    fn without_any_it_is_a_problem_unless_places_are_named() {
        let ours = [interface("lo", "127.0.0.1")];
        let of = |wanted: &[String], places| check(&ours, wanted, places, |_| true).finding;
        assert_eq!(of(&[], false).status, Status::Problem);
        assert!(of(&[], false).action.unwrap().contains("--worker HOST, or --dns"));
        assert_eq!(of(&[], true).status, Status::Warning);
        let named = of(&["eth7".to_owned()], false).what;
        assert!(named.ends_with("eth7 (there is none of this name)"), "{named}");
    }

    #[test]
    fn the_flag_is_read_as_the_kernel_writes_it() {
        assert_eq!(flag("0x1003\n"), Some(true));
        assert_eq!(flag("0x9"), Some(false));
        assert_eq!(flag("9"), None);
    }
}
