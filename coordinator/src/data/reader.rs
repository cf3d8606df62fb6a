//! The OS thread that reads the input, so that the driver never waits for a disk or a slow pipe. It
//! hands over whole blocks, a few ahead of the cutting, and can be woken to end at any time.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use widemap_common::limits::{DRAFT_SYNC_BYTES, READ_AHEAD_BLOCKS};

use super::arriving::{Arrived as Behind, Arriving};
use super::block::{Block, Splitter};
use super::combine::Combiner;
use super::prefix::{Prefix, Trail};
use super::source::InputError;
use crate::page_cache::Passed;
use crate::thread::Thread;

/// What was read last stays in memory: it may not be on the disk yet, and may have to be sent again.
const PASSED_KEPT_BYTES: u64 = 2 * DRAFT_SYNC_BYTES;

/// Called from the thread whenever a block was queued, and at the end.
pub(super) type Notify = Box<dyn Fn() + Send + Sync>;

/// The reader as the driver's side sees it.
pub(super) struct Reader {
    shared: Arc<Shared>,
    /// Closed to wake the thread from its wait for input.
    wake: Option<OwnedFd>,
    /// What is told to look again whether it is wanted.
    arriving: Option<Arc<Arriving>>,
    thread: Thread,
}

/// What [`Reader::take`] found.
pub(super) struct Arrived {
    pub(super) blocks: VecDeque<Block>,
    /// How the input ended, told once, after its last block.
    pub(super) end: Option<Result<(), InputError>>,
    /// How much was read so far, if that is followed; what was taken is among it.
    pub(super) prefix: Option<Prefix>,
    /// Whether what was read before is known to be the same.
    pub(super) is_checked: bool,
}

/// What items are read of.
pub(super) enum Feed {
    File(File),
    /// A file that is still being written.
    Arriving(File, Arc<Arriving>),
    /// They are made of what is read; gone once that has begun.
    Made(Option<Box<Combiner>>),
}

/// How a file is read.
pub(super) struct Reading {
    pub(super) feed: Feed,
    /// What errors call it.
    pub(super) name: String,
    /// A regular file is never waited for; anything else is delivered as it arrives.
    pub(super) is_regular: bool,
    /// Follows what is read, if somebody wants to know.
    pub(super) trail: Option<Trail>,
    /// Lets go of what was read, of a file that nobody else reads.
    pub(super) passed: Option<Passed>,
}

struct Shared {
    state: Mutex<State>,
    room: Condvar,
    notify: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Block>,
    /// Blocks that are queued, or taken and not cut up yet: these are what is bounded.
    outstanding: usize,
    prefix: Option<Prefix>,
    is_checked: bool,
    end: Option<Result<(), InputError>>,
    /// The thread has said its last, or panicked.
    is_over: bool,
    closed: bool,
}

impl Reader {
    pub(super) fn start(
        reading: Reading,
        splitter: Splitter,
        notify: Notify,
    ) -> Result<Self, std::io::Error> {
        let (wake_read, wake_write) = rustix::pipe::pipe()?;
        let shared = Arc::new(Shared { state: Mutex::default(), room: Condvar::new(), notify });
        let for_thread = Arc::clone(&shared);
        let arriving = match &reading.feed {
            Feed::Arriving(_, arriving) => Some(Arc::clone(arriving)),
            Feed::File(_) | Feed::Made(_) => None,
        };
        let thread = Thread::start("input", move || {
            // Whatever ends the thread, a panic too, the driver hears of it.
            let _over = OverAtEnd(&for_thread);
            let (mut splitter, mut reading) = (splitter, reading);
            let end = read_all(&mut reading, &mut splitter, &for_thread, &wake_read);
            if end.is_err() {
                let rest = splitter.finish_broken();
                // Of what has changed nothing is used; why it is refused is known.
                let rest = reading.follow(rest, &for_thread).unwrap_or_default();
                for_thread.push(rest);
            }
            for_thread.lock().end = end.transpose();
        })?;
        Ok(Self { shared, wake: Some(wake_write), arriving, thread })
    }

    /// Takes what has arrived.
    pub(super) fn take(&mut self) -> Arrived {
        let mut state = self.shared.lock();
        let (blocks, end) = (std::mem::take(&mut state.queue), state.end.take());
        let (prefix, is_checked, is_over) = (state.prefix, state.is_checked, state.is_over);
        drop(state);
        if is_over {
            self.thread.reap();
        }
        Arrived { blocks, end, prefix, is_checked }
    }

