//! The driver: the sole owner of the scheduler. It turns what links, input, sink, signals and time
//! say into events, hands them to the scheduler, and carries out its actions. It never waits for a
//! disk, a reader of the output or a slow worker: those have threads and tasks of their own.

mod act;
mod company;
mod fleet;
mod hear;
mod job;
mod notices;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal as SignalNumber;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use widemap_common::ids::{AttemptId, CoordinatorId, Epoch, ItemRange, JobId, WorkerId};
use widemap_common::limits::DRIVER_QUEUE;
use widemap_common::time::Time;
use widemap_proto::VERSION;
use widemap_proto::session::{CoordinatorHello, Credit};
use widemap_sched::event::{Action, Event};
use widemap_sched::{Scheduler, SchedulerConfig};

pub(crate) use fleet::{Fleet, LinkStatus};
pub(crate) use plan::{Ending, Outcome, Plan, Results};

use crate::cli::Wait;
use crate::embedded::{Embedded, Spawner};
use crate::error::MapError;
use crate::places::{self, Suggestion};
use crate::progress::{DRAW_INTERVAL, Progress, Shown};
use crate::session::{Dial, Greeting, LinkEvent};
use job::{Job, Lost};
use notices::Notices;

/// The job of a one-shot map.
const THE_JOB: JobId = JobId(1);

/// Workers that have not answered by then are not waited for with the first line.
const INTRODUCTION: Duration = Duration::from_millis(300);

/// Sources are asked for so long before a map without workers says that it waits.
const ASKED: Duration = Duration::from_secs(1);

/// The build, as a hello tells it.
pub(crate) const BUILD: &str = concat!("widemap ", env!("CARGO_PKG_VERSION"));

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

async fn drive(plan: Plan, spawner: Option<Spawner>) -> Result<Outcome, MapError> {
    let progressed = Arc::new(Notify::new());
    let mut driver = Driver::open(plan, spawner, &progressed)?;
    driver.run(&progressed).await;
    Ok(driver.close().await)
}

/// See the file's head.
struct Driver {
    begun: Instant,
    now: Time,
    scheduler: Scheduler,
    actions: Vec<Action>,
    events: VecDeque<Event>,
    fleet: Fleet,
    attempts: HashMap<AttemptId, Attempt>,
    job: Job,
    dirty: BTreeSet<WorkerId>,
    notices: Notices,
    news: mpsc::Receiver<LinkEvent>,
    suggestions: mpsc::Receiver<Suggestion>,
    watchers: JoinSet<()>,
    embedded: Option<Embedded>,
    wait: Wait,
    /// Since when no worker could be used; `None` while one can.
    alone_since: Option<Time>,
    said: Said,
    signals: Signals,
    end: End,
}

/// An attempt that was assigned and is not over.
struct Attempt {
    worker: WorkerId,
    range: ItemRange,
    /// Output that has arrived ahead of its `done`.
    staged_bytes: u64,
}

