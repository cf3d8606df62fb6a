//! The jobs of a service, from their turn to their end.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use widemap_common::ids::JobId;
use widemap_common::limits::{DEAD_KEPT_MAX, JOBS_OPEN_MAX};
use widemap_common::time::Time;
use widemap_common::wall_clock;
use widemap_proto::jobs::{Ended, Ending, How, JobCounts, JobState, JobStatus};
use widemap_sched::event::Event;

use super::{Promise, Service};
use crate::driver::fleet::LinkStatus;
use crate::driver::job::{Job, KeptPlan};
use crate::error::MapError;
use crate::journal::Entry;
use crate::service::JobEntry;

/// A job is not called unusable before it was open for so long: other workers may be on their way.
const ASKED: Duration = Duration::from_secs(1);

/// A job that is open.
pub(super) struct Running {
    pub(super) entry: Arc<JobEntry>,
    pub(super) started_ms: Option<u64>,
    since: Time,
    /// How it ends, if not by itself.
    how: Option<How>,
}

impl Service {
    /// Opens jobs whose turn has come.
    pub(super) fn open_queued(&mut self, progressed: &Arc<Notify>) {
        while self.running.len() < JOBS_OPEN_MAX {
            let Some((_, job)) = self.queued.pop_first() else { return };
            let Some(entry) = self.registry.get(job) else { continue };
            self.open_job(entry, progressed);
        }
    }

    pub(super) fn open_job(&mut self, entry: Arc<JobEntry>, progressed: &Arc<Notify>) {
        let id = entry.id;
        let plan = KeptPlan {
            id,
            submission: entry.submission.clone(),
            input: entry.input.clone().unwrap_or_default(),
            arriving: entry.arriving.clone(),
            artifacts: self.kept.artifacts(id, &entry.submission.spec),
            writer: Arc::clone(&self.writer),
            shelf: self.kept.shelf(id),
        };
        let started_ms = wall_clock::unix_ms();
        let running = Running { entry, started_ms, since: self.core.now, how: None };
        self.running.insert(id, running);
        match Job::kept(plan, progressed) {
            Ok(job) => {
                self.core.open(id, job);
                if self.returning.is_waiting() || self.kept.is_paused(id) {
                    self.core.events.push_back(Event::JobPaused { job: id, paused: true });
                }
                self.core.drain_events();
                self.publish_one(id);
            }
            Err(error) => {
                tracing::error!(job = %id, "{error}");
                self.finish(id, How::Failed(error.to_string()), JobCounts::default());
            }
        }
    }

    /// The scheduler is done with a job.
    pub(super) fn end(&mut self, id: JobId) {
        let counts = self.counts(id);
        let Some(mut job) = self.core.jobs.remove(&id) else { return };
        self.remember(id, &job);
        let how = self.running.get_mut(&id).and_then(|running| running.how.take());
        let how = match (how, job.take_input_error()) {
            (Some(how), _) => how,
            (None, Some(error)) => How::Failed(error.to_string()),
            (None, None) => How::Complete,
        };
        self.finish(id, how, counts);
    }

    fn finish(&mut self, id: JobId, how: How, counts: JobCounts) {
        let Some(Running { entry, started_ms, .. }) = self.running.remove(&id) else { return };
        self.write_end(entry, started_ms, how, counts);
    }

    pub(super) fn write_end(
        &mut self,
        entry: Arc<JobEntry>,
        started_ms: Option<u64>,
        how: How,
        counts: JobCounts,
    ) {
        tracing::info!(job = %entry.id, ?how, ok = counts.ok, failed = counts.failed, "ended");
        let ended_ms = wall_clock::unix_ms().unwrap_or_default();
        self.core.tally.job(how.name());
        let ended = Ended { ending: Ending { how, ended_ms }, counts, started_ms };
        let ticket = self.writer.append(entry.id, Entry::Ended(ended.to_bytes()));
        self.promises.push((ticket, Promise::Ended(entry)));
    }

    /// A job cannot go on.
    pub(super) fn fail(&mut self, id: JobId, error: &MapError) {
        tracing::error!(job = %id, "{error}");
        self.give_up(
            id,
            match error {
                MapError::NoFilter { .. } => {
                    How::Unusable(format!("{error} (--pipe allows any number of lines)"))
                }
                MapError::NotJson { .. } => How::Unusable(format!(
                    "{error} (--text gives the function each item as a string)"
                )),
                _ => How::Failed(error.to_string()),
            },
        );
    }

