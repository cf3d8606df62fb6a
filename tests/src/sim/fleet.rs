//! The workers as the coordinator knows them, and the links to them: it keeps to the driver's own
//! fleet, event by event.

use std::time::Duration;

use widemap_common::ids::{Incarnation, WorkerId};
use widemap_common::time::Time;
use widemap_proto::session::WorkerHello;
use widemap_sched::event::{DeathProof, Event};

use super::agenda::{HostId, LinkId};
use super::network::StreamId;
use super::outbox::Outbox;

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
}

/// One address.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) host: HostId,
    pub(super) task: Task,
    /// Failed dials in a row.
    pub(super) failures: u32,
    pub(super) status: Status,
    pub(super) outbox: Outbox,
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
    lease: Duration,
    /// Links that are not needed any more, and those that are to be dialled anew.
    pub(super) goodbyes: Vec<LinkId>,
    pub(super) revived: Vec<LinkId>,
}

impl Fleet {
    pub(super) fn new(lease: Duration) -> Self {
        let (links, members) = (Vec::new(), Vec::new());
        Self { links, members, lease, goodbyes: Vec::new(), revived: Vec::new() }
    }

    pub(super) fn add_link(&mut self, host: HostId) -> LinkId {
        let (task, status) = (Task::Dialling, Status::Dialling);
        self.links.push(Link { host, task, failures: 0, status, outbox: Outbox::default() });
        self.links.len() - 1
    }

    pub(super) fn attached(
        &mut self,
        link: LinkId,
        hello: WorkerHello,
        events: &mut Vec<Event>,
    ) -> Attachment {
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
            });
            return Attachment::New(worker);
        };
        self.links[link].status = Status::Attached(worker);
        let entry = self.member_mut(worker);
        let former_link = std::mem::replace(&mut entry.link, link);
        (entry.received_total, entry.granted_total) = (0, 0);
        if matches!(entry.state, State::Attached | State::Draining) {
            events.push(Event::WorkerCut { worker });
        }
        entry.state = State::Attached;
        if former_link != link {
            self.links[former_link].status = Status::Alias(worker);
            self.goodbyes.push(former_link);
        }
        Attachment::Back(worker)
    }

    pub(super) fn cut(&mut self, now: Time, link: LinkId, events: &mut Vec<Event>) {
        let until = now + self.lease;
        match self.links[link].status {
            Status::Attached(worker) => {
                self.links[link].status = Status::Cut(worker);
                let entry = self.member_mut(worker);
                if entry.state == State::Draining {
                    self.bury(worker, DeathProof::Drained, events);
                } else {
                    entry.state = State::Cut { until };
                    events.push(Event::WorkerCut { worker });
                }
            }
            Status::Cut(_) | Status::Alias(_) => {}
            _ => self.links[link].status = Status::Unreachable,
        }
    }

    pub(super) fn unreachable(&mut self, link: LinkId, refused: bool, events: &mut Vec<Event>) {
        let former = self.worker_of(link);
        if former.is_none() || refused {
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
        for (id, link) in self.links.iter_mut().enumerate() {
            match link.status {
                Status::Attached(of) | Status::Cut(of) if of == worker => {
                    link.status = Status::Dialling;
                }
                // Another worker may live there now.
                Status::Alias(of) if of == worker => {
                    link.status = Status::Dialling;
                    self.revived.push(id);
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
    pub(super) fn outbox(&mut self, worker: WorkerId) -> &mut Outbox {
        let link = self.member(worker).link;
        &mut self.links[link].outbox
    }
}

impl Member {
    /// Whether it can be told anything.
    pub(super) fn is_attached(&self) -> bool {
        matches!(self.state, State::Attached | State::Draining)
    }
}
