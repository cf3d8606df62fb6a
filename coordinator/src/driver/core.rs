//! What every driver is made of: the sole owner of the scheduler, the fleet, the attempts and the jobs.
//! It turns what links, inputs, outputs and time say into events, hands them to the scheduler, and
//! carries out its actions. What follows for a whole job it leaves to its owner, as verdicts.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_common::limits::DRIVER_QUEUE;
use widemap_common::time::{Time, Timers};
use widemap_proto::jobs::AttemptState;
use widemap_proto::session::Credit;
use widemap_sched::Scheduler;
use widemap_sched::event::{Action, Event};

use super::fleet::Fleet;
use super::job::{Ended, Halting, Job};
use super::notices::Notices;
use super::tally::Tally;
use super::unsettled::Unsettled;
use crate::embedded::{Embedded, Spawner};
use crate::error::MapError;
use crate::places::{self, Suggestion};
use crate::session::{Dial, Greeting, LinkEvent};

/// See the file's head.
pub(super) struct Core {
    pub(super) now: Time,
    pub(super) scheduler: Scheduler,
    actions: Vec<Action>,
    pub(super) events: VecDeque<Event>,
    pub(super) fleet: Fleet,
    pub(super) attempts: HashMap<AttemptId, Attempt>,
    pub(super) jobs: BTreeMap<JobId, Job>,
    /// Results that their workers may forget once they are durable.
    pub(super) unsettled: Unsettled,
    pub(super) dirty: BTreeSet<WorkerId>,
    pub(super) tally: Tally,
    pub(super) notices: Notices,
    pub(super) verdicts: Vec<Verdict>,
    pub(super) news: mpsc::Receiver<LinkEvent>,
    pub(super) suggestions: mpsc::Receiver<Suggestion>,
    watchers: JoinSet<()>,
    pub(super) embedded: Option<Embedded>,
    /// What was wrong with each source, as it was said last.
    troubles: BTreeMap<String, String>,
}

/// An attempt that was assigned and is not over.
pub(super) struct Attempt {
    pub(super) job: JobId,
    pub(super) worker: WorkerId,
    pub(super) range: ItemRange,
    pub(super) assigned: Time,
    /// Whether it is a second one, of a straggler.
    pub(super) speculative: bool,
    /// Output that has arrived ahead of its `done`.
    pub(super) staged_bytes: u64,
}

impl Attempt {
    pub(super) fn ended(
        &self,
        attempt: AttemptId,
        now: Time,
        state: AttemptState,
        remark: &str,
    ) -> Ended {
        Ended {
            attempt,
            range: self.range,
            worker: self.worker,
            assigned: self.assigned,
            ended: now,
            state,
            speculative: self.speculative,
            remark: remark.to_owned(),
        }
    }
}

/// What follows for a whole job.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The scheduler is done with it: every item has its last word, or it was cancelled.
    Ended(JobId),
    /// It cannot go on.
    Failed(JobId, MapError),
    /// Items failed, and it was to stop then. Where nothing more is to run, it has been cancelled.
    Halted(JobId, MapError),
}

/// What a core is made with.
pub(super) struct Make {
    pub(super) scheduler: Scheduler,
    pub(super) greeting: Greeting,
    pub(super) slots_max: Option<u32>,
    pub(super) sources: Vec<Box<dyn places::Source>>,
    pub(super) local: Option<(Spawner, u32)>,
    pub(super) notices: Notices,
    pub(super) timers: Timers,
}

impl Core {
    /// Starts the workers in this process and begins to look for others.
    pub(super) fn start(make: Make) -> Result<Self, MapError> {
        let (link_events, news) = mpsc::channel(DRIVER_QUEUE);
        let (suggest, suggestions) = mpsc::channel(DRIVER_QUEUE);
        let mut watchers = JoinSet::new();
        let names: Vec<_> = make.sources.iter().map(|source| source.name().to_owned()).collect();
        places::watch(make.sources, &mut watchers, &suggest);
        let mut fleet = Fleet::new(make.greeting, make.slots_max, names, link_events);
        let embedded = match make.local {
            Some((spawner, slots)) => {
                let (embedded, end) =
                    Embedded::start(spawner, slots, make.timers).map_err(MapError::Start)?;
                fleet.add_embedded("--local".to_owned(), Dial::embedded(end));
                Some(embedded)
            }
            None => None,
        };
        Ok(Self {
            now: Time::ZERO,
            scheduler: make.scheduler,
            actions: Vec::new(),
            events: VecDeque::new(),
            fleet,
            attempts: HashMap::new(),
            jobs: BTreeMap::new(),
            unsettled: Unsettled::default(),
            dirty: BTreeSet::new(),
            tally: Tally::default(),
            notices: make.notices,
            verdicts: Vec::new(),
            news,
            suggestions,
            watchers,
            embedded,
            troubles: BTreeMap::new(),
        })
    }

