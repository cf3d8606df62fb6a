//! A service: the jobs of many, for months. What was taken in is durable before this driver hears of it,
//! and whatever becomes of a job is durable before anybody else does.

mod answers;
mod coming;
mod jobs;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use widemap_common::ids::JobId;
use widemap_common::limits::{DRIVER_QUEUE, KEEP_CHECK_MS, STATUS_MS};
use widemap_common::time::{Time, Timers};
use widemap_proto::VERSION;
use widemap_proto::jobs::{AttemptTold, Prune, Pruned};
use widemap_proto::session::CoordinatorHello;
use widemap_sched::{Scheduler, SchedulerConfig};

use super::core::{Core, Make, Verdict};
use super::notices::Notices;
use super::returning::Returning;
use super::tally::Tally;
use super::{BUILD, first_attempt, until};
use crate::embedded::Spawner;
use crate::error::MapError;
use crate::journal::{JournalError, Ticket, Writer};
use crate::places::{self, Suggestion};
use crate::service::{JobEntry, Kept, Registry, Reply, Request, RequestError};
use crate::session::{Greeting, Trust};
use coming::Coming;
use jobs::Running;

/// What a service is made with.
pub(crate) struct ServiceMake {
    /// Where workers may be.
    pub(crate) sources: Vec<Box<dyn places::Source>>,
    /// How they are proved, and this side to them.
    pub(crate) trust: Trust,
    /// Slots in this process, and what starts their commands.
    pub(crate) local: Option<(Spawner, u32)>,
    /// At most so many slots of each worker.
    pub(crate) slots_max: Option<u32>,
    /// The timers of the sessions.
    pub(crate) timers: Timers,
    /// Which jobs there are.
    pub(crate) registry: Arc<Registry>,
    /// What is kept of them.
    pub(crate) kept: Arc<Kept>,
    /// What is asked of the driver.
    pub(crate) requests: mpsc::Receiver<Request>,
    /// Woken when a disk has something to say.
    pub(crate) progressed: Arc<Notify>,
    /// How long what has ended is kept.
    pub(crate) keep: Option<Duration>,
    /// Who must know how it goes.
    pub(crate) pulse: Box<dyn Pulse>,
}

/// Who must know how it goes: health and metrics.
pub(crate) trait Pulse: Send {
    /// The driver is alive. Called in every turn, so it must be cheap.
    fn beat(&mut self);
    /// The driver gives out work, or has stopped to.
    fn ready(&mut self, ready: bool);
    /// What is going on. Called a few times a second.
    fn observe(&mut self, observed: &Observed);
}

/// What is going on in a driver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// Jobs that wait for their turn, and those that are open.
    pub(crate) jobs_queued: usize,
    /// Jobs that are open.
    pub(crate) jobs_open: usize,
    /// What has become of everything.
    pub(crate) tally: Tally,
    /// Chunks that are cut and not final.
    pub(crate) chunks_in_flight: u64,
    /// Attempts that were assigned and are not over.
    pub(crate) attempts: usize,
    /// Bytes of results that are in memory: on their way to the journal, or parts of longer ones.
    pub(crate) buffered_bytes: u64,
    /// Bytes of parts of long results that are on disk.
    pub(crate) spilled_bytes: u64,
    /// Workers that are attached, and those that are cut off.
    pub(crate) workers_attached: usize,
    /// Workers that are cut off.
    pub(crate) workers_cut: usize,
    /// Slots of the attached workers.
    pub(crate) slots: u64,
    /// Those of them that are taken.
    pub(crate) slots_taken: u64,
    /// Bytes that wait for the journal's disk.
    pub(crate) journal_queued_bytes: u64,
}

/// See the file's head.
pub(super) struct Service {
    pub(super) core: Core,
    begun: Instant,
    registry: Arc<Registry>,
    kept: Arc<Kept>,
    writer: Arc<Writer>,
    requests: mpsc::Receiver<Request>,
    /// Jobs whose turn has not come, the next one first.
    queued: BTreeSet<(Reverse<i32>, JobId)>,
    running: BTreeMap<JobId, Running>,
    /// Jobs whose items are still coming.
    coming: BTreeMap<JobId, Coming>,
    /// Attempts of jobs that have ended, the latest ones last, for who asks why they ended so.
    past: VecDeque<(JobId, Vec<AttemptTold>)>,
    /// What is said once an entry is durable, in the order of the entries.
    promises: Vec<(Ticket, Promise)>,
    returning: Returning,
    keep: Option<Duration>,
    pulse: Box<dyn Pulse>,
    removals: JoinSet<Removal>,
    error: Option<JournalError>,
}

