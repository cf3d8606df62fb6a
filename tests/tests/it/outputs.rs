//! What a map writes, when it stops, and what it says: the same for a map of one's own, and for one that a
//! coordinator runs.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use widemap_tests::{Run, WorkerProcess, run, widemap};

/// A directory, and where maps run.
struct Place {
    directory: TempDir,
    coordinator: Option<WorkerProcess>,
}

impl Place {
    fn own() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), coordinator: None }
    }

    fn served() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("jobs");
        let serve = ["serve", "--listen", "127.0.0.1:0", "--local", "2", "--no-mdns", "--data"];
        let mut command = widemap(&serve);
        command.arg(data);
        Self { coordinator: Some(WorkerProcess::spawn(command)), directory }
    }

    fn both() -> [Self; 2] {
        [Self::own(), Self::served()]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn widemap(&self, command: &str, words: &[&str], stdin: &str) -> Run {
        let mut map = widemap(&[command]);
        if let Some(coordinator) = &self.coordinator {
            map.args(["--coordinator", coordinator.address()]);
        }
        map.args(words).current_dir(self.directory.path());
        map.env("XDG_STATE_HOME", self.directory.path());
        run(map, stdin.as_bytes())
    }

    fn map(&self, words: &[&str]) -> Run {
        self.widemap("map", words, "")
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

/// Fails for b, and prints two lines for the others.
const TWO_LINES: [&str; 5] = ["--", "sh", "-c", "test $1 != b && printf '%s\\n' $1 x", "sh"];

#[test]
fn a_tag_is_before_each_line_and_a_failure_has_its_line() {
    for place in Place::both() {
        let done = place
            .map(&[&["--tag", "--fill", "none"][..], &TWO_LINES, &[":::", "a", "b", "c"]].concat());
        assert_eq!(done.exits(1).text(), "a\ta\na\tx\nb\tnone\nc\tc\nc\tx\n");
        let done =
            place.map(&[&["--fill", "none"][..], &TWO_LINES, &[":::", "a", "b", "c"]].concat());
        assert_eq!(done.exits(1).text(), "a\nx\nnone\nc\nx\n");
        let done = place.map(&["--tag", "--", "printf", "%s", "{2}", ":::", "a", ":::", "1", "2"]);
        assert_eq!(done.exits(0).text(), "a 1\t1a 2\t2");
    }
}

#[test]
fn a_log_and_a_directory_of_outputs_are_as_those_of_gnu_parallel() {
    for place in Place::both() {
        let words = [
            "--joblog",
            "log",
            "--results",
            "out",
            "--",
            "sh",
            "-c",
            "echo $1; echo e >&2; exit $1",
            "sh",
        ];
        let done = place.map(&[&words[..], &[":::", "0", "3"]].concat()).exits(1);
        assert_eq!(done.text(), "0\n");
        assert!(done.stderr.contains("[1 0] e"), "{}", done.stderr);
        let log = place.read("log");
        let mut lines = log.lines();
        let head = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand";
        assert_eq!(lines.next().unwrap(), head);
        let rows: Vec<Vec<_>> = lines.map(|line| line.split('\t').collect()).collect();
        let told: Vec<_> = rows.iter().map(|row| (row[0], row[5], row[6], row[7])).collect();
        assert_eq!(told, [("1", "2", "0", "0"), ("2", "0", "3", "0")]);
        assert_eq!(rows[0][8], "sh -c echo $1; echo e >&2; exit $1 sh 0");
        let started: f64 = rows[0][2].parse().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!((now.as_secs_f64() - started).abs() < 60.0, "{log}");
        assert_eq!(
            (place.read("out/1/0/stdout"), place.read("out/1/0/stderr")),
            ("0\n".into(), "e\n".into())
        );
        assert_eq!(place.read("out/1/3/seq"), "2");
    }
}

#[test]
fn results_of_a_submitted_job_are_made_of_what_was_kept() {
    let place = Place::served();
    let words = ["--keep-records", "--tag", "--", "echo", "x{}", ":::", "a", "b"];
    let id = place.widemap("submit", &words, "").exits(0).text().trim().to_owned();
    for _ in 0..2 {
        let done = place.widemap("results", &["--joblog", "log", &id], "").exits(0);
        assert_eq!(done.text(), "a\txa\nb\txb\n");
        assert_eq!(place.read("log").lines().count(), 3);
    }
    // What a receipt says of a job is the same where it is collected by itself.
    let receipt = |name: &str| -> Value {
        let mut receipt: Value = serde_json::from_str(&place.read(name)).unwrap();
        assert!(receipt["seconds"].take().as_f64().is_some());
        receipt
    };
    let words = ["--", "sh", "-c", "test $1 != b && echo $1", "sh", ":::", "a", "b"];
    let _ = place.map(&[&["--receipt", "at-once"], &words[..]].concat()).exits(1);
    let id = place.widemap("submit", &words, "").exits(0).text().trim().to_owned();
    let _ = place.widemap("results", &["--receipt", "later", &id], "").exits(1);
    assert_eq!(receipt("later"), receipt("at-once"));
    assert_eq!(receipt("later")["items"]["failed"], 1);
    let id = place.widemap("submit", &["echo", ":::", "a"], "").exits(0).text().trim().to_owned();
    let done = place.widemap("results", &["--joblog", "log", &id], "").exits(2);
    assert!(done.stderr.contains("--keep-records"), "{}", done.stderr);
}

#[test]
fn json_has_columns_and_statuses_that_count_as_success() {
    for place in Place::both() {
        let words =
            ["--format", "json", "--ok-exit", "0,7", "--", "sh", "-c", "exit $1", "sh", "{1}"];
        let done = place.map(&[&words[..], &[":::", "7", "1", ":::", "x"]].concat()).exits(1);
        let lines: Vec<Value> =
            done.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["status"], &lines[0]["exit"]), (&"ok".into(), &7.into()));
        assert_eq!((&lines[1]["status"], &lines[1]["exit"]), (&"error".into(), &1.into()));
        assert_eq!((&lines[1]["item"], &lines[1]["args"][1]), (&"1 x".into(), &"x".into()));
        assert!(lines[0].get("started").is_none());
        let done =
            place.widemap("map", &["--ok-exit", "0,1", "--pipe", "--", "grep", "5"], "1\n5\n");
        assert_eq!(done.exits(0).text(), "5\n");
        let done =
            place.widemap("map", &["--ok-exit", "1,0", "--pipe", "--", "grep", "7"], "1\n5\n");
        assert_eq!(done.exits(0).text(), "");
    }
}

