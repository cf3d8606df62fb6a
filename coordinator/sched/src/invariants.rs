//! What always holds between two events, asserted by tests and by the simulation.

use std::collections::BTreeSet;

use crate::attempt::Stage;
use crate::chunk::{Chunk, ChunkState};
use crate::job::Job;
use crate::pool::LEVEL_BUSY;
use crate::scheduler::{Due, Scheduler};
use crate::slab::Key;
use crate::worker::{Standing, Worker};

impl Scheduler {
    /// Asserts that the state is sound. Looks at everything: not for each event of a real run.
    ///
    /// # Panics
    /// If the scheduler has a bug.
    pub fn check_invariants(&self) {
        let mut listed = 0;
        for (key, worker) in self.workers.iter() {
            listed += self.check_worker(key, worker);
        }
        assert_eq!(listed, self.attempts.len(), "every attempt is on one worker's list");
        let mut chunks = 0;
        for (key, job) in self.jobs.iter() {
            chunks += self.check_job(key, job);
            self.check_head(job);
        }
        assert_eq!(chunks, self.chunks.len(), "every chunk is of one job");
        let paused = |chunk: &Chunk| matches!(chunk.state, ChunkState::Paused { .. });
        let paused = self.chunks.iter().filter(|(_, chunk)| paused(chunk)).count();
        let ghosts: usize = self.workers.iter().map(|(_, there)| there.ghosts.len()).sum();
        let waiting = paused + self.excluded.len() + ghosts;
        assert_eq!(self.due.len(), waiting, "a deadline for each that waits");
        let long = |job: &Job| job.rank.is_some_and(|(_, short)| !short);
        let long = self.jobs.iter().filter(|(_, job)| long(job)).count();
        assert_eq!(self.long_wanting as usize, long, "jobs with long attempts are counted");
    }

    fn check_worker(&self, key: Key<Worker>, worker: &Worker) -> usize {
        let id = worker.id;
        let list = self.attempts_on(key);
        assert_eq!(list.len(), worker.attempts as usize, "{id} counts its attempts");
        assert_eq!(list.last().copied(), worker.last, "{id} knows its last attempt");
        let running = |stage| matches!(stage, Stage::Running { .. });
        let stages: Vec<_> = list.iter().map(|&id| running(self.attempt(id).stage)).collect();
        assert!(stages.is_sorted_by(|a, b| a >= b), "{id} runs the attempts that were sent first");
        let running = stages.iter().filter(|&&running| running).count();
        assert_eq!(running, worker.running as usize, "{id} counts what runs");
        assert_eq!(list.get(running).copied(), worker.first_waiting, "{id} knows what is next");
        let slots = list.iter().map(|&id| self.slots_of(id));
        assert_eq!(slots.clone().sum::<u32>(), worker.taken, "{id} counts the slots it takes");
        let occupied: u32 = slots.take(running).sum();
        assert_eq!(occupied, worker.occupied, "{id} counts the slots that run");
        let starts = |id| worker.fits(occupied, self.slots_of(id));
        assert!(!worker.first_waiting.is_some_and(starts), "{id} lets nothing wait that fits");
        let suspects = list.iter().filter(|&&id| self.chunks[self.attempt(id).chunk].is_suspect());
        assert!(suspects.count() <= 1, "{id} runs one suspect at a time");
        for &attempt in &list {
            let attempt_of = self.attempt(attempt);
            assert_eq!(attempt_of.worker, key, "{attempt} is on {id}");
            let state = self.chunks[attempt_of.chunk].state;
            let known = matches!(state, ChunkState::Out { attempt: original, twin }
                if original == attempt || twin == Some(attempt));
            assert!(known, "the chunk of {attempt} is {state:?}");
        }
        list.len()
    }

    /// Where nothing more can be stored, the head of a job waits for no slot that it could have.
    fn check_head(&self, job: &Job) {
        let Some(head) = job.first.filter(|_| job.storage_full && self.cutting.is_none()) else {
            return;
        };
        let chunk = &self.chunks[head];
        if chunk.state != ChunkState::Ready || chunk.is_suspect() || chunk.reserved().is_some() {
            return;
        }
        assert!(
            self.pick_below(head, LEVEL_BUSY).is_none(),
            "{}: the head waits beside an idle slot",
            job.id
        );
        let ahead = self.farthest_ahead(head);
        assert!(
            ahead.is_none(),
            "{}: the head waits behind {ahead:?}, which is ahead of it",
            job.id
        );
    }

    fn check_job(&self, key: Key<Job>, job: &Job) -> usize {
        let id = job.id;
        let next = |&chunk: &Key<Chunk>| self.chunks[chunk].next;
        let chunks: Vec<_> = std::iter::successors(job.first, next).collect();
        assert_eq!(chunks.len() as u64, job.chunks, "{id} counts its chunks");
        assert_eq!(chunks.last().copied(), job.last, "{id} knows its last chunk");
        let (mut end, mut in_flight, mut queued) = (0, 0, BTreeSet::new());
        for &chunk in &chunks {
            let entry = &self.chunks[chunk];
            assert!(entry.range.first >= end, "the chunks of {id} do not overlap");
            end = entry.range.end();
            match entry.state {
                ChunkState::Ready => {
                    let queue = if entry.is_suspect() { &job.suspects } else { &job.queue };
                    assert!(queue.contains(&(entry.range.first, chunk)), "{} waits", entry.range);
                    queued.insert(chunk);
                }
                ChunkState::Paused { until } => {
                    assert!(self.due.contains(&(until, Due::Retry(chunk))), "a pause ends");
                }
                ChunkState::Out { attempt, twin } => {
                    for attempt in std::iter::once(attempt).chain(twin) {
                        assert_eq!(self.attempt(attempt).chunk, chunk, "an attempt has one chunk");
                        in_flight += 1;
                    }
                }
            }
        }
        assert_eq!(queued.len(), job.queue.len() + job.suspects.len(), "{id} queues its own");
        assert_eq!(in_flight, job.in_flight, "{id} counts its attempts");
        self.check_pool(key, job);
        chunks.len()
    }

    fn check_pool(&self, key: Key<Job>, job: &Job) {
        let (mut idle, mut usable) = (0, 0);
        let slots = job.policy.slots_per_item.get();
        for (_, there) in self.workers.iter() {
            let ready = there.standing(key) == Some(Standing::Ready);
            if ready && there.is_usable() && there.slots > 0 {
                usable += 1;
                let fitting = |&more: &u32| there.fits(there.taken + more * slots, slots);
                let free = (0..).take_while(fitting).count() as u64;
                idle += if there.quiet.is_some() { 0 } else { free };
            }
        }
        assert_eq!(job.pool.usable(), usable, "{} knows its workers", job.id);
        assert_eq!(job.pool.idle(), idle, "{} knows the idle slots", job.id);
        let standing = |standing| {
            let has = |there: &Worker| there.standing(key) == Some(standing);
            self.workers.iter().filter(|(_, there)| has(there)).count()
        };
        assert_eq!(job.asked as usize, standing(Standing::Asked), "{} counts answers", job.id);
        assert_eq!(job.ready as usize, standing(Standing::Ready), "{} counts answers", job.id);
        assert_eq!(job.refused as usize, standing(Standing::Refused), "{} counts answers", job.id);
    }
}
