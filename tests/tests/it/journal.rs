//! Maps that keep a journal: killed at every step, ended by a signal, by a full disk or by nothing at all,
//! they go on, and nothing that was final runs again.

use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;
use widemap::failpoint;
use widemap_tests::{
    MapProcess, Run, WorkerProcess, eventually, needs, needs_root, run, widemap,
    without_configuration,
};

use crate::support::{Log, numbers, places};

/// A directory with a list of items and a journal to come.
struct Ground {
    directory: TempDir,
}

impl Ground {
    fn new(items: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("items"), items).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn items(&self, items: &str) {
        std::fs::write(self.path("items"), items).unwrap();
    }

    /// A map of the list with a journal, and these options before a command.
    fn map<S: AsRef<str>>(&self, options: &[&str], command: &[S]) -> Command {
        let mut map = widemap(&["map", "--journal"]);
        map.arg(self.path("journal")).arg("-a").arg(self.path("items")).args(options);
        map.args(command.iter().map(AsRef::as_ref));
        map
    }

    /// The same with its items on standard input.
    fn map_of_pipe<S: AsRef<str>>(&self, options: &[&str], command: &[S]) -> Command {
        let mut map = widemap(&["map", "--journal"]);
        map.arg(self.path("journal")).args(options).args(command.iter().map(AsRef::as_ref));
        map
    }
}

const SQUARE: [&str; 2] = ["--builtin", "square"];

#[test]
fn what_is_done_is_emitted_again_and_nothing_runs() {
    let (ground, log) = (Ground::new(&numbers(1..=20)), Log::new());
    let command = log.noting("test $1 != 7 || exit 3");
    let once = run(ground.map(&["--local", "2", "--retries", "0"], &command), b"").exits(1);
    let want: String = (1..=20).filter(|n| *n != 7).map(|n| format!("{n}\n")).collect();
    assert_eq!(once.text(), want);
    let there = run(ground.map(&["--local", "2", "--retries", "0"], &command), b"").exits(2);
    assert!(there.stderr.contains("go on with it (--resume)"), "{}", there.stderr);
    let options = ["--local", "2", "--retries", "0", "--resume"];
    let again = run(ground.map(&options, &command), b"").exits(1);
    assert_eq!(again.text(), want);
    assert!(again.stderr.contains("20 items of the journal need not run"), "{}", again.stderr);
    assert!(again.stderr.contains("failed: item 7 `7`: exited with status 3"), "{}", again.stderr);
    assert_eq!(log.runs(), 20);
    let mut with_files = options.to_vec();
    let [failures, output, receipt] =
        ["failures", "output", "receipt"].map(|name| ground.path(name));
    let named = [&failures, &output, &receipt].map(|path| path.to_str().unwrap());
    with_files.extend(["--failures", named[0], "--output", named[1], "--receipt", named[2]]);
    let _ = run(ground.map(&with_files, &command), b"").exits(1);
    assert_eq!(std::fs::read_to_string(&output).unwrap(), want);
    let failed = std::fs::read_to_string(&failures).unwrap();
    assert!(failed.contains("\"seq\":7,") && failed.lines().count() == 1, "{failed}");
    let receipt: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&receipt).unwrap()).unwrap();
    assert_eq!(receipt["output_bytes"], want.len(), "{receipt}");
    assert_eq!(log.runs(), 20);
    let journal = ground.path("journal");
    let checked = run(widemap(&["journal", "check", journal.to_str().unwrap()]), b"").exits(0);
    assert!(checked.text().contains("sound, 20 items are final"), "{}", checked.text());
}

/// Scenario 21 for a map: killed at every step, and what its workers have is handed over.
#[test]
fn a_map_killed_at_any_step_goes_on_and_runs_nothing_again() {
    for name in failpoint::NAMES {
        for hits in [1, 2] {
            let (ann, log) = (WorkerProcess::start("ann", 2), Log::new());
            let ground = Ground::new(&numbers(1..=30));
            let options = [&places(&[&ann]), &["--chunk", "1"][..]].concat();
            // Long enough for a second commit, on a slow disk too.
            let command = log.noting("sleep 0.04");
            let mut map = ground.map(&options, &command);
            map.env("WIDEMAP_FAILPOINT", format!("{name}={hits}"));
            let killed = run(map, b"");
            assert_eq!(killed.status, -1, "{name}={hits}: {}", killed.stderr);
            let options = [&options, &["--resume"][..]].concat();
            let done = run(ground.map(&options, &command), b"").exits(0);
            assert_eq!(done.text(), numbers(1..=30), "{name}={hits}");
            // Before the first commit nobody knows what was read: whatever ran by then, which on a slow
            // disk may be all of it, runs once more.
            let most = if hits == 1 && name.starts_with("journal.") { 60 } else { 30 };
            assert!(log.runs() <= most, "{name}={hits}: {} runs\n{}", log.runs(), done.stderr);
        }
    }
}

