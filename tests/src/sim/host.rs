//! The hosts, what befalls them, and the workers that live there.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use widemap_common::ids::{AttemptId, Incarnation, JobId};
use widemap_common::spec::Runtime;
use widemap_common::time::Time;
use widemap_proto::VERSION;
use widemap_proto::session::{Done, Order, Report, WorkerHello};

use super::agenda::{Due, HostId};
use super::faults::Fault;
use super::network::{Direction, Parcel, StreamId};
use super::oracle::Run;
use super::worker::{Finished, Process, Sending, Session};
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
    /// The chance in ten thousand that a result is not as long as it says.
    pub(super) lies_per_10k: u32,
    pub(super) refuses: bool,
    pub(super) process: Option<Process>,
    partition: Option<Partition>,
    /// When another process starts where one was killed by its work.
    pub(super) restart_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Partition {
    since: Time,
    until: Time,
    down: bool,
    up: bool,
}

impl Host {
    pub(super) fn blocked_until(&self, direction: Direction, now: Time) -> Option<Time> {
        let partition = self.partition.filter(|partition| partition.until > now)?;
        let blocked = match direction {
            Direction::Down => partition.down,
            Direction::Up => partition.up,
        };
        blocked.then_some(partition.until)
    }

    pub(super) fn partitioned_since(&self) -> Option<Time> {
        self.partition.map(|partition| partition.since)
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
        self.hosts.push(Host {
            name,
            slots,
            slots_left: slots,
            pace_percent: 100,
            lies_per_10k: 0,
            refuses: false,
            process: None,
            partition: None,
            restart_after: None,
        });
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
            Fault::Crash { host, restart_after } => {
                if self.hosts[host].process.is_some() {
                    self.crashes += 1;
                    self.kill(host, restart_after);
                }
            }
            Fault::Start(host) => self.start_process(host),
            Fault::Drain { host, restart_after } => self.drain(host, restart_after),
            Fault::Credit { host, slots } => {
                self.hosts[host].slots_left = slots.min(self.hosts[host].slots);
                self.tell_credit(host);
            }
            Fault::Stall(job) => {
                let sink_bytes = self.options.sink_bytes;
                self.coordinator.jobs[job].merge.stall(sink_bytes);
            }
            Fault::Flow(job) => self.coordinator.jobs[job].merge.flow(),
            Fault::Join { slots } => {
                let name = format!("w{}", self.hosts.len());
                let host = self.add_host(name, slots);
                self.hosts[host].restart_after = Some(self.options.restart());
            }
            Fault::Calm => self.calm_down(),
        }
    }

    fn calm_down(&mut self) {
        self.calm = true;
        for job in &mut self.coordinator.jobs {
            job.merge.flow();
        }
        for host in 0..self.hosts.len() {
            let there = &mut self.hosts[host];
            if let Some(partition) = &mut there.partition {
                partition.until = partition.until.min(self.now);
            }
            (there.lies_per_10k, there.refuses) = (0, false);
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
        let since = self.now;
        if self.hosts[host].partition.is_some_and(|partition| partition.until > since) {
            return;
        }
        self.hosts[host].partition = Some(Partition { since, until: since + for_time, down, up });
        let (soonest, latest) = (
            self.timers.keepalive_timeout_ms,
            self.timers.keepalive_ms + self.timers.keepalive_timeout_ms,
        );
        for stream in self.network.living(host) {
            for receiver in [Direction::Down, Direction::Up] {
                let at = since + Duration::from_millis(self.rng.u64(soonest..=latest));
                // Whoever is still cut off by then gives up.
                if at < since + for_time {
                    self.agenda.put(at, Due::Keepalive { stream, receiver, since });
                }
            }
        }
    }

    /// The process dies; what it has sent still arrives.
    fn kill(&mut self, host: HostId, restart_after: Option<Duration>) {
        for stream in self.network.living(host) {
            self.worker_closes(stream, Parcel::End);
        }
        self.hosts[host].process = None;
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

    // ---- The worker at a host ----

    pub(super) fn host_step(&mut self, due: Due) {
        match due {
            Due::WorkerSends(host, incarnation) if self.hosts[host].lives(incarnation) => {
                self.worker_sends(host);
            }
            Due::Heartbeat(host, incarnation) if self.hosts[host].lives(incarnation) => {
                self.heartbeat(host);
            }
            Due::Finish(host, incarnation, attempt) if self.hosts[host].lives(incarnation) => {
                self.finish(host, attempt);
            }
            Due::Gone(host, incarnation, attempt) if self.hosts[host].lives(incarnation) => {
                let process = self.hosts[host].process.as_mut().expect("it lives");
                if let Some(session) = &mut process.session {
                    session.gone(attempt);
                }
                self.after_change(host);
            }
            Due::LeaseEnds { host, incarnation, detached } => {
                let process = self.hosts[host].process.as_mut();
                let process = process.filter(|process| process.incarnation == incarnation);
                if let Some(process) = process {
                    let over = |session: &mut Session| session.detached == Some(detached);
                    process.session.take_if(over);
                    self.after_change(host);
                }
            }
            Due::DrainEnds(host, incarnation) if self.hosts[host].lives(incarnation) => {
                let process = self.hosts[host].process.as_mut().expect("it lives");
                if let Some(session) = &mut process.session {
                    session.cancel_unfinished();
                }
                self.kill(host, None);
            }
            _ => {}
        }
    }

    pub(super) fn worker_hears(&mut self, host: HostId, stream: StreamId, orders: Vec<Order>) {
        for order in orders {
            if let Order::Hello(_) = order {
                self.attach(host, stream);
                continue;
            }
            let process = self.hosts[host].process.as_mut().expect("who hears lives");
            let Some(session) = &mut process.session else { return };
            if session.stream != Some(stream) {
                return;
            }
            if let Err(what) = session.take(order) {
                self.worker_closes(stream, Parcel::Violation(what));
                self.worker_loses(host, stream);
                return;
            }
        }
        self.after_change(host);
    }

    /// A stream begins: another of the same coordinator is replaced.
    fn attach(&mut self, host: HostId, stream: StreamId) {
        let there = &mut self.hosts[host];
        let process = there.process.as_mut().expect("who hears lives");
        if process.draining && process.session.is_none() {
            return self.worker_closes(stream, Parcel::End);
        }
        let hello = Report::Hello(Box::new(WorkerHello {
            version: VERSION,
            build: String::new(),
            name: there.name.clone(),
            incarnation: process.incarnation,
            slots: there.slots,
            runtimes: Runtime::ALL.to_vec(),
            labels: BTreeMap::new(),
            functions: Vec::new(),
            left_out: None,
        }));
        let refuses = there.refuses;
        let session = process.session.get_or_insert_with(|| Session::new(refuses));
        session.set_credit(there.slots_left);
        let former = session.stream.filter(|&former| former != stream);
        session.attach(stream, hello);
        if process.draining {
            session.drain(self.options.drain_ms);
        }
        if let Some(former) = former {
            self.worker_closes(former, Parcel::End);
        }
    }

    pub(super) fn worker_closes(&mut self, stream: StreamId, last: Parcel<Report>) {
        if std::mem::replace(&mut self.network.streams[stream].worker_open, false) {
            let at = self.now + self.delay();
            self.network.send_up(&mut self.agenda, stream, at, last);
        }
    }

    /// A stream has ended on the worker's side: it goes on without, until its lease is over.
    pub(super) fn worker_loses(&mut self, host: HostId, stream: StreamId) {
        self.network.streams[stream].worker_open = false;
        let Some(process) = &mut self.hosts[host].process else { return };
        let incarnation = process.incarnation;
        let Some(session) = &mut process.session else { return };
        if session.stream == Some(stream) {
            (session.stream, session.detached) = (None, Some(self.now));
            let lease_ms = self.timers.lease_ms - self.timers.lease_margin_ms;
            let at = self.now + Duration::from_millis(lease_ms);
            self.agenda.put(at, Due::LeaseEnds { host, incarnation, detached: self.now });
        }
        self.after_change(host);
    }

    /// Starts what can start, and sees to it that what is to be said is said.
    fn after_change(&mut self, host: HostId) {
        let now = self.now;
        let Some(process) = &mut self.hosts[host].process else { return };
        let incarnation = process.incarnation;
        let drained = process.draining
            && process.session.as_ref().is_none_or(|session| {
                !(session.has_attempts() || session.stream.is_some() && session.has_reports())
            });
        if drained {
            return self.kill(host, None);
        }
        let Some(session) = &mut process.session else { return };
        for attempt in session.take_cancelled() {
            let at = now + Duration::from_micros(self.options.kill_us);
            self.agenda.put(at, Due::Gone(host, incarnation, attempt));
        }
        let started = session.start(now);
        let has_stream = session.stream.is_some();
        if has_stream && session.has_reports() && !process.send_is_due {
            process.send_is_due = true;
            let at = now + Duration::from_micros(self.options.send_us);
            self.agenda.put(at, Due::WorkerSends(host, incarnation));
        }
        if has_stream && session.has_running() && !process.heartbeat_is_due {
            process.heartbeat_is_due = true;
            let at = now + Duration::from_millis(self.timers.heartbeat_ms);
            self.agenda.put(at, Due::Heartbeat(host, incarnation));
        }
        for (attempt, job, range) in started {
            let (cost_us, _) = self.coordinator.job(job).oracle.cost_us(range);
            let cost_us = cost_us * self.hosts[host].pace_percent / 100;
            self.note_overlap(host, job, range);
            self.coordinator.job(job).started.push(range);
            let at = now + Duration::from_micros(cost_us);
            self.agenda.put(at, Due::Finish(host, incarnation, attempt));
        }
    }

    /// Counts what runs in two places at once, where nobody asked for it.
    fn note_overlap(&mut self, host: HostId, job: JobId, range: widemap_common::ids::ItemRange) {
        if self.coordinator.job(job).policy.speculate {
            return;
        }
        let elsewhere = self.hosts.iter().enumerate().filter(|(other, _)| *other != host);
        let mut running = elsewhere.filter_map(|(_, there)| there.session());
        let overlaps = |session: &Session| {
            session.all_running().any(|(of, other)| of == job && other.contains(range.first))
        };
        self.overlaps += u64::from(running.any(overlaps));
    }

    fn finish(&mut self, host: HostId, id: AttemptId) {
        let there = &mut self.hosts[host];
        let process = there.process.as_mut().expect("it lives");
        let Some(session) = process.session.as_mut() else { return };
        let ending = session.ending(id);
        let Some((job, range)) = session.running(id).or(ending) else { return };
        // What has ended and was not sent yet makes this one look as if it waited.
        let all_said = !session.has_reports();
        let state = &mut self.coordinator.jobs[job.0 as usize];
        let (cost_us, poison) = state.oracle.cost_us(range);
        if let Some(item) = poison {
            let known = self.coordinator.attempts.contains_key(&id);
            let seen = known && all_said && self.is_attached(host);
            self.coordinator.jobs[job.0 as usize].oracle.killed(item, seen);
            self.coordinator.note(|| format!("item {item} kills host {host}"));
            self.poison_deaths += 1;
            let restart_after = self.hosts[host].restart_after;
            return self.kill(host, restart_after);
        }
        if ending.is_some() {
            session.gone(id);
            return self.after_change(host);
        }
        let Run { output, faults } = state.oracle.run(range);
        let lies = self.rng.u32(0..10_000) < there.lies_per_10k;
        let done = Done {
            attempt: id,
            output: Bytes::new(),
            output_bytes: output.len() as u64 + u64::from(lies),
            busy_us: cost_us * there.pace_percent / 100,
            item_lengths: Bytes::new(),
            item_micros: Bytes::new(),
            faults,
            stderr: Vec::new(),
        };
        session.finish(id, Box::new(Finished { output, done }));
        self.after_change(host);
    }

    fn heartbeat(&mut self, host: HostId) {
        let now = self.now;
        let process = self.hosts[host].process.as_mut().expect("it lives");
        process.heartbeat_is_due = false;
        if let Some(session) = &mut process.session
            && session.stream.is_some()
        {
            session.heartbeat(now);
        }
        self.after_change(host);
    }

    fn worker_sends(&mut self, host: HostId) {
        let sending = Sending {
            part_bytes: self.options.part_bytes as u64,
            batch_entries: self.options.batch_entries,
            twice: self.options.twice_per_10k,
        };
        let process = self.hosts[host].process.as_mut().expect("it lives");
        process.send_is_due = false;
        let Some(session) = &mut process.session else { return };
        let Some(stream) = session.stream else { return };
        let batch = session.batch(sending, &mut self.rng);
        if batch.is_empty() {
            // Nothing of it is granted: an order will come first.
            return;
        }
        self.send(stream, Direction::Up, |network, agenda, at| {
            network.send_up(agenda, stream, at, Parcel::Batch(batch));
        });
        self.after_change(host);
    }

    pub(super) fn describe_hosts(&self) -> String {
        let describe = |(id, host): (HostId, &Host)| {
            let state = match (&host.process, host.session()) {
                (None, _) => "dead".to_owned(),
                (_, None) => "no session".to_owned(),
                (_, Some(session)) => format!("{session:?}"),
            };
            format!("{id} {}: {state}", host.name)
        };
        let mut lines: Vec<_> = self.hosts.iter().enumerate().map(describe).collect();
        let links = self.coordinator.fleet.links.iter();
        lines.extend(links.map(|link| format!("{link:?}")));
        lines.join("\n")
    }
}
