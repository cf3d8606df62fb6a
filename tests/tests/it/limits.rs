//! What one item may take of a worker: memory, processor time, urgency.

use rustix::process::Signal;
use widemap_tests::{MapProcess, Run, WorkerProcess, needs, run, widemap};

use crate::support::places;

/// A map here, and one on a worker of its own: limits are the same.
fn both(options: &[&str], items: &str, check: impl Fn(Run)) {
    let ann = WorkerProcess::start("ann", 2);
    for place in [&[][..], &places(&[&ann])] {
        let words = [&["map", "--retries", "0", "--format", "json"], place, options].concat();
        check(run(widemap(&words), items.as_bytes()));
    }
}

/// The results, a line each.
fn results(done: &Run) -> Vec<serde_json::Value> {
    done.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_item_has_the_memory_that_it_is_given_and_no_more() {
    // A shell that doubles a word until it holds more than it may.
    let grow =
        "x=0123456789abcdef; i=0; while [ $i -lt $1 ]; do x=$x$x; i=$((i+1)); done; echo ${#x}";
    let options = ["--memory", "64M", "--", "sh", "-c", grow, "sh"];
    both(&options, "2\n30\n3\n", |done| {
        let told = results(&done.exits(1));
        let status: Vec<_> = told.iter().map(|line| line["status"].as_str().unwrap()).collect();
        assert_eq!(status[0], "ok");
        assert!(["error", "crash"].contains(&status[1]), "{told:?}");
        assert_eq!((status[2], &told[2]["output"]), ("ok", &"128\n".into()));
    });
    // So little that nothing can be started in it says so.
    both(&["--memory", "100K", "--", "true"], "1\n", |done| {
        let told = results(&done.exits(1));
        let error = told[0]["error"].as_str().unwrap();
        assert!(error.contains("102400 bytes of memory (--memory)"), "{error}");
    });
}

#[test]
fn an_item_has_the_processor_time_that_it_is_given() {
    let busy = "while [ $1 = busy ]; do :; done; echo $1";
    let options = ["--cpu-seconds", "1", "--", "sh", "-c", busy, "sh"];
    both(&options, "a\nbusy\nb\n", |done| {
        let told = results(&done.exits(1));
        let outcome = |line: &serde_json::Value| line["status"].as_str().unwrap().to_owned();
        assert_eq!(told.iter().map(outcome).collect::<Vec<_>>(), ["ok", "timeout", "ok"]);
        assert_eq!(told[1]["error"], "took more than 1 s of processor time (--cpu-seconds)");
        assert_eq!(told[1]["signal"], 24);
    });
    // A shell outlives the process that took too much.
    let options = ["--cpu-seconds", "1", "--shell", "sh -c 'while :; do :; done'; exit $?"];
    both(&options, "a\n", |done| {
        let error = results(&done.exits(1))[0]["error"].as_str().unwrap().to_owned();
        assert!(error.contains("--cpu-seconds"), "{error}");
    });
}

#[test]
fn an_item_is_as_urgent_as_it_is_told() {
    let own = rustix::process::nice(0).unwrap();
    both(&["--nice", "7", "--", "sh", "-c", "nice"], "\n", |done| {
        assert_eq!(results(&done.exits(0))[0]["output"], format!("{}\n", own + 7));
    });
}

#[test]
fn an_item_may_open_as_many_files_as_one_that_is_started_by_hand() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    both(&["--", "sh", "-c", "ulimit -S -n"], "\n", |done| {
        assert_eq!(results(&done.exits(0))[0]["output"], format!("{limit}\n"));
    });
}

#[test]
fn limits_hold_for_each_item_of_an_interpreter_that_goes_on() {
    if !needs("limits_hold_for_each_item_of_an_interpreter_that_goes_on", "python3") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f.py");
    let source = "import time\n\
        def f(x):\n    \
            if x == 'hungry': return len(bytearray(1 << 30))\n    \
            until = time.process_time() + (30 if x == 'busy' else x)\n    \
            while time.process_time() < until: pass\n    \
            return x\n";
    std::fs::write(&file, source).unwrap();
    let named = format!("{}:f", file.display());
    let options = ["--cpu-seconds", "1", "--memory", "512M", "--python", &named];
    // Together the short ones take longer than one may.
    let items = "0.7\n0.7\n0.7\n0.7\n\"hungry\"\n\"busy\"\n0.7\n0\n";
    both(&options, items, |done| {
        let told = results(&done.exits(1));
        let outcome = |line: &serde_json::Value| line["status"].as_str().unwrap().to_owned();
        let expected = ["ok", "ok", "ok", "ok", "error", "timeout", "ok", "ok"];
        assert_eq!(told.iter().map(outcome).collect::<Vec<_>>(), expected, "{told:?}");
        assert!(told[4]["error"].as_str().unwrap().contains("MemoryError"), "{told:?}");
        assert_eq!(told[5]["error"], "took more than 1 s of processor time (--cpu-seconds)");
    });
}

