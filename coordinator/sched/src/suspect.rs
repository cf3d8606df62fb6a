//! Who killed a worker: what was running there at its proved death is suspected, split many ways
//! and run one group at a time on a worker, so that each further death convicts one group.

use widemap_common::failure::FailureKind;
use widemap_common::ids::{AttemptId, ItemRange, WorkerId};
use widemap_common::limits::{DEATHS_NEAR_MAX, QUEUE_LOOKED_AT_MAX};
use widemap_common::time::Time;

use crate::attempt::Stage;
use crate::chunk::{Chunk, ChunkState};
use crate::event::Action;
use crate::job::Job;
use crate::pool::LEVEL_BUSY;
use crate::scheduler::Scheduler;
use crate::slab::Key;
use crate::worker::Worker;

/// How many items a group of suspects has, of `items` that were charged with `deaths` of at most
/// `limit`: such that groups of one are left for the last try that is allowed.
///
/// Each of the tries left takes the same root, so that every split is equally fine.
pub(crate) fn group_items(items: u32, deaths: u32, limit: u32) -> u32 {
    debug_assert!(deaths <= limit, "beyond the limit there is nothing to try");
    let tries_after = f64::from(limit - deaths);
    let size = f64::from(items).powf(tries_after / (tries_after + 1.0)).ceil();
    if tries_after == 0.0 { 1 } else { (size as u32).clamp(1, items) }
}

impl Scheduler {
    /// Charges a proved death to what was running there: to the suspect alone, if one was.
    pub(crate) fn charge_death(
        &mut self,
        now: Time,
        worker: Key<Worker>,
        attempts: &[AttemptId],
        actions: &mut Vec<Action>,
    ) {
        let worker_id = self.workers[worker].id;
        let started = |id: AttemptId| self.attempt(id).stage != Stage::Waiting;
        let stages: Vec<_> = attempts.iter().map(|&id| (id, started(id))).collect();
        let suspect = self.workers[worker].suspect;
        for (id, started) in stages {
            let chunk = self.attempt(id).chunk;
            let charged = started && suspect.is_none_or(|suspect| suspect == chunk);
            self.end_attempt(now, id);
            let other = self.leave_chunk(chunk, id);
            self.chunks[chunk].runs += u32::from(started);
            let limit = self.jobs[self.chunks[chunk].job].policy.crash_limit;
            let history = self.chunks[chunk].history_mut();
            history.deaths_near += 1;
            history.deaths_waiting += u32::from(!started);
            let charged = charged || history.deaths_near >= DEATHS_NEAR_MAX;
            if charged {
                // It may have begun where it was thought to wait, since what the worker finished before
                // it was lost with the worker: then the deaths nearby were its own. But nobody is
                // convicted by those: the last try is alone.
                let near = std::mem::take(&mut history.deaths_near);
                let most = if history.deaths < limit { limit } else { limit + 1 };
                history.deaths = (history.deaths + near).min(most);
                let waiting = std::mem::take(&mut history.deaths_waiting);
                self.chunks[chunk].runs += waiting;
            }
            match other {
                // Its twin must not take another worker along.
                Some(other) if charged => self.cancel_attempt(now, other, actions),
                Some(_) => continue,
                None => {}
            }
            if charged {
                self.suspect(chunk, worker_id, actions);
            } else {
                self.enqueue(chunk);
            }
        }
    }

    fn suspect(&mut self, chunk: Key<Chunk>, worker: WorkerId, actions: &mut Vec<Action>) {
        let entry = &self.chunks[chunk];
        let deaths = entry.deaths();
        let (range, state) = (entry.range, &self.jobs[entry.job]);
        let limit = state.policy.crash_limit;
        if deaths > limit {
            self.fail_chunk(chunk, FailureKind::Crash, worker, actions);
            return;
        }
        let whole = state.block_wise || range.items == 1;
        let size = if whole { range.items } else { group_items(range.items, deaths, limit) };
        self.chunks[chunk].range = ItemRange::new(range.first, size.min(range.items));
        self.enqueue(chunk);
        let (mut after, mut first) = (chunk, range.first + u64::from(size));
        while first < range.end() {
            let items = u64::from(size).min(range.end() - first);
            let items = u32::try_from(items).expect("a part is smaller than its chunk");
            after = self.split_off(chunk, after, ItemRange::new(first, items));
            self.enqueue(after);
            first += u64::from(items);
        }
    }

