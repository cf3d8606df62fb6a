//! The thread that writes for all jobs. It takes what has gathered, renders it, writes the results of a
//! job as long pieces, makes them durable, then the facts that point to them, and only then lets anybody
//! know. An error is fatal: what was to come after it never counts.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use widemap_common::ids::{ItemRange, JobId};
use widemap_common::limits::{
    JOURNAL_COMMIT_BYTES, JOURNAL_COMMIT_MS, JOURNAL_QUEUE_BYTES, JOURNAL_RECORD_BYTES,
    JOURNAL_SEGMENT_BYTES,
};

use super::error::JournalError;
use super::extent::Segment;
use super::fact::{self, Fact};
use super::medium::{Medium, MediumFile};
use super::record;
use super::shelf::{FACTS, Final, Shelf, segment_path};
use crate::data::Prefix;
use crate::failpoint;

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

/// What a job's facts are written to.
pub(super) struct JobFiles {
    pub(super) shelf: Arc<Shelf>,
    pub(super) facts: Box<dyn MediumFile>,
    /// The length of the log, and the number of its next record.
    pub(super) facts_end: u64,
    pub(super) sequence: u64,
    pub(super) next_segment: u32,
    pub(super) segment: Option<Segment>,
}

/// See the file's head.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
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
        let thread = std::thread::Builder::new().name("journal".into());
        let thread = thread.spawn(move || for_thread.run()).map_err(JournalError::Start)?;
        Ok(Self { shared, thread: Some(thread) })
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
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; a drop must not panic again.
            let _ = thread.join();
        }
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

/// What a commit has written for one job and publishes once it is durable.
struct Written {
    job: JobId,
    finals: Vec<(u64, Final)>,
    /// Of those that failed, how.
    descriptions: BTreeMap<usize, Vec<u8>>,
    others: Vec<Fact>,
    /// Pieces of standard error, and, once they are written, where.
    stderr: Vec<Bytes>,
    stderr_places: Vec<(u64, u32)>,
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

/// A piece that is being gathered.
#[derive(Clone, Copy)]
struct Piece {
    first: u64,
    items: u32,
    offset: u64,
    raw_bytes: u64,
}

impl JobFiles {
    fn segment_error(&self, source: io::Error) -> JournalError {
        let number = self.segment.as_ref().map_or(self.next_segment, |segment| segment.number);
        JournalError::io("write", &segment_path(self.shelf.directory(), number), source)
    }

    fn facts_path(&self) -> PathBuf {
        self.shelf.directory().join(FACTS)
    }

    fn write_payload(
        &mut self,
        medium: &dyn Medium,
        job: JobId,
        entries: impl Iterator<Item = Entry>,
    ) -> Result<Written, JournalError> {
        let mut written = Written::of(job);
        let mut piece: Option<Piece> = None;
        for entry in entries {
            let (range, mut payload, record) = match entry {
                Entry::Accepted { range, payload } => (range, payload, None),
                Entry::Failed { range, record, payload } => (range, payload, Some(record)),
                Entry::Input(prefix) => {
                    written.others.push(Fact::Input(prefix));
                    continue;
                }
                Entry::Stderr(lines) => {
                    written.stderr.push(lines);
                    continue;
                }
                Entry::Paused(paused) => {
                    written.others.push(Fact::Paused(paused));
                    continue;
                }
                Entry::Ended(last) => {
                    written.others.push(Fact::Ended(last));
                    continue;
                }
            };
            let joins = record.is_none()
                && piece.as_ref().is_some_and(|piece| {
                    piece.first + u64::from(piece.items) == range.first
                        && piece.items.checked_add(range.items).is_some()
                });
            if !joins {
                self.end_piece(piece.take(), &mut written);
                let segment = self.segment(medium)?;
                let offset = segment.end();
                piece = Some(Piece { first: range.first, items: 0, offset, raw_bytes: 0 });
            }
            let segment = self.segment.as_mut().expect("it was just opened");
            let raw_bytes =
                payload.write_to(segment).map_err(|source| self.segment_error(source))?;
            let open = piece.as_mut().expect("it was just begun");
            open.items += range.items;
            open.raw_bytes += raw_bytes;
            if let Some(record) = record {
                self.end_piece(piece.take(), &mut written);
                written.describe(record);
            }
        }
        self.end_piece(piece, &mut written);
        Ok(written)
    }

    fn end_piece(&mut self, piece: Option<Piece>, written: &mut Written) {
        let Some(Piece { first, items, offset, raw_bytes }) = piece else { return };
        let segment = self.segment.as_mut().expect("a piece lies in a segment");
        let extent = segment.extent(offset, raw_bytes);
        written.finals.push((first, Final { items, extent, failure: None }));
    }

