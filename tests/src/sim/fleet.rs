//! The workers as the coordinator knows them, and the links to them: it keeps to the driver's own
//! fleet, event by event. Outboxes are the real ones. Sources never change their mind here.

use std::collections::VecDeque;
use std::time::Duration;

use widemap::session_for_tests::{Outbox, SendBounds, StreamId as OutboxStream};
use widemap_common::ids::{AttemptId, Incarnation, WorkerId};
use widemap_common::time::Time;
use widemap_proto::session::WorkerHello;
use widemap_sched::event::{DeathProof, Event};

use super::agenda::{HostId, LinkId};
use super::coordinator::News;
use super::network::StreamId;

/// What the task of a link is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Task {
    Dialling,
    /// Waits for the greeting.
    Opening(StreamId),
    Carrying(StreamId),
    /// The peer is not to be used, or nobody needs the link any more.
    Ended,
}

/// What is known of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Status {
    Dialling,
    Attached(WorkerId),
    Cut(WorkerId),
    /// The same worker as one that is attached through another address.
    Alias(WorkerId),
    Unreachable,
    Refused,
    /// Another link has taken its place.
    Gone,
}

/// One address.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) host: HostId,
    pub(super) task: Task,
    /// Failed dials in a row.
    pub(super) failures: u32,
    pub(super) status: Status,
    outbox: Outbox,
    /// The stream that the outbox counts for.
    pub(super) outbox_stream: OutboxStream,
    /// Whether something was put in, or granted, since the last batch; whether one is on the agenda.
    pub(super) is_stirred: bool,
    pub(super) is_due: bool,
    /// What the driver has not heard yet, and when it hears of it.
    pub(super) news: VecDeque<(Time, News)>,
}

/// Whether a worker can be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Attached,
    Draining,
    Cut { until: Time },
    Dead,
}

/// One incarnation of a worker.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) hello: WorkerHello,
    pub(super) state: State,
    pub(super) link: LinkId,
    /// The credit that was told last.
    pub(super) slots: u32,
    pub(super) queue: u32,
    pub(super) received_total: u64,
    pub(super) granted_total: u64,
    pub(super) urgent: Option<(AttemptId, u64)>,
}

/// What became of a stream that was attached.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attachment {
    New(WorkerId),
    Back(WorkerId),
}

/// See the file's head.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) links: Vec<Link>,
    pub(super) members: Vec<Member>,
    bounds: SendBounds,
    lease: Duration,
    /// Links that are not needed any more, and new ones that are to be dialled.
    pub(super) stopped: Vec<LinkId>,
    pub(super) revived: Vec<LinkId>,
}

impl Fleet {
    pub(super) fn new(lease: Duration, bounds: SendBounds) -> Self {
        let (links, members) = (Vec::new(), Vec::new());
        Self { links, members, bounds, lease, stopped: Vec::new(), revived: Vec::new() }
    }

    pub(super) fn add_link(&mut self, host: HostId) -> LinkId {
        self.links.push(Link {
            host,
            task: Task::Dialling,
            failures: 0,
            status: Status::Dialling,
            outbox: Outbox::new(self.bounds),
            outbox_stream: OutboxStream::default(),
            is_stirred: false,
            is_due: false,
            news: VecDeque::new(),
        });
        self.links.len() - 1
    }

    pub(super) fn attached(
        &mut self,
        link: LinkId,
        stream: OutboxStream,
        hello: WorkerHello,
        events: &mut Vec<Event>,
    ) -> Option<Attachment> {
        let state = &self.links[link];
        if matches!(state.status, Status::Alias(_) | Status::Gone)
            || !state.outbox.is_present(stream)
        {
            return None;
        }
        let known = self.by_incarnation(hello.incarnation);
        let former = self.worker_of(link);
        if let Some(former) = former.filter(|&former| Some(former) != known) {
            self.bury(former, DeathProof::Proved, events);
        }
        self.links[link].outbox.open_stream();
        let Some(worker) = known else {
            let worker = WorkerId(u32::try_from(self.members.len()).expect("few workers"));
            self.links[link].status = Status::Attached(worker);
            self.members.push(Member {
                slots: hello.slots,
                queue: 0,
                hello,
                state: State::Attached,
                link,
                received_total: 0,
                granted_total: 0,
                urgent: None,
            });
            return Some(Attachment::New(worker));
        };
        self.links[link].status = Status::Attached(worker);
        let entry = self.member_mut(worker);
        let former_link = std::mem::replace(&mut entry.link, link);
        (entry.received_total, entry.granted_total, entry.urgent) = (0, 0, None);
        if matches!(entry.state, State::Attached | State::Draining) {
            events.push(Event::WorkerCut { worker });
        }
        entry.state = State::Attached;
        if former_link != link {
            self.links[former_link].status = Status::Alias(worker);
            self.stopped.push(former_link);
        }
        Some(Attachment::Back(worker))
    }

