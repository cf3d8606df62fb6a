//! Workers that die, stop, come back, join, and the item that kills them.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use widemap_tests::{
    MapProcess, SupervisedWorker, WorkerProcess, eventually, eventually_within, run, widemap,
    worker,
};

use crate::support::{Log, SHORT, counted, map, numbers, places};

/// What an item does that kills the worker which runs it, and nothing else: its parent is the
/// spawner, and the parent of that is the worker.
const KILLS_ITS_WORKER: &str = r#"
    worker=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$PPID/status)
    if grep -q widemap-worker /proc/$worker/comm; then kill -9 $worker; fi
    sleep 30"#;

pub(crate) fn kill_workers_and_processes(killers: &str, suicides: &str) -> [String; 4] {
    let script = format!(
        "case $1 in {killers}) {KILLS_ITS_WORKER} ;; {suicides}) kill -9 $$ ;; esac; echo $1"
    );
    ["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()]
}

fn failures(path: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Scenario 2: a worker that stopped past its lease and goes on later changes nothing.
#[test]
fn a_worker_that_stood_still_past_its_lease_is_too_late() {
    let log = Log::new();
    let timers = ["--timers", SHORT];
    let ann = WorkerProcess::start_with("ann", 2, &timers);
    let bob = WorkerProcess::start_with("bob", 1, &timers);
    let command = map(&[&places(&[&ann, &bob]), &timers], &log.noting("sleep 0.1"));
    let map = MapProcess::start(command, numbers(1..=60));
    eventually("some items have run", || log.runs(), |&runs| runs > 10);
    ann.signal(Signal::STOP);
    map.says("worker ann is lost");
    assert!(log.runs() < 60, "it is lost before all is done");
    ann.signal(Signal::CONT);
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=60));
    assert_eq!(counted(&done, "lost"), 1, "{}", done.stderr);
    let again = log.runs() - 60;
    let ran = std::fs::read_to_string(log.path()).unwrap_or_default().replace('\n', " ");
    assert!(again <= 2, "{again} items ran again, more than ann had slots: {ran}; {}", done.stderr);
}

/// Scenario 3: with no worker left the map says that it waits, and goes on when one returns.
#[test]
fn a_map_without_workers_waits_and_goes_on_when_one_returns() {
    let log = Log::new();
    let (mut ann, mut bob) = (WorkerProcess::start("ann", 1), WorkerProcess::start("bob", 1));
    let address = ann.address().to_owned();
    let command = map(&[&places(&[&ann, &bob])], &log.noting("sleep 0.05"));
    let map = MapProcess::start(command, numbers(1..=60));
    eventually("some items have run", || log.runs(), |&runs| runs > 10);
    ann.kill();
    bob.kill();
    map.says("waiting for a worker");
    let _again = WorkerProcess::start_with("ann", 1, &["--listen", &address]);
    let done = map.finish().exits(0);
    assert_eq!(done.text(), numbers(1..=60));
    assert_eq!(counted(&done, "lost"), 2, "{}", done.stderr);
}

/// Scenario 3: with no worker left the map ends with 3 after `--wait-workers`, and keeps what is done.
#[test]
fn a_map_without_workers_ends_when_it_has_waited_long_enough() {
    let log = Log::new();
    let mut ann = WorkerProcess::start("ann", 1);
    let wait = ["--wait-workers", "1s"];
    let command = map(&[&places(&[&ann]), &wait], &log.noting("sleep 0.05"));
    let map = MapProcess::start(command, numbers(1..=60));
    eventually("some items have run", || log.runs(), |&runs| runs > 10);
    ann.kill();
    let died = Instant::now();
    map.says("waiting for a worker, up to 1s");
    let done = map.finish().exits(3);
    assert!(died.elapsed() >= Duration::from_secs(1));
    assert!(done.stderr.contains(ann.address()), "{}", done.stderr);
    let ended = u32::try_from(done.text().lines().count()).unwrap();
    assert!(ended > 0 && done.text() == numbers(1..=ended), "{}", done.text());
}

