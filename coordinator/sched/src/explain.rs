//! What a person or a test may know of the state: counts, workers, and one sentence that says what
//! a job waits for.

use std::time::Duration;

use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_common::time::Time;

use crate::attempt::Stage;
use crate::chunk::{Chunk, ChunkState};
use crate::job::{Counts, Job};
use crate::scheduler::Scheduler;
use crate::slab::Key;
use crate::worker::{Link, Trust, Worker};

/// Whether a worker is given work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkerState {
    /// It is.
    Up,
    /// Its connection broke; what it has stays its own.
    Cut,
    /// It ends what it runs.
    Draining,
    /// Its attempts failed where others succeeded: not before then.
    Excluded(Time),
}

/// A worker, as the scheduler sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerView<'a> {
    /// Which.
    pub worker: WorkerId,
    /// For a person.
    pub name: &'a str,
    /// Whether it is given work.
    pub state: WorkerState,
    /// Attempts that may run there.
    pub slots: u32,
    /// Attempts that run there.
    pub running: u32,
    /// Attempts that wait there.
    pub waiting: u32,
    /// The smoothed round trip to it.
    pub round_trip: Duration,
}

impl Scheduler {
    /// What has become of the job so far. Known of the last jobs that ended, too.
    #[must_use]
    pub fn counts(&self, job: JobId) -> Option<Counts> {
        if let Some(key) = self.job(job) {
            let state = &self.jobs[key];
            return Some(Counts { chunks_in_flight: state.chunks, ..state.counts });
        }
        self.ended.iter().rev().find(|(id, _)| *id == job).map(|(_, counts)| *counts)
    }