/// What is said once something is durable.
enum Promise {
    /// It is done.
    Reply(Reply<()>),
    /// The job has ended.
    Ended(Arc<JobEntry>),
}

/// Jobs that were removed from the disk.
struct Removal {
    pruned: Pruned,
    failed: Option<String>,
    reply: Option<Reply<Pruned>>,
}

/// What woke the driver.
enum Wake {
    News,
    Suggestion(Suggestion),
    Request(Option<Request>),
    Progress,
    Deadline,
    Publish,
    Keep,
    Removed(Removal),
    Stop,
}

/// Runs jobs until `stop`, or until the journal cannot be written any more.
///
/// # Errors
/// What kept it from starting, or what went wrong with the journal.
pub(crate) async fn serve(make: ServiceMake, stop: CancellationToken) -> Result<(), MapError> {
    let progressed = Arc::clone(&make.progressed);
    let mut service = Service::open(make)?;
    service.run(&progressed, &stop).await;
    service.close(&progressed).await
}

impl Service {
    fn open(make: ServiceMake) -> Result<Self, MapError> {
        let (coordinator, epoch) = (make.kept.coordinator(), make.kept.epoch());
        let timers = make.timers;
        let hello = CoordinatorHello {
            version: VERSION,
            build: BUILD.to_owned(),
            coordinator,
            epoch,
            linger_ms: timers.lease_ms,
        };
        let config = SchedulerConfig { seed: fastrand::u64(..), timers };
        let core = Core::start(Make {
            scheduler: Scheduler::numbering_from(config, first_attempt(epoch)),
            greeting: Greeting { hello, trust: make.trust, timers },
            slots_max: make.slots_max,
            sources: make.sources,
            local: make.local,
            notices: Notices::log(),
            timers,
        })?;
        let mut service = Self {
            core,
            begun: Instant::now(),
            writer: make.kept.writer(),
            registry: make.registry,
            kept: make.kept,
            requests: make.requests,
            queued: BTreeSet::new(),
            running: BTreeMap::new(),
            coming: BTreeMap::new(),
            past: VecDeque::new(),
            promises: Vec::new(),
            returning: Returning::default(),
            keep: make.keep,
            pulse: make.pulse,
            removals: JoinSet::new(),
            error: None,
        };
        let entries = service.registry.all();
        let open: Vec<_> = entries.into_iter().filter(|entry| !entry.has_ended()).collect();
        if !open.is_empty() {
            service.returning.begin();
        }
        for entry in open {
            service.queued.insert((Reverse(entry.submission.policy.priority), entry.id));
        }
        service.open_queued(&make.progressed);
        service.core.drain_events();
        service.pulse.ready(true);
        Ok(service)
    }

