//! The part of the reorder buffer that lies on disk: one unnamed file, written by a thread of its
//! own, so that the driver never waits for the disk. What is on its way counts as memory until it
//! has arrived, and stays there if it can not arrive: nothing is lost to a full disk.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::io::Errno;
use widemap_common::limits::SPILL_QUEUE_BYTES;

use crate::thread::Thread;

/// Why results could not be kept on disk.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// The file could not be made.
    #[error(
        "cannot make a file for waiting results in {}: {source} (TMPDIR names another directory)",
        directory.display()
    )]
    Create {
        /// Where.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk is full.
    #[error(
        "the disk of {} is full: results that wait for an earlier one do not fit (TMPDIR names \
         another directory)",
        directory.display()
    )]
    NoSpace {
        /// Where.
        directory: PathBuf,
    },
    /// A write failed.
    #[error("cannot write waiting results to {}: {source}", directory.display())]
    Write {
        /// Where.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Called from the thread when a write has ended, well or not.
pub(super) type Notify = Arc<dyn Fn() + Send + Sync>;

/// The spill as its owner, the merge, sees it. The file and the thread exist from the first use on.
pub(super) struct Spill {
    directory: PathBuf,
    bytes_max: u64,
    /// Bytes on their way from which on no more is sent.
    queue_bytes_max: u64,
    notify: Notify,
    state: State,
}

/// The work of a spill that has no thread, done by hand.
pub(super) struct SpillSteps {
    shared: Arc<Shared>,
}

enum State {
    Unused,
    Open(Open),
    /// It could not be made.
    Failed(Option<SpillError>),
}

struct Open {
    shared: Arc<Shared>,
    /// Where the next extent begins.
    end: u64,
    thread: Thread,
}

/// A piece of the file. Its last owner gives the space back, in whatever thread that is.
pub(super) struct Extent {
    offset: u64,
    length: u64,
    payload: Mutex<Payload>,
    shared: Arc<Shared>,
}

enum Payload {
    /// Not written yet, or never.
    Memory(Vec<Bytes>),
    File,
}

struct Shared {
    file: File,
    directory: PathBuf,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Bytes of extents that lie in memory, and of all extents.
    memory_bytes: AtomicU64,
    live_bytes: AtomicU64,
    /// Whether space in the middle can be given back to the file system.
    can_punch: AtomicBool,
    failed: AtomicBool,
    notify: Notify,
}

#[derive(Default)]
struct Queue {
    writes: VecDeque<Arc<Extent>>,
    freed: Vec<Range<u64>>,
    error: Option<SpillError>,
    closed: bool,
}

impl Spill {
    pub(super) fn new(directory: PathBuf, bytes_max: u64, notify: Notify) -> Self {
        let queue_bytes_max = SPILL_QUEUE_BYTES;
        Self { directory, bytes_max, queue_bytes_max, notify, state: State::Unused }
    }

    /// A spill without a thread in a file that is there already, and what does its work instead.
    pub(super) fn stepped(
        file: File,
        bytes_max: u64,
        queue_bytes_max: u64,
        notify: Notify,
    ) -> (Self, SpillSteps) {
        let directory = PathBuf::from("/memory");
        let shared = Arc::new(Shared::new(file, directory.clone(), Arc::clone(&notify)));
        let steps = SpillSteps { shared: Arc::clone(&shared) };
        let state = State::Open(Open { shared, end: 0, thread: Thread::default() });
        (Self { directory, bytes_max, queue_bytes_max, notify, state }, steps)
    }

    /// A spill in a file that is there already: how tests meet a full disk.
    #[cfg(test)]
    pub(super) fn with_file(file: File, bytes_max: u64, notify: Notify) -> Self {
        let directory = PathBuf::from("/tests");
        let open = Open::start(file, directory.clone(), Arc::clone(&notify)).unwrap();
        let state = State::Open(open);
        Self { directory, bytes_max, queue_bytes_max: SPILL_QUEUE_BYTES, notify, state }
    }

    /// Whether another extent can be put.
    pub(super) fn has_room(&self) -> bool {
        match &self.state {
            State::Unused => self.bytes_max > 0,
            State::Open(open) => {
                !open.shared.failed.load(Ordering::Acquire)
                    && self.file_bytes() < self.bytes_max
                    && self.memory_bytes() < self.queue_bytes_max
            }
            State::Failed(_) => false,
        }
    }

    /// Sends bytes to the file. Gives them back if there can be no file.
    pub(super) fn put(&mut self, payload: Vec<Bytes>) -> Result<Arc<Extent>, Vec<Bytes>> {
        if matches!(self.state, State::Unused) {
            self.state = match Open::create(&self.directory, &self.notify) {
                Ok(open) => State::Open(open),
                Err(error) => State::Failed(Some(error)),
            };
        }
        match &mut self.state {
            State::Open(open) => Ok(open.put(payload)),
            State::Unused | State::Failed(_) => Err(payload),
        }
    }

    /// Whether some bytes are on their way to the file and will arrive, or fail to.
    pub(super) fn is_writing(&self) -> bool {
        self.open().is_some_and(|open| {
            !open.shared.failed.load(Ordering::Acquire)
                && open.shared.memory_bytes.load(Ordering::Acquire) > 0
        })
    }

    /// Bytes on their way to the file, which still are in memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.open().map_or(0, |open| open.shared.memory_bytes.load(Ordering::Acquire))
    }

    /// Bytes of the file that are in use, or can not be used again yet.
    pub(super) fn file_bytes(&self) -> u64 {
        self.open().map_or(0, |open| {
            let live = open.shared.live_bytes.load(Ordering::Acquire);
            let gaps_are_free = open.shared.can_punch.load(Ordering::Relaxed);
            if live == 0 || gaps_are_free { live } else { open.end }
        })
    }

    /// Why nothing more can be written, told once.
    pub(super) fn take_error(&mut self) -> Option<SpillError> {
        match &mut self.state {
            State::Unused => None,
            State::Open(open) => open.shared.lock().error.take(),
            State::Failed(error) => error.take(),
        }
    }

    fn open(&self) -> Option<&Open> {
        match &self.state {
            State::Open(open) => Some(open),
            State::Unused | State::Failed(_) => None,
        }
    }
}

