//! What is asked of a service, answered.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use widemap_common::ids::{AttemptId, JobId, WorkerId};
use widemap_common::limits::PAST_JOBS_MAX;
use widemap_common::time::Time;
use widemap_common::wall_clock;
use widemap_proto::jobs::{AttemptState, AttemptTold, Explanation, WorkerTold, WorkerTraits};
use widemap_sched::WorkerState;
use widemap_sched::event::Event;

use super::{Observed, Promise, Service};
use crate::driver::core::Attempt;
use crate::driver::fleet::LinkStatus;
use crate::driver::job::{Ended, Job};
use crate::journal::Entry;
use crate::service::{JobEntry, Reply, Request, RequestError};

impl Service {
    pub(super) fn answer(&mut self, request: Request, progressed: &Arc<Notify>) {
        match request {
            Request::Begin { job } => self.begin(job, progressed),
            Request::Admit { job } => {
                let is_over = job.has_ended() || self.is_ending(job.id);
                if !self.has_come(job.id) && !is_over {
                    self.queued.insert((Reverse(job.submission.policy.priority), job.id));
                    self.open_queued(progressed);
                }
            }
            Request::Cancel { job, reply } => match self.ended(job) {
                Some(error) => answered(reply, Err(error)),
                None => {
                    self.cancel(job);
                    self.conclude(progressed);
                    self.promise(reply);
                }
            },
            Request::Pause { job, reply } => self.set_paused(job, true, reply),
            Request::Unpause { job, reply } => self.set_paused(job, false, reply),
            Request::Explain { job, item, reply } => answered(reply, self.explain(job, item)),
            Request::Workers { reply } => answered(reply, Ok(self.workers())),
            Request::Prune { prune, reply } => self.remove(prune, Some(reply)),
        }
    }

    /// Why nothing can be done about a job, if so.
    fn ended(&self, job: JobId) -> Option<RequestError> {
        let Some(entry) = self.registry.get(job) else { return Some(RequestError::NoSuchJob(job)) };
        let ended = entry.has_ended().then(|| entry.status())?;
        Some(RequestError::Ended { job, state: ended.state.name() })
    }

    /// Answers once all that was handed to the journal is durable.
    fn promise(&mut self, reply: Reply<()>) {
        match self.promises.last() {
            Some(&(ticket, _)) => self.promises.push((ticket, Promise::Reply(reply))),
            None => answered(reply, Ok(())),
        }
    }

    fn set_paused(&mut self, job: JobId, paused: bool, reply: Reply<()>) {
        if let Some(error) = self.ended(job) {
            return answered(reply, Err(error));
        }
        if self.is_ending(job) {
            // Nothing is written behind a job's last word.
            return answered(reply, Err(RequestError::Ended { job, state: "over" }));
        }
        let ticket = self.writer.append(job, Entry::Paused(paused));
        self.promises.push((ticket, Promise::Reply(reply)));
        self.kept.pause(job, paused);
        if self.running.contains_key(&job) && !self.returning.is_waiting() {
            self.core.events.push_back(Event::JobPaused { job, paused });
            self.core.drain_events();
        }
        self.publish();
    }

    fn explain(&self, id: JobId, item: Option<u64>) -> Result<Explanation, RequestError> {
        let entry = self.registry.get(id).ok_or(RequestError::NoSuchJob(id))?;
        let Some(job) = self.core.jobs.get(&id) else {
            let state = entry.status().state;
            let sentence = match (state.name(), item) {
                ("queued", _) => {
                    format!("{id} waits for its turn: {} jobs are open.", self.running.len())
                }
                (_, Some(item)) => self.explain_past_item(&entry, item)?,
                (name, None) => format!("{id} has ended: it is {name}."),
            };
            let past = self.past.iter().find(|(job, _)| *job == id);
            let attempts = past.into_iter().flat_map(|(_, attempts)| attempts);
            let concerns = |told: &&AttemptTold| item.is_none_or(|item| told.range.contains(item));
            let attempts = attempts.filter(concerns).cloned().collect();
            return Ok(Explanation { sentence, attempts });
        };
        let sentence = match item {
            None => self.core.scheduler.explain(id),
            Some(item) => self.explain_item(id, item)?,
        };
        let mut attempts = self.told_of(job, item);
        let own = self.core.attempts.iter().filter(|(_, attempt)| {
            attempt.job == id && item.is_none_or(|item| attempt.range.contains(item))
        });
        let mut now: Vec<_> = own.map(|(&id, attempt)| self.told(id, attempt)).collect();
        now.sort_by_key(|told| told.attempt);
        attempts.append(&mut now);
        Ok(Explanation { sentence, attempts })
    }

