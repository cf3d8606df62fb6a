//! The thread that writes for all jobs. It takes what has gathered, renders it, writes the results of a
//! job as long pieces, makes them durable, then the facts that point to them, and only then lets anybody
//! know. An error is fatal: what was to come after it never counts.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use widemap_common::ids::{ItemRange, JobId};
use widemap_common::limits::{JOURNAL_COMMIT_BYTES, JOURNAL_COMMIT_MS, JOURNAL_QUEUE_BYTES};

use super::error::JournalError;
use super::files::{JobFiles, Written};
use super::medium::Medium;
use crate::data::Prefix;
use crate::failpoint;
use crate::thread::Thread;

/// Results as their owner has them, rendered by the writer's thread.
pub(crate) trait Payload: Send {
    /// Writes them; returns how many bytes they are in raw output.
    ///
    /// # Errors
    /// If they cannot be had any more, or not written.
    fn write_to(&mut self, to: &mut dyn Write) -> io::Result<u64>;

    /// What they hold in memory, in bytes.
    fn memory_bytes(&self) -> u64;
}

/// One thing to be made durable.
pub(crate) enum Entry {
    /// Items succeeded.
    Accepted { range: ItemRange, payload: Box<dyn Payload> },
    /// An item (a block) failed for good. `record` describes it; `payload` is what of it goes to the output.
    Failed { range: ItemRange, record: Vec<u8>, payload: Box<dyn Payload> },
    /// So much of the input was read, for a job whose items are not kept with it.
    Input(Prefix),
    /// Items have written these lines on their standard error: shown beside results, in no order with them.
    Stderr(Bytes),
    /// The job is paused, or goes on.
    Paused(bool),
    /// The job's last word: nothing comes after it.
    Ended(Bytes),
}

/// When an entry was handed over: later ones are greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ticket(u64);

/// What is durable. Only the writer makes one, and only after the disk has said so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Durable(u64);

impl Durable {
    /// Whether the entry is durable.
    pub(crate) fn covers(self, ticket: Ticket) -> bool {
        ticket.0 <= self.0
    }
}

/// See the file's head.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: Thread,
}

struct Shared {
    medium: Arc<dyn Medium>,
    /// Between two commits, unless there is much to be written.
    pause: Duration,
    queue: Mutex<Queue>,
    wake: Condvar,
    queued_bytes: AtomicU64,
    durable: AtomicU64,
    failed: AtomicBool,
    notify: Box<dyn Fn() + Send + Sync>,
    meter: Box<dyn Fn(Commit) + Send + Sync>,
}

/// What one commit cost, for whoever measures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commit {
    /// Facts and results.
    pub(crate) bytes: u64,
    /// From the first entry's taking to the last sync.
    pub(crate) took: Duration,
}

#[derive(Default)]
struct Queue {
    entries: Vec<(JobId, Entry)>,
    opened: Vec<(JobId, JobFiles)>,
    tickets: u64,
    is_closed: bool,
    error: Option<JournalError>,
}

/// What an entry costs beside its payload, roughly.
const OVERHEAD_BYTES: u64 = 128;

impl Writer {
    /// Starts the thread. `notify` is called, from it, when more is durable, or nothing can be any more;
    /// `meter` for each commit.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(crate) fn start(
        medium: Arc<dyn Medium>,
        notify: impl Fn() + Send + Sync + 'static,
        meter: impl Fn(Commit) + Send + Sync + 'static,
    ) -> Result<Self, JournalError> {
        Self::committing(medium, Duration::from_millis(JOURNAL_COMMIT_MS), notify, meter)
    }

    /// The same, with another pause between commits.
    pub(super) fn committing(
        medium: Arc<dyn Medium>,
        pause: Duration,
        notify: impl Fn() + Send + Sync + 'static,
        meter: impl Fn(Commit) + Send + Sync + 'static,
    ) -> Result<Self, JournalError> {
        let shared = Arc::new(Shared {
            medium,
            pause,
            queue: Mutex::default(),
            wake: Condvar::new(),
            queued_bytes: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            notify: Box::new(notify),
            meter: Box::new(meter),
        });
        let for_thread = Arc::clone(&shared);
        let thread =
            Thread::start("journal", move || for_thread.run()).map_err(JournalError::Start)?;
        Ok(Self { shared, thread })
    }

    /// Entries of this job will come.
    pub(super) fn open(&self, job: JobId, files: JobFiles) {
        self.shared.lock().opened.push((job, files));
    }

    /// Whether more should be handed over now.
    pub(crate) fn has_room(&self) -> bool {
        self.shared.queued_bytes.load(Ordering::Acquire) < JOURNAL_QUEUE_BYTES
    }

    /// Bytes that are handed over and not durable.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.shared.queued_bytes.load(Ordering::Acquire)
    }

    /// Hands an entry over. Never waits.
    pub(crate) fn append(&self, job: JobId, entry: Entry) -> Ticket {
        self.shared.queued_bytes.fetch_add(entry.memory_bytes(), Ordering::AcqRel);
        let mut queue = self.shared.lock();
        let is_first = queue.entries.is_empty();
        queue.entries.push((job, entry));
        queue.tickets += 1;
        let ticket = Ticket(queue.tickets);
        drop(queue);
        if is_first || !self.has_room() {
            self.shared.wake.notify_one();
        }
        ticket
    }

    /// What is durable by now.
    pub(crate) fn durable(&self) -> Durable {
        Durable(self.shared.durable.load(Ordering::Acquire))
    }

    /// Whether everything that was handed over is durable.
    pub(crate) fn is_idle(&self) -> bool {
        let tickets = self.shared.lock().tickets;
        self.durable().covers(Ticket(tickets))
    }

    /// Why nothing can be made durable any more, told once.
    pub(crate) fn take_error(&self) -> Option<JournalError> {
        if !self.shared.failed.load(Ordering::Acquire) {
            return None;
        }
        self.shared.lock().error.take()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.wake.notify_one();
        self.thread.leave();
    }
}

