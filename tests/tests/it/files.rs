//! Maps that bring files along: a script, and what it reads, on workers that have neither.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use widemap_tests::{MapProcess, WorkerProcess, run, widemap};

use crate::support::{Key, SHORT, numbers, places};

/// A directory with a script in it and what the script reads.
struct Ground {
    directory: TempDir,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ground = Self { directory };
        std::fs::create_dir_all(ground.path("bin")).unwrap();
        std::fs::create_dir_all(ground.path("data/deep")).unwrap();
        ground.write("data/deep/words", "well met");
        ground.write("bin/tool", "#!/bin/sh\necho \"$(cat data/deep/words) $1\"\n");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(ground.path("bin/tool"), executable).unwrap();
        ground
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// `widemap` here.
    fn here(&self, words: &[&str]) -> Command {
        let mut command = widemap(words);
        command.current_dir(self.directory.path());
        command
    }

    /// A map of the script from here, with these options.
    fn map(&self, options: &[&str]) -> Command {
        let files = ["--file", "bin/tool", "--file", "data", "--", "bin/tool"];
        self.here(&[&["map"], options, &files].concat())
    }
}

const GREETED: &str = "well met 1\nwell met 2\nwell met 3\n";

#[test]
fn a_script_and_what_it_reads_go_to_every_worker() {
    let (ground, key) = (Ground::new(), Key::new());
    let (ann, ben) = (WorkerProcess::start("ann", 1), WorkerProcess::start("ben", 1));
    let workers = places(&[&ann, &ben]);
    for _ in 0..2 {
        let done = run(ground.map(&workers), numbers(1..=3).as_bytes()).exits(0);
        assert_eq!(done.text(), GREETED);
    }
    // The same where everything is encrypted, and where it runs here.
    let options = ["--key", key.path(), "--listen", "127.0.0.1:0"];
    let cleo = WorkerProcess::start_with("cleo", 1, &options);
    let options = ["--key", key.path(), "--worker", cleo.address()];
    let done = run(ground.map(&options), numbers(1..=3).as_bytes()).exits(0);
    assert_eq!(done.text(), GREETED);
    assert_eq!(run(ground.map(&[]), numbers(1..=3).as_bytes()).exits(0).text(), GREETED);
}

#[test]
fn what_lies_elsewhere_comes_by_its_name_also_to_a_worker_of_ones_own() {
    let ground = Ground::new();
    let ann = WorkerProcess::start("ann", 1);
    let (tool, data) = (ground.path("bin/tool"), ground.path("data"));
    let files = ["--file", tool.to_str().unwrap(), "--file", data.to_str().unwrap()];
    for place in [&["--worker", ann.address()], &["--local", "1"]] {
        let words = [&["map"], &place[..], &files, &["--", "./tool"]].concat();
        let done = run(widemap(&words), numbers(1..=3).as_bytes()).exits(0);
        assert_eq!(done.text(), GREETED);
        assert!(!done.stderr.contains("left in"), "{}", done.stderr);
    }
}

#[test]
fn files_that_cannot_be_brought_along_are_named_before_anything_runs() {
    let ground = Ground::new();
    let told = |words: &[&str]| {
        let words = [&["map"], words, &["--", "bin/tool"]].concat();
        run(ground.here(&words), b"1\n").exits(2).stderr
    };
    let missing = told(&["--file", "no"]);
    assert!(missing.contains("--file: no: No such file or directory"), "{missing}");
    let with_directory = told(&["--file", "data", "--wd", "/tmp"]);
    assert!(with_directory.contains("leave --wd out"), "{with_directory}");
    let words = ["map", "--file", "data", "--builtin", "square"];
    let builtin = run(ground.here(&words), b"1\n").exits(2).stderr;
    assert!(builtin.contains("has no use for files"), "{builtin}");
    let ann =
        WorkerProcess::start_with("ann", 1, &["--listen", "127.0.0.1:0", "--file-cache", "9"]);
    let small = told(&["--worker", ann.address(), "--file", "bin/tool", "--file", "data"]);
    assert!(small.contains("ann cannot take the job: its files take"), "{small}");
    assert!(small.contains("(widemap-worker --file-cache)"), "{small}");
}

#[test]
fn a_file_that_is_changed_meanwhile_ends_the_map_and_is_named() {
    let ground = Ground::new();
    // Nobody is there yet.
    let ann = WorkerProcess::start("ann", 1);
    let address = ann.address().to_owned();
    drop(ann);
    let map = MapProcess::start(ground.map(&["--worker", &address]), numbers(1..=3));
    map.says("waiting for a worker");
    ground.write("data/deep/words", "ill met!");
    let _ann = WorkerProcess::start_with("ann", 1, &["--listen", &address]);
    let done = map.finish().exits(3);
    assert!(
        done.stderr.contains("data/deep/words was changed while it was in use"),
        "{}",
        done.stderr
    );
    assert!(done.stdout.is_empty());
}

