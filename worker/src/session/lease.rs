//! How long a coordinator may be unheard before its attempts are ended, so that they are over when it
//! gives them to another worker.
//!
//! A ping carries the moment at which it was sent, on the coordinator's clock. What was held up on the
//! way and arrives late must not prolong the lease: it is counted from when the ping would have
//! arrived by the fastest way seen on its stream, not from when it did.

use std::time::Duration;

use tokio::time::Instant;

/// Clocks differ by less than one part in so many.
const DRIFT: i64 = 1_000;

/// The right of one coordinator's attempts to run.
#[derive(Debug)]
pub(super) struct Lease {
    margin: Duration,
    length: Duration,
    /// When the present stream began, and when the coordinator was heard last.
    begun: Instant,
    heard: Instant,
    /// The fastest arrival of a ping on the present stream, less its stamp; it follows clocks that do
    /// not agree on how long a second is.
    fastest_us: Option<i64>,
    /// When the last ping arrived.
    arrival_us: i64,
}

impl Lease {
    /// A lease that begins now and ends `margin` before the coordinator takes it to end.
    pub(super) fn new(margin: Duration, now: Instant) -> Self {
        Self {
            margin,
            length: Duration::ZERO,
            begun: now,
            heard: now,
            fastest_us: None,
            arrival_us: 0,
        }
    }

    /// A stream begins. The coordinator waits for `linger` when it is cut off. The hello prolongs
    /// nothing: it may have waited for long, from a coordinator that has given the stream up; the first
    /// ping comes only when the greeting has been answered.
    pub(super) fn begin_stream(&mut self, now: Instant, linger: Duration) {
        // Where the wait is short, half of it is margin enough.
        self.length = linger - self.margin.min(linger / 2);
        (self.begun, self.fastest_us, self.arrival_us) = (now, None, 0);
    }

    /// A ping with this stamp, in microseconds of the coordinator's clock, has arrived.
    pub(super) fn heard(&mut self, now: Instant, stamp_us: u64) {
        let arrival_us = micros(now.saturating_duration_since(self.begun));
        let stamp_us = i64::try_from(stamp_us).unwrap_or(i64::MAX);
        let transit_us = arrival_us.saturating_sub(stamp_us);
        let drift_us = (arrival_us - self.arrival_us) / DRIFT;
        let fastest_us =
            self.fastest_us.map_or(transit_us, |fastest| transit_us.min(fastest + drift_us));
        (self.fastest_us, self.arrival_us) = (Some(fastest_us), arrival_us);
        let late_us = u64::try_from(transit_us.saturating_sub(fastest_us)).unwrap_or(0);
        let said = now.checked_sub(Duration::from_micros(late_us)).unwrap_or(self.begun);
        self.heard = self.heard.max(said);
    }

    /// When it ends, unless something is heard before.
    pub(super) fn end(&self) -> Instant {
        self.heard + self.length
    }

    /// How long the coordinator may be unheard.
    pub(super) fn length(&self) -> Duration {
        self.length
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn lease(margin: Duration, linger: Duration) -> (Lease, Instant) {
        let now = Instant::now();
        let mut lease = Lease::new(margin, now);
        lease.begin_stream(now, linger);
        (lease, now)
    }

    #[tokio::test]
    async fn it_is_counted_from_the_last_ping() {
        let (mut lease, begun) = lease(2 * SECOND, 20 * SECOND);
        assert_eq!(lease.end(), begun + 18 * SECOND);
        lease.heard(begun + SECOND, 900_000);
        lease.heard(begun + 2 * SECOND, 1_900_000);
        assert_eq!(lease.end(), begun + 20 * SECOND);
    }

    #[tokio::test]
    async fn pings_that_were_held_up_prolong_nothing() {
        let (mut lease, begun) = lease(2 * SECOND, 20 * SECOND);
        lease.heard(begun + SECOND, 900_000);
        // Sent at 2 s, arrived at 12 s, when the way was free again.
        lease.heard(begun + 12 * SECOND, 2_000_000);
        assert_eq!(lease.end(), begun + Duration::from_millis(2_111) + 18 * SECOND);
        // One that was sent before is no news.
        lease.heard(begun + 12 * SECOND, 1_500_000);
        assert_eq!(lease.end(), begun + Duration::from_millis(2_111) + 18 * SECOND);
    }

    #[tokio::test]
    async fn clocks_that_drift_apart_cost_no_lease() {
        let (mut lease, begun) = lease(2 * SECOND, 20 * SECOND);
        // The coordinator's clock is slow by 200 in a million, for a week.
        for second in 1..=604_800_u64 {
            lease.heard(begun + Duration::from_secs(second), second * 999_800);
        }
        assert!(lease.end() > begun + Duration::from_secs(604_800 + 17));
    }

    #[tokio::test]
    async fn a_stream_that_begins_prolongs_nothing_before_its_first_ping() {
        let (mut lease, begun) = lease(2 * SECOND, 20 * SECOND);
        lease.begin_stream(begun + 10 * SECOND, 20 * SECOND);
        assert_eq!(lease.end(), begun + 18 * SECOND);
        lease.heard(begun + 11 * SECOND, 20_000);
        assert_eq!(lease.end(), begun + 29 * SECOND);
    }

    #[tokio::test]
    async fn a_short_lease_keeps_half_of_itself() {
        let (lease, begun) = lease(2 * SECOND, Duration::from_millis(600));
        assert_eq!(lease.end(), begun + Duration::from_millis(300));
    }
}
