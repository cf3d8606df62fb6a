//! What the scheduler asks for, carried out.

use std::collections::BTreeSet;

use widemap_common::ids::{AttemptId, JobId, WorkerId};
use widemap_common::limits::{OUTPUT_WINDOW_BYTES, PART_BYTES_MIN};
use widemap_proto::jobs::AttemptState;
use widemap_proto::session::{LeftOut, Order, OutputGrant};
use widemap_sched::event::{Action, Event};

use super::core::{Attempt, Core, Verdict};
use super::job::Job;
use crate::failpoint;
use crate::journal::Durable;
use crate::session::Recalled;

impl Core {
    /// Carries out one action.
    pub(super) fn act(&mut self, action: &Action) {
        match *action {
            Action::OpenJob { worker, job } => self.open_job(worker, job),
            Action::CloseJob { worker, job } => self.close_job(worker, job),
            Action::Cut { job, chunks, items_max, bytes_max } => {
                self.cut(job, chunks, items_max, bytes_max);
            }
            Action::Assign { worker, attempt, job, range, speculative } => {
                let (assigned, staged_bytes) = (self.now, 0);
                let entry = Attempt { job, worker, range, assigned, speculative, staged_bytes };
                self.assign(attempt, entry);
            }
            Action::Revoke { worker, attempt } => self.revoke(worker, attempt),
            Action::Cancel { worker, attempt } => self.cancel_attempt(worker, attempt),
            Action::Accept { job, attempt, range, worker, runs } => {
                failpoint::hit("result.accepted");
                self.tally.items_ok += u64::from(range.items);
                self.tally.chunks_accepted += 1;
                let name = self.fleet.name(worker);
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.accept(attempt, range, name, runs);
                }
            }
            Action::Fail { job, range, ref failure } => {
                self.tally.items_failed += u64::from(range.items);
                let name = failure.worker.map(|worker| self.fleet.name(worker));
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.fail_items(range, failure, name);
                }
            }
            Action::Retry { job, range, kind, worker, runs } => {
                tracing::info!(%job, %range, %kind, %worker, runs, "runs again");
                self.tally.items_retried += u64::from(range.items);
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.retried(range);
                }
            }
            Action::Release { worker, attempt } => self.release(worker, attempt),
            // The driver looks at all places before it calls a function unusable.
            Action::Unusable { .. } => {}
            Action::Exclude { worker, for_time } => {
                let name = self.fleet.name(worker).to_owned();
                let why = "what it runs fails, what others run does not";
                self.notices.say(&format!("worker {name} is left out for {for_time:?}: {why}"));
                self.jobs.values_mut().for_each(|job| job.left_out(&name));
                let for_ms = u64::try_from(for_time.as_millis()).unwrap_or(u64::MAX);
                self.order(worker, Order::LeftOut(LeftOut { for_ms, why: why.to_owned() }));
            }
            Action::JobEnded { job } => self.verdicts.push(Verdict::Ended(job)),
        }
    }

    /// The worker may forget an attempt, once what was accepted of it is safe.
    fn release(&mut self, worker: WorkerId, attempt: AttemptId) {
        let entry = self.attempts.remove(&attempt);
        let ticket = entry.and_then(|entry| {
            let job = self.jobs.get_mut(&entry.job)?;
            let (state, remark) = job.verdict_on(attempt);
            self.tally.attempt(state);
            job.note(entry.ended(attempt, self.now, state, &remark));
            job.release(attempt)
        });
        match ticket {
            Some(ticket) => {
                self.unsettled.wait(ticket, worker, attempt);
                if self.unsettled.are_many(worker) {
                    self.hold_back(worker);
                }
            }
            None => self.forget(worker, attempt),
        }
    }

    /// Tells workers what is durable now.
    pub(super) fn settle(&mut self, durable: Durable) {
        let settled = self.unsettled.settled(durable);
        if !settled.is_empty() {
            failpoint::hit("result.settled");
        }
        let workers: BTreeSet<_> = settled.iter().map(|&(worker, _)| worker).collect();
        settled.into_iter().for_each(|(worker, attempt)| self.forget(worker, attempt));
        workers.into_iter().for_each(|worker| self.hold_back(worker));
    }

    /// Sends nothing new to a worker that keeps many results which are not durable yet.
    pub(super) fn hold_back(&self, worker: WorkerId) {
        if let Some(link) = self.fleet.link(worker) {
            link.outbox.hold_back(self.unsettled.are_many(worker));
        }
    }

    pub(super) fn forget(&mut self, worker: WorkerId, attempt: AttemptId) {
        if let Some(link) = self.fleet.link(worker) {
            link.outbox.accepted(attempt);
            self.dirty.insert(worker);
        }
    }

    /// Tells a worker of a job: the directory is another for one in this process.
    pub(super) fn open_job(&mut self, worker: WorkerId, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let spec = job.spec_for(self.fleet.is_embedded(worker));
        if let Some(entry) = self.fleet.worker_mut(worker) {
            entry.jobs.insert(id);
        }
        self.order(worker, Order::OpenJob(id, Box::new(spec)));
    }

    pub(super) fn close_job(&mut self, worker: WorkerId, job: JobId) {
        if let Some(entry) = self.fleet.worker_mut(worker) {
            entry.jobs.remove(&job);
        }
        self.order(worker, Order::CloseJob(job));
    }

    fn order(&self, worker: WorkerId, order: Order) {
        if let Some(link) = self.fleet.link(worker) {
            link.outbox.order(order);
        }
    }

    fn cut(&mut self, id: JobId, chunks: u32, items_max: u32, bytes_max: u64) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return self.events.push_back(Event::CutEnded { job: id });
        };
        let mut ended = false;
        for _ in 0..chunks {
            match job.cut(items_max, bytes_max) {
                Some((range, bytes)) => {
                    self.events.push_back(Event::ChunkCut { job: id, range, bytes });
                }
                None => {
                    ended = true;
                    break;
                }
            }
        }
        self.events.push_back(Event::InputLevel { job: id, level: job.level() });
        // This has the last word: what is there may be too little to be cut yet.
        if ended {
            self.events.push_back(Event::CutEnded { job: id });
        }
    }

    fn assign(&mut self, attempt: AttemptId, entry: Attempt) {
        let Attempt { job, worker, range, .. } = entry;
        // The actions of one event go on after one of them has ended the job.
        let Some(open) = self.jobs.get_mut(&job).filter(|open| !open.is_stopped()) else { return };
        let (input, offset) = match open.input_of(range) {
            Ok(input) => input,
            Err(error) => return self.verdicts.push(Verdict::Failed(job, error)),
        };
        self.attempts.insert(attempt, entry);
        if let Some(link) = self.fleet.link(worker) {
            link.outbox.assign(attempt, job, range, input, offset);
            self.dirty.insert(worker);
        }
    }

    fn revoke(&mut self, worker: WorkerId, attempt: AttemptId) {
        let Some(link) = self.fleet.link(worker) else { return };
        if link.outbox.recall_unsent(attempt) {
            // Nobody has heard of it: it is not worth remembering.
            self.attempts.remove(&attempt);
            self.events.push_back(Event::Revoked { attempt });
        } else {
            // The rest of its input goes on: if it is too late, the worker needs it.
            link.outbox.order(Order::Revoke(attempt));
        }
    }

    fn cancel_attempt(&mut self, worker: WorkerId, attempt: AttemptId) {
        self.drop_attempt(attempt, AttemptState::Cancelled, "");
        let Some(link) = self.fleet.link(worker) else { return };
        match link.outbox.recall(attempt) {
            Recalled::Unsent => self.events.push_back(Event::Cancelled { worker, attempt }),
            Recalled::Sent => link.outbox.order(Order::Cancel(attempt)),
        }
    }

    /// Forgets an attempt, and what is here of its output; how it ended is remembered.
    pub(super) fn drop_attempt(&mut self, attempt: AttemptId, state: AttemptState, remark: &str) {
        let Some(entry) = self.attempts.remove(&attempt) else { return };
        self.tally.attempt(state);
        if let Some(job) = self.jobs.get_mut(&entry.job) {
            job.discard(attempt);
            job.note(entry.ended(attempt, self.now, state, remark));
        }
    }

    /// Grants each worker as much output as can be stored; where nothing more can, only the head, and
    /// that one too waits for a disk that is at work.
    pub(super) fn grant_output(&mut self) {
        // A grant is for all of a worker's jobs: one that is full must not hold the slots of the others.
        let mut open = self.jobs.values().peekable();
        let full = open.peek().is_some() && open.all(Job::is_full);
        let clearing = full && self.jobs.values().any(Job::is_clearing);
        let heads = if full { self.head_attempts() } else { Vec::new() };
        let attached: Vec<_> = self
            .fleet
            .workers()
            .filter(|(_, worker)| worker.is_attached())
            .map(|(id, _)| id)
            .collect();
        // A grant moves by half a window: what is left of it before must be worth a part, or a result
        // that does not fit into it waits for ever.
        let bytes_max = self.jobs.values().map(Job::kept_bytes_max).min().unwrap_or(u64::MAX);
        let window = (bytes_max / 2 / attached.len().max(1) as u64)
            .clamp(2 * PART_BYTES_MIN, OUTPUT_WINDOW_BYTES);
        for worker in attached {
            let Some(entry) = self.fleet.worker_mut(worker) else { continue };
            let head = heads.iter().find(|(of, ..)| *of == worker);
            let urgent = head.map(|&(_, id, staged_bytes)| match entry.urgent {
                Some(granted) if clearing && granted.0 == id => granted,
                _ => (id, staged_bytes + window),
            });
            let wanted = entry.received_total + window;
            let due = !full && wanted - entry.granted_total.min(wanted) >= window / 2;
            if due {
                entry.granted_total = wanted;
            }
            if due || urgent != entry.urgent {
                entry.urgent = urgent;
                let total = entry.granted_total;
                if let Some(link) = self.fleet.link(worker) {
                    link.outbox.output_grant(OutputGrant { total, urgent });
                }
            }
        }
    }

    /// The attempts that the outputs of full jobs wait for (a speculative one beside the first), where they
    /// run, and how much of their output is here.
    fn head_attempts(&self) -> Vec<(WorkerId, AttemptId, u64)> {
        let mut heads = Vec::new();
        for (&id, job) in &self.jobs {
            let Some(next) = job.next_item() else { continue };
            let at_head = |entry: &Attempt| entry.job == id && entry.range.contains(next);
            let attempts = self.attempts.iter().filter(|(_, entry)| at_head(entry));
            heads.extend(attempts.map(|(&attempt, e)| (e.worker, attempt, e.staged_bytes)));
        }
        heads
    }

    /// Wakes the links that have something new to send.
    pub(super) fn flush(&mut self) {
        while let Some(worker) = self.dirty.pop_first() {
            if let Some(link) = self.fleet.link(worker) {
                link.outbox.flush();
            }
        }
    }
}
