//! What links say, turned into events for the scheduler and payload for the job.

use widemap_common::ids::WorkerId;
use widemap_common::limits::PART_BYTES_MAX;
use widemap_proto::session::{Credit, Done, HeldAttempt, Part, Report};
use widemap_sched::event::{DeathProof, Event, ItemFault};

use super::fleet::{Attachment, WorkerState};
use super::{Driver, THE_JOB};
use crate::session::{LinkEvent, LinkNews};

impl Driver {
    /// Takes in what a link says.
    pub(super) fn hear(&mut self, event: LinkEvent) {
        let LinkEvent { link, news } = event;
        let mut events = Vec::new();
        match news {
            LinkNews::Attached { stream, address, hello, held, round_trip } => {
                let attachment =
                    self.fleet.attached(self.now, link, stream, address, *hello, &mut events);
                self.note_deaths(&events);
                self.events.extend(events);
                self.drain_events();
                return self.welcome(attachment, &held, round_trip);
            }
            LinkNews::Reports(reports) => {
                if let Some(worker) = self.fleet.worker_of(link) {
                    reports.into_iter().for_each(|report| self.report(worker, report));
                }
            }
            LinkNews::RoundTrip(time) => {
                if let Some(worker) = self.fleet.worker_of(link) {
                    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
                    events.push(Event::RoundTrip { worker, micros });
                }
            }
            LinkNews::Corrupt { attempt, reason } => {
                if let Some(worker) = self.fleet.worker_of(link)
                    && self.is_of(worker, attempt)
                {
                    self.reject(worker, attempt, &reason);
                }
            }
            LinkNews::Cut { reason, ended } => {
                tracing::info!(?link, reason, "cut");
                self.fleet.cut(self.now, link, reason, ended, &mut events);
            }
            LinkNews::Unreachable { error } => {
                self.fleet.unreachable(self.now, link, error, &mut events);
            }
            LinkNews::Refused { reason } => {
                self.fleet.refused(self.now, link, reason, &mut events);
            }
        }
        self.note_deaths(&events);
        self.events.extend(events);
        self.drain_events();
    }

    /// What the scheduler and the job are told of a stream that was attached.
    fn welcome(
        &mut self,
        attachment: Option<Attachment>,
        held: &[HeldAttempt],
        round_trip: std::time::Duration,
    ) {
        match attachment {
            None => {}
            Some(Attachment::New(worker)) => {
                self.meet(worker);
                if let Some(traits) = self.fleet.traits(worker, round_trip) {
                    self.demand(worker, traits.slots);
                    self.events.push_back(Event::WorkerUp { worker, traits });
                }
                if !held.is_empty() {
                    // It was given up before, and goes on with what is nobody's any more.
                    let held = held.iter().map(|held| held.attempt).collect();
                    self.events.push_back(Event::WorkerBack { worker, held });
                }
            }
            Some(Attachment::Back(worker)) => {
                let slots = self.fleet.worker(worker).map_or(0, |entry| entry.hello.slots);
                self.demand(worker, self.fleet.slots(slots));
                self.reattach(worker, held);
            }
        }
    }

    /// Says so at once if a worker does not fit the job: the scheduler never asks it.
    fn meet(&mut self, worker: WorkerId) {
        let Some(entry) = self.fleet.worker(worker) else { return };
        if let Some(reason) = self.job.meet(worker, &entry.hello)
            && self.fleet.places().count() > 1
        {
            self.notices.say(&format!("worker {} is set aside: {reason}", entry.hello.name));
        }
    }

    fn demand(&self, worker: WorkerId, slots: u32) {
        if let Some(link) = self.fleet.link(worker) {
            link.outbox.demand(slots);
        }
    }

    /// Whether an attempt was assigned to this worker and is not over.
    fn is_of(&self, worker: WorkerId, attempt: widemap_common::ids::AttemptId) -> bool {
        self.attempts.get(&attempt).is_some_and(|attempt| attempt.worker == worker)
    }

    /// The same incarnation is back: what it holds goes on, what it does not hold is gone. What it
    /// holds that nobody here knows of is of no use: the scheduler has it cancelled.
    fn reattach(&mut self, worker: WorkerId, held: &[HeldAttempt]) {
        let mut kept = Vec::new();
        for held in held {
            if !self.is_of(worker, held.attempt) {
                kept.push(held.attempt);
                continue;
            }
            // Its output comes again from the first byte.
            self.job.discard(held.attempt);
            let Some(attempt) = self.attempts.get_mut(&held.attempt) else { continue };
            attempt.staged_bytes = 0;
            let range = attempt.range;
            match (self.job.input_of(range), self.fleet.link(worker)) {
                (Ok(input), Some(link)) => {
                    let (id, from) = (held.attempt, held.input_bytes);
                    link.outbox.resume(id, THE_JOB, range, input, from);
                    kept.push(held.attempt);
                }
                (Err(error), _) => return self.fail(error),
                (Ok(_), None) => {}
            }
        }
        self.drop_attempts(worker, &kept);
        if !self.job.has_refused(worker) {
            // It may have forgotten the job, if its own lease ended first. To open it again is no harm.
            self.open_job(worker);
        }
        self.events.push_back(Event::WorkerBack { worker, held: kept });
        self.dirty.insert(worker);
    }

    /// Forgets the attempts of a worker but for some.
    fn drop_attempts(&mut self, worker: WorkerId, kept: &[widemap_common::ids::AttemptId]) {
        let job = &mut self.job;
        self.attempts.retain(|id, attempt| {
            let stays = attempt.worker != worker || kept.contains(id);
            if !stays {
                job.discard(*id);
            }
            stays
        });
    }

