//! Whether announcements are heard: this host's own, on each interface, and those of the workers that
//! answer. The own one is of a kind that nobody dials.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use widemap_cluster::interfaces::{Interface, is_dialable};
use widemap_cluster::mdns::{Announcer, Browser, Heard, Service};
use widemap_cluster::record::Announcement;
use widemap_common::ids::Incarnation;
use widemap_common::limits::{DOCTOR_INTERFACES_MAX, DOCTOR_LISTEN_MS};
use widemap_proto::VERSION;

use super::finding::{Check, Finding};
use super::place::Asked;

/// The port that is announced of a host that listens for itself: that of the discard service.
const NO_PORT: u16 = 9;

/// What came of listening for this host itself on one interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Echo {
    /// The interface.
    pub(super) name: String,
    /// Whether it was heard, or why that cannot be told.
    pub(super) heard: Result<bool, String>,
}

/// Which lives of workers are announced on these interfaces, within a second.
pub(super) async fn listen(interfaces: &[String]) -> BTreeSet<Incarnation> {
    let mut heard = BTreeSet::new();
    if interfaces.is_empty() {
        return heard;
    }
    // Why it cannot listen is told by who listens for this host itself.
    let Ok(mut browser) = Browser::start(Service::Worker, interfaces) else { return heard };
    let until = Instant::now() + Duration::from_millis(DOCTOR_LISTEN_MS);
    while let Ok(next) = timeout_at(until, browser.next()).await {
        if let Heard::Found(instance) = next {
            heard.insert(instance.announcement.incarnation);
        }
    }
    browser.stop().await;
    heard
}

/// Announces this host on each of the interfaces, and listens for that.
pub(super) async fn echo(interfaces: &[String]) -> Vec<Echo> {
    let mut listening = JoinSet::new();
    for name in interfaces.iter().take(DOCTOR_INTERFACES_MAX).cloned() {
        listening.spawn(async move {
            let heard = hears_itself(&name).await;
            Echo { name, heard }
        });
    }
    let mut echoes = listening.join_all().await;
    echoes.sort_by(|a, b| a.name.cmp(&b.name));
    echoes
}

async fn hears_itself(name: &str) -> Result<bool, String> {
    let announcement = Announcement {
        name: "doctor".to_owned(),
        protocol: (VERSION.major, VERSION.minor),
        incarnation: Incarnation(fastrand::u64(1..)),
        slots: 0,
        cluster: None,
    };
    let only = [name.to_owned()];
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let started = Announcer::start(Service::Probe, &announcement, NO_PORT, any, &only)
        .and_then(|announcer| Ok((announcer, Browser::start(Service::Probe, &only)?)));
    let (announcer, mut browser) = started.map_err(|error| error.to_string())?;
    let until = Instant::now() + Duration::from_millis(DOCTOR_LISTEN_MS);
    let mut heard = false;
    while let Ok(next) = timeout_at(until, browser.next()).await {
        if let Heard::Found(instance) = next
            && instance.announcement.incarnation == announcement.incarnation
        {
            heard = true;
            break;
        }
    }
    browser.stop().await;
    announcer.goodbye().await;
    Ok(heard)
}

/// What is told of this host's own announcements; it matters more where workers are looked for so.
pub(super) fn of_host(echoes: &[Echo], is_asked: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let heard: Vec<_> =
        echoes.iter().filter(|echo| echo.heard == Ok(true)).map(|echo| &*echo.name).collect();
    if !heard.is_empty() {
        let what = format!("this host hears its own announcement on {}", heard.join(", "));
        findings.push(Finding::ok(Check::Multicast, what));
    }
    for Echo { name, heard } in echoes {
        match heard {
            Ok(true) => {}
            Ok(false) => findings.push(
                Finding::problem(
                    Check::Multicast,
                    format!(
                        "this host does not hear its own announcement on {name}: something on it drops \
                         multicast or UDP 5353"
                    ),
                    "let UDP 5353 in and out in this host's firewall (`iptables -S`, `nft list \
                     ruleset`), or name the workers with --worker HOST",
                )
                .grave(is_asked),
            ),
            Err(why) => findings.push(
                Finding::problem(
                    Check::Multicast,
                    format!("{name}: {why}"),
                    "name the workers with --worker HOST, or free UDP 5353 (`ss -lunp` shows who has it)",
                )
                .grave(is_asked),
            ),
        }
    }
    findings
}

