//! Brings a job's results to where they are wanted: for `widemap results`, and for a map that a
//! coordinator runs.

mod outlets;

use std::time::Duration;

use rustix::process::Signal as SignalNumber;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::Code;
use widemap_common::ids::JobId;
use widemap_proto::jobs::{How, Job, JobName};

pub(super) use outlets::{Done, End, Outlets, Wanted};

use crate::client::{Collected, Collector, Coordinator, JobsError};
use crate::error::MapError;
use crate::progress::{Progress, Shown};

/// How often progress is asked for.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a cancellation may take after a second signal, or a write after what ends all.
pub(super) const LAST_WORD: Duration = Duration::from_millis(300);

/// Whose job it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// This program's: who gives it up gives the job up.
    Map,
    /// The coordinator's: it is only looked at.
    Results,
}

/// What is being collected.
pub(super) struct Collecting<'a> {
    pub(super) job: JobId,
    pub(super) collector: Collector<'a>,
    pub(super) ahead: Ahead,
    pub(super) owner: Owner,
}

/// What was collected, and is not written yet.
pub(super) type Ahead = Option<Result<Collected, JobsError>>;

/// The signals that end a program.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Hears them from now on.
    ///
    /// # Errors
    /// If the system does not allow it.
    pub(super) fn new() -> Result<Self, MapError> {
        let hear = |kind| signal(kind).map_err(MapError::Start);
        Ok(Self {
            interrupt: hear(SignalKind::interrupt())?,
            terminate: hear(SignalKind::terminate())?,
            hang_up: hear(SignalKind::hangup())?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> SignalNumber {
        tokio::select! {
            _ = self.interrupt.recv() => SignalNumber::INT,
            _ = self.terminate.recv() => SignalNumber::TERM,
            _ = self.hang_up.recv() => SignalNumber::HUP,
        }
    }
}

/// Collects a job to its end, or until somebody wants no more of it. `elapsed` tells how long it took,
/// if not from when it ran first to its end.
pub(super) async fn collect(
    coordinator: &Coordinator,
    collecting: Collecting<'_>,
    mut outlets: Outlets,
    signals: &mut Signals,
    elapsed: Option<&(dyn Fn() -> Duration + Sync)>,
) -> Done {
    let (progress, explain_every) = (outlets.progress(), outlets.explain_every());
    let job = collecting.job;
    let end = tokio::select! {
        end = Box::pin(run(coordinator, collecting, &mut outlets, signals)) => end,
        never = draw(coordinator, job, &progress) => never,
        never = explain(coordinator, job, explain_every, &progress) => never,
    };
    outlets.close(end, Some(job), elapsed.map(|elapsed| elapsed()))
}

async fn run(
    coordinator: &Coordinator,
    Collecting { job, mut collector, mut ahead, owner }: Collecting<'_>,
    outlets: &mut Outlets,
    signals: &mut Signals,
) -> End {
    let mut given_up = None;
    loop {
        // One thing at a time is written, however slowly it is read; what comes next is fetched meanwhile.
        let Some(collected) = ahead.take_if(|_| !outlets.is_writing()) else {
            tokio::select! {
                collected = collector.next(), if ahead.is_none() => ahead = Some(collected),
                written = outlets.written(), if outlets.is_writing() => {
                    let Err(error) = written else { continue };
                    let end = End::of_output(error);
                    if matches!(end, End::ReaderGone) && owner == Owner::Map {
                        // It goes on without a reader, where it cannot be told.
                        let _ = coordinator.cancel(job).await;
                    }
                    return end;
                }
                signal = signals.next() => {
                    if signal == SignalNumber::HUP || owner == Owner::Results || given_up.is_some() {
                        return End::Signal(given_up.unwrap_or(signal), None);
                    }
                    outlets.say("stopping: what is done is kept; once more ends at once");
                    given_up = Some(signal);
                    match give_up(coordinator, job, signals).await {
                        Ok(true) => {}
                        Ok(false) => return End::Signal(signal, None),
                        Err(error) => return End::Error(error.into()),
                    }
                }
            }
            continue;
        };
        match collected {
            Ok(Collected::Lost(why)) => outlets.say(&format!("{why}; trying again")),
            Ok(Collected::Back) => {
                outlets.say(&format!("the coordinator {} is back", coordinator.name()));
            }
            Ok(Collected::Ended(ended)) => {
                return match given_up {
                    // What was done before it heard of it may have been all.
                    Some(signal) if is_cancelled(&ended) => End::Signal(signal, Some(ended)),
                    _ => End::Job(ended),
                };
            }
            Ok(collected) => outlets.take(collected),
            Err(error) => return End::Error(error.into()),
        }
    }
}

/// Shows how far the job is for as long as it is collected, if anybody sees it.
async fn draw<T>(coordinator: &Coordinator, job: JobId, progress: &Progress) -> T {
    while progress.is_shown() {
        // What is not known is not shown.
        if let Ok(job) = coordinator.status(JobName::Id(job)).await {
            progress.draw(shown(&job));
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
    std::future::pending().await
}

/// Says every so often what the job waits for.
async fn explain<T>(
    coordinator: &Coordinator,
    job: JobId,
    every: Option<Duration>,
    progress: &Progress,
) -> T {
    let Some(every) = every else { return std::future::pending().await };
    loop {
        tokio::time::sleep(every).await;
        // One that has ended waits for nothing.
        if let Ok(explanation) = coordinator.explain(job, None).await {
            progress.say(&format!("widemap: {}", explanation.sentence.trim_end_matches('.')));
        }
    }
}

/// Cancels a job. False if nobody waits for that any more.
async fn give_up(
    coordinator: &Coordinator,
    job: JobId,
    signals: &mut Signals,
) -> Result<bool, JobsError> {
    let mut cancelling = std::pin::pin!(coordinator.cancel(job));
    let (cancelled, waits) = tokio::select! {
        cancelled = &mut cancelling => (Some(cancelled), true),
        // Two signals are often one that was sent to several: then the job is not left to run.
        _ = signals.next() => (tokio::time::timeout(LAST_WORD, cancelling).await.ok(), false),
    };
    match cancelled {
        // It may have ended meanwhile.
        Some(Err(JobsError::Refused { code: Code::FailedPrecondition, .. })) => Ok(waits),
        Some(Err(error)) => Err(error),
        Some(Ok(_)) | None => Ok(waits),
    }
}

fn is_cancelled(job: &Job) -> bool {
    job.status.ending().is_some_and(|ending| ending.how == How::Cancelled)
}

fn shown(job: &Job) -> Shown {
    let counts = &job.status.counts;
    Shown {
        done: counts.ok + counts.failed,
        total: counts.total,
        failed: counts.failed,
        retried: counts.retried,
        workers: usize::try_from(counts.workers).unwrap_or(usize::MAX),
    }
}
