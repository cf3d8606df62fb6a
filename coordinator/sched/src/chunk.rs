//! What is cut and not final yet: the chunks of a job, in the order of their items.

use widemap_common::ids::{AttemptId, ItemRange, WorkerId};
use widemap_common::time::Time;

use crate::job::Job;
use crate::scheduler::{Due, Scheduler};
use crate::slab::Key;
use crate::worker::Worker;

/// A range of items of which none is final.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) job: Key<Job>,
    pub(crate) range: ItemRange,
    pub(crate) state: ChunkState,
    /// Attempts at its items that ended, or were running when their worker was lost.
    pub(crate) runs: u32,
    /// What went wrong with its items, if anything has.
    pub(crate) history: Option<Box<History>>,
    /// The neighbours among the job's chunks, in the order of their items.
    pub(crate) previous: Option<Key<Chunk>>,
    pub(crate) next: Option<Key<Chunk>>,
}

/// Where a chunk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChunkState {
    /// In one of the job's queues; waits for a worker.
    Ready,
    /// Failed, and runs again then.
    Paused { until: Time },
    /// On a worker, or on two.
    Out { attempt: AttemptId, twin: Option<AttemptId> },
}

/// What went wrong with a chunk's items. Chunks that are split off inherit it.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// Runs that are charged against the retries.
    pub(crate) charges: u32,
    /// Worker deaths that are charged: with one, the items are suspects.
    pub(crate) deaths: u32,
    /// Worker deaths nearby that are charged to others, since the last own one.
    pub(crate) deaths_near: u32,
    /// Those of them at which it was thought to wait.
    pub(crate) deaths_waiting: u32,
    /// Where it failed.
    pub(crate) failed_on: Vec<WorkerId>,
    /// Whether one of two attempts has failed and is charged with the other: no third is sent.
    pub(crate) half_failed: bool,
    /// The worker that is being emptied for it.
    pub(crate) reserved: Option<Key<Worker>>,
}

impl History {
    pub(crate) fn fail_on(&mut self, worker: WorkerId) {
        if !self.failed_on.contains(&worker) {
            self.failed_on.push(worker);
        }
    }
}

impl Chunk {
    pub(crate) fn history_mut(&mut self) -> &mut History {
        self.history.get_or_insert_default()
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.deaths() > 0
    }

    pub(crate) fn failed_on(&self) -> &[WorkerId] {
        self.history.as_ref().map_or(&[], |history| &history.failed_on)
    }

    /// Runs that are charged against the retries.
    pub(crate) fn charges(&self) -> u32 {
        self.history.as_ref().map_or(0, |history| history.charges)
    }

    /// Worker deaths that are charged.
    pub(crate) fn deaths(&self) -> u32 {
        self.history.as_ref().map_or(0, |history| history.deaths)
    }

    /// The worker that is being emptied for it.
    pub(crate) fn reserved(&self) -> Option<Key<Worker>> {
        self.history.as_ref().and_then(|history| history.reserved)
    }
}

impl Scheduler {
    /// Adds a chunk of items that were not in any before: behind all others of its job, but for those
    /// that were adopted.
    pub(crate) fn append_chunk(&mut self, job: Key<Job>, range: ItemRange) -> Key<Chunk> {
        let state = &self.jobs[job];
        let by_item = state.by_item.as_ref();
        let next =
            by_item.and_then(|chunks| chunks.range(range.first..).next()).map(|(_, &key)| key);
        let previous = next.map_or(state.last, |next| self.chunks[next].previous);
        let is_before = |key: Key<Chunk>| self.chunks[key].range.end() <= range.first;
        let is_behind = |key: Key<Chunk>| range.end() <= self.chunks[key].range.first;
        assert!(
            previous.is_none_or(is_before) && next.is_none_or(is_behind),
            "{range} is cut once"
        );
        let (state, runs, history) = (ChunkState::Ready, 0, None);
        self.link_chunk(Chunk { job, range, state, runs, history, previous, next })
    }

