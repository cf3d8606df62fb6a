//! A map that a coordinator runs: it is handed in, and its results are collected; those of items that come from a
//! pipe while the rest of them is still being sent.

use std::time::Instant;

use widemap_proto::jobs::{Job, JobName, Submission, Submitted};

use super::collect::{
    Ahead, Collecting, Done, End, LAST_WORD, Outlets, Owner, Signals, Wanted, collect,
};
use crate::client::{self, Collector, Coordinator, SubmitError};
use crate::data::{Artifacts, Source};
use crate::error::MapError;
use crate::say;

/// See the file's head.
pub(super) struct Theirs {
    pub(super) coordinator: Coordinator,
    pub(super) submission: Submission,
    pub(super) source: Source,
    pub(super) artifacts: Artifacts,
    pub(super) wanted: Wanted,
}

impl Theirs {
    /// Submits it and collects its results.
    ///
    /// # Errors
    /// What kept it from beginning.
    pub(super) async fn run(self, begun: Instant) -> Result<Done, MapError> {
        let Self { coordinator, mut submission, source, artifacts, wanted } = self;
        let quiet = wanted.quiet;
        let mut signals = Signals::new()?;
        let mut outlets = Outlets::create(wanted)?;
        let own_key = submission.submit_key.is_none().then(client::new_key);
        submission.submit_key = submission.submit_key.or_else(|| own_key.clone());
        // As a map of one's own does; of what is only submitted nothing runs before all of it is durable.
        submission.begins_at_once = true;
        // Of what can be sent again another job may have to be made, with other results.
        submission.early_key = (!client::is_repeatable(&source)).then(client::new_key);
        let mut collector = coordinator.collect_early(submission.early_key.clone());
        let submitting = Box::pin(coordinator.submit(submission, source, artifacts));
        let handed_in = hand_in(submitting, &mut collector, &mut outlets, &mut signals).await;
        let (submitted, ahead) = match handed_in {
            Ok(handed_in) => handed_in,
            Err(Broken { end, was_sending }) => {
                let made = match was_sending {
                    true => withdraw(&coordinator, own_key, &mut signals).await,
                    // What came of it is known.
                    false => None,
                };
                // What is being written is, if that takes no time: a reader may not read any more.
                let _ = tokio::time::timeout(LAST_WORD, outlets.written()).await;
                let id = made.as_ref().map(|job| job.id);
                return match (end, made) {
                    (End::Error(error), None) if !outlets.has_written() => Err(error),
                    (End::Signal(signal, _), Some(made)) => {
                        Ok(outlets.close(End::Signal(signal, Some(Box::new(made))), id, None))
                    }
                    (end, _) => Ok(outlets.close(end, id, None)),
                };
            }
        };
        let job = submitted.job.id;
        collector.accept(job);
        if !quiet {
            let again = if submitted.was_there { ", submitted with this key before" } else { "" };
            let name = coordinator.name();
            say::line(&format!("widemap: {job} of coordinator {name}{again}"));
        }
        let elapsed = || begun.elapsed();
        let collecting = Collecting { job, collector, ahead, owner: Owner::Map };
        Ok(collect(&coordinator, collecting, outlets, &mut signals, Some(&elapsed)).await)
    }
}

/// Why there is no job.
struct Broken {
    end: End,
    /// Whether it was still being sent: then one may have been made in that moment.
    was_sending: bool,
}

/// Waits until it is handed in, and writes what it has made meanwhile.
async fn hand_in(
    mut submitting: impl Future<Output = Result<Submitted, SubmitError>> + Unpin,
    collector: &mut Collector<'_>,
    outlets: &mut Outlets,
    signals: &mut Signals,
) -> Result<(Submitted, Ahead), Broken> {
    let (mut ahead, mut failed): (Ahead, _) = (None, None);
    loop {
        let was_sending = failed.is_none();
        let broken = |end| Broken { end, was_sending };
        match ahead.take_if(|_| !outlets.is_writing()) {
            Some(Ok(collected)) => outlets.take(collected),
            Some(Err(error)) => return Err(broken(End::Error(error.into()))),
            None => {}
        }
        if !outlets.is_writing()
            && let Some(error) = failed.take()
        {
            return Err(broken(End::Error(error)));
        }
        tokio::select! {
            submitted = &mut submitting, if was_sending => match submitted {
                Ok(submitted) => return Ok((submitted, ahead)),
                // What was collected is written all the same.
                Err(error) => failed = Some(MapError::from(error)),
            },
            collected = collector.next(), if was_sending && ahead.is_none() => ahead = Some(collected),
            written = outlets.written(), if outlets.is_writing() => {
                written.map_err(|error| broken(End::of_output(error)))?;
            }
            signal = signals.next() => return Err(broken(End::Signal(signal, None))),
        }
    }
}

/// Gives up a job that may have been made in the moment in which it was not wanted any more: which, if there
/// was one.
async fn withdraw(
    coordinator: &Coordinator,
    own_key: Option<String>,
    signals: &mut Signals,
) -> Option<Job> {
    // With a key of the user's it may be the job of somebody else.
    let key = own_key?;
    let withdrawing = async {
        let job = coordinator.status(JobName::SubmitKey(key)).await.ok()?;
        // It goes on without a reader, where it cannot be told.
        Some(coordinator.cancel(job.id).await.unwrap_or(job))
    };
    tokio::select! {
        job = withdrawing => job,
        _ = signals.next() => None,
    }
}