impl Open {
    fn create(directory: &Path, notify: &Notify) -> Result<Self, SpillError> {
        let failed = |source| SpillError::Create { directory: directory.to_owned(), source };
        let file = tempfile::tempfile_in(directory).map_err(failed)?;
        Self::start(file, directory.to_owned(), Arc::clone(notify)).map_err(failed)
    }

    fn start(file: File, directory: PathBuf, notify: Notify) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(file, directory, notify));
        let for_thread = Arc::clone(&shared);
        let thread = Thread::start("spill", move || for_thread.run())?;
        Ok(Self { shared, end: 0, thread })
    }

    fn put(&mut self, payload: Vec<Bytes>) -> Arc<Extent> {
        let length = payload.iter().map(|bytes| bytes.len() as u64).sum();
        if self.shared.live_bytes.load(Ordering::Acquire) == 0 {
            // Nothing is left of what was written: the file is used from its start again. The
            // thread frees what was given back before it writes what is queued now.
            self.end = 0;
        }
        let extent = Arc::new(Extent {
            offset: self.end,
            length,
            payload: Mutex::new(Payload::Memory(payload)),
            shared: Arc::clone(&self.shared),
        });
        self.end += length;
        self.shared.live_bytes.fetch_add(length, Ordering::AcqRel);
        self.shared.memory_bytes.fetch_add(length, Ordering::AcqRel);
        self.shared.lock().writes.push_back(Arc::clone(&extent));
        self.shared.wake.notify_one();
        extent
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
        self.thread.leave();
    }
}

