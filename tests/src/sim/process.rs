//! The worker at a host: hears orders, runs attempts in simulated time, reports.

use std::collections::BTreeMap;
use std::time::Duration;

use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::limits::DRAIN_ACCEPT_MS;
use widemap_common::spec::Runtime;
use widemap_common::time::Time;
use widemap_proto::VERSION;
use widemap_proto::session::{Order, Report, WorkerHello};

use super::agenda::{Due, HostId};
use super::held::Running;
use super::host::Host;
use super::network::{Last, Parcel, StreamId};
use super::reports::Sending;
use super::worker::Session;
use super::world::World;

impl World {
    pub(super) fn host_step(&mut self, due: Due) {
        let (Due::WorkerSends(host, incarnation)
        | Due::Heartbeat(host, incarnation)
        | Due::Work(host, incarnation, _)
        | Due::Gone(host, incarnation, _)
        | Due::LeaseEnds(host, incarnation)
        | Due::DrainEnds(host, incarnation)
        | Due::DrainGivesUp(host, incarnation)) = due
        else {
            unreachable!("everything else is not a host's");
        };
        if !self.hosts[host].lives(incarnation) {
            return;
        }
        if let Some(until) = self.hosts[host].frozen_until(self.now) {
            return self.agenda.put(until, due);
        }
        match due {
            Due::WorkerSends(..) => self.worker_sends(host),
            Due::Heartbeat(..) => self.heartbeat(host),
            Due::Work(_, _, attempt) => self.work(host, attempt),
            Due::Gone(_, _, attempt) => {
                self.with_session(host, |session| session.gone(attempt));
            }
            Due::LeaseEnds(..) => self.lease_ends(host),
            Due::DrainEnds(..) => {
                self.with_session(host, Session::cancel_unfinished);
                let at =
                    self.now + Duration::from_millis(DRAIN_ACCEPT_MS.min(self.options.drain_ms));
                self.agenda.put(at, Due::DrainGivesUp(host, incarnation));
            }
            Due::DrainGivesUp(..) => self.kill(host, Last::InGoodOrder, None),
            _ => unreachable!("listed above"),
        }
    }

    fn with_session(&mut self, host: HostId, change: impl FnOnce(&mut Session)) {
        let process = self.hosts[host].process.as_mut();
        if let Some(session) = process.and_then(|process| process.session.as_mut()) {
            change(session);
        }
        self.after_change(host);
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
        let hello = Report::Hello(Box::new(hello(there)));
        let process = there.process.as_mut().expect("who hears lives");
        if process.draining && process.session.is_none() {
            return self.worker_closes(stream, Parcel::End(Last::Broken));
        }
        let (input, output) = (self.options.input_bounds, self.options.output_bounds);
        let refuses = there.refuses;
        let fresh = process.session.is_none();
        let session = process.session.get_or_insert_with(|| Session::new(refuses, input, output));
        if fresh {
            session.heard = self.now;
        }
        session.set_credit(there.slots_left);
        let former = session.stream.filter(|&former| former != stream);
        session.attach(stream, hello);
        if process.draining {
            session.drain(self.options.drain_ms);
        }
        if let Some(former) = former {
            self.worker_closes(former, Parcel::End(Last::InGoodOrder));
        }
        self.watch_lease(host);
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
        let Some(session) = &mut process.session else { return };
        if session.stream == Some(stream) {
            (session.stream, session.detached) = (None, Some(self.now));
        }
        self.watch_lease(host);
        self.after_change(host);
    }

    /// The lease is over, unless the coordinator was heard meanwhile.
    fn lease_ends(&mut self, host: HostId) {
        let end = self.lease_end(host);
        let Some(process) = &mut self.hosts[host].process else { return };
        let Some(session) = &mut process.session else { return };
        session.lease_is_due = false;
        if end.is_some_and(|end| end <= self.now) {
            process.session = None;
        }
        self.watch_lease(host);
        self.after_change(host);
    }

    /// When a worker that is cut off gives its coordinator up: counted from what was heard last.
    fn lease_end(&self, host: HostId) -> Option<Time> {
        let session = self.hosts[host].session()?;
        let detached = session.detached?;
        let since = if self.options.ping_ms > 0 { session.heard } else { detached };
        let lease_ms = self.timers.lease_ms - self.timers.lease_margin_ms;
        Some(since + Duration::from_millis(lease_ms))
    }

    fn watch_lease(&mut self, host: HostId) {
        let Some(end) = self.lease_end(host) else { return };
        let Some(process) = &mut self.hosts[host].process else { return };
        let incarnation = process.incarnation;
        let Some(session) = &mut process.session else { return };
        if !std::mem::replace(&mut session.lease_is_due, true) {
            self.agenda.put(end.max(self.now), Due::LeaseEnds(host, incarnation));
        }
    }

