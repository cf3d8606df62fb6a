//! Cuts and partitions between hosts: packets that vanish one way or both, connections that are reset.

use std::time::{Duration, Instant};

use widemap_tests::{
    Host, MapProcess, Network, Way, WorkerProcess, always_for, cpu_time, eventually,
    eventually_within, processes_with, run,
};

use crate::support::{Log, SHORT, counted, map, numbers, places};

/// Three hosts on one switch: the coordinator's, ann's and bob's.
struct Office {
    home: Host,
    ann: Host,
    bob: Host,
    _network: Network,
}

impl Office {
    fn new(test: &str) -> Option<Self> {
        let mut network = Network::new(test)?;
        let (home, ann, bob) = (network.host(), network.host(), network.host());
        Some(Self { home, ann, bob, _network: network })
    }
}

/// Ann is cut off with an item that would run for long: both sides notice, bob does the job, and a
/// network that heals after the job has ended does no harm.
fn a_partition_is_survived(test: &str, way: Way, long: &str) {
    let Some(office) = Office::new(test) else { return };
    let log = Log::new();
    let timers = ["--timers", SHORT];
    let ann = WorkerProcess::start_on(&office.ann, "ann", 1, &timers);
    // The first run of the first item is the long one, and only ann is there to run it.
    let what = format!("test $(wc -l < {}) -gt 1 || {long}", log.path().display());
    let bobs = office.bob.worker_address();
    let places = ["--worker", ann.address(), "--worker", &bobs];
    let command = map(&[&places, &timers], &log.noting(&what));
    let map = MapProcess::start(office.home.inside(&command), numbers(1..=20));
    eventually("the long item runs", || processes_with(long).len(), |&count| count > 0);
    office.ann.drop_packets(way);
    let cut = Instant::now();
    let bob = WorkerProcess::start_on(&office.bob, "bob", 1, &timers);
    map.says("worker ann is lost");
    println!("{way:?}: lost {:.2?} after the cut", cut.elapsed());
    // Keepalive and lease are three seconds in all; the rest is for a busy machine.
    assert!(cut.elapsed() < Duration::from_secs(8), "{:?}", cut.elapsed());
    let what = "ann, who hears nothing, ends it by herself";
    eventually_within(Duration::from_secs(8), what, || processes_with(long), Vec::is_empty);
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=20));
    assert_eq!(counted(&done, "lost"), 1, "{}", done.stderr);

    office.ann.heal();
    let command = map_of_both(&ann, &bob);
    let done = run(office.home.inside(&command), numbers(1..=50).as_bytes()).exits(0);
    assert_eq!(done.text(), numbers(1..=50));
    assert!(done.stderr.contains("2 workers"), "{}", done.stderr);
}

fn map_of_both(ann: &WorkerProcess, bob: &WorkerProcess) -> std::process::Command {
    map(&[&places(&[ann, bob]), &["--chunk", "1"]], &["sh", "-c", "sleep 0.01; echo $1", "sh"])
}

/// Scenario 13: packets to the worker vanish, its own arrive; and 17: the network heals too late.
#[test]
fn a_worker_that_cannot_be_reached_is_noticed() {
    a_partition_is_survived("a_worker_that_cannot_be_reached_is_noticed", Way::In, "sleep 71.25");
}

/// Scenario 13: packets from the worker vanish, it hears all; and 17: the network heals too late.
#[test]
fn a_worker_that_cannot_be_heard_is_noticed() {
    a_partition_is_survived("a_worker_that_cannot_be_heard_is_noticed", Way::Out, "sleep 72.25");
}

/// Scenario 16: all packets vanish without a word; and 17: the network heals too late.
#[test]
fn a_silent_cut_is_noticed() {
    a_partition_is_survived("a_silent_cut_is_noticed", Way::Both, "sleep 73.25");
}

/// Scenario 17: ann's network heals when the job has ended: she ends what is left of it, and serves.
#[test]
fn a_cut_that_outlives_the_job_leaves_nothing_behind() {
    let Some(office) = Office::new("a_cut_that_outlives_the_job_leaves_nothing_behind") else {
        return;
    };
    let log = Log::new();
    let timers = ["--timers", SHORT];
    // Her lease would go on for long: it is the coordinator's that ends.
    let patient = ["--timers", "heartbeat_ms=100,keepalive_ms=500,keepalive_timeout_ms=500"];
    let ann = WorkerProcess::start_on(&office.ann, "ann", 1, &patient);
    let what = format!("test $(wc -l < {}) -gt 1 || sleep 74.25", log.path().display());
    let bobs = office.bob.worker_address();
    let places = ["--worker", ann.address(), "--worker", &bobs];
    let command = map(&[&places, &timers], &log.noting(&what));
    let map = MapProcess::start(office.home.inside(&command), numbers(1..=5));
    let left = || processes_with("sleep 74.25");
    eventually("the long item runs", || left().len(), |&count| count > 0);
    office.ann.drop_packets(Way::Both);
    let bob = WorkerProcess::start_on(&office.bob, "bob", 1, &timers);
    assert_eq!(map.finish().exits(0).text(), numbers(1..=5));
    office.ann.heal();
    let command = map_of_both(&ann, &bob);
    let done = run(office.home.inside(&command), numbers(1..=50).as_bytes()).exits(0);
    assert_eq!(done.text(), numbers(1..=50));
    eventually("nothing of the job is left", left, Vec::is_empty);
}

