//! A map that a coordinator runs: it is handed in, and its results are collected, from the first one on while
//! the rest of its items is still being sent.

use std::time::Instant;

use widemap_proto::jobs::{JobName, Submission, Submitted};

use super::collect::{Ahead, Collecting, Done, End, Outlets, Owner, Signals, Wanted, collect};
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
        let early_key = client::new_key();
        submission.early_key = Some(early_key.clone());
        let mut collector = coordinator.collect_early(early_key, client::is_repeatable(&source));
        let submitting = Box::pin(coordinator.submit(submission, source, artifacts));
        let handed_in = hand_in(submitting, &mut collector, &mut outlets, &mut signals).await;
        let (submitted, ahead) = match handed_in {
            Ok(handed_in) => handed_in,
            Err(End::Error(error)) if !outlets.has_written() => return Err(error),
            Err(end) => {
                if !matches!(end, End::Error(_)) {
                    withdraw(&coordinator, own_key, &mut signals).await;
                }
                return Ok(outlets.close(end, None, None));
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

/// Waits until it is handed in, and writes what it has made meanwhile.
async fn hand_in(
    mut submitting: impl Future<Output = Result<Submitted, SubmitError>> + Unpin,
    collector: &mut Collector<'_>,
    outlets: &mut Outlets,
    signals: &mut Signals,
) -> Result<(Submitted, Ahead), End> {
    let mut ahead: Ahead = None;
    loop {
        if let Some(collected) = ahead.take_if(|_| !outlets.is_writing()) {
            match collected {
                // It is told of what was lost only once there is a job.
                Ok(collected) => outlets.take(collected),
                Err(error) => return Err(End::Error(error.into())),
            }
        }
        tokio::select! {
            submitted = &mut submitting => {
                let submitted = submitted.map_err(|error| End::Error(error.into()))?;
                return Ok((submitted, ahead));
            }
            collected = collector.next(), if ahead.is_none() => ahead = Some(collected),
            written = outlets.written(), if outlets.is_writing() => written.map_err(End::of_output)?,
            signal = signals.next() => return Err(End::Signal(signal, None)),
        }
    }
}

/// Gives up a job that may have been made in the moment in which it was not wanted any more.
async fn withdraw(coordinator: &Coordinator, own_key: Option<String>, signals: &mut Signals) {
    // With a key of the user's it may be the job of somebody else.
    let Some(key) = own_key else { return };
    let withdrawing = async {
        if let Ok(job) = coordinator.status(JobName::SubmitKey(key)).await {
            // It goes on without a reader, where it cannot be told.
            let _ = coordinator.cancel(job.id).await;
        }
    };
    tokio::select! {
        () = withdrawing => {}
        _ = signals.next() => {}
    }
}
