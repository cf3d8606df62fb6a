//! A job comes in: its submission, its items in parts, and the word that this was all.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use widemap_common::limits::{BEGIN_BYTES, BEGIN_MS};
use widemap_common::spec::Directory;
use widemap_proto::jobs::{Submission, Submitted, Submitting};
use widemap_proto::wire;

use super::refusal;
use crate::service::{Desk, DeskError, Intake};

/// Takes a job in.
pub(super) async fn submit(
    desk: &Desk,
    mut messages: Streaming<wire::SubmitRequest>,
    shutdown: &CancellationToken,
) -> Result<Submitted, Status> {
    // Before it has said anything it takes a place, so that those who say nothing are bounded.
    let entrance = desk.enter().map_err(|error| refusal::status(&error))?;
    let first = tokio::select! {
        first = next(&mut messages) => first?,
        () = shutdown.cancelled() => return Err(refusal::status(&DeskError::Stopping)),
    };
    let Some(Submitting::Begin(submission)) = first else {
        return Err(Status::invalid_argument("a submission begins with what is to be run"));
    };
    check(&submission)?;
    let key = submission.submit_key.clone().unwrap_or_default();
    let intake = entrance.begin(*submission).await.map_err(|error| refusal::status(&error))?;
    let overtaken = intake.overtaken();
    // What is dropped here is a draft: nothing of it stays.
    tokio::select! {
        done = take_in(intake, &mut messages) => done,
        () = overtaken.cancelled() => Err(refusal::status(&DeskError::Overtaken(key))),
        () = shutdown.cancelled() => Err(refusal::status(&DeskError::Stopping)),
    }
}

async fn take_in(
    mut intake: Intake,
    messages: &mut Streaming<wire::SubmitRequest>,
) -> Result<Submitted, Status> {
    let begins = Instant::now() + Duration::from_millis(BEGIN_MS);
    loop {
        let message = tokio::select! {
            message = next(messages) => message?,
            () = sleep_until(begins), if intake.may_begin() => {
                intake.begin().await.map_err(|error| refusal::status(&error))?;
                continue;
            }
        };
        match message {
            Some(Submitting::Artifact(part)) => {
                intake.write_artifact(part).await.map_err(|error| refusal::status(&error))?;
            }
            Some(Submitting::Items(part)) if part.offset == intake.input_bytes() => {
                intake.write(part.data).await.map_err(|error| refusal::status(&error))?;
                if intake.input_bytes() >= BEGIN_BYTES && intake.may_begin() {
                    intake.begin().await.map_err(|error| refusal::status(&error))?;
                }
            }
            Some(Submitting::End(input_bytes)) if input_bytes == intake.input_bytes() => {
                return intake.finish().await.map_err(|error| refusal::status(&error));
            }
            Some(Submitting::Items(part)) => {
                return Err(Status::invalid_argument(format!(
                    "a part of the items at {} follows {} bytes of them",
                    part.offset,
                    intake.input_bytes()
                )));
            }
            Some(Submitting::End(input_bytes)) => {
                return Err(Status::invalid_argument(format!(
                    "the items end after {} bytes, and are said to be {input_bytes}",
                    intake.input_bytes()
                )));
            }
            Some(Submitting::Begin(_)) => {
                return Err(Status::invalid_argument("a submission begins once"));
            }
            None => {
                return Err(Status::cancelled(
                    "the submission was broken off before its end: no job was made of it",
                ));
            }
        }
    }
}

async fn next(messages: &mut Streaming<wire::SubmitRequest>) -> Result<Option<Submitting>, Status> {
    let message = messages.message().await?;
    message.map(Submitting::try_from).transpose().map_err(|error| refusal::malformed(&error))
}

/// What no worker of this coordinator could do.
fn check(submission: &Submission) -> Result<(), Status> {
    match submission.spec.directory {
        Directory::Inherit => Err(Status::invalid_argument(
            "a job that is submitted runs on workers, and has no directory here to be inherited: \
             name one with --wd",
        )),
        Directory::Private | Directory::Path(_) => Ok(()),
    }
}
