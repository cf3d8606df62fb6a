//! A coordinator that serves: jobs are handed in and collected, and it is killed at every step between a
//! result's arrival and its emission.

mod through;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use widemap::failpoint;
use widemap_tests::{
    MapProcess, Run, WorkerProcess, binary, eventually, eventually_within, run, widemap,
    without_configuration,
};

use crate::support::{Log, numbers, places};

/// A coordinator, its directory, and where it is: the same after each start.
struct Service {
    directory: TempDir,
    address: String,
    workers: Vec<String>,
    process: Option<WorkerProcess>,
}

impl Service {
    fn start(workers: &[&WorkerProcess]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let workers = places(workers).into_iter().map(str::to_owned).collect();
        let address = "127.0.0.1:0".to_owned();
        let mut service = Self { directory, address, workers, process: None };
        service.begin(None);
        service.address = service.process.as_ref().unwrap().address().to_owned();
        service
    }

    fn command(&self) -> std::process::Command {
        let data = self.data();
        let data = data.to_str().unwrap();
        let options = ["serve", "--listen", &self.address, "--data", data, "--no-mdns"];
        let mut command = widemap(&options);
        command.args(&self.workers);
        command
    }

    /// Starts it again, to be killed at a place, perhaps.
    fn begin(&mut self, failpoint: Option<&str>) {
        let mut command = self.command();
        if let Some(failpoint) = failpoint {
            command.env("WIDEMAP_FAILPOINT", failpoint);
        }
        self.process = Some(WorkerProcess::spawn(command));
    }

    fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    fn process(&mut self) -> &mut WorkerProcess {
        self.process.as_mut().expect("it runs")
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn job(&self, number: u32) -> PathBuf {
        self.data().join("jobs").join(number.to_string())
    }

    /// `widemap` with this coordinator.
    fn ask(&self, arguments: &[&str]) -> Run {
        run(self.asking(arguments), b"")
    }

    fn asking(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = widemap(arguments);
        command.env("WIDEMAP_COORDINATOR", &self.address);
        command
    }

    fn submit<S: AsRef<str>>(&self, options: &[&str], command: &[S], input: &str) -> String {
        let command = command.iter().map(AsRef::as_ref);
        let words: Vec<_> =
            ["submit"].into_iter().chain(options.iter().copied()).chain(command).collect();
        let done = run(self.asking(&words), input.as_bytes()).exits(0);
        assert!(done.text().starts_with('j') && done.text().ends_with('\n'), "{}", done.text());
        done.text().trim().to_owned()
    }
}

#[test]
fn a_job_is_handed_in_and_collected_tomorrow() {
    let ann = WorkerProcess::start("ann", 2);
    let mut service = Service::start(&[&ann]);
    let options = ["--name", "squares", "--submit-key", "nightly"];
    let job = service.submit(&options, &["--builtin", "square"], &numbers(1..=5));
    // Once for each key, whatever broke in between.
    let again = service.submit(&options, &["--builtin", "square"], &numbers(1..=5));
    assert_eq!((job.as_str(), again), ("j1", job.clone()));
    let words = ["submit", "--name", "squares", "--submit-key", "nightly", "--builtin", "square"];
    let other = run(service.asking(&words), b"7\n").exits(2);
    assert!(other.stderr.contains("the submit key `nightly` is j1's"), "{}", other.stderr);
    for _ in 0..2 {
        let done = service.ask(&["results", &job]).exits(0);
        assert_eq!(done.text(), "1\n4\n9\n16\n25\n");
    }
    service.kill();
    let gone = service.ask(&["jobs"]).exits(3);
    assert!(gone.stderr.contains("connection refused"), "{}", gone.stderr);
    service.begin(None);
    assert_eq!(service.ask(&["results", "1"]).exits(0).text(), "1\n4\n9\n16\n25\n");
    let listed = service.ask(&["jobs"]).exits(0);
    assert!(
        listed.text().contains("squares") && listed.text().contains("complete"),
        "{}",
        listed.text()
    );
    let status = service.ask(&["status", &job, "--format", "json"]).exits(0);
    let status: serde_json::Value = serde_json::from_str(status.text()).unwrap();
    assert_eq!(
        (&status["state"], &status["items"]["ok"]),
        (&"complete".into(), &5.into()),
        "{status}"
    );
    let explained = service.ask(&["explain", &job, "--format", "json"]).exits(0);
    let explained: serde_json::Value = serde_json::from_str(explained.text()).unwrap();
    is_documented(&status);
    is_documented(&explained);
    let checked =
        run(widemap(&["journal", "check", service.data().to_str().unwrap()]), b"").exits(0);
    assert!(checked.text().contains("sound, 5 items are final"), "{}", checked.text());
    let pruned = service.ask(&["jobs", "prune", "--all"]).exits(0);
    assert!(!service.job(1).exists(), "{}", pruned.stderr);
    let next = service.submit(&[], &["--builtin", "square"], "3\n");
    assert_eq!(next, "j2", "a number is never used again");
}

/// What programs read is in the README, field by field.
fn is_documented(value: &serde_json::Value) {
    let readme = include_str!("../../../README.md");
    let told = readme.split("**For programs**").nth(1).unwrap().split("**As a service").next();
    for (field, value) in value.as_object().unwrap() {
        assert!(told.unwrap().contains(&format!("`{field}`")), "{field} is not in the README");
        let inner = value.as_array().map_or(Some(value), |list| list.first());
        if let Some(inner) = inner.filter(|inner| inner.is_object()) {
            is_documented(inner);
        }
    }
}

#[test]
fn a_map_that_a_coordinator_runs_is_a_map() {
    let ann = WorkerProcess::start("ann", 2);
    let service = Service::start(&[&ann]);
    let words = ["map", "--", "sh", "-c", "echo $1; test $1 != 3", "sh"];
    let done = run(service.asking(&words), numbers(1..=5).as_bytes()).exits(1);
    assert_eq!(done.text(), "1\n2\n4\n5\n");
    assert!(done.stderr.contains("j1 of coordinator"), "{}", done.stderr);
    assert!(done.stderr.contains("item 3 `3`: exited with status 1"), "{}", done.stderr);
    assert!(done.stderr.contains("5 items, 1 failed, 1 retried"), "{}", done.stderr);
}

/// Scenario 21: killed at every step, gone on from, and nothing is run twice: what was not durable is
/// still with its worker.
#[test]
fn a_coordinator_killed_at_any_step_goes_on_and_runs_nothing_again() {
    for name in failpoint::NAMES {
        for hits in [1, 2] {
            let (ann, log) = (WorkerProcess::start("ann", 2), Log::new());
            let mut service = Service::start(&[&ann]);
            service.kill();
            service.begin(Some(&format!("{name}={hits}")));
            // Long enough for a second commit, on a slow disk too.
            let command = log.noting("sleep 0.04");
            let job = service.submit(&["--chunk", "1"], &command, &numbers(1..=30));
            // Some steps come only with a reader.
            let (address, wanted) = (service.address.clone(), job.clone());
            let collect = move || {
                let mut results = widemap(&["results", &wanted]);
                results.env("WIDEMAP_COORDINATOR", &address);
                run(results, b"")
            };
            // Who comes when nobody is there is told so, and comes again; who was there once goes on.
            let was_there = |done: &Run| done.stderr.contains("trying again");
            let is_done = move |done: &Run| done.status != 3 || was_there(done);
            let reader = std::thread::spawn(move || eventually("it is read", collect, is_done));
            eventually(name, || service.process().has_ended(), |&ended| ended);
            service.process = None;
            service.begin(None);
            // The reader goes on where it was.
            let read = reader.join().unwrap().exits(0);
            assert_eq!(read.text(), numbers(1..=30), "{name}={hits}");
            assert_eq!(service.ask(&["results", &job]).exits(0).text(), numbers(1..=30));
            assert_eq!(log.runs(), 30, "{name}={hits}: an item ran again");
        }
    }
}

/// A map's items run while the rest of them comes, whoever sends them has their results meanwhile, and nothing of
/// it is there if they do not come to an end.
#[test]
fn a_map_runs_while_its_items_come_and_is_gone_if_they_break_off() {
    let (ann, log) = (WorkerProcess::start("ann", 2), Log::new());
    let service = Service::start(&[&ann]);
    let start = |script: &str| {
        let mut words = vec!["map".to_owned()];
        words.extend(log.noting(script));
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut command = service.asking(&words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut map = command.spawn().unwrap();
        let mut items = map.stdin.take().unwrap();
        items.write_all(numbers(1..=4).as_bytes()).unwrap();
        let (told, results) = (map.stdout.take().unwrap(), Arc::new(Mutex::new(String::new())));
        let of_map = Arc::clone(&results);
        let reading = std::thread::spawn(move || {
            for line in BufReader::new(told).lines() {
                *of_map.lock().unwrap() += &(line.unwrap() + "\n");
            }
        });
        (map, items, results, reading)
    };
    let (map, mut items, results, reading) = start("true");
    let told = || results.lock().unwrap().clone();
    eventually("what is there is told", told, |told| *told == numbers(1..=4));
    assert_eq!(
        service.ask(&["jobs", "--format", "json"]).exits(0).text(),
        "",
        "nobody else is told"
    );
    items.write_all(b"5\n6").unwrap();
    drop(items);
    let done = map.wait_with_output().unwrap();
    reading.join().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    assert_eq!(told(), numbers(1..=6));
    assert!(said.contains("j1 of coordinator") && said.contains("6 items, 0 failed"), "{said}");
    assert_eq!(log.runs(), 6);
    // Another one is killed while its items come.
    let (mut map, _items, _, reading) = start("sleep 60");
    eventually("it runs", || log.runs(), |&runs| runs == 8);
    map.kill().unwrap();
    map.wait().unwrap();
    reading.join().unwrap();
    eventually("nothing of it is left", || service.job(2).exists(), |&is_there| !is_there);
    // Another one is interrupted: what it has told is all that there is of it.
    let (map, _items, results, reading) = start("true");
    let told = || results.lock().unwrap().clone();
    eventually("what is there is told", told, |told| *told == numbers(1..=4));
    kill_process(Pid::from_child(&map), Signal::INT).unwrap();
    let done = map.wait_with_output().unwrap();
    reading.join().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(130), "{said}");
    assert!(said.contains("stopped before all items were sent: no job was made of them"), "{said}");
    eventually("nothing of it is left", || service.job(3).exists(), |&is_there| !is_there);
    let listed = service.ask(&["jobs", "--format", "json"]).exits(0);
    assert_eq!(listed.text().lines().count(), 1, "{}", listed.text());
    // Its slots are free.
    let next = service.submit(&[], &log.noting("true"), "9\n");
    assert_eq!(service.ask(&["results", &next]).exits(0).text(), "9\n");
}

/// Wherever the coordinator is killed while a map's items come, the map goes on once it is back.
#[test]
fn a_coordinator_killed_while_a_map_comes_is_given_it_again() {
    let directory = tempfile::tempdir().unwrap();
    let items = directory.path().join("items");
    let mut lines = String::new();
    for number in 0..50_000 {
        writeln!(lines, "line {number} {:0>120}", number * 7).unwrap();
    }
    std::fs::write(&items, &lines).unwrap();
    for name in failpoint::SUBMITTING {
        let ann = WorkerProcess::start("ann", 2);
        let mut service = Service::start(&[&ann]);
        service.kill();
        service.begin(Some(&format!("{name}=1")));
        let words = [
            "map",
            "-a",
            items.to_str().unwrap(),
            "--pipe",
            "--block",
            "200K",
            "--",
            "tr",
            "a-z",
            "A-Z",
        ];
        let map = MapProcess::start(service.asking(&words), "");
        eventually(name, || service.process().has_ended(), |&ended| ended);
        service.process = None;
        service.begin(None);
        let done = map.finish().exits(0);
        assert!(done.text() == lines.to_uppercase(), "{name}: {}", done.stderr);
        // One job was made of it, whatever had begun before.
        let listed = service.ask(&["jobs", "--format", "json"]).exits(0);
        assert_eq!(listed.text().lines().count(), 1, "{name}: {}", listed.text());
        let jobs = service.data().join("jobs").read_dir().unwrap().count();
        assert_eq!(jobs, 1, "{name}");
    }
}

/// Scenario 22: the end of the log is not whole.
#[test]
fn a_torn_tail_is_cut_off_told_and_gone_on_from() {
    let ann = WorkerProcess::start("ann", 2);
    let mut service = Service::start(&[&ann]);
    let job = service.submit(&[], &["--builtin", "square"], &numbers(1..=100));
    let before = service.ask(&["results", &job]).exits(0);
    service.kill();
    let facts = service.job(1).join("facts");
    let bytes = std::fs::read(&facts).unwrap();
    std::fs::write(&facts, &bytes[..bytes.len() - 3]).unwrap();
    service.begin(None);
    service.process().says("were not written to their end");
    assert_eq!(service.ask(&["results", &job]).exits(0).stdout, before.stdout);
}

/// Scenario 23: a flipped bit, in the facts and in the results.
#[test]
fn a_flipped_bit_is_refused_and_its_file_and_place_are_named() {
    let ann = WorkerProcess::start("ann", 2);
    let mut service = Service::start(&[&ann]);
    // Slow enough for more than one record.
    let job = service.submit(&["--chunk", "1"], &["--builtin", "sleep"], &"5\n".repeat(60));
    let _ = service.ask(&["results", &job]).exits(0);
    service.kill();
    let (facts, payload) = (service.job(1).join("facts"), service.job(1).join("payload-000001"));
    let flip = |path: &Path, at: usize| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    // In the first record, which others follow.
    flip(&facts, 30);
    let refused = run(service.command(), b"").exits(3);
    assert!(refused.stderr.contains("facts, at byte 8: "), "{}", refused.stderr);
    let data = service.data();
    let check = || run(widemap(&["journal", "check", data.to_str().unwrap()]), b"");
    let found = check().exits(3);
    assert!(
        found.text().contains("DAMAGED") && found.text().contains("at byte 8"),
        "{}",
        found.text()
    );
    flip(&facts, 30);
    // In the first result, however many of them were written at once.
    flip(&payload, 1);
    service.begin(None);
    let broken = service.ask(&["results", &job]).exits(3);
    assert!(broken.stderr.contains("payload-000001, at byte 0: "), "{}", broken.stderr);
    assert!(check().exits(3).text().contains("payload-000001, at byte 0: "));
    flip(&payload, 1);
    assert!(service.ask(&["results", &job]).exits(0).text().starts_with("5\n5\n"));
}

/// Scenario 25: a second coordinator on the same directory.
#[test]
fn a_second_coordinator_is_refused_and_says_who_has_the_journal() {
    let ann = WorkerProcess::start("ann", 1);
    let mut service = Service::start(&[&ann]);
    let pid = service.process().pid();
    let mut second = service.command();
    second.args(["--listen", "127.0.0.1:0"]);
    let data = service.data();
    let mut command = widemap(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data",
        data.to_str().unwrap(),
        "--no-mdns",
    ]);
    command.args(&service.workers);
    let refused = run(command, b"").exits(3);
    let holder = format!("is in use by the widemap process {pid}");
    assert!(refused.stderr.contains(&holder), "{}", refused.stderr);
}