#[test]
fn enough_failures_stop_a_map() {
    for place in Place::both() {
        let script = "echo $1 >> ran; test $1 != 3";
        let words = ["--retries", "0", "-j1", "--halt", "soon,fail=1", "--wd", "."];
        let words: Vec<_> = match place.coordinator {
            Some(_) => words.iter().copied().filter(|word| *word != "-j1").collect(),
            None => words.to_vec(),
        };
        let items: Vec<_> = (1..=200).map(|n| n.to_string()).collect();
        let items: Vec<_> = items.iter().map(String::as_str).collect();
        let words = [&words[..], &["--", "sh", "-c", script, "sh", ":::"], &items].concat();
        let done = place.map(&words).exits(1);
        assert!(done.stderr.contains("halted: 1 failed (--halt)"), "{}", done.stderr);
        assert!(place.read("ran").lines().count() < 150, "{}", place.read("ran"));
        let words =
            ["--retries", "0", "--halt", "now,fail=1", "--", "sh", "-c", "sleep $1; exit 1", "sh"];
        let begun = std::time::Instant::now();
        let done = place.map(&[&words[..], &[":::", "0.3", "50"]].concat()).exits(1);
        assert!(done.stderr.contains("halted: 1 failed"), "{}", done.stderr);
        assert!(begun.elapsed() < std::time::Duration::from_secs(40), "what ran was not ended");
    }
}

#[test]
fn the_first_items_run_alone_and_a_failure_among_them_stops() {
    for place in Place::both() {
        let script = "echo $1 >> ran; test $1 != 2";
        let words = [
            "--canary", "2", "--wd", ".", "--", "sh", "-c", script, "sh", ":::", "1", "2", "3", "4",
        ];
        let done = place.map(&words).exits(1);
        assert!(
            done.stderr.contains("halted: 1 failed among the first 2 (--canary)"),
            "{}",
            done.stderr
        );
        let mut ran: Vec<_> = place.read("ran").lines().map(str::to_owned).collect();
        ran.sort();
        ran.dedup();
        assert_eq!(ran, ["1", "2"]);
        let items = (1..=500).map(|n| format!("{n}\n")).collect::<String>();
        for words in [
            &["--builtin", "identity"][..],
            &["--chunk", "9", "--", "echo"],
            &["--block", "100", "--pipe", "cat"],
        ] {
            let done = place.widemap("map", &[&["--canary", "3"], words].concat(), &items);
            assert_eq!(done.exits(0).text(), items, "{words:?}");
        }
    }
}

