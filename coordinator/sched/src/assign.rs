//! Which chunk goes where next: retries before new chunks, the least loaded worker first, and
//! waiting attempts are fetched back for slots that would be idle.

use std::ops::Bound::{Excluded, Unbounded};

use widemap_common::ids::AttemptId;
use widemap_common::limits::{
    CHUNK_BYTES_MAX, CUT_CHUNKS_MAX, FILTER_CHUNK_BYTES_MAX, QUEUE_LOOKED_AT_MAX,
};
use widemap_common::spec::Runtime;
use widemap_common::time::Time;

use crate::attempt::Stage;
use crate::chunk::{Chunk, ChunkState};
use crate::event::Action;
use crate::job::{Job, Rank};
use crate::pool::{LEVEL_BUSY, LEVELS};
use crate::scheduler::{Cutting, Scheduler};
use crate::slab::Key;
use crate::worker::{Link, Worker};

/// What came of looking for work of one job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Placed {
    /// A chunk was assigned.
    Assigned,
    /// Chunks were asked for.
    Cut,
    /// There is no worker for it, or nothing for a worker.
    Nothing,
}

impl Scheduler {
    /// Gives out work until there is no more of it, or no more room.
    pub(crate) fn settle(&mut self, now: Time, actions: &mut Vec<Action>) {
        let mut at = self.order.first().copied();
        while let Some(rank) = at {
            let before = actions.len();
            at = match self.place(now, rank, actions) {
                Placed::Assigned => self.order.first().copied(),
                // What was cancelled to make room for a head has changed the order.
                Placed::Nothing if actions.len() > before => self.order.first().copied(),
                // What comes will take the room that there is.
                Placed::Cut => return,
                Placed::Nothing => self.order.range((Excluded(rank), Unbounded)).next().copied(),
            };
        }
        self.fetch_back(actions);
        self.speculate(now, actions);
    }

    fn place(&mut self, now: Time, rank: Rank, actions: &mut Vec<Action>) -> Placed {
        let job = rank.job;
        if self.jobs[job].storage_full {
            let placed = self.place_head(now, job, actions);
            return if placed { Placed::Assigned } else { Placed::Nothing };
        }
        if self.place_suspect(now, job, actions) || self.place_queued(now, job, actions) {
            return Placed::Assigned;
        }
        if self.jobs[job].can_cut() { self.cut(rank, actions) } else { Placed::Nothing }
    }

    fn place_queued(&mut self, now: Time, job: Key<Job>, actions: &mut Vec<Action>) -> bool {
        let state = &self.jobs[job];
        if state.pool.is_empty() {
            return false;
        }
        let queued = state.queue.iter().take(QUEUE_LOOKED_AT_MAX);
        let found =
            queued.map(|&(_, chunk)| chunk).find_map(|chunk| Some((chunk, self.pick(chunk)?)));
        if let Some((chunk, worker)) = found {
            self.assign(now, chunk, worker, actions);
        }
        found.is_some()
    }

    fn cut(&mut self, rank: Rank, actions: &mut Vec<Action>) -> Placed {
        let job = &self.jobs[rank.job];
        let room = match self.may_prefetch(rank.job) {
            true => job.pool.room(),
            false => job.pool.idle().max(u64::from(self.turn(rank.job).is_some())),
        };
        if room == 0 || self.cutting.is_some() {
            return Placed::Nothing;
        }
        // Where several jobs share the workers, they take turns.
        let next = self.order.range((Excluded(rank), Unbounded)).next();
        let shared = next.is_some_and(|next| next.priority == rank.priority);
        let most = if shared { 1 } else { CUT_CHUNKS_MAX };
        let chunks = u32::try_from(room).unwrap_or(u32::MAX).min(most);
        let items_max = job.sizing.items(job.items_left(), job.pool.slots());
        let bytes_max = match job.policy.runtime {
            Runtime::Filter => FILTER_CHUNK_BYTES_MAX,
            _ => CHUNK_BYTES_MAX,
        };
        actions.push(Action::Cut { job: job.id, chunks, items_max, bytes_max });
        self.cutting = Some(Cutting { job: rank.job, chunks_left: chunks });
        Placed::Cut
    }

    /// Whether attempts of the job may wait on workers: not while suspects, or another job's long
    /// attempts, need the slots to become idle.
    fn may_prefetch(&self, job: Key<Job>) -> bool {
        let state = &self.jobs[job];
        let own = u32::from(state.rank.is_some_and(|(_, short)| !short));
        self.long_wanting == own && state.suspects.is_empty()
    }

    /// The worker for a chunk: the least loaded that has room and has not failed it. One that has
    /// is taken only if there is no other at all.
    pub(crate) fn pick(&self, chunk: Key<Chunk>) -> Option<Key<Worker>> {
        let job = self.chunks[chunk].job;
        let level = if self.may_prefetch(job) { LEVELS } else { LEVEL_BUSY };
        self.pick_below(chunk, level).or_else(|| {
            let failed_on = self.chunks[chunk].failed_on();
            self.turn(job).filter(|&worker| !failed_on.contains(&self.workers[worker].id))
        })
    }

