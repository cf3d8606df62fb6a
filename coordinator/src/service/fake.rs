//! What is kept on disk, for tests of everything above it: inputs in files, results in memory. It can be
//! made to refuse, and to take its time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};

use bytes::Bytes;
use tokio::sync::watch;
use widemap_common::artifact::Digest;
use widemap_common::ids::JobId;
use widemap_common::limits::PART_BYTES_MAX;
use widemap_proto::artifact::ArtifactPart;
use widemap_proto::jobs::{Ended, Ending, How, JobCounts, Position};

use super::ledger::{Draft, Ledger, LedgerError, NewJob, Next, Shelf, ShelfCursor};

/// A ledger whose files go with it.
pub(crate) struct FakeLedger {
    directory: tempfile::TempDir,
    last: Arc<AtomicU32>,
    used: Arc<AtomicU64>,
    /// Jobs become durable while it is open.
    pub(crate) gate: Arc<Gate>,
    shelves: Shelves,
}

type Shelves = Arc<Mutex<BTreeMap<JobId, Arc<FakeShelf>>>>;

/// Lets through, or holds up.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    is_shut: bool,
    waiting: usize,
}

struct FakeDraft {
    path: PathBuf,
    file: Option<File>,
    last: Arc<AtomicU32>,
    used: Arc<AtomicU64>,
    gate: Arc<Gate>,
    shelves: Shelves,
    /// The job, if it has begun.
    begun: Option<NewJob>,
}

/// Results in memory.
pub(crate) struct FakeShelf {
    itself: Weak<Self>,
    state: Mutex<Results>,
    changes: watch::Sender<u64>,
    /// Bytes of output that cursors have given.
    pub(crate) read_bytes: AtomicU64,
    /// What the next reads fail with.
    pub(crate) broken: Mutex<Option<String>>,
}

#[derive(Default)]
struct Results {
    output: Vec<u8>,
    /// Each with the length of the output before it.
    failures: Vec<(u64, Bytes)>,
    stderr: Vec<Bytes>,
    ended: Option<Bytes>,
}

struct FakeCursor {
    shelf: Arc<FakeShelf>,
    at: Position,
}

impl FakeLedger {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            last: Arc::default(),
            used: Arc::default(),
            gate: Arc::default(),
            shelves: Arc::default(),
        }
    }

    /// The results of a job.
    pub(crate) fn shelf(&self, job: JobId) -> Arc<FakeShelf> {
        self.shelves.lock().unwrap()[&job].clone()
    }

    /// What there is on the disk.
    pub(crate) fn files(&self) -> usize {
        self.directory.path().read_dir().unwrap().count()
    }
}

impl Gate {
    pub(crate) fn shut(&self) {
        self.state.lock().unwrap().is_shut = true;
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().is_shut = false;
        self.changed.notify_all();
    }

    /// How many it holds up.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().unwrap().waiting
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        let mut state = self.changed.wait_while(state, |state| state.is_shut).unwrap();
        state.waiting -= 1;
    }
}

impl Ledger for FakeLedger {
    fn begin(
        &self,
        _submission: Bytes,
        _submit_key: Option<&str>,
        _created_ms: u64,
    ) -> Result<Box<dyn Draft>, LedgerError> {
        let (file, path) = tempfile::Builder::new()
            .tempfile_in(self.directory.path())
            .and_then(|file| Ok(file.keep()?))
            .map_err(|source| LedgerError::Write { path: "a draft".into(), source })?;
        Ok(Box::new(FakeDraft {
            path,
            file: Some(file),
            last: self.last.clone(),
            used: self.used.clone(),
            gate: self.gate.clone(),
            shelves: self.shelves.clone(),
            begun: None,
        }))
    }

    fn has_artifact(&self, _: Digest) -> bool {
        false
    }

    fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }
}

impl Draft for FakeDraft {
    fn write_artifact(&mut self, _: &ArtifactPart) -> Result<(), LedgerError> {
        Ok(())
    }

    fn write(&mut self, items: &[u8]) -> Result<(), LedgerError> {
        let mut file = self.file.as_ref().expect("it is not finished");
        let full = |source| LedgerError::Full { path: self.path.clone(), source };
        if items == b"too much\n" {
            return Err(full(io::Error::from(io::ErrorKind::StorageFull)));
        }
        file.write_all(items).map_err(full)
    }