    /// A dead worker's attempts are nobody's.
    pub(super) fn note_deaths(&mut self, events: &[Event]) {
        for event in events {
            if let Event::WorkerDead { worker, proof } = event {
                self.drop_attempts(*worker, &[]);
                if *proof != DeathProof::Drained && !self.end.cancelled {
                    let name = self.fleet.name(*worker).to_owned();
                    self.notices.say(&format!("worker {name} is lost; what it had runs elsewhere"));
                }
            }
        }
    }

    fn report(&mut self, worker: WorkerId, report: Report) {
        let event = match report {
            Report::Done(done) => return self.done(worker, &done),
            Report::Output(part) => return self.output(worker, &part),
            Report::Credit(credit) => {
                if let Some(entry) = self.fleet.worker_mut(worker) {
                    entry.credit = credit;
                }
                let Credit { slots, queue } = self.fleet.credit(worker);
                Event::WorkerCredit { worker, slots, queue }
            }
            Report::JobReady(job) => {
                self.job.was_ready();
                Event::JobReady { worker, job }
            }
            Report::JobRefused(job, refusal) => {
                let name = self.fleet.name(worker).to_owned();
                self.job.refused(worker, &name, &refusal);
                if self.fleet.places().count() > 1 {
                    self.notices.say(&format!("worker {name} is set aside: {}", refusal.message));
                }
                Event::JobRefused { worker, job }
            }
            Report::Revoked(attempt) | Report::TooLate(attempt) if !self.is_of(worker, attempt) => {
                return;
            }
            Report::Revoked(attempt) => {
                self.attempts.remove(&attempt);
                if let Some(link) = self.fleet.link(worker) {
                    link.outbox.recall(attempt);
                }
                Event::Revoked { attempt }
            }
            Report::TooLate(attempt) => Event::RevokedTooLate { attempt },
            Report::Cancelled(attempt) => Event::Cancelled { worker, attempt },
            Report::Heartbeat(running) => Event::Progress {
                worker,
                running: running.iter().map(|progress| (progress.attempt, progress.item)).collect(),
            },
            Report::Draining(deadline_ms) => {
                tracing::info!(%worker, deadline_ms, "draining");
                let name = self.fleet.name(worker).to_owned();
                if let Some(entry) = self.fleet.worker_mut(worker) {
                    if entry.state == WorkerState::Attached {
                        entry.state = WorkerState::Draining;
                    }
                    if !std::mem::replace(&mut entry.is_leaving, true) {
                        self.notices.say(&format!(
                            "worker {name} is leaving: it finishes what it runs and gives back the rest"
                        ));
                    }
                }
                Event::WorkerDraining { worker }
            }
            Report::Log(_, text) => {
                let name = self.fleet.name(worker).to_owned();
                return self.notices.line(format!("widemap: {name}: {text}"));
            }
            // The link keeps these to itself.
            Report::Hello(_) | Report::Held(_) | Report::Pong(_) | Report::InputGrant(_) => return,
        };
        self.events.push_back(event);
        self.drain_events();
    }

    /// A part of an attempt's output.
    fn output(&mut self, worker: WorkerId, part: &Part) {
        self.received(worker, part.data.len());
        let Some(attempt) = self.attempts.get_mut(&part.attempt) else { return };
        let fits = attempt.worker == worker
            && attempt.staged_bytes == part.offset
            && part.data.len() <= PART_BYTES_MAX;
        if !fits {
            return self.reject(worker, part.attempt, "a part of its output is out of place");
        }
        attempt.staged_bytes += part.data.len() as u64;
        if let Err(error) = self.job.stage(part) {
            self.reject(worker, part.attempt, &error.to_string());
        }
    }

    /// The end of an attempt.
    fn done(&mut self, worker: WorkerId, done: &Done) {
        self.received(worker, done.output.len());
        let id = done.attempt;
        let Some(attempt) = self.attempts.get(&id).filter(|attempt| attempt.worker == worker)
        else {
            // Long given up: the scheduler knows, the worker shall forget it.
            if let Some(link) = self.fleet.link(worker) {
                link.outbox.accepted(id);
                self.dirty.insert(worker);
            }
            return;
        };
        if let Err(problem) = super::job::check(attempt, done) {
            return self.reject(worker, id, problem);
        }
        let faults = done
            .faults
            .iter()
            .map(|f| ItemFault { index: f.index, kind: f.kind, retryable: f.retryable })
            .collect();
        let event = Event::AttemptDone { attempt: id, busy_us: done.busy_us, faults };
        let range = attempt.range;
        match self.job.arrived(range, self.fleet.name(worker), done) {
            Ok(lines) => lines.into_iter().for_each(|line| self.notices.line(line)),
            Err(error) => return self.reject(worker, id, &error.to_string()),
        }
        self.events.push_back(event);
        self.drain_events();
    }

    fn reject(&mut self, worker: WorkerId, attempt: widemap_common::ids::AttemptId, problem: &str) {
        let name = self.fleet.name(worker);
        self.notices
            .line(format!("widemap: warning: a result of worker {name} is refused: {problem}"));
        self.attempts.remove(&attempt);
        self.job.discard(attempt);
        self.events.push_back(Event::AttemptRejected { attempt });
        self.drain_events();
    }

    fn received(&mut self, worker: WorkerId, bytes: usize) {
        if let Some(entry) = self.fleet.worker_mut(worker) {
            entry.received_total += bytes as u64;
        }
    }
}
