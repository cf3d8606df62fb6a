//! What a service manager such as systemd is told, if one asked for it (`Type=notify`, `WatchdogSec=`).

use std::convert::Infallible;
use std::time::Duration;

use widemap_cluster::manager::{NotifyState, tell, watchdog_interval};

/// See the file's head.
#[derive(Debug)]
pub(super) struct Manager {
    /// How often it wants to hear that the worker lives.
    watchdog: Option<Duration>,
}

impl Manager {
    /// The one that started this process, if one did.
    pub(super) fn find() -> Self {
        Self { watchdog: watchdog_interval() }
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
