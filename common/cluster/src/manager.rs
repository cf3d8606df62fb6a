//! A service manager such as systemd, and what it is told if it asked for that (`Type=notify`, `WatchdogSec=`).

use std::time::Duration;

pub use sd_notify::NotifyState;

/// How often it wants to hear that this process lives, if it does: half of what it allows, so that one that comes late
/// is not taken for dead.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|allowed| allowed / 2)
}

/// Tells it.
pub fn tell(states: &[NotifyState<'_>]) {
    // Without a manager nothing is told; one that cannot be reached is not worth ending for.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}
