//! A worker whose attempts fail while the same items succeed elsewhere, or while those of others
//! succeed, is set aside for a growing time, so that one that fails everything fast does not eat the
//! job.

use std::time::Duration;

use widemap_common::ids::WorkerId;
use widemap_common::limits::{BLAME_MAX, EXCLUSION_MS, EXCLUSION_MS_MAX};
use widemap_common::time::Time;

use crate::event::Action;
use crate::scheduler::{Due, Scheduler};
use crate::slab::Key;
use crate::worker::{Standing, Trust, Worker};

impl Scheduler {
    /// An item succeeded on the worker: it is trusted, and those where it failed are blamed.
    pub(crate) fn succeeded_on(
        &mut self,
        now: Time,
        worker: Key<Worker>,
        failed_on: &[WorkerId],
        actions: &mut Vec<Action>,
    ) {
        let there = &mut self.workers[worker];
        there.exclusions = 0;
        if let Trust::Given { blame } = &mut there.trust {
            *blame = 0;
        }
        let id = there.id;
        for &other in failed_on.iter().filter(|&&other| other != id) {
            if let Some(&other) = self.worker_keys.get(&other) {
                self.blame(now, other, actions);
            }
        }
    }

    fn blame(&mut self, now: Time, worker: Key<Worker>, actions: &mut Vec<Action>) {
        let there = &mut self.workers[worker];
        let Trust::Given { blame } = &mut there.trust else { return };
        *blame += 1;
        if *blame >= BLAME_MAX {
            self.exclude_if_dispensable(now, worker, actions);
        }
    }

    /// Excludes the worker, unless it is out of use anyway or a job has no other.
    pub(crate) fn exclude_if_dispensable(
        &mut self,
        now: Time,
        worker: Key<Worker>,
        actions: &mut Vec<Action>,
    ) {
        if self.workers[worker].is_usable() && self.is_dispensable(worker) {
            self.exclude(now, worker, actions);
        }
    }

    /// Whether each job that the worker could run has another worker.
    fn is_dispensable(&self, worker: Key<Worker>) -> bool {
        let jobs = self.workers[worker].jobs.iter();
        let mut ready = jobs.filter(|(_, standing)| *standing == Standing::Ready);
        ready.all(|&(job, _)| self.jobs[job].pool.usable() > 1)
    }

    fn exclude(&mut self, now: Time, worker: Key<Worker>, actions: &mut Vec<Action>) {
        let there = &mut self.workers[worker];
        let factor = 1_u64.checked_shl(there.exclusions).unwrap_or(u64::MAX);
        let for_time =
            Duration::from_millis(EXCLUSION_MS.saturating_mul(factor).min(EXCLUSION_MS_MAX));
        there.exclusions = (there.exclusions + 1).min(u64::BITS - 1);
        let until = now + for_time;
        there.trust = Trust::Excluded { until };
        actions.push(Action::Exclude { worker: there.id, for_time });
        self.due.insert((until, Due::Trust(worker)));
        self.excluded.insert(worker);
        self.lose_quiet(worker);
        self.update_places(worker);
        self.ask_waiting_back(worker, u32::MAX, actions);
    }

    /// Uses the worker again.
    pub(crate) fn trust_again(&mut self, worker: Key<Worker>) {
        self.workers[worker].trust = Trust::Given { blame: 0 };
        self.excluded.remove(&worker);
        self.update_places(worker);
    }

    /// Uses excluded workers again where nobody else is left for a job.
    pub(crate) fn relieve_excluded(&mut self) {
        let excluded: Vec<_> = self.excluded.iter().copied().collect();
        for worker in excluded {
            if self.is_needed(worker) {
                self.forget_exclusion(worker);
                self.trust_again(worker);
            }
        }
    }

    fn is_needed(&self, worker: Key<Worker>) -> bool {
        let jobs = self.workers[worker].jobs.iter();
        let mut ready = jobs.filter(|(_, standing)| *standing == Standing::Ready);
        ready.any(|&(job, _)| self.jobs[job].pool.usable() == 0)
    }

    /// Removes the deadline of an exclusion.
    pub(crate) fn forget_exclusion(&mut self, worker: Key<Worker>) {
        if let Trust::Excluded { until } = self.workers[worker].trust {
            self.due.remove(&(until, Due::Trust(worker)));
            self.excluded.remove(&worker);
        }
    }
}