/// Scenario 11: cut, by a reset or silently, while a result is uploaded: it comes once, and whole.
#[test]
fn a_result_that_is_cut_off_on_its_way_comes_once_and_whole() {
    let test = "a_result_that_is_cut_off_on_its_way_comes_once_and_whole";
    let Some(office) = Office::new(test) else { return };
    let log = Log::new();
    let timers = ["--timers", SHORT];
    let ann = WorkerProcess::start_on(&office.ann, "ann", 2, &timers);
    let size = 100_000_000;
    let script = format!("echo $1 >> {}; yes $1 | head -c {size}", log.path().display());
    let command = map(&[&places(&[&ann]), &timers], &["sh", "-c", &script, "sh"]);
    let map = MapProcess::start(office.home.inside(&command), numbers(1..=4));
    let arrived = || office.home.received_bytes();
    eventually("a result is on its way", arrived, |&bytes| bytes > size / 4);
    office.ann.reset_connections();
    always_for(Duration::from_millis(300), "it goes on", || map.said(), |s| !s.contains("lost"));
    office.ann.heal();
    let before = arrived();
    eventually("another is on its way", arrived, |&bytes| bytes > before + size);
    office.ann.drop_packets(Way::Both);
    always_for(Duration::from_millis(1500), "it goes on", || map.said(), |s| !s.contains("lost"));
    office.ann.heal();
    let done = map.finish().exits(0);
    let mut rest = &done.stdout[..];
    for item in 1..=4 {
        let line = format!("{item}\n");
        let (own, others) = rest.split_at(usize::try_from(size).unwrap());
        assert!(own == line.repeat(own.len() / 2).as_bytes(), "the output of item {item}");
        rest = others;
    }
    assert!(rest.is_empty(), "{} bytes too many", rest.len());
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
    println!("4 uploads, cut twice: {} runs", log.runs());
}

/// Eight items of several seconds, a cut of three, silent for one worker and with resets for the
/// other: none of them runs twice.
fn a_short_cut_runs_nothing_again(test: &str, timers_of_workers: &[&str]) {
    let Some(office) = Office::new(test) else { return };
    let log = Log::new();
    // Noticed after a second, so that the cut is seen; the lease is the real one, of 20 s.
    let timers = ["--timers", "keepalive_ms=500,keepalive_timeout_ms=500,connect_ms=500"];
    let ann = WorkerProcess::start_on(&office.ann, "ann", 4, timers_of_workers);
    let bob = WorkerProcess::start_on(&office.bob, "bob", 4, timers_of_workers);
    let command = map(&[&places(&[&ann, &bob]), &timers], &log.noting("sleep 5"));
    let map = MapProcess::start(office.home.inside(&command), numbers(1..=8));
    eventually("all eight run", || log.runs(), |&runs| runs == 8);
    office.ann.drop_packets(Way::Both);
    office.bob.reset_connections();
    let three_seconds = Duration::from_secs(3);
    always_for(three_seconds, "nothing runs again", || log.runs(), |&runs| runs == 8);
    office.ann.heal();
    office.bob.heal();
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=8));
    assert_eq!(log.runs(), 8, "each item ran once: {}", done.stderr);
    assert_eq!((counted(&done, "lost"), counted(&done, "retried")), (0, 0), "{}", done.stderr);
}

/// Scenario 12: a cut of three seconds that only the coordinator notices.
#[test]
fn a_cut_of_three_seconds_runs_nothing_again() {
    a_short_cut_runs_nothing_again("a_cut_of_three_seconds_runs_nothing_again", &[]);
}

/// Scenario 12: a cut of three seconds that the workers notice too, by their own keepalive.
#[test]
fn a_cut_that_workers_notice_too_runs_nothing_again() {
    let timers = ["--timers", "keepalive_ms=500,keepalive_timeout_ms=500"];
    a_short_cut_runs_nothing_again("a_cut_that_workers_notice_too_runs_nothing_again", &timers);
}

/// Scenario 19: connections are reset again and again, both workers at once: the map goes on between
/// them, nothing runs twice, and the coordinator does not spin.
#[test]
fn a_storm_of_resets_is_weathered_without_spinning() {
    let test = "a_storm_of_resets_is_weathered_without_spinning";
    let Some(office) = Office::new(test) else { return };
    let log = Log::new();
    let (ann, bob) = (&office.ann, &office.bob);
    let ann_worker = WorkerProcess::start_on(ann, "ann", 2, &[]);
    let bob_worker = WorkerProcess::start_on(bob, "bob", 2, &[]);
    let command = map(&[&places(&[&ann_worker, &bob_worker])], &log.noting("sleep 0.1"));
    let mut map = MapProcess::start(office.home.inside(&command), numbers(1..=200));
    eventually("some items have run", || log.runs(), |&runs| runs > 4);
    let before = cpu_time(map.pid());
    let began = Instant::now();
    let quiet = |said: &String| !said.contains("lost");
    while began.elapsed() < Duration::from_secs(5) && map.is_running() {
        ann.reset_connections();
        bob.reset_connections();
        always_for(Duration::from_millis(400), "nobody is lost", || map.said(), quiet);
        ann.heal();
        bob.heal();
        always_for(Duration::from_millis(200), "nobody is lost", || map.said(), quiet);
    }
    let (used, took) = (cpu_time(map.pid()) - before, began.elapsed());
    println!("a storm of {took:.2?}: the coordinator used {used:.2?} of the processor");
    assert!(used < took / 4, "{used:?} in {took:?}: it spins");
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=200));
    assert_eq!(log.runs(), 200, "each item ran once");
}
