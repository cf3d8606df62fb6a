//! How the attempts of a job end on each worker. One that fails again and again, as hardly any other
//! would, is set aside before the items that it spoils have run out of retries: what fails fast comes
//! back for more faster than anybody else.

use widemap_common::limits::BLAME_MAX;
use widemap_common::time::Time;

use crate::event::Action;
use crate::job::Job;
use crate::scheduler::Scheduler;
use crate::slab::Key;
use crate::worker::Worker;

/// What is expected of a worker that nothing is known of.
const RATE_UNKNOWN: f64 = 0.5;

/// How much the last attempt says of a worker.
const RATE_WEIGHT: f64 = 0.125;

/// A row of failures that another worker would have with less than this chance sets a worker aside.
const CHANCE_MIN: f64 = 0.001;

/// The last attempts of one worker.
#[derive(Clone, Copy, Debug)]
struct Record {
    /// Attempts in a row of which no item succeeded.
    failed_in_a_row: u32,
    /// The share of attempts of which some item succeeded: the last ones weigh most.
    rate: f64,
}

/// What a job knows of the workers that ran attempts of it.
#[derive(Debug, Default)]
pub(crate) struct Records {
    of: Vec<Option<Record>>,
    known: u32,
    /// The sum of all rates.
    rates: f64,
}

impl Records {
    /// Notes how an attempt ended, and gives the chance that one of the other workers, of which there
    /// are `usable` with this one, would have failed so often in a row.
    fn note(&mut self, worker: Key<Worker>, succeeded: bool, usable: u32) -> f64 {
        let index = worker.index();
        if self.of.len() <= index {
            self.of.resize(index + 1, None);
        }
        let entry = &mut self.of[index];
        let (before, former_rate) = match *entry {
            Some(record) => (record, record.rate),
            None => {
                self.known += 1;
                (Record { failed_in_a_row: 0, rate: RATE_UNKNOWN }, 0.0)
            }
        };
        let outcome = if succeeded { 1.0 } else { 0.0 };
        let rate = before.rate + (outcome - before.rate) * RATE_WEIGHT;
        let failed_in_a_row = if succeeded { 0 } else { before.failed_in_a_row + 1 };
        *entry = Some(Record { failed_in_a_row, rate });
        self.rates += rate - former_rate;
        if failed_in_a_row < BLAME_MAX {
            return 1.0;
        }
        let known_others = f64::from(self.known - 1);
        let unknown = (f64::from(usable.saturating_sub(1)) - known_others).max(0.0);
        let others = known_others + unknown;
        if others == 0.0 {
            return 1.0;
        }
        let rate = (self.rates - rate + unknown * RATE_UNKNOWN) / others;
        (1.0 - rate.clamp(0.0, 1.0)).powi(i32::try_from(failed_in_a_row).unwrap_or(i32::MAX))
    }

    /// The worker is gone, and its key may be given to another.
    pub(crate) fn forget(&mut self, worker: Key<Worker>) {
        if let Some(record) = self.of.get_mut(worker.index()).and_then(Option::take) {
            self.known -= 1;
            self.rates -= record.rate;
        }
    }
}

impl Scheduler {
    /// Notes how an attempt at the job ended on the worker, and sets the worker aside if that is no
    /// bad luck any more.
    pub(crate) fn note_outcome(
        &mut self,
        now: Time,
        job: Key<Job>,
        worker: Key<Worker>,
        succeeded: bool,
        actions: &mut Vec<Action>,
    ) {
        let state = &mut self.jobs[job];
        let chance = state.records.note(worker, succeeded, state.pool.usable());
        if chance < CHANCE_MIN {
            self.exclude_if_dispensable(now, worker, actions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Failures in a row after which a worker is set aside, beside one with these outcomes.
    fn failures_until_set_aside(other: &[bool]) -> Option<usize> {
        let mut records = Records::default();
        for &succeeded in other {
            records.note(Key::at(1), succeeded, 2);
        }
        (1..200).find(|_| records.note(Key::at(0), false, 2) < CHANCE_MIN)
    }

    #[test]
    fn it_takes_few_failures_where_others_succeed_and_many_where_they_fail() {
        assert_eq!(failures_until_set_aside(&[true; 40]), Some(3));
        assert_eq!(failures_until_set_aside(&[true; 3]), Some(7));
        assert_eq!(failures_until_set_aside(&[]), Some(10), "nothing is known of the other");
        assert_eq!(failures_until_set_aside(&[false; 40]), None);
        let often = [[true, false]; 20].concat();
        assert!(failures_until_set_aside(&often).is_some_and(|failures| failures >= 8));
    }

    #[test]
    fn a_worker_alone_is_nobody_to_compare_with() {
        let mut records = Records::default();
        assert!((0..100).all(|_| records.note(Key::at(0), false, 1) >= 1.0));
    }

    #[test]
    fn who_is_gone_counts_no_more() {
        let mut records = Records::default();
        for _ in 0..40 {
            records.note(Key::at(1), true, 2);
        }
        records.forget(Key::at(1));
        assert!((0..100).all(|_| records.note(Key::at(0), false, 1) >= 1.0));
    }
}
