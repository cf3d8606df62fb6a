//! What the scheduler asks for, carried out as the driver does, and held against what it may ask for.

use widemap::session_for_tests::Recalled;
use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_common::limits::SPECULATIVE_PERCENT_MAX;
use widemap_proto::session::{Order, OutputGrant};
use widemap_sched::event::{Action, Event};

use super::coordinator::{Attempt, Coordinator};
use super::fleet::State;

impl Coordinator {
    /// Carries out one action.
    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::OpenJob { worker, job } => self.tell_of_job(worker, job),
            Action::CloseJob { worker, job } => {
                self.fleet.outbox(worker).order(Order::CloseJob(job));
            }
            Action::Cut { job, chunks, items_max, bytes_max } => {
                self.cut(job, chunks, items_max, bytes_max);
            }
            Action::Assign { worker, attempt, job, range, .. } => {
                self.assign(worker, attempt, job, range);
            }
            Action::Revoke { worker, attempt } => {
                if self.fleet.outbox(worker).recall_unsent(attempt) {
                    self.attempts.remove(&attempt);
                    self.events.push_back(Event::Revoked { attempt });
                } else {
                    // The rest of its input goes on: if it is too late, the worker needs it.
                    self.fleet.outbox(worker).order(Order::Revoke(attempt));
                }
            }
            Action::Cancel { worker, attempt } => {
                self.forget_attempt(attempt);
                let outbox = self.fleet.outbox(worker);
                match outbox.recall(attempt) {
                    Recalled::Unsent => {
                        self.events.push_back(Event::Cancelled { worker, attempt });
                    }
                    Recalled::Sent => outbox.order(Order::Cancel(attempt)),
                }
            }
            Action::Accept { job, attempt, range, .. } => {
                assert!(self.is_judged(job, attempt), "{attempt} has ended");
                self.job(job).accept(attempt, range);
            }
            Action::Fail { job, range, failure } => self.job(job).fail(range, &failure),
            Action::Retry { job, range, .. } => self.job(job).retried(range),
            Action::Release { worker, attempt } => {
                self.forget_attempt(attempt);
                self.fleet.outbox(worker).accepted(attempt);
            }
            Action::JobEnded { job } => {
                assert!(!self.job(job).ended, "{job} ends once");
                self.job(job).ended = true;
            }
            Action::Unusable { .. } | Action::Exclude { .. } => {}
        }
    }

    fn is_judged(&self, job: JobId, attempt: AttemptId) -> bool {
        self.jobs[job.0 as usize].judges(attempt)
    }

    pub(super) fn tell_of_job(&mut self, worker: WorkerId, job: JobId) {
        let spec = Box::new(self.job(job).spec.clone());
        self.fleet.outbox(worker).order(Order::OpenJob(job, spec));
    }

    fn cut(&mut self, id: JobId, chunks: u32, items_max: u32, bytes_max: u64) {
        assert!(!self.job(id).told_full, "nothing is cut while {id} cannot store results");
        let mut left = chunks;
        while left > 0
            && let Some((range, bytes)) = self.job(id).cut(items_max, bytes_max)
        {
            left -= 1;
            self.events.push_back(Event::ChunkCut { job: id, range, bytes });
        }
        let level = self.job(id).level();
        self.events.push_back(Event::InputLevel { job: id, level });
        // After the level, which may count what cannot be cut yet.
        if left > 0 {
            self.events.push_back(Event::CutEnded { job: id });
        }
    }

    fn assign(&mut self, worker: WorkerId, attempt: AttemptId, job: JobId, range: ItemRange) {
        let there = self.attempts.values().filter(|attempt| attempt.worker == worker).count();
        let member = self.fleet.member(worker);
        assert_eq!(member.state, State::Attached, "{worker} takes work");
        let credit = u64::from(member.slots) + u64::from(member.queue);
        assert!((there as u64) < credit, "{worker} has {there} attempts, and credit for {credit}");
        assert!(!self.job(job).ended, "{job} has ended");
        self.check_overlap(worker, job, range);
        let input = self.job(job).input_of(range);
        self.job(job).assigned.push(range);
        let before = self.attempts.insert(attempt, Attempt { worker, job, range, staged_bytes: 0 });
        assert!(before.is_none(), "{attempt} is a new id");
        self.fleet.outbox(worker).assign(attempt, job, range, input, 0);
    }

    /// Nothing is assigned twice but to a speculative attempt, on another worker, within its share.
    fn check_overlap(&mut self, worker: WorkerId, job: JobId, range: ItemRange) {
        let same = |attempt: &&Attempt| attempt.job == job && attempt.range.contains(range.first);
        let others: Vec<_> = self.attempts.values().filter(same).map(|it| it.worker).collect();
        if others.is_empty() {
            return;
        }
        assert!(self.job(job).policy.speculate, "{range} of {job} is assigned twice");
        assert!(others.len() == 1 && others[0] != worker, "{range} has one twin, elsewhere");
        let counts = self.scheduler.counts(job).expect("an open job has counts");
        let share = (counts.attempts * SPECULATIVE_PERCENT_MAX).max(100);
        assert!(counts.speculative * 100 <= share, "{job} speculates too much: {counts:?}");
    }

    /// Grants each worker as much output as can be stored; where nothing more can, only the head.
    ///
    /// The driver has one job. A grant is for all of a worker's jobs, so with several nothing more can
    /// be stored only if that is so of each: one that is full must not hold the slots of the others.
    pub(super) fn grant_output(&mut self) {
        let mut open = self.jobs.iter().filter(|job| job.is_open()).peekable();
        let full = open.peek().is_some() && open.all(|job| job.is_full);
        let clearing =
            full && self.jobs.iter().any(|job| job.is_open() && job.results.level().is_clearing);
        let heads = if full { self.head_attempts() } else { Vec::new() };
        let workers = self.fleet.ids();
        let attached: Vec<_> =
            workers.filter(|&worker| self.fleet.member(worker).is_attached()).collect();
        let open = self.jobs.iter().filter(|job| job.is_open());
        let reorder_bytes = open.map(|job| job.reorder_bytes_max).min().unwrap_or(u64::MAX);
        let (least, most) = self.output_window;
        let window = (reorder_bytes / 2 / attached.len().max(1) as u64).clamp(2 * least, most);
        for worker in attached {
            let head = heads.iter().find(|(of, ..)| *of == worker);
            let member = self.fleet.member_mut(worker);
            let urgent = head.map(|&(_, id, staged_bytes)| match member.urgent {
                Some(granted) if clearing && granted.0 == id => granted,
                _ => (id, staged_bytes + window),
            });
            let wanted = member.received_total + window;
            let due = !full && wanted - member.granted_total.min(wanted) >= window / 2;
            if due {
                member.granted_total = wanted;
            }
            if due || urgent != member.urgent {
                member.urgent = urgent;
                let total = member.granted_total;
                self.fleet.outbox(worker).output_grant(OutputGrant { total, urgent });
            }
        }
    }

    /// The attempts that the outputs of full jobs wait for, where they run, and what is here of them.
    fn head_attempts(&self) -> Vec<(WorkerId, AttemptId, u64)> {
        let mut heads = Vec::new();
        for job in self.jobs.iter().filter(|job| job.is_full) {
            let next = job.results.next_item();
            let at_head = |attempt: &Attempt| attempt.job == job.id && attempt.range.contains(next);
            let attempts = self.attempts.iter().filter(|(_, attempt)| at_head(attempt));
            heads.extend(attempts.map(|(&id, attempt)| (attempt.worker, id, attempt.staged_bytes)));
        }
        heads
    }
}
