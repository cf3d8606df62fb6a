//! How attempts end: what is final, what runs again, and what has failed for good.

use std::time::Duration;

use widemap_common::backoff;
use widemap_common::failure::FailureKind;
use widemap_common::ids::{AttemptId, ItemRange, WorkerId};
use widemap_common::time::Time;

use crate::attempt::Stage;
use crate::chunk::{Chunk, ChunkState};
use crate::event::{Action, Failure, ItemFault};
use crate::job::Job;
use crate::scheduler::Scheduler;
use crate::slab::Key;
use crate::worker::{Link, Worker};

/// An attempt that has just ended, and whose outcome counts.
#[derive(Clone, Copy, Debug)]
struct Ended {
    id: AttemptId,
    chunk: Key<Chunk>,
    worker: Key<Worker>,
    worker_id: WorkerId,
    range: ItemRange,
}

impl Scheduler {
    pub(crate) fn attempt_done(
        &mut self,
        now: Time,
        id: AttemptId,
        busy_us: u64,
        mut faults: Vec<ItemFault>,
        actions: &mut Vec<Action>,
    ) {
        let Some(attempt) = self.attempts.get(id) else { return };
        let (job, chunk) = (attempt.job, attempt.chunk);
        let items = if self.jobs[job].block_wise { 1 } else { self.chunks[chunk].range.items };
        faults.retain(|fault| fault.index < items);
        faults.sort_by_key(|fault| fault.index);
        faults.dedup_by_key(|fault| fault.index);
        let own = |kind| !matches!(kind, FailureKind::Cancelled | FailureKind::Lost);
        let failed = faults.len() == items as usize && faults.iter().all(|fault| own(fault.kind));
        let sizing = &mut self.jobs[job].sizing;
        match failed {
            true => sizing.failed(busy_us),
            false => sizing.measured(items, busy_us),
        }
        let speculative = self.is_twin(chunk, id);
        let (ended, other) = self.end(now, id);
        if faults.is_empty() {
            self.jobs[job].counts.speculative_wins += u64::from(speculative);
            self.accept(ended, ended.range, actions);
            actions.push(Action::Release { worker: ended.worker_id, attempt: id });
            if let Some(other) = other {
                self.cancel_attempt(now, other, actions);
            }
            self.note_success(now, ended, actions);
            self.note_outcome(now, job, ended.worker, true, actions);
            self.remove_chunk(chunk);
            self.conclude(job, actions);
            return;
        }
        if other.is_some() {
            self.note_failure(ended);
        } else {
            self.faulty(now, ended, items, &faults, actions);
        }
        actions.push(Action::Release { worker: ended.worker_id, attempt: id });
        self.note_outcome(now, job, ended.worker, !failed, actions);
        self.conclude(job, actions);
    }

    /// Accepts what succeeded, and lets each item that did not run again alone, or fail.
    fn faulty(
        &mut self,
        now: Time,
        ended: Ended,
        items: u32,
        faults: &[ItemFault],
        actions: &mut Vec<Action>,
    ) {
        let Ended { chunk, range, .. } = ended;
        if self.jobs[self.chunks[chunk].job].block_wise {
            self.faulty_part(now, ended, range, faults[0], chunk, actions);
            self.remove_chunk(chunk);
            return;
        }
        let (mut after, mut good_from) = (chunk, range.first);
        for &fault in faults {
            let item = range.first + u64::from(fault.index);
            self.accept_between(ended, good_from, item, actions);
            good_from = item + 1;
            after = self.faulty_part(now, ended, ItemRange::new(item, 1), fault, after, actions);
        }
        self.accept_between(ended, good_from, range.end(), actions);
        if faults.len() < items as usize {
            self.note_success(now, ended, actions);
        }
        self.remove_chunk(chunk);
    }