/// What was said once and is not said again.
#[derive(Default)]
struct Said {
    start: bool,
    waiting: bool,
    /// What was wrong with each source.
    troubles: BTreeMap<String, String>,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// How far the map is from its end.
#[derive(Default)]
struct End {
    /// The scheduler is done with the job.
    job_ended: bool,
    /// A signal was given.
    signal: Option<i32>,
    /// What went wrong.
    error: Option<MapError>,
    /// Whoever read the output has gone.
    reader_gone: bool,
    /// The job was cancelled.
    cancelled: bool,
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

impl Driver {
    fn open(
        mut plan: Plan,
        spawner: Option<Spawner>,
        progressed: &Arc<Notify>,
    ) -> Result<Self, MapError> {
        let (link_events, news) = mpsc::channel(DRIVER_QUEUE);
        let (suggest, suggestions) = mpsc::channel(DRIVER_QUEUE);
        let hello = CoordinatorHello {
            version: VERSION,
            build: BUILD.to_owned(),
            coordinator: CoordinatorId(fastrand::u64(1..)),
            epoch: Epoch(1),
            linger_ms: plan.timers.lease_ms,
        };
        let signals = Signals {
            interrupt: signal(SignalKind::interrupt()).map_err(MapError::Start)?,
            terminate: signal(SignalKind::terminate()).map_err(MapError::Start)?,
        };
        let progress = Progress::new(plan.progress, plan.results.output.is_none());
        let notices = Notices::start(progress, plan.quiet);
        let mut watchers = JoinSet::new();
        let sources = std::mem::take(&mut plan.sources);
        let names: Vec<_> = sources.iter().map(|source| source.name().to_owned()).collect();
        places::watch(sources, &mut watchers, &suggest);
        let greeting = Greeting { hello, trust: plan.trust.clone(), timers: plan.timers };
        let mut fleet = Fleet::new(greeting, plan.slots_max, names, link_events);
        let embedded = match (spawner, plan.local) {
            (Some(spawner), Some(slots)) => {
                let (embedded, end) =
                    Embedded::start(spawner, slots, plan.timers).map_err(MapError::Start)?;
                fleet.add_embedded("--local".to_owned(), Dial::embedded(end));
                Some(embedded)
            }
            _ => None,
        };
        let config = SchedulerConfig { seed: fastrand::u64(..), timers: plan.timers };
        let mut driver = Self {
            begun: Instant::now(),
            now: Time::ZERO,
            scheduler: Scheduler::new(config),
            actions: Vec::new(),
            events: VecDeque::new(),
            fleet,
            attempts: HashMap::new(),
            wait: plan.wait,
            job: Job::open(plan, progressed)?,
            dirty: BTreeSet::new(),
            notices,
            news,
            suggestions,
            watchers,
            embedded,
            alone_since: Some(Time::ZERO),
            said: Said::default(),
            signals,
            end: End::default(),
        };
        let policy = driver.job.policy().clone();
        driver.events.push_back(Event::JobOpened { job: THE_JOB, policy });
        Ok(driver)
    }