impl Extent {
    /// Hands the bytes of `range`, counted from the extent's start, to `each` in order, a part at a
    /// time.
    pub(super) fn read<E: From<io::Error>>(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        const PART_BYTES: u64 = 256 * 1024;
        if let Some(parts) = self.in_memory() {
            return slices_of(&parts, range).try_for_each(|part| each(&part));
        }
        let mut buffer = vec![0; (range.end - range.start).min(PART_BYTES) as usize];
        let mut at = range.start;
        while at < range.end {
            let part = &mut buffer[..(range.end - at).min(PART_BYTES) as usize];
            self.shared.file.read_exact_at(part, self.offset + at)?;
            each(part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn in_memory(&self) -> Option<Vec<Bytes>> {
        match &*self.payload() {
            Payload::Memory(parts) => Some(parts.clone()),
            Payload::File => None,
        }
    }

    fn payload(&self) -> MutexGuard<'_, Payload> {
        self.payload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> io::Result<()> {
        let mut offset = self.offset;
        for part in self.in_memory().unwrap_or_default() {
            self.shared.file.write_all_at(&part, offset)?;
            offset += part.len() as u64;
        }
        *self.payload() = Payload::File;
        self.shared.memory_bytes.fetch_sub(self.length, Ordering::AcqRel);
        Ok(())
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        let was_in_memory = matches!(*self.payload(), Payload::Memory(_));
        if was_in_memory {
            self.shared.memory_bytes.fetch_sub(self.length, Ordering::AcqRel);
        }
        self.shared.lock().freed.push(self.offset..self.offset + self.length);
        // After the push: who sees no live bytes knows that all is on the list of what is freed.
        self.shared.live_bytes.fetch_sub(self.length, Ordering::AcqRel);
        self.shared.wake.notify_one();
        if was_in_memory {
            // Where the disk takes nothing it is the sink that makes room, and nobody else says so.
            (self.shared.notify)();
        }
    }
}

impl SpillSteps {
    /// Does the next thing that the thread would do. Whether there was something.
    pub(super) fn step(&mut self) -> bool {
        let queue = self.shared.lock();
        let has_work = !(queue.writes.is_empty() && queue.freed.is_empty());
        if has_work {
            self.shared.turn(queue);
        }
        has_work
    }
}

impl Shared {
    fn new(file: File, directory: PathBuf, notify: Notify) -> Self {
        Self {
            file,
            directory,
            queue: Mutex::default(),
            wake: Condvar::new(),
            memory_bytes: AtomicU64::new(0),
            live_bytes: AtomicU64::new(0),
            can_punch: AtomicBool::new(cfg!(target_os = "linux")),
            failed: AtomicBool::new(false),
            notify,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: frees what was given back, then writes the next extent, until it is closed.
    fn run(&self) {
        loop {
            let idle = |queue: &mut Queue| {
                queue.writes.is_empty() && queue.freed.is_empty() && !queue.closed
            };
            let queue = self.wake.wait_while(self.lock(), idle);
            let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
            if queue.closed {
                // Dropped without the lock, which the extents take themselves.
                let unwritten = std::mem::take(&mut queue.writes);
                drop(queue);
                drop(unwritten);
                return;
            }
            self.turn(queue);
        }
    }

    fn turn(&self, mut queue: MutexGuard<'_, Queue>) {
        let freed = std::mem::take(&mut queue.freed);
        let extent = queue.writes.pop_front();
        drop(queue);
        self.free(freed);
        if let Some(extent) = extent {
            self.write(&extent);
            drop(extent);
            (self.notify)();
        }
    }

    fn write(&self, extent: &Arc<Extent>) {
        let is_wanted = Arc::strong_count(extent) > 1;
        if !is_wanted || self.failed.load(Ordering::Acquire) {
            return;
        }
        if let Err(source) = extent.write() {
            let directory = self.directory.clone();
            let error = match Errno::from_io_error(&source) {
                Some(Errno::NOSPC | Errno::DQUOT) => SpillError::NoSpace { directory },
                _ => SpillError::Write { directory, source },
            };
            self.lock().error = Some(error);
            self.failed.store(true, Ordering::Release);
        }
    }

    #[cfg(target_os = "linux")]
    fn free(&self, mut freed: Vec<Range<u64>>) {
        use rustix::fs::{FallocateFlags, fallocate};
        freed.sort_unstable_by_key(|range| range.start);
        for range in freed.chunk_by(|before, after| before.end == after.start) {
            let start = range.first().map_or(0, |first| first.start);
            let end = range.last().map_or(0, |last| last.end);
            if !self.can_punch.load(Ordering::Relaxed) || start == end {
                continue;
            }
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if fallocate(&self.file, flags, start, end - start).is_err() {
                self.can_punch.store(false, Ordering::Relaxed);
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn free(&self, _freed: Vec<Range<u64>>) {}
}

/// The bytes of `range`, counted over all `parts`, without a copy.
fn slices_of(parts: &[Bytes], range: Range<u64>) -> impl Iterator<Item = Bytes> {
    let mut at = 0;
    parts.iter().filter_map(move |part| {
        let length = part.len() as u64;
        let start = range.start.saturating_sub(at).min(length) as usize;
        let end = range.end.saturating_sub(at).min(length) as usize;
        at += length;
        (start < end).then(|| part.slice(start..end))
    })
}
