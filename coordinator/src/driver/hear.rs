//! What links say, turned into events for the scheduler and payload for the jobs.

use std::collections::BTreeSet;

use widemap_common::artifact::Digest;
use widemap_common::ids::{AttemptId, JobId, WorkerId};
use widemap_common::limits::PART_BYTES_MAX;
use widemap_common::units::size_shown;
use widemap_proto::jobs::AttemptState;
use widemap_proto::session::{Credit, Done, HeldAttempt, HeldState, Part, Report};
use widemap_sched::event::{DeathProof, Event, ItemFault};

use super::core::{Attempt, Core, Verdict};
use super::fleet::{Attachment, WorkerState};
use super::job::Job;
use crate::data::{Artifact, ArtifactError};
use crate::error::MapError;
use crate::failpoint;
use crate::session::{LinkEvent, LinkId, LinkNews};

/// A worker that is sent so many bytes of files takes a while to begin: that is said.
const FILES_BYTES_TOLD: u64 = 64 * 1024 * 1024;

impl Core {
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
            LinkNews::Unreadable { artifact, error } => self.unreadable(link, &artifact, &error),
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
                let jobs: Vec<_> = self.jobs.keys().copied().collect();
                jobs.into_iter().for_each(|job| self.meet(worker, job));
                if let Some(traits) = self.fleet.traits(worker, round_trip) {
                    self.demand(worker, traits.slots);
                    self.events.push_back(Event::WorkerUp { worker, traits });
                }
                if !held.is_empty() {
                    // What a former epoch left goes on. If it was given up before, it has what is
                    // nobody's any more, and is told to end that.
                    self.adopt(worker, held);
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

    /// Takes in what the worker has of a former epoch, as far as it is not cut in this one.
    fn adopt(&mut self, worker: WorkerId, held: &[HeldAttempt]) {
        let mut held: Vec<_> = held.iter().collect();
        // As it works them off.
        held.sort_by_key(|held| (held.state == HeldState::Queued, held.attempt));
        let mut over = BTreeSet::new();
        for held in held {
            let (attempt, id, range) = (held.attempt, held.job, held.range);
            let Some(job) = self.jobs.get_mut(&id) else {
                over.insert(id);
                continue;
            };
            if self.attempts.contains_key(&attempt) || !job.adopt(held) {
                continue;
            }
            tracing::info!(%worker, job = %id, %range, "goes on with what it has");
            let (assigned, speculative, staged_bytes) = (self.now, false, 0);
            let entry = Attempt { job: id, worker, range, assigned, speculative, staged_bytes };
            self.attempts.insert(attempt, entry);
            match (job.input_of(range), self.fleet.link(worker)) {
                (Ok((input, _)), Some(link)) => {
                    link.outbox.resume(attempt, id, range, input, held.input_bytes);
                }
                (Err(error), _) => self.verdicts.push(Verdict::Failed(id, error)),
                (Ok(_), None) => {}
            }
            let bytes = held.input_length;
            self.events.push_back(Event::Adopted { job: id, worker, attempt, range, bytes });
            let level = self.jobs.get_mut(&id).map(|job| job.level());
            self.events.extend(level.map(|level| Event::InputLevel { job: id, level }));
        }
        over.into_iter().for_each(|job| self.close_job(worker, job));
        self.dirty.insert(worker);
    }

    /// Says so at once if a worker does not fit a job: the scheduler never asks it.
    pub(super) fn meet(&mut self, worker: WorkerId, job: JobId) {
        let Some(entry) = self.fleet.worker(worker) else { return };
        let Some(job) = self.jobs.get_mut(&job) else { return };
        let slots = self.fleet.slots(entry.hello.slots);
        if let Some(reason) = job.meet(worker, &entry.hello, slots)
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
    fn is_of(&self, worker: WorkerId, attempt: AttemptId) -> bool {
        self.attempts.get(&attempt).is_some_and(|attempt| attempt.worker == worker)
    }

    /// The same incarnation is back: what it holds goes on, what it does not hold is gone. What it
    /// holds that nobody here knows of is of no use: the scheduler has it cancelled.
    fn reattach(&mut self, worker: WorkerId, held: &[HeldAttempt]) {
        let mut kept = Vec::new();
        let unsettled = self.unsettled.of(worker);
        for held in held.iter().filter(|held| !unsettled.contains(&held.attempt)) {
            if !self.is_of(worker, held.attempt) {
                kept.push(held.attempt);
                continue;
            }
            let Some(attempt) = self.attempts.get_mut(&held.attempt) else { continue };
            attempt.staged_bytes = 0;
            let (id, range) = (attempt.job, attempt.range);
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            // Its output comes again from the first byte.
            job.discard(held.attempt);
            match (job.input_of(range), self.fleet.link(worker)) {
                (Ok((input, _)), Some(link)) => {
                    link.outbox.resume(held.attempt, id, range, input, held.input_bytes);
                    kept.push(held.attempt);
                }
                (Err(error), _) => self.verdicts.push(Verdict::Failed(id, error)),
                (Ok(_), None) => {}
            }
        }
        self.drop_attempts(worker, &kept);
        self.hold_back(worker);
        let open = self.jobs.iter().filter(|(_, job)| !job.has_refused(worker));
        let open: Vec<_> = open.map(|(&id, _)| id).collect();
        // It may have forgotten them, if its own lease ended first. To open them again is no harm.
        open.into_iter().for_each(|job| self.open_job(worker, job));
        self.events.push_back(Event::WorkerBack { worker, held: kept });
        self.dirty.insert(worker);
    }

    /// Forgets the attempts of a worker but for some.
    fn drop_attempts(&mut self, worker: WorkerId, kept: &[AttemptId]) {
        let gone = |(&id, attempt): (&AttemptId, &Attempt)| {
            (attempt.worker == worker && !kept.contains(&id)).then_some(id)
        };
        let gone: Vec<_> = self.attempts.iter().filter_map(gone).collect();
        gone.into_iter().for_each(|id| self.drop_attempt(id, AttemptState::Lost, ""));
    }

    /// A dead worker's attempts are nobody's.
    pub(super) fn note_deaths(&mut self, events: &[Event]) {
        for event in events {
            if let Event::WorkerDead { worker, proof } = event {
                self.drop_attempts(*worker, &[]);
                let all_stopped = !self.jobs.is_empty() && self.jobs.values().all(Job::is_stopped);
                if *proof != DeathProof::Drained && !all_stopped {
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
            Report::JobNeeds(job, digests) => return self.send_files(worker, job, &digests),
            Report::JobReady(job) => {
                if let Some(open) = self.jobs.get_mut(&job) {
                    open.was_ready();
                }
                Event::JobReady { worker, job }
            }
            Report::JobRefused(job, refusal) => {
                let name = self.fleet.name(worker).to_owned();
                if let Some(open) = self.jobs.get_mut(&job) {
                    open.refused(worker, &name, &refusal);
                }
                if self.fleet.places().count() > 1 {
                    self.notices.say(&format!("worker {name} is set aside: {}", refusal.message));
                }
                Event::JobRefused { worker, job }
            }
            Report::Revoked(attempt) | Report::TooLate(attempt) if !self.is_of(worker, attempt) => {
                return;
            }
            Report::Revoked(attempt) => {
                self.drop_attempt(attempt, AttemptState::Revoked, "");
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
            Report::Paused(why) => return self.paused(worker, why),
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

    /// A worker takes no work for now, or takes it again: its credit says so to the scheduler.
    fn paused(&mut self, worker: WorkerId, why: Option<String>) {
        let name = self.fleet.name(worker).to_owned();
        let Some(entry) = self.fleet.worker_mut(worker) else { return };
        match &why {
            Some(why) => {
                self.notices.say(&format!("worker {name} takes no more work for now: {why}"));
            }
            None if entry.paused.is_some() => {
                self.notices.say(&format!("worker {name} takes work again"));
            }
            None => {}
        }
        entry.paused = why;
    }

    /// A worker lacks what is in files of a job.
    fn send_files(&mut self, worker: WorkerId, job: JobId, digests: &[Digest]) {
        let (Some(job), Some(link)) = (self.jobs.get(&job), self.fleet.link(worker)) else {
            return;
        };
        let artifacts: Vec<_> =
            digests.iter().filter_map(|&digest| job.artifact(digest).cloned()).collect();
        let bytes: u64 = artifacts.iter().map(|artifact| artifact.bytes).sum();
        if bytes >= FILES_BYTES_TOLD {
            let name = self.fleet.name(worker);
            self.notices.say(&format!("sending {} of files to worker {name}", size_shown(bytes)));
        }
        link.uploads.push(artifacts);
    }

    /// What is in a file of a job cannot be read any more. Another job may have the same elsewhere: the
    /// worker has asked for it once, for both.
    fn unreadable(&mut self, link: LinkId, artifact: &Artifact, error: &ArtifactError) {
        let mut elsewhere = None;
        for (&id, job) in self.jobs.iter().filter(|(_, job)| !job.is_stopped()) {
            match job.artifact(artifact.digest) {
                Some(own) if own.path == artifact.path => {
                    self.verdicts.push(Verdict::Failed(id, MapError::File(error.to_string())));
                }
                Some(own) => elsewhere = Some(own.clone()),
                None => {}
            }
        }
        let worker = self.fleet.worker_of(link);
        if let Some(link) = worker.and_then(|worker| self.fleet.link(worker)) {
            link.uploads.push(elsewhere);
        }
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
        let Some(job) = self.jobs.get_mut(&attempt.job) else { return };
        if let Err(error) = job.stage(part) {
            self.reject(worker, part.attempt, &error.to_string());
        }
    }

    /// The end of an attempt.
    fn done(&mut self, worker: WorkerId, done: &Done) {
        failpoint::hit("result.arrived");
        self.received(worker, done.output.len());
        let id = done.attempt;
        let Some(attempt) = self.attempts.get(&id).filter(|attempt| attempt.worker == worker)
        else {
            // Long given up: the scheduler knows, the worker shall forget it. What came twice it keeps
            // until the first is durable.
            if !self.unsettled.of(worker).contains(&id) {
                self.forget(worker, id);
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
        let Some(job) = self.jobs.get_mut(&attempt.job) else { return };
        let unfit = job.judge_fitness(range.first, range.items, done);
        self.verdicts.extend(unfit.map(|error| Verdict::Failed(attempt.job, error)));
        match job.arrived(range, self.fleet.name(worker), done) {
            Ok(lines) => lines.into_iter().for_each(|line| self.notices.line(line)),
            Err(error) => return self.reject(worker, id, &error.to_string()),
        }
        self.events.push_back(event);
        self.drain_events();
    }

    fn reject(&mut self, worker: WorkerId, attempt: AttemptId, problem: &str) {
        let name = self.fleet.name(worker);
        self.notices
            .line(format!("widemap: warning: a result of worker {name} is refused: {problem}"));
        self.drop_attempt(attempt, AttemptState::Rejected, problem);
        self.events.push_back(Event::AttemptRejected { attempt });
        self.drain_events();
    }

    fn received(&mut self, worker: WorkerId, bytes: usize) {
        if let Some(entry) = self.fleet.worker_mut(worker) {
            entry.received_total += bytes as u64;
        }
    }
}