/// Items of standard input cannot be read again by anybody but the one who writes them: what was not
/// durable runs again, and what was does not.
#[test]
fn a_map_of_a_pipe_goes_on_with_the_same_pipe() {
    let (ground, log) = (Ground::new(""), Log::new());
    let command = log.noting("sleep 0.02");
    let options = ["--local", "2", "--chunk", "1"];
    let mut map = ground.map_of_pipe(&options, &command);
    map.env("WIDEMAP_FAILPOINT", "result.emitted=2");
    let killed = run(map, numbers(1..=40).as_bytes());
    assert_eq!(killed.status, -1);
    assert!(numbers(1..=40).as_bytes().starts_with(&killed.stdout), "{}", killed.text());
    let before = log.runs();
    let options = [&options[..], &["--resume"]].concat();
    let done = run(ground.map_of_pipe(&options, &command), numbers(1..=40).as_bytes()).exits(0);
    assert_eq!(done.text(), numbers(1..=40));
    // All that was emitted was durable, and no item that was is run again.
    let emitted = killed.text().lines().count();
    assert!(log.runs() <= before + 40 - emitted, "{} runs after {before}", log.runs());
    assert!(done.stderr.contains("going on: "), "{}", done.stderr);
}

/// Scenario 24.
#[test]
fn changed_input_function_or_policy_is_refused_and_said() {
    let ground = Ground::new(&numbers(1..=1000));
    let _ = run(ground.map(&["--local", "2"], &SQUARE), b"").exits(0);
    let refused = |options: &[&str], command: &[&str], says: &str| {
        let options = [&["--local", "2", "--resume"], options].concat();
        let refused = run(ground.map(&options, command), b"").exits(2);
        assert!(refused.stderr.contains(says), "{}", refused.stderr);
        assert!(refused.stdout.is_empty(), "nothing is emitted");
        assert!(!refused.stderr.contains("0 failed"), "nothing is summed up: {}", refused.stderr);
    };
    refused(&[], &["--builtin", "identity"], "was `--builtin square`, and is `--builtin identity`");
    refused(&["--retries", "3"], &SQUARE, "--retries: was 1, and is 3");
    refused(&["--format", "json"], &SQUARE, "--format: was raw, and is json");
    refused(&["-0"], &SQUARE, "how items end (-0, :::): was in a newline, and is in NUL");
    refused(&["--timeout", "5"], &SQUARE, "--timeout: was none, and is 5s");
    // How items are sent, and where they run, does not matter.
    let options = ["--local", "1", "--resume", "--chunk", "7"];
    let done = run(ground.map(&options, &SQUARE), b"").exits(0);
    ground.items(&numbers(1..=1000).replace("\n500\n", "\n501\n"));
    refused(&[], &SQUARE, "are not what they were");
    ground.items(&numbers(1..=1001));
    refused(&[], &SQUARE, "goes on after");
    ground.items(&numbers(1..=999));
    refused(&[], &SQUARE, "and had at least");
    ground.items(&numbers(1..=1000));
    assert_eq!(run(ground.map(&options, &SQUARE), b"").exits(0).stdout, done.stdout);
    let pipe = ground.map_of_pipe(&["--local", "1", "--resume"], &SQUARE);
    let refused = run(pipe, numbers(2..=1000).as_bytes()).exits(2);
    assert!(refused.stderr.contains("standard input has changed"), "{}", refused.stderr);
}

#[test]
fn an_interrupted_map_says_how_to_go_on_and_does() {
    let (ground, log) = (Ground::new(&numbers(1..=40)), Log::new());
    let command = log.noting("sleep 0.05");
    let options = ["--local", "2", "--chunk", "1"];
    let map = MapProcess::start(ground.map(&options, &command), "");
    eventually("some have run", || log.runs(), |&runs| runs >= 6);
    map.signal(Signal::INT);
    let stopped = map.finish().exits(130);
    assert!(stopped.stderr.contains("the same command with --resume"), "{}", stopped.stderr);
    assert!(numbers(1..=40).as_bytes().starts_with(&stopped.stdout));
    let options = [&options[..], &["--resume"]].concat();
    let done = run(ground.map(&options, &command), b"").exits(0);
    assert_eq!(done.text(), numbers(1..=40));
    assert!(log.runs() <= 42, "only what was cut short runs again: {}", log.runs());
    let emitted = stopped.text().lines().count();
    assert!(emitted > 0, "what was done came out");
}

