//! A worker's side of a session: what it holds outlives the stream. It keeps finished results until
//! they are accepted, says them again on each new stream, and never runs an attempt twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use widemap_common::ids::{AttemptId, Incarnation, ItemRange, JobId};
use widemap_common::limits::QUEUE_MAX;
use widemap_common::time::Time;
use widemap_proto::session::{
    Assign, Credit, Done, HeldAttempt, HeldState, Order, OutputGrant, Part, Progress, Refusal,
    RefusalCause, Report,
};

use super::network::StreamId;

/// One life of a worker.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) incarnation: Incarnation,
    pub(super) session: Option<Session>,
    pub(super) draining: bool,
    /// Whether a batch, or a heartbeat, is on the agenda already.
    pub(super) send_is_due: bool,
    pub(super) heartbeat_is_due: bool,
}

/// What a worker holds for the coordinator.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) stream: Option<StreamId>,
    /// Since when there is no stream.
    pub(super) detached: Option<Time>,
    jobs: BTreeSet<JobId>,
    attempts: BTreeMap<AttemptId, Held>,
    /// What waits for a slot, in the order in which it came.
    lane: VecDeque<AttemptId>,
    running: BTreeSet<AttemptId>,
    /// Cancelled attempts whose processes take their time to end, and those of them that are new.
    ending: BTreeMap<AttemptId, (JobId, ItemRange)>,
    cancelled: Vec<AttemptId>,
    credit: Credit,
    small: VecDeque<Report>,
    /// Attempts with output, or an end, that this stream has not carried: earlier items first.
    ready: BTreeSet<(JobId, u64, AttemptId)>,
    grant: OutputGrant,
    sent_bytes: u64,
    draining: bool,
    refuses: bool,
}

#[derive(Debug)]
struct Held {
    job: JobId,
    range: ItemRange,
    input_bytes: u64,
    received_bytes: u64,
    stage: Stage,
    sent_bytes: u64,
    done_sent: bool,
}

#[derive(Debug)]
enum Stage {
    Waiting,
    /// In a slot; what is not there yet of its input is waited for.
    Running {
        since: Time,
        is_timed: bool,
    },
    Finished(Box<Finished>),
}

/// What an attempt came to.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) output: Bytes,
    pub(super) done: Done,
}

/// How a worker sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    pub(super) part_bytes: u64,
    pub(super) batch_entries: usize,
    /// A chance in ten thousand that a result is sent twice.
    pub(super) twice: u32,
}

impl Process {
    pub(super) fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            session: None,
            draining: false,
            send_is_due: false,
            heartbeat_is_due: false,
        }
    }
}

impl Session {
    pub(super) fn new(refuses: bool) -> Self {
        Self {
            stream: None,
            detached: None,
            jobs: BTreeSet::new(),
            attempts: BTreeMap::new(),
            lane: VecDeque::new(),
            running: BTreeSet::new(),
            ending: BTreeMap::new(),
            cancelled: Vec::new(),
            credit: Credit { slots: 0, queue: 0 },
            small: VecDeque::new(),
            ready: BTreeSet::new(),
            grant: OutputGrant { total: 0, urgent: None },
            sent_bytes: 0,
            draining: false,
            refuses,
        }
    }

    /// A stream begins: greets, and says again what is held.
    pub(super) fn attach(&mut self, stream: StreamId, hello: Report) {
        (self.stream, self.detached) = (Some(stream), None);
        let state = |held: &Held| match held.stage {
            Stage::Waiting => HeldState::Queued,
            Stage::Running { .. } => HeldState::Running,
            Stage::Finished(_) => HeldState::Finished,
        };
        let held = self.attempts.iter().map(|(&attempt, held)| HeldAttempt {
            attempt,
            state: state(held),
            input_bytes: held.received_bytes,
        });
        let held = Report::Held(held.collect());
        self.small = [hello, held, Report::Credit(self.credit)].into();
        self.ready.clear();
        self.grant = OutputGrant { total: 0, urgent: None };
        self.sent_bytes = 0;
        for (&id, held) in &mut self.attempts {
            (held.sent_bytes, held.done_sent) = (0, false);
            if matches!(held.stage, Stage::Finished(_)) {
                self.ready.insert(held.key(id));
            }
        }
    }

