//! The workers of this coordinator, the links to them, and what a cut, a death or a return of one
//! means to the scheduler.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use widemap_common::ids::{AttemptId, Incarnation, JobId, WorkerId};
use widemap_common::limits::WORKERS_MAX;
use widemap_common::time::{Time, Timers};
use widemap_proto::session::{CoordinatorHello, Credit, Report, WorkerHello};
use widemap_sched::event::{DeathProof, Event, WorkerTraits};

use crate::places::Suggestion;
use crate::session::{self, Dial, DialError, Link, LinkEvent, LinkId, LinkNews, StreamId};

/// See the file's head.
pub(crate) struct Fleet {
    hello: CoordinatorHello,
    timers: Timers,
    slots_max: Option<u32>,
    tasks: JoinSet<()>,
    events: mpsc::Sender<LinkEvent>,
    links: BTreeMap<LinkId, LinkState>,
    workers: BTreeMap<WorkerId, Worker>,
    troubles: BTreeMap<String, String>,
    next_link: u32,
    next_worker: u32,
}

struct LinkState {
    place: String,
    embedded: bool,
    sources: BTreeSet<String>,
    link: Link,
    status: LinkStatus,
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

/// One incarnation of a worker.
pub(crate) struct Worker {
    /// Who it is.
    pub(crate) hello: WorkerHello,
    /// Whether it can be reached.
    pub(crate) state: WorkerState,
    /// Whether it said that it is leaving: then its end, however it shows, is no death.
    pub(crate) is_leaving: bool,
    /// Where it was reached last.
    pub(crate) link: LinkId,
    /// What it may be given, as it said last.
    pub(crate) credit: Credit,
    /// Jobs that it was told of.
    pub(crate) jobs: BTreeSet<JobId>,
    /// Output bytes received on this stream.
    pub(crate) received_total: u64,
    /// Output bytes granted on this stream.
    pub(crate) granted_total: u64,
    /// The attempt that may go beyond that, and how far, as it was told last.
    pub(crate) urgent: Option<(AttemptId, u64)>,
}

/// Whether a worker can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerState {
    /// It is attached.
    Attached,
    /// It is attached and takes no new work.
    Draining,
    /// Cut off; its attempts stay its own until then.
    Cut {
        /// The end of the lease.
        until: Time,
    },
    /// Gone.
    Dead,
}

/// What became of a stream that was attached.
pub(crate) enum Attachment {
    /// A worker that was not known, or not any more.
    New(WorkerId),
    /// The same incarnation as before.
    Back(WorkerId),
}

impl Fleet {
    /// A fleet without workers.
    pub(crate) fn new(
        hello: CoordinatorHello,
        timers: Timers,
        slots_max: Option<u32>,
        events: mpsc::Sender<LinkEvent>,
    ) -> Self {
        Self {
            hello,
            timers,
            slots_max,
            tasks: JoinSet::new(),
            events,
            links: BTreeMap::new(),
            workers: BTreeMap::new(),
            troubles: BTreeMap::new(),
            next_link: 1,
            next_worker: 1,
        }
    }

    /// Starts a link to a place that one source names.
    pub(crate) fn add(&mut self, source: String, dial: Dial) {
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let place = dial.shown();
        let embedded = matches!(dial, Dial::Embedded(_));
        let link = session::spawn(
            &mut self.tasks,
            id,
            dial,
            self.hello.clone(),
            self.timers,
            self.events.clone(),
        );
        let sources = BTreeSet::from([source]);
        let status = LinkStatus::Dialling;
        self.links.insert(id, LinkState { place, embedded, sources, link, status });
    }