/// What is told of workers that answer and are not heard.
pub(super) fn of_workers(
    asked: &[Asked],
    heard: &BTreeSet<Incarnation>,
    echoes: &[Echo],
    ours: &[Interface],
) -> Vec<Finding> {
    // Where this host does not even hear itself, that is the cause.
    if !echoes.iter().any(|echo| echo.heard == Ok(true)) {
        return Vec::new();
    }
    let is_ours = |ip: IpAddr| ours.iter().any(|interface| interface.address == ip);
    let is_near = |ip: IpAddr| ours.iter().any(|interface| interface.is_near(ip));
    let mut findings = Vec::new();
    for asked in asked {
        let Ok(answer) = &asked.answer else { continue };
        let (name, place) = (&answer.hello.name, asked.place.shown());
        if heard.contains(&answer.hello.incarnation) {
            continue;
        }
        let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        if ip.is_some_and(|ip| !is_dialable(ip) || is_ours(ip)) {
            // On this host it may be meant for this host alone.
            continue;
        }
        findings.push(if ip.is_some_and(|ip| !is_near(ip)) {
            Finding::ok(
                Check::Multicast,
                format!(
                    "{name} is in another subnet, from which no multicast comes: it is found by its \
                     name alone"
                ),
            )
        } else {
            Finding::warning(
                Check::Multicast,
                format!(
                    "{name} answers at {place} and is not heard: it runs with --no-mdns, or multicast \
                     does not come through from there (switch or Wi-Fi isolation, another subnet, a \
                     firewall that drops UDP 5353)"
                ),
                format!("name it with --worker {host}, or let UDP 5353 pass"),
            )
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::super::worker::tests::answer;
    use super::*;
    use crate::places::Place;

    fn heard(name: &str, heard: bool) -> Echo {
        Echo { name: name.to_owned(), heard: Ok(heard) }
    }

    fn statuses(findings: &[Finding]) -> Vec<Status> {
        findings.iter().map(|finding| finding.status).collect()
    }

    #[test]
    fn a_host_that_does_not_hear_itself_is_a_problem_where_that_is_needed() {
        let echoes = [heard("eth0", true), heard("eth1", false)];
        assert_eq!(statuses(&of_host(&echoes, true)), [Status::Ok, Status::Problem]);
        assert_eq!(statuses(&of_host(&echoes, false)), [Status::Ok, Status::Warning]);
        let taken = Echo { name: "eth0".to_owned(), heard: Err("it is taken".to_owned()) };
        let found = of_host(&[taken], true).remove(0);
        assert_eq!(found.what, "eth0: it is taken");
    }

    #[test]
    fn a_worker_that_answers_and_is_not_heard_is_named() {
        let ours = [Interface {
            name: "eth0".to_owned(),
            index: 2,
            address: "10.0.0.1".parse().unwrap(),
            prefix_bits: 24,
            up: true,
            point_to_point: false,
        }];
        let echoes = [heard("eth0", true)];
        let at = |address: &str| Asked {
            place: Place::at(address.to_owned()),
            sources: vec!["--worker".to_owned()],
            is_named: true,
            answer: Ok(answer("ann")),
        };
        let of = |address: &str, heard: &BTreeSet<_>, echoes: &[Echo]| {
            of_workers(&[at(address)], heard, echoes, &ours)
        };
        let nobody = BTreeSet::new();
        let near = of("10.0.0.2:7433", &nobody, &echoes);
        assert_eq!(statuses(&near), [Status::Warning]);
        assert!(near[0].action.as_ref().unwrap().contains("--worker 10.0.0.2"), "{near:?}");
        assert_eq!(statuses(&of("192.168.7.2:7433", &nobody, &echoes)), [Status::Ok]);
        assert_eq!(statuses(&of("ann.lab:7433", &nobody, &echoes)), [Status::Warning]);
        for own in ["127.0.0.1:7433", "[::1]:7433", "10.0.0.1:7433"] {
            assert_eq!(of(own, &nobody, &echoes), []);
        }
        assert_eq!(of("10.0.0.2:7433", &BTreeSet::from([Incarnation(7)]), &echoes), []);
        assert_eq!(of("10.0.0.2:7433", &nobody, &[heard("eth0", false)]), []);
    }
}
