//! Networks that are merely bad: long cables, lost packets, packets that overtake each other.

use widemap_tests::{Cable, MapProcess, Network, Way, WorkerProcess};

use crate::support::{Log, counted, map, numbers, places};

/// The real timers, ten times as fast: what holds with them on a cable holds with the real ones on a
/// cable that is ten times as slow.
const TENTH: &str = "heartbeat_ms=100,keepalive_ms=1000,keepalive_timeout_ms=500,connect_ms=300,\
                     redial_ms=10,redial_max_ms=200,lease_ms=2000,lease_margin_ms=200";

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

/// Twelve items of 1 MiB go there and come back over a slow cable: neither side takes the other for
/// dead, no lease ends, and each item runs once.
fn large_items_over_a_slow_cable(test: &str, bytes_per_second: u32) {
    let Some(mut network) = Network::new(test) else { return };
    let home = network.host();
    let cable =
        Cable { delay_ms: 10, bytes_per_second: Some(bytes_per_second), ..Cable::default() };
    let Some(ann) = network.far_host(test, cable) else { return };
    let log = Log::new();
    let timers = ["--timers", TENTH];
    let ann = WorkerProcess::start_on(&ann, "ann", 2, &timers);
    let script = format!("echo $$ >> {}; cat", log.path().display());
    let options = ["--pipe", "--block", "1M"];
    let command = map(&[&places(&[&ann]), &timers, &options], &["sh", "-c", &script]);
    let items: String = ('a'..='l')
        .map(|letter| format!("{}\n", letter.to_string().repeat((1 << 20) - 1)))
        .collect();
    let mut command = home.inside(&command);
    // Cuts that are healed are said only there.
    command.env("WIDEMAP_LOG", "info");
    let done = MapProcess::start(command, items.clone()).finish().exits(0);
    println!("{bytes_per_second} bytes/s: {}", done.stderr.lines().last().unwrap());
    assert!(!done.stderr.contains("cut"), "they stay connected: {}", done.stderr);
    assert!(done.text() == items);
    assert_eq!(log.runs(), 12, "each item runs once: {}", done.stderr);
    assert_eq!((counted(&done, "lost"), counted(&done, "retried")), (0, 0), "{}", done.stderr);
}

/// As with the real timers at 200 KB/s.
#[test]
fn large_items_come_through_a_slow_cable() {
    large_items_over_a_slow_cable("large_items_come_through_a_slow_cable", 2_000_000);
}

/// As with the real timers at 100 KB/s.
#[test]
fn large_items_come_through_a_very_slow_cable() {
    large_items_over_a_slow_cable("large_items_come_through_a_very_slow_cable", 1_000_000);
}
