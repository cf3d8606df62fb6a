//! What must survive, once more through a coordinator that serves: who collects sees what a map of one's
//! own shows.

use std::io::Read as _;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use widemap_tests::{
    MapProcess, Run, SupervisedWorker, WorkerProcess, always_for, binary, eventually,
    memory_peak_bytes, processes_with, run, widemap, without_configuration,
};

use super::Service;
use crate::support::{Log, counted, numbers};

const MIB: u64 = 1 << 20;

fn map(service: &Service, words: &[&str], input: &[u8]) -> Run {
    run(service.asking(&[&["map"], words].concat()), input)
}

/// Scenarios 31, 34, 35, and the forms of items and results: the same bytes, and the same status.
#[test]
fn every_form_of_map_is_the_same_through_a_coordinator() {
    let ann = WorkerProcess::start("ann", 2);
    let service = Service::start(&[&ann]);
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(5_000).collect();
    let capped =
        ["--retries", "0", "--max-output", "1K", "--", "sh", "-c", "yes | head -c $1", "sh"];
    let cases: &[(&[&str], &[u8])] = &[
        (&["--builtin", "identity"], b""),
        (&["--pipe", "--", "cat"], b""),
        (&["--builtin", "identity"], b"one\r\n\ntwo\0\xff\nlast"),
        (&["-0", "--builtin", "identity"], b"a\nb\0\0c"),
        (&["--pipe", "--block", "100", "--", "cat"], &bytes),
        (&["--builtin", "square"], b"1\nx\n3\n"),
        (&["--unordered", "--builtin", "square"], b"7\n"),
        (&["--", "printf", "%s,"], b"a b\nc\n"),
        (&["echo", "{}-{#}", ":::", "x", "y"], b""),
        (&["--shell", "echo {} | tr a b"], b"a\na'b\n"),
        (&capped, b"10\n5000\n20\n"),
        (&["--retries", "2", "--timeout", "200ms", "--", "sleep"], b"0\n5\n"),
    ];
    for (words, input) in cases {
        let own = run(widemap(&[&["map", "--local", "2"], *words].concat()), input);
        let theirs = map(&service, words, input);
        assert_eq!(theirs.status, own.status, "{words:?}\n{}\n{}", theirs.stderr, own.stderr);
        assert!(
            theirs.stdout == own.stdout,
            "{words:?}: {:?}",
            String::from_utf8_lossy(&theirs.stdout)
        );
    }
    // What items say is heard, in whatever order they come.
    let words = ["--", "sh", "-c", "echo $1; echo hm-$1 >&2", "sh"];
    let said = map(&service, &words, b"a\nb\n").exits(0);
    for line in ["[1 a] hm-a", "[2 b] hm-b"] {
        assert!(said.stderr.lines().any(|told| told == line), "{}", said.stderr);
    }
    let json = map(&service, &["--format", "json", "--builtin", "square"], b"2\nx\n");
    let lines: Vec<serde_json::Value> =
        json.exits(1).text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["output"], &lines[1]["status"]), (&"4".into(), &"error".into()));
    // Scenario 40: on all workers.
    let missing = map(&service, &["--", "no-such-command"], b"1\n").exits(2);
    assert!(missing.stderr.contains("no worker can run"), "{}", missing.stderr);
    assert!(missing.stderr.contains("no-such-command"), "{}", missing.stderr);
}

/// Scenarios 1, 4 and 9: of three workers one is killed, one leaves, and one comes.
#[test]
fn workers_come_and_go_under_a_coordinator_and_nothing_shows() {
    let (mut ann, mut bob) = (WorkerProcess::start("ann", 2), WorkerProcess::start("bob", 2));
    let carl = WorkerProcess::start("carl", 2);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("workers");
    std::fs::write(&file, format!("{}\n{}\n", ann.address(), bob.address())).unwrap();
    let mut service = Service::start(&[]);
    service.kill();
    service.workers = vec!["--workers-file".into(), file.display().to_string()];
    service.begin(None);
    let log = Log::new();
    let job = service.submit(&["--chunk", "1"], &log.naming("sleep 0.05"), &numbers(1..=120));
    eventually("some have run", || log.runs(), |&runs| runs > 10);
    ann.kill();
    bob.signal(Signal::TERM);
    let all = [ann.address(), bob.address(), carl.address()].map(|address| format!("{address}\n"));
    std::fs::write(&file, all.concat()).unwrap();
    assert_eq!(service.ask(&["results", &job]).exits(0).text(), numbers(1..=120));
    assert_eq!(bob.exit_status(), 0);
    assert!(log.runs() <= 122, "only what the killed one had runs again: {}", log.runs());
}

/// Scenario 6.
#[test]
fn an_item_that_kills_workers_is_found_by_a_coordinator() {
    let (ann, bob) = (SupervisedWorker::start("ann", 2), SupervisedWorker::start("bob", 2));
    let mut service = Service::start(&[]);
    service.kill();
    let addresses = [ann.address(), bob.address()];
    service.workers = addresses.iter().flat_map(|at| ["--worker".into(), (*at).into()]).collect();
    service.begin(None);
    let script = crate::deaths::kill_workers_and_processes("77", "none");
    let job = service.submit(&["--chunk", "50"], &script, &numbers(1..=200));
    let done = service.ask(&["results", &job]).exits(1);
    let want: String = (1..=200).filter(|&n| n != 77).map(|n| format!("{n}\n")).collect();
    assert_eq!(done.text(), want);
    let deaths = ann.deaths() + bob.deaths();
    assert!((1..=4).contains(&deaths), "{deaths} deaths with a crash limit of 3");
    assert!(done.stderr.contains("failed: item 77 `77`: killed the worker"), "{}", done.stderr);
}

