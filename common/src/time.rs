//! Time as pure code sees it: a number that somebody else read from a clock.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment of one process's monotonic clock, in microseconds since an origin of its own.
///
/// The wall clock is never used for a timer, so a jump of it changes nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    /// The origin.
    pub const ZERO: Self = Self(0);

    /// The moment `ms` milliseconds after the origin.
    #[must_use]
    pub fn from_ms(ms: u64) -> Self {
        Self(ms * 1000)
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Time {
    type Output = Duration;
    fn sub(self, rhs: Self) -> Duration {
        self.since(rhs)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// The timers of a session (design §5), in one place so that tests can shorten them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timers {
    /// How often a worker reports the progress of each slot.
    pub heartbeat_ms: u64,
    /// How long a connection may be silent before it is asked for a sign of life.
    pub keepalive_ms: u64,
    /// How long the answer to that may take.
    pub keepalive_timeout_ms: u64,
    /// How long a cut-off worker's attempts stay its own: the lease, and the window to reattach in.
    pub lease_ms: u64,
    /// A worker that hears nothing ends its attempts this long before the lease ends.
    pub lease_margin_ms: u64,
    /// How long one attempt to connect may take.
    pub connect_ms: u64,
    /// How long a connection to a worker may take to prove itself.
    pub handshake_ms: u64,
    /// The first pause between two attempts to connect; it doubles up to [`Timers::redial_max_ms`].
    pub redial_ms: u64,
    /// The longest pause between two attempts to connect.
    pub redial_max_ms: u64,
    /// From TERM to KILL for what an attempt started.
    pub kill_grace_ms: u64,
    /// How long output is still read once an item's own process has ended and a child of it holds
    /// the pipe open.
    pub pipe_grace_ms: u64,
    /// A filter that prints nothing for so long has its standard input closed, so that it prints what it
    /// holds back.
    pub filter_silence_ms: u64,
    /// The first pause before a failed item runs again; it doubles for each further run.
    pub retry_ms: u64,
    /// The longest pause before a failed item runs again.
    pub retry_max_ms: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            heartbeat_ms: 1_000,
            keepalive_ms: 10_000,
            keepalive_timeout_ms: 5_000,
            lease_ms: 20_000,
            lease_margin_ms: 2_000,
            connect_ms: 3_000,
            handshake_ms: 5_000,
            redial_ms: 100,
            redial_max_ms: 2_000,
            kill_grace_ms: 2_000,
            pipe_grace_ms: 500,
            filter_silence_ms: 200,
            retry_ms: 50,
            retry_max_ms: 5_000,
        }
    }
}

/// Why a list of timers was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimersError {
    /// It is not `NAME=MILLISECONDS`.
    #[error("`{0}` is not NAME=MILLISECONDS")]
    Form(String),
    /// No timer has that name.
    #[error("no timer is called `{0}` (there are: {known})", known = Timers::NAMES.join(", "))]
    Name(String),
}

impl Timers {
    const NAMES: [&'static str; 14] = [
        "heartbeat_ms",
        "keepalive_ms",
        "keepalive_timeout_ms",
        "lease_ms",
        "lease_margin_ms",
        "connect_ms",
        "handshake_ms",
        "redial_ms",
        "redial_max_ms",
        "kill_grace_ms",
        "pipe_grace_ms",
        "filter_silence_ms",
        "retry_ms",
        "retry_max_ms",
    ];

    fn slot(&mut self, name: &str) -> Option<&mut u64> {
        Some(match name {
            "heartbeat_ms" => &mut self.heartbeat_ms,
            "keepalive_ms" => &mut self.keepalive_ms,
            "keepalive_timeout_ms" => &mut self.keepalive_timeout_ms,
            "lease_ms" => &mut self.lease_ms,
            "lease_margin_ms" => &mut self.lease_margin_ms,
            "connect_ms" => &mut self.connect_ms,
            "handshake_ms" => &mut self.handshake_ms,
            "redial_ms" => &mut self.redial_ms,
            "redial_max_ms" => &mut self.redial_max_ms,
            "kill_grace_ms" => &mut self.kill_grace_ms,
            "pipe_grace_ms" => &mut self.pipe_grace_ms,
            "filter_silence_ms" => &mut self.filter_silence_ms,
            "retry_ms" => &mut self.retry_ms,
            "retry_max_ms" => &mut self.retry_max_ms,
            _ => return None,
        })
    }
}

impl std::str::FromStr for Timers {
    type Err = TimersError;

    /// Reads `NAME=MS,NAME=MS`; what is not named keeps its default.
    fn from_str(text: &str) -> Result<Self, TimersError> {
        let mut timers = Self::default();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let form = || TimersError::Form(pair.to_owned());
            let (name, value) = pair.split_once('=').ok_or_else(form)?;
            let value = value.parse().map_err(|_| form())?;
            *timers.slot(name).ok_or_else(|| TimersError::Name(name.to_owned()))? = value;
        }
        Ok(timers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_read_by_name() {
        let timers: Timers = "lease_ms=500,redial_ms=10".parse().unwrap();
        assert_eq!((timers.lease_ms, timers.redial_ms, timers.heartbeat_ms), (500, 10, 1_000));
        assert_eq!("lease".parse::<Timers>(), Err(TimersError::Form("lease".into())));
        assert_eq!("leese_ms=1".parse::<Timers>(), Err(TimersError::Name("leese_ms".into())));
    }

    #[test]
    fn every_timer_can_be_named() {
        let mut timers = Timers::default();
        assert!(Timers::NAMES.iter().all(|name| timers.slot(name).is_some()));
    }

    #[test]
    fn time_never_runs_backwards() {
        assert_eq!(Time(5) - Time(9), Duration::ZERO);
        assert_eq!(Time(1) + Duration::from_millis(2), Time(2_001));
    }
}
