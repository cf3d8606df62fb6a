//! What must survive: killed workers, killed coordinators, readers that leave, signals.

use std::io::Write;
use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};
use widemap_tests::{
    WorkerProcess, bytes_of, eventually, exec_in_background, processes_with, run, widemap,
};

/// A list of so many items, each of which appends its number to `log` and sleeps.
fn slow_map(places: &[&str], log: &str, seconds: &str) -> std::process::Command {
    let script = format!("echo $1 >> {log}; sleep {seconds}; echo $1");
    widemap(&[&["map"], places, &["--", "sh", "-c", &script, "sh"]].concat())
}

fn start(command: std::process::Command, items: std::ops::RangeInclusive<u32>) -> Child {
    let mut child = exec_in_background(command);
    let input: String = items.map(|n| format!("{n}\n")).collect();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child
}

fn finish(mut child: Child) -> (i32, String, String) {
    let stdout = String::from_utf8(bytes_of(child.stdout.take().unwrap())).unwrap();
    let stderr = String::from_utf8(bytes_of(child.stderr.take().unwrap())).unwrap();
    (child.wait().unwrap().code().unwrap_or(-1), stdout, stderr)
}

fn lines_of(path: &str) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn a_killed_worker_changes_nothing_in_the_output() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log").display().to_string();
    let (mut ann, bob) = (WorkerProcess::start("ann", 2), WorkerProcess::start("bob", 2));
    let places = ["--worker", ann.address(), "--worker", bob.address()];
    let map = start(slow_map(&places, &log, "0.02"), 1..=200);
    eventually("some items have run", || lines_of(&log), |&lines| lines > 40);
    ann.kill();
    let (status, stdout, stderr) = finish(map);
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(stdout, (1..=200).map(|n| format!("{n}\n")).collect::<String>());
    assert!(stderr.contains("1 lost"), "{stderr}");
    let again = lines_of(&log) - 200;
    assert!(again <= 4, "{again} items ran twice: more than what was lost");
}

#[test]
fn no_process_of_an_attempt_outlives_a_killed_worker() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log").display().to_string();
    let mut ann = WorkerProcess::start("ann", 2);
    // A process group of its own does not save it either.
    let script = format!("echo $1 >> {log}; setsid sleep 86.75 & sleep 86.75");
    let places = ["map", "--worker", ann.address(), "--wait-workers", "1s"];
    let map = widemap(&[&places[..], &["--", "sh", "-c", &script, "sh"]].concat());
    let map = start(map, 1..=2);
    eventually("both items run", || processes_with("sleep 86.75").len(), |&count| count >= 4);
    ann.kill();
    eventually("nothing of them is left", || processes_with("sleep 86.75"), Vec::is_empty);
    let (status, _, stderr) = finish(map);
    assert_eq!(status, 3, "{stderr}");
    assert!(stderr.contains("no worker could be used"), "{stderr}");
}

#[test]
fn no_process_of_an_attempt_outlives_a_killed_coordinator() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log").display().to_string();
    let mut map = start(slow_map(&["--local", "2"], &log, "85.5"), 1..=2);
    eventually("both items run", || processes_with("sleep 85.5").len(), |&count| count >= 2);
    map.kill().unwrap();
    map.wait().unwrap();
    eventually("nothing of them is left", || processes_with("sleep 85.5"), Vec::is_empty);
}

#[test]
fn a_worker_ends_the_items_of_a_killed_coordinator_when_its_lease_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log").display().to_string();
    let ann = WorkerProcess::start("ann", 1);
    let timers = ["--worker", ann.address(), "--timers", "lease_ms=600,lease_margin_ms=300"];
    let mut map = start(slow_map(&timers, &log, "84.5"), 1..=1);
    eventually("the item runs", || processes_with("sleep 84.5").len(), |&count| count > 0);
    map.kill().unwrap();
    map.wait().unwrap();
    eventually("nothing of it is left", || processes_with("sleep 84.5"), Vec::is_empty);
}

