//! The OS thread that writes the output, so that the driver never waits for a slow reader or disk.
//! It renders what has to be rendered, and writes the failures file beside the output, in the order
//! of the items.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use widemap_common::limits::SINK_QUEUE_BYTES;

use super::failures_file::FailuresFile;
use super::format::{Format, Shape};
use super::output_file::OutputFile;
use super::piece::Emit;
use super::recorder::{RecordError, Recorder};
use super::render::Renderer;
use super::source::widen_pipe;
use super::spill::Notify;
use crate::thread::Thread;

/// Why the output could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Whoever read the output has closed it: that ends a job quietly.
    #[error("the reader of {name} has closed it")]
    Closed {
        /// What was written to.
        name: String,
    },
    /// A write failed.
    #[error("cannot write {name}: {source}")]
    Write {
        /// What was written to.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Results that waited on disk could not be read again.
    #[error("cannot read results that waited on disk: {source}")]
    Spill {
        /// Why.
        source: io::Error,
    },
    /// Something beside the output cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The thread that writes could not be started.
    #[error("cannot start to write {name}: {source}")]
    Start {
        /// What was to be written to.
        name: String,
        /// Why.
        source: io::Error,
    },
}

impl SinkError {
    /// Whether whoever read the output has left, which is no error of a map.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    /// Whether nothing was run yet: the failures file of a named path is made at the start.
    #[must_use]
    pub fn is_before_start(&self) -> bool {
        matches!(self, Self::Start { .. })
    }
}

/// What the sink writes to.
#[derive(Debug)]
pub struct SinkTarget {
    pub(super) file: File,
    pub(super) name: String,
    /// The same, to be read again from its first byte, where that is possible.
    pub(super) again: Option<Again>,
}

/// What the sink writes, and how.
#[derive(Debug)]
pub struct SinkConfig {
    /// Standard output or a file.
    pub target: SinkTarget,
    /// How results are written.
    pub format: Format,
    /// What the bytes of results are.
    pub shape: Shape,
    /// What a line ends in that is added to raw output: the separator of the items, or a newline.
    pub separator: u8,
    /// Whether the output is hashed, as for a receipt.
    pub is_hashed: bool,
    /// What makes the output of records, if results are written as those.
    pub recorder: Option<Recorder>,
    /// Where failed items are written.
    pub failures: Option<FailuresFile>,
    /// The digest of the function, for the failures file.
    pub function: String,
}

/// How an output is read again.
#[derive(Debug)]
pub(super) enum Again {
    /// Standard output is a file that it can be opened by. Not before it must be: some file systems write all
    /// that they have of one that was there before whenever somebody closes it.
    Stdout,
    /// It is open.
    File(File),
}

/// What was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SinkReport {
    /// Bytes of the output.
    pub output_bytes: u64,
    /// The hash of the output, in hexadecimal, if it was wanted.
    pub output_blake3: Option<String>,
    /// Lines of the failures file.
    pub failures: u64,
    /// Whether the failures file has them: one that nobody named may not be writable.
    pub failures_kept: bool,
}

impl SinkTarget {
    /// Standard output.
    ///
    /// # Errors
    /// If there is none.
    pub fn stdout() -> Result<Self, SinkError> {
        let name = "standard output".to_owned();
        match io::stdout().as_fd().try_clone_to_owned() {
            Ok(fd) => {
                let file = File::from(fd);
                let again = is_new_file(&file).then_some(Again::Stdout);
                Ok(Self { file, name, again })
            }
            Err(source) => Err(SinkError::Start { name, source }),
        }
    }

    /// The file of `--output`.
    ///
    /// # Errors
    /// If its descriptor can not be had twice.
    pub fn output_file(output: &OutputFile) -> Result<Self, SinkError> {
        let name = output.path().display().to_string();
        match output.file().try_clone() {
            Ok(file) => Ok(Self { file, name, again: output.reopen().map(Again::File) }),
            Err(source) => Err(SinkError::Start { name, source }),
        }
    }

    /// Nothing of it is said that a repair needs: failed items have no place of their own there.
    #[must_use]
    pub fn without_places(self) -> Self {
        Self { again: None, ..self }
    }

    /// Any file, and what errors call it.
    #[must_use]
    pub fn file(file: File, name: String) -> Self {
        Self { file, name, again: None }
    }
}

/// Whether standard output is a file, and nothing was in it before.
fn is_new_file(mut file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file())
        && io::Seek::stream_position(&mut file).is_ok_and(|position| position == 0)
}

