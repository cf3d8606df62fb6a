//! A coordinator that comes back to its jobs gives nothing out before its former workers are back, or were
//! waited for: what they still have must not run twice.

use std::time::Duration;

use widemap_common::ids::JobId;
use widemap_common::limits::RETURN_MS;
use widemap_common::time::Time;
use widemap_sched::event::Event;

use super::core::Core;
use super::fleet::LinkStatus;

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Returning {
    /// They are waited for until then; `None` once work is given out.
    until: Option<Time>,
}

impl Returning {
    /// Jobs that are opened from now on wait for former workers.
    pub(super) fn begin(&mut self) {
        self.until = Some(Time::ZERO + Duration::from_millis(RETURN_MS));
    }

    /// Whether former workers are waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.until.is_some()
    }

    /// When they are not waited for any more.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.until
    }

    /// Lets work be given out, once former workers are back or were waited for, of the jobs that are to
    /// run.
    pub(super) fn settle(&mut self, core: &mut Core, is_paused: impl Fn(JobId) -> bool) {
        let Some(until) = self.until else { return };
        let mut places = core.fleet.places().peekable();
        let all_back = core.fleet.are_all_named()
            && places.peek().is_some()
            && places.all(|(_, _, status)| *status != LinkStatus::Dialling);
        drop(places);
        if !all_back && core.now < until {
            return;
        }
        self.until = None;
        let jobs: Vec<_> = core.jobs.keys().copied().filter(|&job| !is_paused(job)).collect();
        for job in jobs {
            core.events.push_back(Event::JobPaused { job, paused: false });
        }
        core.drain_events();
    }
}