impl Entry {
    fn memory_bytes(&self) -> u64 {
        OVERHEAD_BYTES
            + match self {
                Self::Accepted { payload, .. } => payload.memory_bytes(),
                Self::Failed { record, payload, .. } => {
                    record.len() as u64 + payload.memory_bytes()
                }
                Self::Ended(bytes) | Self::Stderr(bytes) => bytes.len() as u64,
                Self::Input(_) | Self::Paused(_) => 0,
            }
    }

    /// What entries of a job are sorted by: facts about the whole job come last.
    fn place(&self) -> u64 {
        match self {
            Self::Accepted { range, .. } | Self::Failed { range, .. } => range.first,
            Self::Input(_) | Self::Stderr(_) | Self::Paused(_) | Self::Ended(_) => u64::MAX,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut jobs: BTreeMap<JobId, JobFiles> = BTreeMap::new();
        let mut last_commit = Instant::now();
        while let Some((entries, tickets)) = self.take(&mut jobs, last_commit) {
            failpoint::hit("journal.taken");
            let bytes: u64 = entries.iter().map(|(_, entry)| entry.memory_bytes()).sum();
            last_commit = Instant::now();
            if !self.failed.load(Ordering::Acquire) {
                match self.commit(&mut jobs, entries) {
                    Ok(written) => {
                        self.durable.store(tickets, Ordering::Release);
                        let took = last_commit.elapsed();
                        (self.meter)(Commit { bytes: written, took });
                    }
                    Err(error) => {
                        self.lock().error = Some(error);
                        self.failed.store(true, Ordering::Release);
                    }
                }
            }
            self.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
            (self.notify)();
        }
    }

    /// Waits for entries, and for a moment longer for more of them unless it is long since the last
    /// commit. `None` once nobody will hand anything over.
    fn take(
        &self,
        jobs: &mut BTreeMap<JobId, JobFiles>,
        last_commit: Instant,
    ) -> Option<(Vec<(JobId, Entry)>, u64)> {
        let idle = |queue: &mut Queue| queue.entries.is_empty() && !queue.is_closed;
        let mut queue =
            self.wake.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let due = last_commit + self.pause;
        loop {
            let is_enough = self.queued_bytes.load(Ordering::Acquire) >= JOURNAL_COMMIT_BYTES;
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() || is_enough || queue.is_closed {
                break;
            }
            queue = self.wake.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        jobs.extend(queue.opened.drain(..));
        if queue.entries.is_empty() {
            return None;
        }
        Some((std::mem::take(&mut queue.entries), queue.tickets))
    }

    fn commit(
        &self,
        jobs: &mut BTreeMap<JobId, JobFiles>,
        mut entries: Vec<(JobId, Entry)>,
    ) -> Result<u64, JournalError> {
        // Stable: facts about a whole job stay in their order.
        entries.sort_by_key(|(job, entry)| (*job, entry.place()));
        let mut bytes = 0;
        let mut all = Vec::new();
        let mut entries = entries.into_iter().peekable();
        while let Some(&(job, _)) = entries.peek() {
            let own = std::iter::from_fn(|| entries.next_if(|(of, _)| *of == job));
            let files = jobs.get_mut(&job).expect("a job is opened before it has entries");
            let own = own.map(|(_, entry)| entry);
            all.push(files.write_payload(&*self.medium, job, own)?);
        }
        failpoint::hit("journal.payload-written");
        for Written { job, .. } in &all {
            jobs.get_mut(job).expect("it was just there").sync_payload()?;
        }
        failpoint::hit("journal.payload-synced");
        let mut records = Vec::new();
        for written in &mut all {
            let files = jobs.get_mut(&written.job).expect("it was just there");
            bytes += written.finals.iter().map(|(_, entry)| entry.extent.length).sum::<u64>();
            bytes += files.write_facts(written, &mut records)?;
        }
        failpoint::hit("journal.facts-written");
        for Written { job, .. } in &all {
            jobs.get_mut(job).expect("it was just there").sync_facts()?;
        }
        failpoint::hit("journal.facts-synced");
        for written in all {
            let files = jobs.get_mut(&written.job).expect("it was just there");
            let job = written.job;
            if files.publish(written) {
                jobs.remove(&job);
            }
        }
        failpoint::hit("journal.published");
        Ok(bytes)
    }
}
