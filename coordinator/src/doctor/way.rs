//! What keeps a worker from answering, as far as the step that failed tells, and what to do about it.

use tonic::Code;
use widemap_cluster::Distrust;
use widemap_common::limits::DOCTOR_PAYLOAD_BYTES;

use super::finding::{Check, Finding};
use super::place::Asked;
use super::worker::{Answer, Fault};
use crate::places::{MDNS, Suggestion};
use crate::session::DialError;

/// What is told of each place that was asked.
pub(super) fn of_workers(asked: &[Asked]) -> Vec<Finding> {
    let others_answer = asked.iter().any(|asked| asked.answer.is_ok());
    let of = |asked: &Asked| {
        let place = asked.place.shown();
        let sources = asked.sources.join(", ");
        match &asked.answer {
            Ok(answer) => of_answer(place, &sources, answer),
            Err(fault) => {
                let (what, action) = explain(fault, place, others_answer);
                // Whoever was only heard of may have ended without a word.
                Finding::problem(Check::Worker, format!("{place} ({sources}): {what}"), action)
                    .grave(asked.is_named)
            }
        }
    };
    asked.iter().map(of).collect()
}

/// What is told of sources, and of what they name that is not worth asking.
pub(super) fn of_sources(suggestions: &[Suggestion]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for suggestion in suggestions {
        let source = &suggestion.source;
        if let Some(trouble) = &suggestion.trouble {
            let action = if source == MDNS {
                "name the workers (--worker HOST, or --dns NAME)"
            } else {
                "correct it, or leave this source out"
            };
            // mDNS says itself what the trouble is with.
            let trouble = trouble.strip_prefix("mDNS: ").unwrap_or(trouble);
            let what = format!("{source}: {trouble}");
            findings.push(Finding::problem(Check::Worker, what, action).grave(source != MDNS));
        }
        findings.extend(suggestion.unused.iter().map(|unused| {
            Finding::warning(
                Check::Worker,
                format!("{} ({source}) is not asked: {}", unused.place, unused.why),
                "if it should work for this host, give both the same key file and the same release",
            )
        }));
    }
    findings
}

/// That a map would find nobody.
pub(super) fn nobody() -> Finding {
    Finding::problem(
        Check::Worker,
        "nobody answers: a map would wait, and end with status 3",
        "start `widemap-worker` on each host with this host's key, name it with --worker HOST, or \
         run on this machine with --local N",
    )
}

fn of_answer(place: &str, sources: &str, answer: &Answer) -> Finding {
    let Answer { hello, carries, .. } = answer;
    let shown = format!(
        "{} at {place} ({sources}): {}, slots: {}",
        hello.name,
        hello.build.trim_start_matches("widemap-worker "),
        hello.slots
    );
    if !carries {
        return Finding::problem(
            Check::Worker,
            format!(
                "{shown}; small messages pass, and one of {DOCTOR_PAYLOAD_BYTES} bytes does not"
            ),
            large_packets(),
        );
    }
    match &hello.left_out {
        None => Finding::ok(Check::Worker, shown),
        Some(left_out) => Finding::warning(
            Check::Worker,
            format!("{shown}; a map leaves it out for now: {}", left_out.why),
            "look at its log; it is used again by itself",
        ),
    }
}

fn large_packets() -> &'static str {
    "large packets seem to be dropped on the way (MTU, VPN?): compare `ip link` of both hosts, try \
     `ping -M do -s 1472 HOST`, or lower it on both sides (ip link set dev NAME mtu 1280)"
}

/// What has happened at a place, and what to do.
fn explain(fault: &Fault, place: &str, others_answer: bool) -> (String, String) {
    let (host, port) = place.rsplit_once(':').unwrap_or((place, "7433"));
    match fault {
        Fault::Dial(error) => of_dial(error, host),
        Fault::Silent(limit) if others_answer => (
            format!(
                "no answer within {limit:?}, and others do answer: a firewall drops TCP {port}?"
            ),
            format!("see that the host is up (ping {host}), and let TCP {port} in on it"),
        ),
        Fault::Silent(limit) => (
            format!(
                "no answer within {limit:?}: the host is down, its address is another, or a firewall \
                 drops TCP {port}"
            ),
            format!("ping {host}; then let TCP {port} in on it, and out of this host"),
        ),
        Fault::Handshake(limit) => (
            format!(
                "it accepts connections, and the handshake does not end within {limit:?}: large \
                 packets are dropped (MTU, VPN?), or something else listens there"
            ),
            large_packets().to_owned(),
        ),
        Fault::Unwell(status) if status.code() == Code::DeadlineExceeded => (
            "it accepts connections, and answers no call: it hangs, or packets are lost".to_owned(),
            large_packets().to_owned(),
        ),
        Fault::Unwell(status) => (
            format!("it does not serve ({}): {}", status.code(), status.message()),
            format!("see what listens there (`ss -ltnp` on {host}) and what its log says"),
        ),
        Fault::Refused(reason) => (
            format!("it refuses a session: {reason}"),
            "install the same release on both hosts".to_owned(),
        ),
        Fault::Cut(reason) => (
            format!("its session broke at once: {reason}"),
            format!("look at the log of widemap-worker on {host}"),
        ),
    }
}

