//! What a worker holds for one coordinator: open jobs, attempts, results that are not accepted. It
//! outlives the stream. Orders and slot events go in, reports come out; no clock and no network.

mod attempts;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::limits::{
    ATTEMPTS_HELD_MAX, ITEM_BYTES_MAX, JOBS_PER_SESSION_MAX, SESSION_OUTPUT_BYTES,
};
use widemap_common::spec::JobSpec;
use widemap_proto::session::{
    Credit, HeldAttempt, HeldState, LeftOut, Order, Progress, Refusal, RefusalCause, Report,
    WorkerHello,
};

use super::input::InputAccount;
use super::opening::{Opened, Opening, Placement};
use super::outbox::{Outbox, SendKey};
use super::outgoing::Outgoing;
use crate::job::{Host, Job};
use crate::slots::{InputStream, Lane, SlotEvent, Task, Ticket};

/// Why a coordinator's stream is ended: it does not keep to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("{0} belongs to {1}, which is not open here")]
    JobNotOpen(AttemptId, JobId),
    #[error("a second hello in one stream")]
    SecondHello,
    #[error("{attempt}: input for byte {offset} came where byte {expected} was due")]
    InputGap { attempt: AttemptId, offset: u64, expected: u64 },
    #[error("{0}: an input of {1} bytes is longer than a worker takes ({ITEM_BYTES_MAX})")]
    InputTooLong(AttemptId, u64),
    #[error("more attempts than a worker holds for one coordinator ({ATTEMPTS_HELD_MAX})")]
    TooManyAttempts,
}

/// An attempt that is held.
#[derive(Debug)]
pub(super) struct Attempt {
    key: SendKey,
    range: ItemRange,
    input_offset: u64,
    input_bytes: u64,
    received_bytes: u64,
    /// Where input that comes in parts goes.
    input: Option<Arc<InputStream>>,
    ticket: Ticket,
    pub(super) outgoing: Outgoing,
}

impl Attempt {
    pub(super) fn key(&self) -> SendKey {
        self.key
    }
}

/// The state of one coordinator, over all of its epochs that were here.
pub(super) struct Session {
    pub(super) lane: Lane,
    host: Arc<Host>,
    jobs: BTreeMap<JobId, Arc<Job>>,
    /// Jobs that are being tried, and where those stand in the lane.
    probes: BTreeMap<JobId, Ticket>,
    /// Jobs whose files are not in place yet.
    pub(super) opening: Opening,
    /// Jobs that are closed but have attempts that are being ended.
    closing: Vec<Arc<Job>>,
    attempts: HashMap<AttemptId, Attempt>,
    /// Attempts that were cancelled and are still in their slots.
    ending: HashSet<AttemptId>,
    outbox: Outbox,
    input: InputAccount,
    /// Tasks that go to the slots together, and the ticket of the first.
    tasks: Vec<Task>,
    first_ticket: Option<Ticket>,
    events: Vec<SlotEvent>,
    kept_bytes: u64,
    paused: bool,
    credit: Credit,
    /// Why the worker takes no work for now.
    no_work: Option<String>,
    /// What the coordinator said of its demand and nobody has taken yet.
    demand: Option<u32>,
    /// The stamp of the last ping, likewise.
    ping: Option<u64>,
    /// The coordinator has no more use for this worker.
    goodbye: bool,
    /// The coordinator has none for a time, which nobody has taken yet.
    left_out: Option<LeftOut>,
    draining: bool,
}

impl Session {
    pub(super) fn new(lane: Lane, host: Arc<Host>) -> Self {
        Self {
            opening: Opening::new(Arc::clone(&host)),
            host,
            jobs: BTreeMap::new(),
            probes: BTreeMap::new(),
            closing: Vec::new(),
            attempts: HashMap::new(),
            ending: HashSet::new(),
            outbox: Outbox::default(),
            input: InputAccount::new(lane.meter.clone()),
            lane,
            tasks: Vec::new(),
            first_ticket: None,
            events: Vec::new(),
            kept_bytes: 0,
            paused: false,
            credit: Credit { slots: 0, queue: 0 },
            no_work: None,
            demand: None,
            ping: None,
            goodbye: false,
            left_out: None,
            draining: false,
        }
    }