/// Scenario 25 for maps, and what is no journal of a map.
#[test]
fn a_journal_has_one_map_at_a_time() {
    let (ground, log) = (Ground::new("1\n"), Log::new());
    let first = MapProcess::start(ground.map(&["--local", "1"], &log.noting("sleep 30")), "");
    eventually("it runs", || log.runs(), |&runs| runs == 1);
    let options = ["--local", "1", "--resume"];
    let refused = run(ground.map(&options, &log.noting("sleep 30")), b"").exits(3);
    let holder = format!("is in use by the widemap process {}", first.pid());
    assert!(refused.stderr.contains(&holder), "{}", refused.stderr);
    first.signal(Signal::TERM);
    let _ = first.finish().exits(143);
    let alone = run(widemap(&["map", "--resume", "--", "echo"]), b"").exits(2);
    assert!(alone.stderr.contains("--journal <DIR>"), "{}", alone.stderr);
    let nothing = ground.path("items/sub").display().to_string();
    let mut map = widemap(&["map", "--local", "1", "--journal", &nothing]);
    map.arg("echo");
    let refused = run(map, b"1\n").exits(3);
    assert!(refused.stderr.contains(&nothing), "{}", refused.stderr);
}

/// What ended before it read anything leaves nothing to go on with, and nobody has to say so.
#[test]
fn a_map_that_could_not_start_is_begun_again() {
    let ground = Ground::new("3\n");
    let options = ["--local", "1", "--output", "/no/such/directory/out"];
    let _ = run(ground.map(&options, &SQUARE), b"").exits(2);
    let done = run(ground.map(&["--local", "1"], &SQUARE), b"").exits(0);
    assert_eq!(done.text(), "9\n");
}

/// Scenario 23 for a map: results are checked when they are read again.
#[test]
fn a_flipped_bit_of_a_result_is_never_emitted() {
    let ground = Ground::new(&numbers(1..=100));
    let done = run(ground.map(&["--local", "2"], &SQUARE), b"").exits(0);
    let payload = ground.path("journal/jobs/1/payload-000001");
    let mut bytes = std::fs::read(&payload).unwrap();
    bytes[100] ^= 4;
    std::fs::write(&payload, &bytes).unwrap();
    let broken = run(ground.map(&["--local", "2", "--resume"], &SQUARE), b"").exits(3);
    assert!(broken.stderr.contains("payload-000001, at byte 0: "), "{}", broken.stderr);
    bytes[100] ^= 4;
    std::fs::write(&payload, &bytes).unwrap();
    let again = run(ground.map(&["--local", "2", "--resume"], &SQUARE), b"").exits(0);
    assert_eq!(again.stdout, done.stdout);
}

/// Scenario 26: the journal's disk is full. It stops in good order, and goes on where there is room.
#[test]
fn a_full_disk_under_the_journal_stops_the_map_and_it_goes_on_later() {
    let test = "a_full_disk_under_the_journal_stops_the_map_and_it_goes_on_later";
    if !needs(test, "unshare") || !needs_root(test) {
        return;
    }
    let ground = Ground::new(&numbers(1..=60));
    std::fs::create_dir(ground.path("disk")).unwrap();
    let big = "yes $1 | head -c 1000000";
    // The mount is seen by this one shell alone, and goes with it.
    let script = r#"mount -t tmpfs -o size=20m tmpfs disk
        status=0
        "$@" -- sh -c "$COMMAND" sh > first 2> first.said || status=$?
        echo $status > first.status
        mount -o remount,size=200m disk
        "$@" --resume -- sh -c "$COMMAND" sh > second"#;
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-ec", script, "sh"]);
    shell.arg(widemap_tests::binary("widemap"));
    shell.args(["map", "--local", "2", "--journal", "disk/journal", "-a", "items"]);
    shell.env("COMMAND", big).current_dir(ground.directory.path());
    without_configuration(&mut shell);
    let _ = run(shell, b"").exits(0);
    let read = |name: &str| std::fs::read_to_string(ground.path(name)).unwrap();
    let want: String = (1..=60)
        .map(|n| format!("{n}\n").repeat(1_000_000))
        .map(|text| text[..1_000_000].to_owned())
        .collect();
    assert!(read("second") == want, "all of it, in order");
    assert_eq!(read("first.status").trim(), "3", "{}", read("first.said"));
    assert!(want.starts_with(&read("first")), "what was emitted was right");
    assert!(read("first.said").contains("the disk of"), "{}", read("first.said"));
    assert!(read("first.said").contains("--resume"), "{}", read("first.said"));
}

