//! An attempt as a worker holds it.

use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::time::Time;

use super::oracle::Run;
use super::outgoing::Outgoing;
use super::reports::SendKey;

/// An attempt that is held.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) job: JobId,
    pub(super) range: ItemRange,
    pub(super) input_bytes: u64,
    pub(super) received_bytes: u64,
    pub(super) stage: Stage,
    pub(super) outgoing: Outgoing,
}

#[derive(Debug)]
pub(super) enum Stage {
    Waiting,
    /// In a slot; what is not there yet of its input is waited for.
    Running {
        since: Time,
        run: Option<Running>,
    },
    Finished,
}

/// An attempt at work, from when all of its input is there.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) run: Run,
    /// The pieces in which its output comes, and how many of them have come.
    pub(super) pieces: u64,
    pub(super) made: u64,
    /// It waits until more of what it has printed is sent.
    pub(super) is_stalled: bool,
}

impl Held {
    pub(super) fn key(&self, id: AttemptId) -> SendKey {
        (self.job, self.range.first, id)
    }
}