#[test]
fn a_dry_run_prints_commands_that_do_what_it_would() {
    let place = Place::own();
    let done = place.map(&[
        "--dry-run",
        "printf",
        "%s\\n",
        "{1}",
        "{2/}",
        ":::",
        "a b",
        "it's",
        ":::",
        "x/y",
    ]);
    let commands = "printf '%s\\n' 'a b' y\nprintf '%s\\n' 'it'\\''s' y\n";
    assert_eq!(done.exits(0).text(), commands);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", commands]);
    assert_eq!(run(shell, b"").exits(0).text(), "a b\ny\nit's\ny\n");
    let done = place.map(&["--dry-run", "--shell", "wc -c < {} > '{/.}.n'", ":::", "a b.c"]);
    assert_eq!(done.exits(0).text(), "wc -c < 'a b.c' > 'a b.n'\n");
    let done = place.widemap("map", &["--dry-run", "--pipe", "--", "grep", "a b"], "x\n");
    assert_eq!(done.exits(0).text(), "grep 'a b'\n");
    // Where it is to run does not matter, and nobody there is asked.
    for words in [
        &["submit", "--dry-run", "--name", "n"][..],
        &["submit", "--coordinator", "127.0.0.1:9", "--dry-run"],
        &["map", "--coordinator", "127.0.0.1:9", "--dry-run"],
        &["map", "--journal", "j", "--dry-run"],
    ] {
        let command = [&words[1..], &["echo", "{}.x", ":::", "a b"]].concat();
        assert_eq!(place.widemap(words[0], &command, "").exits(0).text(), "echo 'a b.x'\n");
    }
    assert!(!place.path("j").exists());
}

#[test]
fn it_says_which_item_the_output_waits_for() {
    for place in Place::both() {
        let words =
            ["--explain-every", "300ms", "--", "sh", "-c", "sleep $1", "sh", ":::", "1.5", "0"];
        let done = place.map(&words).exits(0);
        let said = done.stderr.lines().find(|line| line.contains("has been running for"));
        assert!(said.is_some_and(|line| line.contains("(w")), "{}", done.stderr);
        if place.coordinator.is_none() {
            assert!(said.unwrap().contains("the output waits for item 1 `1.5`"), "{}", done.stderr);
            continue;
        }
        let id = place.widemap("submit", &words[2..], "").exits(0).text().trim().to_owned();
        let done = place.widemap("results", &[&words[..2], &[&*id]].concat(), "").exits(0);
        assert!(done.stderr.contains("has been running for"), "{}", done.stderr);
    }
}

/// Fails for b and d while there is no file `mended`.
const FLAKY: [&str; 4] = ["sh", "-c", "case $1 in b|d) test -e mended;; esac && echo $1 $1", "sh"];

fn repair(place: &Path, words: &[&str]) -> Run {
    let mut command = widemap(&["repair"]);
    command.args(words).current_dir(place).env("XDG_STATE_HOME", place);
    run(command, b"")
}

#[test]
fn what_failed_is_put_in_its_place() {
    for place in Place::both() {
        let items = [":::", "a", "b", "c", "d", "e"];
        for (options, failed, whole) in [
            (&[][..], "a a\nc c\ne e\n", "a a\nb b\nc c\nd d\ne e\n"),
            (&["--fill", "-"], "a a\n-\nc c\n-\ne e\n", "a a\nb b\nc c\nd d\ne e\n"),
        ] {
            let words = [
                &["--output", "out", "--failures", "failed"],
                options,
                &["--wd", ".", "--"],
                &FLAKY,
                &items,
            ];
            let done = place.map(&words.concat()).exits(1);
            assert!(done.stderr.contains("\n  widemap repair failed out "), "{}", done.stderr);
            assert_eq!(place.read("out"), failed);
            let again = [&["failed", "out", "--wd", "."], options, &["--"], &FLAKY].concat();
            // Once more it fails, and all stays as it was.
            let done = repair(place.directory.path(), &again).exits(1);
            assert!(done.stderr.contains("0 of 2 repaired"), "{}", done.stderr);
            assert_eq!(place.read("out"), failed);
            std::fs::write(place.path("mended"), "").unwrap();
            let done = repair(place.directory.path(), &again).exits(0);
            assert!(done.stderr.contains("2 of 2 repaired in out"), "{}", done.stderr);
            assert_eq!((place.read("out").as_str(), place.read("failed").as_str()), (whole, ""));
            std::fs::remove_file(place.path("mended")).unwrap();
        }
    }
}

