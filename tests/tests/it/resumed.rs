//! What a map writes of each item and when it stops, where it was killed, or has halted, and goes on from its
//! journal.

use std::path::PathBuf;

use tempfile::TempDir;
use widemap_tests::{Run, run, widemap};

use crate::support::{Log, numbers};

/// A directory with a journal.
struct Ground {
    directory: TempDir,
}

impl Ground {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// A map of the numbers up to `last`, one at a time, that may be killed where `failpoint` says.
    fn map(&self, options: &[&str], command: &[String], last: u32, failpoint: &str) -> Run {
        let mut map = widemap(&["map", "--local", "1", "--chunk", "1", "--retries", "0"]);
        map.args(options).arg("--").args(command).arg(":::");
        map.args((1..=last).map(|n| n.to_string())).current_dir(self.directory.path());
        map.env("XDG_STATE_HOME", self.directory.path()).env("WIDEMAP_FAILPOINT", failpoint);
        run(map, b"")
    }

    /// Of a log of GNU parallel's form what does not depend on when it ran.
    fn log(&self) -> Vec<String> {
        let text = self.read("log");
        let row = |line: &str| {
            let cells: Vec<_> = line.split('\t').collect();
            [cells[0], cells[5], cells[6], cells[7], cells[8]].join("|")
        };
        text.lines().map(row).collect()
    }
}

/// Fails for 2 and 5.
fn flaky() -> Vec<String> {
    let script =
        "sleep 0.02; echo e$1 >&2; test $1 != 2 && test $1 != 5 && printf '%s\\n' $1 x || exit 3";
    ["sh", "-c", script, "sh"].map(str::to_owned).to_vec()
}

#[test]
fn what_is_written_of_each_item_is_the_same_where_a_map_goes_on() {
    for options in [
        &["--tag", "--fill", "none"][..],
        &["--fill", "-"],
        &["--joblog", "log", "--results", "out"],
        &["--joblog", "log", "--tag", "--ok-exit", "0,3"],
        &["--format", "json", "--joblog", "log"],
    ] {
        let at_once = Ground::new();
        let want = at_once.map(options, &flaky(), 12, "");
        let ground = Ground::new();
        let kept = [options, &["--journal", "journal"]].concat();
        let killed = ground.map(&kept, &flaky(), 12, "result.accepted=9");
        assert_eq!(killed.status, -1, "{options:?}: {}", killed.stderr);
        let kept = [&kept[..], &["--resume"]].concat();
        let done = ground.map(&kept, &flaky(), 12, "");
        assert!(done.stderr.contains("of the journal need not run"), "{}", done.stderr);
        assert_eq!(done.status, want.status, "{options:?}: {}", done.stderr);
        if options.contains(&"json") {
            let told = |done: &Run| -> Vec<String> {
                let of = |line: &str| {
                    let line: serde_json::Value = serde_json::from_str(line).unwrap();
                    ["seq", "status", "exit", "output", "stderr"]
                        .map(|key| line[key].to_string())
                        .join("|")
                };
                done.text().lines().map(of).collect()
            };
            assert_eq!(told(&done), told(&want));
        } else {
            assert_eq!(done.text(), want.text(), "{options:?}");
        }
        assert_eq!(ground.log(), at_once.log(), "{options:?}");
        for item in 1..=12 {
            for name in ["stdout", "stderr", "seq"] {
                let name = format!("out/1/{item}/{name}");
                assert_eq!(ground.read(&name), at_once.read(&name), "{name}");
            }
        }
        // Once more, all of it is there already.
        let again = ground.map(&kept, &flaky(), 12, "");
        assert_eq!((again.status, again.text().len()), (done.status, done.text().len()));
        assert_eq!(ground.log(), at_once.log(), "{options:?}");
    }
}

#[test]
fn a_map_that_has_halted_goes_on_and_halts_again_for_what_fails_then() {
    let (ground, log) = (Ground::new(), Log::new());
    let command = log.noting("test $1 != 3 && test $1 != 30 || exit 1");
    let options = ["--journal", "journal", "--halt", "soon,fail=1"];
    let halted = ground.map(&options, &command, 60, "").exits(1);
    assert!(halted.stderr.contains("halted: 1 failed (--halt)"), "{}", halted.stderr);
    let first = log.runs();
    assert!((3..25).contains(&first), "{first}");
    let options = [&options[..], &["--resume"]].concat();
    let halted = ground.map(&options, &command, 60, "").exits(1);
    assert!(halted.stderr.contains("halted: 1 failed (--halt)"), "{}", halted.stderr);
    assert!((30..55).contains(&log.runs()), "{} after {first}", log.runs());
    let done = ground.map(&options, &command, 60, "").exits(1);
    assert!(!done.stderr.contains("halted"), "{}", done.stderr);
    assert!(done.stderr.contains("60 items, 2 failed"), "{}", done.stderr);
    let want = numbers(1..=60).replace("\n3\n", "\n").replace("\n30\n", "\n");
    assert_eq!((done.text(), log.runs()), (want.as_str(), 60));
}

#[test]
fn first_items_that_have_run_alone_do_not_again_and_the_others_still_do() {
    for failpoint in ["result.emitted=1", "result.settled=2", "result.emitted=3"] {
        let (ground, log) = (Ground::new(), Log::new());
        let command = log.noting("sleep 0.02");
        let options = ["--journal", "journal", "--canary", "3"];
        let killed = ground.map(&options, &command, 20, failpoint);
        assert_eq!(killed.status, -1, "{failpoint}: {}", killed.stderr);
        let options = [&options[..], &["--resume"]].concat();
        let done = ground.map(&options, &command, 20, "").exits(0);
        assert_eq!(done.text(), numbers(1..=20), "{failpoint}");
        // What had not run alone before the end does so now: the others come after the third.
        let ran = std::fs::read_to_string(log.path()).unwrap();
        let ran: Vec<u32> = ran.lines().map(|line| line.parse().unwrap()).collect();
        let third = ran.iter().position(|&item| item == 3).unwrap();
        assert!(ran[..third].iter().all(|&item| item < 3), "{failpoint}: {ran:?}");
        assert!(ran.len() <= 23, "{failpoint}: {ran:?}");
    }
}

#[test]
fn a_map_that_stopped_at_its_first_items_goes_on_where_that_is_wanted() {
    let (ground, log) = (Ground::new(), Log::new());
    let command = log.noting("test $1 != 2 || exit 1");
    let options = ["--journal", "journal", "--canary", "3"];
    let halted = ground.map(&options, &command, 20, "").exits(1);
    assert!(
        halted.stderr.contains("halted: 1 failed among the first 3 (--canary)"),
        "{}",
        halted.stderr
    );
    assert!(log.runs() <= 3);
    let options = [&options[..], &["--resume"]].concat();
    let done = ground.map(&options, &command, 20, "").exits(1);
    assert!(done.stderr.contains("20 items, 1 failed"), "{}", done.stderr);
    assert_eq!(log.runs(), 20);
}
