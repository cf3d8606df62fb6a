//! How much payload may be on the way to one worker and back, unanswered: no more than arrives within
//! a moment.
//!
//! Control goes before payload, but not past what has been handed to the stream already: sockets and
//! routers hold megabytes. Over a slow network that is a minute, in which the worker hears no ping and
//! a connection that is only slow is taken for one that is silent. So each way has a window that
//! follows what is seen of the network. Output counts as it comes; behind every part of the input goes
//! a ping, and its answer tells that the part has arrived.

use std::collections::VecDeque;
use std::time::Duration;

use widemap_common::limits::PINGS_MAX;
use widemap_common::time::{Time, Timers};

/// A window moves by this part of itself.
const STEPS: u64 = 8;

/// The window there fills a half of the patience, that back all of it: each sees the queue of the other
/// in its own round trip, and the way back must grow beside a way there that is full.
const PART_THERE: f64 = 0.5;

/// A round trip of more than so many times the patience is late, and both windows shrink.
const LATE: f64 = 1.5;

/// How the windows are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PaceBounds {
    /// What each way may have on the way in any case, and at first.
    pub window_bytes: u64,
    /// How long a round trip may take for the payload that is on the way.
    pub patience: Duration,
}

impl PaceBounds {
    /// The patience with which a round trip that is not late is far from the end of a lease, and
    /// shorter than keepalive waits.
    pub(super) fn patience(timers: &Timers) -> Duration {
        Duration::from_millis((timers.lease_ms / 10).min(timers.keepalive_timeout_ms * 2 / 5))
    }
}

/// Payload of one stream, both ways.
#[derive(Debug)]
pub(super) struct Pace {
    patience: Duration,
    there: Way,
    back: Way,
    sent_total: u64,
    /// What of it was sent before the last ping, and what is known to have arrived.
    pinged_total: u64,
    answered_total: u64,
    received_total: u64,
    /// Pings whose answers are waited for, in the order in which they were sent.
    pings: VecDeque<Ping>,
    shrunk: Time,
}

/// One way.
#[derive(Debug)]
struct Way {
    window_bytes: u64,
    least_bytes: u64,
    /// What has arrived of a window, and since when.
    arrived_bytes: u64,
    since: Time,
}

/// A ping on its way.
#[derive(Debug)]
struct Ping {
    stamp: Time,
    /// Whether somebody asked for the round trip, or it only follows the payload.
    is_asked_for: bool,
    sent_total: u64,
}

impl Pace {
    pub(super) fn new(bounds: PaceBounds) -> Self {
        Self {
            patience: bounds.patience,
            there: Way::new(bounds.window_bytes),
            back: Way::new(bounds.window_bytes),
            sent_total: 0,
            pinged_total: 0,
            answered_total: 0,
            received_total: 0,
            pings: VecDeque::new(),
            shrunk: Time::ZERO,
        }
    }

    /// How much may be sent at once; nothing if enough is on the way.
    pub(super) fn room(&self) -> u64 {
        let unanswered = self.sent_total - self.answered_total;
        if unanswered < self.there.window_bytes { self.there.step() } else { 0 }
    }