#[test]
fn a_function_of_the_worker_is_repaired_whatever_its_items_came_from() {
    for place in Place::both() {
        std::fs::write(place.path("list"), "1\nx\n3\n").unwrap();
        for items in [&[":::", "1", "x", "3"][..], &["::::", "list"]] {
            for options in [&[][..], &["--joblog", "log"]] {
                let words = [
                    &["--output", "out", "--failures", "failed", "--builtin", "square"],
                    options,
                    items,
                ];
                let _ = place.map(&words.concat()).exits(1);
                assert_eq!(place.read("out"), "1\n9\n");
                let failure: Value = serde_json::from_str(place.read("failed").trim()).unwrap();
                assert_eq!(
                    (&failure["seq"], &failure["offset"]),
                    (&2.into(), &2.into()),
                    "{failure}"
                );
                let again = ["failed", "out", "--fill", "?", "--builtin", "square"];
                // With a line for what fails it is another output.
                let _ = repair(place.directory.path(), &again).exits(2);
                let done =
                    repair(place.directory.path(), &["failed", "out", "--builtin", "square"]);
                assert!(done.exits(1).stderr.contains("0 of 1 repaired"));
                assert_eq!(place.read("out"), "1\n9\n");
            }
        }
    }
}

#[test]
fn a_repair_of_json_puts_lines_in_their_places() {
    let place = Place::own();
    let words = [
        &["--format", "json", "--output", "out", "--failures", "failed", "--"][..],
        &FLAKY,
        &[":::", "a", "b", "c"],
    ];
    let _ = place.map(&words.concat()).exits(1);
    std::fs::write(place.path("mended"), "").unwrap();
    let again = [&["failed", "out", "--format", "json", "--"][..], &FLAKY].concat();
    let _ = repair(place.directory.path(), &again).exits(0);
    let lines: Vec<Value> =
        place.read("out").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> =
        lines.iter().map(|line| (line["seq"].as_u64(), line["output"].as_str())).collect();
    assert_eq!(
        told,
        [(Some(1), Some("a a\n")), (Some(2), Some("b b\n")), (Some(3), Some("c c\n"))]
    );
}

#[test]
fn what_must_not_be_repaired_is_refused() {
    let place = Place::own();
    let words =
        [&["--output", "out", "--failures", "failed", "--"][..], &FLAKY, &[":::", "a", "b"]];
    let _ = place.map(&words.concat()).exits(1);
    std::fs::write(place.path("mended"), "").unwrap();
    let refused = |words: &[&str], problem: &str| {
        let done = repair(place.directory.path(), words).exits(2);
        assert!(done.stderr.contains(problem), "{words:?}: {}", done.stderr);
    };
    refused(&["failed", "out", "--", "echo"], "the function is another");
    refused(&["failed", "out", "--pipe", "--", "cat"], "--pipe is not for repair");
    refused(&["failed", "out", "--unordered", "--", "cat"], "--unordered is not for repair");
    refused(&[&["failed", "out", "--"][..], &FLAKY, &[":::", "x"]].concat(), ":::");
    refused(&["none", "out", "--", "cat"], "none");
    std::fs::write(place.path("out"), "a a\nmore\n").unwrap();
    refused(&[&["failed", "out", "--"][..], &FLAKY].concat(), "it is not as the map left it");
    assert_eq!(place.read("out"), "a a\nmore\n");
    // Standard output that is a file can be repaired, one that is a pipe not.
    let script = |to: &str| {
        let widemap = widemap_tests::binary("widemap");
        let mut shell = std::process::Command::new("bash");
        let flaky = "sh -c 'case $1 in b) test -e late;; esac && echo $1' sh";
        let script = format!(
            "{0} map --failures failed -- {flaky} ::: a b c {to}; touch late; {0} repair failed out -- {flaky}",
            widemap.display()
        );
        shell.args(["-c", &script]).current_dir(place.directory.path());
        widemap_tests::without_configuration(&mut shell);
        let done = run(shell, b"");
        std::fs::remove_file(place.path("late")).unwrap();
        done
    };
    let _ = script("> out").exits(0);
    assert_eq!(place.read("out"), "a\nb\nc\n");
    // A tagged output has no places of its own.
    let words = [
        &["--tag", "--output", "tagged", "--failures", "failed", "--"][..],
        &FLAKY,
        &[":::", "a", "b"],
    ];
    std::fs::remove_file(place.path("mended")).unwrap();
    let _ = place.map(&words.concat()).exits(1);
    refused(&[&["failed", "tagged", "--"][..], &FLAKY].concat(), "--tag or --unordered");
    let done = script("| cat > out").exits(2);
    assert!(done.stderr.contains("as where a map writes to a pipe"), "{}", done.stderr);
}

