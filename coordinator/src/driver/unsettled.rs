//! Results that were accepted and are not durable yet: their workers keep them until they are.

use std::collections::{HashSet, VecDeque};

use widemap_common::ids::{AttemptId, WorkerId};

use crate::journal::{Durable, Ticket};

/// Results in the order in which they were handed to the journal.
#[derive(Default)]
pub(super) struct Unsettled {
    waiting: VecDeque<(Ticket, WorkerId, AttemptId)>,
}

impl Unsettled {
    /// The worker must keep the attempt's result until this is durable.
    pub(super) fn wait(&mut self, ticket: Ticket, worker: WorkerId, attempt: AttemptId) {
        self.waiting.push_back((ticket, worker, attempt));
    }

    /// What may be forgotten, since it is durable.
    pub(super) fn settled(
        &mut self,
        durable: Durable,
    ) -> impl Iterator<Item = (WorkerId, AttemptId)> {
        let settled =
            self.waiting.iter().take_while(|&&(ticket, ..)| durable.covers(ticket)).count();
        self.waiting.drain(..settled).map(|(_, worker, attempt)| (worker, attempt))
    }

    /// What the worker must still keep.
    pub(super) fn of(&self, worker: WorkerId) -> HashSet<AttemptId> {
        let own = self.waiting.iter().filter(|(_, of, _)| *of == worker);
        own.map(|&(.., attempt)| attempt).collect()
    }
}