    /// Every worker that has not gone, in the order of their ids.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView<'_>> {
        self.worker_keys.values().map(|&key| {
            let there = &self.workers[key];
            WorkerView {
                worker: there.id,
                name: &there.traits.name,
                state: there.state(),
                slots: there.slots,
                running: there.running,
                waiting: there.waiting(),
                round_trip: Duration::from_micros(there.round_trip_us),
            }
        })
    }

    /// The attempts that a worker has, in the order in which they were sent.
    #[must_use]
    pub fn attempts_of(&self, worker: WorkerId) -> Vec<AttemptId> {
        self.worker_keys.get(&worker).map_or_else(Vec::new, |&key| self.attempts_on(key))
    }

    /// Whether an attempt waits for a slot of its worker.
    #[must_use]
    pub fn is_waiting(&self, attempt: AttemptId) -> bool {
        self.attempts.get(attempt).is_some_and(|attempt| attempt.stage == Stage::Waiting)
    }

    /// The items that an attempt is at, until it has ended.
    #[must_use]
    pub fn range_of(&self, attempt: AttemptId) -> Option<ItemRange> {
        self.attempts.get(attempt).map(|attempt| self.chunks[attempt.chunk].range)
    }

    /// What the job waits for, in one sentence.
    #[must_use]
    pub fn explain(&self, id: JobId) -> String {
        let Some(key) = self.job(id) else { return format!("{id} has ended, or never was.") };
        let job = &self.jobs[key];
        if job.paused && job.in_flight == 0 {
            return format!("{id} is paused: `widemap unpause` lets it go on.");
        }
        let Some(head) = job.first else { return self.explain_no_chunk(job) };
        let range = self.chunks[head].range;
        let waits = format!("{id} waits for {range}");
        let full = if job.storage_full {
            "; no more results can be stored before it, so nothing further ahead is started"
        } else {
            ""
        };
        format!("{waits}, {}{full}.", self.explain_chunk(head))
    }

    /// The same for one item, counted from 0, that is in a chunk; none if it is not cut, or final.
    #[must_use]
    pub fn explain_item(&self, id: JobId, item: u64) -> Option<String> {
        let job = &self.jobs[self.job(id)?];
        let next = |&key: &Key<Chunk>| self.chunks[key].next;
        let mut chunks = std::iter::successors(job.first, next);
        let chunk = chunks.find(|&key| self.chunks[key].range.contains(item))?;
        let range = self.chunks[chunk].range;
        Some(format!("Item {} is in {id}/{range}, {}.", item + 1, self.explain_chunk(chunk)))
    }

    /// The same as the end of a sentence about the item.
    #[must_use]
    pub fn explain_where(&self, id: JobId, item: u64) -> Option<String> {
        let job = &self.jobs[self.job(id)?];
        let head = job.first.filter(|&head| self.chunks[head].range.contains(item))?;
        Some(self.explain_chunk(head))
    }

    fn explain_chunk(&self, chunk: Key<Chunk>) -> String {
        match self.chunks[chunk].state {
            ChunkState::Out { attempt, .. } => self.explain_out(attempt),
            ChunkState::Paused { until } => {
                format!("which failed and runs again in {:.1?}", until.since(self.now))
            }
            ChunkState::Ready if self.jobs[self.chunks[chunk].job].paused => {
                "which is queued, and its job is paused".into()
            }
            ChunkState::Ready => format!("which is queued: {}", self.explain_queued(chunk)),
        }
    }

    fn explain_no_chunk(&self, job: &Job) -> String {
        let id = job.id;
        if job.input.ready && job.pool.room() == 0 {
            return format!("{id} has input, but {}.", self.explain_no_worker(job));
        }
        match job.input.level.rest_bytes {
            Some(0) if !job.input.ready => format!("{id} has nothing left to run."),
            _ => format!("{id} waits for more input."),
        }
    }

    fn explain_out(&self, attempt: AttemptId) -> String {
        let attempt = self.attempt(attempt);
        let there = &self.workers[attempt.worker];
        let name = format!("{} ({})", there.traits.name, there.id);
        let for_time = match attempt.stage {
            Stage::Running { since } | Stage::Overtook { since } => self.now.since(since),
            Stage::Waiting => return format!("which was sent ahead to {name} and waits there"),
        };
        let cut = if there.is_cut() { ", which is cut off and keeps it" } else { "" };
        let usual = self.jobs[self.chunks[attempt.chunk].job].sizing.usual();
        let usual = usual.map_or_else(String::new, |usual| format!(" (usually {usual:.1?})"));
        format!("which has been running for {for_time:.1?}{usual} on {name}{cut}")
    }

    fn explain_queued(&self, chunk: Key<Chunk>) -> String {
        let entry = &self.chunks[chunk];
        let job = &self.jobs[entry.job];
        if job.pool.usable() == 0 {
            return self.explain_no_worker(job);
        }
        if let Some(worker) = entry.reserved() {
            let name = &self.workers[worker].traits.name;
            return format!("it may kill what runs it, so {name} is emptied for it first");
        }
        if entry.is_suspect() {
            return "it may kill what runs it, and each worker runs one such at a time".into();
        }
        if entry.failed_on().is_empty() {
            return slots_taken(job);
        }
        "it failed already, and waits for a worker where it has not".into()
    }

    fn explain_no_worker(&self, job: &Job) -> String {
        let mut up = self.workers().filter(|view| view.state == WorkerState::Up).peekable();
        if up.peek().is_some() && up.all(|view| view.slots == 0) {
            return "its workers take no work for now".into();
        }
        if job.ready > 0 && job.pool.usable() > 0 {
            return slots_taken(job);
        }
        match (job.asked, job.ready, job.refused) {
            (0, 0, 0) if self.worker_keys.is_empty() => "there is no worker".into(),
            (0, 0, 0) => match job.policy.slots_per_item.get() {
                1 => format!("no worker has its labels and allows {}", job.policy.runtime),
                slots => format!(
                    "no worker has {slots} slots and its labels, and allows {}",
                    job.policy.runtime
                ),
            },
            (0, 0, refused) => format!("all workers ({refused}) refused it"),
            (_, 0, _) => "no worker has said yet that it can run it".into(),
            (_, ready, _) => {
                format!("all workers for it ({ready}) are cut off, draining or excluded")
            }
        }
    }
}

fn slots_taken(job: &Job) -> String {
    match job.policy.slots_per_item.get() {
        1 => "every slot is taken".into(),
        slots => format!("no worker has {slots} slots free"),
    }
}

impl Worker {
    fn state(&self) -> WorkerState {
        match (self.link, self.trust) {
            (Link::Cut | Link::CutDraining, _) => WorkerState::Cut,
            (Link::Draining, _) => WorkerState::Draining,
            (Link::Up, Trust::Excluded { until }) => WorkerState::Excluded(until),
            (Link::Up, Trust::Given { .. }) => WorkerState::Up,
        }
    }
}
