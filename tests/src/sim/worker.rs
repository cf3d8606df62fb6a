//! A worker's side of a session: what it holds outlives the stream. It keeps to the worker's own state,
//! order by order; slots, processes and the other coordinators are made up.
//!
//! Where it is simpler: a slot takes its input the moment it arrives; a session whose lease has ended
//! leaves nothing running; a worker's slots are as many as its credit; what would have ended while its
//! process was stopped ends as soon as that goes on.

mod slots;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use widemap_common::ids::{AttemptId, Incarnation, ItemRange, JobId};
use widemap_common::limits::QUEUE_MAX;
use widemap_common::time::Time;
use widemap_proto::session::{
    Assign, Credit, Done, HeldAttempt, HeldState, Order, OutputGrant, Part, Progress, Refusal,
    RefusalCause, Report,
};

use super::held::{Held, Running, Stage};
use super::input::{InputAccount, InputBounds, InputHeld};
use super::network::StreamId;
use super::oracle::Run;
use super::outgoing::{Outgoing, OutputBounds};
use super::reports::{Reports, Sending};

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
    /// When what the coordinator said last was sent, and whether a look at that is on the agenda.
    pub(super) heard: Time,
    pub(super) lease_is_due: bool,
    jobs: BTreeSet<JobId>,
    /// The slots that an attempt of each job takes: of closed ones, too, whose attempts may still end.
    slots_per_item: BTreeMap<JobId, u32>,
    attempts: BTreeMap<AttemptId, Held>,
    /// What waits for a slot, in the order in which it came.
    lane: VecDeque<AttemptId>,
    running: BTreeSet<AttemptId>,
    /// Cancelled attempts whose processes take their time to end, and those of them that are new.
    ending: BTreeMap<AttemptId, (JobId, ItemRange)>,
    cancelled: Vec<AttemptId>,
    credit: Credit,
    reports: Reports,
    input: InputAccount,
    output: OutputBounds,
    paused: bool,
    draining: bool,
    refuses: bool,
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
    pub(super) fn new(refuses: bool, input: InputBounds, output: OutputBounds) -> Self {
        Self {
            stream: None,
            detached: None,
            heard: Time::ZERO,
            lease_is_due: false,
            jobs: BTreeSet::new(),
            slots_per_item: BTreeMap::new(),
            attempts: BTreeMap::new(),
            lane: VecDeque::new(),
            running: BTreeSet::new(),
            ending: BTreeMap::new(),
            cancelled: Vec::new(),
            credit: Credit { slots: 0, queue: 0 },
            reports: Reports::new(),
            input: InputAccount::new(input),
            output,
            paused: false,
            draining: false,
            refuses,
        }
    }

    /// A stream begins: greets, and says again what is held.
    pub(super) fn attach(&mut self, stream: StreamId, hello: Report) {
        (self.stream, self.detached) = (Some(stream), None);
        let dropped = self.attempts.iter().filter(|(_, held)| !held.outgoing.is_whole());
        let dropped: Vec<_> = dropped.map(|(&id, _)| id).collect();
        dropped.into_iter().for_each(|id| self.cancel(id));
        let state = |held: &Held| match held.stage {
            Stage::Waiting => HeldState::Queued,
            Stage::Running { .. } => HeldState::Running,
            Stage::Finished => HeldState::Finished,
        };
        let held = self.attempts.iter().map(|(&attempt, held)| HeldAttempt {
            attempt,
            job: held.job,
            range: held.range,
            input_offset: 0,
            input_length: held.input_bytes,
            state: state(held),
            input_bytes: held.received_bytes,
        });
        let held = Report::Held(held.collect());
        let granted = Report::InputGrant(self.input.begin_stream(self.input_held()));
        self.reports.begin([hello, held, Report::Credit(self.credit), granted]);
        for (&id, held) in &mut self.attempts {
            held.outgoing.rewind();
            if held.outgoing.has_unsent() {
                self.reports.ready(held.key(id));
            }
        }
    }

    /// Carries out an order.
    pub(super) fn take(&mut self, order: Order) -> Result<(), &'static str> {
        match order {
            Order::Assign(assign) => return self.assign(&assign),
            Order::Input(part) => return self.take_input(&part),
            Order::Accepted(attempts) => attempts.into_iter().for_each(|id| self.cancel(id)),
            Order::OutputGrant(grant) => self.set_grant(grant),
            Order::OpenJob(job, spec) => {
                self.slots_per_item.insert(job, spec.slots_per_item.get());
                self.open_job(job);
            }
            Order::CloseJob(job) => self.close_job(job),
            Order::Revoke(attempt) => {
                let back = self.take_back(attempt);
                let answer = if back { Report::Revoked } else { Report::TooLate };
                self.reports.push(answer(attempt));
            }
            Order::Cancel(attempt) => {
                self.cancel(attempt);
                if !self.ending.contains_key(&attempt) {
                    self.reports.push(Report::Cancelled(attempt));
                }
            }
            Order::Ping(stamp) => {
                self.heard = self.heard.max(Time(stamp));
                self.reports.push(Report::Pong(stamp));
            }
            Order::Hello(_) => return Err("a second hello"),
            Order::Demand(_) | Order::Goodbye | Order::LeftOut(_) => {}
        }
        Ok(())
    }

    fn open_job(&mut self, job: JobId) {
        if self.refuses {
            let refusal = Refusal { cause: RefusalCause::NotFound, message: "not here".into() };
            self.reports.push(Report::JobRefused(job, refusal));
        } else {
            self.jobs.insert(job);
            self.reports.push(Report::JobReady(job));
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
        self.input.received(assign.input.len());
        if let Some(held) = self.attempts.get_mut(&id) {
            if held.outgoing.is_whole() && held.outgoing.is_finished() {
                held.outgoing.rewind();
                self.reports.ready(held.key(id));
            }
            return Ok(());
        }
        if self.draining {
            self.reports.push(Report::Revoked(id));
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
            outgoing: Outgoing::default(),
        };
        self.attempts.insert(id, held);
        self.lane.push_back(id);
        Ok(())
    }

    fn take_input(&mut self, part: &Part) -> Result<(), &'static str> {
        self.input.received(part.data.len());
        let Some(held) = self.attempts.get_mut(&part.attempt) else { return Ok(()) };
        let end = part.offset + part.data.len() as u64;
        if part.offset == held.received_bytes && end <= held.input_bytes {
            held.received_bytes = end;
        } else if end > held.received_bytes {
            return Err("a part of an input is missing");
        }
        Ok(())
    }

    fn input_held(&self) -> InputHeld {
        let (mut bytes, mut is_short) = (0, self.paused);
        for id in &self.lane {
            bytes += self.attempts[id].received_bytes;
        }
        for id in &self.running {
            let held = &self.attempts[id];
            is_short |= held.received_bytes < held.input_bytes;
        }
        InputHeld { bytes, is_short }
    }

    /// Tells of a grant that is worth it.
    pub(super) fn grant_input(&mut self) {
        let granted = self.input.next_grant(self.input_held());
        if let Some(total) = granted {
            self.reports.push(Report::InputGrant(total));
        }
    }

    fn set_grant(&mut self, grant: OutputGrant) {
        self.reports.set_grant(grant);
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
            self.reports.push(Report::Cancelled(id));
        }
    }

    fn forget(&mut self, id: AttemptId) {
        let Some(held) = self.attempts.remove(&id) else { return };
        self.lane.retain(|&waiting| waiting != id);
        self.running.remove(&id);
        self.reports.forget(held.key(id));
    }

    /// Output that is kept of all attempts.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.attempts.values().map(|held| held.outgoing.kept_bytes()).sum()
    }

    /// What comes of an attempt that has just got all of its input.
    pub(super) fn run(&mut self, id: AttemptId, now: Running) {
        let held = self.attempts.get_mut(&id).expect("what runs is held");
        let Stage::Running { run, .. } = &mut held.stage else { unreachable!("it runs") };
        *run = Some(now);
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

    /// An attempt hands over the next piece of its output but the last. Whether it could, rather than
    /// wait for what it has printed to be sent.
    pub(super) fn print(&mut self, id: AttemptId) -> bool {
        let held = self.attempts.get_mut(&id).expect("what runs is held");
        let Stage::Running { run: Some(running), .. } = &mut held.stage else { return false };
        let all = running.run.output.len() as u64;
        let at = |made: u64| usize::try_from(all * made / running.pieces).expect("it is short");
        let piece = running.run.output.slice(at(running.made)..at(running.made + 1));
        running.is_stalled = held.outgoing.unsent_bytes() >= self.output.attempt_bytes;
        if running.is_stalled {
            return false;
        }
        running.made += 1;
        if !piece.is_empty() {
            held.outgoing.push(piece);
            self.reports.ready(held.key(id));
        }
        true
    }

    /// Attempts that may go on printing.
    pub(super) fn take_unstalled(&mut self) -> Vec<AttemptId> {
        let mut unstalled = Vec::new();
        for &id in &self.running {
            let held = self.attempts.get_mut(&id).expect("what runs is held");
            if let Stage::Running { run: Some(running), .. } = &mut held.stage
                && running.is_stalled
                && held.outgoing.unsent_bytes() < self.output.attempt_bytes
            {
                running.is_stalled = false;
                unstalled.push(id);
            }
        }
        unstalled
    }

    /// Whether all of its output but the last piece has been handed over.
    pub(super) fn is_at_last_piece(&self, id: AttemptId) -> bool {
        match &self.attempts[&id].stage {
            Stage::Running { run: Some(running), .. } => running.made + 1 >= running.pieces,
            _ => false,
        }
    }

    /// The pieces in which the output of a running attempt comes.
    pub(super) fn pieces(&self, id: AttemptId) -> u64 {
        match &self.attempts[&id].stage {
            Stage::Running { run: Some(running), .. } => running.pieces,
            _ => 1,
        }
    }

    /// An attempt ends. It says of its output that it is so much longer than it is.
    pub(super) fn finish(&mut self, id: AttemptId, busy_us: u64, lie_bytes: u64) {
        self.running.remove(&id);
        let held = self.attempts.get_mut(&id).expect("what has run is held");
        let stage = std::mem::replace(&mut held.stage, Stage::Finished);
        let Stage::Running { run: Some(running), .. } = stage else { unreachable!("it ran") };
        let Running { run: Run { output, faults }, pieces, made, .. } = running;
        let from = output.len() as u64 * made / pieces;
        let done = Done {
            attempt: id,
            output_bytes: output.len() as u64 + lie_bytes,
            output: output.slice(usize::try_from(from).expect("it is short")..),
            busy_us,
            item_lengths: Bytes::new(),
            item_micros: Bytes::new(),
            item_exits: Bytes::new(),
            faults,
            stderr: Vec::new(),
        };
        held.outgoing.finish(Box::new(done));
        self.reports.ready(held.key(id));
    }

    /// Sets what the coordinator may count on, and tells it if that changed.
    pub(super) fn set_credit(&mut self, slots: u32) {
        let slots = if self.draining { 0 } else { slots };
        let credit = Credit { slots, queue: if slots > 0 { QUEUE_MAX } else { 0 } };
        if credit != self.credit {
            self.credit = credit;
            self.reports.push(Report::Credit(credit));
        }
    }

    /// Takes no new work, and gives back what has not started.
    pub(super) fn drain(&mut self, deadline_ms: u64) {
        self.draining = true;
        self.reports.push(Report::Draining(deadline_ms));
        self.set_credit(0);
        for id in self.lane.clone() {
            self.forget(id);
            self.reports.push(Report::Revoked(id));
        }
    }

    /// Cancels what runs; results that are not accepted stay.
    pub(super) fn cancel_unfinished(&mut self) {
        let running: Vec<_> = self.running.iter().copied().collect();
        running.into_iter().for_each(|id| self.cancel(id));
    }

    /// Reports how far the running attempts are, if there are any.
    pub(super) fn heartbeat(&mut self, now: Time) {
        let progress = |&id: &AttemptId| {
            let Stage::Running { since, .. } = self.attempts.get(&id)?.stage else { return None };
            let running_us = u64::try_from((now - since).as_micros()).unwrap_or(u64::MAX);
            Some(Progress { attempt: id, item: 0, running_us, stalled: false })
        };
        let running: Vec<_> = self.running.iter().filter_map(progress).collect();
        if !running.is_empty() {
            self.reports.push(Report::Heartbeat(running));
        }
    }

    pub(super) fn has_running(&self) -> bool {
        !self.running.is_empty()
    }

    pub(super) fn is_all_said(&self) -> bool {
        self.reports.is_all_said()
    }

    pub(super) fn has_reports(&self) -> bool {
        self.reports.has_some()
    }

    pub(super) fn has_attempts(&self) -> bool {
        !self.attempts.is_empty()
    }

    pub(super) fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// What goes into the next message; nothing, if nothing of it is granted.
    pub(super) fn batch(&mut self, sending: Sending, rng: &mut fastrand::Rng) -> Vec<Report> {
        self.reports.batch(&mut self.attempts, sending, rng)
    }
}