/// What a repair compares an output by: its length and its hash, if it can be read again.
pub(super) fn mark(again: &mut Option<Again>, output_bytes: u64) -> Option<(u64, String)> {
    let mut file = match again.take()? {
        Again::Stdout => File::open("/dev/fd/1").ok()?,
        Again::File(file) => file,
    };
    let mut hash = blake3::Hasher::new();
    io::Seek::rewind(&mut file).ok()?;
    let bytes = io::copy(&mut file, &mut hash).ok()?;
    (bytes == output_bytes).then(|| (bytes, hash.finalize().to_hex().to_string()))
}

/// The sink as its owner, the merge, sees it.
pub(super) struct Sink {
    shared: Arc<Shared>,
    thread: Thread,
}

/// The work of a sink that has no thread, done by hand.
pub(super) struct SinkSteps {
    shared: Arc<Shared>,
    renderer: Option<Renderer>,
    taken: VecDeque<Emit>,
    error: Option<SinkError>,
}

/// What there is to be done for the sink's thread.
enum Next {
    Emits(Vec<Emit>),
    Nothing,
    End,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    queue_bytes_max: u64,
    /// Bytes that were handed over and are not written yet.
    queued_bytes: AtomicU64,
    written_bytes: AtomicU64,
    /// Whether the owner was told that there is no room, and waits to hear of it.
    is_awaited: AtomicBool,
    has_failed: AtomicBool,
    notify: Notify,
}

#[derive(Default)]
struct Queue {
    emits: Vec<Emit>,
    is_sleeping: bool,
    is_closed: bool,
    /// The owner is gone: what is queued is of no use.
    is_abandoned: bool,
    /// The thread has said its last, or panicked.
    is_over: bool,
    outcome: Option<Result<SinkReport, SinkError>>,
}

impl Sink {
    pub(super) fn start(config: SinkConfig, notify: Notify) -> Result<Self, SinkError> {
        widen_pipe(&config.target.file);
        let shared = Arc::new(Shared::new(SINK_QUEUE_BYTES, notify));
        let for_thread = Arc::clone(&shared);
        let name = config.target.name.clone();
        let thread = Thread::start("output", move || {
            // Whatever ends the thread, a panic too, the driver hears of it.
            let _over = OverAtEnd(&for_thread);
            let outcome = for_thread.run(Renderer::new(config));
            for_thread.lock().outcome = Some(outcome);
        });
        match thread {
            Ok(thread) => Ok(Self { shared, thread }),
            Err(source) => Err(SinkError::Start { name, source }),
        }
    }

    /// A sink without a thread, and what does its work instead.
    pub(super) fn stepped(
        config: SinkConfig,
        queue_bytes_max: u64,
        notify: Notify,
    ) -> (Self, SinkSteps) {
        let shared = Arc::new(Shared::new(queue_bytes_max, notify));
        let steps = SinkSteps {
            shared: Arc::clone(&shared),
            renderer: Some(Renderer::new(config)),
            taken: VecDeque::new(),
            error: None,
        };
        (Self { shared, thread: Thread::default() }, steps)
    }

    /// Whether more can be handed over, beside `outgoing_bytes`. If not, the owner is notified when
    /// there is room.
    pub(super) fn has_room(&self, outgoing_bytes: u64) -> bool {
        let has_room = || {
            let queued_bytes = self.shared.queued_bytes.load(Ordering::SeqCst);
            queued_bytes + outgoing_bytes < self.shared.queue_bytes_max
        };
        if has_room() {
            return true;
        }
        self.shared.is_awaited.store(true, Ordering::SeqCst);
        // Asked again: the room may have come before the thread could see that it is awaited.
        has_room()
    }

    /// Hands over what is to be written next.
    pub(super) fn push(&self, emits: &mut Vec<Emit>) {
        let bytes = emits.iter().map(Emit::memory_bytes).sum();
        self.shared.queued_bytes.fetch_add(bytes, Ordering::SeqCst);
        let mut queue = self.shared.lock();
        if queue.emits.is_empty() {
            std::mem::swap(&mut queue.emits, emits);
        } else {
            queue.emits.append(emits);
        }
        if std::mem::take(&mut queue.is_sleeping) {
            self.shared.wake.notify_one();
        }
    }

    pub(super) fn close(&self) {
        self.shared.lock().is_closed = true;
        self.shared.wake.notify_one();
    }

    pub(super) fn outcome(&mut self) -> Option<Result<SinkReport, SinkError>> {
        let mut queue = self.shared.lock();
        let (is_over, outcome) = (queue.is_over, queue.outcome.take());
        drop(queue);
        if is_over {
            self.thread.reap();
        }
        outcome
    }