    /// A stream begins: greets, and says again what is held.
    pub(super) fn attach(&mut self, hello: WorkerHello) {
        self.collect();
        let cannot_be_sent_again: Vec<_> = self
            .attempts
            .iter()
            .filter(|(_, attempt)| !attempt.outgoing.is_whole())
            .map(|(&id, _)| id)
            .collect();
        for attempt in cannot_be_sent_again {
            self.cancel(attempt);
        }
        let running = self.progress();
        let runs = |id| running.iter().any(|progress| progress.attempt == id);
        let state = |id, attempt: &Attempt| match attempt.outgoing.is_finished() {
            true => HeldState::Finished,
            false if runs(id) => HeldState::Running,
            false => HeldState::Queued,
        };
        let mut held: Vec<_> = self
            .attempts
            .iter()
            .map(|(&id, attempt)| HeldAttempt {
                attempt: id,
                job: attempt.key.job,
                range: attempt.range,
                input_offset: attempt.input_offset,
                input_length: attempt.input_bytes,
                state: state(id, attempt),
                input_bytes: attempt.received_bytes,
            })
            .collect();
        held.sort_by_key(|held| held.attempt);
        self.opening.begin_stream();
        let input_grant = self.input.begin_stream();
        self.outbox.begin([
            Report::Hello(Box::new(hello)),
            Report::Held(held),
            Report::Credit(self.credit),
            Report::InputGrant(input_grant),
        ]);
        if self.no_work.is_some() {
            self.outbox.push(Report::Paused(self.no_work.clone()));
        }
        for attempt in self.attempts.values_mut() {
            attempt.outgoing.rewind();
            if attempt.outgoing.has_unsent() {
                self.outbox.ready(attempt.key);
            }
        }
    }

    /// Carries out a batch of orders.
    pub(super) fn handle(&mut self, orders: Vec<Order>) -> Result<(), Violation> {
        let handled = orders.into_iter().try_for_each(|order| self.handle_one(order));
        self.start_tasks();
        self.pause_if_full();
        self.grant_input();
        handled
    }

    fn handle_one(&mut self, order: Order) -> Result<(), Violation> {
        match order {
            Order::Assign(assign) => return self.assign(assign),
            Order::Input(part) => return self.input(part),
            Order::Accepted(attempts) => {
                for attempt in attempts {
                    self.cancel(attempt);
                }
            }
            Order::Ping(stamp) => {
                self.ping = Some(stamp);
                self.outbox.push(Report::Pong(stamp));
            }
            Order::OutputGrant(grant) => self.set_grant(grant),
            Order::OpenJob(job, spec) => self.open_job(job, spec),
            Order::CloseJob(job) => self.close_job(job),
            Order::Revoke(attempt) => self.revoke(attempt),
            Order::Cancel(attempt) => {
                self.cancel(attempt);
                if !self.ending.contains(&attempt) {
                    self.outbox.push(Report::Cancelled(attempt));
                }
            }
            Order::Hello(_) => return Err(Violation::SecondHello),
            Order::Demand(attempts) => self.demand = Some(attempts),
            Order::Goodbye => self.goodbye = true,
            Order::LeftOut(left_out) => self.left_out = Some(left_out),
        }
        Ok(())
    }

    /// Takes in what the slots told.
    pub(super) fn collect(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.lane.collect(&mut events);
        for event in events.drain(..) {
            match event {
                SlotEvent::Output { attempt, data, flow } => self.output(attempt, |outgoing| {
                    outgoing.push(data, flow);
                }),
                SlotEvent::Ended { attempt, .. } if self.ending.remove(&attempt) => {
                    self.outbox.push(Report::Cancelled(attempt));
                }
                SlotEvent::Ended { attempt, done: Some(done) } => {
                    self.output(attempt, |outgoing| outgoing.finish(done));
                }
                SlotEvent::Ended { attempt, done: None } => self.forget(attempt),
                SlotEvent::Probed { job, result } => self.probed(job, result),
                SlotEvent::Said { job, text } => self.log(job, text),
            }
        }
        self.events = events;
        self.pause_if_full();
        self.grant_input();
    }

    fn output(&mut self, id: AttemptId, change: impl FnOnce(&mut Outgoing)) {
        // What was cancelled may still tell of itself.
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let before = attempt.outgoing.kept_bytes();
        change(&mut attempt.outgoing);
        self.kept_bytes += attempt.outgoing.kept_bytes() - before;
        self.outbox.ready(attempt.key);
    }