    /// The attempts of a job that have ended, as far as they are remembered.
    fn told_of(&self, job: &Job, item: Option<u64>) -> Vec<AttemptTold> {
        let told = |ended: &Ended| AttemptTold {
            attempt: ended.attempt,
            range: ended.range,
            worker: self.core.fleet.name(ended.worker).to_owned(),
            assigned_ms: self.unix_ms(ended.assigned),
            ran: ended.ended.since(ended.assigned),
            state: ended.state,
            remark: ended.remark.clone(),
            speculative: ended.speculative,
        };
        job.history(item).into_iter().map(told).collect()
    }

    /// Remembers what became of a job that has ended, for a while.
    pub(super) fn remember(&mut self, id: JobId, job: &Job) {
        if self.past.len() >= PAST_JOBS_MAX {
            self.past.pop_front();
        }
        let attempts = self.told_of(job, None);
        self.past.push_back((id, attempts));
    }

    fn explain_past_item(&self, entry: &JobEntry, item: u64) -> Result<String, RequestError> {
        let (id, number, counts) = (entry.id, item + 1, entry.status().counts);
        if item >= counts.read {
            return Err(RequestError::NoSuchItem { job: id, item: number, read: counts.read });
        }
        let shelf = self.kept.shelf(id);
        Ok(match shelf.and_then(|shelf| shelf.is_final(item)) {
            Some(true) => format!("Item {number} of {id} has failed for good."),
            Some(false) => format!("Item {number} of {id} has succeeded."),
            None => format!("Item {number} of {id} was not run to its end before the job ended."),
        })
    }

    fn explain_item(&self, id: JobId, item: u64) -> Result<String, RequestError> {
        let number = item + 1;
        let shelf = self.kept.shelf(id);
        if let Some(failed) = shelf.and_then(|shelf| shelf.is_final(item)) {
            let how = if failed { "failed for good" } else { "succeeded" };
            return Ok(format!("Item {number} of {id} has {how}, and that is durable."));
        }
        if let Some(sentence) = self.core.scheduler.explain_item(id, item) {
            return Ok(sentence);
        }
        let read = self.counts(id).read;
        if item >= read {
            return Err(RequestError::NoSuchItem { job: id, item: number, read });
        }
        let job = self.core.scheduler.explain(id);
        Ok(format!(
            "Item {number} of {id} is not in a chunk yet, or is on its way to the disk. {job}"
        ))
    }

    fn told(&self, id: AttemptId, attempt: &Attempt) -> AttemptTold {
        let is_waiting = self.core.scheduler.is_waiting(id);
        AttemptTold {
            attempt: id,
            range: attempt.range,
            worker: self.core.fleet.name(attempt.worker).to_owned(),
            assigned_ms: self.unix_ms(attempt.assigned),
            ran: self.core.now.since(attempt.assigned),
            state: if is_waiting { AttemptState::Waiting } else { AttemptState::Running },
            remark: String::new(),
            speculative: attempt.speculative,
        }
    }