    /// A block was cut up: another may be read.
    pub(super) fn block_done(&self) {
        let mut state = self.shared.lock();
        state.outstanding -= 1;
        drop(state);
        self.shared.room.notify_one();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.room.notify_one();
        drop(self.wake.take());
        if let Some(arriving) = &self.arriving {
            arriving.look_again();
        }
        self.thread.leave();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is queued next is part of this.
    fn tell(&self, trail: &Trail) {
        let mut state = self.lock();
        (state.prefix, state.is_checked) = (Some(trail.prefix()), trail.is_checked());
    }

    fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn has_room(&self) -> bool {
        self.lock().outstanding < READ_AHEAD_BLOCKS
    }

    /// Queues blocks as there is room. False if nobody wants them any more.
    fn push(&self, blocks: Vec<Block>) -> bool {
        for block in blocks {
            let state = self.lock();
            let is_full =
                |state: &mut State| state.outstanding >= READ_AHEAD_BLOCKS && !state.closed;
            let mut state =
                self.room.wait_while(state, is_full).unwrap_or_else(PoisonError::into_inner);
            if state.closed {
                return false;
            }
            state.outstanding += 1;
            state.queue.push_back(block);
            drop(state);
            (self.notify)();
        }
        true
    }
}

struct OverAtEnd<'a>(&'a Shared);

impl Drop for OverAtEnd<'_> {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        (self.0.notify)();
    }
}

impl Reading {
    /// Follows blocks that were read; gives back those that may be used.
    fn follow(&mut self, blocks: Vec<Block>, shared: &Shared) -> Result<Vec<Block>, InputError> {
        let Some(trail) = &mut self.trail else { return Ok(blocks) };
        let blocks = trail.pass(blocks)?;
        shared.tell(trail);
        Ok(blocks)
    }

    /// The same at the end of the input.
    fn end(&mut self, shared: &Shared) -> Result<Vec<Block>, InputError> {
        let Some(trail) = &mut self.trail else { return Ok(Vec::new()) };
        let blocks = trail.end()?;
        shared.tell(trail);
        Ok(blocks)
    }
}

/// Reads to the end. `None` if the reader was closed before.
fn read_all(
    reading: &mut Reading,
    splitter: &mut Splitter,
    shared: &Shared,
    wake: &OwnedFd,
) -> Result<Option<()>, InputError> {
    if let Feed::Made(combiner) = &mut reading.feed {
        let Some(combiner) = combiner.take() else { return Ok(None) };
        let mut deliver = |splitter: &mut Splitter| {
            let blocks = reading.follow(splitter.take_blocks()?, shared)?;
            Ok(shared.push(blocks))
        };
        if combiner.run(splitter, wake, &mut deliver)?.is_none() {
            return Ok(None);
        }
        return read_end(reading, splitter, shared);
    }
    let mut read_bytes = 0;
    loop {
        let (file, arriving) = match &reading.feed {
            Feed::File(file) => (file, None),
            Feed::Arriving(file, arriving) => (file, Some(arriving)),
            Feed::Made(_) => return Ok(None),
        };
        match arriving {
            Some(arriving) => match arriving.wait_behind(read_bytes, || shared.is_closed()) {
                Behind::More(_) => {}
                Behind::Whole => break,
                Behind::Nothing => return Ok(None),
            },
            None if reading.is_regular => {}
            None if wait_readable(file, wake) => {}
            None => return Ok(None),
        }
        match rustix::io::read(file, spare_capacity(splitter.room())) {
            Ok(0) if arriving.is_some() => {
                let source = io::ErrorKind::UnexpectedEof.into();
                let name = reading.name.clone();
                return Err(InputError::Read { name, offset: read_bytes, source });
            }
            Ok(0) => break,
            Ok(bytes) => {
                read_bytes += bytes as u64;
                if let Some(passed) = &mut reading.passed {
                    passed.read_to(file, read_bytes, PASSED_KEPT_BYTES);
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(errno) => {
                let source = errno.into();
                let name = reading.name.clone();
                return Err(InputError::Read { name, offset: read_bytes, source });
            }
        }
        let has_more = || match arriving {
            Some(arriving) => matches!(arriving.behind(read_bytes), Some(Behind::More(_))),
            None => reading.is_regular || (!shared.has_room() && is_readable(file)),
        };
        let gather = !splitter.is_full() && !splitter.is_block_wise() && has_more();
        if !gather {
            let blocks = reading.follow(splitter.take_blocks()?, shared)?;
            if !shared.push(blocks) {
                return Ok(None);
            }
        }
    }
    read_end(reading, splitter, shared)
}

/// Hands over what is left when all was read.
fn read_end(
    reading: &mut Reading,
    splitter: &mut Splitter,
    shared: &Shared,
) -> Result<Option<()>, InputError> {
    let mut blocks = reading.follow(splitter.finish()?, shared)?;
    blocks.append(&mut reading.end(shared)?);
    Ok(shared.push(blocks).then_some(()))
}

/// Waits until the file can be read. False if the reader was closed.
fn wait_readable(file: &File, wake: &OwnedFd) -> bool {
    let mut fds = [
        PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
    ];
    // An error of poll is met again by the read that follows, which tells it.
    while poll(&mut fds, None) == Err(Errno::INTR) {}
    fds[1].revents().is_empty()
}

fn is_readable(file: &File) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(ready) if ready > 0)
}