    /// Follows a source: dials what is new in it; what no source names any more is let go once no
    /// worker is attached there.
    /// Returns the credit of the workers for which it has changed: nothing where no source names them.
    pub(crate) fn follow(&mut self, suggestion: Suggestion) -> Vec<(WorkerId, Credit)> {
        let before = self.named();
        let Suggestion { source, addresses, trouble } = suggestion;
        match trouble {
            Some(trouble) => self.troubles.insert(source.clone(), trouble),
            None => self.troubles.remove(&source),
        };
        for state in self.links.values_mut() {
            if !addresses.contains(&state.place) {
                state.sources.remove(&source);
            }
        }
        for address in addresses {
            let has_room = self.links.len() < WORKERS_MAX;
            match self.links.values_mut().find(|state| state.place == address) {
                Some(state) => {
                    state.sources.insert(source.clone());
                }
                None if has_room => {
                    self.add(source.clone(), Dial::Address(address));
                }
                None => {
                    let trouble = format!("more than {WORKERS_MAX} places; the rest is not used");
                    self.troubles.insert(source.clone(), trouble);
                }
            }
        }
        self.let_go();
        let after = self.named();
        let changed = after.symmetric_difference(&before);
        changed.map(|&worker| (worker, self.credit(worker))).collect()
    }

    /// Attached workers that a source names.
    fn named(&self) -> BTreeSet<WorkerId> {
        let named = |state: &LinkState| match state.status {
            LinkStatus::Attached(worker) | LinkStatus::Alias(worker)
                if !state.sources.is_empty() =>
            {
                Some(worker)
            }
            _ => None,
        };
        self.links.values().filter_map(named).collect()
    }

    /// What a worker may be given: nothing once no source names it.
    pub(crate) fn credit(&self, worker: WorkerId) -> Credit {
        let Some(entry) = self.workers.get(&worker) else { return Credit { slots: 0, queue: 0 } };
        let leads_there = |(id, state): (&LinkId, &LinkState)| {
            (*id == entry.link || state.status == LinkStatus::Alias(worker))
                && !state.sources.is_empty()
        };
        let is_named = self.links.iter().any(leads_there);
        match is_named {
            true => Credit { slots: self.slots(entry.credit.slots), ..entry.credit },
            false => Credit { slots: 0, queue: 0 },
        }
    }

    /// Ends links that nobody names and through which no worker lives.
    fn let_go(&mut self) {
        self.links.retain(|_, state| {
            let needed = !state.sources.is_empty()
                || matches!(state.status, LinkStatus::Attached(_) | LinkStatus::Cut(..));
            if !needed {
                state.link.goodbye.cancel();
            }
            needed
        });
    }