#[test]
fn what_holds_is_told_with_where_it_was_said() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("widemap/widemap.toml");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "workers = ['ann']\njobs = 3\nmax-output = '1M'\n").unwrap();
    let print = |words: &[&str], variables: &[(&str, &str)]| {
        let mut map = widemap(&[&["map", "--print-config"], words].concat());
        map.env("XDG_CONFIG_HOME", directory.path()).envs(variables.iter().copied());
        run(map, b"").exits(0).text().to_owned()
    };
    let told = print(&["--max-output", "2048"], &[("WIDEMAP_JOBS", "2")]);
    let path = file.display();
    for line in [
        format!("# {path}"),
        format!("workers = [\"ann\"]  # {path}"),
        "jobs = \"2\"  # WIDEMAP_JOBS".to_owned(),
        "max-output = 2048  # --max-output".to_owned(),
        "# wait-workers: 60s".to_owned(),
    ] {
        assert!(told.lines().any(|other| other == line), "{line}: {told}");
    }
    let told = print(&["--local", "2"], &[]);
    assert!(told.contains("local = 2  # --local"), "{told}");
    assert!(
        told.contains(&format!("#   not [\"ann\"], of {path}: a place is named above it")),
        "{told}"
    );
    // Each command says what it looks at.
    std::fs::write(&file, "coordinator = 'ann'\njobs = 3\nlog = 'info'\n").unwrap();
    for (command, holds, leaves_out) in [
        (
            &["submit", "--max-output", "7"][..],
            &["coordinator = \"ann\"", "max-output = 7"][..],
            "jobs",
        ),
        (&["jobs", "--no-mdns"], &["coordinator = \"ann\"", "mdns = false  # --no-mdns"], "jobs"),
        (&["results", "3"], &["coordinator = \"ann\"", "log = \"info\""], "max-output"),
        (&["serve", "-j2"], &["jobs = 2  # -j", "# workers: none is named"], "coordinator"),
        (&["workers"], &["coordinator = \"ann\"", "# workers: none is named"], "jobs"),
        (&["doctor", "--worker", "bob"], &["workers = [\"bob:7433\"]  # --worker"], "jobs"),
    ] {
        let mut widemap = widemap(&[command, &["--print-config"]].concat());
        widemap.env("XDG_CONFIG_HOME", directory.path());
        let told = run(widemap, b"").exits(0).text().to_owned();
        for line in holds {
            assert!(told.lines().any(|other| other.starts_with(line)), "{line}: {told}");
        }
        let is_left_out = |line: &str| {
            !line.contains(&format!("{leaves_out} =")) && !line.contains(&format!("{leaves_out}:"))
        };
        assert!(told.lines().all(is_left_out), "{command:?}: {told}");
    }
    std::fs::write(&file, "jbos = 3\n").unwrap();
    let mut map = widemap(&["map", "echo", ":::", "a"]);
    map.env("XDG_CONFIG_HOME", directory.path());
    let done = run(map, b"").exits(2);
    assert!(done.stderr.contains("unknown key `jbos` (did you mean `jobs`?)"), "{}", done.stderr);
}

#[test]
fn what_is_said_twice_holds_as_it_was_said_last() {
    let place = Place::own();
    let done = place.map(&[
        "--retries",
        "0",
        "--retries",
        "2",
        "--tag",
        "--tag",
        "--",
        "false",
        ":::",
        "a",
    ]);
    assert!(done.exits(1).stderr.contains("2 retried"));
}