    /// The worker where an attempt of several slots may wait until other jobs have left it those.
    fn turn(&self, job: Key<Job>) -> Option<Key<Worker>> {
        let state = &self.jobs[job];
        if state.policy.slots_per_item.get() == 1 || !state.suspects.is_empty() {
            return None;
        }
        state.pool.below(LEVELS).find(|&worker| self.takes_turn(&self.workers[worker], job))
    }

    pub(crate) fn pick_below(&self, chunk: Key<Chunk>, level: u32) -> Option<Key<Worker>> {
        let failed_on = self.chunks[chunk].failed_on();
        let pool = &self.jobs[self.chunks[chunk].job].pool;
        if failed_on.is_empty() {
            return pool.below(level).next();
        }
        let other = pool.below(level).find(|&key| !failed_on.contains(&self.workers[key].id));
        if other.is_some() {
            return other;
        }
        let keys = failed_on.iter().filter_map(|id| self.worker_keys.get(id));
        let failed_usable = keys.filter(|&&key| pool.place(key).is_some()).count();
        let all_failed = failed_usable >= pool.usable() as usize;
        if all_failed { pool.below(level).next() } else { None }
    }

    /// Sends the chunk to the worker.
    pub(crate) fn assign(
        &mut self,
        now: Time,
        chunk: Key<Chunk>,
        worker: Key<Worker>,
        actions: &mut Vec<Action>,
    ) {
        self.unqueue(chunk);
        if self.chunks[chunk].reserved().is_some_and(|reserved| reserved != worker) {
            self.leave_reserved(chunk);
        }
        let suspect = self.chunks[chunk].is_suspect();
        let there = &mut self.workers[worker];
        if suspect {
            debug_assert!(there.suspect.is_none(), "one suspect at a time on a worker");
            debug_assert!(there.ghosts.is_empty(), "nobody else is to be blamed for a death");
            there.suspect = Some(chunk);
        }
        let worker_id = there.id;
        let attempt = self.begin_attempt(now, chunk, worker);
        let entry = &mut self.chunks[chunk];
        entry.state = match entry.state {
            ChunkState::Out { attempt: original, twin: None } => {
                ChunkState::Out { attempt: original, twin: Some(attempt) }
            }
            ChunkState::Ready => ChunkState::Out { attempt, twin: None },
            state => unreachable!("a chunk that is {state:?} is not assigned"),
        };
        let (job, range) = (self.jobs[entry.job].id, entry.range);
        let speculative = matches!(entry.state, ChunkState::Out { twin: Some(_), .. });
        actions.push(Action::Assign { worker: worker_id, attempt, job, range, speculative });
    }

    /// Asks for attempts that wait elsewhere, for slots that would be idle.
    fn fetch_back(&mut self, actions: &mut Vec<Action>) {
        let mut at = self.hoarding.first().copied();
        while let Some(job) = at {
            while self.fetch_one_back(job, actions) {}
            if self.jobs[job].hoards.is_empty() {
                self.hoarding.remove(&job);
            }
            at = self.hoarding.range((Excluded(job), Unbounded)).next().copied();
        }
    }

    fn fetch_one_back(&mut self, job: Key<Job>, actions: &mut Vec<Action>) -> bool {
        let state = &self.jobs[job];
        let busy = state.rank.is_some() || state.storage_full;
        if busy || state.pool.idle() <= u64::from(state.asked_back) {
            return false;
        }
        let Some(worker) = state.hoards.below(LEVELS).next() else { return false };
        match self.last_to_ask(worker, job) {
            Some(id) => self.ask_back(id, actions),
            // All of them are asked for already, are another job's, or fit no idle slot.
            None => self.jobs[job].hoards.set(worker, None),
        }
        true
    }

    /// The attempt that was sent last to the worker, is still waiting, was not asked for, and could
    /// go to an idle slot: where it failed it would not, and would come back for ever.
    fn last_to_ask(&self, worker: Key<Worker>, job: Key<Job>) -> Option<AttemptId> {
        let there = &self.workers[worker];
        let previous = |&id: &AttemptId| self.attempt(id).previous;
        let waiting = std::iter::successors(there.last, previous).take(there.waiting() as usize);
        let mut waiting = waiting.filter(|&id| {
            let attempt = self.attempt(id);
            let waits = attempt.stage == Stage::Waiting && !attempt.asked_back;
            attempt.job == job && waits && self.pick_below(attempt.chunk, LEVEL_BUSY).is_some()
        });
        waiting.next()
    }

    pub(crate) fn ask_back(&mut self, id: AttemptId, actions: &mut Vec<Action>) {
        let attempt = self.attempt_mut(id);
        attempt.asked_back = true;
        let (job, worker) = (attempt.job, attempt.worker);
        self.jobs[job].asked_back += 1;
        actions.push(Action::Revoke { worker: self.workers[worker].id, attempt: id });
    }

