//! Maps through filters: the programs that people have, whether they print at once or hold back.

use std::process::Command;
use std::time::Duration;

use widemap_tests::{Run, WorkerProcess, needs, run, run_within, widemap};

use crate::support::{numbers, places};

/// A map of these words and items.
fn map(options: &[&str], program: &[&str], items: &str) -> Run {
    let command = widemap(&[&["map", "--filter"], options, &["--"], program].concat());
    // Programs that hold their lines back are started for each chunk, which takes long on a busy machine.
    run_within(Duration::from_secs(240), command, items.as_bytes())
}

/// What a program prints for items by itself.
fn plain(program: &[&str], items: &str) -> String {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]);
    String::from_utf8(run(command, items.as_bytes()).exits(0).stdout).unwrap()
}

/// Programs that answer each line with one, at once and holding back.
const PROGRAMS: [&[&str]; 15] = [
    &["cat"],
    &["tr", "0-9", "a-j"],
    &["stdbuf", "-oL", "tr", "0-9", "a-j"],
    &["sed", "s/^/x/"],
    &["sed", "-u", "s/^/x/"],
    &["awk", "{print $1 * 2}"],
    &["awk", "{print $1 * 2; fflush()}"],
    &["grep", "."],
    &["grep", "--line-buffered", "."],
    &["cut", "-c1-2"],
    &["jq", ". + 1"],
    &["jq", "--unbuffered", ". + 1"],
    &["perl", "-pe", "s/1/one/"],
    &["perl", "-pe", "$| = 1; s/1/one/"],
    &["python3", "-u", "-c", "import sys\nfor line in sys.stdin: print(int(line) ** 2)"],
];

#[test]
fn each_program_answers_as_it_does_alone_for_any_chunk() {
    let items = numbers(1..=3_000);
    for program in PROGRAMS {
        let (name, test) = (program[0], "each_program_answers_as_it_does_alone_for_any_chunk");
        if !needs(test, name) {
            continue;
        }
        let alone = plain(program, &items);
        for options in [&[][..], &["--chunk", "1000"], &["--chunk", "77", "--local", "3"]] {
            let done = map(options, program, &items).exits(0);
            assert!(done.text() == alone, "{program:?} {options:?}");
        }
        // An item at a time, of fewer items.
        let few = numbers(1..=5);
        let done = map(&["--chunk", "1", "--local", "1"], program, &few).exits(0);
        assert_eq!(done.text(), plain(program, &few), "{program:?}");
    }
}

#[test]
fn an_item_that_is_answered_otherwise_fails_alone() {
    let (ann, ben) = (WorkerProcess::start("ann", 1), WorkerProcess::start("ben", 2));
    let program = ["awk", "{print} $1 == 7 || $1 == 2000 {print}"];
    let options = [&places(&[&ann, &ben])[..], &["--chunk", "300"]].concat();
    let done = map(&options, &program, &numbers(1..=2_000)).exits(1);
    let want: String = (1..2_000).filter(|n| *n != 7).map(|n| format!("{n}\n")).collect();
    assert_eq!(done.text(), want);
    assert!(
        done.stderr.contains("failed: item 7 `7`: printed more than one line (with --filter"),
        "{}",
        done.stderr
    );
    assert!(done.stderr.contains("2000 items, 2 failed, 0 retried"), "{}", done.stderr);
}

#[test]
fn a_program_that_is_no_filter_ends_the_map_at_once_and_names_pipe() {
    for (program, items) in [
        (&["grep", "nothing"][..], numbers(1..=100_000)),
        (&["wc", "-l"], numbers(1..=3)),
        (&["awk", "{print; print}"], numbers(1..=50)),
    ] {
        let done = map(&["--local", "1", "--chunk", "1"], program, &items);
        if program[0] == "wc" {
            // It answers one line with one line, and does not so for three.
            let done = map(&["--local", "1", "--chunk", "3"], program, &items).exits(0);
            assert_eq!(done.text(), "1\n1\n1\n");
            continue;
        }
        let done = done.exits(2);
        assert!(done.stdout.is_empty());
        assert!(
            done.stderr
                .contains("does not answer each line with one line: the first 10 all failed")
                && done.stderr.contains("hint: --pipe"),
            "{}",
            done.stderr
        );
    }
    let few = map(&["--local", "1"], &["grep", "nothing"], &numbers(1..=3)).exits(2);
    assert!(few.stderr.contains("the first 3 all failed"), "{}", few.stderr);
    let missing = map(&["--local", "1"], &["no-such-program"], &numbers(1..=3)).exits(2);
    assert!(missing.stderr.contains("no-such-program` cannot be run"), "{}", missing.stderr);
}

#[test]
fn lists_nul_and_shell_lines_work_as_elsewhere() {
    let words = ["map", "--filter", "--", "sed", "-u", "s/a/b/", ":::", "a", "cab", "", "x y"];
    assert_eq!(run(widemap(&words), b"").exits(0).text(), "b\ncbb\n\nx y\n");
    let words = ["map", "--filter", "cat", ":::", "a", "b\nc"];
    let refused = run(widemap(&words), b"").exits(2);
    assert!(refused.stderr.contains("item 2 has an end of a line in it"), "{}", refused.stderr);
    let words = ["map", "--filter", "-0", "cat", ":::", "a", "b\nc"];
    assert_eq!(run(widemap(&words), b"").exits(0).stdout, b"a\0b\nc\0");
    let words = ["map", "--filter", "--shell", "tr a-z A-Z | cat"];
    assert_eq!(run(widemap(&words), b"a\nb").exits(0).text(), "A\nB\n");
    let json = map(&["--format", "json", "--local", "1"], &["cat"], "a\n");
    let line: serde_json::Value = serde_json::from_str(json.exits(0).text()).unwrap();
    assert_eq!((&line["item"], &line["output"]), (&"a".into(), &"a".into()));
}

#[test]
fn a_worker_that_allows_no_filter_says_so() {
    let options = ["--listen", "127.0.0.1:0", "--allow", "exec,pipe"];
    let ann = WorkerProcess::start_with("ann", 1, &options);
    let done = map(&["--worker", ann.address()], &["cat"], "a\n").exits(2);
    assert!(done.stderr.contains("filter"), "{}", done.stderr);
}
