//! The workers of this coordinator, the links to them, and what a cut, a death or a return of one
//! means to the scheduler.

mod hints;
mod places;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use widemap_common::ids::{Incarnation, WorkerId};
use widemap_common::time::Time;
use widemap_proto::session::{Report, WorkerHello};
use widemap_sched::event::{DeathProof, Event, WorkerTraits};

use crate::places::Place;
use crate::session::{
    self, Dial, DialError, Greeting, HERE, Link, LinkEvent, LinkId, LinkNews, StreamId,
};
use hints::Hints;
use places::{Named, SourceState};
pub(crate) use worker::{Worker, WorkerState};

/// See the file's head.
pub(crate) struct Fleet {
    greeting: Greeting,
    slots_max: Option<u32>,
    tasks: JoinSet<()>,
    events: mpsc::Sender<LinkEvent>,
    links: BTreeMap<LinkId, LinkState>,
    /// Places that lead to a worker which is attached through another.
    echoes: Vec<Echo>,
    workers: BTreeMap<WorkerId, Worker>,
    sources: BTreeMap<String, SourceState>,
    hints: Hints,
    next_link: u32,
    next_worker: u32,
}

struct LinkState {
    place: Place,
    /// Where the last stream that was attached has led.
    reached: Option<String>,
    embedded: bool,
    named: Named,
    link: Link,
    status: LinkStatus,
}

struct Echo {
    place: Place,
    named: Named,
    worker: WorkerId,
    status: LinkStatus,
    /// Whether the worker was reached there, or somebody only says so.
    proved: bool,
}

/// What is known of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkStatus {
    /// Nothing yet.
    Dialling,
    /// This worker is attached through it.
    Attached(WorkerId),
    /// This worker was attached through it, and is being dialled again.
    Cut(WorkerId, String),
    /// It is the same worker as one that is attached through another address.
    Alias(WorkerId),
    /// Nobody answers, and why.
    Unreachable(DialError),
    /// Who answers cannot be used, and why.
    Refused(String),
}

/// The link of a worker whose place leads elsewhere now.
const NO_LINK: LinkId = LinkId(0);

/// What became of a stream that was attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// A worker that was not known, or not any more.
    New(WorkerId),
    /// The same incarnation as before.
    Back(WorkerId),
}

impl Fleet {
    /// A fleet without workers, whose places these sources will name.
    pub(crate) fn new(
        greeting: Greeting,
        slots_max: Option<u32>,
        sources: impl IntoIterator<Item = String>,
        events: mpsc::Sender<LinkEvent>,
    ) -> Self {
        Self {
            greeting,
            slots_max,
            tasks: JoinSet::new(),
            events,
            links: BTreeMap::new(),
            echoes: Vec::new(),
            workers: BTreeMap::new(),
            sources: sources.into_iter().map(|name| (name, SourceState::default())).collect(),
            hints: Hints::default(),
            next_link: 1,
            next_worker: 1,
        }
    }

    /// Starts a link to the worker in this process.
    pub(crate) fn add_embedded(&mut self, source: String, dial: Dial) {
        let place = Place { addresses: vec![HERE.to_owned()], incarnation: None };
        self.start_link(place, dial, places::named_by(source));
    }

    fn start_link(&mut self, place: Place, dial: Dial, named: Named) {
        self.join_ended();
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let embedded = matches!(dial, Dial::Embedded(_));
        let (greeting, events) = (self.greeting.clone(), self.events.clone());
        let link = session::spawn(&mut self.tasks, id, dial, greeting, events);
        let status = LinkStatus::Dialling;
        let state = LinkState { place, reached: None, embedded, named, link, status };
        self.links.insert(id, state);
    }