    /// So many bytes were sent.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.sent_total += bytes;
    }

    /// So many bytes came back.
    pub(super) fn received(&mut self, bytes: u64, now: Time) {
        self.received_total += bytes;
        self.back.arrived(bytes, now, self.patience);
    }

    /// The total that may come back for now.
    pub(super) fn grantable(&self) -> u64 {
        self.received_total + self.back.window_bytes
    }

    /// What such a grant must have moved by to be worth an order.
    pub(super) fn grant_step(&self) -> u64 {
        self.back.step()
    }

    /// Whether enough was sent since the last ping for another.
    pub(super) fn wants_ping(&self) -> bool {
        let is_due = self.sent_total - self.pinged_total >= self.there.step();
        is_due && self.pings.len() < PINGS_MAX
    }

    /// A ping is sent now.
    pub(super) fn pinged(&mut self, now: Time, is_asked_for: bool) {
        if self.pings.len() == PINGS_MAX {
            // The answer to the next one says what that to this one would.
            self.pings.pop_back();
        }
        self.pinged_total = self.sent_total;
        self.pings.push_back(Ping { stamp: now, is_asked_for, sent_total: self.sent_total });
    }

    /// When the oldest ping was sent that is not answered.
    pub(super) fn oldest_ping(&self) -> Option<Time> {
        self.pings.front().map(|ping| ping.stamp)
    }

    /// A ping has been answered, and with it all before. Gives the round trip, if somebody asked for
    /// it.
    pub(super) fn answered(&mut self, stamp: Time, now: Time) -> Option<Duration> {
        let (mut last, mut is_asked_for) = (None, false);
        while let Some(ping) = self.pings.pop_front_if(|ping| ping.stamp <= stamp) {
            is_asked_for |= ping.is_asked_for;
            last = Some(ping);
        }
        let ping = last?;
        let round_trip = now.since(ping.stamp);
        let arrived_bytes = ping.sent_total - self.answered_total;
        self.there.arrived(arrived_bytes, now, self.patience.mul_f64(PART_THERE));
        self.answered_total = ping.sent_total;
        // What was sent before the windows shrank says nothing of how they are now.
        if round_trip > self.patience.mul_f64(LATE) && ping.stamp >= self.shrunk {
            let kept = self.patience.as_secs_f64() / round_trip.as_secs_f64();
            self.there.shrink(kept);
            self.back.shrink(kept);
            self.shrunk = now;
        }
        is_asked_for.then_some(round_trip)
    }
}

impl Way {
    fn new(window_bytes: u64) -> Self {
        Self { window_bytes, least_bytes: window_bytes, arrived_bytes: 0, since: Time::ZERO }
    }

    /// So much of what was on the way has arrived. The window grows to what arrives `within` a time;
    /// when nothing was to be sent for a while, that does not show in the next one.
    fn arrived(&mut self, bytes: u64, now: Time, within: Duration) {
        self.arrived_bytes += bytes;
        if self.arrived_bytes < self.window_bytes {
            return;
        }
        let times = within.as_secs_f64() / now.since(self.since).as_secs_f64().max(1e-6);
        let arriving = (self.arrived_bytes as f64 * times) as u64;
        self.window_bytes = arriving.clamp(self.window_bytes, 2 * self.window_bytes);
        (self.arrived_bytes, self.since) = (0, now);
    }

    /// So much of the window is kept.
    fn shrink(&mut self, kept: f64) {
        self.window_bytes = ((self.window_bytes as f64 * kept) as u64).max(self.least_bytes);
    }

