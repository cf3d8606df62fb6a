//! Cancelled attempts that may still run: a worker works on what it has not heard of, and a process
//! takes its time to die. What such a one does to its worker must not be charged to a suspect that is
//! sent there meanwhile.

use std::collections::btree_map::Entry;
use std::time::Duration;

use widemap_common::ids::AttemptId;

use crate::event::Action;
use crate::scheduler::{Due, Scheduler};
use crate::slab::Key;
use crate::worker::Worker;

impl Scheduler {
    /// Has an attempt ended that does not count any more. Until the worker says that it is over, it
    /// haunts the worker.
    pub(crate) fn send_cancel(
        &mut self,
        worker: Key<Worker>,
        id: AttemptId,
        actions: &mut Vec<Action>,
    ) {
        self.haunt(worker, id);
        actions.push(Action::Cancel { worker: self.workers[worker].id, attempt: id });
    }

    /// The attempt may still run there: until the worker says otherwise, or for so long that it hangs in
    /// what cannot be ended, and may do so for ever.
    pub(crate) fn haunt(&mut self, worker: Key<Worker>, id: AttemptId) {
        let patience_ms = self.timers.kill_grace_ms + self.timers.lease_ms;
        let until = self.now + Duration::from_millis(patience_ms);
        if let Entry::Vacant(entry) = self.workers[worker].ghosts.entry(id) {
            entry.insert(until);
            self.due.insert((until, Due::Ghost(worker, id)));
        }
    }

    /// The worker is gone, and all that haunted it.
    pub(crate) fn forget_ghosts(&mut self, worker: Key<Worker>) {
        for (id, until) in std::mem::take(&mut self.workers[worker].ghosts) {
            self.due.remove(&(until, Due::Ghost(worker, id)));
        }
    }

    /// Asks for the end of all that haunts the worker again: what was asked for, or answered, before
    /// a cut may not have arrived.
    pub(crate) fn send_cancels_again(&self, worker: Key<Worker>, actions: &mut Vec<Action>) {
        let there = &self.workers[worker];
        let cancel = |&attempt| Action::Cancel { worker: there.id, attempt };
        actions.extend(there.ghosts.keys().map(cancel));
    }

    /// The worker says that nothing of the attempt runs any more.
    pub(crate) fn cancelled(&mut self, worker: Key<Worker>, id: AttemptId) {
        if let Some(until) = self.workers[worker].ghosts.remove(&id) {
            self.due.remove(&(until, Due::Ghost(worker, id)));
        }
    }
}