    /// Whether there is something to send.
    pub(super) fn has_reports(&self) -> bool {
        self.outbox.has_some()
    }

    /// Whether more orders may be read.
    pub(super) fn takes_orders(&self) -> bool {
        !self.outbox.is_full()
    }

    /// What goes into the next message.
    pub(super) fn batch(&mut self) -> Vec<Report> {
        let batch = self.outbox.batch(&mut self.attempts);
        if self.paused {
            self.pause_if_full();
        }
        batch
    }

    /// What the coordinator last said of its demand, if it is news.
    pub(super) fn take_demand(&mut self) -> Option<u32> {
        self.demand.take()
    }

    /// The stamp of the last ping, if it is news.
    pub(super) fn take_ping(&mut self) -> Option<u64> {
        self.ping.take()
    }

    /// For how long the coordinator gives no work, if that is news.
    pub(super) fn take_left_out(&mut self) -> Option<LeftOut> {
        self.left_out.take()
    }

    /// Whether the coordinator has said its last word.
    pub(super) fn is_over(&self) -> bool {
        self.goodbye
    }

    /// Whether anything is held.
    pub(super) fn has_attempts(&self) -> bool {
        !self.attempts.is_empty()
    }

    /// Reports how far the running attempts are, if there are any.
    pub(super) fn heartbeat(&mut self) {
        let running = self.progress();
        if !running.is_empty() {
            self.outbox.push(Report::Heartbeat(running));
        }
    }

    pub(super) fn log(&mut self, job: JobId, text: String) {
        self.outbox.push(Report::Log(Some(job), text));
    }

    /// Sets why nothing can be counted on for now, and tells the coordinator if it changed.
    pub(super) fn set_paused(&mut self, paused: Option<String>) {
        if paused != self.no_work {
            self.no_work.clone_from(&paused);
            self.outbox.push(Report::Paused(paused));
        }
    }

    /// Sets what the coordinator may count on, and tells it if it changed.
    pub(super) fn set_credit(&mut self, credit: Credit) {
        let credit = if self.draining { Credit { slots: 0, queue: 0 } } else { credit };
        if credit != self.credit {
            self.credit = credit;
            self.lane.set_share(credit.slots);
            self.outbox.push(Report::Credit(credit));
        }
    }

    /// Takes no new work, and gives back what has not started.
    pub(super) fn drain(&mut self, deadline_ms: u64) {
        self.draining = true;
        self.outbox.push(Report::Draining(deadline_ms));
        self.set_credit(Credit { slots: 0, queue: 0 });
        let mut attempts: Vec<_> = self.attempts.keys().copied().collect();
        attempts.sort_unstable();
        for attempt in attempts {
            if self.take_back(attempt) {
                self.outbox.push(Report::Revoked(attempt));
            }
        }
    }

    /// Cancels what runs; results that are not accepted stay.
    pub(super) fn cancel_unfinished(&mut self) {
        let unfinished = |(&id, attempt): (&AttemptId, &Attempt)| {
            (!attempt.outgoing.is_finished()).then_some(id)
        };
        let unfinished: Vec<_> = self.attempts.iter().filter_map(unfinished).collect();
        for attempt in unfinished {
            self.cancel(attempt);
        }
    }

    /// Jobs that are closed and have nothing running any more, to be ended by the caller.
    pub(super) fn closed_jobs(&mut self) -> Vec<Job> {
        let (over, closing) = std::mem::take(&mut self.closing)
            .into_iter()
            .partition(|job| Arc::strong_count(job) == 1);
        self.closing = closing;
        let over: Vec<Arc<Job>> = over;
        over.into_iter().filter_map(Arc::into_inner).collect()
    }

    /// Whether a closed job is still held by a slot.
    pub(super) fn is_closing(&self) -> bool {
        !self.closing.is_empty()
    }

    /// Jobs that are open, or not quite closed, when the session ends.
    pub(super) fn into_jobs(self) -> Vec<Arc<Job>> {
        let jobs: Vec<_> = self.jobs.into_values().chain(self.closing).collect();
        jobs.iter().for_each(|job| job.set_closed());
        self.lane.rouse();
        jobs
    }

    fn progress(&self) -> Vec<Progress> {
        let mut running = Vec::new();
        self.lane.progress(&mut running);
        running.retain(|progress| self.attempts.contains_key(&progress.attempt));
        running
    }

