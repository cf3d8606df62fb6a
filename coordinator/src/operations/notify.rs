//! What a service manager such as systemd is told, if one asked for it (`Type=notify`, `WatchdogSec=`).

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;

use crate::driver::Observed;
use crate::summary::plural;

/// See the file's head.
#[derive(Debug)]
pub(super) struct Manager {
    /// How often it wants to hear that the service lives.
    watchdog: Option<Duration>,
    told: Option<Instant>,
    status: String,
}

impl Manager {
    /// The one that started this process, if one did.
    pub(super) fn find() -> Self {
        // Half of what it allows: one that comes late is not taken for dead.
        let watchdog = sd_notify::watchdog_enabled().map(|allowed| allowed / 2);
        Self { watchdog, told: None, status: String::new() }
    }

    pub(super) fn beat(&mut self) {
        let Some(interval) = self.watchdog else { return };
        if self.told.is_none_or(|told| told.elapsed() >= interval) {
            self.told = Some(Instant::now());
            tell(&[NotifyState::Watchdog]);
        }
    }

    pub(super) fn ready(&mut self, ready: bool) {
        match ready {
            true => tell(&[NotifyState::Ready]),
            false => tell(&[NotifyState::Stopping, NotifyState::Status("ending")]),
        }
    }

    pub(super) fn status(&mut self, observed: &Observed) {
        let Observed { jobs_open, jobs_queued, workers_attached, slots, .. } = *observed;
        let jobs = plural((jobs_open + jobs_queued) as u64, "job");
        let workers = plural(workers_attached as u64, "worker");
        let status = format!("{jobs}, {workers}, {}", plural(slots, "slot"));
        if status != self.status {
            tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    // Without a manager nothing is told; one that cannot be reached is not worth ending for.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}