/// Scenario 4: a worker that joins while a job runs gets work within a second.
#[test]
fn a_worker_that_joins_gets_work_at_once() {
    let log = Log::new();
    let file = log.path().with_file_name("workers");
    let ann = WorkerProcess::start("ann", 1);
    let mut bob = worker("bob", 1, &["--listen", "127.0.0.1:0"]);
    bob.env("USER", "bob");
    let bob = WorkerProcess::spawn(bob);
    std::fs::write(&file, format!("{}\n", ann.address())).unwrap();
    let joined = file.with_file_name("joined");
    let what = format!("test \"$USER\" != bob || touch {}; sleep 0.1", joined.display());
    let places = ["--workers-file", file.to_str().unwrap()];
    let map = MapProcess::start(map(&[&places], &log.noting(&what)), numbers(1..=80));
    eventually("some items have run", || log.runs(), |&runs| runs > 2);
    std::fs::write(&file, format!("{}\n{}\n", ann.address(), bob.address())).unwrap();
    let written = Instant::now();
    eventually("bob has work", || joined.exists(), |&joined| joined);
    let took = written.elapsed();
    println!("a worker that joined had its first item after {took:.2?}");
    assert!(took < Duration::from_secs(3), "{took:?}: the goal is one second");
    assert_eq!(map.finish().exits(0).text(), numbers(1..=80));
}

/// Scenario 6: an item that kills its worker is found among others, and they all succeed.
#[test]
fn an_item_that_kills_its_workers_is_isolated() {
    let (ann, bob) = (SupervisedWorker::start("ann", 2), SupervisedWorker::start("bob", 2));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("failures");
    let places = ["--worker", ann.address(), "--worker", bob.address(), "--chunk", "50"];
    let failures_to = ["--failures", file.to_str().unwrap()];
    let command = map(&[&places, &failures_to], &kill_workers_and_processes("77", "none"));
    let done = MapProcess::start(command, numbers(1..=200)).finish().exits(1);
    let want: String = (1..=200).filter(|&n| n != 77).map(|n| format!("{n}\n")).collect();
    assert_eq!(done.text(), want);
    let failed = failures(&file);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!((&failed[0]["seq"], &failed[0]["status"]), (&77.into(), &"crash".into()));
    let error = failed[0]["error"].as_str().unwrap();
    println!("poison: {} + {} deaths, said: {error}", ann.deaths(), bob.deaths());
    let named = failed[0]["worker"].as_str().is_some_and(|name| ["ann", "bob"].contains(&name));
    assert!(named, "{failed:?}");
    // Whoever counts them looks a few times a second.
    let told = |deaths: &u32| error.contains(&format!(", {deaths} times, "));
    let deaths = eventually("each death is told", || ann.deaths() + bob.deaths(), told);
    assert!((1..=4).contains(&deaths), "{deaths} deaths with a crash limit of 3");
}

/// Issue 3: 1,000 items, of which three kill their process and one kills its worker.
#[test]
fn of_a_thousand_items_four_deadly_ones_fail_alone() {
    let (ann, bob) = (SupervisedWorker::start("ann", 2), SupervisedWorker::start("bob", 2));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("failures");
    let places = ["--worker", ann.address(), "--worker", bob.address()];
    let failures_to = ["--failures", file.to_str().unwrap()];
    let command = map(&[&places, &failures_to], &kill_workers_and_processes("500", "7|400|999"));
    let done = MapProcess::start(command, numbers(1..=1000)).finish().exits(1);
    let deadly = [7, 400, 500, 999];
    let want = (1..=1000).filter(|n| !deadly.contains(n)).map(|n| format!("{n}\n"));
    assert_eq!(done.text(), want.collect::<String>());
    assert_eq!(done.text().lines().count(), 996);
    let failed = failures(&file);
    assert_eq!(failed.iter().map(|f| f["seq"].as_u64().unwrap()).collect::<Vec<_>>(), deadly);
    assert!(failed.iter().all(|failure| failure["status"] == "crash"), "{failed:?}");
    for own in [0, 1, 3] {
        assert!(failed[own]["error"].as_str().unwrap().contains("signal 9"), "{failed:?}");
    }
    println!("the item that kills workers: {}", failed[2]["error"]);
    assert!(failed[2]["error"].as_str().unwrap().contains("worker"), "{failed:?}");
    for n in deadly {
        assert!(done.stderr.contains(&format!("failed: item {n} `{n}`: ")), "{}", done.stderr);
    }
    let deaths = ann.deaths() + bob.deaths();
    assert!((1..=4).contains(&deaths), "{deaths} deaths with a crash limit of 3");
}

