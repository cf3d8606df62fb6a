//! Streams as TCP shows them: in order, delayed, and then perhaps broken, which each side hears of
//! in its own time.

use std::collections::VecDeque;

use widemap_common::ids::{AttemptId, Incarnation};
use widemap_common::time::Time;
use widemap_proto::session::{Order, Report};

use super::agenda::{Agenda, Due, HostId, LinkId};

/// One stream between the coordinator and a worker.
pub(super) type StreamId = usize;

/// Which way a message goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// To the worker.
    Down,
    /// To the coordinator.
    Up,
}

/// What travels on a stream.
#[derive(Debug)]
pub(super) enum Parcel<M> {
    /// A message.
    Batch(Vec<M>),
    /// The other side has closed, or a reset has come.
    End(Last),
    /// A message with a payload that is not what it was.
    Corrupt(AttemptId),
    /// The worker has ended the stream: the coordinator does not keep to the protocol.
    Violation(&'static str),
}

/// How a stream ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Last {
    /// Its other side has said that it is done.
    InGoodOrder,
    /// Without a word: a reset, a death, an error.
    Broken,
}

/// One way of a stream.
#[derive(Debug)]
struct Pipe<M> {
    parcels: VecDeque<Parcel<M>>,
    last_arrival: Time,
}

impl<M> Default for Pipe<M> {
    fn default() -> Self {
        Self { parcels: VecDeque::new(), last_arrival: Time::ZERO }
    }
}

/// See the file's head.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) link: LinkId,
    pub(super) host: HostId,
    pub(super) incarnation: Incarnation,
    pub(super) begun: Time,
    /// Whether each side still believes in it.
    pub(super) coordinator_open: bool,
    pub(super) worker_open: bool,
    down: Pipe<Order>,
    up: Pipe<Report>,
}

/// All streams that there ever were.
#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) streams: Vec<Stream>,
}

impl Network {
    pub(super) fn open(
        &mut self,
        link: LinkId,
        host: HostId,
        incarnation: Incarnation,
        begun: Time,
    ) -> StreamId {
        self.streams.push(Stream {
            link,
            host,
            incarnation,
            begun,
            coordinator_open: true,
            worker_open: true,
            down: Pipe::default(),
            up: Pipe::default(),
        });
        self.streams.len() - 1
    }

    pub(super) fn send_down(
        &mut self,
        agenda: &mut Agenda,
        id: StreamId,
        arrival: Time,
        parcel: Parcel<Order>,
    ) {
        let at = self.streams[id].down.push(arrival, parcel);
        agenda.put(at, Due::Deliver(id, Direction::Down));
    }

    pub(super) fn send_up(
        &mut self,
        agenda: &mut Agenda,
        id: StreamId,
        arrival: Time,
        parcel: Parcel<Report>,
    ) {
        let at = self.streams[id].up.push(arrival, parcel);
        agenda.put(at, Due::Deliver(id, Direction::Up));
    }

    /// The next parcel waits until then: its way is blocked.
    pub(super) fn hold_up(
        &mut self,
        agenda: &mut Agenda,
        id: StreamId,
        direction: Direction,
        until: Time,
    ) {
        let stream = &mut self.streams[id];
        let last_arrival = match direction {
            Direction::Down => &mut stream.down.last_arrival,
            Direction::Up => &mut stream.up.last_arrival,
        };
        *last_arrival = until.max(*last_arrival);
        agenda.put(until, Due::Deliver(id, direction));
    }

    pub(super) fn take_down(&mut self, id: StreamId) -> Option<Parcel<Order>> {
        self.streams[id].down.parcels.pop_front()
    }

    pub(super) fn take_up(&mut self, id: StreamId) -> Option<Parcel<Report>> {
        self.streams[id].up.parcels.pop_front()
    }

    /// Loses everything that is on its way; both sides hear of it at `arrival`.
    pub(super) fn reset(&mut self, agenda: &mut Agenda, id: StreamId, arrival: Time) {
        self.streams[id].down.parcels.clear();
        self.streams[id].up.parcels.clear();
        self.send_down(agenda, id, arrival, Parcel::End(Last::Broken));
        self.send_up(agenda, id, arrival, Parcel::End(Last::Broken));
    }

    /// The streams of a host that some side still believes in.
    pub(super) fn living(&self, host: HostId) -> Vec<StreamId> {
        let of_host = |stream: &Stream| {
            stream.host == host && (stream.coordinator_open || stream.worker_open)
        };
        (0..self.streams.len()).filter(|&id| of_host(&self.streams[id])).collect()
    }
}

impl<M> Pipe<M> {
    /// Puts a parcel behind the others; when it arrives.
    fn push(&mut self, arrival: Time, parcel: Parcel<M>) -> Time {
        self.last_arrival = self.last_arrival.max(arrival);
        self.parcels.push_back(parcel);
        self.last_arrival
    }
}