    /// Lets a job run.
    pub(super) fn open(&mut self, id: JobId, job: Job) {
        let policy = job.policy().clone();
        self.jobs.insert(id, job);
        self.events.push_back(Event::JobOpened { job: id, policy });
        let attached: Vec<_> = self
            .fleet
            .workers()
            .filter(|(_, w)| w.is_or_may_be_alive())
            .map(|(id, _)| id)
            .collect();
        attached.into_iter().for_each(|worker| self.meet(worker, id));
    }

    /// Hands what waits to the scheduler, and what follows from it, until nothing does.
    pub(super) fn drain_events(&mut self) {
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

    /// What inputs, outputs and disks have to say.
    pub(super) fn watch_jobs(&mut self) {
        let mut failed = Vec::new();
        for (&id, job) in &mut self.jobs {
            if let Some(level) = job.poll_input() {
                self.events.push_back(Event::InputLevel { job: id, level });
            }
            let output = job.poll_output();
            // After the output has moved on: what went there makes room, and wakes nobody.
            if let Some(full) = job.poll_storage() {
                self.events.push_back(Event::Storage { job: id, full });
            }
            match output {
                Ok(None) => {}
                Ok(Some(error)) => {
                    self.notices.say(&format!("{error}; what waits stays in memory"));
                }
                Err(error) => failed.push(Verdict::Failed(id, error)),
            }
        }
        self.verdicts.append(&mut failed);
        self.halt_jobs();
    }

    /// Stops jobs of which enough has failed.
    fn halt_jobs(&mut self) {
        let halting = |(&id, job): (&JobId, &mut Job)| Some((id, job.take_halting()?));
        let halting: Vec<_> = self.jobs.iter_mut().filter_map(halting).collect();
        for (id, Halting { error, now }) in halting {
            self.verdicts.push(Verdict::Halted(id, error));
            if now {
                self.cancel(id);
            } else if let Some(job) = self.jobs.get(&id) {
                self.events.push_back(Event::InputLevel { job: id, level: job.level() });
            }
        }
    }

    /// Gives a job up: nothing more of it is started, and what runs is cancelled.
    pub(super) fn cancel(&mut self, job: JobId) {
        if let Some(open) = self.jobs.get_mut(&job)
            && !open.stop()
        {
            self.events.push_back(Event::JobCancelled { job });
            self.drain_events();
        }
    }

    /// Time has passed.
    pub(super) fn expire(&mut self) {
        let mut events = Vec::new();
        self.fleet.expire(self.now, &mut events);
        self.note_deaths(&events);
        self.events.extend(events);
        self.events.push_back(Event::Tick);
    }

    /// A source names other places than before: a worker that nobody names any more gets no new work.
    pub(super) fn suggested(&mut self, suggestion: Suggestion) {
        let former = self.troubles.remove(&suggestion.source);
        if let Some(trouble) = &suggestion.trouble {
            if former.as_ref() != Some(trouble) {
                self.notices.say(&format!("{}: {trouble}", suggestion.source));
            }
            self.troubles.insert(suggestion.source.clone(), trouble.clone());
        }
        for (worker, credit) in self.fleet.follow(suggestion) {
            let Credit { slots, queue } = credit;
            self.events.push_back(Event::WorkerCredit { worker, slots, queue });
        }
    }

    /// Ends the watching of sources and the links without a word: whoever comes after goes on with what
    /// workers have.
    pub(super) async fn leave(&mut self) {
        self.watchers.shutdown().await;
        self.fleet.leave().await;
    }

    /// Ends the watching of sources and the links, each in good order.
    pub(super) async fn close_links(&mut self) {
        self.watchers.shutdown().await;
        let notices = &mut self.notices;
        let say = |name: &str, text: String| notices.line(format!("widemap: {name}: {text}"));
        self.fleet.close(&mut self.news, say).await;
    }
}