/// Ends in good order, and what runs goes on in the next life.
#[test]
fn a_coordinator_that_is_told_to_end_leaves_its_workers_at_work() {
    let (ann, log) = (WorkerProcess::start("ann", 2), Log::new());
    let mut service = Service::start(&[&ann]);
    let job = service.submit(&["--chunk", "1"], &log.noting("sleep 0.3"), &numbers(1..=6));
    eventually("two run", || log.runs(), |&runs| runs >= 2);
    service.process().signal(rustix::process::Signal::TERM);
    assert_eq!(service.process().exit_status(), 0);
    service.process = None;
    service.begin(None);
    assert_eq!(service.ask(&["results", &job]).exits(0).text(), numbers(1..=6));
    assert_eq!(log.runs(), 6, "nothing ran again");
}

/// Twenty jobs from five clients, and more as long as there is time, with workers and the coordinator killed
/// at random.
#[test]
fn twenty_jobs_survive_whatever_is_killed() {
    let seconds = std::env::var("WIDEMAP_CHAOS_SECONDS").ok().and_then(|text| text.parse().ok());
    let bound = Duration::from_secs(seconds.unwrap_or(5));
    let seed = std::env::var("WIDEMAP_CHAOS_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("WIDEMAP_CHAOS_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut workers: Vec<_> =
        ["ann", "bob", "carl"].map(|name| WorkerProcess::start(name, 2)).into_iter().collect();
    let mut service = Service::start(&workers.iter().collect::<Vec<_>>());
    let begun = Instant::now();
    let mut kills: BTreeMap<&str, u32> = BTreeMap::new();
    let asks = |service: &Service, client: usize| {
        let coordinator = service.address.clone();
        std::thread::spawn(move || {
            let ask = |words: &[&str], input: &str| {
                let mut command = widemap(words);
                command.env("WIDEMAP_COORDINATOR", &coordinator);
                run(command, input.as_bytes())
            };
            let mut number = 0;
            while number < 4 || begun.elapsed() < bound {
                let (key, items) = (format!("{client}-{number}"), 40 + 10 * (number % 4));
                let script = format!("sleep 0.0{}; echo {key} $1", client + 1);
                let words = [
                    "submit",
                    "--submit-key",
                    &key,
                    "--retries",
                    "3",
                    "--",
                    "sh",
                    "-c",
                    &script,
                    "sh",
                ];
                let input = numbers(1..=items);
                // Whoever finds nobody there tries again with the same key: it is one job.
                let patience = Duration::from_secs(60);
                let submit = || ask(&words, &input);
                let done = if number % 2 == 0 {
                    let done = eventually_within(patience, &key, submit, |done| done.status == 0);
                    let job = done.text().trim().to_owned();
                    let collect = || ask(&["results", &job], "");
                    eventually_within(patience, &job, collect, |done| done.status != 3)
                } else {
                    // Every other one is a map whose items come slowly, and run meanwhile.
                    let slowly = r#"(for line in 1 2 3; do read -r item; echo "$item"; done; sleep 0.3; cat) | "$@""#;
                    let map = || {
                        let mut command = std::process::Command::new("sh");
                        command.args(["-c", slowly, "sh"]).arg(binary("widemap")).arg("map");
                        command.args(&words[1..]);
                        without_configuration(&mut command);
                        command.env("WIDEMAP_COORDINATOR", &coordinator);
                        run(command, input.as_bytes())
                    };
                    eventually_within(patience, &key, map, |done| done.status == 0)
                };
                let want: String = (1..=items).map(|item| format!("{key} {item}\n")).collect();
                assert_eq!(
                    (done.status, done.text()),
                    (0, want.as_str()),
                    "{key}: {}",
                    done.stderr
                );
                number += 1;
            }
            number
        })
    };
    let clients: Vec<_> = (0..5).map(|client| asks(&service, client)).collect();
    while begun.elapsed() < bound && !clients.iter().all(std::thread::JoinHandle::is_finished) {
        std::thread::park_timeout(Duration::from_millis(rng.u64(100..1_200)));
        if rng.bool() {
            service.kill();
            *kills.entry("coordinator").or_default() += 1;
            std::thread::park_timeout(Duration::from_millis(rng.u64(0..500)));
            service.begin(None);
        } else {
            let index = rng.usize(0..workers.len());
            let address = workers[index].address().to_owned();
            workers[index].kill();
            *kills.entry("worker").or_default() += 1;
            workers[index] = WorkerProcess::start_with("again", 2, &["--listen", &address]);
        }
    }
    let jobs: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    println!("{jobs} jobs, killed: {kills:?}, {:.1?}", begun.elapsed());
}