/// Scenario 29: an interrupt cancels the job, and no process of it is left.
#[test]
fn an_interrupt_of_who_collects_cancels_the_job_on_every_worker() {
    let ann = WorkerProcess::start("ann", 2);
    let service = Service::start(&[&ann]);
    let log = Log::new();
    let mark = log.path().display().to_string();
    let command = log.noting("trap '' TERM; sleep 300");
    let words: Vec<_> =
        ["map", "--"].into_iter().chain(command.iter().map(String::as_str)).collect();
    let map = MapProcess::start(service.asking(&words), numbers(1..=9));
    eventually("they run", || log.runs(), |&runs| runs == 2);
    map.signal(Signal::INT);
    let ended = map.finish().exits(130);
    assert!(ended.stderr.contains("stopping"), "{}", ended.stderr);
    eventually("nothing of it runs", || processes_with(&mark), Vec::is_empty);
    let listed = service.ask(&["jobs"]).exits(0);
    assert!(listed.text().contains("cancelled"), "{}", listed.text());
}

/// Scenario 30.
#[test]
fn a_reader_that_has_seen_enough_ends_the_job_quietly() {
    let (ann, log) = (WorkerProcess::start("ann", 2), Log::new());
    let service = Service::start(&[&ann]);
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", "seq 200 | \"$@\" | head -1", "sh"]);
    shell.arg(binary("widemap")).args(["map", "--chunk", "1", "--"]).args(log.noting("sleep 0.05"));
    without_configuration(&mut shell);
    shell.env("WIDEMAP_COORDINATOR", &service.address);
    let seen = run(shell, b"").exits(0);
    assert_eq!(seen.text(), "1\n");
    assert!(!seen.stderr.contains("error"), "{}", seen.stderr);
    let listed = || service.ask(&["jobs"]).exits(0).text().to_owned();
    eventually("it is cancelled", listed, |text| text.contains("cancelled"));
    assert!(log.runs() < 200);
    // Of items that have no end, too.
    let mut shell = Command::new("bash");
    shell.args([
        "-c",
        "yes | \"$@\" | head -3; exit ${PIPESTATUS[1]}",
        "sh",
        &binary("widemap").to_string_lossy(),
    ]);
    shell.args(["map", "--", "echo"]);
    without_configuration(&mut shell);
    shell.env("WIDEMAP_COORDINATOR", &service.address);
    let seen = run(shell, b"").exits(0);
    assert_eq!((seen.text(), seen.stderr.as_str()), ("y\ny\ny\n", ""));
}

/// Scenario 33: one item of 100 MiB, and one output of a GiB, which nobody holds.
#[test]
fn great_items_and_outputs_go_through_a_coordinator() {
    let ann = WorkerProcess::start("ann", 1);
    let mut service = Service::start(&[&ann]);
    let mut item = vec![b'x'; 100 << 20];
    item.push(b'\n');
    let done = map(&service, &["--pipe", "--", "cat"], &item).exits(0);
    assert!(done.stdout == item);
    let size = 1 << 30;
    let script = format!("head -c {size} /dev/zero; echo $1");
    let words = ["map", "--max-output", "2G", "--", "sh", "-c", &script, "sh"];
    let mut map = MapProcess::start_unread(service.asking(&words), "end\n");
    let mut output = map.stdout();
    let mut block = vec![0; 1 << 20];
    for _ in 0..size / block.len() {
        output.read_exact(&mut block).unwrap();
        assert!(block.iter().all(|&byte| byte == 0));
    }
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "end\n");
    let _ = map.finish().exits(0);
    let peak = memory_peak_bytes(service.process().pid()).unwrap() / MIB;
    println!("a great item and output through a coordinator: at most {peak} MiB there");
    assert!(peak < 512, "{peak} MiB");
}

/// Scenario 18: who collects stands still. The job goes on, and memory stays bounded everywhere.
#[test]
fn a_collector_that_stands_still_holds_nobody_up() {
    let (ann, log) = (WorkerProcess::start("ann", 2), Log::new());
    let mut service = Service::start(&[&ann]);
    let script = format!("echo $1 >> {}; yes $1 | head -c 4000000", log.path().display());
    let words = ["map", "--", "sh", "-c", &script, "sh"];
    let mut map = MapProcess::start_unread(service.asking(&words), numbers(1..=100));
    let mut output = map.stdout();
    let mut first = [0; 2];
    output.read_exact(&mut first).unwrap();
    eventually("all have run though nobody reads", || log.runs(), |&runs| runs == 100);
    always_for(Duration::from_secs(2), "it waits", || map.said(), |said| !said.contains("lost"));
    let (server, client) = (service.process().pid(), map.pid());
    let peaks = [server, client].map(|pid| memory_peak_bytes(pid).unwrap() / MIB);
    println!("400 MB that nobody reads: {} MiB on the coordinator, {} here", peaks[0], peaks[1]);
    assert!(peaks.iter().all(|&peak| peak < 256), "{peaks:?}");
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
    let whole: Vec<u8> = (1..=100)
        .flat_map(|n| format!("{n}\n").into_bytes().into_iter().cycle().take(4_000_000))
        .skip(2)
        .collect();
    assert!(rest == whole);
    let done = map.finish().exits(0);
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
}