    async fn run(&mut self, progressed: &Notify) {
        let mut news = Vec::new();
        let mut draw = tokio::time::interval(DRAW_INTERVAL);
        draw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while !self.is_over() {
            let shows_progress = self.notices.shows_progress();
            let deadline = self.next_deadline();
            let wake = tokio::select! {
                biased;
                _ = self.signals.interrupt.recv() => Wake::Signal(SignalNumber::INT.as_raw()),
                _ = self.signals.terminate.recv() => Wake::Signal(SignalNumber::TERM.as_raw()),
                _ = self.news.recv_many(&mut news, DRIVER_QUEUE) => Wake::News,
                Some(suggestion) = self.suggestions.recv() => Wake::Suggestion(suggestion),
                () = progressed.notified() => Wake::Progress,
                () = until(self.begun, deadline) => Wake::Deadline,
                _ = draw.tick(), if shows_progress => Wake::Draw,
            };
            self.now = Time(u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX));
            match wake {
                Wake::News => news.drain(..).for_each(|event| self.hear(event)),
                Wake::Suggestion(suggestion) => self.suggested(suggestion),
                Wake::Progress => {}
                Wake::Deadline => self.deadline(),
                Wake::Draw => self.notices.draw(self.shown()),
                Wake::Signal(signal) => self.signalled(signal),
            }
            self.settle();
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        let introduction = Time::ZERO + INTRODUCTION;
        let introduction = (!self.said.start && self.now < introduction).then_some(introduction);
        let asked = Time::ZERO + ASKED;
        let asked = (!self.said.waiting && self.now < asked).then_some(asked);
        [
            self.scheduler.next_deadline(),
            self.fleet.next_deadline(),
            self.give_up_at(),
            introduction,
            asked,
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
        self.end.at_once || (self.end.job_ended && self.job.is_delivered())
    }

    /// Brings everything that follows from what was heard to its end.
    fn settle(&mut self) {
        self.watch_job();
        self.drain_events();
        self.watch_company();
        self.drain_events();
        self.grant_output();
        self.flush();
        if self.end.job_ended {
            self.job.finish();
        }
    }

    /// Hands what waits to the scheduler, and what follows from it, until nothing does.
    fn drain_events(&mut self) {
        while let Some(event) = self.events.pop_front() {
            self.tell(event);
        }
    }

    /// Hands one event to the scheduler and carries out what it asks for.
    fn tell(&mut self, event: Event) {
        tracing::trace!(?event, now = %self.now);
        let mut actions = std::mem::take(&mut self.actions);
        self.scheduler.handle(self.now, event, &mut actions);
        for action in actions.drain(..) {
            tracing::trace!(?action);
            self.act(&action);
        }
        self.actions = actions;
    }

    /// What the input, the sink and the spill have to say.
    fn watch_job(&mut self) {
        let job = THE_JOB;
        if let Some(level) = self.job.poll_input() {
            self.events.push_back(Event::InputLevel { job, level });
        }
        let sink = self.job.poll_sink();
        // After the sink has been fed: what went there makes room, and wakes nobody.
        if let Some(full) = self.job.poll_storage() {
            self.events.push_back(Event::Storage { job, full });
        }
        match sink {
            Ok(None) => {}
            Ok(Some(error)) => self.notices.say(&format!("{error}; what waits stays in memory")),
            Err(MapError::Output(error)) if error.is_closed() => {
                self.end.reader_gone = true;
                self.cancel();
            }
            Err(error) => self.fail(error),
        }
    }

    /// Ends the map with an error; what is done is kept.
    fn fail(&mut self, error: MapError) {
        self.end.error.get_or_insert(error);
        self.cancel();
    }

    fn cancel(&mut self) {
        if !std::mem::replace(&mut self.end.cancelled, true) {
            self.job.stop_reading();
            self.events.push_back(Event::JobCancelled { job: THE_JOB });
            self.drain_events();
        }
        // Nobody reads: what is left to deliver never will be.
        self.end.at_once |= self.end.reader_gone || self.job.cannot_deliver();
    }

    fn signalled(&mut self, signal: i32) {
        if self.end.signal.replace(signal).is_some() {
            self.end.at_once = true;
            return;
        }
        self.notices.say("stopping: what is done is kept; once more ends at once");
        self.cancel();
    }

    fn deadline(&mut self) {
        let mut events = Vec::new();
        self.fleet.expire(self.now, &mut events);
        self.note_deaths(&events);
        self.events.extend(events);
        self.events.push_back(Event::Tick);
        if self.give_up_at().is_some_and(|at| at <= self.now) && !self.end.cancelled {
            self.give_up();
        }
    }

    /// Ends a map that has no worker.
    fn give_up(&mut self) {
        let waited = self.alone_since.take().map(|since| self.now.since(since));
        let waited = waited.filter(|&time| time >= INTRODUCTION);
        let places = self.describe_places();
        let distrust = self.fleet.meets_distrust();
        self.fail(MapError::NoWorkers { waited, places, distrust });
    }

    /// A source names other places than before: a worker that nobody names any more gets no new work.
    fn suggested(&mut self, suggestion: Suggestion) {
        let former = self.said.troubles.remove(&suggestion.source);
        if let Some(trouble) = &suggestion.trouble {
            if former.as_ref() != Some(trouble) {
                self.notices.say(&format!("{}: {trouble}", suggestion.source));
            }
            self.said.troubles.insert(suggestion.source.clone(), trouble.clone());
        }
        for (worker, credit) in self.fleet.follow(suggestion) {
            let Credit { slots, queue } = credit;
            self.events.push_back(Event::WorkerCredit { worker, slots, queue });
        }
    }

    fn shown(&self) -> Shown {
        let counts = self.job.counts();
        Shown {
            done: counts.ok + counts.failed,
            total: self.job.items_in_all(),
            failed: counts.failed,
            retried: counts.retried,
            workers: self.fleet.workers().filter(|(_, worker)| worker.is_attached()).count(),
        }
    }

    /// Ends everything that was started, and says what came of it.
    async fn close(mut self) -> Outcome {
        self.introduce();
        self.watchers.shutdown().await;
        let workers = self.fleet.workers().count();
        let notices = &mut self.notices;
        let say = |name: &str, text: String| notices.line(format!("widemap: {name}: {text}"));
        self.fleet.close(&mut self.news, say).await;
        if let Some(embedded) = self.embedded.take() {
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
        let lost = self.scheduler.counts(THE_JOB).map_or_else(Lost::default, |counts| Lost {
            workers,
            workers_lost: counts.workers_lost,
            speculative_wins: counts.speculative_wins,
        });
        let outcome = self.job.close(ending, self.end.error, lost, self.begun.elapsed());
        self.notices.close();
        outcome
    }
}

/// Sleeps until a moment of the driver's clock; forever if there is none.
async fn until(begun: Instant, deadline: Option<Time>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(begun + at.since(Time::ZERO)).await,
        None => std::future::pending().await,
    }
}