    /// Gives a suspect an idle slot of a worker that runs no other.
    pub(crate) fn place_suspect(
        &mut self,
        now: Time,
        job: Key<Job>,
        actions: &mut Vec<Action>,
    ) -> bool {
        let suspects = self.jobs[job].suspects.iter().take(QUEUE_LOOKED_AT_MAX);
        let suspects: Vec<_> = suspects.map(|&(_, chunk)| chunk).collect();
        for chunk in suspects {
            if let Some(worker) = self.suspect_worker(chunk) {
                self.assign(now, chunk, worker, actions);
                return true;
            }
        }
        false
    }

    /// An idle slot for a suspect, if there is one.
    pub(crate) fn suspect_worker(&mut self, chunk: Key<Chunk>) -> Option<Key<Worker>> {
        if self.is_on_last_try(chunk) || self.chunks[chunk].reserved().is_some() {
            return self.quiet_worker(chunk);
        }
        let free = |&key: &Key<Worker>| {
            let there = &self.workers[key];
            there.suspect.is_none() && there.ghosts.is_empty()
        };
        self.jobs[self.chunks[chunk].job].pool.below(LEVEL_BUSY).find(free)
    }

    /// Whether the next death that is charged to the suspect convicts it.
    pub(crate) fn is_on_last_try(&self, chunk: Key<Chunk>) -> bool {
        let chunk = &self.chunks[chunk];
        chunk.is_suspect() && chunk.deaths() >= self.jobs[chunk.job].policy.crash_limit
    }

    /// Lets nothing else be sent to the worker until the suspect has run there.
    pub(crate) fn reserve(&mut self, worker: Key<Worker>, chunk: Key<Chunk>) {
        self.workers[worker].quiet = Some(chunk);
        self.chunks[chunk].history_mut().reserved = Some(worker);
        self.update_places(worker);
    }

    /// A worker with nothing else, for a suspect on its last try: what else would run there could
    /// convict it wrongly. One is emptied, if need be.
    fn quiet_worker(&mut self, chunk: Key<Chunk>) -> Option<Key<Worker>> {
        let job = self.chunks[chunk].job;
        let worker = match self.chunks[chunk].reserved() {
            Some(worker) => worker,
            None => {
                let pool = &self.jobs[job].pool;
                let free = self.workers.iter().filter(|&(key, there)| {
                    pool.place(key).is_some() && there.suspect.is_none() && there.quiet.is_none()
                });
                let load = |there: &Worker| there.attempts as usize + there.ghosts.len();
                let (worker, _) = free.min_by_key(|(_, there)| load(there))?;
                self.reserve(worker, chunk);
                worker
            }
        };
        let there = &self.workers[worker];
        (there.attempts == 0 && there.ghosts.is_empty()).then_some(worker)
    }

    /// Lets the worker be used as others are, once the suspect's attempt there has ended.
    pub(crate) fn leave_quiet(&mut self, worker: Key<Worker>, chunk: Key<Chunk>) {
        let there = &mut self.workers[worker];
        if there.suspect == Some(chunk) {
            there.suspect = None;
        }
        if there.quiet == Some(chunk) {
            there.quiet = None;
            self.chunks[chunk].history_mut().reserved = None;
        }
    }

    /// Gives back the workers that are being emptied for suspects of the job: while its storage is
    /// full only the head runs, and must not wait for them.
    pub(crate) fn give_back_reserved(&mut self, job: Key<Job>) {
        let waits = |&chunk: &Key<Chunk>| {
            let chunk = &self.chunks[chunk];
            chunk.job == job && chunk.state == ChunkState::Ready
        };
        let reserved = self.workers.iter().filter_map(|(_, there)| there.quiet);
        let reserved: Vec<_> = reserved.filter(waits).collect();
        reserved.into_iter().for_each(|chunk| self.leave_reserved(chunk));
    }

    /// Gives back the worker that was being emptied for the chunk.
    pub(crate) fn leave_reserved(&mut self, chunk: Key<Chunk>) {
        if let Some(worker) = self.chunks[chunk].reserved() {
            self.leave_quiet(worker, chunk);
            self.update_places(worker);
        }
    }

    /// Another worker is to be emptied for the suspect that waits for this one, which is not used
    /// any more.
    pub(crate) fn lose_quiet(&mut self, worker: Key<Worker>) {
        let Some(chunk) = self.workers[worker].quiet else { return };
        if self.chunks[chunk].state == ChunkState::Ready {
            self.leave_reserved(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_try_that_is_allowed_is_an_item_alone() {
        for limit in 1..=6 {
            for items in [1, 2, 3, 10, 1_000, 1 << 20] {
                let last = (1..=limit).fold(items, |left, deaths| group_items(left, deaths, limit));
                assert_eq!(last, 1, "{items} items, limit {limit}");
            }
        }
        assert_eq!((group_items(1_000, 1, 3), group_items(100, 2, 3)), (100, 10));
    }
}
