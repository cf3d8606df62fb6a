//! A worker as the fleet keeps it.

use std::collections::BTreeSet;

use widemap_common::ids::{AttemptId, JobId};
use widemap_common::time::Time;
use widemap_proto::session::{Credit, WorkerHello};

use crate::session::LinkId;

/// One incarnation of a worker.
pub(crate) struct Worker {
    /// Who it is.
    pub(crate) hello: WorkerHello,
    /// Whether it can be reached.
    pub(crate) state: WorkerState,
    /// Whether it said that it is leaving: then its end, however it shows, is no death.
    pub(crate) is_leaving: bool,
    /// Where it was reached last.
    pub(crate) link: LinkId,
    /// What it may be given, as it said last.
    pub(crate) credit: Credit,
    /// Why it takes no work for now, as it said.
    pub(crate) paused: Option<String>,
    /// Jobs that it was told of.
    pub(crate) jobs: BTreeSet<JobId>,
    /// Output bytes received on this stream.
    pub(crate) received_total: u64,
    /// Output bytes granted on this stream.
    pub(crate) granted_total: u64,
    /// The attempt that may go beyond that, and how far, as it was told last.
    pub(crate) urgent: Option<(AttemptId, u64)>,
}

/// Whether a worker can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerState {
    /// It is attached.
    Attached,
    /// It is attached and takes no new work.
    Draining,
    /// Cut off; its attempts stay its own until then.
    Cut {
        /// The end of the lease.
        until: Time,
    },
    /// Gone.
    Dead,
}

impl Worker {
    /// Whether it can be told anything.
    pub(crate) fn is_attached(&self) -> bool {
        matches!(self.state, WorkerState::Attached | WorkerState::Draining)
    }

    /// Whether its attempts are still its own.
    pub(crate) fn is_or_may_be_alive(&self) -> bool {
        self.state != WorkerState::Dead
    }

    pub(super) fn new(hello: WorkerHello, link: LinkId) -> Self {
        let credit = Credit { slots: hello.slots, queue: 0 };
        Self {
            hello,
            state: WorkerState::Attached,
            is_leaving: false,
            link,
            credit,
            paused: None,
            jobs: BTreeSet::new(),
            received_total: 0,
            granted_total: 0,
            urgent: None,
        }
    }
}
