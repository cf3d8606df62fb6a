//! The hosts, and what befalls them.

use std::time::Duration;

use widemap_common::ids::Incarnation;
use widemap_common::time::Time;

use super::agenda::{Due, HostId};
use super::faults::Fault;
use super::network::{Direction, Last, Parcel};
use super::worker::{Process, Session};
use super::world::World;

/// An address, and whatever lives there.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) slots: u32,
    /// What other coordinators leave of the slots.
    pub(super) slots_left: u32,
    /// How much slower than others it is, in percent of their time.
    pub(super) pace_percent: u64,
    /// The chance in ten thousand that a result is not as long as it says, and that its bytes arrive
    /// changed.
    pub(super) lies_per_10k: u32,
    pub(super) corrupts_per_10k: u32,
    pub(super) refuses: bool,
    pub(super) process: Option<Process>,
    partition: Option<Partition>,
    /// Its process neither works nor speaks for a time.
    frozen: Option<Span>,
    /// When another process starts where one was killed by its work.
    pub(super) restart_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    since: Time,
    until: Time,
}

#[derive(Clone, Copy, Debug)]
struct Partition {
    span: Span,
    down: bool,
    up: bool,
}

impl Host {
    fn new(name: String, slots: u32) -> Self {
        Self {
            name,
            slots,
            slots_left: slots,
            pace_percent: 100,
            lies_per_10k: 0,
            corrupts_per_10k: 0,
            refuses: false,
            process: None,
            partition: None,
            frozen: None,
            restart_after: None,
        }
    }

    pub(super) fn blocked_until(&self, direction: Direction, now: Time) -> Option<Time> {
        let partition = self.partition.filter(|partition| partition.span.until > now)?;
        let blocked = match direction {
            Direction::Down => partition.down,
            Direction::Up => partition.up,
        };
        blocked.then_some(partition.span.until)
    }

    /// When its process goes on, if it is stopped.
    pub(super) fn frozen_until(&self, now: Time) -> Option<Time> {
        self.frozen.filter(|span| span.until > now).map(|span| span.until)
    }

    /// Whether nobody has heard of it since then.
    pub(super) fn is_silent_since(&self, since: Time) -> bool {
        let spans = [self.partition.map(|partition| partition.span), self.frozen];
        spans.into_iter().flatten().any(|span| span.since == since)
    }

    pub(super) fn lives(&self, incarnation: Incarnation) -> bool {
        self.process.as_ref().is_some_and(|process| process.incarnation == incarnation)
    }

    pub(super) fn session(&self) -> Option<&Session> {
        self.process.as_ref()?.session.as_ref()
    }
}

impl World {
    pub(super) fn add_host(&mut self, name: String, slots: u32) -> HostId {
        self.hosts.push(Host::new(name, slots));
        let host = self.hosts.len() - 1;
        self.start_process(host);
        let link = self.coordinator.fleet.add_link(host);
        self.agenda.put(self.now, Due::Dial(link));
        host
    }

    pub(super) fn start_process(&mut self, host: HostId) {
        if self.hosts[host].process.is_none() {
            let incarnation = Incarnation(self.rng.u64(..));
            self.hosts[host].process = Some(Process::new(incarnation));
        }
    }

    /// Something befalls the cluster.
    pub(super) fn befall(&mut self, fault: Fault) {
        self.coordinator.note(|| format!("{fault:?}"));
        match fault {
            Fault::Reset(host) => {
                for stream in self.network.living(host) {
                    let at = self.now + self.delay();
                    self.network.reset(&mut self.agenda, stream, at);
                }
            }
            Fault::Partition { host, down, up, for_time } => {
                self.partition(host, down, up, for_time);
            }
            Fault::Freeze { host, for_time } => self.freeze(host, for_time),
            Fault::Crash { host, restart_after } => {
                if self.hosts[host].process.is_some() {
                    self.crashes += 1;
                    self.kill(host, Last::Broken, restart_after);
                }
            }
            Fault::Start(host) => self.start_process(host),
            Fault::Drain { host, restart_after } => self.drain(host, restart_after),
            Fault::Credit { host, slots } => {
                self.hosts[host].slots_left = slots.min(self.hosts[host].slots);
                self.tell_credit(host);
            }
            Fault::Stall(job) => self.coordinator.jobs[job].results.stall(self.options.sink_steps),
            Fault::Flow(job) => self.flow(job),
            Fault::Join { slots } => {
                let name = format!("w{}", self.hosts.len());
                let host = self.add_host(name, slots);
                self.hosts[host].restart_after = Some(self.options.restart());
            }
            Fault::Open(job) => self.open_job(job),
            Fault::Cancel(job) => self.coordinator.cancel_job(job),
            Fault::Calm => self.calm_down(),
        }
    }

