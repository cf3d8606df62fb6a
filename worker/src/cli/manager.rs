//! What a service manager such as systemd is told, if one asked for it (`Type=notify`, `WatchdogSec=`).

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;

/// See the file's head.
#[derive(Debug)]
pub(super) struct Manager {
    /// How often it wants to hear that the worker lives.
    watchdog: Option<Duration>,
}

impl Manager {
    /// The one that started this process, if one did.
    pub(super) fn find() -> Self {
        // Half of what it allows: one that comes late is not taken for dead.
        Self { watchdog: sd_notify::watchdog_enabled().map(|allowed| allowed / 2) }
    }

    /// The worker serves.
    pub(super) fn ready(&self) {
        tell(&[NotifyState::Ready, NotifyState::Status("takes work")]);
    }

    /// The worker takes no more work, and ends once it has none.
    pub(super) fn draining(&self) {
        tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
    }

    /// Says again and again that the worker lives, from the thread that does all of its talking: where that one
    /// hangs, nothing is said.
    pub(super) async fn beat(&self) -> Infallible {
        let Some(interval) = self.watchdog else { return std::future::pending().await };
        loop {
            tell(&[NotifyState::Watchdog]);
            tokio::time::sleep(interval).await;
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    // Without a manager nothing is told; one that cannot be reached is not worth ending for.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}
