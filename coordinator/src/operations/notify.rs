//! What a service manager such as systemd is told, if one asked for it (`Type=notify`, `WatchdogSec=`).

use std::time::Duration;

use tokio::time::Instant;
use widemap_cluster::manager::{NotifyState, tell, watchdog_interval};

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
        Self { watchdog: watchdog_interval(), told: None, status: String::new() }
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