#[test]
fn an_item_has_the_slots_that_it_asks_for() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().display();
    // Two at a time is what four slots are enough for: each waits until it has seen that, and none
    // ever sees three.
    let item = format!(
        "touch {at}/runs.$1
         until [ -e {at}/two ]; do
             [ $(ls {at} | grep -c runs) -ge 2 ] && touch {at}/two
             sleep 0.01
         done
         [ $(ls {at} | grep -c runs) -le 2 ] || touch {at}/three
         sleep 0.05
         rm {at}/runs.$1
         echo $1 ${{OMP_NUM_THREADS:-unset}}"
    );
    let ann = WorkerProcess::start("ann", 4);
    let cores = std::thread::available_parallelism().unwrap().get();
    let threads = (2 * (cores / 4).max(1)).to_string();
    let here = std::env::var("OMP_NUM_THREADS").unwrap_or_else(|_| "unset".to_owned());
    let items: String = (1..=12).map(|item| format!("{item}\n")).collect();
    for (place, threads) in [(vec!["-j", "4"], here), (places(&[&ann]), threads)] {
        let options = ["--slots-per-item", "2", "--", "sh", "-c", &item, "sh"];
        let words = [&["map"], &place[..], &options].concat();
        let done = run(widemap(&words), items.as_bytes()).exits(0);
        let expected: String = (1..=12).map(|item| format!("{item} {threads}\n")).collect();
        assert_eq!(done.text(), expected);
        assert!(!directory.path().join("three").exists(), "three ran at a time");
        std::fs::remove_file(directory.path().join("two")).unwrap();
    }
}

#[test]
fn an_item_that_no_worker_has_slots_for_does_not_wait_in_silence() {
    for (place, advice) in
        [(&["-j", "2"][..], "more than the 2 of -j"), (&["--local", "2"], "--local 3 lends more")]
    {
        let words = [&["map"], place, &["--slots-per-item", "3", "--", "true"]].concat();
        let done = run(widemap(&words), b"1\n").exits(2);
        assert!(done.stderr.contains(advice), "{}", done.stderr);
    }
    let done = run(widemap(&["map", "--slots-per-item", "0", "--", "true"]), b"1\n").exits(2);
    assert!(done.stderr.contains("a number from 1 to"), "{}", done.stderr);
    let (ann, ben) = (WorkerProcess::start("ann", 2), WorkerProcess::start("ben", 3));
    let two = places(&[&ann, &ben]);
    let options = ["--slots-per-item", "3", "--format", "json", "--builtin", "identity"];
    let done = run(widemap(&[&["map"], &two[..], &options].concat()), b"1\n2\n3\n").exits(0);
    assert!(results(&done).iter().all(|line| line["worker"] == "ben"), "{}", done.text());
    let why =
        "ann is set aside: each item takes 3 slots (--slots-per-item), and it lends no more than 2";
    assert!(done.stderr.contains(why), "{}", done.stderr);
    let words = [&["map", "--wait-workers", "1s"], &places(&[&ann])[..], &options].concat();
    let done = run(widemap(&words), b"1\n").exits(3);
    assert!(done.stderr.contains("each item takes 3 slots"), "{}", done.stderr);
}

#[test]
fn limits_that_nothing_keeps_are_refused() {
    for words in [
        &["--builtin", "square", "--memory", "1G"][..],
        &["--builtin", "square", "--nice", "3"],
        &["--filter", "--cpu-seconds", "3", "--", "cat"],
        &["--nice", "20", "--", "true"],
        &["--memory", "0", "--", "true"],
        &["--cpu-seconds", "0", "--", "true"],
    ] {
        let done = run(widemap(&[&["map"], words].concat()), b"1\n").exits(2);
        assert!(done.stderr.contains("--"), "{words:?}: {}", done.stderr);
    }
}

#[test]
fn a_worker_that_is_low_on_memory_takes_no_work_and_says_why() {
    let ann = WorkerProcess::start_with("ann", 2, &["--min-memory", "900T"]);
    let ben = WorkerProcess::start("ben", 1);
    ann.says("no work is taken for now");
    let two = places(&[&ann, &ben]);
    let listed = run(widemap(&[&["workers"], &two[..]].concat()), b"").exits(0);
    let line = listed.text().lines().find(|line| line.starts_with("ann")).unwrap();
    assert!(line.contains("takes no work for now") && line.contains("--min-memory"), "{line}");
    let words = [&["map"], &two[..], &["--", "sh", "-c", "echo $USER", "sh"]].concat();
    let done = run(widemap(&words), b"1\n2\n3\n4\n").exits(0);
    assert!(done.stderr.contains("worker ann takes no more work for now"), "{}", done.stderr);
    assert_eq!(done.text().lines().count(), 4);
    let words = [&["map", "--format", "json"], &two[..], &["--builtin", "identity"]].concat();
    let done = run(widemap(&words), b"1\n2\n3\n4\n").exits(0);
    assert!(results(&done).iter().all(|line| line["worker"] == "ben"), "{}", done.text());
    // Alone, it is waited for, and what for is said.
    let words = [&["map"], &places(&[&ann])[..], &["--builtin", "identity"]].concat();
    let mut waits = MapProcess::start(widemap(&words), "1\n");
    waits.says("worker ann takes no more work for now");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(waits.is_running());
    waits.signal(Signal::INT);
    assert_eq!(waits.finish().exits(130).text(), "");
}
