//! A second attempt at what takes far longer than usual, where slots would be idle anyway.

use widemap_common::ids::AttemptId;
use widemap_common::limits::{QUEUE_LOOKED_AT_MAX, SPECULATIVE_PERCENT_MAX};
use widemap_common::time::Time;

use crate::chunk::{Chunk, ChunkState, History};
use crate::event::Action;
use crate::job::Job;
use crate::pool::LEVEL_BUSY;
use crate::scheduler::Scheduler;
use crate::slab::Key;
use crate::worker::Worker;

impl Scheduler {
    /// Starts the speculative attempts that are due, and notes when the next one is.
    pub(crate) fn speculate(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.speculating.is_empty() {
            return;
        }
        let jobs: Vec<_> = self.speculating.iter().copied().collect();
        for job in jobs {
            self.jobs[job].straggler_at = None;
            let (mut looked_at, mut after) = (0, None);
            while looked_at < QUEUE_LOOKED_AT_MAX {
                let Some(runner) = self.next_runner(job, after) else { break };
                let due = runner.0 + self.jobs[job].sizing.straggling().unwrap_or_default();
                if due > now {
                    self.jobs[job].straggler_at = Some(due);
                    break;
                }
                self.start_twin(now, job, runner, actions);
                (looked_at, after) = (looked_at + 1, Some(runner));
            }
        }
    }

    /// The attempt that runs longest of those that were not looked at, if its job has idle slots,
    /// nothing better to do with them, and has not spent its share of speculation.
    fn next_runner(
        &self,
        job: Key<Job>,
        after: Option<(Time, AttemptId)>,
    ) -> Option<(Time, AttemptId)> {
        let state = &self.jobs[job];
        let spent = state.counts.speculative * 100;
        let share = (state.counts.attempts * SPECULATIVE_PERCENT_MAX).max(100);
        let busy = state.rank.is_some() || state.storage_full || state.asked_back > 0;
        if busy || state.paused || spent + 100 > share || state.pool.idle() == 0 {
            return None;
        }
        state.sizing.straggling()?;
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        state.runners.range((from, std::ops::Bound::Unbounded)).next().copied()
    }

    fn start_twin(
        &mut self,
        now: Time,
        job: Key<Job>,
        runner: (Time, AttemptId),
        actions: &mut Vec<Action>,
    ) {
        let (chunk, original) = {
            let attempt = self.attempt(runner.1);
            (attempt.chunk, attempt.worker)
        };
        let alone = matches!(self.chunks[chunk].state, ChunkState::Out { twin: None, .. });
        let spent = |it: &History| it.half_failed || it.deaths > 0 || it.deaths_near > 0;
        if !alone || self.chunks[chunk].history.as_deref().is_some_and(spent) {
            // Never again: a twin is not doubled, and what may have killed a worker must not take two
            // along.
            self.jobs[job].runners.remove(&runner);
        } else if let Some(worker) = self.pick_other(chunk, original) {
            self.jobs[job].runners.remove(&runner);
            self.jobs[job].counts.speculative += 1;
            self.assign(now, chunk, worker, actions);
        }
    }

    fn pick_other(&self, chunk: Key<Chunk>, original: Key<Worker>) -> Option<Key<Worker>> {
        let failed_on = self.chunks[chunk].failed_on();
        let pool = &self.jobs[self.chunks[chunk].job].pool;
        let mut idle = pool.below(LEVEL_BUSY);
        idle.find(|&key| key != original && !failed_on.contains(&self.workers[key].id))
    }
}
