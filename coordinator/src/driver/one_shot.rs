//! A map of one's own: one job from its start to its end, with the person at the terminal.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal as SignalNumber;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::Instant;
use widemap_common::ids::{CoordinatorId, Epoch, JobId};
use widemap_common::limits::DRIVER_QUEUE;
use widemap_common::time::Time;
use widemap_proto::VERSION;
use widemap_proto::jobs::JobCounts;
use widemap_proto::session::CoordinatorHello;
use widemap_sched::event::Event;
use widemap_sched::{Scheduler, SchedulerConfig};

use super::core::{Core, Make, Verdict};
use super::job::{Job, Lost};
use super::journaled::Journaled;
use super::notices::Notices;
use super::plan::{Ending, Outcome, Plan};
use super::returning::Returning;
use super::{BUILD, first_attempt, until};
use crate::cli::Wait;
use crate::embedded::Spawner;
use crate::error::MapError;
use crate::places::Suggestion;
use crate::progress::{DRAW_INTERVAL, Progress, Shown};
use crate::session::Greeting;
use crate::summary::plural;

/// The job of a one-shot map.
pub(super) const THE_JOB: JobId = JobId(1);

/// Workers that have not answered by then are not waited for with the first line.
pub(super) const INTRODUCTION: Duration = Duration::from_millis(300);

/// Sources are asked for so long before a map without workers says that it waits.
pub(super) const ASKED: Duration = Duration::from_secs(1);

/// Runs a map to its end.
///
/// # Errors
/// What kept it from starting; what went wrong later is in the outcome, with what was done.
pub(crate) fn run(plan: Plan, spawner: Option<Spawner>) -> Result<Outcome, MapError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(MapError::Start)?;
    let outcome = runtime.block_on(drive(plan, spawner));
    // A name or a file that is still being looked up is not waited for.
    runtime.shutdown_background();
    outcome
}

pub(super) async fn drive(plan: Plan, spawner: Option<Spawner>) -> Result<Outcome, MapError> {
    let progressed = Arc::new(Notify::new());
    let mut driver = OneShot::open(plan, spawner, &progressed)?;
    driver.run(&progressed).await;
    Ok(driver.close().await)
}

/// See the file's head.
pub(super) struct OneShot {
    pub(super) core: Core,
    pub(super) begun: Instant,
    pub(super) wait: Wait,
    /// Since when no worker could be used; `None` while one can.
    pub(super) alone_since: Option<Time>,
    pub(super) said: Said,
    /// How often to say what the output waits for, and when next.
    explain: Option<(Duration, Time)>,
    signals: Signals,
    journaled: Option<Journaled>,
    returning: Returning,
    pub(super) end: End,
}

/// What was said once and is not said again.
#[derive(Default)]
pub(super) struct Said {
    pub(super) start: bool,
    pub(super) waiting: bool,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// How far the map is from its end.
#[derive(Default)]
pub(super) struct End {
    /// The scheduler is done with the job.
    pub(super) job_ended: bool,
    /// A signal was given.
    signal: Option<i32>,
    /// What went wrong.
    error: Option<MapError>,
    /// Whoever read the output has gone.
    reader_gone: bool,
    /// The job was cancelled.
    pub(super) cancelled: bool,
    /// Nothing more is waited for.
    at_once: bool,
}

/// What woke the driver.
enum Wake {
    News,
    Suggestion(Suggestion),
    Progress,
    Deadline,
    Draw,
    Signal(i32),
}

impl OneShot {
    fn open(
        mut plan: Plan,
        spawner: Option<Spawner>,
        progressed: &Arc<Notify>,
    ) -> Result<Self, MapError> {
        let journal = plan.journal.take();
        let journaled = journal.map(|plan| Journaled::open(plan, progressed)).transpose()?;
        let (coordinator, epoch) = match &journaled {
            Some(journaled) => (journaled.coordinator, journaled.epoch),
            None => (CoordinatorId(fastrand::u64(1..)), Epoch(1)),
        };
        let hello = CoordinatorHello {
            version: VERSION,
            build: BUILD.to_owned(),
            coordinator,
            epoch,
            linger_ms: plan.timers.lease_ms,
        };
        let signals = Signals {
            interrupt: signal(SignalKind::interrupt()).map_err(MapError::Start)?,
            terminate: signal(SignalKind::terminate()).map_err(MapError::Start)?,
        };
        let progress = Progress::new(plan.progress, plan.results.output.is_none());
        let timers = plan.timers;
        let config = SchedulerConfig { seed: fastrand::u64(..), timers };
        let core = Core::start(Make {
            scheduler: Scheduler::numbering_from(config, first_attempt(epoch)),
            greeting: Greeting { hello, trust: plan.trust.clone(), timers },
            slots_max: plan.slots_max,
            sources: std::mem::take(&mut plan.sources),
            local: spawner.zip(plan.local),
            notices: Notices::start(progress, plan.quiet),
            timers,
        })?;
        let wait = plan.wait;
        let explain = plan.explain_every.map(|every| (every, Time::ZERO + every));
        let job = Job::open(plan, journaled.as_ref(), progressed)?;
        let mut one_shot = Self {
            core,
            begun: Instant::now(),
            wait,
            alone_since: Some(Time::ZERO),
            said: Said::default(),
            explain,
            signals,
            journaled,
            returning: Returning::default(),
            end: End::default(),
        };
        one_shot.core.open(THE_JOB, job);
        if one_shot.journaled.as_ref().is_some_and(|journaled| journaled.is_resumed) {
            one_shot.returning.begin();
            one_shot.core.events.push_back(Event::JobPaused { job: THE_JOB, paused: true });
            one_shot.say_resumed();
        }
        Ok(one_shot)
    }