    fn step(&self) -> u64 {
        (self.window_bytes / STEPS).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: PaceBounds =
        PaceBounds { window_bytes: 100_000, patience: Duration::from_secs(2) };

    /// A network that carries so many bytes a second each way, and holds what waits. Input is always
    /// there to be sent, and answered with as much output.
    struct Network {
        pace: Pace,
        bytes_per_second: u64,
        now: Time,
        /// What waits there and back, in the order in which it was sent: payload and control.
        there: VecDeque<Sent>,
        back: VecDeque<Sent>,
        told: u64,
        granted: u64,
        output_sent: u64,
        output_waits: u64,
    }

    #[derive(Clone, Copy)]
    enum Sent {
        Payload(u64),
        Ping(Time),
        Grant(u64),
    }

    const TICK: Duration = Duration::from_millis(10);

    impl Network {
        fn new(bytes_per_second: u64) -> Self {
            Self {
                pace: Pace::new(BOUNDS),
                bytes_per_second,
                now: Time::ZERO,
                there: VecDeque::new(),
                back: VecDeque::new(),
                told: 0,
                granted: 0,
                output_sent: 0,
                output_waits: 0,
            }
        }

        /// Runs for a time; gives what came back in it and the longest time that a ping took.
        fn run(&mut self, time: Duration) -> (u64, Duration) {
            let (end, before) = (self.now + time, self.pace.received_total);
            let mut longest = Duration::ZERO;
            while self.now < end {
                self.now = self.now + TICK;
                self.send();
                let carried = (self.bytes_per_second as f64 * TICK.as_secs_f64()) as u64;
                for sent in carry(&mut self.there, carried) {
                    match sent {
                        Sent::Payload(bytes) => self.output_waits += bytes,
                        ping @ Sent::Ping(_) => self.back.push_back(ping),
                        Sent::Grant(total) => self.granted = total,
                    }
                }
                let output = self.output_waits.min(self.granted - self.output_sent);
                (self.output_waits, self.output_sent) =
                    (self.output_waits - output, self.output_sent + output);
                self.back.push_back(Sent::Payload(output));
                for sent in carry(&mut self.back, carried) {
                    match sent {
                        Sent::Payload(bytes) => self.pace.received(bytes, self.now),
                        Sent::Ping(stamp) => {
                            longest = longest.max(self.now.since(stamp));
                            self.pace.answered(stamp, self.now);
                        }
                        Sent::Grant(_) => unreachable!("only the way there has them"),
                    }
                }
            }
            (self.pace.received_total - before, longest)
        }

        fn send(&mut self) {
            if self.pace.grantable() >= self.told + self.pace.grant_step() {
                self.told = self.pace.grantable();
                self.there.push_back(Sent::Grant(self.told));
            }
            loop {
                let bytes = self.pace.room();
                if bytes == 0 {
                    return;
                }
                self.pace.sent(bytes);
                self.there.push_back(Sent::Payload(bytes));
                if self.pace.wants_ping() {
                    self.pace.pinged(self.now, false);
                    self.there.push_back(Sent::Ping(self.now));
                }
            }
        }
    }

    /// What arrives of a queue within one tick.
    fn carry(queue: &mut VecDeque<Sent>, mut bytes: u64) -> Vec<Sent> {
        let mut arrived = Vec::new();
        while let Some(sent) = queue.front_mut() {
            match sent {
                Sent::Payload(waits) if *waits > bytes => {
                    *waits -= bytes;
                    arrived.push(Sent::Payload(bytes));
                    return arrived;
                }
                Sent::Payload(waits) => bytes -= *waits,
                Sent::Ping(_) | Sent::Grant(_) => {}
            }
            arrived.extend(queue.pop_front());
        }
        arrived
    }

    #[test]
    fn over_any_network_pings_take_no_longer_than_a_moment() {
        for bytes_per_second in [100_000, 1_000_000, 100_000_000] {
            let mut network = Network::new(bytes_per_second);
            network.run(Duration::from_secs(30));
            let (came_bytes, longest) = network.run(Duration::from_secs(100));
            println!("{bytes_per_second}: {} a second, {longest:?}", came_bytes / 100);
            assert!(longest <= BOUNDS.patience.mul_f64(LATE), "{longest:?}");
            // Both ways at once, each worth most of what the network carries.
            assert!(came_bytes >= 90 * bytes_per_second, "{came_bytes}");
        }
    }

    #[test]
    fn a_network_that_becomes_slow_is_followed() {
        let mut network = Network::new(10_000_000);
        network.run(Duration::from_secs(30));
        network.bytes_per_second = 200_000;
        network.run(Duration::from_secs(200));
        let (came_bytes, longest) = network.run(Duration::from_secs(100));
        println!("{} a second, {longest:?}", came_bytes / 100);
        assert!(longest <= BOUNDS.patience.mul_f64(LATE), "{longest:?}");
        assert!(came_bytes >= 60 * 200_000, "{came_bytes}");
    }

    #[test]
    fn only_a_round_trip_that_was_asked_for_is_told() {
        let mut pace = Pace::new(BOUNDS);
        pace.pinged(Time(1_000), true);
        pace.pinged(Time(2_000), false);
        assert_eq!(pace.answered(Time(1_000), Time(5_000)), Some(Duration::from_millis(4)));
        assert_eq!(pace.answered(Time(2_000), Time(6_000)), None);
        // One that nobody has sent.
        assert_eq!(pace.answered(Time(9_000), Time(9_000)), None);
    }

    #[test]
    fn the_oldest_ping_is_remembered_however_many_follow() {
        let mut pace = Pace::new(BOUNDS);
        assert_eq!(pace.oldest_ping(), None);
        (1..=2 * PINGS_MAX as u64).for_each(|stamp| pace.pinged(Time(stamp), true));
        assert_eq!(pace.oldest_ping(), Some(Time(1)));
        pace.answered(Time(1), Time(1_000));
        assert_eq!(pace.oldest_ping(), Some(Time(2)));
    }
}