    pub(super) fn cut(&mut self, now: Time, link: LinkId, ended: bool, events: &mut Vec<Event>) {
        let until = now + self.lease;
        match self.links[link].status {
            Status::Attached(worker) => {
                self.links[link].status = Status::Cut(worker);
                let entry = self.member_mut(worker);
                if entry.state == State::Draining && ended {
                    self.bury(worker, DeathProof::Drained, events);
                } else {
                    entry.state = State::Cut { until };
                    events.push(Event::WorkerCut { worker });
                }
            }
            Status::Cut(_) | Status::Alias(_) | Status::Gone => {}
            _ => self.links[link].status = Status::Unreachable,
        }
    }

    pub(super) fn unreachable(&mut self, link: LinkId, refused: bool, events: &mut Vec<Event>) {
        let former = self.worker_of(link);
        let is_used = !matches!(self.links[link].status, Status::Alias(_) | Status::Gone);
        if is_used && (former.is_none() || refused) {
            self.links[link].status = Status::Unreachable;
        }
        if let Some(worker) = former.filter(|_| refused) {
            self.bury(worker, DeathProof::Proved, events);
        }
    }

    pub(super) fn refused(&mut self, link: LinkId, events: &mut Vec<Event>) {
        if let Some(worker) = self.worker_of(link) {
            self.bury(worker, DeathProof::LeaseEnded, events);
        }
        self.links[link].status = Status::Refused;
    }

    pub(super) fn expire(&mut self, now: Time, events: &mut Vec<Event>) {
        let over = |member: &Member| matches!(member.state, State::Cut { until } if until <= now);
        let gone: Vec<_> = self.ids().filter(|&worker| over(self.member(worker))).collect();
        for worker in gone {
            self.bury(worker, DeathProof::LeaseEnded, events);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        let until = |member: &Member| match member.state {
            State::Cut { until } => Some(until),
            _ => None,
        };
        self.members.iter().filter_map(until).min()
    }

    fn bury(&mut self, worker: WorkerId, proof: DeathProof, events: &mut Vec<Event>) {
        let entry = self.member_mut(worker);
        if entry.state == State::Dead {
            return;
        }
        entry.state = State::Dead;
        events.push(Event::WorkerDead { worker, proof });
        for link in 0..self.links.len() {
            match self.links[link].status {
                Status::Attached(of) | Status::Cut(of) if of == worker => {
                    self.links[link].status = Status::Dialling;
                }
                // Another worker may live there now.
                Status::Alias(of) if of == worker => {
                    self.links[link].status = Status::Gone;
                    let link = self.add_link(self.links[link].host);
                    self.revived.push(link);
                }
                _ => {}
            }
        }
    }

    /// The worker that is or was attached through a link.
    pub(super) fn worker_of(&self, link: LinkId) -> Option<WorkerId> {
        match self.links[link].status {
            Status::Attached(worker) | Status::Cut(worker) => Some(worker),
            _ => None,
        }
    }

    fn by_incarnation(&self, incarnation: Incarnation) -> Option<WorkerId> {
        self.ids().find(|&worker| {
            let member = self.member(worker);
            member.state != State::Dead && member.hello.incarnation == incarnation
        })
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = WorkerId> + use<> {
        (0..u32::try_from(self.members.len()).expect("few workers")).map(WorkerId)
    }

    pub(super) fn member(&self, worker: WorkerId) -> &Member {
        &self.members[worker.0 as usize]
    }

    pub(super) fn member_mut(&mut self, worker: WorkerId) -> &mut Member {
        &mut self.members[worker.0 as usize]
    }

    /// What waits to be sent to a worker.
    pub(super) fn outbox(&mut self, worker: WorkerId) -> &Outbox {
        let link = self.member(worker).link;
        self.links[link].outbox()
    }
}

impl Link {
    /// What waits to be sent, to be changed: the link looks at it again.
    pub(super) fn outbox(&mut self) -> &Outbox {
        self.is_stirred = true;
        &self.outbox
    }
}

impl Member {
    /// Whether it can be told anything.
    pub(super) fn is_attached(&self) -> bool {
        matches!(self.state, State::Attached | State::Draining)
    }
}
