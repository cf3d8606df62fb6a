//! Results that were accepted and are not durable yet: their workers keep them until they are.

use std::collections::{HashMap, HashSet, VecDeque};

use widemap_common::ids::{AttemptId, WorkerId};
use widemap_common::limits::UNSETTLED_MAX;

use crate::journal::{Durable, Ticket};

/// Results in the order in which they were handed to the journal.
#[derive(Default)]
pub(super) struct Unsettled {
    waiting: VecDeque<(Ticket, WorkerId, AttemptId)>,
    counts: HashMap<WorkerId, usize>,
}

impl Unsettled {
    /// The worker must keep the attempt's result until this is durable.
    pub(super) fn wait(&mut self, ticket: Ticket, worker: WorkerId, attempt: AttemptId) {
        self.waiting.push_back((ticket, worker, attempt));
        *self.counts.entry(worker).or_default() += 1;
    }

    /// What may be forgotten, since it is durable.
    pub(super) fn settled(&mut self, durable: Durable) -> Vec<(WorkerId, AttemptId)> {
        let settled =
            self.waiting.iter().take_while(|&&(ticket, ..)| durable.covers(ticket)).count();
        let settled = self.waiting.drain(..settled);
        let settled: Vec<_> = settled.map(|(_, worker, attempt)| (worker, attempt)).collect();
        for (worker, _) in &settled {
            if let Some(count) = self.counts.get_mut(worker) {
                *count -= 1;
            }
        }
        self.counts.retain(|_, count| *count > 0);
        settled
    }

    /// Whether the worker keeps so many that it may not hold much more.
    pub(super) fn are_many(&self, worker: WorkerId) -> bool {
        self.counts.get(&worker).is_some_and(|&count| count >= UNSETTLED_MAX)
    }

    /// What the worker must still keep.
    pub(super) fn of(&self, worker: WorkerId) -> HashSet<AttemptId> {
        let own = self.waiting.iter().filter(|(_, of, _)| *of == worker);
        own.map(|&(.., attempt)| attempt).collect()
    }
}