    /// The segment that is written to; another one if it is long enough.
    fn segment(&mut self, medium: &dyn Medium) -> Result<&mut Segment, JournalError> {
        let is_long = |segment: &mut Segment| segment.end() >= JOURNAL_SEGMENT_BYTES;
        if self.segment.as_mut().is_some_and(is_long) {
            self.sync_payload()?;
            self.segment = None;
        }
        if self.segment.is_none() {
            let directory = self.shelf.directory();
            let path = segment_path(directory, self.next_segment);
            let file = medium.create(&path).map_err(|e| JournalError::io("make", &path, e))?;
            let synced = medium.sync_directory(directory);
            synced.map_err(|e| JournalError::io("make durable", directory, e))?;
            self.segment = Some(Segment::new(self.next_segment, file));
            self.next_segment += 1;
        }
        Ok(self.segment.as_mut().expect("it was just opened"))
    }

    fn sync_payload(&mut self) -> Result<(), JournalError> {
        let Some(segment) = &mut self.segment else { return Ok(()) };
        let done = segment.hand_over().and_then(|()| segment.file.sync());
        done.map_err(|source| self.segment_error(source))
    }

    /// Writes the facts as one record, so that they are there all or not at all; more than one only if
    /// there are very many.
    fn write_facts(
        &mut self,
        written: &mut Written,
        log: &mut Vec<u8>,
    ) -> Result<u64, JournalError> {
        log.clear();
        let mut body = Vec::new();
        let mut places: Vec<(usize, u64)> = Vec::new();
        let end = |body: &mut Vec<u8>, log: &mut Vec<u8>, sequence: &mut u64| {
            record::push(log, *sequence, body);
            *sequence += 1;
            body.clear();
        };
        // What was read comes before what came of it.
        let (inputs, others): (Vec<_>, Vec<_>) =
            written.others.iter().partition(|fact| matches!(fact, Fact::Input(_)));
        inputs.into_iter().for_each(|fact| fact::push_other(&mut body, fact));
        for (index, (first, entry)) in written.finals.iter().enumerate() {
            let description = written.descriptions.get(&index);
            let failure = description.map(Vec::as_slice);
            let described =
                fact::push_final(&mut body, *first, entry.items, &entry.extent, failure);
            if let Some(described) = described {
                let before = self.facts_end + (log.len() + record::HEAD_BYTES) as u64;
                places.push((index, before + u64::from(described.at)));
            }
            if body.len() >= JOURNAL_RECORD_BYTES {
                end(&mut body, log, &mut self.sequence);
            }
        }
        for lines in &written.stderr {
            let told = fact::push_stderr(&mut body, lines);
            let before = self.facts_end + (log.len() + record::HEAD_BYTES) as u64;
            written.stderr_places.push((before + u64::from(told.at), told.length));
        }
        others.into_iter().for_each(|fact| fact::push_other(&mut body, fact));
        if !body.is_empty() {
            end(&mut body, log, &mut self.sequence);
        }
        for (index, at) in places {
            let length = written.descriptions[&index].len();
            let length = u32::try_from(length).expect("a failure is a line");
            written.finals[index].1.failure = Some((at, length));
        }
        let path = self.facts_path();
        self.facts
            .write_at(log, self.facts_end)
            .map_err(|source| JournalError::io("write", &path, source))?;
        self.facts_end += log.len() as u64;
        Ok(log.len() as u64)
    }

    fn sync_facts(&self) -> Result<(), JournalError> {
        let path = self.facts_path();
        self.facts.sync().map_err(|source| JournalError::io("make durable", &path, source))
    }

    /// Lets readers have it. Whether that was all.
    fn publish(&mut self, written: Written) -> bool {
        let mut is_over = false;
        for (first, entry) in written.finals {
            self.shelf.put(first, entry);
        }
        for fact in written.others {
            match fact {
                Fact::Input(prefix) => self.shelf.add_input(prefix),
                Fact::Paused(paused) => self.shelf.set_paused(paused),
                Fact::Ended(last) => {
                    self.shelf.end(last);
                    is_over = true;
                }
                Fact::Final { .. } | Fact::Stderr(_) => {}
            }
        }
        for (at, length) in written.stderr_places {
            self.shelf.add_stderr(at, length);
        }
        self.shelf.tell();
        is_over
    }
}

impl Written {
    fn of(job: JobId) -> Self {
        Self {
            job,
            finals: Vec::new(),
            descriptions: BTreeMap::new(),
            others: Vec::new(),
            stderr: Vec::new(),
            stderr_places: Vec::new(),
        }
    }

    /// The last item that is final has failed: how.
    fn describe(&mut self, record: Vec<u8>) {
        self.descriptions.insert(self.finals.len() - 1, record);
    }
}
