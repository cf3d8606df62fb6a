//! The journal as the service uses it: jobs are handed in to it, their results are read from it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use widemap_common::artifact::Digest;
use widemap_common::ids::{CoordinatorId, Epoch, JobId};
use widemap_common::spec::JobSpec;
use widemap_common::wall_clock;
use widemap_proto::artifact::ArtifactPart;
use widemap_proto::jobs::{Ended, JobStatus, Position, Prune, Pruned, Submission};

use super::ledger::{Draft, Ledger, LedgerError, NewJob, Next, Shelf, ShelfCursor};
use super::registry::{JobEntry, Registry};
use super::shared::SharedArtifacts;
use crate::data::{Artifact, Artifacts, failures_file_line};
use crate::journal::{self, JobHeader, JournalError, KeptJob, Medium, Store, Writer};

/// See the file's head.
pub(crate) struct Kept {
    store: Arc<Store>,
    writer: Arc<Writer>,
    shelves: Mutex<HashMap<JobId, Known>>,
    shared: Mutex<SharedArtifacts>,
    directory: PathBuf,
}

#[derive(Clone)]
struct Known {
    shelf: Arc<journal::Shelf>,
    /// As it was asked for last; on its way to the disk, perhaps.
    is_paused: bool,
    directory_bytes: u64,
    /// Whether it has begun and is not accepted.
    is_coming: bool,
}

impl Kept {
    /// Opens a journal with a writer, and registers the jobs in it. What a person should know of them
    /// comes back.
    ///
    /// # Errors
    /// If another coordinator has it, it cannot be read, or a job in it is of another build.
    pub(crate) fn open(
        medium: Arc<dyn Medium>,
        directory: &Path,
        writer: Writer,
        registry: &Registry,
    ) -> Result<(Self, Vec<String>), JournalError> {
        let is_ordered = |header: &JobHeader| {
            Submission::from_bytes(header.submission.clone())
                .is_ok_and(|submission| !submission.output.unordered)
        };
        let (store, jobs) = Store::open(medium, directory, is_ordered)?;
        let kept = Self {
            store: Arc::new(store),
            writer: Arc::new(writer),
            shelves: Mutex::default(),
            shared: Mutex::default(),
            directory: directory.to_owned(),
        };
        let mut remarks = Vec::new();
        for mut job in jobs {
            remarks.append(&mut job.remarks);
            let path = kept.job_directory(job.id);
            let submission = Submission::from_bytes(job.header.submission.clone());
            let submission = submission.map_err(|error| JournalError::Version {
                path: path.join("job"),
                found: format!("of another build ({error})"),
                wanted: "what this build writes".to_owned(),
            })?;
            let ended = job.shelf.ended();
            if let Some(Err(error)) = ended.clone().map(Ended::from_bytes) {
                let (found, wanted) = (format!("of another build ({error})"), "its own".to_owned());
                return Err(JournalError::Version { path: path.join("facts"), found, wanted });
            }
            if ended.is_none() {
                job.write_with(&kept.writer);
            }
            kept.shared().add(job.id, submission.spec.artifacts());
            registry.insert(Arc::new(kept.entry(&job, submission)));
        }
        Ok((kept, remarks))
    }

    /// Which coordinator this is, over all of its lives.
    pub(crate) fn coordinator(&self) -> CoordinatorId {
        self.store.coordinator()
    }

    /// Which life this is.
    pub(crate) fn epoch(&self) -> Epoch {
        self.store.epoch()
    }

    /// The same for those who hand jobs in.
    pub(crate) fn ledger(self: &Arc<Self>) -> Arc<dyn Ledger> {
        Arc::new(KeptLedger(Arc::clone(self)))
    }

    /// What writes.
    pub(crate) fn writer(&self) -> Arc<Writer> {
        Arc::clone(&self.writer)
    }

    /// What is durable of a job.
    pub(crate) fn shelf(&self, job: JobId) -> Option<Arc<journal::Shelf>> {
        self.lock().get(&job).map(|known| Arc::clone(&known.shelf))
    }

    /// Whether a job is to be paused.
    pub(crate) fn is_paused(&self, job: JobId) -> bool {
        self.lock().get(&job).is_some_and(|known| known.is_paused)
    }