#[test]
fn a_map_with_another_file_is_another_map() {
    let ground = Ground::new();
    let journal = ["--local", "1", "--journal", "journal"];
    let done = run(ground.map(&journal), numbers(1..=3).as_bytes()).exits(0);
    assert_eq!(done.text(), GREETED);
    let again = [&journal[..], &["--resume"]].concat();
    assert_eq!(run(ground.map(&again), numbers(1..=3).as_bytes()).exits(0).text(), GREETED);
    ground.write("data/deep/words", "ill met");
    let refused = run(ground.map(&again), numbers(1..=3).as_bytes()).exits(2);
    assert!(refused.stderr.contains("--file: other files"), "{}", refused.stderr);
}

/// How much lies in the files of a coordinator's jobs, counted once.
fn kept_bytes(data: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut files = std::collections::BTreeMap::new();
    for job in std::fs::read_dir(data.join("jobs")).unwrap().flatten() {
        let Ok(entries) = std::fs::read_dir(job.path().join("files")) else { continue };
        files.extend(entries.flatten().map(|entry| {
            let metadata = entry.metadata().unwrap();
            (metadata.ino(), metadata.len())
        }));
    }
    files.values().sum()
}

#[test]
fn a_coordinator_keeps_files_with_the_job_once_for_all_jobs() {
    let ground = Ground::new();
    let ann = WorkerProcess::start("ann", 1);
    let data = ground.path("served");
    let serve = |address: &str| {
        let data = data.to_str().unwrap();
        let words = ["serve", "--listen", address, "--data", data, "--no-mdns"];
        let mut command = widemap(&words);
        command.args(["--worker", ann.address(), "--timers", SHORT]);
        WorkerProcess::spawn(command)
    };
    let mut service = serve("127.0.0.1:0");
    let address = service.address().to_owned();
    let at = ["--coordinator", address.as_str()];
    let files = ["--file", "bin/tool", "--file", "data"];
    let job = |command: &[&str]| {
        let words = [&["submit"], &at[..], &files, &["--"], command].concat();
        let id = run(ground.here(&words), numbers(1..=3).as_bytes()).exits(0).text().to_owned();
        id.trim().to_owned()
    };
    let gate = ground.path("gate");
    let waiting = format!("while test ! -e {}; do sleep 0.05; done; bin/tool $1", gate.display());
    let first = job(&["sh", "-c", &waiting, "sh"]);
    let second = job(&["bin/tool"]);
    let once = kept_bytes(&data);
    assert_eq!(once, 8 + std::fs::metadata(ground.path("bin/tool")).unwrap().len());
    // What was handed in is the coordinator's: what becomes of the files here is nothing to it.
    std::fs::remove_dir_all(ground.path("data/deep")).unwrap();
    service.kill();
    let service = serve(&address);
    std::fs::write(&gate, "").unwrap();
    for id in [&first, &second] {
        let done = run(ground.here(&[&["results"], &at[..], &[id]].concat()), b"").exits(0);
        assert_eq!(done.text(), GREETED);
    }
    // A worker that comes only now gets them from the coordinator's disk.
    let checked = run(widemap(&["journal", "check", data.to_str().unwrap()]), b"").exits(0);
    assert!(checked.text().contains("sound"), "{}", checked.text());
    let prune = |id: &str| {
        let _ = run(ground.here(&[&["jobs", "prune"], &at[..], &[id]].concat()), b"").exits(0);
    };
    prune(&first);
    assert_eq!(kept_bytes(&data), once);
    ground.write("data/words", "");
    prune(&second);
    assert_eq!(kept_bytes(&data), 0);
    drop(service);
}

#[test]
fn what_is_damaged_of_a_jobs_files_is_found_and_never_run() {
    let ground = Ground::new();
    let data = ground.path("served");
    let words = ["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap(), "--no-mdns"];
    let mut serve = widemap(&words);
    // No worker yet.
    serve.args(["--workers-file", ground.path("workers").to_str().unwrap()]);
    ground.write("workers", "");
    let service = WorkerProcess::spawn(serve);
    let at = ["--coordinator", service.address()];
    let words = [&["submit"], &at[..], &["--file", "bin/tool", "--", "bin/tool"]].concat();
    let job = run(ground.here(&words), b"1\n").exits(0).text().trim().to_owned();
    let files: Vec<_> = std::fs::read_dir(data.join("jobs/1/files")).unwrap().flatten().collect();
    let mut content = std::fs::read(files[0].path()).unwrap();
    content[12] ^= 1;
    std::fs::write(files[0].path(), content).unwrap();
    let checked = run(widemap(&["journal", "check", data.to_str().unwrap()]), b"").exits(3);
    assert!(checked.text().contains("it is not what it was"), "{}", checked.text());
    let ann = WorkerProcess::start("ann", 1);
    ground.write("workers", &format!("{}\n", ann.address()));
    let done = run(ground.here(&[&["results"], &at[..], &[&job]].concat()), b"").exits(3);
    assert!(done.stderr.contains("was changed while it was in use"), "{}", done.stderr);
}