    /// Starts what can start, and sees to it that what is to be said is said.
    pub(super) fn after_change(&mut self, host: HostId) {
        let now = self.now;
        let Some(process) = &mut self.hosts[host].process else { return };
        let incarnation = process.incarnation;
        let drained = process.draining
            && process.session.as_ref().is_none_or(|session| {
                !(session.has_attempts() || session.stream.is_some() && session.has_reports())
            });
        if drained {
            return self.kill(host, Last::InGoodOrder, None);
        }
        let Some(session) = &mut process.session else { return };
        for attempt in session.take_cancelled() {
            let at = now + Duration::from_micros(self.options.kill_us);
            self.agenda.put(at, Due::Gone(host, incarnation, attempt));
        }
        for attempt in session.take_unstalled() {
            self.agenda.put(now, Due::Work(host, incarnation, attempt));
        }
        let started = session.start(now);
        session.grant_input();
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
            self.begin(host, attempt, job, range);
        }
    }

    fn begin(&mut self, host: HostId, attempt: AttemptId, job: JobId, range: ItemRange) {
        self.note_overlap(host, job, range);
        let state = self.coordinator.job(job);
        state.started.push(range);
        let run = state.oracle.run(range);
        let most = self.options.pieces_max;
        let pieces = if most > 1 { self.rng.u64(1..=most) } else { 1 };
        let process = self.hosts[host].process.as_mut().expect("what runs lives");
        let incarnation = process.incarnation;
        let session = process.session.as_mut().expect("what runs has a session");
        session.run(attempt, Running { run, pieces, made: 0, is_stalled: false });
        let at = self.now + Duration::from_micros(self.piece_us(host, job, range, pieces));
        self.agenda.put(at, Due::Work(host, incarnation, attempt));
    }

    /// How long one piece of an attempt's output takes there.
    fn piece_us(&mut self, host: HostId, job: JobId, range: ItemRange, pieces: u64) -> u64 {
        let (cost_us, _) = self.coordinator.job(job).oracle.cost_us(range);
        (cost_us * self.hosts[host].pace_percent / 100 / pieces).max(1)
    }

    /// Counts what runs in two places at once, where nobody asked for it.
    fn note_overlap(&mut self, host: HostId, job: JobId, range: ItemRange) {
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

    /// A running attempt has made another piece of its output, or comes to its end.
    fn work(&mut self, host: HostId, id: AttemptId) {
        let there = &mut self.hosts[host];
        let process = there.process.as_mut().expect("it lives");
        let incarnation = process.incarnation;
        let Some(session) = process.session.as_mut() else { return };
        let ending = session.ending(id);
        let Some((job, range)) = session.running(id).or(ending) else { return };
        if ending.is_none() && !session.is_at_last_piece(id) {
            if session.print(id) {
                let pieces = session.pieces(id);
                let at = self.now + Duration::from_micros(self.piece_us(host, job, range, pieces));
                self.agenda.put(at, Due::Work(host, incarnation, id));
            }
            return self.after_change(host);
        }
        let (cost_us, poison) = self.coordinator.job(job).oracle.cost_us(range);
        if let Some(item) = poison {
            return self.poisoned(host, id, job, item);
        }
        let there = &mut self.hosts[host];
        let lies = self.rng.u32(0..10_000) < there.lies_per_10k;
        let busy_us = cost_us * there.pace_percent / 100;
        self.with_session(host, |session| match ending {
            Some(_) => session.gone(id),
            None => session.finish(id, busy_us, u64::from(lies)),
        });
    }

    /// An item kills the process that runs it.
    fn poisoned(&mut self, host: HostId, attempt: AttemptId, job: JobId, item: u64) {
        // What has ended and was not sent yet makes this one look as if it waited.
        let all_said = self.hosts[host].session().is_some_and(Session::is_all_said);
        let known = self.coordinator.attempts.contains_key(&attempt);
        let seen = known && all_said && self.is_attached(host);
        self.coordinator.job(job).oracle.killed(item, seen);
        self.coordinator.note(|| format!("item {item} of {job} kills host {host}"));
        self.poison_deaths += 1;
        let restart_after = self.hosts[host].restart_after;
        self.kill(host, Last::Broken, restart_after);
    }

    fn heartbeat(&mut self, host: HostId) {
        let now = self.now;
        if let Some(process) = &mut self.hosts[host].process {
            process.heartbeat_is_due = false;
        }
        self.with_session(host, |session| {
            if session.stream.is_some() {
                session.heartbeat(now);
            }
        });
    }

    fn worker_sends(&mut self, host: HostId) {
        let sending = Sending {
            batch_bytes: self.options.batch_bytes,
            batch_entries: self.options.batch_entries,
            twice_per_10k: self.options.twice_per_10k,
            output: self.options.output_bounds,
        };
        let there = &mut self.hosts[host];
        let corrupts = self.rng.u32(0..10_000) < there.corrupts_per_10k;
        let process = there.process.as_mut().expect("it lives");
        process.send_is_due = false;
        let Some(session) = &mut process.session else { return };
        let Some(stream) = session.stream else { return };
        let batch = session.batch(sending, &mut self.rng);
        if !batch.is_empty() {
            let payload = batch.iter().find_map(|report| match report {
                Report::Done(done) if !done.output.is_empty() => Some(done.attempt),
                Report::Output(part) => Some(part.attempt),
                _ => None,
            });
            let parcel = match payload.filter(|_| corrupts) {
                Some(attempt) => Parcel::Corrupt(attempt),
                None => Parcel::Batch(batch),
            };
            self.send_up(stream, parcel);
        }
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

fn hello(there: &Host) -> WorkerHello {
    WorkerHello {
        version: VERSION,
        build: String::new(),
        name: there.name.clone(),
        incarnation: there.process.as_ref().expect("who greets lives").incarnation,
        slots: there.slots,
        runtimes: Runtime::ALL.to_vec(),
        labels: BTreeMap::new(),
        functions: Vec::new(),
        left_out: None,
        clock_ms: None,
    }
}
