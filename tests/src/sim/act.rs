//! What the scheduler asks for, carried out, and held against what it may ask for.

use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_proto::session::{Order, OutputGrant};
use widemap_sched::event::{Action, Event};

use super::coordinator::{Attempt, Coordinator};
use super::fleet::State;
use super::outbox::Recalled;

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
            Action::Assign { worker, attempt, job, range } => {
                self.assign(worker, attempt, job, range);
            }
            Action::Revoke { worker, attempt } => match self.fleet.outbox(worker).recall(attempt) {
                Recalled::Unsent => {
                    self.forget_attempt(attempt);
                    self.events.push_back(Event::Revoked { attempt });
                }
                Recalled::Sent => self.fleet.outbox(worker).order(Order::Revoke(attempt)),
            },
            Action::Cancel { worker, attempt } => {
                self.forget_attempt(attempt);
                match self.fleet.outbox(worker).drop_attempt(attempt) {
                    Recalled::Unsent => {
                        self.events.push_back(Event::Cancelled { worker, attempt });
                    }
                    Recalled::Sent => self.fleet.outbox(worker).order(Order::Cancel(attempt)),
                }
            }
            Action::Accept { job, attempt, range, .. } => self.job(job).accept(attempt, range),
            Action::Fail { job, range, failure } => self.job(job).fail(range, &failure),
            Action::Release { worker, attempt } => {
                self.forget_attempt(attempt);
                self.fleet.outbox(worker).accepted(attempt);
            }
            Action::JobEnded { job } => {
                assert!(!self.job(job).ended, "{job} ends once");
                self.job(job).ended = true;
            }
            Action::Retry { .. } | Action::Unusable { .. } | Action::Exclude { .. } => {}
        }
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
        let input = self.job(job).input_of(range);
        self.job(job).assigned.push(range);
        let before = self.attempts.insert(attempt, Attempt { worker, job, range, staged_bytes: 0 });
        assert!(before.is_none(), "{attempt} is a new id");
        self.fleet.outbox(worker).assign(attempt, job, range, input);
    }

    /// Grants each worker as much output as can be stored; where nothing more can, only the head.
    pub(super) fn grant_output(&mut self) {
        let full = self.jobs.iter().any(|job| job.is_full);
        let window = self.output_window;
        for worker in self.fleet.ids() {
            if !self.fleet.member(worker).is_attached() {
                continue;
            }
            let urgent = self.urgent_on(worker).map(|(id, staged)| (id, staged + window));
            let member = self.fleet.member_mut(worker);
            let wanted = member.received_total + window;
            let due = !full && wanted - member.granted_total.min(wanted) >= window / 2;
            if due {
                member.granted_total = wanted;
            }
            let total = member.granted_total;
            if due || (urgent.is_some() && self.urge(urgent)) {
                self.fleet.outbox(worker).output_grant(OutputGrant { total, urgent });
            }
        }
    }

    /// The attempt on the worker that the output of a full job waits for, and what is here of it.
    fn urgent_on(&self, worker: WorkerId) -> Option<(AttemptId, u64)> {
        let job = self.jobs.iter().find(|job| job.is_full)?;
        let next = job.merge.next_item();
        let mut at_head = self
            .attempts
            .iter()
            .filter(|(_, attempt)| attempt.job == job.id && attempt.range.contains(next));
        let (&id, attempt) = at_head.next()?;
        (attempt.worker == worker).then_some((id, attempt.staged_bytes))
    }

    fn urge(&mut self, urgent: Option<(AttemptId, u64)>) -> bool {
        let job = self.jobs.iter_mut().find(|job| job.is_full);
        job.is_some_and(|job| std::mem::replace(&mut job.urged, urgent) != urgent)
    }
}
