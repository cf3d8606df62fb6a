//! The tasks behind the coordinator's addresses: dial, greet, carry, and after a cut dial again. They
//! keep to the coordinator's own links.

use std::time::Duration;

use widemap_common::backoff;
use widemap_common::ids::{CoordinatorId, Epoch};
use widemap_proto::VERSION;
use widemap_proto::session::{CoordinatorHello, Order};

use super::agenda::{Due, LinkId};
use super::coordinator::News;
use super::fleet::Task;
use super::network::{Direction, Last, Parcel, StreamId};
use super::world::World;

impl World {
    pub(super) fn dial(&mut self, link: LinkId) {
        if self.coordinator.fleet.links[link].task != Task::Dialling {
            return;
        }
        let host = self.coordinator.fleet.links[link].host;
        let there = &self.hosts[host];
        let blocked = [Direction::Down, Direction::Up]
            .into_iter()
            .any(|direction| there.blocked_until(direction, self.now).is_some());
        if blocked {
            let at = self.now + Duration::from_millis(self.timers.connect_ms);
            return self.agenda.put(at, Due::DialFailed { link, refused: false });
        }
        let Some(process) = &there.process else {
            let at = self.now + self.delay() + self.delay();
            return self.agenda.put(at, Due::DialFailed { link, refused: true });
        };
        let stream = self.network.open(link, host, process.incarnation, self.now);
        let entry = &mut self.coordinator.fleet.links[link];
        entry.task = Task::Opening(stream);
        entry.outbox_stream = entry.outbox().begin_stream();
        let hello = Order::Hello(CoordinatorHello {
            version: VERSION,
            build: String::new(),
            coordinator: CoordinatorId(1),
            epoch: Epoch(1),
            linger_ms: self.timers.lease_ms,
        });
        let at = self.now + self.delay();
        self.network.send_down(&mut self.agenda, stream, at, Parcel::Batch(vec![hello]));
        let at = self.now + Duration::from_millis(self.timers.connect_ms);
        self.agenda.put(at, Due::GreetingLate(link, stream));
    }

    pub(super) fn dial_failed(&mut self, link: LinkId, refused: bool) {
        if self.coordinator.fleet.links[link].task == Task::Dialling {
            self.tell(link, News::Unreachable { refused });
            self.redial(link);
        }
    }

    /// The first attempt after a cut is made at once.
    pub(super) fn redial(&mut self, link: LinkId) {
        let entry = &mut self.coordinator.fleet.links[link];
        // A stream that did not last is no success.
        if let Task::Carrying(stream) = entry.task
            && self.now - self.network.streams[stream].begun
                >= Duration::from_millis(self.timers.redial_max_ms)
        {
            entry.failures = 0;
        }
        entry.task = Task::Dialling;
        let pause = match entry.failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(retry) => {
                let base = Duration::from_millis(self.timers.redial_ms);
                let longest = Duration::from_millis(self.timers.redial_max_ms);
                backoff::pause(retry, base, longest, &mut self.rng)
            }
        };
        entry.failures += 1;
        self.agenda.put(self.now + pause, Due::Dial(link));
    }

    /// The link's stream broke, on the coordinator's side.
    pub(super) fn link_cut(&mut self, link: LinkId, ended: bool) {
        self.tell(link, News::Cut { ended });
        if self.coordinator.fleet.links[link].task != Task::Ended {
            self.redial(link);
        }
    }

    /// The driver's queue: what one link says comes in order, what several say does not.
    pub(super) fn tell(&mut self, link: LinkId, news: News) {
        let late_us = if self.calm { 0 } else { self.options.news_us };
        let queue = &mut self.coordinator.fleet.links[link].news;
        let last = queue.back().map(|(at, _)| *at);
        if late_us == 0 && last.is_none() {
            return self.coordinator.hear(link, news);
        }
        let at = self.now + Duration::from_micros(self.rng.u64(0..=late_us));
        let at = last.map_or(at, |last| last.max(at));
        self.coordinator.fleet.links[link].news.push_back((at, news));
        self.agenda.put(at, Due::News(link));
    }

    pub(super) fn news_arrives(&mut self, link: LinkId) {
        if let Some((_, news)) = self.coordinator.fleet.links[link].news.pop_front() {
            self.coordinator.hear(link, news);
        }
    }

    /// Asks for the round trip, soon after the start and then now and then.
    pub(super) fn ping(&mut self, link: LinkId, stream: StreamId) {
        let entry = &mut self.coordinator.fleet.links[link];
        if entry.task == Task::Carrying(stream) {
            entry.outbox().ping();
            let at = self.now + Duration::from_millis(self.options.ping_ms);
            self.agenda.put(at, Due::Ping(link, stream));
        }
    }

    /// The worker is served through another link.
    pub(super) fn stop(&mut self, link: LinkId) {
        let entry = &mut self.coordinator.fleet.links[link];
        if let Task::Opening(stream) | Task::Carrying(stream) = entry.task {
            entry.task = Task::Ended;
            self.coordinator_closes(stream);
        } else {
            entry.task = Task::Ended;
        }
    }

    pub(super) fn coordinator_closes(&mut self, stream: StreamId) {
        if std::mem::replace(&mut self.network.streams[stream].coordinator_open, false) {
            let at = self.now + self.delay();
            let end = Parcel::End(Last::Broken);
            self.network.send_down(&mut self.agenda, stream, at, end);
        }
    }

    pub(super) fn link_sends(&mut self, link: LinkId) {
        let entry = &mut self.coordinator.fleet.links[link];
        (entry.is_due, entry.is_stirred) = (false, false);
        let Task::Carrying(stream) = entry.task else { return };
        // The link looks again after each message.
        let batch = entry.outbox().take_batch(self.now);
        if batch.is_empty() {
            entry.is_stirred = false;
            return;
        }
        self.send_down(stream, Parcel::Batch(batch));
    }
}
