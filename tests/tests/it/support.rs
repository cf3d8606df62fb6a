//! What the stories of faults share: lists, places, counters.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use widemap_tests::{Host, Run, WorkerProcess, announced_worker, run, widemap};

/// The timers of a session, short enough for a test to see all of them run out: a silent cut is
/// noticed after a second, a lease ends two seconds later.
pub(crate) const SHORT: &str = "heartbeat_ms=100,keepalive_ms=500,keepalive_timeout_ms=500,\
                                connect_ms=500,redial_max_ms=300,lease_ms=2000,lease_margin_ms=400";

/// The list of these numbers, a line each.
pub(crate) fn numbers(numbers: RangeInclusive<u32>) -> String {
    numbers.map(|n| format!("{n}\n")).collect()
}

/// `--worker` for each.
pub(crate) fn places<'a>(workers: &[&'a WorkerProcess]) -> Vec<&'a str> {
    workers.iter().flat_map(|worker| ["--worker", worker.address()]).collect()
}

/// A file to which items append lines, to be counted.
pub(crate) struct Log {
    path: PathBuf,
    _directory: TempDir,
}

impl Log {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { path: directory.path().join("log"), _directory: directory }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The command of an item: it notes itself, does something, and prints itself.
    pub(crate) fn noting(&self, what: &str) -> [String; 4] {
        let script = format!("echo $1 >> {}; {what}; echo $1", self.path.display());
        ["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()]
    }

    /// The same, where it notes who runs it.
    pub(crate) fn naming(&self, what: &str) -> [String; 4] {
        let script = format!("echo $USER >> {}; {what}; echo $1", self.path.display());
        ["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()]
    }

    /// How many items each has begun that was noted.
    pub(crate) fn names(&self) -> BTreeMap<String, usize> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let mut names = BTreeMap::new();
        for line in text.lines() {
            *names.entry(line.to_owned()).or_default() += 1;
        }
        names
    }

    /// How many items have begun, counting each of their runs.
    pub(crate) fn runs(&self) -> usize {
        std::fs::read_to_string(&self.path).map_or(0, |text| text.lines().count())
    }
}

/// The key of a cluster, in a file of its own.
pub(crate) struct Key {
    path: String,
    directory: TempDir,
}

impl Key {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key").display().to_string();
        let _ = run(widemap(&["key", "new", &path]), b"").exits(0);
        Self { path, directory }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// What its cluster is called.
    pub(crate) fn cluster(&self) -> String {
        let shown = run(widemap(&["key", "show", "--key", &self.path]), b"").exits(0);
        shown.text().trim().to_owned()
    }

    /// A worker's bundle made of it.
    pub(crate) fn bundle(&self) -> PathBuf {
        let bundle = self.directory.path().join("bundle");
        let file = bundle.to_str().unwrap();
        let command = widemap(&["key", "worker-bundle", file, "--key", &self.path]);
        let _ = run(command, b"").exits(0);
        bundle
    }
}

/// A worker that announces itself on its host and tells its jobs its name.
pub(crate) fn announced(
    host: &Host,
    name: &str,
    slots: u32,
    key: &Key,
    options: &[&str],
) -> WorkerProcess {
    let options = [&["--key", key.path()], options].concat();
    let mut command = announced_worker(name, slots, &options);
    command.env("USER", name);
    WorkerProcess::spawn(host.inside(&command))
}

/// A `map` of these words.
pub(crate) fn map<S: AsRef<str>>(options: &[&[&str]], command: &[S]) -> std::process::Command {
    let options = options.concat();
    let command = command.iter().map(AsRef::as_ref);
    let words: Vec<_> = ["map"].into_iter().chain(options).chain(["--"]).chain(command).collect();
    widemap_tests::widemap(&words)
}

/// The last number before a word of the summary: how many were `lost`, `retried`.
pub(crate) fn counted(done: &Run, word: &str) -> u64 {
    let summary = done.stderr.lines().last().unwrap_or_default();
    let words: Vec<_> = summary.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
    let place = words.iter().position(|&each| each == word);
    let number = place.and_then(|place| words[place - 1].parse().ok());
    number.unwrap_or_else(|| panic!("no number of `{word}` in `{summary}`"))
}
