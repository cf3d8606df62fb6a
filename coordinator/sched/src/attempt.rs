//! One try at a chunk, as the scheduler sees it, and the list of them on each worker.

use widemap_common::ids::AttemptId;
use widemap_common::time::Time;

use crate::chunk::Chunk;
use crate::job::Job;
use crate::scheduler::Scheduler;
use crate::slab::Key;
use crate::worker::Worker;

/// How far an attempt is. Of a worker's attempts the first ones, as many as it has slots, count as
/// running: it works them off in the order in which they were sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Sent ahead; waits for a slot.
    Waiting,
    /// The count says that it waits, but the worker said that it has started.
    Overtook { since: Time },
    /// Runs.
    Running { since: Time },
}

/// An attempt that has not ended.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) job: Key<Job>,
    pub(crate) chunk: Key<Chunk>,
    pub(crate) worker: Key<Worker>,
    pub(crate) stage: Stage,
    /// Whether it was asked back and nothing was answered yet.
    pub(crate) asked_back: bool,
    /// The neighbours among the worker's attempts, in the order in which they were sent.
    pub(crate) previous: Option<AttemptId>,
    pub(crate) next: Option<AttemptId>,
}

impl Scheduler {
    /// Puts an attempt at the chunk on the worker's list.
    pub(crate) fn begin_attempt(
        &mut self,
        now: Time,
        chunk: Key<Chunk>,
        worker: Key<Worker>,
    ) -> AttemptId {
        let id = self.attempts.push(self.sent_last(chunk, worker));
        self.list_attempt(now, id);
        id
    }

    /// An attempt at the end of the worker's list, which is not on it yet.
    pub(crate) fn sent_last(&self, chunk: Key<Chunk>, worker: Key<Worker>) -> Attempt {
        let (job, previous) = (self.chunks[chunk].job, self.workers[worker].last);
        let (stage, asked_back, next) = (Stage::Waiting, false, None);
        Attempt { job, chunk, worker, stage, asked_back, previous, next }
    }

    /// Puts an attempt at the end of its worker's list.
    pub(crate) fn list_attempt(&mut self, now: Time, id: AttemptId) {
        let Attempt { job, worker, previous: last, .. } = *self.attempt(id);
        if let Some(last) = last {
            self.attempt_mut(last).next = Some(id);
        }
        let there = &mut self.workers[worker];
        there.last = Some(id);
        there.first.get_or_insert(id);
        there.first_waiting.get_or_insert(id);
        there.attempts += 1;
        there.taken += self.jobs[job].policy.slots_per_item.get();
        there.add_of_job(job);
        let job_state = &mut self.jobs[job];
        job_state.in_flight += 1;
        job_state.counts.attempts += 1;
        self.start_waiting(now, worker);
        self.update_places(worker);
        self.reorder(job);
    }

    /// Takes an attempt off its worker's list; what waits there next starts.
    pub(crate) fn end_attempt(&mut self, now: Time, id: AttemptId) -> Attempt {
        let attempt = self.attempts.remove(id).expect("an attempt ends once");
        if let Some(previous) = attempt.previous {
            self.attempt_mut(previous).next = attempt.next;
        }
        if let Some(next) = attempt.next {
            self.attempt_mut(next).previous = attempt.previous;
        }
        let there = &mut self.workers[attempt.worker];
        if there.first == Some(id) {
            there.first = attempt.next;
        }
        if there.last == Some(id) {
            there.last = attempt.previous;
        }
        if there.first_waiting == Some(id) {
            there.first_waiting = attempt.next;
        }
        there.attempts -= 1;
        there.remove_of_job(attempt.job);
        let job = &mut self.jobs[attempt.job];
        let slots = job.policy.slots_per_item.get();
        there.taken -= slots;
        job.in_flight -= 1;
        job.asked_back -= u32::from(attempt.asked_back);
        if let Stage::Running { since } = attempt.stage {
            there.running -= 1;
            there.occupied -= slots;
            job.runners.remove(&(since, id));
        }
        self.leave_quiet(attempt.worker, attempt.chunk);
        self.start_waiting(now, attempt.worker);
        self.update_places(attempt.worker);
        self.reorder(attempt.job);
        attempt
    }

    /// Lets what waits on the worker count as running, as far as it has slots.
    pub(crate) fn start_waiting(&mut self, now: Time, worker: Key<Worker>) {
        loop {
            let Some(id) = self.workers[worker].first_waiting else { return };
            let slots = self.slots_of(id);
            let there = &mut self.workers[worker];
            if !there.fits(there.occupied, slots) {
                return;
            }
            let attempt = self.attempts.get_mut(id).expect("a worker's list holds living attempts");
            let since = match attempt.stage {
                Stage::Overtook { since } => since,
                Stage::Waiting | Stage::Running { .. } => now,
            };
            attempt.stage = Stage::Running { since };
            there.first_waiting = attempt.next;
            there.running += 1;
            there.occupied += slots;
            let job = &mut self.jobs[attempt.job];
            if job.policy.speculate {
                job.runners.insert((since, id));
            }
        }
    }

    /// The worker's attempts, in the order in which they were sent.
    pub(crate) fn attempts_on(&self, worker: Key<Worker>) -> Vec<AttemptId> {
        let next = |&id: &AttemptId| self.attempt(id).next;
        std::iter::successors(self.workers[worker].first, next).collect()
    }

    /// The slots that the attempt takes while it runs.
    pub(crate) fn slots_of(&self, id: AttemptId) -> u32 {
        self.jobs[self.attempt(id).job].policy.slots_per_item.get()
    }

    pub(crate) fn attempt(&self, id: AttemptId) -> &Attempt {
        self.attempts.get(id).expect("an attempt that is referred to is alive")
    }

    pub(crate) fn attempt_mut(&mut self, id: AttemptId) -> &mut Attempt {
        self.attempts.get_mut(id).expect("an attempt that is referred to is alive")
    }
}
