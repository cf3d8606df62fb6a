//! The simulated driver: the real scheduler's owner. It does with events and actions what the real
//! one does, so that the protocol's logic is tested, not only the scheduler.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_common::time::{Time, Timers};
use widemap_proto::session::{Done, HeldAttempt, Part, Report, WorkerHello};
use widemap_sched::event::{Action, DeathProof, Event, ItemFault, WorkerTraits};
use widemap_sched::{Scheduler, SchedulerConfig};

use widemap::session_for_tests::{SendBounds, StreamId};

use super::agenda::LinkId;
use super::fleet::{Attachment, Fleet, State};
use super::job::Job;

/// What a link tells the driver.
#[derive(Debug)]
pub(super) enum News {
    Attached {
        stream: StreamId,
        hello: Box<WorkerHello>,
        held: Vec<HeldAttempt>,
        round_trip_us: u64,
    },
    Reports(Vec<Report>),
    RoundTrip(u64),
    Corrupt(AttemptId),
    Cut {
        ended: bool,
    },
    Unreachable {
        refused: bool,
    },
    Refused,
}

/// An attempt that was assigned and is not over.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) worker: WorkerId,
    pub(super) job: JobId,
    pub(super) range: ItemRange,
    pub(super) staged_bytes: u64,
}

/// See the file's head.
pub(super) struct Coordinator {
    pub(super) now: Time,
    pub(super) scheduler: Scheduler,
    pub(super) events: VecDeque<Event>,
    actions: Vec<Action>,
    pub(super) fleet: Fleet,
    pub(super) attempts: BTreeMap<AttemptId, Attempt>,
    pub(super) jobs: Vec<Job>,
    /// Workers that have said whether they can run a job.
    answered: BTreeSet<(WorkerId, JobId)>,
    /// The least part that workers send, and the most that one may have on the way.
    pub(super) output_window: (u64, u64),
    /// Whether the driver has something to settle.
    pub(super) is_woken: bool,
    pub(super) lost_workers: u32,
    pub(super) events_handled: u64,
    /// What happened last, for whoever reads a failure.
    pub(super) trace: Option<VecDeque<String>>,
}

/// Events that follow from one another at one moment, before they are going round in a circle.
const EVENTS_AT_ONCE_MAX: u64 = 20_000;

/// Lines that are kept for whoever reads a failure.
const TRACE_LINES: usize = 10_000;