#[test]
fn an_interrupt_ends_everything_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log").display().to_string();
    let ann = WorkerProcess::start("ann", 1);
    let map = start(slow_map(&["--worker", ann.address()], &log, "0.3"), 1..=100);
    eventually("some items have run", || lines_of(&log), |&lines| lines >= 3);
    kill_process(Pid::from_child(&map), Signal::INT).unwrap();
    let (status, stdout, stderr) = finish(map);
    assert_eq!(status, 130, "{stderr}");
    let done = stdout.lines().count();
    assert_eq!(stdout, (1..=done).map(|n| format!("{n}\n")).collect::<String>());
    assert!(stderr.contains("to go on"), "{stderr}");
    assert!(stderr.contains("not run"), "{stderr}");
    eventually("nothing of them is left", || processes_with(&log), Vec::is_empty);
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_map_quietly() {
    let mut map = exec_in_background(widemap(&["map", "--builtin", "identity"]));
    let mut stdin = map.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || {
        let block: Vec<u8> = (0..100_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        while stdin.write_all(&block).is_ok() {}
    });
    let mut first = [0; 10];
    std::io::Read::read_exact(map.stdout.as_mut().unwrap(), &mut first).unwrap();
    drop(map.stdout.take());
    let stderr = String::from_utf8(bytes_of(map.stderr.take().unwrap())).unwrap();
    assert_eq!(map.wait().unwrap().code(), Some(0), "{stderr}");
    assert!(!stderr.contains("error"), "{stderr}");
    feeder.join().unwrap();
}

#[test]
fn a_worker_told_to_end_drains_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log").display().to_string();
    let (mut ann, bob) = (WorkerProcess::start("ann", 1), WorkerProcess::start("bob", 1));
    let places = ["--worker", ann.address(), "--worker", bob.address()];
    let map = start(slow_map(&places, &log, "0.05"), 1..=60);
    eventually("some items have run", || lines_of(&log), |&lines| lines > 10);
    ann.signal(Signal::TERM);
    assert_eq!(ann.exit_status(), 0);
    let (status, stdout, stderr) = finish(map);
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(stdout, (1..=60).map(|n| format!("{n}\n")).collect::<String>());
    assert_eq!(lines_of(&log), 60, "no item ran twice");
    assert_eq!(stderr.matches("worker ann is leaving").count(), 1, "{stderr}");
    assert!(stderr.contains(" 0 lost"), "{stderr}");
}

#[test]
fn a_worker_that_comes_back_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log").display().to_string();
    let mut ann = WorkerProcess::start("ann", 1);
    let address = ann.address().to_owned();
    let map = start(slow_map(&["--worker", &address], &log, "0.03"), 1..=60);
    eventually("some items have run", || lines_of(&log), |&lines| lines > 10);
    ann.kill();
    let _again = WorkerProcess::start_with("ann", 1, &["--listen", &address]);
    let (status, stdout, stderr) = finish(map);
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(stdout, (1..=60).map(|n| format!("{n}\n")).collect::<String>());
    assert!(stderr.contains("1 lost"), "{stderr}");
}

#[test]
fn an_item_that_kills_its_process_fails_alone() {
    let script = "if [ $1 = 7 ]; then kill -9 $$; fi; echo $1";
    let map = widemap(&["map", "--retries", "1", "--", "sh", "-c", script, "sh"]);
    let input: String = (1..=20).map(|n| format!("{n}\n")).collect();
    let done = run(map, input.as_bytes()).exits(1);
    let want: String = (1..=20).filter(|&n| n != 7).map(|n| format!("{n}\n")).collect();
    assert_eq!(done.text(), want);
    assert!(done.stderr.contains("item 7 `7`: killed by signal 9"), "{}", done.stderr);
}

#[test]
fn an_interrupted_item_has_its_grace_on_this_machine_too() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log").display().to_string();
    let script = format!(
        "trap 'sleep 0.2; echo cleaned >> {log}; exit 1' TERM; echo up >> {log}; sleep 82.5 & wait"
    );
    let map = widemap(&["map", "--local", "1", "--", "sh", "-c", &script, "sh"]);
    let map = start(map, 1..=1);
    eventually("the item runs", || lines_of(&log), |&lines| lines == 1);
    kill_process(Pid::from_child(&map), Signal::INT).unwrap();
    let (status, _, stderr) = finish(map);
    assert_eq!(status, 130, "{stderr}");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "up\ncleaned\n");
}