    async fn run(&mut self, progressed: &Arc<Notify>, stop: &CancellationToken) {
        let mut news = Vec::new();
        let interval = |ms| {
            let mut interval = tokio::time::interval(Duration::from_millis(ms));
            interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
            interval
        };
        let (mut publish, mut keep) = (interval(STATUS_MS), interval(KEEP_CHECK_MS));
        while self.error.is_none() {
            self.pulse.beat();
            let deadline = self.next_deadline();
            let wake = tokio::select! {
                biased;
                () = stop.cancelled() => Wake::Stop,
                _ = self.core.news.recv_many(&mut news, DRIVER_QUEUE) => Wake::News,
                Some(suggestion) = self.core.suggestions.recv() => Wake::Suggestion(suggestion),
                request = self.requests.recv() => Wake::Request(request),
                () = progressed.notified() => Wake::Progress,
                Some(removed) = self.removals.join_next() => match removed {
                    Ok(removal) => Wake::Removed(removal),
                    Err(error) if error.is_panic() => {
                        std::panic::resume_unwind(error.into_panic());
                    }
                    Err(_) => Wake::Progress,
                },
                () = until(self.begun, deadline) => Wake::Deadline,
                _ = publish.tick() => Wake::Publish,
                _ = keep.tick(), if self.keep.is_some() => Wake::Keep,
            };
            self.core.now =
                Time(u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX));
            match wake {
                Wake::News => news.drain(..).for_each(|event| self.core.hear(event)),
                Wake::Suggestion(suggestion) => self.core.suggested(suggestion),
                Wake::Request(Some(request)) => self.answer(request, progressed),
                Wake::Request(None) | Wake::Stop => return,
                Wake::Progress => {}
                Wake::Deadline => self.core.expire(),
                Wake::Publish => self.publish(),
                Wake::Keep => self.remove_old(),
                Wake::Removed(removal) => removed(removal),
            }
            self.settle(progressed);
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        let deadlines = [
            self.core.scheduler.next_deadline(),
            self.core.fleet.next_deadline(),
            self.returning.deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Brings everything that follows from what was heard to its end.
    fn settle(&mut self, progressed: &Arc<Notify>) {
        self.core.watch_jobs();
        self.core.drain_events();
        self.keep_promises();
        self.returning.settle(&mut self.core, |job| self.kept.is_paused(job));
        self.conclude(progressed);
        self.core.grant_output();
        self.core.flush();
    }

    /// What is durable now is said.
    fn keep_promises(&mut self) {
        if let Some(error) = self.writer.take_error() {
            tracing::error!("{error}");
            self.error = Some(error);
            return;
        }
        let durable = self.writer.durable();
        self.core.settle(durable);
        let kept = self.promises.iter().take_while(|(ticket, _)| durable.covers(*ticket)).count();
        for (_, promise) in self.promises.drain(..kept) {
            match promise {
                // Whoever asked may have gone.
                Promise::Reply(reply) => drop(reply.send(Ok(()))),
                Promise::Ended(entry) => entry.status.send_modify(|_| ()),
            }
        }
    }

    /// What follows from what has become of jobs.
    fn conclude(&mut self, progressed: &Arc<Notify>) {
        loop {
            let verdicts = std::mem::take(&mut self.core.verdicts);
            if verdicts.is_empty() {
                break;
            }
            for verdict in verdicts {
                match verdict {
                    Verdict::Ended(job) => self.end(job),
                    Verdict::Failed(job, error) => self.fail(job, &error),
                    Verdict::Halted(job, error) => self.halted(job, &error),
                }
            }
        }
        self.open_queued(progressed);
    }

    /// Removes what has ended long enough ago.
    fn remove_old(&mut self) {
        let Some(keep) = self.keep else { return };
        self.remove(Prune { jobs: Vec::new(), ended_before: keep }, None);
    }

    fn remove(&mut self, prune: Prune, reply: Option<Reply<Pruned>>) {
        let (registry, kept) = (Arc::clone(&self.registry), Arc::clone(&self.kept));
        self.removals.spawn_blocking(move || {
            let (pruned, failed) = kept.prune(&registry, &prune);
            Removal { pruned, failed, reply }
        });
    }

    /// Ends the links without a goodbye: workers keep what they run for the next life.
    async fn close(mut self, progressed: &Notify) -> Result<(), MapError> {
        self.pulse.ready(false);
        self.core.leave().await;
        while self.error.is_none() && !self.writer.is_idle() {
            progressed.notified().await;
            self.keep_promises();
        }
        self.keep_promises();
        while let Some(removal) = self.removals.join_next().await {
            removal.into_iter().for_each(removed);
        }
        if let Some(embedded) = self.core.embedded.take() {
            embedded.close().await;
        }
        self.core.notices.close();
        self.error.map_or(Ok(()), |error| Err(MapError::Journal(error)))
    }
}

fn removed(removal: Removal) {
    let Removal { pruned, failed, reply } = removal;
    if let Some(why) = &failed {
        tracing::error!("{why}");
    }
    if !pruned.jobs.is_empty() {
        let freed_bytes = pruned.freed_bytes;
        tracing::info!(jobs = pruned.jobs.len(), freed_bytes, "removed what has ended");
    }
    if let Some(reply) = reply {
        // Whoever asked may have gone.
        let _ = reply.send(failed.map_or(Ok(pruned), |why| Err(RequestError::Disk(why))));
    }
}