    /// A stream was attached: says whose, and what the scheduler must hear first.
    pub(crate) fn attached(
        &mut self,
        link: LinkId,
        stream: StreamId,
        hello: WorkerHello,
        events: &mut Vec<Event>,
    ) -> Option<Attachment> {
        let state = self.links.get(&link)?;
        if matches!(state.status, LinkStatus::Alias(_)) || !state.link.outbox.is_present(stream) {
            // The link was stopped, or the stream is gone already and another is on its way.
            return None;
        }
        let known = self.by_incarnation(hello.incarnation);
        let former = self.worker_of(link);
        if let Some(former) = former.filter(|&former| Some(former) != known) {
            // Another life at the same address: the former is proved dead.
            self.bury(former, DeathProof::Proved, events);
        }
        let state = self.links.get_mut(&link)?;
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
            && let Some(former) = self.links.get_mut(&former_link)
        {
            // One worker under two addresses is one worker: the newer stream has replaced the older.
            former.link.stop.cancel();
            former.status = LinkStatus::Alias(worker);
        }
        Some(Attachment::Back(worker))
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
        let lease = Duration::from_millis(self.timers.lease_ms);
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
            LinkStatus::Cut(..) | LinkStatus::Alias(_) => {}
            _ => state.status = LinkStatus::Unreachable(DialError::Other(reason)),
        }
    }

    /// There is no connection.
    pub(crate) fn unreachable(&mut self, link: LinkId, error: DialError, events: &mut Vec<Event>) {
        let former = self.worker_of(link);
        let refused = error == DialError::Refused;
        let Some(state) = self.links.get_mut(&link) else { return };
        if matches!(state.status, LinkStatus::Alias(_)) {
            // Late news of a link that was stopped: its worker is served through another.
            return;
        }
        if former.is_none() || refused {
            state.status = LinkStatus::Unreachable(error);
        }
        if let Some(worker) = former.filter(|_| refused) {
            self.bury(worker, DeathProof::Proved, events);
        }
    }

    /// Who answers cannot be used.
    pub(crate) fn refused(&mut self, link: LinkId, reason: String, events: &mut Vec<Event>) {
        if let Some(worker) = self.worker_of(link) {
            self.bury(worker, DeathProof::LeaseEnded, events);
        }
        let state = self.links.get_mut(&link);
        if let Some(state) = state.filter(|state| !matches!(state.status, LinkStatus::Alias(_))) {
            state.status = LinkStatus::Refused(reason);
        }
    }

    /// Ends the leases that are over.
    pub(crate) fn expire(&mut self, now: Time, events: &mut Vec<Event>) {
        let over =
            |worker: &Worker| matches!(worker.state, WorkerState::Cut { until } if until <= now);
        let gone: Vec<_> =
            self.workers.iter().filter(|(_, w)| over(w)).map(|(&worker, _)| worker).collect();
        for worker in gone {
            self.bury(worker, DeathProof::LeaseEnded, events);
        }
    }

    /// When the next lease ends.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let until = |worker: &Worker| match worker.state {
            WorkerState::Cut { until } => Some(until),
            _ => None,
        };
        self.workers.values().filter_map(until).min()
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
        self.revive_aliases(worker);
        self.let_go();
    }

    /// A worker is gone: its other addresses may lead to another one now.
    fn revive_aliases(&mut self, worker: WorkerId) {
        let aliases: Vec<_> = self
            .links
            .iter()
            .filter(|(_, state)| state.status == LinkStatus::Alias(worker))
            .map(|(&id, _)| id)
            .collect();
        for alias in aliases {
            let Some(state) = self.links.remove(&alias) else { continue };
            for source in state.sources {
                match self.links.values_mut().find(|other| other.place == state.place) {
                    Some(other) => {
                        other.sources.insert(source);
                    }
                    None => self.add(source, Dial::Address(state.place.clone())),
                }
            }
        }
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

    /// Every place: the address, who names it, what is known.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, &BTreeSet<String>, &LinkStatus)> {
        self.links.values().map(|state| (state.place.as_str(), &state.sources, &state.status))
    }

    /// Every source that names a place.
    pub(crate) fn sources(&self) -> Vec<String> {
        let sources: BTreeSet<_> = self.links.values().flat_map(|link| &link.sources).collect();
        sources.into_iter().cloned().collect()
    }

    /// What is wrong with sources.
    pub(crate) fn troubles(&self) -> impl Iterator<Item = (&str, &str)> {
        self.troubles.iter().map(|(source, trouble)| (source.as_str(), trouble.as_str()))
    }

    /// Says goodbye on all links and waits for their tasks; a panic in one of them comes out here.
    /// Lines that workers log meanwhile go to `say`.
    pub(crate) async fn close(
        mut self,
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

impl Worker {
    /// Whether it can be told anything.
    pub(crate) fn is_attached(&self) -> bool {
        matches!(self.state, WorkerState::Attached | WorkerState::Draining)
    }

    /// Whether its attempts are still its own.
    pub(crate) fn is_or_may_be_alive(&self) -> bool {
        self.state != WorkerState::Dead
    }

    fn new(hello: WorkerHello, link: LinkId) -> Self {
        let credit = Credit { slots: hello.slots, queue: 0 };
        Self {
            hello,
            state: WorkerState::Attached,
            is_leaving: false,
            link,
            credit,
            jobs: BTreeSet::new(),
            received_total: 0,
            granted_total: 0,
            urgent: None,
        }
    }
}