    /// Takes leave of tasks that have ended; a panic in one of them comes out here.
    fn join_ended(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    /// A stream was attached: says whose, and what the scheduler must hear first.
    pub(crate) fn attached(
        &mut self,
        now: Time,
        link: LinkId,
        stream: StreamId,
        address: String,
        hello: WorkerHello,
        events: &mut Vec<Event>,
    ) -> Option<Attachment> {
        if !self.links.get(&link)?.link.outbox.is_present(stream) {
            // The stream is gone already and another is on its way.
            return None;
        }
        let known = self.by_incarnation(hello.incarnation);
        let former = self.worker_of(link);
        let there_before = self.links.get(&link)?.reached.clone();
        if let Some(former) = former.filter(|&former| Some(former) != known) {
            if there_before.as_ref() == Some(&address) {
                // Another life at the same address: the former is proved dead.
                self.bury(former, DeathProof::Proved, events);
            } else {
                // The place has several: what lives at the other one nobody knows.
                self.lose_sight(now, former, events);
            }
        }
        let state = self.links.get_mut(&link)?;
        state.reached = Some(address);
        state.link.outbox.open_stream();
        let Some(worker) = known else {
            let worker = WorkerId(self.next_worker);
            self.next_worker += 1;
            state.status = LinkStatus::Attached(worker);
            self.workers.insert(worker, Worker::new(hello, link));
            return Some(Attachment::New(worker));
        };
        state.status = LinkStatus::Attached(worker);
        let entry = self.workers.get_mut(&worker)?;
        let former_link = std::mem::replace(&mut entry.link, link);
        (entry.received_total, entry.granted_total, entry.urgent) = (0, 0, None);
        if matches!(entry.state, WorkerState::Attached | WorkerState::Draining) {
            events.push(Event::WorkerCut { worker });
        }
        entry.state = WorkerState::Attached;
        if former_link != link
            && let Some(former) = self.links.remove(&former_link)
        {
            // One worker under two addresses is one worker: the newer stream has replaced the older.
            former.link.stop.cancel();
            self.echo(former.place, former.named, worker, true);
        }
        Some(Attachment::Back(worker))
    }

    /// A worker's place leads to another now: until its lease is over what it runs is its own.
    fn lose_sight(&mut self, now: Time, worker: WorkerId, events: &mut Vec<Event>) {
        let lease = Duration::from_millis(self.greeting.timers.lease_ms);
        let Some(entry) = self.workers.get_mut(&worker) else { return };
        entry.link = NO_LINK;
        if entry.is_attached() {
            entry.state = WorkerState::Cut { until: now + lease };
            events.push(Event::WorkerCut { worker });
        }
        self.revive_echoes(worker);
    }

    /// A stream broke.
    /// `ended` says that the worker ended it in good order.
    pub(crate) fn cut(
        &mut self,
        now: Time,
        link: LinkId,
        reason: String,
        ended: bool,
        events: &mut Vec<Event>,
    ) {
        let lease = Duration::from_millis(self.greeting.timers.lease_ms);
        let Some(state) = self.links.get_mut(&link) else { return };
        match state.status {
            LinkStatus::Attached(worker) => {
                state.status = LinkStatus::Cut(worker, reason);
                let Some(entry) = self.workers.get_mut(&worker) else { return };
                if entry.is_leaving && ended {
                    self.bury(worker, DeathProof::Drained, events);
                } else {
                    entry.state = WorkerState::Cut { until: now + lease };
                    events.push(Event::WorkerCut { worker });
                }
            }
            LinkStatus::Cut(..) => {}
            _ => {
                state.status = LinkStatus::Unreachable(DialError::Other(reason));
                self.make_way(now, link);
            }
        }
    }

    /// There is no connection.
    pub(crate) fn unreachable(
        &mut self,
        now: Time,
        link: LinkId,
        error: DialError,
        events: &mut Vec<Event>,
    ) {
        let former = self.worker_of(link);
        // News of a link that was stopped may come late: its worker is served through another.
        let Some(state) = self.links.get_mut(&link) else { return };
        let is_proof = match (&error, &state.reached) {
            (DialError::Refused(at), Some(reached)) => at.contains(reached),
            _ => false,
        };
        if former.is_none() || is_proof {
            state.status = LinkStatus::Unreachable(error);
        }
        match former {
            Some(worker) if is_proof => self.bury(worker, DeathProof::Proved, events),
            // Perhaps it can be reached at another of its places.
            Some(worker) => self.revive_echoes(worker),
            None => {}
        }
        self.make_way(now, link);
    }

    /// Who answers cannot be used.
    pub(crate) fn refused(
        &mut self,
        now: Time,
        link: LinkId,
        reason: String,
        events: &mut Vec<Event>,
    ) {
        if let Some(worker) = self.worker_of(link) {
            self.bury(worker, DeathProof::LeaseEnded, events);
        }
        if let Some(state) = self.links.get_mut(&link) {
            state.status = LinkStatus::Refused(reason);
        }
        self.make_way(now, link);
    }

    /// Ends the leases that are over, and tries again what was suggested and did not answer.
    pub(crate) fn expire(&mut self, now: Time, events: &mut Vec<Event>) {
        let over =
            |worker: &Worker| matches!(worker.state, WorkerState::Cut { until } if until <= now);
        let gone: Vec<_> =
            self.workers.iter().filter(|(_, w)| over(w)).map(|(&worker, _)| worker).collect();
        for worker in gone {
            self.bury(worker, DeathProof::LeaseEnded, events);
        }
        self.hints.wake(now);
        self.try_hints();
    }

    /// When the next lease ends, or something is to be tried again.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let until = |worker: &Worker| match worker.state {
            WorkerState::Cut { until } => Some(until),
            _ => None,
        };
        self.workers.values().filter_map(until).chain(self.hints.deadline()).min()
    }

    fn bury(&mut self, worker: WorkerId, proof: DeathProof, events: &mut Vec<Event>) {
        let Some(entry) = self.workers.get_mut(&worker) else { return };
        if entry.state == WorkerState::Dead {
            return;
        }
        entry.state = WorkerState::Dead;
        let proof = if entry.is_leaving { DeathProof::Drained } else { proof };
        events.push(Event::WorkerDead { worker, proof });
        for state in self.links.values_mut() {
            match &state.status {
                LinkStatus::Attached(w) | LinkStatus::Cut(w, _) if *w == worker => {
                    state.status = LinkStatus::Dialling;
                }
                _ => {}
            }
        }
        self.forget_left();
        self.revive_echoes(worker);
        self.let_go();
    }

    /// The worker that is or was attached through a link.
    pub(crate) fn worker_of(&self, link: LinkId) -> Option<WorkerId> {
        match self.links.get(&link)?.status {
            LinkStatus::Attached(worker) | LinkStatus::Cut(worker, _) => Some(worker),
            _ => None,
        }
    }

    fn by_incarnation(&self, incarnation: Incarnation) -> Option<WorkerId> {
        let alive = |w: &Worker| w.state != WorkerState::Dead && w.hello.incarnation == incarnation;
        self.workers.iter().find(|(_, w)| alive(w)).map(|(&worker, _)| worker)
    }

    /// What the scheduler must know of a worker.
    pub(crate) fn traits(&self, worker: WorkerId, round_trip: Duration) -> Option<WorkerTraits> {
        let hello = &self.workers.get(&worker)?.hello;
        Some(WorkerTraits {
            name: hello.name.clone(),
            slots: self.slots(hello.slots),
            queue: 0,
            runtimes: hello.runtimes.clone(),
            labels: hello.labels.clone(),
            round_trip_us: u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX),
        })
    }

    /// As many of a worker's slots as this map may use.
    pub(crate) fn slots(&self, slots: u32) -> u32 {
        self.slots_max.map_or(slots, |most| slots.min(most))
    }

    /// A worker, dead ones too.
    pub(crate) fn worker(&self, worker: WorkerId) -> Option<&Worker> {
        self.workers.get(&worker)
    }

    /// A worker, dead ones too.
    pub(crate) fn worker_mut(&mut self, worker: WorkerId) -> Option<&mut Worker> {
        self.workers.get_mut(&worker)
    }

    /// All workers that were ever attached.
    pub(crate) fn workers(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.workers.iter().map(|(&id, worker)| (id, worker))
    }

    /// The link through which a worker is attached.
    pub(crate) fn link(&self, worker: WorkerId) -> Option<&Link> {
        let entry = self.workers.get(&worker)?;
        Some(&self.links.get(&entry.link)?.link)
    }

    /// Whether a worker lives in this process.
    pub(crate) fn is_embedded(&self, worker: WorkerId) -> bool {
        let entry = self.workers.get(&worker).and_then(|entry| self.links.get(&entry.link));
        entry.is_some_and(|state| state.embedded)
    }

    /// A worker's name, for a person.
    pub(crate) fn name(&self, worker: WorkerId) -> &str {
        self.workers.get(&worker).map_or("?", |entry| &entry.hello.name)
    }

    /// Forgets the first of those workers that are dead, beyond so many.
    pub(crate) fn forget_dead(&mut self, most: usize) {
        let is_dead = |worker: &Worker| worker.state == WorkerState::Dead;
        let dead = self.workers.values().filter(|worker| is_dead(worker)).count();
        let mut over = dead.saturating_sub(most);
        self.workers.retain(|_, worker| {
            let goes = over > 0 && is_dead(worker);
            over -= usize::from(goes);
            !goes
        });
    }

    /// Leaves all links as they are, as if this process had been killed: workers keep what they have.
    pub(crate) async fn leave(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Says goodbye on all links and waits for their tasks; a panic in one of them comes out here.
    /// Lines that workers log meanwhile go to `say`.
    pub(crate) async fn close(
        &mut self,
        news: &mut mpsc::Receiver<LinkEvent>,
        mut say: impl FnMut(&str, String),
    ) {
        for state in self.links.values() {
            state.link.goodbye.cancel();
        }
        let patience = tokio::time::sleep(session::GOODBYE);
        tokio::pin!(patience);
        loop {
            tokio::select! {
                biased;
                Some(event) = news.recv() => self.last_words(event, &mut say),
                ended = self.tasks.join_next() => match ended {
                    None => return,
                    Some(Err(error)) if error.is_panic() => {
                        std::panic::resume_unwind(error.into_panic());
                    }
                    Some(_) => {}
                },
                () = &mut patience, if !patience.is_elapsed() => self.tasks.abort_all(),
            }
        }
    }

    fn last_words(&self, event: LinkEvent, say: &mut impl FnMut(&str, String)) {
        let LinkNews::Reports(reports) = event.news else { return };
        let name = self.worker_of(event.link).map_or("?", |worker| self.name(worker));
        for report in reports {
            if let Report::Log(_, text) = report {
                say(name, text);
            }
        }
    }
}