    /// Carries out an order.
    pub(super) fn take(&mut self, order: Order) -> Result<(), &'static str> {
        match order {
            Order::Assign(assign) => return self.assign(&assign),
            Order::Input(part) => return self.input(&part),
            Order::Accepted(attempts) => attempts.into_iter().for_each(|id| self.forget(id)),
            Order::OutputGrant(grant) => self.grant = grant,
            Order::OpenJob(job, _) => self.open_job(job),
            Order::CloseJob(job) => self.close_job(job),
            Order::Revoke(attempt) => {
                let back = self.take_back(attempt);
                let answer = if back { Report::Revoked } else { Report::TooLate };
                self.small.push_back(answer(attempt));
            }
            Order::Cancel(attempt) => {
                self.cancel(attempt);
                if !self.ending.contains_key(&attempt) {
                    self.small.push_back(Report::Cancelled(attempt));
                }
            }
            Order::Hello(_) => return Err("a second hello"),
            Order::Demand(_) | Order::Ping(_) | Order::Goodbye | Order::LeftOut(_) => {}
        }
        Ok(())
    }

    fn open_job(&mut self, job: JobId) {
        if self.refuses {
            let refusal = Refusal { cause: RefusalCause::NotFound, message: "not here".into() };
            self.small.push_back(Report::JobRefused(job, refusal));
        } else {
            self.jobs.insert(job);
            self.small.push_back(Report::JobReady(job));
        }
    }

    fn close_job(&mut self, job: JobId) {
        self.jobs.remove(&job);
        let of_job = self.attempts.iter().filter(|(_, held)| held.job == job);
        let attempts: Vec<_> = of_job.map(|(&id, _)| id).collect();
        attempts.into_iter().for_each(|id| self.cancel(id));
    }

    fn assign(&mut self, assign: &Assign) -> Result<(), &'static str> {
        let id = assign.attempt;
        if let Some(held) = self.attempts.get_mut(&id) {
            if matches!(held.stage, Stage::Finished(_)) {
                (held.sent_bytes, held.done_sent) = (0, false);
                self.ready.insert(held.key(id));
            }
            return Ok(());
        }
        if self.draining {
            self.small.push_back(Report::Revoked(id));
            return Ok(());
        }
        if !self.jobs.contains(&assign.job) {
            return Err("an attempt of a job that is not open");
        }
        let held = Held {
            job: assign.job,
            range: assign.range,
            input_bytes: assign.input_bytes,
            received_bytes: assign.input.len() as u64,
            stage: Stage::Waiting,
            sent_bytes: 0,
            done_sent: false,
        };
        self.attempts.insert(id, held);
        self.lane.push_back(id);
        Ok(())
    }

    fn input(&mut self, part: &Part) -> Result<(), &'static str> {
        let Some(held) = self.attempts.get_mut(&part.attempt) else { return Ok(()) };
        if part.offset > held.received_bytes {
            return Err("a part of an input is missing");
        }
        let end = part.offset + part.data.len() as u64;
        held.received_bytes = held.received_bytes.max(end);
        Ok(())
    }

    fn take_back(&mut self, id: AttemptId) -> bool {
        let waits = matches!(self.attempts.get(&id), Some(Held { stage: Stage::Waiting, .. }));
        if waits {
            self.forget(id);
        }
        waits
    }

    /// Ends an attempt and forgets it. What runs keeps its slot until nothing is left of it.
    fn cancel(&mut self, id: AttemptId) {
        if let Some(running) = self.running(id) {
            self.ending.insert(id, running);
            self.cancelled.push(id);
        }
        self.forget(id);
    }

    /// The attempts that were cancelled while they ran, since the last time.
    pub(super) fn take_cancelled(&mut self) -> Vec<AttemptId> {
        std::mem::take(&mut self.cancelled)
    }

    /// Nothing is left of a cancelled attempt.
    pub(super) fn gone(&mut self, id: AttemptId) {
        if self.ending.remove(&id).is_some() {
            self.small.push_back(Report::Cancelled(id));
        }
    }

    fn forget(&mut self, id: AttemptId) {
        let Some(held) = self.attempts.remove(&id) else { return };
        self.lane.retain(|&waiting| waiting != id);
        self.running.remove(&id);
        self.ready.remove(&held.key(id));
    }

    /// Lets what waits start, as far as there are slots. Gives what now runs with all of its input.
    pub(super) fn start(&mut self, now: Time) -> Vec<(AttemptId, JobId, ItemRange)> {
        while self.running.len() + self.ending.len() < self.credit.slots as usize
            && let Some(id) = self.lane.pop_front()
        {
            let held = self.attempts.get_mut(&id).expect("what waits is held");
            held.stage = Stage::Running { since: now, is_timed: false };
            self.running.insert(id);
        }
        let mut started = Vec::new();
        for &id in &self.running {
            let held = self.attempts.get_mut(&id).expect("what runs is held");
            let whole = held.received_bytes == held.input_bytes;
            if let Stage::Running { is_timed, .. } = &mut held.stage
                && whole
                && !std::mem::replace(is_timed, true)
            {
                started.push((id, held.job, held.range));
            }
        }
        started
    }

    /// The job and the items of an attempt that runs.
    pub(super) fn running(&self, id: AttemptId) -> Option<(JobId, ItemRange)> {
        let held = self.attempts.get(&id).filter(|_| self.running.contains(&id))?;
        Some((held.job, held.range))
    }

    /// The same of one that was cancelled and is still in its slot.
    pub(super) fn ending(&self, id: AttemptId) -> Option<(JobId, ItemRange)> {
        self.ending.get(&id).copied()
    }

    /// Every attempt that is held.
    pub(super) fn held(&self) -> impl Iterator<Item = (JobId, ItemRange)> {
        self.attempts.values().map(|held| (held.job, held.range))
    }

    /// Every attempt that runs.
    pub(super) fn all_running(&self) -> impl Iterator<Item = (JobId, ItemRange)> {
        self.running.iter().filter_map(|&id| self.running(id))
    }

    pub(super) fn finish(&mut self, id: AttemptId, finished: Box<Finished>) {
        self.running.remove(&id);
        let held = self.attempts.get_mut(&id).expect("what has run is held");
        held.stage = Stage::Finished(finished);
        self.ready.insert(held.key(id));
    }

    /// Sets what the coordinator may count on, and tells it if that changed.
    pub(super) fn set_credit(&mut self, slots: u32) {
        let slots = if self.draining { 0 } else { slots };
        let credit = Credit { slots, queue: if slots > 0 { QUEUE_MAX } else { 0 } };
        if credit != self.credit {
            self.credit = credit;
            self.small.push_back(Report::Credit(credit));
        }
    }

    /// Takes no new work, and gives back what has not started.
    pub(super) fn drain(&mut self, deadline_ms: u64) {
        self.draining = true;
        self.small.push_back(Report::Draining(deadline_ms));
        self.set_credit(0);
        for id in self.lane.clone() {
            self.forget(id);
            self.small.push_back(Report::Revoked(id));
        }
    }

    /// Cancels what runs; results that are not accepted stay.
    pub(super) fn cancel_unfinished(&mut self) {
        let running: Vec<_> = self.running.iter().copied().collect();
        running.into_iter().for_each(|id| self.cancel(id));
    }

    /// Reports how far the running attempts are. Whether there are any.
    pub(super) fn heartbeat(&mut self, now: Time) -> bool {
        let progress = |&id: &AttemptId| {
            let Stage::Running { since, .. } = self.attempts.get(&id)?.stage else { return None };
            let running_us = u64::try_from((now - since).as_micros()).unwrap_or(u64::MAX);
            Some(Progress { attempt: id, item: 0, running_us, stalled: false })
        };
        let running: Vec<_> = self.running.iter().filter_map(progress).collect();
        let any = !running.is_empty();
        if any {
            self.small.push_back(Report::Heartbeat(running));
        }
        any
    }

    pub(super) fn has_running(&self) -> bool {
        !self.running.is_empty()
    }

    pub(super) fn has_reports(&self) -> bool {
        !self.small.is_empty() || !self.ready.is_empty()
    }

    pub(super) fn has_attempts(&self) -> bool {
        !self.attempts.is_empty()
    }

    pub(super) fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// What goes into the next message; nothing, if nothing of it is granted.
    pub(super) fn batch(&mut self, sending: Sending, rng: &mut fastrand::Rng) -> Vec<Report> {
        let mut reports = Vec::new();
        while reports.len() < sending.batch_entries {
            let small = self.small.pop_front();
            let Some(report) = small.or_else(|| self.next_output(sending.part_bytes)) else {
                break;
            };
            let twice = matches!(report, Report::Done(_)) && rng.u32(0..10_000) < sending.twice;
            reports.extend(twice.then(|| report.clone()));
            reports.push(report);
        }
        reports
    }

    fn next_output(&mut self, part_bytes: u64) -> Option<Report> {
        if let Some((urgent, _)) = self.grant.urgent
            && let Some(held) = self.attempts.get(&urgent)
            && self.ready.contains(&held.key(urgent))
            && let Some(report) = self.send(urgent, part_bytes)
        {
            return Some(report);
        }
        let &(_, _, first) = self.ready.first()?;
        self.send(first, part_bytes)
    }

    /// The next report of an attempt that has ended, as far as it is granted.
    fn send(&mut self, id: AttemptId, part_bytes: u64) -> Option<Report> {
        let held = self.attempts.get_mut(&id).expect("what is ready is held");
        let Stage::Finished(finished) = &held.stage else { return None };
        let mut granted = self.grant.total.saturating_sub(self.sent_bytes);
        if let Some((urgent, bytes)) = self.grant.urgent
            && urgent == id
        {
            granted = granted.max(bytes.saturating_sub(held.sent_bytes));
        }
        let left = finished.output.len() as u64 - held.sent_bytes;
        let bytes = left.min(granted).min(part_bytes);
        let at = |bound: u64| usize::try_from(bound).expect("an output fits the memory");
        let data = finished.output.slice(at(held.sent_bytes)..at(held.sent_bytes + bytes));
        let offset = held.sent_bytes;
        if bytes == left {
            let done = Done { output: data, ..finished.done.clone() };
            held.done_sent = true;
            let key = held.key(id);
            self.ready.remove(&key);
            held.sent_bytes += bytes;
            self.sent_bytes += bytes;
            return Some(Report::Done(Box::new(done)));
        }
        if bytes == 0 {
            return None;
        }
        held.sent_bytes += bytes;
        self.sent_bytes += bytes;
        Some(Report::Output(Part { attempt: id, offset, data }))
    }
}

impl Held {
    fn key(&self, id: AttemptId) -> (JobId, u64, AttemptId) {
        (self.job, self.range.first, id)
    }
}
