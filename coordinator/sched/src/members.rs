//! How workers come, change, are cut off, return and go.

use widemap_common::ids::{AttemptId, WorkerId};
use widemap_common::limits::{QUEUE_MAX, SLOTS_MAX};
use widemap_common::time::Time;

use crate::attempt::Stage;
use crate::event::{Action, DeathProof, WorkerTraits};
use crate::scheduler::Scheduler;
use crate::slab::Key;
use crate::worker::{Link, Standing, Worker};

impl Scheduler {
    pub(crate) fn worker_up(
        &mut self,
        now: Time,
        id: WorkerId,
        traits: WorkerTraits,
        actions: &mut Vec<Action>,
    ) {
        if let Some(&former) = self.worker_keys.get(&id) {
            // It starts afresh: what it had is gone, at nobody's charge.
            self.worker_dead(now, former, DeathProof::LeaseEnded, actions);
        }
        let worker = self.workers.insert(Worker::new(id, traits));
        self.worker_keys.insert(id, worker);
        self.close_ended_on(id, actions);
        let jobs: Vec<_> = self.job_keys.values().copied().collect();
        for job in jobs {
            self.offer_job(worker, job, actions);
        }
    }

    pub(crate) fn worker_credit(
        &mut self,
        now: Time,
        worker: Key<Worker>,
        slots: u32,
        queue: u32,
        actions: &mut Vec<Action>,
    ) {
        let there = &mut self.workers[worker];
        (there.slots, there.queue) = (slots.min(SLOTS_MAX), queue.min(QUEUE_MAX));
        let lends_none = there.slots == 0;
        self.start_waiting(now, worker);
        if lends_none {
            self.set_aside(worker);
        } else {
            self.update_places(worker);
        }
        let there = &self.workers[worker];
        let beyond = there.attempts.saturating_sub(there.slots.saturating_add(there.queue));
        if !there.is_cut() {
            self.ask_waiting_back(worker, beyond, actions);
        }
    }

    pub(crate) fn round_trip(&mut self, worker: Key<Worker>, micros: u64) {
        let round_trip_us = &mut self.workers[worker].round_trip_us;
        *round_trip_us = (3 * *round_trip_us).saturating_add(micros) / 4;
        self.update_places(worker);
    }

    /// What the worker says to run has started, also where it was counted as waiting: it cannot be
    /// taken back any more, and is a suspect if the worker dies.
    pub(crate) fn progress(
        &mut self,
        now: Time,
        worker: Key<Worker>,
        running: &[(AttemptId, u32)],
    ) {
        for &(id, _) in running {
            let attempt = self.attempts.get_mut(id).filter(|attempt| attempt.worker == worker);
            if let Some(attempt) = attempt.filter(|attempt| attempt.stage == Stage::Waiting) {
                attempt.stage = Stage::Overtook { since: now };
            }
        }
    }

    pub(crate) fn worker_cut(&mut self, worker: Key<Worker>) {
        let there = &mut self.workers[worker];
        there.link = match there.link {
            Link::Up | Link::Cut => Link::Cut,
            Link::Draining | Link::CutDraining => Link::CutDraining,
        };
        self.set_aside(worker);
    }

    pub(crate) fn worker_draining(&mut self, worker: Key<Worker>) {
        let there = &mut self.workers[worker];
        there.link = match there.link {
            Link::Up | Link::Draining => Link::Draining,
            Link::Cut | Link::CutDraining => Link::CutDraining,
        };
        self.set_aside(worker);
    }

    fn set_aside(&mut self, worker: Key<Worker>) {
        self.lose_quiet(worker);
        self.update_places(worker);
        self.relieve_excluded();
    }

    pub(crate) fn worker_back(
        &mut self,
        now: Time,
        worker: Key<Worker>,
        mut held: Vec<AttemptId>,
        actions: &mut Vec<Action>,
    ) {
        let there = &mut self.workers[worker];
        there.link = match there.link {
            Link::Up | Link::Cut => Link::Up,
            Link::Draining | Link::CutDraining => Link::Draining,
        };
        let id = there.id;
        self.close_ended_on(id, actions);
        // A worker that was cut off for longer than its own lease has forgotten the jobs.
        let there = &self.workers[worker];
        let open = there.jobs.iter().filter(|(_, standing)| *standing != Standing::Refused);
        let opened = open.map(|&(job, _)| Action::OpenJob { worker: id, job: self.jobs[job].id });
        actions.extend(opened);
        held.sort_unstable();
        held.dedup();
        for attempt in self.attempts_on(worker) {
            if held.binary_search(&attempt).is_err() {
                let started = self.attempt(attempt).stage != Stage::Waiting;
                self.requeue(now, attempt, started);
                // A worker that cannot send a result again ends the attempt, in its own time.
                self.haunt(worker, attempt);
            } else {
                self.ask_again(attempt, actions);
            }
        }
        for attempt in held {
            if self.attempts.get(attempt).is_none_or(|known| known.worker != worker) {
                self.haunt(worker, attempt);
            }
        }
        self.send_cancels_again(worker, actions);
        self.update_places(worker);
        self.relieve_excluded();
        self.conclude_jobs(actions);
    }

    /// Says again which jobs are over: what was said before a cut, or before the worker was given up
    /// for a time, may not have arrived.
    fn close_ended_on(&self, worker: WorkerId, actions: &mut Vec<Action>) {
        let ended = self.ended.iter().map(|&(job, _)| job);
        actions.extend(ended.map(|job| Action::CloseJob { worker, job }));
    }

    /// An attempt that was asked for before the cut: nobody will answer that any more.
    fn ask_again(&mut self, id: AttemptId, actions: &mut Vec<Action>) {
        let attempt = self.attempt(id);
        if attempt.asked_back {
            let worker = self.workers[attempt.worker].id;
            actions.push(Action::Revoke { worker, attempt: id });
        }
    }

    pub(crate) fn worker_dead(
        &mut self,
        now: Time,
        worker: Key<Worker>,
        proof: DeathProof,
        actions: &mut Vec<Action>,
    ) {
        self.workers[worker].link = Link::Cut;
        self.set_aside(worker);
        self.forget_exclusion(worker);
        if proof != DeathProof::Drained {
            for &(job, _) in &self.workers[worker].of_jobs {
                self.jobs[job].counts.workers_lost += 1;
            }
        }
        let attempts = self.attempts_on(worker);
        match proof {
            DeathProof::Proved => self.charge_death(now, worker, &attempts, actions),
            DeathProof::LeaseEnded | DeathProof::Drained => {
                let started = |&id: &AttemptId| (id, self.attempt(id).stage != Stage::Waiting);
                let attempts: Vec<_> = attempts.iter().map(started).collect();
                for (id, started) in attempts {
                    self.requeue(now, id, started);
                }
            }
        }
        self.forget_ghosts(worker);
        let there = self.workers.remove(worker);
        self.worker_keys.remove(&there.id);
        for (job, standing) in there.jobs {
            let state = &mut self.jobs[job];
            *state.standing_mut(standing) -= 1;
            state.pool.set(worker, None);
            state.hoards.set(worker, None);
            state.records.forget(worker);
        }
        self.conclude_jobs(actions);
    }

    /// Looks at every job: what has happened to a worker may have ended any.
    fn conclude_jobs(&mut self, actions: &mut Vec<Action>) {
        let jobs: Vec<_> = self.job_keys.values().copied().collect();
        for job in jobs {
            self.conclude(job, actions);
        }
    }
}