    fn begin(&mut self) -> Result<NewJob, LedgerError> {
        let job = self.number();
        Ok(self.begun.insert(job).clone())
    }

    fn finish(mut self: Box<Self>) -> Result<NewJob, LedgerError> {
        self.gate.pass();
        let file = self.file.take().expect("it is finished once");
        self.used.fetch_add(file.metadata().unwrap().len(), Ordering::SeqCst);
        Ok(match self.begun.take() {
            Some(job) => job,
            None => self.number(),
        })
    }
}

impl FakeDraft {
    fn number(&self) -> NewJob {
        let id = JobId(self.last.fetch_add(1, Ordering::SeqCst) + 1);
        let shelf = FakeShelf::new();
        self.shelves.lock().unwrap().insert(id, shelf.clone());
        NewJob { id, input: self.path.clone(), shelf }
    }
}

impl Drop for FakeDraft {
    fn drop(&mut self) {
        if self.file.is_some() {
            // Whether it is there is what the tests look at.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl FakeShelf {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new_cyclic(|itself| Self {
            itself: itself.clone(),
            state: Mutex::default(),
            changes: watch::Sender::new(0),
            read_bytes: AtomicU64::new(0),
            broken: Mutex::default(),
        })
    }

    pub(crate) fn push(&self, output: &[u8]) {
        self.change(|results| results.output.extend_from_slice(output));
    }

    pub(crate) fn fail(&self, record: impl Into<Bytes>) {
        self.change(|results| results.failures.push((results.output.len() as u64, record.into())));
    }

    pub(crate) fn end(&self, how: How, counts: JobCounts) {
        let ending = Ending { how, ended_ms: 2_000 };
        let ended = Ended { ending, counts, started_ms: Some(1_000) };
        self.change(|results| results.ended = Some(ended.to_bytes()));
    }

    /// Items write on their standard error.
    pub(crate) fn say(&self, lines: &'static str) {
        self.change(|results| results.stderr.push(Bytes::from_static(lines.as_bytes())));
    }

    fn change(&self, change: impl FnOnce(&mut Results)) {
        change(&mut self.state.lock().unwrap());
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Shelf for FakeShelf {
    fn output_bytes(&self) -> u64 {
        self.state.lock().unwrap().output.len() as u64
    }

    fn failures(&self) -> u64 {
        self.state.lock().unwrap().failures.len() as u64
    }

    fn stderr_pieces(&self) -> u64 {
        self.state.lock().unwrap().stderr.len() as u64
    }

    fn ended(&self) -> Option<Bytes> {
        self.state.lock().unwrap().ended.clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn read_from(&self, position: Position) -> Box<dyn ShelfCursor> {
        let shelf = self.itself.upgrade().expect("it is still called");
        Box::new(FakeCursor { shelf, at: position })
    }
}

impl ShelfCursor for FakeCursor {
    fn next(&mut self) -> io::Result<Next> {
        if let Some(why) = self.shelf.broken.lock().unwrap().clone() {
            return Err(io::Error::other(why));
        }
        let results = self.shelf.state.lock().unwrap();
        if let Some(lines) = results.stderr.get(usize::try_from(self.at.stderr).unwrap()) {
            self.at.stderr += 1;
            return Ok(Next::Stderr(lines.clone()));
        }
        let at = usize::try_from(self.at.output_bytes).unwrap();
        let failure = results.failures.get(usize::try_from(self.at.failures).unwrap());
        if let Some((place, record)) = failure
            && *place <= self.at.output_bytes
        {
            self.at.failures += 1;
            return Ok(Next::Failure(record.clone()));
        }
        let end = failure.map_or(results.output.len(), |(place, _)| *place as usize);
        if at < end {
            let part = &results.output[at..end.min(at + PART_BYTES_MAX)];
            self.at.output_bytes += part.len() as u64;
            self.shelf.read_bytes.fetch_add(part.len() as u64, Ordering::SeqCst);
            return Ok(Next::Output(Bytes::copy_from_slice(part)));
        }
        Ok(if results.ended.is_some() { Next::End } else { Next::Wait })
    }
}
