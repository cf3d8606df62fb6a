//! The simulated world: one coordinator, hosts with workers, a network between them, and a clock
//! that jumps to whatever is next.

use std::time::Duration;

use fastrand::Rng;
use widemap::session_for_tests::{PaceBounds, SendBounds};
use widemap_common::time::{Time, Timers};
use widemap_proto::session::{Order, Report};

use super::agenda::{Agenda, Due, HostId, LinkId};
use super::coordinator::{Coordinator, News};
use super::fleet::{Status, Task};
use super::host::Host;
use super::network::{Direction, Last, Network, Parcel, StreamId};
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
        let bounds = SendBounds {
            part_bytes: options.part_bytes,
            batch_bytes: options.batch_bytes,
            batch_entries: options.batch_entries,
            pace: PaceBounds {
                window_bytes: options.pace_window,
                patience: Duration::from_millis(options.patience_ms),
            },
        };
        let window = (options.output_bounds.part_bytes_min, options.output_window);
        let coordinator = Coordinator::new(options.seed, timers, window, bounds);
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
                    self.link_cut(link, false);
                }
            }
            Due::LinkSends(link) => self.link_sends(link),
            Due::News(link) => self.news_arrives(link),
            Due::Ping(link, stream) => self.ping(link, stream),
            Due::ResultsWork(job) => {
                self.coordinator.jobs[job].results.is_due = false;
                self.results_work(job);
            }
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
        while std::mem::take(&mut self.coordinator.is_woken) {
            self.coordinator.settle();
            for job in 0..self.coordinator.jobs.len() {
                self.let_results_work(job);
            }
        }
        for link in std::mem::take(&mut self.coordinator.fleet.stopped) {
            self.stop(link);
        }
        for link in std::mem::take(&mut self.coordinator.fleet.revived) {
            self.agenda.put(self.now, Due::Dial(link));
        }
        for link in 0..self.coordinator.fleet.links.len() {
            let entry = &mut self.coordinator.fleet.links[link];
            let carries = matches!(entry.task, Task::Carrying(_));
            if carries && entry.is_stirred && !entry.is_due {
                entry.is_due = true;
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

    /// The sink and the spill have threads of their own, which take their time.
    fn let_results_work(&mut self, job: usize) {
        let state = &mut self.coordinator.jobs[job];
        if !state.is_open() || state.results.is_due {
            return;
        }
        if self.options.sink_us == 0 {
            self.results_work(job);
        } else {
            state.results.is_due = true;
            let at = self.now + Duration::from_micros(self.options.sink_us);
            self.agenda.put(at, Due::ResultsWork(job));
        }
    }

    fn results_work(&mut self, job: usize) {
        let job = &mut self.coordinator.jobs[job];
        let wakes = job.results.work();
        job.oracle.check_output(job.results.output(), job.results.next_item());
        self.coordinator.is_woken |= wakes;
    }

    fn check(&mut self) {
        if self.steps.is_multiple_of(self.options.check_every) {
            self.coordinator.scheduler.check_invariants();
            self.coordinator.jobs.iter().for_each(super::job::Job::check_bounds);
            let output = self.options.output_bounds;
            for host in &self.hosts {
                if let Some(session) = host.session() {
                    session.check_bounds(output, host.slots);
                }
            }
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
                job.results.next_item(),
                job.is_full
            )
        };
        let jobs: Vec<_> = self.coordinator.jobs.iter().map(explained).collect();
        format!("at {}: {}\n{}", self.now, jobs.join("\n"), self.describe_hosts())
    }

    // ---- Streams ----

    pub(super) fn send_down(&mut self, stream: StreamId, parcel: Parcel<Order>) {
        let at = self.now + self.delay();
        match self.is_lost(stream) {
            true => self.network.reset(&mut self.agenda, stream, at),
            false => self.network.send_down(&mut self.agenda, stream, at, parcel),
        }
    }

    pub(super) fn send_up(&mut self, stream: StreamId, parcel: Parcel<Report>) {
        let at = self.now + self.delay();
        match self.is_lost(stream) {
            true => self.network.reset(&mut self.agenda, stream, at),
            false => self.network.send_up(&mut self.agenda, stream, at, parcel),
        }
    }

    /// Whether this is the message at which a stream breaks.
    fn is_lost(&mut self, stream: StreamId) -> bool {
        let lost = !self.calm && self.rng.u32(0..10_000) < self.options.loss_per_10k;
        if lost {
            self.coordinator.note(|| format!("stream {stream} is lost"));
        }
        lost
    }

    pub(super) fn delay(&mut self) -> Duration {
        let jitter = self.rng.u64(0..=self.options.jitter_us);
        Duration::from_micros(self.options.delay_us + jitter)
    }

    fn deliver(&mut self, id: StreamId, direction: Direction) {
        let stream = &self.network.streams[id];
        let (host, link, incarnation) = (stream.host, stream.link, stream.incarnation);
        let there = &self.hosts[host];
        let frozen = match direction {
            Direction::Down if there.lives(incarnation) => there.frozen_until(self.now),
            _ => None,
        };
        if let Some(until) = there.blocked_until(direction, self.now).max(frozen) {
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
                    _ => self.worker_loses(host, id),
                }
            }
            Direction::Up => {
                let Some(parcel) = self.network.take_up(id) else { return };
                if !self.network.streams[id].coordinator_open {
                    return;
                }
                match parcel {
                    Parcel::Batch(reports) => self.link_hears(link, id, reports),
                    Parcel::End(last) => {
                        self.network.streams[id].coordinator_open = false;
                        // Before the greeting any end is an error.
                        let carries = self.coordinator.fleet.links[link].task == Task::Carrying(id);
                        self.link_cut(link, carries && last == Last::InGoodOrder);
                    }
                    Parcel::Corrupt(attempt) => {
                        self.coordinator_closes(id);
                        self.tell(link, News::Corrupt(attempt));
                        self.link_cut(link, false);
                    }
                    Parcel::Violation(what) => {
                        self.network.streams[id].coordinator_open = false;
                        self.coordinator.note(|| format!("link {link}: {what}"));
                        self.tell(link, News::Refused);
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
                    hello = Some(greeting.clone());
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
            entry.task = Task::Carrying(stream);
            let begun = self.network.streams[stream].begun;
            let round_trip_us = u64::try_from((self.now - begun).as_micros()).unwrap_or(u64::MAX);
            let outbox_stream = entry.outbox_stream;
            let news = News::Attached { stream: outbox_stream, hello, held, round_trip_us };
            self.tell(link, news);
            if self.options.ping_ms > 0 {
                self.agenda.put(self.now, Due::Ping(link, stream));
            }
        }
        self.deliver_to_driver(link, reports);
    }

    /// Keeps what is the link's own of a batch; the driver gets the rest.
    fn deliver_to_driver(&mut self, link: LinkId, mut reports: Vec<Report>) {
        let (mut stamp, mut output_bytes) = (None, 0);
        let entry = &mut self.coordinator.fleet.links[link];
        reports.retain(|report| match report {
            Report::InputGrant(total) => {
                entry.outbox().input_granted(*total);
                false
            }
            Report::Pong(stamp_us) => {
                stamp = Some(Time(*stamp_us));
                false
            }
            Report::Output(part) => {
                output_bytes += part.data.len() as u64;
                true
            }
            Report::Done(done) => {
                output_bytes += done.output.len() as u64;
                true
            }
            _ => true,
        });
        if output_bytes > 0 {
            entry.outbox().output_received(output_bytes, self.now);
        }
        let answered = stamp.and_then(|stamp| entry.outbox().ponged(stamp, self.now));
        if let Some(round_trip) = answered {
            let micros = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
            self.tell(link, News::RoundTrip(micros));
        }
        if !reports.is_empty() {
            self.tell(link, News::Reports(reports));
        }
    }

    /// A side that has heard nothing since a partition began gives the stream up.
    fn keepalive(&mut self, id: StreamId, receiver: Direction, since: Time) {
        let (host, link) = (self.network.streams[id].host, self.network.streams[id].link);
        if !self.hosts[host].is_silent_since(since) {
            return;
        }
        match receiver {
            Direction::Up if self.network.streams[id].coordinator_open => {
                self.coordinator_closes(id);
                self.link_cut(link, false);
            }
            Direction::Down if self.network.streams[id].worker_open => {
                self.worker_closes(id, Parcel::End(Last::Broken));
                self.worker_loses(host, id);
            }
            _ => {}
        }
    }

    /// A job is there, and its input begins to arrive.
    pub(super) fn open_job(&mut self, index: usize) {
        self.coordinator.open_job(index);
        let at = self.now + Duration::from_micros(self.coordinator.jobs[index].input_us);
        self.agenda.put(at, Due::InputArrives(index));
    }

    fn input_arrives(&mut self, index: usize) {
        let job = &mut self.coordinator.jobs[index];
        let more = job.arrive();
        let (id, level, input_us) = (job.id, job.level(), job.input_us);
        self.coordinator
            .events
            .push_back(widemap_sched::event::Event::InputLevel { job: id, level });
        self.coordinator.is_woken = true;
        if more {
            let at = self.now + Duration::from_micros(input_us);
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