    pub(super) fn has_failed(&self) -> bool {
        self.shared.has_failed.load(Ordering::Acquire)
    }

    pub(super) fn written_bytes(&self) -> u64 {
        self.shared.written_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.is_abandoned = true;
        let is_idle = queue.is_sleeping || queue.is_over;
        drop(queue);
        self.shared.wake.notify_one();
        // A thread that is in the middle of a write may wait for a reader that never reads: then it
        // can not be joined, and ends by itself, or with the process.
        if is_idle {
            self.thread.leave();
        }
    }
}

impl SinkSteps {
    /// Does the next thing that the thread would do. Whether there was something.
    pub(super) fn step(&mut self) -> bool {
        let Some(renderer) = &mut self.renderer else { return false };
        if self.taken.is_empty() {
            match self.shared.next(renderer, &mut self.error, false) {
                Next::Emits(emits) => self.taken = emits.into(),
                Next::Nothing => return false,
                Next::End => {
                    self.end();
                    return true;
                }
            }
        }
        if let Some(emit) = self.taken.pop_front() {
            self.shared.write(emit, renderer, &mut self.error);
        }
        true
    }

    fn end(&mut self) {
        let Some(renderer) = self.renderer.take() else { return };
        let _over = OverAtEnd(&self.shared);
        let outcome = self.shared.finish(renderer, self.error.take());
        self.shared.lock().outcome = Some(outcome);
    }
}

impl Shared {
    fn new(queue_bytes_max: u64, notify: Notify) -> Self {
        Self {
            queue: Mutex::default(),
            wake: Condvar::new(),
            queue_bytes_max,
            queued_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            is_awaited: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            notify,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: writes what is queued until it is closed. After an error it only takes.
    fn run(&self, mut renderer: Renderer) -> Result<SinkReport, SinkError> {
        let mut error = None;
        while let Next::Emits(emits) = self.next(&mut renderer, &mut error, true) {
            emits.into_iter().for_each(|emit| self.write(emit, &mut renderer, &mut error));
        }
        self.finish(renderer, error)
    }

    fn write(&self, emit: Emit, renderer: &mut Renderer, error: &mut Option<SinkError>) {
        let bytes = emit.memory_bytes();
        if error.is_none() {
            *error = renderer.emit(emit).err();
            self.note(renderer, error.is_some());
        }
        self.done(bytes);
    }

    fn finish(
        &self,
        mut renderer: Renderer,
        error: Option<SinkError>,
    ) -> Result<SinkReport, SinkError> {
        if let Some(error) = error {
            renderer.keep_failures();
            return Err(error);
        }
        let report = renderer.finish();
        self.note(&renderer, report.is_err());
        report
    }

    /// What was queued. Before it waits, or says that there is nothing, it flushes: what trickles is
    /// seen.
    fn next(&self, renderer: &mut Renderer, error: &mut Option<SinkError>, waits: bool) -> Next {
        loop {
            let mut queue = self.lock();
            if queue.is_abandoned {
                return Next::End;
            }
            if !queue.emits.is_empty() {
                return Next::Emits(std::mem::take(&mut queue.emits));
            }
            if queue.is_closed {
                return Next::End;
            }
            if error.is_none() && !renderer.is_flushed() {
                drop(queue);
                *error = renderer.flush().err();
                self.note(renderer, error.is_some());
                continue;
            }
            if !waits {
                return Next::Nothing;
            }
            queue.is_sleeping = true;
            let asleep =
                |queue: &mut Queue| queue.is_sleeping && !queue.is_closed && !queue.is_abandoned;
            let woken = self.wake.wait_while(queue, asleep);
            woken.unwrap_or_else(PoisonError::into_inner).is_sleeping = false;
        }
    }

    fn note(&self, renderer: &Renderer, has_failed: bool) {
        self.written_bytes.store(renderer.output_bytes(), Ordering::Relaxed);
        if has_failed {
            self.has_failed.store(true, Ordering::Release);
            (self.notify)();
        }
    }

    fn done(&self, bytes: u64) {
        let left = self.queued_bytes.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        if left <= self.queue_bytes_max / 2 && self.is_awaited.swap(false, Ordering::SeqCst) {
            (self.notify)();
        }
    }
}

struct OverAtEnd<'a>(&'a Shared);

impl Drop for OverAtEnd<'_> {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        (self.0.notify)();
    }
}
