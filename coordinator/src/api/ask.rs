//! Calls of one question and one answer.

use tonic::Status;
use widemap_common::artifact::Digest;
use widemap_common::ids::JobId;
use widemap_proto::jobs::JobName;
use widemap_proto::wire;

use super::refusal;
use crate::service::{Desk, DeskError};

pub(super) fn list(desk: &Desk, request: &wire::ListRequest) -> wire::ListReply {
    let (jobs, more) = desk.list(JobId(request.after));
    wire::ListReply { jobs: jobs.into_iter().map(Into::into).collect(), more }
}

pub(super) fn status(desk: &Desk, name: wire::JobName) -> Result<wire::Job, Status> {
    Ok(told(desk.job(&named(name)?))?.into())
}

pub(super) fn missing_artifacts(
    desk: &Desk,
    asked: wire::Artifacts,
) -> Result<wire::Artifacts, Status> {
    let asked = Vec::<Digest>::try_from(asked).map_err(|error| refusal::malformed(&error))?;
    Ok(desk.missing_artifacts(asked).into())
}

pub(super) async fn cancel(desk: &Desk, name: wire::JobName) -> Result<wire::Job, Status> {
    Ok(told(desk.cancel(&named(name)?).await)?.into())
}

pub(super) async fn pause(desk: &Desk, name: wire::JobName) -> Result<wire::Job, Status> {
    Ok(told(desk.pause(&named(name)?).await)?.into())
}

pub(super) async fn unpause(desk: &Desk, name: wire::JobName) -> Result<wire::Job, Status> {
    Ok(told(desk.unpause(&named(name)?).await)?.into())
}

pub(super) async fn explain(
    desk: &Desk,
    request: &wire::ExplainRequest,
) -> Result<wire::Explanation, Status> {
    Ok(told(desk.explain(JobId(request.job), request.item).await)?.into())
}

pub(super) async fn workers(desk: &Desk) -> Result<wire::WorkersReply, Status> {
    let workers = told(desk.workers().await)?;
    Ok(wire::WorkersReply { workers: workers.into_iter().map(Into::into).collect() })
}

pub(super) async fn prune(
    desk: &Desk,
    request: wire::PruneRequest,
) -> Result<wire::PruneReply, Status> {
    Ok(told(desk.prune(request.into()).await)?.into())
}

fn named(name: wire::JobName) -> Result<JobName, Status> {
    name.try_into().map_err(|error| refusal::malformed(&error))
}

fn told<T>(answer: Result<T, DeskError>) -> Result<T, Status> {
    answer.map_err(|error| refusal::status(&error))
}