    pub(super) fn job(&self) -> &Job {
        &self.core.jobs[&THE_JOB]
    }

    fn job_mut(&mut self) -> &mut Job {
        self.core.jobs.get_mut(&THE_JOB).expect("the job is there until the end")
    }

    async fn run(&mut self, progressed: &Notify) {
        let mut news = Vec::new();
        let mut draw = tokio::time::interval(DRAW_INTERVAL);
        draw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while !self.is_over() {
            let shows_progress = self.core.notices.shows_progress();
            let deadline = self.next_deadline();
            let wake = tokio::select! {
                biased;
                _ = self.signals.interrupt.recv() => Wake::Signal(SignalNumber::INT.as_raw()),
                _ = self.signals.terminate.recv() => Wake::Signal(SignalNumber::TERM.as_raw()),
                _ = self.core.news.recv_many(&mut news, DRIVER_QUEUE) => Wake::News,
                Some(suggestion) = self.core.suggestions.recv() => Wake::Suggestion(suggestion),
                () = progressed.notified() => Wake::Progress,
                () = until(self.begun, deadline) => Wake::Deadline,
                _ = draw.tick(), if shows_progress => Wake::Draw,
            };
            self.core.now =
                Time(u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX));
            match wake {
                Wake::News => news.drain(..).for_each(|event| self.core.hear(event)),
                Wake::Suggestion(suggestion) => self.core.suggested(suggestion),
                Wake::Progress => {}
                Wake::Deadline => self.deadline(),
                Wake::Draw => {
                    let shown = self.shown();
                    self.core.notices.draw(shown);
                }
                Wake::Signal(signal) => self.signalled(signal),
            }
            self.settle();
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        let introduction = Time::ZERO + INTRODUCTION;
        let introduction =
            (!self.said.start && self.core.now < introduction).then_some(introduction);
        let asked = Time::ZERO + ASKED;
        let asked = (!self.said.waiting && self.core.now < asked).then_some(asked);
        [
            self.core.scheduler.next_deadline(),
            self.core.fleet.next_deadline(),
            self.give_up_at(),
            self.returning.deadline(),
            introduction,
            asked,
            self.explain.map(|(_, at)| at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// When a map without workers gives up.
    fn give_up_at(&self) -> Option<Time> {
        match (self.alone_since, self.wait) {
            (Some(since), Wait::For(time)) if !self.end.cancelled => Some(since + time),
            _ => None,
        }
    }

    fn is_over(&self) -> bool {
        self.end.at_once || (self.end.job_ended && self.job().is_delivered())
    }

    /// Brings everything that follows from what was heard to its end.
    fn settle(&mut self) {
        self.core.watch_jobs();
        self.core.drain_events();
        self.keep_journal();
        self.returning.settle(&mut self.core, |_| false);
        self.conclude();
        self.watch_company();
        self.core.drain_events();
        self.conclude();
        self.core.grant_output();
        self.core.flush();
        if self.end.job_ended && self.is_kept() {
            self.job_mut().finish();
        }
    }

    /// What is durable now may be forgotten by workers; what never will be ends the map, as does an input
    /// that is not what it was.
    fn keep_journal(&mut self) {
        let Some(journaled) = &self.journaled else { return };
        if let Some(error) = journaled.writer.take_error() {
            self.fail(error.into());
            self.end.at_once = true;
            return;
        }
        let durable = journaled.writer.durable();
        self.core.settle(durable);
        if let Some(error) = self.job_mut().take_change() {
            self.fail(error);
        }
    }

    /// Whether everything that became final is durable, the end too if this is it.
    fn is_kept(&mut self) -> bool {
        let is_complete = !self.end.cancelled && self.job().has_read_all();
        let counts = self.journal_counts();
        let Some(journaled) = &mut self.journaled else { return true };
        if is_complete {
            journaled.end(counts);
        }
        journaled.writer.is_idle()
    }

    fn journal_counts(&self) -> JobCounts {
        let told = self.core.scheduler.counts(THE_JOB).unwrap_or_default();
        let counts = self.job().counts();
        JobCounts {
            read: counts.read,
            total: self.job().items_in_all(),
            ok: counts.ok,
            failed: counts.failed,
            retried: counts.retried,
            attempts: told.attempts,
            speculative_wins: told.speculative_wins,
            workers: self.core.fleet.workers().count() as u64,
            workers_lost: told.workers_lost,
        }
    }

    fn say_resumed(&mut self) {
        let counts = self.job().counts();
        let done = plural(counts.ok + counts.failed, "item");
        self.core.notices.say(&format!("going on: {done} of the journal need not run"));
    }

    /// What follows for the map from what has become of its job.
    fn conclude(&mut self) {
        for verdict in std::mem::take(&mut self.core.verdicts) {
            match verdict {
                Verdict::Ended(_) => self.ended(),
                Verdict::Failed(_, MapError::Output(error)) if error.is_closed() => {
                    self.end.reader_gone = true;
                    self.cancel();
                }
                Verdict::Failed(_, error) => self.fail(error),
                Verdict::Halted(_, error) => {
                    self.end.error.get_or_insert(error);
                }
            }
        }
    }

    /// The scheduler is done with the job.
    fn ended(&mut self) {
        self.end.job_ended = true;
        // Nothing was left that could have been stopped.
        let counts = self.job().counts();
        let has_run_all = self.job().has_read_all() && counts.read == counts.ok + counts.failed;
        if has_run_all && matches!(self.end.error, Some(MapError::Halted { .. })) {
            self.end.error = None;
        }
    }

    /// Ends the map with an error; what is done is kept.
    pub(super) fn fail(&mut self, error: MapError) {
        self.end.error.get_or_insert(error);
        self.cancel();
    }

    fn cancel(&mut self) {
        if !std::mem::replace(&mut self.end.cancelled, true) {
            self.core.cancel(THE_JOB);
            // That it has ended is among what follows.
            for verdict in std::mem::take(&mut self.core.verdicts) {
                match verdict {
                    Verdict::Ended(_) => self.end.job_ended = true,
                    Verdict::Failed(_, error) | Verdict::Halted(_, error) => {
                        self.end.error.get_or_insert(error);
                    }
                }
            }
        }
        // Nobody reads: what is left to deliver never will be.
        self.end.at_once |= self.end.reader_gone || self.job().cannot_deliver();
    }

    fn signalled(&mut self, signal: i32) {
        if self.end.signal.replace(signal).is_some() {
            self.end.at_once = true;
            return;
        }
        self.core.notices.say("stopping: what is done is kept; once more ends at once");
        self.cancel();
    }

    fn deadline(&mut self) {
        self.core.expire();
        self.core.drain_events();
        self.explain();
        if self.give_up_at().is_some_and(|at| at <= self.core.now) && !self.end.cancelled {
            self.give_up();
        }
    }

    /// Says what the output waits for, if it is time to.
    fn explain(&mut self) {
        let Some((every, at)) = self.explain.filter(|(_, at)| *at <= self.core.now) else { return };
        // Where it was late, it is not said twice.
        self.explain = Some((every, at.max(self.core.now) + every));
        let waited_for = self.job_mut().waited_for();
        let told = waited_for.and_then(|(item, shown)| {
            let place = self.core.scheduler.explain_where(THE_JOB, item)?;
            Some(format!("the output waits for item {}{shown}, {place}", item + 1))
        });
        let told = told.unwrap_or_else(|| self.core.scheduler.explain(THE_JOB));
        self.core.notices.say(told.trim_end_matches('.'));
    }

    /// Ends a map that has no worker.
    pub(super) fn give_up(&mut self) {
        let waited = self.alone_since.take().map(|since| self.core.now.since(since));
        let waited = waited.filter(|&time| time >= INTRODUCTION);
        let places = self.describe_places();
        let distrust = self.core.fleet.meets_distrust();
        self.fail(MapError::NoWorkers { waited, places, distrust });
    }

    fn shown(&self) -> Shown {
        let counts = self.job().counts();
        Shown {
            done: counts.ok + counts.failed,
            total: self.job().items_in_all(),
            failed: counts.failed,
            retried: counts.retried,
            workers: self.core.fleet.workers().filter(|(_, worker)| worker.is_attached()).count(),
        }
    }

    /// Ends everything that was started, and says what came of it.
    async fn close(mut self) -> Outcome {
        self.introduce();
        let workers = self.core.fleet.workers().count();
        self.core.close_links().await;
        if let Some(embedded) = self.core.embedded.take() {
            // What still runs there has its grace; one more signal ends it at once.
            tokio::select! {
                () = embedded.close() => {}
                _ = self.signals.interrupt.recv() => {}
                _ = self.signals.terminate.recv() => {}
            }
        }
        let ending = match self.end.signal {
            Some(signal) => Ending::Signal(signal),
            None if self.end.reader_gone => Ending::ReaderGone,
            None => Ending::Complete,
        };
        let lost = self.core.scheduler.counts(THE_JOB).map_or_else(Lost::default, |counts| Lost {
            workers,
            workers_lost: counts.workers_lost,
            speculative_wins: counts.speculative_wins,
        });
        let job = self.core.jobs.remove(&THE_JOB).expect("the job is there until the end");
        let journal = self.journaled.as_ref().map(|journaled| journaled.directory.as_path());
        let outcome = job.close(ending, self.end.error, lost, self.begun.elapsed(), journal);
        self.core.notices.close();
        outcome
    }
}
