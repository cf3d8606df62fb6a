//! What becomes of a job, as it becomes: its results and its status. A stream is made step by step when
//! its reader has room, so that a slow reader costs a few parts of memory: what is sent, and what comes next.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::try_unfold;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use widemap_common::ids::JobId;
use widemap_common::limits::WATCH_MS;
use widemap_proto::jobs::{Collecting, JobName, JobStatus, Position};
use widemap_proto::wire;

use super::{Answers, refusal};
use crate::service::{Collect, Desk, DeskError, JobEntry};

/// The results of a job from a position on, until its end.
pub(super) fn results(
    desk: &Desk,
    request: &wire::ResultsRequest,
    shutdown: CancellationToken,
) -> Result<Answers<wire::ResultsReply>, Status> {
    let (job, position) = (JobId(request.job), request.position());
    let results = match request.early_key.is_empty() {
        true => {
            let collect = desk.collect(job, position);
            Results::Known(collect.map_err(|error| refusal::status(&error))?)
        }
        false => {
            let early_key = request.early_key.clone();
            Results::Early(Box::new(Early { desk: desk.clone(), early_key, job, position }))
        }
    };
    let collector = Collector { results, shutdown };
    Ok(try_unfold(collector, Collector::step).boxed())
}

/// The status of a job, now and as it changes, until its end.
pub(super) fn watch(
    desk: &Desk,
    name: wire::JobName,
    shutdown: CancellationToken,
) -> Result<Answers<wire::JobStatus>, Status> {
    let name = JobName::try_from(name).map_err(|error| refusal::malformed(&error))?;
    let (entry, mut changes) = desk.watch(&name).map_err(|error| refusal::status(&error))?;
    // What is now is told at once.
    changes.mark_changed();
    let watching = Watching { entry, changes, not_before: Instant::now(), shutdown };
    Ok(try_unfold(Some(watching), Watching::step).boxed())
}

/// One who collects results.
struct Collector {
    results: Results,
    shutdown: CancellationToken,
}

/// What he collects.
enum Results {
    Known(Collect),
    Early(Box<Early>),
}

/// Those of a job that is being handed in, and may not have begun.
struct Early {
    desk: Desk,
    early_key: String,
    /// The job that is known, and how far its results are.
    job: JobId,
    position: Position,
}

impl Collector {
    async fn step(mut self) -> Result<Option<(wire::ResultsReply, Self)>, Status> {
        let next = tokio::select! {
            next = self.results.next() => next,
            () = self.shutdown.cancelled() => Err(DeskError::Stopping),
        };
        let next: Option<Collecting> = next.map_err(|error| refusal::status(&error))?;
        Ok(next.map(|collecting| (collecting.into(), self)))
    }
}

impl Results {
    async fn next(&mut self) -> Result<Option<Collecting>, DeskError> {
        match self {
            Self::Known(collect) => collect.next().await,
            Self::Early(early) => {
                let Early { desk, early_key, job, position } = &**early;
                let (job, collect) = desk.collect_early(early_key, *job, *position).await?;
                *self = Self::Known(collect);
                Ok(Some(Collecting::OfJob(job)))
            }
        }
    }
}

/// One who watches a job that has not ended, as far as was told.
struct Watching {
    entry: Arc<JobEntry>,
    changes: watch::Receiver<JobStatus>,
    not_before: Instant,
    shutdown: CancellationToken,
}

impl Watching {
    async fn step(
        watching: Option<Self>,
    ) -> Result<Option<(wire::JobStatus, Option<Self>)>, Status> {
        let Some(mut watching) = watching else { return Ok(None) };
        let changed = async {
            tokio::time::sleep_until(watching.not_before).await;
            watching.changes.changed().await.map_err(|_| DeskError::Stopping)
        };
        let changed = tokio::select! {
            changed = changed => changed,
            () = watching.shutdown.cancelled() => Err(DeskError::Stopping),
        };
        changed.map_err(|error| refusal::status(&error))?;
        let status = watching.entry.status();
        watching.not_before = Instant::now() + Duration::from_millis(WATCH_MS);
        let goes_on = status.ending().is_none();
        Ok(Some((status.into(), goes_on.then_some(watching))))
    }
}