    /// Enough of a job has failed: it ends as it is.
    pub(super) fn halted(&mut self, id: JobId, error: &MapError) {
        if let Some(running) = self.running.get_mut(&id) {
            running.how.get_or_insert(How::Halted(error.to_string()));
        }
    }

    /// Cancels a job; false if it has ended.
    pub(super) fn cancel(&mut self, id: JobId) -> bool {
        if self.running.contains_key(&id) {
            self.give_up(id, How::Cancelled);
            return true;
        }
        let Some(entry) = self.registry.get(id).filter(|entry| !entry.has_ended()) else {
            return false;
        };
        let place = (Reverse(entry.submission.policy.priority), id);
        // One that is neither is on its way here, and is over when it comes.
        let _ = self.queued.remove(&place);
        if !self.is_ending(id) {
            let (ok, failed) = self.kept.shelf(id).map_or((0, 0), |shelf| shelf.final_items());
            let counts = JobCounts { ok, failed, read: ok + failed, ..JobCounts::default() };
            self.write_end(entry, None, How::Cancelled, counts);
        }
        true
    }

    /// Whether the end of a job is on its way to the disk.
    pub(super) fn is_ending(&self, id: JobId) -> bool {
        let of_job = |promise: &Promise| matches!(promise, Promise::Ended(entry) if entry.id == id);
        self.promises.iter().any(|(_, promise)| of_job(promise))
    }

    pub(super) fn give_up(&mut self, id: JobId, how: How) {
        if let Some(running) = self.running.get_mut(&id) {
            running.how.get_or_insert(how);
            self.core.cancel(id);
        }
    }

    /// Ends jobs that no worker can run.
    fn end_unusable(&mut self) {
        let fleet = &self.core.fleet;
        let answered = !fleet.places().any(|(_, _, status)| *status == LinkStatus::Dialling);
        if !answered || self.returning.is_waiting() {
            return;
        }
        let alive: Vec<_> =
            fleet.workers().filter(|(_, w)| w.is_or_may_be_alive()).map(|(id, _)| id).collect();
        let now = self.core.now;
        let unusable = self.running.iter().filter(|(id, running)| {
            let old = now >= running.since + ASKED;
            let job = self.core.jobs.get(id).filter(|job| !job.is_stopped());
            old && job.is_some_and(|job| {
                !job.has_been_ready()
                    && !alive.is_empty()
                    && alive.iter().all(|&worker| job.is_unable(worker))
            })
        });
        let unusable: Vec<_> = unusable.map(|(&id, _)| id).collect();
        for id in unusable {
            let why = self.core.jobs.get(&id).map(Job::refusals).unwrap_or_default().join("\n");
            self.give_up(id, How::Unusable(why));
        }
    }

    /// What has become of a job's items.
    pub(super) fn counts(&self, id: JobId) -> JobCounts {
        let Some(job) = self.core.jobs.get(&id) else { return JobCounts::default() };
        let told = self.core.scheduler.counts(id).unwrap_or_default();
        let counts = job.counts();
        let alive = self
            .core
            .fleet
            .workers()
            .filter(|(id, w)| w.is_or_may_be_alive() && !job.has_refused(*id));
        JobCounts {
            read: counts.read,
            total: job.items_in_all(),
            ok: counts.ok,
            failed: counts.failed,
            retried: counts.retried,
            attempts: told.attempts,
            speculative_wins: told.speculative_wins,
            workers: alive.count() as u64,
            workers_lost: told.workers_lost,
        }
    }

    /// Says how far each job is.
    pub(super) fn publish(&mut self) {
        let jobs: Vec<_> = self.running.keys().copied().collect();
        jobs.into_iter().for_each(|job| self.publish_one(job));
        self.end_unusable();
        self.end_given_up();
        self.core.fleet.forget_dead(DEAD_KEPT_MAX);
        let observed = self.observe();
        self.pulse.observe(&observed);
    }

    fn publish_one(&self, id: JobId) {
        let Some(running) = self.running.get(&id) else { return };
        let state = match self.kept.is_paused(id) {
            true => JobState::Paused,
            false => JobState::Running,
        };
        let is_idle = !self.core.attempts.values().any(|attempt| attempt.job == id);
        let waits_for = is_idle.then(|| self.core.scheduler.explain(id));
        let status = JobStatus {
            state,
            counts: self.counts(id),
            output_bytes: running.entry.shelf.output_bytes(),
            started_ms: running.started_ms,
            waits_for,
        };
        running.entry.status.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }
}