    /// A job is to be paused, or to go on.
    pub(crate) fn pause(&self, job: JobId, paused: bool) {
        if let Some(known) = self.lock().get_mut(&job) {
            known.is_paused = paused;
        }
    }

    /// Removes jobs that have ended, for good. Waits for the disk. Beside what was removed comes why not
    /// all of it was.
    pub(crate) fn prune(&self, registry: &Registry, prune: &Prune) -> (Pruned, Option<String>) {
        let mut pruned = Pruned::default();
        let now = wall_clock::unix_ms().unwrap_or_default();
        for entry in registry.all() {
            let wanted = prune.jobs.is_empty() || prune.jobs.contains(&entry.id);
            let Some(ended) = entry.ended().filter(|_| wanted) else { continue };
            let known_ms = ended.ending.ended_ms.max(entry.accepted_ms());
            let ago = Duration::from_millis(now.saturating_sub(known_ms));
            if ago < prune.ended_before {
                continue;
            }
            let freed_bytes = self.job_bytes(entry.id) + self.shared().bytes_of(entry.id);
            if let Err(error) = self.store.remove(entry.id) {
                return (pruned, Some(error.to_string()));
            }
            registry.remove(entry.id);
            self.lock().remove(&entry.id);
            self.shared().remove(entry.id);
            pruned.jobs.push(entry.id);
            pruned.freed_bytes += freed_bytes;
        }
        (pruned, None)
    }