    /// Asks for the last `count` attempts of those that wait on the worker.
    pub(crate) fn ask_waiting_back(
        &mut self,
        worker: Key<Worker>,
        count: u32,
        actions: &mut Vec<Action>,
    ) {
        let there = &self.workers[worker];
        let count = count.min(there.waiting()) as usize;
        let previous = |&id: &AttemptId| self.attempt(id).previous;
        let last: Vec<_> = std::iter::successors(there.last, previous).take(count).collect();
        for id in last {
            let attempt = self.attempt(id);
            if attempt.stage == Stage::Waiting && !attempt.asked_back {
                self.ask_back(id, actions);
            }
        }
    }

    /// Whether the attempt waits for a slot of a worker that can be reached.
    pub(crate) fn waits(&self, id: AttemptId) -> bool {
        let attempt = self.attempts.get(id).filter(|attempt| attempt.stage == Stage::Waiting);
        attempt.is_some_and(|attempt| !self.workers[attempt.worker].is_cut())
    }

    /// Gives the head of a job whose storage is full a slot, taken from the attempt that is
    /// farthest ahead if need be: what that one makes could not be stored anyway.
    fn place_head(&mut self, now: Time, job: Key<Job>, actions: &mut Vec<Action>) -> bool {
        let Some(head) = self.jobs[job].first else { return false };
        match self.chunks[head].state {
            ChunkState::Ready => {}
            ChunkState::Out { attempt, twin: None } if self.waits(attempt) => {
                self.cancel_attempt(now, attempt, actions);
                self.enqueue(head);
            }
            ChunkState::Out { .. } | ChunkState::Paused { .. } => return false,
        }
        let worker = self.idle_for(head).or_else(|| self.empty_slot_for(now, head, actions));
        if let Some(worker) = worker {
            self.assign(now, head, worker, actions);
        }
        worker.is_some()
    }

    fn idle_for(&mut self, head: Key<Chunk>) -> Option<Key<Worker>> {
        match self.chunks[head].is_suspect() {
            true => self.suspect_worker(head),
            false => self.pick_below(head, LEVEL_BUSY),
        }
    }

    /// Cancels what is farthest ahead on a worker until there is room for the head: nothing of it
    /// could be stored, so that it would hold its slot for ever. A head on its last try gets the
    /// worker for itself.
    fn empty_slot_for(
        &mut self,
        now: Time,
        head: Key<Chunk>,
        actions: &mut Vec<Action>,
    ) -> Option<Key<Worker>> {
        let job = self.chunks[head].job;
        let alone = self.is_on_last_try(head);
        let slots = self.jobs[job].policy.slots_per_item.get();
        let (worker, victim) = match self.chunks[head].reserved() {
            Some(worker) => (worker, None),
            None => self.farthest_ahead(head).map(|(worker, id)| (worker, Some(id)))?,
        };
        let other = self.workers[worker].quiet.filter(|&other| other != head);
        if let Some(other) = other.filter(|&other| self.chunks[other].state == ChunkState::Ready) {
            self.leave_reserved(other);
        }
        let on_worker = self.attempts_on(worker);
        let (waiting, running): (Vec<_>, Vec<_>) =
            on_worker.into_iter().rev().partition(|&id| self.attempt(id).stage == Stage::Waiting);
        let (first, rest): (Vec<_>, Vec<_>) =
            running.into_iter().partition(|&id| Some(id) == victim);
        for id in waiting.into_iter().chain(first) {
            self.cancel_and_requeue(now, id, actions);
        }
        for id in rest {
            let own = self.attempt(id).job == job;
            if own && !self.has_room(worker, slots, alone) {
                self.cancel_and_requeue(now, id, actions);
            }
        }
        // What was cancelled may run on for a moment: a suspect waits for its end.
        let haunted = self.chunks[head].is_suspect() && !self.workers[worker].ghosts.is_empty();
        if (alone || haunted) && self.chunks[head].reserved().is_none() {
            self.reserve(worker, head);
        }
        (self.has_room(worker, slots, alone) && !haunted).then_some(worker)
    }

    fn has_room(&self, worker: Key<Worker>, slots: u32, alone: bool) -> bool {
        let there = &self.workers[worker];
        match alone {
            true => there.attempts == 0 && there.slots > 0,
            false => there.fits(there.taken, slots),
        }
    }

    /// The job's attempt that is farthest ahead and could make room for the head.
    pub(crate) fn farthest_ahead(&self, head: Key<Chunk>) -> Option<(Key<Worker>, AttemptId)> {
        let job = self.chunks[head].job;
        let suspect = self.chunks[head].is_suspect();
        let previous = |&key: &Key<Chunk>| self.chunks[key].previous;
        let from_the_last = std::iter::successors(self.jobs[job].last, previous);
        from_the_last.take_while(|&key| key != head).find_map(|key| {
            let ChunkState::Out { attempt: id, .. } = self.chunks[key].state else { return None };
            let attempt = self.attempt(id);
            let there = &self.workers[attempt.worker];
            let fits = there.link == Link::Up
                && there.slots > 0
                && !(suspect && there.suspect.is_some_and(|other| other != key));
            (fits && attempt.stage != Stage::Waiting).then_some((attempt.worker, id))
        })
    }
}
