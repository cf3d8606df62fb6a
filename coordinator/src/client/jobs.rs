//! What is asked of a coordinator with one answer: each call has a deadline, and is repeated while the
//! coordinator is away for a moment.

use std::time::Duration;

use tonic::Status;
use widemap_common::artifact::Digest;
use widemap_common::ids::JobId;
use widemap_common::limits::{JOBS_CALL_MS, JOBS_CALL_RETRIES};
use widemap_proto::WireError;
use widemap_proto::jobs::{Explanation, Job, JobName, Prune, Pruned, WorkerTold};
use widemap_proto::wire;
use widemap_proto::wire::jobs_client::JobsClient;

use super::coordinator::{Connected, Coordinator, JobsError};
use super::unary;

/// A call by a connection.
type Client<S> = JobsClient<S>;

macro_rules! call {
    ($self:ident, $method:ident, $request:expr) => {{
        let connected = $self.connect().await?;
        let deadline = Duration::from_millis(JOBS_CALL_MS);
        let channel = unary(connected.channel.clone(), deadline, JOBS_CALL_RETRIES);
        let answer = Client::new(channel).$method($request).await;
        $self.answered(&connected, answer.map(tonic::Response::into_inner))
    }};
}

impl Coordinator {
    /// Those of some artifacts that the coordinator does not have.
    ///
    /// # Errors
    /// [`JobsError`] if the coordinator does not tell.
    pub(super) async fn missing_artifacts(
        &self,
        digests: Vec<Digest>,
    ) -> Result<Vec<Digest>, JobsError> {
        let asked = wire::Artifacts::from(digests);
        self.read(call!(self, missing_artifacts, asked)?.try_into())
    }

    /// Every job, in the order in which they were submitted.
    ///
    /// # Errors
    /// [`JobsError`] if the coordinator does not tell.
    pub(crate) async fn list(&self) -> Result<Vec<Job>, JobsError> {
        let mut jobs: Vec<Job> = Vec::new();
        loop {
            let after = jobs.last().map_or(0, |job| job.id.0);
            let page: wire::ListReply = call!(self, list, wire::ListRequest { after })?;
            let more = page.more && !page.jobs.is_empty();
            for job in page.jobs {
                jobs.push(self.read(job.try_into())?);
            }
            if !more {
                return Ok(jobs);
            }
        }
    }

    /// One job.
    ///
    /// # Errors
    /// [`JobsError`] if there is none, or the coordinator does not tell.
    pub(crate) async fn status(&self, name: JobName) -> Result<Job, JobsError> {
        self.read(call!(self, status, wire::JobName::from(name))?.try_into())
    }

    /// Gives a job up.
    ///
    /// # Errors
    /// [`JobsError`] if there is none, it has ended, or the coordinator does not.
    pub(crate) async fn cancel(&self, job: JobId) -> Result<Job, JobsError> {
        self.read(call!(self, cancel, wire::JobName::from(JobName::Id(job)))?.try_into())
    }

    /// Starts nothing more of a job.
    ///
    /// # Errors
    /// [`JobsError`] if there is none, it has ended, or the coordinator does not.
    pub(crate) async fn pause(&self, job: JobId) -> Result<Job, JobsError> {
        self.read(call!(self, pause, wire::JobName::from(JobName::Id(job)))?.try_into())
    }

    /// Goes on with a job.
    ///
    /// # Errors
    /// [`JobsError`] if there is none, it has ended, or the coordinator does not.
    pub(crate) async fn unpause(&self, job: JobId) -> Result<Job, JobsError> {
        self.read(call!(self, unpause, wire::JobName::from(JobName::Id(job)))?.try_into())
    }

    /// Why a job, or one item of it (counted from 0), waits.
    ///
    /// # Errors
    /// [`JobsError`] if there is none, or the coordinator does not tell.
    pub(crate) async fn explain(
        &self,
        job: JobId,
        item: Option<u64>,
    ) -> Result<Explanation, JobsError> {
        self.read(call!(self, explain, wire::ExplainRequest { job: job.0, item })?.try_into())
    }

    /// The workers that the coordinator knows.
    ///
    /// # Errors
    /// [`JobsError`] if the coordinator does not tell.
    pub(crate) async fn workers(&self) -> Result<Vec<WorkerTold>, JobsError> {
        let reply: wire::WorkersReply = call!(self, workers, wire::WorkersRequest {})?;
        Ok(reply.workers.into_iter().map(WorkerTold::from).collect())
    }

    /// Removes jobs that have ended.
    ///
    /// # Errors
    /// [`JobsError`] if one that is named has not, or the coordinator does not.
    pub(crate) async fn prune(&self, prune: Prune) -> Result<Pruned, JobsError> {
        Ok(call!(self, prune, wire::PruneRequest::from(prune))?.into())
    }

    fn answered<T>(
        &self,
        connected: &Connected,
        answer: Result<T, Status>,
    ) -> Result<T, JobsError> {
        answer.map_err(|status| self.failed(connected, &status))
    }

    pub(super) fn read<T>(&self, read: Result<T, WireError>) -> Result<T, JobsError> {
        read.map_err(|error| self.malformed(error))
    }
}
