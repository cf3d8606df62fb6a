//! Maps that a person ends, and what is left of them elsewhere.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use widemap_tests::{
    MapProcess, WorkerProcess, always_for, eventually, processes_with, run_within,
};

use crate::support::{Log, counted, map, numbers, places};

/// Scenario 29: Ctrl-C once gives what runs on workers its grace, then all of it is gone there, also
/// what ignores the signal.
#[test]
fn an_interrupt_ends_what_ignores_it_on_every_worker() {
    let log = Log::new();
    let (ann, bob) = (WorkerProcess::start("ann", 1), WorkerProcess::start("bob", 1));
    let what = "trap '' TERM INT; sleep 76.25 & sleep 76.25; sleep 76.25";
    let map = MapProcess::start(map(&[&places(&[&ann, &bob])], &log.noting(what)), numbers(1..=9));
    let left = || processes_with("sleep 76.25");
    eventually("both workers are busy", || log.runs(), |&runs| runs == 2);
    eventually("their items sleep", || left().len(), |&count| count >= 4);
    map.signal(Signal::INT);
    let done = map.finish().exits(130);
    assert!(done.stderr.contains("to go on"), "{}", done.stderr);
    eventually("nothing of them is left", left, Vec::is_empty);
}

/// Scenario 29: Ctrl-C twice ends the map at once; what ran on workers is gone after their grace.
#[test]
fn a_second_interrupt_ends_the_map_at_once() {
    let log = Log::new();
    let ann = WorkerProcess::start_with("ann", 1, &["--timers", "kill_grace_ms=4000"]);
    let what = "trap '' TERM INT; sleep 77.25; sleep 77.25";
    let map = MapProcess::start(map(&[&places(&[&ann])], &log.noting(what)), numbers(1..=9));
    eventually("an item sleeps", || processes_with("sleep 77.25").len(), |&count| count > 0);
    map.signal(Signal::INT);
    map.says("once more ends at once");
    let second = Instant::now();
    map.signal(Signal::INT);
    let done = map.finish();
    let took = second.elapsed();
    println!("the second interrupt ended it within {took:.2?}");
    assert_eq!(done.status, 130, "{}", done.stderr);
    assert!(took < Duration::from_secs(3), "{took:?}: before the grace of the item is over");
    eventually("nothing of it is left", || processes_with("sleep 77.25"), Vec::is_empty);
}

/// A map on this machine alone that is stopped (Ctrl-Z) for longer than any silence is borne goes on as
/// if nothing had been: its workers stopped with it.
#[test]
fn a_map_that_was_stopped_goes_on() {
    let timers = "keepalive_ms=200,keepalive_timeout_ms=100,heartbeat_ms=50";
    let log = Log::new();
    let options = ["--local", "2", "--timers", timers];
    let map = MapProcess::start(map(&[&options], &log.noting("sleep 0.05")), numbers(1..=60));
    eventually("some items have run", || log.runs(), |&runs| runs > 10);
    map.signal(Signal::STOP);
    // What the spawner had started ends; nothing new begins.
    let stands = || log.runs();
    let still = stands();
    always_for(Duration::from_millis(3_500), "nothing begins", stands, |&runs| runs <= still + 2);
    map.signal(Signal::CONT);
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=60));
    assert_eq!((counted(&done, "lost"), log.runs()), (0, 60), "{}", done.stderr);
}

/// What a map still looks up when it is over is not waited for.
#[test]
fn a_lookup_that_hangs_does_not_hold_up_the_end_of_a_map() {
    let directory = tempfile::tempdir().unwrap();
    let hangs = directory.path().join("hosts");
    // Whoever opens it to read waits for somebody who writes.
    let made = std::process::Command::new("mkfifo").arg(&hangs).status().unwrap();
    assert!(made.success());
    let options = ["--local", "1", "--workers-file", hangs.to_str().unwrap()];
    let done = run_within(Duration::from_secs(10), map(&[&options], &["echo"]), b"1\n").exits(0);
    assert_eq!(done.text(), "1\n");
}

/// Each worker is a connection: a coordinator takes all descriptors that it may have.
#[test]
fn a_map_that_asks_workers_may_have_many_files_open() {
    let limit = |name: &str, limits: &str| -> Vec<String> {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line[name.len().min(line.len())..].split_whitespace().map(str::to_owned).collect()
    };
    let open_files = |pid: u32| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        limit("Max open files", &limits)
    };
    let map = map(&[&["--worker", "127.0.0.1:1", "--wait-workers", "60s"]], &["echo"]);
    let mut lowered = std::process::Command::new("sh");
    lowered.args(["-c", "ulimit -S -n 200 && exec \"$0\" \"$@\""]);
    lowered.arg(map.get_program()).args(map.get_args());
    widemap_tests::without_configuration(&mut lowered);
    let map = MapProcess::start(lowered, "1\n");
    map.says("waiting for a worker");
    let [soft, hard, ..] = &open_files(map.pid())[..] else { panic!("no limit is told") };
    assert_eq!(soft, hard);
    assert_ne!(soft, "200");
}
