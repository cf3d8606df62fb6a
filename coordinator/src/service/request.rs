//! What the API asks of the driver: a closed enum over a bounded queue, each with a way to answer.

use std::sync::Arc;

use tokio::sync::oneshot;
use widemap_common::ids::JobId;
use widemap_proto::jobs::{Explanation, Prune, Pruned, WorkerTold};

use super::registry::JobEntry;

/// How a request is answered.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, RequestError>>;

/// One thing that is asked of the driver.
#[derive(Debug)]
pub(crate) enum Request {
    /// A job whose items are still coming, and that may run while they do, if others do not wait. Nobody
    /// else knows of it before it is admitted; it may be given up instead.
    Begin {
        /// The job.
        job: Arc<JobEntry>,
    },
    /// A new job, durable and registered: run it when its turn comes, if it does not run already.
    Admit {
        /// The job.
        job: Arc<JobEntry>,
    },
    /// Give it up. Answered when that is durable; a job that has ended stays as it is.
    Cancel {
        /// Which.
        job: JobId,
        /// Tells that it is done.
        reply: Reply<()>,
    },
    /// Start nothing more of it. Answered when that is durable.
    Pause {
        /// Which.
        job: JobId,
        /// Tells that it is done.
        reply: Reply<()>,
    },
    /// Go on with it. Answered when that is durable.
    Unpause {
        /// Which.
        job: JobId,
        /// Tells that it is done.
        reply: Reply<()>,
    },
    /// Why it, or one item of it, waits.
    Explain {
        /// Which.
        job: JobId,
        /// Counted from 0.
        item: Option<u64>,
        /// Tells.
        reply: Reply<Explanation>,
    },
    /// Which workers there are.
    Workers {
        /// Tells.
        reply: Reply<Vec<WorkerTold>>,
    },
    /// Remove jobs that have ended, from the registry and from the disk.
    Prune {
        /// Which.
        prune: Prune,
        /// Tells what was removed.
        reply: Reply<Pruned>,
    },
}

/// Why the driver does not do what is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    /// There is no such job, or no more.
    #[error("there is no job {0} (`widemap jobs` lists those there are)")]
    NoSuchJob(JobId),
    /// The job is over.
    #[error("{job} has ended already: it is {state}")]
    Ended {
        /// Which.
        job: JobId,
        /// How.
        state: &'static str,
    },
    /// The job has no such item.
    #[error("{job} has no item {item} so far: {read} were read")]
    NoSuchItem {
        /// Which.
        job: JobId,
        /// Counted from 1, as people do.
        item: u64,
        /// Items that were read.
        read: u64,
    },
    /// Something cannot be written or removed.
    #[error("{0}")]
    Disk(String),
}