    fn flow(&mut self, job: usize) {
        self.coordinator.jobs[job].results.flow();
        self.coordinator.is_woken = true;
    }

    fn calm_down(&mut self) {
        self.calm = true;
        for job in 0..self.coordinator.jobs.len() {
            self.flow(job);
        }
        for host in 0..self.hosts.len() {
            let there = &mut self.hosts[host];
            if let Some(partition) = &mut there.partition {
                partition.span.until = partition.span.until.min(self.now);
            }
            if let Some(span) = &mut there.frozen {
                span.until = span.until.min(self.now);
            }
            (there.lies_per_10k, there.corrupts_per_10k, there.refuses) = (0, 0, false);
            there.slots_left = there.slots;
            there.restart_after = Some(self.options.restart());
            if there.process.is_none() {
                self.agenda.put(self.now, Due::Fault(Fault::Start(host)));
            }
            self.tell_credit(host);
        }
    }

    fn tell_credit(&mut self, host: HostId) {
        let there = &mut self.hosts[host];
        let slots = there.slots_left;
        let session = there.process.as_mut().and_then(|process| process.session.as_mut());
        if let Some(session) = session {
            session.set_credit(slots);
            self.after_change(host);
        }
    }

    fn partition(&mut self, host: HostId, down: bool, up: bool, for_time: Duration) {
        let span = Span { since: self.now, until: self.now + for_time };
        if self.hosts[host].partition.is_some_and(|partition| partition.span.until > span.since) {
            return;
        }
        self.hosts[host].partition = Some(Partition { span, down, up });
        self.expect_silence(host, span, &[Direction::Down, Direction::Up]);
    }

    /// The process stops, as by a signal; its system still takes what arrives.
    fn freeze(&mut self, host: HostId, for_time: Duration) {
        let span = Span { since: self.now, until: self.now + for_time };
        if self.hosts[host].frozen_until(self.now).is_none() {
            self.hosts[host].frozen = Some(span);
            self.expect_silence(host, span, &[Direction::Up]);
        }
    }

    /// Whoever receives nothing for long enough gives a stream up.
    fn expect_silence(&mut self, host: HostId, span: Span, receivers: &[Direction]) {
        let (soonest, latest) = (
            self.timers.keepalive_timeout_ms,
            self.timers.keepalive_ms + self.timers.keepalive_timeout_ms,
        );
        for stream in self.network.living(host) {
            for &receiver in receivers {
                let at = span.since + Duration::from_millis(self.rng.u64(soonest..=latest));
                if at < span.until {
                    self.agenda.put(at, Due::Keepalive { stream, receiver, since: span.since });
                }
            }
        }
    }

    /// The process dies; what it has sent still arrives.
    pub(super) fn kill(&mut self, host: HostId, last: Last, restart_after: Option<Duration>) {
        for stream in self.network.living(host) {
            self.worker_closes(stream, Parcel::End(last));
        }
        self.hosts[host].process = None;
        self.hosts[host].frozen = None;
        // Where all is well, whoever went comes back.
        let restart_after = restart_after.or_else(|| self.calm.then(|| self.options.restart()));
        if let Some(after) = restart_after {
            self.agenda.put(self.now + after, Due::Fault(Fault::Start(host)));
        }
    }

    fn drain(&mut self, host: HostId, restart_after: Option<Duration>) {
        let drain_ms = self.options.drain_ms;
        let Some(process) = &mut self.hosts[host].process else { return };
        if std::mem::replace(&mut process.draining, true) {
            return;
        }
        let incarnation = process.incarnation;
        if let Some(session) = &mut process.session {
            session.drain(drain_ms);
        }
        let at = self.now + Duration::from_millis(drain_ms);
        self.agenda.put(at, Due::DrainEnds(host, incarnation));
        if let Some(after) = restart_after {
            self.agenda.put(at + after, Due::Fault(Fault::Start(host)));
        }
        self.after_change(host);
    }
}
