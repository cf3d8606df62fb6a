//! What the scheduler asks for, carried out.

use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_common::limits::{OUTPUT_WINDOW_BYTES, PART_BYTES_MIN};
use widemap_proto::session::{LeftOut, Order, OutputGrant};
use widemap_sched::event::{Action, Event};

use super::{Attempt, Driver, THE_JOB};
use crate::session::Recalled;

impl Driver {
    /// Carries out one action.
    pub(super) fn act(&mut self, action: &Action) {
        match *action {
            Action::OpenJob { worker, .. } => self.open_job(worker),
            Action::CloseJob { worker, job } => self.order(worker, Order::CloseJob(job)),
            Action::Cut { chunks, items_max, bytes_max, .. } => {
                self.cut(chunks, items_max, bytes_max);
            }
            Action::Assign { worker, attempt, job, range } => {
                self.assign(worker, attempt, job, range);
            }
            Action::Revoke { worker, attempt } => self.revoke(worker, attempt),
            Action::Cancel { worker, attempt } => self.cancel_attempt(worker, attempt),
            Action::Accept { attempt, range, worker, runs, .. } => {
                let name = self.fleet.name(worker);
                self.job.accept(attempt, range, name, runs);
            }
            Action::Fail { range, ref failure, .. } => {
                let name = failure.worker.map(|worker| self.fleet.name(worker));
                self.job.fail_items(range, failure, name);
            }
            Action::Retry { range, kind, worker, runs, .. } => {
                tracing::info!(%range, %kind, %worker, runs, "runs again");
                self.job.retried(range);
            }
            Action::Release { worker, attempt } => {
                self.attempts.remove(&attempt);
                self.job.discard(attempt);
                if let Some(link) = self.fleet.link(worker) {
                    link.outbox.accepted(attempt);
                    self.dirty.insert(worker);
                }
            }
            // The driver looks at all places before it calls a function unusable.
            Action::Unusable { .. } => {}
            Action::Exclude { worker, for_time } => {
                let name = self.fleet.name(worker).to_owned();
                let why = "what it runs fails, what others run does not";
                self.notices.say(&format!("worker {name} is left out for {for_time:?}: {why}"));
                self.job.left_out(name);
                let for_ms = u64::try_from(for_time.as_millis()).unwrap_or(u64::MAX);
                self.order(worker, Order::LeftOut(LeftOut { for_ms, why: why.to_owned() }));
            }
            Action::JobEnded { .. } => self.end.job_ended = true,
        }
    }

    /// Tells a worker of the job: the directory is another for one in this process.
    pub(super) fn open_job(&mut self, worker: WorkerId) {
        let spec = self.job.spec_for(self.fleet.is_embedded(worker));
        if let Some(entry) = self.fleet.worker_mut(worker) {
            entry.jobs.insert(THE_JOB);
        }
        self.order(worker, Order::OpenJob(THE_JOB, Box::new(spec)));
    }

    fn order(&self, worker: WorkerId, order: Order) {
        if let Some(link) = self.fleet.link(worker) {
            link.outbox.order(order);
        }
    }

    fn cut(&mut self, chunks: u32, items_max: u32, bytes_max: u64) {
        let job = THE_JOB;
        let mut ended = false;
        for _ in 0..chunks {
            match self.job.cut(items_max, bytes_max) {
                Some((range, bytes)) => {
                    self.events.push_back(Event::ChunkCut { job, range, bytes });
                }
                None => {
                    ended = true;
                    break;
                }
            }
        }
        let level = self.job.level();
        self.events.push_back(Event::InputLevel { job, level });
        // This has the last word: what is there may be too little to be cut yet.
        if ended {
            self.events.push_back(Event::CutEnded { job });
        }
    }

    fn assign(&mut self, worker: WorkerId, attempt: AttemptId, job: JobId, range: ItemRange) {
        if self.end.cancelled {
            // The actions of one event go on after one of them has ended the map.
            return;
        }
        let input = match self.job.input_of(range) {
            Ok(input) => input,
            Err(error) => return self.fail(error),
        };
        self.attempts.insert(attempt, Attempt { worker, range, staged_bytes: 0 });
        if let Some(link) = self.fleet.link(worker) {
            link.outbox.assign(attempt, job, range, input);
            self.dirty.insert(worker);
        }
    }

    fn revoke(&mut self, worker: WorkerId, attempt: AttemptId) {
        let Some(link) = self.fleet.link(worker) else { return };
        if link.outbox.recall_unsent(attempt) {
            self.attempts.remove(&attempt);
            self.events.push_back(Event::Revoked { attempt });
        } else {
            // The rest of its input goes on: if it is too late, the worker needs it.
            link.outbox.order(Order::Revoke(attempt));
        }
    }

    fn cancel_attempt(&mut self, worker: WorkerId, attempt: AttemptId) {
        self.attempts.remove(&attempt);
        self.job.discard(attempt);
        let Some(link) = self.fleet.link(worker) else { return };
        match link.outbox.recall(attempt) {
            Recalled::Unsent => self.events.push_back(Event::Cancelled { worker, attempt }),
            Recalled::Sent => link.outbox.order(Order::Cancel(attempt)),
        }
    }

    /// Grants each worker as much output as can be stored; where nothing more can, only the head, and
    /// that one too waits for a disk that is at work.
    pub(super) fn grant_output(&mut self) {
        let full = self.job.is_full();
        let clearing = full && self.job.is_clearing();
        let heads = if full { self.job.head_attempts(&self.attempts) } else { Vec::new() };
        let attached: Vec<_> = self
            .fleet
            .workers()
            .filter(|(_, worker)| worker.is_attached())
            .map(|(id, _)| id)
            .collect();
        // A grant moves by half a window: what is left of it before must be worth a part, or a result
        // that does not fit into it waits for ever.
        let window = (self.job.reorder_bytes_max() / 2 / attached.len().max(1) as u64)
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

    /// Wakes the links that have something new to send.
    pub(super) fn flush(&mut self) {
        while let Some(worker) = self.dirty.pop_first() {
            if let Some(link) = self.fleet.link(worker) {
                link.outbox.flush();
            }
        }
    }
}