    fn open_job(&mut self, id: JobId, spec: Box<JobSpec>) {
        let brings_files = (!spec.files.is_empty() || !spec.artifacts().is_empty())
            && !self.jobs.contains_key(&id);
        let opened = if self.jobs.contains_key(&id) || self.opening.contains(id) {
            Ok(())
        } else if self.jobs.len() + self.opening.len() >= JOBS_PER_SESSION_MAX {
            let message = format!(
                "{} has {JOBS_PER_SESSION_MAX} jobs of this coordinator open, which is the limit",
                self.host.name
            );
            Err(Refusal { cause: RefusalCause::Limit, message })
        } else if brings_files {
            self.opening.begin(id, spec)
        } else {
            Job::open(id, *spec, &self.host, None).map(|job| self.admit(id, job))
        };
        match opened {
            Ok(()) if brings_files => self.outbox.extend(self.opening.advance(id)),
            // Who tries it tells of it.
            Ok(()) if self.probes.contains_key(&id) => {}
            Ok(()) => self.outbox.push(Report::JobReady(id)),
            Err(refusal) => self.outbox.push(Report::JobRefused(id, refusal)),
        }
    }

    /// What is in files of jobs has come, or will not.
    pub(super) fn artifacts_changed(&mut self) {
        self.outbox.extend(self.opening.advance_all());
    }

    /// Files that are to be put in place.
    pub(super) fn take_placements(&mut self) -> Vec<Placement> {
        self.opening.take_placements()
    }

    /// Files were put in place. A job that nobody wants any more comes back.
    pub(super) fn opened(&mut self, opened: Opened) -> Option<Job> {
        let is_wanted = self.opening.finish(&opened);
        let id = opened.job;
        match opened.result {
            Ok(job) if !is_wanted => return Some(job),
            Ok(job) => {
                self.admit(id, job);
                if !self.probes.contains_key(&id) {
                    self.outbox.push(Report::JobReady(id));
                }
            }
            Err(refusal) if is_wanted => self.outbox.push(Report::JobRefused(id, refusal)),
            Err(_) => {}
        }
        None
    }

    /// A job is open; one that must be tried before it is known to run here is tried on a slot.
    fn admit(&mut self, id: JobId, job: Job) {
        let job = Arc::new(job);
        self.jobs.insert(id, Arc::clone(&job));
        if job.needs_probe() {
            self.start_tasks();
            self.probes.insert(id, self.lane.next_ticket());
            self.lane.push(&mut vec![Task::probe(job)]);
        }
    }

    /// A job was tried.
    fn probed(&mut self, id: JobId, result: Result<(), String>) {
        if self.probes.remove(&id).is_none() {
            return;
        }
        match result {
            Ok(()) => self.outbox.push(Report::JobReady(id)),
            Err(message) => {
                self.close_job(id);
                let refusal = Refusal { cause: RefusalCause::NotFound, message };
                self.outbox.push(Report::JobRefused(id, refusal));
            }
        }
    }

    fn close_job(&mut self, id: JobId) {
        self.start_tasks();
        self.opening.close(id);
        if let Some(ticket) = self.probes.remove(&id)
            && self.lane.take_back(ticket).is_none()
        {
            self.lane.cancel(Task::probe_id(id));
        }
        let Some(job) = self.jobs.remove(&id) else { return };
        let of_job =
            |(&attempt, held): (&AttemptId, &Attempt)| (held.key.job == id).then_some(attempt);
        let attempts: Vec<_> = self.attempts.iter().filter_map(of_job).collect();
        for attempt in attempts {
            self.cancel(attempt);
        }
        job.set_closed();
        self.lane.rouse();
        self.closing.push(job);
    }

    /// A session that holds much output starts nothing more, but what the coordinator waits for.
    fn pause_if_full(&mut self) {
        if self.kept_bytes <= SESSION_OUTPUT_BYTES && !self.paused {
            return;
        }
        // Counted anew: what a long output has sent is not kept.
        self.kept_bytes = self.attempts.values().map(|held| held.outgoing.kept_bytes()).sum();
        let full = self.kept_bytes > SESSION_OUTPUT_BYTES;
        if full != self.paused {
            self.paused = full;
            self.lane.set_paused(full);
            self.input.set_paused(full);
        }
    }

    fn grant_input(&mut self) {
        if let Some(total) = self.input.next_grant() {
            self.outbox.push(Report::InputGrant(total));
        }
    }
}
