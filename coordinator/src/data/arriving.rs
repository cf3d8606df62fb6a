//! A file that is still being written while a job reads it: how far it is, and how it ends.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Arriving {
    state: Mutex<State>,
    changed: Condvar,
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    is_whole: bool,
    is_given_up: bool,
    is_accepted: bool,
}

/// What whoever reads it finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrived {
    /// So many bytes behind those that were read are there.
    More(u64),
    /// It was read to its end.
    Whole,
    /// Nothing more will come, or nobody wants it.
    Nothing,
}

impl Arriving {
    /// So many bytes are there, from the first one on.
    pub(crate) fn grow(&self, bytes: u64) {
        self.change(|state| state.bytes = bytes);
    }

    /// What is there is all of it.
    pub(crate) fn finish(&self) {
        self.change(|state| state.is_whole = true);
    }

    /// Nobody writes to its end, or what was written does not count.
    pub(crate) fn give_up(&self) {
        self.change(|state| state.is_given_up = true);
        self.settled.notify_waiters();
    }

    /// What was written counts, and will be found again.
    pub(crate) fn accept(&self) {
        self.change(|state| state.is_accepted = true);
        self.settled.notify_waiters();
    }

    /// Waits until it is known whether what was written counts.
    pub(crate) async fn is_accepted(&self) -> bool {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            {
                let state = self.lock();
                if state.is_accepted || state.is_given_up {
                    return state.is_accepted;
                }
            }
            settled.await;
        }
    }

    /// Whether that was said.
    pub(crate) fn is_given_up(&self) -> bool {
        self.lock().is_given_up
    }

    /// How long it is, once that is known.
    pub(super) fn total(&self) -> Option<u64> {
        let state = self.lock();
        state.is_whole.then_some(state.bytes)
    }

    /// What there is behind so many bytes; `None` if it has to be waited for.
    pub(super) fn behind(&self, read_bytes: u64) -> Option<Arrived> {
        self.lock().behind(read_bytes)
    }

    /// The same, waited for until nobody wants it: [`Arriving::look_again`] makes it look whether that is so.
    pub(super) fn wait_behind(&self, read_bytes: u64, is_unwanted: impl Fn() -> bool) -> Arrived {
        let mut state = self.lock();
        loop {
            if is_unwanted() {
                return Arrived::Nothing;
            }
            if let Some(arrived) = state.behind(read_bytes) {
                return arrived;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whoever waits looks whether it is still wanted.
    pub(super) fn look_again(&self) {
        self.change(|_| ());
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn behind(&self, read_bytes: u64) -> Option<Arrived> {
        match self.bytes.saturating_sub(read_bytes) {
            _ if self.is_given_up => Some(Arrived::Nothing),
            0 if self.is_whole => Some(Arrived::Whole),
            0 => None,
            more => Some(Arrived::More(more)),
        }
    }
}