/// Whatever the form of items and results, a map that is killed again and again ends as one that never was.
#[test]
fn every_form_of_map_survives_being_killed_again_and_again() {
    let items: String = (1..=3_000).map(|n| format!("{n}\n")).collect();
    let forms: [&[&str]; 5] = [
        &["--chunk", "50", "--builtin", "square"],
        &["--pipe", "--block", "200", "--", "sh", "-c", "sleep 0.01; tr 0-9 a-j"],
        &["--chunk", "50", "--format", "json", "--builtin", "square"],
        &["--chunk", "50", "--retries", "0", "--builtin", "sleep"],
        &["--chunk", "50", "--unordered", "--builtin", "square"],
    ];
    // What differs from run to run is no part of a result.
    let plain = |run: &Run, form: &[&str]| -> Vec<String> {
        let mut lines: Vec<_> = run.text().lines().map(str::to_owned).collect();
        if form.contains(&"json") {
            for line in &mut lines {
                let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
                let object = value.as_object_mut().unwrap();
                let _ = ["worker", "attempts", "seconds"].map(|name| object.remove(name));
                *line = value.to_string();
            }
        }
        if form.contains(&"--unordered") {
            lines.sort_unstable();
        }
        lines
    };
    for form in forms {
        let mut text = items.clone();
        if form.contains(&"sleep") {
            // Some are no numbers, and fail.
            text = (1..=600)
                .map(|n| if n % 50 == 0 { "x\n".into() } else { format!("{}\n", n % 3) })
                .collect();
        }
        let ground = Ground::new(&text);
        let mut never = widemap(&["map", "--local", "2", "-a"]);
        never.arg(ground.path("items")).args(form);
        let never = run(never, b"");
        let mut lives = 0;
        let done = loop {
            let mut map = ground.map(&["--local", "2", "--resume"], form);
            // Each life ends at another step.
            let name = failpoint::NAMES[lives % failpoint::NAMES.len()];
            if lives < 12 {
                map.env("WIDEMAP_FAILPOINT", format!("{name}=1"));
            }
            lives += 1;
            let life = run(map, b"");
            if life.status != -1 {
                break life;
            }
        };
        assert_eq!(done.status, never.status, "{form:?}: {}", done.stderr);
        assert_eq!(plain(&done, form), plain(&never, form), "{form:?} after {lives} lives");
        assert!(lives > 6, "{form:?} was killed {} times", lives - 1);
    }
}

/// A reader that has seen enough ends the map quietly; what is done is kept.
#[test]
fn a_reader_that_has_seen_enough_leaves_a_journal_to_go_on_with() {
    let ground = Ground::new(&numbers(1..=100_000));
    let script = "\"$@\" --builtin square | head -3";
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", script, "sh"]).arg(widemap_tests::binary("widemap"));
    shell.args(["map", "--local", "2", "--journal", "journal", "-a", "items"]);
    shell.current_dir(ground.directory.path());
    without_configuration(&mut shell);
    let seen = run(shell, b"").exits(0);
    assert_eq!(seen.text(), "1\n4\n9\n");
    assert!(!seen.stderr.contains("error"), "{}", seen.stderr);
    let done = run(ground.map(&["--local", "2", "--resume"], &SQUARE), b"").exits(0);
    let want: String = (1_u64..=100_000).map(|n| format!("{}\n", n * n)).collect();
    assert!(done.text() == want);
}

#[test]
fn a_map_of_nothing_has_a_journal_of_nothing() {
    let ground = Ground::new("");
    for options in [&["--local", "1"][..], &["--local", "1", "--resume"]] {
        let done = run(ground.map(options, &SQUARE), b"").exits(0);
        assert!(done.stdout.is_empty());
    }
    ground.items("1\n");
    let refused = run(ground.map(&["--local", "1", "--resume"], &SQUARE), b"").exits(2);
    assert!(refused.stderr.contains("goes on after 0 bytes"), "{}", refused.stderr);
}