    fn unix_ms(&self, at: Time) -> u64 {
        let ago = self.core.now.since(at).as_millis();
        let now = wall_clock::unix_ms().unwrap_or_default();
        now.saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX))
    }

    fn workers(&self) -> Vec<WorkerTold> {
        let fleet = &self.core.fleet;
        let row = |(address, sources, status): (&str, Vec<&str>, &LinkStatus)| {
            let state = match status {
                LinkStatus::Dialling => "not used: no answer yet".to_owned(),
                LinkStatus::Attached(worker) => self.worker_state(*worker),
                LinkStatus::Cut(_, reason) => format!("not used: cut off: {reason}"),
                LinkStatus::Alias(worker) => format!("the same worker as {}", fleet.name(*worker)),
                LinkStatus::Unreachable(error) => format!("not used: {error}"),
                LinkStatus::Refused(reason) => format!("not used: {reason}"),
            };
            let worker = match status {
                LinkStatus::Attached(worker) => self.traits(*worker),
                _ => None,
            };
            let sources = sources.into_iter().map(str::to_owned).collect();
            WorkerTold { address: address.to_owned(), sources, state, worker }
        };
        let mut rows: Vec<_> = fleet.places().map(row).collect();
        rows.extend(fleet.remarks().into_iter().map(|(source, place, why)| WorkerTold {
            address: place.unwrap_or("-").to_owned(),
            sources: vec![source.to_owned()],
            state: format!("not used: {why}"),
            worker: None,
        }));
        rows
    }

    fn worker_state(&self, worker: WorkerId) -> String {
        let view = self.core.scheduler.workers().find(|view| view.worker == worker);
        match view.map(|view| view.state) {
            Some(WorkerState::Draining) => "leaving: it finishes what it runs".to_owned(),
            Some(WorkerState::Excluded(until)) => {
                let left = Duration::from_secs(until.since(self.core.now).as_secs() + 1);
                format!("left out for {left:?} more: what it runs fails, what others run does not")
            }
            _ => match self.core.fleet.worker(worker).and_then(|entry| entry.paused.as_ref()) {
                Some(why) => format!("takes no work for now: {why}"),
                None => "ready".to_owned(),
            },
        }
    }

    fn traits(&self, worker: WorkerId) -> Option<WorkerTraits> {
        let hello = &self.core.fleet.worker(worker)?.hello;
        let view = self.core.scheduler.workers().find(|view| view.worker == worker);
        let left_out = view.as_ref().and_then(|view| match view.state {
            WorkerState::Excluded(until) => Some(until.since(self.core.now)),
            _ => None,
        });
        Some(WorkerTraits {
            name: hello.name.clone(),
            build: hello.build.clone(),
            slots: hello.slots,
            runtimes: hello.runtimes.iter().map(|runtime| runtime.name().to_owned()).collect(),
            labels: hello.labels.clone(),
            round_trip: view.as_ref().map(|view| view.round_trip),
            left_out,
            running: view.as_ref().map_or(0, |view| view.running),
            waiting: view.as_ref().map_or(0, |view| view.waiting),
        })
    }

    /// What is going on.
    pub(super) fn observe(&self) -> Observed {
        let mut observed = Observed {
            jobs_queued: self.queued.len(),
            jobs_open: self.running.len(),
            tally: self.core.tally.clone(),
            attempts: self.core.attempts.len(),
            buffered_bytes: self.writer.queued_bytes(),
            journal_queued_bytes: self.writer.queued_bytes(),
            ..Observed::default()
        };
        for (&id, job) in &self.core.jobs {
            let counts = self.core.scheduler.counts(id).unwrap_or_default();
            observed.chunks_in_flight += counts.chunks_in_flight;
            let (memory_bytes, spilled_bytes) = job.kept_bytes();
            observed.buffered_bytes += memory_bytes;
            observed.spilled_bytes += spilled_bytes;
        }
        for view in self.core.scheduler.workers() {
            match view.state {
                WorkerState::Cut => observed.workers_cut += 1,
                WorkerState::Up | WorkerState::Draining | WorkerState::Excluded(_) => {
                    observed.workers_attached += 1;
                    observed.slots += u64::from(view.slots);
                    observed.slots_taken += u64::from(view.running);
                }
            }
        }
        observed
    }
}

fn answered<T>(reply: Reply<T>, answer: Result<T, RequestError>) {
    // Whoever asked may have gone.
    let _ = reply.send(answer);
}