/// Scenario 7: where everything fails fast, on one worker only, the job is not eaten.
#[test]
fn a_worker_where_everything_fails_does_not_eat_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken");
    let mut ann = worker("ann", 1, &["--listen", "127.0.0.1:0"]);
    ann.env("USER", "ann");
    let ann = WorkerProcess::spawn(ann);
    let bob = WorkerProcess::start("bob", 1);
    std::fs::write(&broken, "").unwrap();
    let script = format!(
        "if test \"$USER\" = ann && test -e {}; then exit 1; fi; sleep 0.03; echo $1",
        broken.display()
    );
    let command = map(&[&places(&[&ann, &bob])], &["sh", "-c", &script, "sh"]);
    let done = run(command, numbers(1..=150).as_bytes()).exits(0);
    assert_eq!(done.text(), numbers(1..=150));
    let retried = counted(&done, "retried");
    println!("a worker that fails everything cost {retried} retries of 150 items");
    assert!(done.stderr.contains("worker ann is left out"), "{}", done.stderr);
}

/// Scenario 7, seen from elsewhere: who is left out is shown, without retries few items are spoilt, and
/// the summary tells of it.
#[test]
fn a_worker_that_is_left_out_is_shown_and_spoils_few_items() {
    let mut ann = worker("ann", 1, &["--listen", "127.0.0.1:0"]);
    ann.env("USER", "ann");
    let ann = WorkerProcess::spawn(ann);
    let bob = WorkerProcess::start("bob", 1);
    let script = "if test \"$USER\" = ann; then exit 1; fi; sleep 0.05; echo $1";
    let places = places(&[&ann, &bob]);
    let command = map(&[&places, &["--retries", "0"]], &["sh", "-c", script, "sh"]);
    let map = MapProcess::start(command, numbers(1..=100));
    let listed = || {
        let listing = widemap(&["workers", "--format", "json", "--worker", ann.address()]);
        run(listing, b"").exits(0).text().to_owned()
    };
    let listed = eventually("the listing shows it", listed, |text| text.contains("leaves it out"));
    assert!(listed.contains("\"left_out_ms\":"), "{listed}");
    let done = map.finish().exits(1);
    assert!(counted(&done, "failed") <= 20, "{}", done.stderr);
    assert!(done.stderr.contains("worker ann was left out"), "{}", done.stderr);
}

/// Issue 3: SIGKILL of one of four workers costs what it was running, and the share it would have
/// had. The bound is loose: the figure is printed.
#[test]
fn one_of_four_workers_killed_costs_little_more_than_its_share() {
    let log = Log::new();
    let workers = ["ann", "bob", "cid", "dot"].map(|name| WorkerProcess::start(name, 1));
    let [mut ann, bob, cid, dot] = workers;
    let command = map(&[&places(&[&ann, &bob, &cid, &dot])], &log.noting("sleep 0.1"));
    let map = MapProcess::start(command, numbers(1..=160));
    eventually_within(Duration::from_secs(20), "half is done", || log.runs(), |&runs| runs >= 80);
    ann.kill();
    let (killed, left) = (Instant::now(), 160 - log.runs());
    let done = map.finish().exits(0);
    let took = killed.elapsed();
    assert_eq!(done.text(), numbers(1..=160));
    // What was left, and what all four were running, by the three that are left.
    let ideal = Duration::from_millis(100) * (u32::try_from(left).unwrap() + 4) / 3;
    println!("{left} items left: {took:.2?}, ideally {ideal:.2?}");
    assert!(took < 2 * ideal + Duration::from_secs(3), "{took:?}, ideally {ideal:?}");
    assert!(log.runs() <= 161, "only what ann was running runs again");
}