fn of_dial(error: &DialError, host: &str) -> (String, String) {
    let action = match error {
        DialError::Refused(_) => {
            return (
                "connection refused: the host is up, and nobody listens there".to_owned(),
                format!("start widemap-worker on {host}, or correct the port"),
            );
        }
        DialError::NoRoute => format!(
            "see which network should lead there: `ip route get {host}`; then its cable, Wi-Fi or VPN"
        ),
        DialError::Name(_) => {
            format!("correct the name, or name the address of {host} (DNS, /etc/hosts)")
        }
        DialError::OtherKey { .. } => format!(
            "copy this host's key file to {host} and restart widemap-worker there (`widemap key \
             show` tells which cluster a key is of)"
        ),
        DialError::NoKey { .. } => {
            format!("copy this host's key file to {host} and restart widemap-worker there")
        }
        DialError::WantsKey { .. } => {
            format!("copy the key file of {host} to this host, and name it with --key FILE")
        }
        DialError::Distrust { distrust: Distrust::Clock, .. } => {
            "set the clocks of both hosts (timedatectl set-ntp true)".to_owned()
        }
        DialError::Distrust {
            distrust: Distrust::OtherAuthority | Distrust::RefusesAuthority,
            ..
        } => format!(
            "have the certificates of this host and of {host} signed by one authority, and name it on \
             both (--tls-ca)"
        ),
        DialError::Distrust { .. } => {
            "compare the certificates of both sides, and the authority that each names".to_owned()
        }
        DialError::TimedOut(_) | DialError::Other(_) => {
            format!("see what listens there (`ss -ltnp` on {host})")
        }
    };
    (error.to_string(), action)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Status as CallStatus;

    use super::super::finding::Status;
    use super::super::worker::tests::answer;
    use super::*;
    use crate::places::Place;

    const PLACE: &str = "10.0.0.2:7433";

    fn asked(answer: Result<Answer, Fault>, is_named: bool) -> Asked {
        let sources = vec!["--worker".to_owned()];
        Asked { place: Place::at(PLACE.to_owned()), sources, is_named, answer }
    }

    #[test]
    fn a_host_that_gives_no_answer_is_another_matter_where_one_does() {
        let silent = || asked(Err(Fault::Silent(Duration::from_secs(3))), true);
        let alone = of_workers(&[silent()]).remove(0);
        assert!(alone.what.contains("the host is down"), "{alone:?}");
        let among = of_workers(&[silent(), asked(Ok(answer("ann")), true)]).remove(0);
        assert!(among.what.contains("a firewall drops TCP 7433?"), "{among:?}");
        assert_eq!(among.status, Status::Problem);
    }

    #[test]
    fn one_that_is_only_heard_of_may_have_gone() {
        let refused = || Err(Fault::Dial(DialError::Refused(Vec::new())));
        assert_eq!(of_workers(&[asked(refused(), false)])[0].status, Status::Warning);
        assert_eq!(of_workers(&[asked(refused(), true)])[0].status, Status::Problem);
    }

    #[test]
    fn each_fault_says_what_to_do() {
        let host = || "10.0.0.2:7433".to_owned();
        for (fault, what, action) in [
            (
                Fault::Dial(DialError::Refused(Vec::new())),
                "nobody listens",
                "start widemap-worker on 10.0.0.2",
            ),
            (Fault::Dial(DialError::NoRoute), "no route", "ip route get 10.0.0.2"),
            (Fault::Dial(DialError::NoKey { host: host() }), "has no key", "copy this host's key"),
            (Fault::Dial(DialError::WantsKey { host: host() }), "asks for a key", "--key FILE"),
            (Fault::Handshake(Duration::from_secs(3)), "does not end within 3s", "MTU"),
            (Fault::Unwell(CallStatus::deadline_exceeded("")), "answers no call", "MTU"),
            (Fault::Unwell(CallStatus::unavailable("it drains")), "it drains", "ss -ltnp"),
            (Fault::Refused("protocol 9.0".to_owned()), "protocol 9.0", "same release"),
            (Fault::Cut("reset".to_owned()), "reset", "look at the log"),
        ] {
            let said = explain(&fault, PLACE, false);
            assert!(said.0.contains(what), "{said:?}");
            assert!(said.1.contains(action), "{said:?}");
        }
    }

    #[test]
    fn a_worker_that_only_small_messages_reach_is_a_problem() {
        let small = Answer { carries: false, ..answer("ann") };
        let found = of_workers(&[asked(Ok(small), true)]).remove(0);
        assert_eq!(found.status, Status::Problem);
        assert!(found.what.starts_with("ann at 10.0.0.2:7433 (--worker): 0.1.0, slots: 2"));
    }
}