impl Coordinator {
    pub(super) fn new(
        seed: u64,
        timers: Timers,
        output_window: (u64, u64),
        bounds: SendBounds,
    ) -> Self {
        Self {
            now: Time::ZERO,
            scheduler: Scheduler::new(SchedulerConfig { seed, timers }),
            events: VecDeque::new(),
            actions: Vec::new(),
            fleet: Fleet::new(std::time::Duration::from_millis(timers.lease_ms), bounds),
            attempts: BTreeMap::new(),
            jobs: Vec::new(),
            answered: BTreeSet::new(),
            output_window,
            is_woken: false,
            lost_workers: 0,
            events_handled: 0,
            trace: None,
        }
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE_LINES {
                trace.pop_front();
            }
            trace.push_back(format!("{} {}", self.now, line()));
        }
    }

    pub(super) fn job(&mut self, id: JobId) -> &mut Job {
        &mut self.jobs[id.0 as usize]
    }

    pub(super) fn open_job(&mut self, index: usize) {
        let job = &mut self.jobs[index];
        job.opened = true;
        let (id, policy, level) = (job.id, job.policy.clone(), job.level());
        self.events.push_back(Event::JobOpened { job: id, policy });
        self.events.push_back(Event::InputLevel { job: id, level });
        self.is_woken = true;
    }

    /// The user gives a job up.
    pub(super) fn cancel_job(&mut self, index: usize) {
        let job = &mut self.jobs[index];
        if job.opened && !job.ended && !std::mem::replace(&mut job.stopped, true) {
            self.events.push_back(Event::JobCancelled { job: job.id });
            self.drain_events();
            self.is_woken = true;
        }
    }

    /// Takes in what a link says.
    pub(super) fn hear(&mut self, link: LinkId, news: News) {
        self.note(|| format!("link {link}: {news:?}"));
        self.is_woken = true;
        let mut events = Vec::new();
        match news {
            News::Attached { stream, hello, held, round_trip_us } => {
                self.attached(link, stream, *hello, &held, round_trip_us);
            }
            News::Reports(reports) => {
                if let Some(worker) = self.fleet.worker_of(link) {
                    reports.into_iter().for_each(|report| self.report(worker, report));
                }
            }
            News::RoundTrip(micros) => {
                if let Some(worker) = self.fleet.worker_of(link) {
                    events.push(Event::RoundTrip { worker, micros });
                }
            }
            News::Corrupt(attempt) => {
                if let Some(worker) = self.fleet.worker_of(link)
                    && self.is_assigned(worker, attempt)
                {
                    self.reject(attempt);
                }
            }
            News::Cut { ended } => self.fleet.cut(self.now, link, ended, &mut events),
            News::Unreachable { refused } => self.fleet.unreachable(link, refused, &mut events),
            News::Refused => self.fleet.refused(link, &mut events),
        }
        self.note_deaths(&events);
        self.events.extend(events);
        self.drain_events();
    }

    /// Ends leases and lets the scheduler know that time has passed.
    pub(super) fn deadline(&mut self) {
        let mut events = Vec::new();
        self.fleet.expire(self.now, &mut events);
        self.note_deaths(&events);
        self.events.extend(events);
        self.events.push_back(Event::Tick);
        self.is_woken = true;
        self.drain_events();
        let spins = self.next_deadline().is_some_and(|at| at <= self.now);
        assert!(!spins, "what was due at {} is due again", self.now);
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.scheduler.next_deadline().into_iter().chain(self.fleet.next_deadline()).min()
    }

    /// Brings everything that follows from what was heard to its end.
    pub(super) fn settle(&mut self) {
        for job in self.jobs.iter_mut().filter(|job| job.is_open()) {
            let id = job.id;
            if job.poll_gate() {
                self.events.push_back(Event::InputLevel { job: id, level: job.level() });
            }
            job.poll_sink();
            // After the sink has been fed: what went there makes room, and wakes nobody.
            if let Some(full) = job.poll_storage() {
                self.events.push_back(Event::Storage { job: id, full });
            }
        }
        self.drain_events();
        self.grant_output();
        for job in self.jobs.iter_mut().filter(|job| job.ended && job.is_open()) {
            job.finish();
        }
    }

    pub(super) fn drain_events(&mut self) {
        let before = self.events_handled;
        while let Some(event) = self.events.pop_front() {
            let spins = self.events_handled - before > EVENTS_AT_ONCE_MAX;
            assert!(!spins, "the driver spins at {}: {event:?}", self.now);
            self.note(|| format!("  {event:?}"));
            self.events_handled += 1;
            match event {
                Event::WorkerCredit { worker, slots, queue } => {
                    let member = self.fleet.member_mut(worker);
                    (member.slots, member.queue) = (slots, queue);
                }
                Event::Storage { job, full } => self.storage_told(job, full),
                _ => {}
            }
            let mut actions = std::mem::take(&mut self.actions);
            self.scheduler.handle(self.now, event, &mut actions);
            for action in actions.drain(..) {
                self.note(|| format!("    {action:?}"));
                self.act(action);
            }
            self.actions = actions;
        }
    }

    fn storage_told(&mut self, id: JobId, full: bool) {
        let windows = self.fleet.members.len() as u64 * self.output_window.1;
        let job = self.job(id);
        job.told_full = full;
        if full {
            job.allow(windows);
        } else {
            job.forget_allowance();
        }
    }

    fn attached(
        &mut self,
        link: LinkId,
        stream: StreamId,
        hello: WorkerHello,
        held: &[HeldAttempt],
        round_trip_us: u64,
    ) {
        let mut events = Vec::new();
        let attachment = self.fleet.attached(link, stream, hello, &mut events);
        self.note_deaths(&events);
        self.events.extend(events);
        self.drain_events();
        match attachment {
            None => {}
            Some(Attachment::New(worker)) => {
                let hello = &self.fleet.member(worker).hello;
                let traits = WorkerTraits {
                    name: hello.name.clone(),
                    slots: hello.slots,
                    queue: 0,
                    runtimes: hello.runtimes.clone(),
                    labels: hello.labels.clone(),
                    round_trip_us,
                };
                self.events.push_back(Event::WorkerUp { worker, traits });
                if !held.is_empty() {
                    let held = held.iter().map(|held| held.attempt).collect();
                    self.events.push_back(Event::WorkerBack { worker, held });
                }
            }
            Some(Attachment::Back(worker)) => self.reattach(worker, held),
        }
    }

    fn is_assigned(&self, worker: WorkerId, attempt: AttemptId) -> bool {
        self.attempts.get(&attempt).is_some_and(|attempt| attempt.worker == worker)
    }

    /// The same incarnation is back: what it holds goes on, what it does not hold is gone.
    fn reattach(&mut self, worker: WorkerId, held: &[HeldAttempt]) {
        let mut kept = Vec::new();
        for held in held {
            if !self.is_assigned(worker, held.attempt) {
                kept.push(held.attempt);
                continue;
            }
            let Some(attempt) = self.attempts.get_mut(&held.attempt) else { continue };
            attempt.staged_bytes = 0;
            let (job, range) = (attempt.job, attempt.range);
            self.job(job).discard(held.attempt);
            let input = self.job(job).input_of(range);
            let outbox = self.fleet.outbox(worker);
            outbox.resume(held.attempt, job, range, input, held.input_bytes);
            kept.push(held.attempt);
        }
        self.drop_attempts(worker, &kept);
        let slots = self.fleet.member(worker).hello.slots;
        for index in 0..self.jobs.len() {
            let job = &self.jobs[index];
            let fits = job.policy.slots_per_item.get() <= slots;
            if fits && job.opened && !job.ended && !self.answered.contains(&(worker, job.id)) {
                self.tell_of_job(worker, job.id);
            }
        }
        self.events.push_back(Event::WorkerBack { worker, held: kept });
    }

    /// Forgets the attempts of a worker but for some.
    fn drop_attempts(&mut self, worker: WorkerId, kept: &[AttemptId]) {
        let of_worker = self.attempts.iter().filter(|(_, attempt)| attempt.worker == worker);
        let dropped: Vec<_> =
            of_worker.map(|(&id, _)| id).filter(|id| !kept.contains(id)).collect();
        for id in dropped {
            self.forget_attempt(id);
        }
    }

    /// Forgets an attempt and what is staged of it.
    pub(super) fn forget_attempt(&mut self, id: AttemptId) {
        if let Some(attempt) = self.attempts.remove(&id) {
            self.job(attempt.job).discard(id);
        }
    }

    /// A dead worker's attempts are nobody's.
    fn note_deaths(&mut self, events: &[Event]) {
        for event in events {
            let Event::WorkerDead { worker, proof } = event else { continue };
            self.lost_workers += u32::from(*proof != DeathProof::Drained);
            if *proof == DeathProof::Proved {
                let of_worker = self.attempts.values().filter(|attempt| attempt.worker == *worker);
                let held: Vec<_> = of_worker.map(|attempt| (attempt.job, attempt.range)).collect();
                for (job, range) in held {
                    self.job(job).oracle.died_with(range);
                }
            }
            self.drop_attempts(*worker, &[]);
        }
    }

    fn report(&mut self, worker: WorkerId, report: Report) {
        let event = match report {
            Report::Done(done) => return self.done(worker, &done),
            Report::Output(part) => return self.output(worker, &part),
            Report::Credit(credit) => {
                Event::WorkerCredit { worker, slots: credit.slots, queue: credit.queue }
            }
            Report::JobReady(job) => {
                self.answered.insert((worker, job));
                Event::JobReady { worker, job }
            }
            Report::JobRefused(job, _) => {
                self.answered.insert((worker, job));
                Event::JobRefused { worker, job }
            }
            Report::Revoked(attempt) | Report::TooLate(attempt)
                if !self.is_assigned(worker, attempt) =>
            {
                return;
            }
            Report::Revoked(attempt) => {
                self.attempts.remove(&attempt);
                self.fleet.outbox(worker).recall(attempt);
                Event::Revoked { attempt }
            }
            Report::TooLate(attempt) => Event::RevokedTooLate { attempt },
            Report::Cancelled(attempt) => Event::Cancelled { worker, attempt },
            Report::Heartbeat(running) => Event::Progress {
                worker,
                running: running.iter().map(|progress| (progress.attempt, progress.item)).collect(),
            },
            Report::Draining(_) => {
                self.fleet.member_mut(worker).state = State::Draining;
                Event::WorkerDraining { worker }
            }
            Report::JobNeeds(..)
            | Report::Paused(_)
            | Report::Log(..)
            | Report::Hello(_)
            | Report::Held(_)
            | Report::Pong(_)
            | Report::InputGrant(_) => return,
        };
        self.events.push_back(event);
        self.drain_events();
    }

    fn output(&mut self, worker: WorkerId, part: &Part) {
        self.fleet.member_mut(worker).received_total += part.data.len() as u64;
        let Some(attempt) = self.attempts.get_mut(&part.attempt) else { return };
        if attempt.worker != worker || attempt.staged_bytes != part.offset {
            return self.reject(part.attempt);
        }
        attempt.staged_bytes += part.data.len() as u64;
        let job = attempt.job;
        if !self.job(job).stage(part) {
            self.reject(part.attempt);
        }
    }

    fn done(&mut self, worker: WorkerId, done: &Done) {
        self.fleet.member_mut(worker).received_total += done.output.len() as u64;
        let id = done.attempt;
        let Some(attempt) = self.attempts.get(&id).filter(|attempt| attempt.worker == worker)
        else {
            // Long given up: the scheduler knows, the worker shall forget it.
            return self.fleet.outbox(worker).accepted(id);
        };
        let (job, range) = (attempt.job, attempt.range);
        if !fits(attempt, done) {
            return self.reject(id);
        }
        let fault = |fault: &widemap_common::failure::Fault| ItemFault {
            index: fault.index,
            kind: fault.kind,
            retryable: fault.retryable,
        };
        let faults = done.faults.iter().map(fault).collect();
        let name = self.fleet.member(worker).hello.name.clone();
        if !self.job(job).arrived(range, &name, done) {
            return self.reject(id);
        }
        self.job(job).oracle.told_of_faults(range, &done.faults);
        self.events.push_back(Event::AttemptDone { attempt: id, busy_us: done.busy_us, faults });
        self.drain_events();
    }

    fn reject(&mut self, id: AttemptId) {
        if let Some(attempt) = self.attempts.remove(&id) {
            let job = self.job(attempt.job);
            job.discard(id);
            job.oracle.told(attempt.range);
            job.rejected += 1;
        }
        self.events.push_back(Event::AttemptRejected { attempt: id });
        self.drain_events();
    }
}

/// Whether the end of an attempt fits what is known of it.
fn fits(attempt: &Attempt, done: &Done) -> bool {
    let whole = attempt.staged_bytes + done.output.len() as u64 == done.output_bytes;
    let mut next_index = 0;
    let mut known = |fault: &widemap_common::failure::Fault| {
        let fits = fault.index >= next_index && fault.index < attempt.range.items;
        next_index = fault.index + 1;
        fits
    };
    whole && done.faults.iter().all(&mut known)
}
