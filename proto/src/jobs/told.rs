//! What is told of jobs, attempts and workers to who asks.

use std::collections::BTreeMap;
use std::time::Duration;

use widemap_common::failure::FailureKind;
use widemap_common::ids::{AttemptId, ItemRange, JobId};

/// Why a job or an item of it is where it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Explanation {
    /// What it waits for, in one sentence.
    pub sentence: String,
    /// The attempts that are known, the oldest first; of a job the latest ones.
    pub attempts: Vec<AttemptTold>,
}

/// One attempt, as people and programs look at it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttemptTold {
    /// Which.
    pub attempt: AttemptId,
    /// The items that it was of.
    pub range: ItemRange,
    /// Where, for a person.
    pub worker: String,
    /// When it was assigned: Unix time in milliseconds.
    pub assigned_ms: u64,
    /// How long it ran so far, or until its end.
    pub ran: Duration,
    /// How it is, or how it ended.
    pub state: AttemptState,
    /// More of it, for a person; may be empty.
    pub remark: String,
    /// Whether it was a second one, of a straggler.
    pub speculative: bool,
}

/// How an attempt is, or how it ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AttemptState {
    /// Sent, and not started.
    Waiting,
    /// Runs.
    Running,
    /// All of its items succeeded.
    Succeeded,
    /// Some of its items failed.
    Failed,
    /// Its worker died, or was not heard of again.
    Lost,
    /// Ended by the coordinator: another one was first, or the job was given up.
    Cancelled,
    /// Given back, not started.
    Revoked,
    /// Its result did not fit.
    Rejected,
}

/// A place of a worker, and the worker there if one is attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerTold {
    /// Where it is: `HOST:PORT`.
    pub address: String,
    /// What named it.
    pub sources: Vec<String>,
    /// `ready`, or why it is not used.
    pub state: String,
    /// None where no worker is attached.
    pub worker: Option<WorkerTraits>,
}

/// A worker that is attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerTraits {
    /// Its name.
    pub name: String,
    /// Its build.
    pub build: String,
    /// Running attempts at a time.
    pub slots: u32,
    /// The runtimes that it allows, by name.
    pub runtimes: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The measured round trip to it.
    pub round_trip: Option<Duration>,
    /// It is given no work for so long.
    pub left_out: Option<Duration>,
    /// Attempts of this coordinator that run there.
    pub running: u32,
    /// Attempts of it that wait there.
    pub waiting: u32,
}

/// Which jobs are to be removed: those that have ended, of these.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Prune {
    /// Only these; all if empty.
    pub jobs: Vec<JobId>,
    /// Only those that ended longer ago.
    pub ended_before: Duration,
}

/// What was removed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pruned {
    /// Which.
    pub jobs: Vec<JobId>,
    /// The room on disk that it gave back.
    pub freed_bytes: u64,
}

impl AttemptState {
    /// The word that listings use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Succeeded => "ok",
            Self::Failed => "failed",
            Self::Lost => FailureKind::Lost.name(),
            Self::Cancelled => FailureKind::Cancelled.name(),
            Self::Revoked => "given back",
            Self::Rejected => "rejected",
        }
    }
}
