//! Cancelled attempts that may still run: a worker works on what it has not heard of, and a process
//! takes its time to die. What such a one does to its worker must not be charged to a suspect that is
//! sent there meanwhile.

use widemap_common::ids::AttemptId;

use crate::event::Action;
use crate::scheduler::Scheduler;
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
        let there = &mut self.workers[worker];
        there.ghosts.insert(id);
        actions.push(Action::Cancel { worker: there.id, attempt: id });
    }

    /// Asks for the end of all that haunts the worker again: what was asked for, or answered, before
    /// a cut may not have arrived.
    pub(crate) fn send_cancels_again(&self, worker: Key<Worker>, actions: &mut Vec<Action>) {
        let there = &self.workers[worker];
        let cancel = |&attempt| Action::Cancel { worker: there.id, attempt };
        actions.extend(there.ghosts.iter().map(cancel));
    }

    /// The worker says that nothing of the attempt runs any more.
    pub(crate) fn cancelled(&mut self, worker: Key<Worker>, id: AttemptId) {
        self.workers[worker].ghosts.remove(&id);
    }
}
