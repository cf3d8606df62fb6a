//! The input of an attempt that arrives in parts while the attempt runs, and the count of what a
//! session's slots have taken, from which the session grants more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::Notify;

use super::control::SlotControl;

/// How much input the slots have taken from one session, in all of its life.
#[derive(Debug, Default)]
pub(crate) struct InputMeter {
    taken_bytes: AtomicU64,
    /// Slots that wait for input.
    starving: AtomicU32,
    /// Tells the session that something changed.
    pub(crate) notify: Notify,
}

impl InputMeter {
    /// Counts bytes that the session need not hold any more.
    pub(crate) fn take(&self, bytes: usize) {
        self.taken_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn taken_bytes(&self) -> u64 {
        self.taken_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn is_starving(&self) -> bool {
        self.starving.load(Ordering::Relaxed) > 0
    }
}

/// The input of one attempt, filled by the session, emptied by the slot that runs it.
#[derive(Debug)]
pub(crate) struct InputStream {
    /// The length of the whole input.
    pub(crate) total_bytes: u64,
    state: Mutex<State>,
    meter: Arc<InputMeter>,
}

#[derive(Debug, Default)]
struct State {
    parts: VecDeque<Bytes>,
    received_bytes: u64,
    /// The slot that found nothing, while it waits.
    waiting: Option<Arc<SlotControl>>,
    closed: bool,
}

/// What a slot finds in a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Part(Bytes),
    /// The slot is woken when there is more.
    NothingYet,
    /// The whole input has been taken.
    End,
}

impl InputStream {
    pub(crate) fn new(total_bytes: u64, meter: Arc<InputMeter>) -> Self {
        Self { total_bytes, state: Mutex::new(State::default()), meter }
    }

    /// Appends what arrived.
    pub(crate) fn push(&self, part: Bytes) {
        let mut state = self.lock();
        state.received_bytes += part.len() as u64;
        if state.closed {
            self.meter.take(part.len());
        } else if !part.is_empty() {
            state.parts.push_back(part);
        }
        if let Some(control) = state.waiting.take() {
            self.meter.starving.fetch_sub(1, Ordering::Relaxed);
            control.wake();
        }
    }

    /// The next part, for the slot of `control`.
    pub(crate) fn take(&self, control: &Arc<SlotControl>) -> Taken {
        let mut state = self.lock();
        if let Some(part) = state.parts.pop_front() {
            drop(state);
            self.meter.take(part.len());
            self.meter.notify.notify_one();
            return Taken::Part(part);
        }
        if state.closed || state.received_bytes >= self.total_bytes {
            return Taken::End;
        }
        if state.waiting.is_none() {
            state.waiting = Some(control.clone());
            self.meter.starving.fetch_add(1, Ordering::Relaxed);
            self.meter.notify.notify_one();
        }
        Taken::NothingYet
    }

    /// Nobody will take the rest: what is here and what still comes is forgotten.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for part in state.parts.drain(..) {
            self.meter.take(part.len());
        }
        if state.waiting.take().is_some() {
            self.meter.starving.fetch_sub(1, Ordering::Relaxed);
        }
        self.meter.notify.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(total_bytes: u64) -> (InputStream, Arc<InputMeter>, Arc<SlotControl>) {
        let meter = Arc::new(InputMeter::default());
        let control = Arc::new(SlotControl::new(0).expect("a socket pair can be made"));
        (InputStream::new(total_bytes, meter.clone()), meter, control)
    }

    #[test]
    fn a_slot_that_finds_nothing_starves_until_a_part_arrives() {
        let (stream, meter, control) = stream(3);
        assert_eq!(stream.take(&control), Taken::NothingYet);
        assert!(meter.is_starving());
        stream.push(Bytes::from_static(b"abc"));
        assert!(!meter.is_starving());
        assert_eq!(stream.take(&control), Taken::Part(Bytes::from_static(b"abc")));
        assert_eq!(meter.taken_bytes(), 3);
        assert_eq!(stream.take(&control), Taken::End);
    }

    #[test]
    fn what_comes_for_a_closed_stream_counts_as_taken() {
        let (stream, meter, control) = stream(6);
        stream.push(Bytes::from_static(b"abc"));
        stream.close();
        stream.push(Bytes::from_static(b"def"));
        assert_eq!(meter.taken_bytes(), 6);
        assert_eq!(stream.take(&control), Taken::End);
    }
}