    /// Adds a chunk right behind another, with a part of that one's items and its history.
    pub(crate) fn split_off(
        &mut self,
        from: Key<Chunk>,
        after: Key<Chunk>,
        range: ItemRange,
    ) -> Key<Chunk> {
        let (previous, next) = (Some(after), self.chunks[after].next);
        let Chunk { job, runs, history, .. } = &self.chunks[from];
        let (job, runs, history, state) = (*job, *runs, history.clone(), ChunkState::Ready);
        self.link_chunk(Chunk { job, range, state, runs, history, previous, next })
    }

    fn link_chunk(&mut self, chunk: Chunk) -> Key<Chunk> {
        let (job, previous, next) = (chunk.job, chunk.previous, chunk.next);
        let key = self.chunks.insert(chunk);
        match previous {
            Some(previous) => self.chunks[previous].next = Some(key),
            None => self.jobs[job].first = Some(key),
        }
        match next {
            Some(next) => self.chunks[next].previous = Some(key),
            None => self.jobs[job].last = Some(key),
        }
        let first_item = self.chunks[key].range.first;
        let job = &mut self.jobs[job];
        if let Some(by_item) = &mut job.by_item {
            by_item.insert(first_item, key);
        }
        job.chunks += 1;
        key
    }

    /// Forgets a chunk whose items are final, or are in other chunks now.
    pub(crate) fn remove_chunk(&mut self, key: Key<Chunk>) {
        debug_assert!(!matches!(self.chunks[key].state, ChunkState::Paused { .. }));
        self.unqueue(key);
        let chunk = self.chunks.remove(key);
        match chunk.previous {
            Some(previous) => self.chunks[previous].next = chunk.next,
            None => self.jobs[chunk.job].first = chunk.next,
        }
        match chunk.next {
            Some(next) => self.chunks[next].previous = chunk.previous,
            None => self.jobs[chunk.job].last = chunk.previous,
        }
        let job = &mut self.jobs[chunk.job];
        if let Some(by_item) = &mut job.by_item
            && by_item.get(&chunk.range.first) == Some(&key)
        {
            by_item.remove(&chunk.range.first);
        }
        job.chunks -= 1;
        if job.storage_full {
            self.reorder(chunk.job);
        }
    }

    /// Lets the chunk wait for a worker: with care, if it may have killed one.
    pub(crate) fn enqueue(&mut self, key: Key<Chunk>) {
        let chunk = &mut self.chunks[key];
        chunk.state = ChunkState::Ready;
        let entry = (chunk.range.first, key);
        let (job, suspect) = (chunk.job, chunk.is_suspect());
        let queues = &mut self.jobs[job];
        let queue = if suspect { &mut queues.suspects } else { &mut queues.queue };
        queue.insert(entry);
        self.reorder(job);
    }

    /// Takes a chunk that waits for a worker out of its queue; nothing if it does not wait.
    pub(crate) fn unqueue(&mut self, key: Key<Chunk>) {
        let chunk = &self.chunks[key];
        if chunk.state != ChunkState::Ready {
            return;
        }
        let (job, entry, suspect) = (chunk.job, (chunk.range.first, key), chunk.is_suspect());
        let queues = &mut self.jobs[job];
        let queue = if suspect { &mut queues.suspects } else { &mut queues.queue };
        if queue.remove(&entry) {
            self.reorder(job);
        }
    }

    /// Lets the chunk wait until then, and for a worker after it.
    pub(crate) fn pause_chunk(&mut self, key: Key<Chunk>, until: Time) {
        self.chunks[key].state = ChunkState::Paused { until };
        self.due.insert((until, Due::Retry(key)));
    }

    /// Says that an attempt at the chunk has ended. Returns the other one, if there were two.
    pub(crate) fn leave_chunk(&mut self, key: Key<Chunk>, ended: AttemptId) -> Option<AttemptId> {
        let chunk = &mut self.chunks[key];
        let ChunkState::Out { attempt, twin } = chunk.state else {
            unreachable!("a chunk with an attempt is out");
        };
        let other = if attempt == ended { twin } else { Some(attempt) };
        if let Some(attempt) = other {
            chunk.state = ChunkState::Out { attempt, twin: None };
        }
        other
    }
}
