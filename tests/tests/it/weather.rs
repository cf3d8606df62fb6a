//! Networks that are merely bad: long cables, lost packets, packets that overtake each other.

use widemap_tests::{Cable, MapProcess, Network, Way, WorkerProcess};

use crate::support::{counted, map, numbers, places};

/// Scenario 14: 5 % loss and 200 ms of delay, each way, with packets that overtake each other: the
/// map completes and its output is the same. The timers are the real ones.
#[test]
fn loss_and_delay_do_not_show_in_the_output() {
    let test = "loss_and_delay_do_not_show_in_the_output";
    let Some(mut network) = Network::new(test) else { return };
    let home = network.host();
    let cable = Cable { delay_ms: 200, jitter_ms: 40, loss_percent: 5, ..Cable::default() };
    let Some(ann) = network.far_host(test, cable) else { return };
    let Some(bob) = network.far_host(test, cable) else { return };
    let ann = WorkerProcess::start_on(&ann, "ann", 2, &[]);
    let bob = WorkerProcess::start_on(&bob, "bob", 2, &[]);
    let command = map(&[&places(&[&ann, &bob])], &["sh", "-c", "sleep 0.05; echo $1", "sh"]);
    let map = MapProcess::start(home.inside(&command), numbers(1..=100));
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=100));
    println!("commands: {}", done.stderr.lines().last().unwrap());
    let squares = ["map", "--worker", ann.address(), "--worker", bob.address()];
    let squares = widemap_tests::widemap(&[&squares[..], &["--builtin", "square"]].concat());
    let done = MapProcess::start(home.inside(&squares), numbers(1..=20_000)).finish().exits(0);
    let want: String = (1..=20_000_u64).map(|n| format!("{}\n", n * n)).collect();
    assert!(done.text() == want);
    println!("squares: {}", done.stderr.lines().last().unwrap());
}

/// Scenario 14: every fifth packet is lost, on a short cable.
#[test]
fn a_cable_that_loses_every_fifth_packet_does_not_show_in_the_output() {
    let test = "a_cable_that_loses_every_fifth_packet_does_not_show_in_the_output";
    let Some(mut network) = Network::new(test) else { return };
    let (home, host) = (network.host(), network.host());
    let ann = WorkerProcess::start_on(&host, "ann", 2, &[]);
    host.lose_packets(Way::In, 20);
    let command = map(&[&places(&[&ann])], &["echo"]);
    let done = MapProcess::start(home.inside(&command), numbers(1..=200)).finish().exits(0);
    assert_eq!(done.text(), numbers(1..=200));
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
}