    /// Lets a part of a chunk run again, or fail. Returns the last chunk that was split off.
    fn faulty_part(
        &mut self,
        now: Time,
        ended: Ended,
        part: ItemRange,
        fault: ItemFault,
        after: Key<Chunk>,
        actions: &mut Vec<Action>,
    ) -> Key<Chunk> {
        let (job, runs) = (self.chunks[ended.chunk].job, self.chunks[ended.chunk].runs);
        let kind = fault.kind;
        let unattributed = matches!(kind, FailureKind::Cancelled | FailureKind::Lost);
        if unattributed && self.workers[ended.worker].link == Link::Draining {
            let again = self.split_off(ended.chunk, after, part);
            self.enqueue(again);
            return again;
        }
        let charges = self.chunks[ended.chunk].charges();
        let state = &mut self.jobs[job];
        if !fault.retryable || charges >= state.policy.retries {
            state.counts.failed_items += u64::from(part.items);
            let told_by = Some((ended.id, fault.index));
            let failure = Failure { kind, runs, worker: Some(ended.worker_id), told_by };
            actions.push(Action::Fail { job: state.id, range: part, failure });
            return after;
        }
        state.counts.retries += 1;
        let job = state.id;
        actions.push(Action::Retry { job, range: part, kind, worker: ended.worker_id, runs });
        let again = self.split_off(ended.chunk, after, part);
        self.charge_and_pause(now, again, ended.worker_id);
        again
    }

    fn charge_and_pause(&mut self, now: Time, chunk: Key<Chunk>, worker: WorkerId) {
        let history = self.chunks[chunk].history_mut();
        let retry = history.charges;
        history.charges += 1;
        history.half_failed = false;
        history.fail_on(worker);
        let base = Duration::from_millis(self.timers.retry_ms);
        let most = Duration::from_millis(self.timers.retry_max_ms);
        let pause = backoff::pause(retry, base, most, &mut self.rng);
        self.pause_chunk(chunk, now + pause);
    }

    pub(crate) fn attempt_rejected(&mut self, now: Time, id: AttemptId, actions: &mut Vec<Action>) {
        let Some(attempt) = self.attempts.get(id) else { return };
        let (job, chunk) = (attempt.job, attempt.chunk);
        let (ended, other) = self.end(now, id);
        if other.is_some() {
            self.note_failure(ended);
        } else {
            let state = &mut self.jobs[job];
            let charges = self.chunks[chunk].charges();
            if charges >= state.policy.retries {
                self.fail_chunk(chunk, FailureKind::Error, ended.worker_id, actions);
            } else {
                state.counts.retries += 1;
                let (job, worker, runs) = (state.id, ended.worker_id, self.chunks[chunk].runs);
                let kind = FailureKind::Error;
                actions.push(Action::Retry { job, range: ended.range, kind, worker, runs });
                self.charge_and_pause(now, chunk, worker);
            }
        }
        self.send_cancel(ended.worker, id, actions);
        self.note_outcome(now, job, ended.worker, false, actions);
        self.conclude(job, actions);
    }

    /// Fails every item of a chunk (a block as a whole); no attempt tells why.
    pub(crate) fn fail_chunk(
        &mut self,
        chunk: Key<Chunk>,
        kind: FailureKind,
        worker: WorkerId,
        actions: &mut Vec<Action>,
    ) {
        let (range, runs) = (self.chunks[chunk].range, self.chunks[chunk].runs);
        let key = self.chunks[chunk].job;
        let state = &mut self.jobs[key];
        state.counts.failed_items += u64::from(range.items);
        let parts = if state.block_wise { 1 } else { range.items };
        for index in 0..parts {
            let part = match parts {
                1 => range,
                _ => ItemRange::new(range.first + u64::from(index), 1),
            };
            let failure = Failure { kind, runs, worker: Some(worker), told_by: None };
            actions.push(Action::Fail { job: state.id, range: part, failure });
        }
        self.remove_chunk(chunk);
    }

    pub(crate) fn revoked(&mut self, now: Time, id: AttemptId, actions: &mut Vec<Action>) {
        if let Some(attempt) = self.attempts.get(id) {
            let job = attempt.job;
            self.requeue(now, id, false);
            self.conclude(job, actions);
        }
    }

