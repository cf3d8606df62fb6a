//! What is going to happen when, in simulated time: the one queue that everything waits in.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use widemap_common::ids::{AttemptId, Incarnation};
use widemap_common::time::Time;

use super::faults::Fault;
use super::network::{Direction, StreamId};

/// One host: an address at which a worker may live.
pub(super) type HostId = usize;

/// One address that the coordinator dials.
pub(super) type LinkId = usize;

/// Something that happens at its time.
#[derive(Debug)]
pub(super) enum Due {
    /// The next message of a stream arrives.
    Deliver(StreamId, Direction),
    /// One side of a stream has heard nothing for too long.
    Keepalive { stream: StreamId, receiver: Direction, since: Time },
    /// A link dials.
    Dial(LinkId),
    /// A link's attempt to connect has failed.
    DialFailed { link: LinkId, refused: bool },
    /// A stream that was opened should have been greeted by now.
    GreetingLate(LinkId, StreamId),
    /// The driver hears what a link had to say.
    News(LinkId),
    /// A link measures the round trip.
    Ping(LinkId, StreamId),
    /// A link sends its next batch.
    LinkSends(LinkId),
    /// A worker sends its next batch.
    WorkerSends(HostId, Incarnation),
    /// A worker tells how far its attempts are.
    Heartbeat(HostId, Incarnation),
    /// A running attempt has made a piece of its output, or comes to its end.
    Work(HostId, Incarnation, AttemptId),
    /// Nothing is left of an attempt that was cancelled.
    Gone(HostId, Incarnation, AttemptId),
    /// A worker that is cut off gives up its coordinator, unless it was back meanwhile.
    LeaseEnds(HostId, Incarnation),
    /// A worker that drains ends what still runs.
    DrainEnds(HostId, Incarnation),
    /// A worker that drains waits no longer for its results to be accepted.
    DrainGivesUp(HostId, Incarnation),
    /// The sink and the spill of a job have their turn.
    ResultsWork(usize),
    /// The coordinator has something due.
    Wake,
    /// Another part of the input has been read.
    InputArrives(usize),
    /// A fault begins, or ends.
    Fault(Fault),
}

#[derive(Debug)]
struct Entry {
    at: Time,
    number: u64,
    due: Due,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Everything that is due, the next first; of two at one moment, the one put in first.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    heap: BinaryHeap<Reverse<Entry>>,
    numbers: u64,
}

impl Agenda {
    pub(super) fn put(&mut self, at: Time, due: Due) {
        self.numbers += 1;
        self.heap.push(Reverse(Entry { at, number: self.numbers, due }));
    }

    pub(super) fn pop(&mut self) -> Option<(Time, Due)> {
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.due))
    }

    pub(super) fn next_at(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }
}
