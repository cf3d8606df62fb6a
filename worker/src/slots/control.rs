//! What others may do to a running slot: see how far it is, tell it to stop, wake it.

use std::io;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

/// The part of a slot that other threads may touch.
#[derive(Debug)]
pub(crate) struct SlotControl {
    /// From 0.
    pub(crate) index: u32,
    /// The item that runs, counted from the attempt's first.
    pub(crate) item: AtomicU32,
    /// Whether the attempt waits for output to be sent.
    pub(crate) stalled: AtomicBool,
    cancelled: AtomicBool,
    /// The worker ends: there is no time for graces.
    ending: AtomicBool,
    wake_in: UnixStream,
    wake_out: UnixStream,
}

impl SlotControl {
    pub(crate) fn new(index: u32) -> io::Result<Self> {
        let (wake_in, wake_out) = UnixStream::pair()?;
        wake_in.set_nonblocking(true)?;
        wake_out.set_nonblocking(true)?;
        Ok(Self {
            index,
            item: AtomicU32::new(0),
            stalled: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            wake_in,
            wake_out,
        })
    }

    /// Gets ready for another attempt. Called under the lock that [`SlotControl::cancel`] is called
    /// under, so that a cancel never meets the wrong attempt.
    pub(crate) fn reset(&self) {
        self.item.store(0, Ordering::Relaxed);
        self.stalled.store(false, Ordering::Relaxed);
        self.cancelled.store(self.is_ending(), Ordering::Relaxed);
    }

    /// Tells the running attempt to stop.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.wake();
    }

    /// Tells the slot to stop for good, at once.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.cancel();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Makes the slot look at its state again, if it waits.
    pub(crate) fn wake(&self) {
        // A full socket wakes the slot as well as another byte would.
        let _ = (&self.wake_in).write(&[1]);
    }

    /// Forgets wake-ups that came so far.
    pub(crate) fn clear_wake(&self) {
        let mut bytes = [0; 64];
        while matches!((&self.wake_out).read(&mut bytes), Ok(64)) {}
    }

    /// Waits until woken, or until `until`. It may return early: look at what you wait for again.
    pub(crate) fn wait(&self, until: Option<Instant>) {
        let mut polled = [PollFd::new(&self.wake_out, PollFlags::IN)];
        let timeout = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        if matches!(rustix::event::poll(&mut polled, timeout.as_ref()), Ok(1..)) {
            self.clear_wake();
        }
    }
}

/// The end that is readable when the slot is woken, to be waited for together with others.
impl AsFd for SlotControl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake_out.as_fd()
    }
}

/// A duration as the system takes it; what is too long to be told is a day.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    const DAY: Timespec = Timespec { tv_sec: 86_400, tv_nsec: 0 };
    Timespec::try_from(duration.min(Duration::from_secs(86_400))).unwrap_or(DAY)
}