    pub(crate) fn revoked_too_late(&mut self, now: Time, id: AttemptId) {
        let Some(attempt) = self.attempts.get_mut(id) else { return };
        let (job, worker) = (attempt.job, attempt.worker);
        if attempt.stage == Stage::Waiting {
            attempt.stage = Stage::Overtook { since: now };
        }
        if std::mem::take(&mut attempt.asked_back) {
            self.jobs[job].asked_back -= 1;
        }
        self.update_places(worker);
    }

    /// Ends an attempt at nobody's charge; its chunk waits for a worker again, unless its twin goes
    /// on.
    pub(crate) fn requeue(&mut self, now: Time, id: AttemptId, started: bool) {
        let attempt = self.end_attempt(now, id);
        if self.leave_chunk(attempt.chunk, id).is_some() {
            return;
        }
        if started {
            self.chunks[attempt.chunk].runs += 1;
        }
        self.enqueue(attempt.chunk);
    }

    /// Cancels an attempt. Its chunk is the caller's to care for, if no twin goes on.
    pub(crate) fn cancel_attempt(&mut self, now: Time, id: AttemptId, actions: &mut Vec<Action>) {
        self.send_cancel(self.attempt(id).worker, id, actions);
        self.end_attempt(now, id);
    }

    pub(crate) fn cancel_and_requeue(
        &mut self,
        now: Time,
        id: AttemptId,
        actions: &mut Vec<Action>,
    ) {
        let attempt = self.attempt(id);
        let started = attempt.stage != Stage::Waiting;
        self.send_cancel(attempt.worker, id, actions);
        self.requeue(now, id, started);
    }

    /// Ends an attempt that has run. Returns also the other attempt at its chunk, if there is one.
    fn end(&mut self, now: Time, id: AttemptId) -> (Ended, Option<AttemptId>) {
        let attempt = self.end_attempt(now, id);
        let (chunk, worker) = (attempt.chunk, attempt.worker);
        let other = self.leave_chunk(chunk, id);
        let entry = &mut self.chunks[chunk];
        entry.runs += 1;
        let range = entry.range;
        (Ended { id, chunk, worker, worker_id: self.workers[worker].id, range }, other)
    }

    fn is_twin(&self, chunk: Key<Chunk>, id: AttemptId) -> bool {
        matches!(self.chunks[chunk].state, ChunkState::Out { twin: Some(twin), .. } if twin == id)
    }

    fn accept(&mut self, ended: Ended, range: ItemRange, actions: &mut Vec<Action>) {
        let chunk = &self.chunks[ended.chunk];
        let (runs, job) = (chunk.runs, &mut self.jobs[chunk.job]);
        job.counts.accepted_items += u64::from(range.items);
        let (job, attempt, worker) = (job.id, ended.id, ended.worker_id);
        actions.push(Action::Accept { job, attempt, range, worker, runs });
    }

    fn accept_between(&mut self, ended: Ended, from: u64, to: u64, actions: &mut Vec<Action>) {
        if from < to {
            let items = u32::try_from(to - from).expect("a part is no larger than its chunk");
            self.accept(ended, ItemRange::new(from, items), actions);
        }
    }

    fn note_success(&mut self, now: Time, ended: Ended, actions: &mut Vec<Action>) {
        let history = self.chunks[ended.chunk].history.as_mut();
        let failed_on = history.map(|history| std::mem::take(&mut history.failed_on));
        self.succeeded_on(now, ended.worker, &failed_on.unwrap_or_default(), actions);
    }

    /// One of two attempts has failed: it is charged when the other has, too.
    fn note_failure(&mut self, ended: Ended) {
        let history = self.chunks[ended.chunk].history_mut();
        history.fail_on(ended.worker_id);
        history.half_failed = true;
    }

    /// Ends the job if it is over, or says so if nobody is left to run the rest of it.
    pub(crate) fn conclude(&mut self, job: Key<Job>, actions: &mut Vec<Action>) {
        if !self.end_if_over(job, actions) {
            self.tell_if_unusable(job, actions);
        }
    }
}
