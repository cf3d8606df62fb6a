//! Brings what is durable of a map from its journal to its output, on a thread of its own: nothing is
//! written that a next life could not write again.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use widemap_common::limits::SUMMARY_FAILURES;

use crate::data::{Delivery, SinkError, SinkReport, failures_file_line};
use crate::failpoint;
use crate::journal::{Cursor, Next, Shelf};
use crate::summary::NamedFailure;
use crate::thread::Thread;

/// Called, from the thread, when it is over.
type Notify = Box<dyn Fn() + Send + Sync>;

/// What was delivered.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) report: SinkReport,
    /// The first failures.
    pub(super) failures: Vec<NamedFailure>,
}

/// See the file's head.
pub(super) struct Deliverer {
    shelf: Arc<Shelf>,
    /// What the shelf was, and whether it may begin, when the thread was stirred last.
    stirred: (u64, bool),
    shared: Arc<Shared>,
    thread: Thread,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    notify: Notify,
}

#[derive(Default)]
struct State {
    /// Nothing is written before the input is known to be the one that results are of.
    may_begin: bool,
    /// There may be more to deliver.
    is_stirred: bool,
    /// What is not there now never will be.
    is_closed: bool,
    /// The owner is gone.
    is_abandoned: bool,
    is_sleeping: bool,
    has_failed: bool,
    /// The thread has said its last, or panicked.
    is_over: bool,
    outcome: Option<Result<Delivered, SinkError>>,
}

impl Deliverer {
    /// Starts the thread. `notify` is called once [`Deliverer::outcome`] has something to tell.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(super) fn start(
        shelf: &Arc<Shelf>,
        delivery: Delivery,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (state, wake) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { state, wake, notify: Box::new(notify) });
        let (for_thread, cursor) = (Arc::clone(&shared), shelf.read_from(0, 0, 0));
        let thread = Thread::start("output", move || {
            // Whatever ends the thread, a panic too, the driver hears of it.
            let _over = OverAtEnd(&for_thread);
            let outcome = for_thread.run(cursor, delivery);
            let mut state = for_thread.lock();
            state.has_failed = outcome.is_err();
            state.outcome = Some(outcome);
        })?;
        Ok(Self { shelf: Arc::clone(shelf), stirred: (0, false), shared, thread })
    }

    /// There may be more to deliver. `may_begin` says that the input is known to be the one that results
    /// are of.
    pub(super) fn stir(&mut self, may_begin: bool) {
        let now = (self.shelf.version(), may_begin);
        if std::mem::replace(&mut self.stirred, now) == now {
            return;
        }
        self.shared.change(|state| {
            state.may_begin |= may_begin;
            state.is_stirred = true;
        });
    }

    /// What is not durable now never will be: lets the output end with what is next of it.
    pub(super) fn close(&self) {
        self.shared.change(|state| state.is_closed = true);
    }

    /// How it ended, once it has.
    pub(super) fn outcome(&mut self) -> Option<Result<Delivered, SinkError>> {
        let mut state = self.shared.lock();
        let (is_over, outcome) = (state.is_over, state.outcome.take());
        drop(state);
        if is_over {
            self.thread.reap();
        }
        outcome
    }

    /// Whether nothing more can be written.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.lock().has_failed
    }
}

impl Drop for Deliverer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_abandoned = true;
        let is_idle = state.is_sleeping || state.is_over;
        drop(state);
        self.shared.wake.notify_one();
        // One that waits for a reader that never reads can not be joined: it ends with the process.
        if is_idle {
            self.thread.leave();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let is_sleeping = state.is_sleeping;
        drop(state);
        if is_sleeping {
            self.wake.notify_one();
        }
    }

    fn run(&self, mut cursor: Cursor, mut delivery: Delivery) -> Result<Delivered, SinkError> {
        let mut failures = Vec::new();
        while self.wait_for(|state| state.may_begin) {
            // Asked before it is looked: what is durable by then counts.
            let is_closed = self.lock().is_closed;
            match cursor.next().map_err(|source| SinkError::Spill { source })? {
                Next::Output(bytes) => {
                    delivery.output(&bytes)?;
                    failpoint::hit("result.emitted");
                }
                Next::Failure(record, offset) => {
                    let mut line = failures_file_line(&record, offset);
                    line.pop();
                    if failures.len() < SUMMARY_FAILURES {
                        failures.extend(NamedFailure::of_record(&line));
                    }
                    delivery.failure(&line)?;
                }
                // They were shown when they came.
                Next::Stderr(_) => {}
                Next::End => break,
                Next::Wait if is_closed => break,
                Next::Wait => {
                    self.wait_for(|state| std::mem::take(&mut state.is_stirred));
                }
            }
        }
        Ok(Delivered { report: delivery.finish()?, failures })
    }

    /// Waits until something is so. False if it is not, and never will be.
    fn wait_for(&self, mut is_so: impl FnMut(&mut State) -> bool) -> bool {
        let mut state = self.lock();
        while !state.is_abandoned {
            if is_so(&mut state) {
                return true;
            }
            if state.is_closed {
                return false;
            }
            state.is_sleeping = true;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.is_sleeping = false;
        }
        false
    }
}

struct OverAtEnd<'a>(&'a Shared);

impl Drop for OverAtEnd<'_> {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        (self.0.notify)();
    }
}
