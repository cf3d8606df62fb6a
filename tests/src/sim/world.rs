//! The simulated world: one coordinator, hosts with workers, a network between them, and a clock
//! that jumps to whatever is next.

use std::time::Duration;

use fastrand::Rng;
use widemap_common::backoff;
use widemap_common::ids::{CoordinatorId, Epoch};
use widemap_common::time::{Time, Timers};
use widemap_proto::VERSION;
use widemap_proto::session::{CoordinatorHello, Order, Report};

use super::agenda::{Agenda, Due, HostId, LinkId};
use super::coordinator::{Coordinator, News};
use super::fleet::{Status, Task};
use super::host::Host;
use super::network::{Direction, Network, Parcel, StreamId};
use super::options::Options;

/// Events that one run may take, before it is not going to end.
const STEPS_MAX: u64 = 2_000_000;

/// See the file's head.
pub(super) struct World {
    pub(super) options: Options,
    pub(super) timers: Timers,
    pub(super) now: Time,
    pub(super) rng: Rng,
    pub(super) agenda: Agenda,
    pub(super) network: Network,
    pub(super) hosts: Vec<Host>,
    pub(super) coordinator: Coordinator,
    pub(super) steps: u64,
    pub(super) wake_at: Option<Time>,
    /// Whether everything is well from here on.
    pub(super) calm: bool,
    pub(super) crashes: u32,
    pub(super) poison_deaths: u32,
    pub(super) overlaps: u64,
}

impl World {
    pub(super) fn new(options: Options) -> Self {
        let timers = Timers::default();
        let coordinator = Coordinator::new(options.seed, timers, options.output_window);
        Self {
            rng: Rng::with_seed(options.seed),
            timers,
            now: Time::ZERO,
            agenda: Agenda::default(),
            network: Network::default(),
            hosts: Vec::new(),
            coordinator,
            steps: 0,
            wake_at: None,
            calm: false,
            crashes: 0,
            poison_deaths: 0,
            overlaps: 0,
            options,
        }
    }

    /// Lets the next thing happen.
    pub(super) fn step(&mut self) {
        let (at, due) = self.agenda.pop().expect("a simulation that is not over has something due");
        assert!(at >= self.now, "time goes on");
        self.now = at;
        self.coordinator.now = at;
        self.steps += 1;
        assert!(self.steps < STEPS_MAX, "it does not end: {}", self.explain());
        match due {
            Due::Deliver(stream, direction) => self.deliver(stream, direction),
            Due::Keepalive { stream, receiver, since } => self.keepalive(stream, receiver, since),
            Due::Dial(link) => self.dial(link),
            Due::DialFailed { link, refused } => self.dial_failed(link, refused),
            Due::GreetingLate(link, stream) => {
                if self.coordinator.fleet.links[link].task == Task::Opening(stream) {
                    self.coordinator_closes(stream);
                    self.link_cut(link);
                }
            }
            Due::LinkSends(link) => self.link_sends(link),
            Due::Wake => {
                self.wake_at = None;
                if self.coordinator.next_deadline().is_some_and(|deadline| deadline <= at) {
                    self.coordinator.deadline();
                }
            }
            Due::InputArrives(job) => self.input_arrives(job),
            Due::Fault(fault) => self.befall(fault),
            due => self.host_step(due),
        }
        self.settle();
    }

    fn settle(&mut self) {
        self.coordinator.settle();
        for link in std::mem::take(&mut self.coordinator.fleet.goodbyes) {
            self.goodbye(link);
        }
        for link in std::mem::take(&mut self.coordinator.fleet.revived) {
            let entry = &mut self.coordinator.fleet.links[link];
            (entry.task, entry.failures) = (Task::Dialling, 0);
            self.agenda.put(self.now, Due::Dial(link));
        }
        for link in 0..self.coordinator.fleet.links.len() {
            let entry = &mut self.coordinator.fleet.links[link];
            let carries = matches!(entry.task, Task::Carrying(_));
            if carries && entry.outbox.has_some() && !entry.outbox.is_due {
                entry.outbox.is_due = true;
                let at = self.now + Duration::from_micros(self.options.send_us);
                self.agenda.put(at, Due::LinkSends(link));
            }
        }
        if let Some(deadline) = self.coordinator.next_deadline()
            && self.wake_at.is_none_or(|at| deadline < at)
        {
            self.wake_at = Some(deadline);
            self.agenda.put(deadline.max(self.now), Due::Wake);
        }
        self.check();
    }

