//! Readers of the output that are slow or stand still, and a disk that is full behind them: memory
//! stays bounded, and nobody is lost meanwhile.

use std::io::Read;
use std::process::Command;
use std::time::{Duration, Instant};

use widemap_tests::{
    MapProcess, WorkerProcess, always_for, eventually, memory_peak_bytes, needs, needs_root,
};

use crate::support::{Log, SHORT, counted, map, numbers, places};

const MIB: u64 = 1024 * 1024;

/// Reorder buffer, held input, windows and queues add up to less (common/src/limits.rs).
const COORDINATOR_BYTES_MAX: u64 = 256 * MIB;

/// Output that a session and its attempts may hold, and windows, add up to less.
const WORKER_BYTES_MAX: u64 = 192 * MIB;

/// An item prints this much.
const ITEM_BYTES: usize = 4_000_000;

const ITEMS: u32 = 150;

/// 600 MB from two workers whose leases would end within seconds if control stood behind output.
fn a_flood(log: &Log) -> (WorkerProcess, WorkerProcess, MapProcess) {
    let timers = ["--timers", SHORT];
    let ann = WorkerProcess::start_with("ann", 2, &timers);
    let bob = WorkerProcess::start_with("bob", 2, &timers);
    let script = format!("echo $1 >> {}; yes $1 | head -c {ITEM_BYTES}", log.path().display());
    // What has no room there goes to disk.
    let options = ["--reorder-bytes-max", "16M"];
    let places = places(&[&ann, &bob]);
    let command = map(&[&places, &timers, &options], &["sh", "-c", &script, "sh"]);
    let map = MapProcess::start_unread(command, numbers(1..=ITEMS));
    (ann, bob, map)
}

fn is_bounded(who: &str, pid: u32, bound: u64) {
    let peak = memory_peak_bytes(pid).expect("it lives");
    println!("{who}: at most {} MiB", peak / MIB);
    assert!(peak < bound, "{who} had {} MiB", peak / MIB);
}

/// Reads what is left and checks it, without keeping it.
fn is_the_flood(mut output: impl Read, already: usize) {
    let mut block = vec![0; ITEM_BYTES];
    for item in 1..=ITEMS {
        let line = format!("{item}\n").into_bytes();
        let skip = if item == 1 { already } else { 0 };
        let block = &mut block[skip..];
        output.read_exact(block).unwrap();
        let right =
            block.iter().enumerate().all(|(n, &byte)| byte == line[(n + skip) % line.len()]);
        assert!(right, "the output of item {item}");
    }
    assert_eq!(output.read(&mut block).unwrap(), 0, "it ends here");
}

/// Scenario 18: a reader of 1 KB/s, and then one that reads all.
#[test]
fn a_reader_of_a_kilobyte_a_second_is_waited_for() {
    let log = Log::new();
    let (ann, bob, mut map) = a_flood(&log);
    let mut output = map.stdout();
    let began = Instant::now();
    let mut read = 0;
    while began.elapsed() < Duration::from_secs(6) {
        let mut piece = [0; 100];
        output.read_exact(&mut piece).unwrap();
        read += piece.len();
        std::thread::park_timeout(Duration::from_millis(100));
        assert!(!map.said().contains("lost"), "{}", map.said());
    }
    println!("{read} bytes in 6 s; {} of {ITEMS} items have begun", log.runs());
    is_bounded("the coordinator", map.pid(), COORDINATOR_BYTES_MAX);
    is_the_flood(output, read);
    is_bounded("ann", ann.pid(), WORKER_BYTES_MAX);
    is_bounded("bob", bob.pid(), WORKER_BYTES_MAX);
    let done = map.finish().exits(0);
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
    assert_eq!(log.runs(), ITEMS as usize);
}

/// Scenario 18: a reader that stands still (`| less` left open), and then reads all.
#[test]
fn a_reader_that_stands_still_is_waited_for() {
    let log = Log::new();
    let (ann, bob, mut map) = a_flood(&log);
    eventually("some items have begun", || log.runs(), |&runs| runs > 4);
    let still = Duration::from_secs(6);
    always_for(still, "nobody is lost", || map.said(), |said| !said.contains("lost"));
    println!("{} of {ITEMS} items have begun", log.runs());
    is_bounded("ann", ann.pid(), WORKER_BYTES_MAX);
    is_bounded("bob", bob.pid(), WORKER_BYTES_MAX);
    is_bounded("the coordinator", map.pid(), COORDINATOR_BYTES_MAX);
    is_the_flood(map.stdout(), 0);
    let done = map.finish().exits(0);
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
    assert_eq!(log.runs(), ITEMS as usize);
}

/// Issue 3, backpressure: the disk of the spill is full while the head is held up. It is said, memory
/// stays bounded, and all is right once the head goes on.
#[test]
fn a_full_disk_under_waiting_results_only_slows_the_map() {
    let test = "a_full_disk_under_waiting_results_only_slows_the_map";
    if !needs(test, "unshare") || !needs_root(test) {
        return;
    }
    let log = Log::new();
    let (go_on, disk) = (log.path().with_file_name("go"), log.path().with_file_name("disk"));
    std::fs::create_dir(&disk).unwrap();
    let timers = ["--timers", SHORT];
    let ann = WorkerProcess::start_with("ann", 2, &timers);
    let script = format!(
        "echo $1 >> {}; if [ $1 = 1 ]; then until [ -e {} ]; do sleep 0.05; done; fi; \
         yes $1 | head -c {ITEM_BYTES}",
        log.path().display(),
        go_on.display()
    );
    let options = ["--reorder-bytes-max", "8M"];
    let widemap = map(&[&places(&[&ann]), &timers, &options], &["sh", "-c", &script, "sh"]);
    // The mount is seen by this one process alone, and goes with it.
    let mount = "mount -t tmpfs -o size=20m tmpfs \"$TMPDIR\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", mount, "sh"]).arg(widemap.get_program());
    command.args(widemap.get_args()).env("TMPDIR", &disk);
    let mut map = MapProcess::start_unread(command, numbers(1..=ITEMS));
    let output = map.stdout();
    map.says("is full");
    let quiet = |said: &String| !said.contains("lost");
    always_for(Duration::from_secs(4), "nobody is lost", || map.said(), quiet);
    println!("{} of {ITEMS} items have begun", log.runs());
    assert!(log.runs() < ITEMS as usize, "what has no room is not run");
    is_bounded("ann", ann.pid(), WORKER_BYTES_MAX);
    is_bounded("the coordinator", map.pid(), COORDINATOR_BYTES_MAX);
    std::fs::write(&go_on, "").unwrap();
    is_the_flood(output, 0);
    let done = map.finish().exits(0);
    println!("{}", done.stderr);
    assert_eq!(counted(&done, "lost"), 0, "{}", done.stderr);
}