    /// Removes a job that had begun, and was given up before it was accepted. Waits for the disk.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(crate) fn discard(&self, job: JobId) -> Result<(), JournalError> {
        self.lock().remove(&job);
        self.store.remove(job)
    }

    /// Lets a job that is new be written and read.
    fn enter(&self, mut job: KeptJob, is_coming: bool) -> NewJob {
        job.write_with(&self.writer);
        let known = Known {
            shelf: Arc::clone(&job.shelf),
            is_paused: false,
            directory_bytes: job.input_bytes,
            is_coming,
        };
        self.lock().insert(job.id, known);
        let input = job.input.unwrap_or_default();
        NewJob { id: job.id, input, shelf: Arc::new(KeptShelf(job.shelf)) }
    }

    /// What a job brings along.
    pub(crate) fn artifacts(&self, job: JobId, spec: &JobSpec) -> Artifacts {
        let directory = self.job_directory(job);
        let artifact = |(digest, bytes)| {
            let path = journal::artifact_path(&directory, digest);
            Artifact { digest, bytes, path }
        };
        spec.artifacts().into_iter().map(artifact).collect()
    }

    fn job_directory(&self, job: JobId) -> PathBuf {
        self.directory.join("jobs").join(job.0.to_string())
    }

    fn entry(&self, job: &KeptJob, submission: Submission) -> JobEntry {
        let known = Known {
            shelf: Arc::clone(&job.shelf),
            is_paused: job.shelf.is_paused(),
            directory_bytes: job.input_bytes,
            is_coming: false,
        };
        self.lock().insert(job.id, known);
        JobEntry {
            id: job.id,
            submission,
            created_ms: job.header.created_ms,
            input: job.input.clone(),
            input_bytes: AtomicU64::new(job.input_bytes),
            arriving: None,
            accepted_ms: AtomicU64::new(0),
            shelf: Arc::new(KeptShelf(Arc::clone(&job.shelf))),
            status: watch::Sender::new(JobStatus::queued()),
        }
    }

    fn shared(&self) -> MutexGuard<'_, SharedArtifacts> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of one job on disk: its input and its results.
    fn job_bytes(&self, job: JobId) -> u64 {
        self.lock().get(&job).map_or(0, |known| known.directory_bytes + known.shelf.kept_bytes())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Known>> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The journal, for those who hand jobs in.
struct KeptLedger(Arc<Kept>);

impl Ledger for KeptLedger {
    fn begin(
        &self,
        submission: Bytes,
        submit_key: Option<&str>,
        created_ms: u64,
    ) -> Result<Box<dyn Draft>, LedgerError> {
        let parsed = Submission::from_bytes(submission.clone()).ok();
        let is_ordered = parsed.as_ref().is_some_and(|submission| !submission.output.unordered);
        let artifacts = parsed.map(|submission| submission.spec.artifacts()).unwrap_or_default();
        let submit_key = submit_key.map(str::to_owned);
        let header = JobHeader { submission, submit_key, created_ms };
        let mut draft = self.0.store.begin(header, is_ordered, true).map_err(failed)?;
        let known = |digest| {
            let holder = self.0.shared().holder(digest)?;
            Some(journal::artifact_path(&self.0.job_directory(holder), digest))
        };
        draft.need(artifacts.clone(), known).map_err(failed)?;
        let kept = Arc::clone(&self.0);
        Ok(Box::new(KeptDraft { draft, artifacts, kept, begun: None }))
    }

    fn has_artifact(&self, digest: Digest) -> bool {
        self.0.shared().holder(digest).is_some()
    }

    fn used_bytes(&self) -> u64 {
        let shelves = self.0.lock();
        let of_jobs = |known: &Known| known.directory_bytes + known.shelf.kept_bytes();
        // What a job that is coming has is counted where it comes in: its results do not refuse its items.
        let kept = shelves.values().filter(|known| !known.is_coming);
        kept.map(of_jobs).sum::<u64>() + self.0.shared().bytes()
    }
}

struct KeptDraft {
    draft: journal::Draft,
    artifacts: BTreeMap<Digest, u64>,
    kept: Arc<Kept>,
    /// The job, if it has begun.
    begun: Option<NewJob>,
}

impl Draft for KeptDraft {
    fn write_artifact(&mut self, part: &ArtifactPart) -> Result<(), LedgerError> {
        self.draft.write_artifact(part).map_err(failed)
    }

    fn write(&mut self, items: &[u8]) -> Result<(), LedgerError> {
        self.draft.write(items).map_err(failed)
    }

    fn begin(&mut self) -> Result<NewJob, LedgerError> {
        let job = self.kept.enter(self.draft.begin().map_err(failed)?, true);
        Ok(self.begun.insert(job).clone())
    }

    fn finish(self: Box<Self>) -> Result<NewJob, LedgerError> {
        let Self { draft, artifacts, kept, begun } = *self;
        let job = match begun {
            None => kept.enter(draft.finish().map_err(failed)?, false),
            Some(job) => {
                let input_bytes = draft.accept().map_err(failed)?;
                if let Some(known) = kept.lock().get_mut(&job.id) {
                    (known.directory_bytes, known.is_coming) = (input_bytes, false);
                }
                job
            }
        };
        kept.shared().add(job.id, artifacts);
        Ok(job)
    }
}

fn failed(error: JournalError) -> LedgerError {
    match error {
        JournalError::Artifact(what) => {
            LedgerError::Artifact(format!("of the files of the job, {what}"))
        }
        JournalError::MissingArtifacts => LedgerError::MissingArtifacts,
        JournalError::Full { path } => {
            LedgerError::Full { path, source: io::ErrorKind::StorageFull.into() }
        }
        JournalError::Io { path, source, .. } => LedgerError::Write { path, source },
        other => LedgerError::Write { path: PathBuf::new(), source: io::Error::other(other) },
    }
}

/// What is durable of a job, for those who collect it.
struct KeptShelf(Arc<journal::Shelf>);

impl Shelf for KeptShelf {
    fn output_bytes(&self) -> u64 {
        self.0.output_bytes()
    }

    fn failures(&self) -> u64 {
        self.0.failures()
    }

    fn stderr_pieces(&self) -> u64 {
        self.0.stderr_pieces()
    }

    fn ended(&self) -> Option<Bytes> {
        self.0.ended()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }

    fn read_from(&self, position: Position) -> Box<dyn ShelfCursor> {
        let Position { output_bytes, failures, stderr } = position;
        Box::new(KeptCursor(self.0.read_from(output_bytes, failures, stderr)))
    }
}

struct KeptCursor(journal::Cursor);

impl ShelfCursor for KeptCursor {
    fn next(&mut self) -> io::Result<Next> {
        Ok(match self.0.next()? {
            journal::Next::Output(bytes) => Next::Output(bytes),
            journal::Next::Stderr(lines) => Next::Stderr(lines),
            journal::Next::Failure(record, offset) => {
                let mut line = failures_file_line(&record, offset);
                line.pop();
                Next::Failure(line.into())
            }
            journal::Next::Wait => Next::Wait,
            journal::Next::End => Next::End,
        })
    }
}