    fn check(&mut self) {
        for job in &mut self.coordinator.jobs {
            job.oracle.check_output(job.merge.output(), job.merge.next_item());
        }
        if self.steps.is_multiple_of(self.options.check_every) {
            self.coordinator.scheduler.check_invariants();
        }
    }

    /// What every job is waiting for.
    pub(super) fn explain(&self) -> String {
        let explained = |job: &super::job::Job| {
            let (done, items) = (job.oracle.final_items(), job.oracle.items.len());
            let said = self.coordinator.scheduler.explain(job.id);
            format!(
                "{}: {done} of {items}, output at {}, full: {}; {said}",
                job.id,
                job.merge.next_item(),
                job.is_full
            )
        };
        let jobs: Vec<_> = self.coordinator.jobs.iter().map(explained).collect();
        format!("at {}: {}\n{}", self.now, jobs.join("\n"), self.describe_hosts())
    }

    // ---- Links ----

    fn dial(&mut self, link: LinkId) {
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
        entry.outbox.begin_stream();
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

    fn dial_failed(&mut self, link: LinkId, refused: bool) {
        if self.coordinator.fleet.links[link].task == Task::Dialling {
            self.coordinator.hear(link, News::Unreachable { refused });
            self.redial(link);
        }
    }

    /// The first attempt after a cut is made at once.
    fn redial(&mut self, link: LinkId) {
        let entry = &mut self.coordinator.fleet.links[link];
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
    fn link_cut(&mut self, link: LinkId) {
        self.coordinator.hear(link, News::Cut);
        if self.coordinator.fleet.links[link].task != Task::Ended {
            self.redial(link);
        }
    }

    fn goodbye(&mut self, link: LinkId) {
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
            self.network.send_down(&mut self.agenda, stream, at, Parcel::End);
        }
    }

    fn link_sends(&mut self, link: LinkId) {
        let entry = &mut self.coordinator.fleet.links[link];
        entry.outbox.is_due = false;
        let Task::Carrying(stream) = entry.task else { return };
        if !entry.outbox.has_some() {
            return;
        }
        let mut batch = entry.outbox.take_batch(self.options.batch_bytes, self.options.part_bytes);
        if self.rng.u32(0..10_000) < self.options.twice_per_10k {
            let assign = batch.iter().find(|order| matches!(order, Order::Assign(_))).cloned();
            batch.extend(assign);
        }
        self.send(stream, Direction::Down, |network, agenda, at| {
            network.send_down(agenda, stream, at, Parcel::Batch(batch));
        });
    }

    // ---- Streams ----

    /// Sends a message, unless that is the one at which the stream breaks.
    pub(super) fn send(
        &mut self,
        stream: StreamId,
        direction: Direction,
        put: impl FnOnce(&mut Network, &mut Agenda, Time),
    ) {
        let at = self.now + self.delay();
        if !self.calm && self.rng.u32(0..10_000) < self.options.loss_per_10k {
            self.coordinator.note(|| format!("stream {stream} is lost, {direction:?}"));
            return self.network.reset(&mut self.agenda, stream, at);
        }
        put(&mut self.network, &mut self.agenda, at);
    }

    pub(super) fn delay(&mut self) -> Duration {
        let jitter = self.rng.u64(0..=self.options.jitter_us);
        Duration::from_micros(self.options.delay_us + jitter)
    }

    fn deliver(&mut self, id: StreamId, direction: Direction) {
        let stream = &self.network.streams[id];
        let (host, link, incarnation) = (stream.host, stream.link, stream.incarnation);
        if let Some(until) = self.hosts[host].blocked_until(direction, self.now) {
            return self.network.hold_up(&mut self.agenda, id, direction, until);
        }
        match direction {
            Direction::Down => {
                let Some(parcel) = self.network.take_down(id) else { return };
                let alive = self.hosts[host].lives(incarnation);
                if !alive || !self.network.streams[id].worker_open {
                    return;
                }
                match parcel {
                    Parcel::Batch(orders) => self.worker_hears(host, id, orders),
                    Parcel::End | Parcel::Violation(_) => self.worker_loses(host, id),
                }
            }
            Direction::Up => {
                let Some(parcel) = self.network.take_up(id) else { return };
                if !self.network.streams[id].coordinator_open {
                    return;
                }
                match parcel {
                    Parcel::Batch(reports) => self.link_hears(link, id, reports),
                    Parcel::End => {
                        self.network.streams[id].coordinator_open = false;
                        self.link_cut(link);
                    }
                    Parcel::Violation(what) => {
                        self.network.streams[id].coordinator_open = false;
                        self.coordinator.note(|| format!("link {link}: {what}"));
                        self.coordinator.hear(link, News::Refused);
                        self.coordinator.fleet.links[link].task = Task::Ended;
                    }
                }
            }
        }
    }

    fn link_hears(&mut self, link: LinkId, stream: StreamId, mut reports: Vec<Report>) {
        if self.coordinator.fleet.links[link].task == Task::Opening(stream) {
            let (mut hello, mut held) = (None, None);
            reports.retain(|report| match report {
                Report::Hello(greeting) => {
                    hello = Some((**greeting).clone());
                    false
                }
                Report::Held(attempts) => {
                    held = Some(attempts.clone());
                    false
                }
                _ => true,
            });
            let hello = hello.expect("a worker says hello first");
            let held = held.expect("a worker says what it holds with its hello");
            let entry = &mut self.coordinator.fleet.links[link];
            (entry.task, entry.failures) = (Task::Carrying(stream), 0);
            let since = self.now - self.network.streams[stream].begun;
            let round_trip_us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
            self.coordinator.hear(link, News::Attached { hello, held, round_trip_us });
        } else if reports.iter().any(|report| matches!(report, Report::Heartbeat(_))) {
            let micros = 2 * self.options.delay_us + self.options.jitter_us;
            self.coordinator.hear(link, News::RoundTrip(micros));
        }
        if !reports.is_empty() {
            self.coordinator.hear(link, News::Reports(reports));
        }
    }

    /// A side that has heard nothing since a partition began gives the stream up.
    fn keepalive(&mut self, id: StreamId, receiver: Direction, since: Time) {
        let (host, link) = (self.network.streams[id].host, self.network.streams[id].link);
        if self.hosts[host].partitioned_since() != Some(since) {
            return;
        }
        match receiver {
            Direction::Up if self.network.streams[id].coordinator_open => {
                self.coordinator_closes(id);
                self.link_cut(link);
            }
            Direction::Down if self.network.streams[id].worker_open => {
                self.worker_closes(id, Parcel::End);
                self.worker_loses(host, id);
            }
            _ => {}
        }
    }

    fn input_arrives(&mut self, index: usize) {
        let items = self.options.input_items.max(1);
        let job = &mut self.coordinator.jobs[index];
        let more = job.arrive(items);
        let (id, level) = (job.id, job.level());
        self.coordinator
            .events
            .push_back(widemap_sched::event::Event::InputLevel { job: id, level });
        if more {
            let at = self.now + Duration::from_micros(self.options.input_us);
            self.agenda.put(at, Due::InputArrives(index));
        }
    }

    /// The worker that the coordinator knows at a host, if it is attached.
    pub(super) fn is_attached(&self, host: HostId) -> bool {
        let links = self.coordinator.fleet.links.iter();
        links
            .filter(|link| link.host == host)
            .any(|link| matches!(link.status, Status::Attached(_)))
    }
}
