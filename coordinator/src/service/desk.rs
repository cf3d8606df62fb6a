//! Where users are served: everything that the API can do, as plain calls.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use widemap_common::artifact::Digest;
use widemap_common::ids::JobId;
use widemap_common::limits::{
    ATTEMPTS_TOLD_MAX, JOBS_LISTED_MAX, JOBS_WAITING_MAX, LINE_CHARS_SHOWN, REQUEST_MS,
    REQUEST_QUEUE, SUBMISSIONS_MAX,
};
use widemap_proto::jobs::{
    Ending, Explanation, How, Job, JobName, JobState, JobStatus, Position, Prune, Pruned,
    WorkerTold,
};

use super::collect::Collect;
use super::intake::{Counter, Entrance};
use super::ledger::{Ledger, LedgerError};
use super::registry::{JobEntry, Registry};
use super::request::{Reply, Request, RequestError};
use crate::data;

/// See the file's head. A clone is the same desk.
#[derive(Clone)]
pub(crate) struct Desk {
    counter: Arc<Counter>,
}

/// How much is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeskLimits {
    /// Jobs that have not ended.
    pub(crate) jobs_max: usize,
    /// The bytes of their input.
    pub(crate) input_bytes_max: Option<u64>,
    /// Bytes on disk, of jobs that have ended too.
    pub(crate) disk_bytes_max: Option<u64>,
}

impl Default for DeskLimits {
    fn default() -> Self {
        Self { jobs_max: JOBS_WAITING_MAX, input_bytes_max: None, disk_bytes_max: None }
    }
}

/// Why something cannot be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeskError {
    /// There is no such job.
    #[error("there is no job {0} (`widemap jobs` lists those there are)")]
    NoSuchJob(JobId),
    /// No job was submitted with this key.
    #[error("no job was submitted with the key `{0}`")]
    NoSuchKey(String),
    /// Only what has ended is removed.
    #[error("{0} has not ended: wait for it, or cancel it first (`widemap cancel {0}`)")]
    NotEnded(JobId),
    /// The driver does not do it.
    #[error(transparent)]
    Refused(#[from] RequestError),
    /// A job with the same key is another one.
    #[error(
        "the submit key `{key}` is {job}'s, and this submission differs from it in {what}: choose \
         another key, or collect that job (`widemap results {job}`)"
    )]
    Differs {
        /// The key.
        key: String,
        /// Whose it is.
        job: JobId,
        /// What differs.
        what: String,
    },
    /// Another submission with the same key has come.
    #[error(
        "another submission with the key `{0}` has come meanwhile, and counts instead of this one"
    )]
    Overtaken(String),
    /// Too many are coming in.
    #[error("{SUBMISSIONS_MAX} submissions are on their way in already: try again later")]
    TooManySubmissions,
    /// Too many jobs wait.
    #[error(
        "{waiting} jobs have not ended, and this coordinator takes {most} (its --jobs-max): wait for \
         one, or cancel one"
    )]
    TooManyJobs {
        /// How many there are.
        waiting: usize,
        /// How many there may be.
        most: usize,
    },
    /// Too much input waits.
    #[error(
        "the input of all jobs that have not ended would be more than {most} bytes (--input-max of the \
         coordinator): wait for a job, or cancel one"
    )]
    TooManyBytes {
        /// How many there may be.
        most: u64,
    },
    /// The disk budget is used up.
    #[error(
        "the jobs on the disk of the coordinator would need more than {most} bytes (its --disk-max): \
         remove some that have ended (`widemap jobs prune`)"
    )]
    DiskBudget {
        /// How much there may be.
        most: u64,
    },
    /// It cannot be written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// What is kept of a job cannot be read.
    #[error("what is kept of {job} cannot be read: {source}")]
    Unreadable {
        /// Whose.
        job: JobId,
        /// Why, and where.
        source: io::Error,
    },
    /// Results are asked for from a place that has not been reached.
    #[error(
        "{job} has {} bytes of output and {} failures so far, so nobody can have {} and {} of them: they \
         are of another job or another coordinator",
        there.output_bytes, there.failures, wanted.output_bytes, wanted.failures
    )]
    NotReached {
        /// Whose.
        job: JobId,
        /// From where they are asked for.
        wanted: Position,
        /// How far they are.
        there: Position,
    },
    /// Its items did not come to their end, or were sent anew.
    #[error("{0} was given up before all of its items had come")]
    GivenUp(JobId),
    /// The driver does not answer in time.
    #[error("the coordinator is too busy to answer: try again")]
    Busy,
    /// The coordinator is ending.
    #[error("the coordinator is ending: try again when it is back")]
    Stopping,
}

impl Desk {
    /// A desk, and where what it asks of the driver comes out.
    pub(crate) fn new(
        registry: Arc<Registry>,
        ledger: Arc<dyn Ledger>,
        limits: DeskLimits,
    ) -> (Self, mpsc::Receiver<Request>) {
        let (requests, asked) = mpsc::channel(REQUEST_QUEUE);
        let counter = Counter::new(registry, ledger, requests, limits);
        (Self { counter: Arc::new(counter) }, asked)
    }

    /// A place for a submission, before anything of it is known.
    ///
    /// # Errors
    /// If too many are on their way in.
    pub(crate) fn enter(&self) -> Result<Entrance, DeskError> {
        self.counter.enter()
    }

    /// Those of some artifacts that no job here has.
    pub(crate) fn missing_artifacts(&self, digests: Vec<Digest>) -> Vec<Digest> {
        digests.into_iter().filter(|&digest| !self.counter.ledger.has_artifact(digest)).collect()
    }

    /// The results of a job from a position on.
    ///
    /// # Errors
    /// If there is no such job, or no such position.
    pub(crate) fn collect(&self, job: JobId, position: Position) -> Result<Collect, DeskError> {
        Collect::new(self.entry(&JobName::Id(job))?, position)
    }

    /// The results of the job that is being handed in with an early key, as soon as it has begun: from a
    /// position of `known` on if it is that one, else from their begin.
    ///
    /// # Errors
    /// If there is no such position.
    pub(crate) async fn collect_early(
        &self,
        early_key: &str,
        known: JobId,
        position: Position,
    ) -> Result<(JobId, Collect), DeskError> {
        let entry = self.counter.begun_early(early_key).await;
        let job = entry.id;
        let position = if job == known { position } else { Position::default() };
        Ok((job, Collect::new(entry, position)?))
    }

    /// A job.
    ///
    /// # Errors
    /// If there is none of that name.
    pub(crate) fn job(&self, name: &JobName) -> Result<Job, DeskError> {
        let entry = self.entry(name)?;
        let what_runs = Some(data::what_runs(&entry.submission.spec));
        Ok(Job { what_runs, ..entry.told() })
    }

    /// A page of jobs, in the order in which they were submitted, and whether there are more.
    pub(crate) fn list(&self, after: JobId) -> (Vec<Job>, bool) {
        let mut entries = self.registry().after(after, JOBS_LISTED_MAX + 1);
        let more = entries.len() > JOBS_LISTED_MAX;
        entries.truncate(JOBS_LISTED_MAX);
        (entries.iter().map(|entry| in_short(entry.told())).collect(), more)
    }

    /// A job and its status as it changes.
    ///
    /// # Errors
    /// If there is none of that name.
    pub(crate) fn watch(
        &self,
        name: &JobName,
    ) -> Result<(Arc<JobEntry>, watch::Receiver<JobStatus>), DeskError> {
        let entry = self.entry(name)?;
        let changes = entry.status.subscribe();
        Ok((entry, changes))
    }

    /// Gives a job up. One that was given up already is as it should be.
    ///
    /// # Errors
    /// If there is none, it has ended otherwise, or the driver does not.
    pub(crate) async fn cancel(&self, name: &JobName) -> Result<Job, DeskError> {
        self.change(name, |job, reply| Request::Cancel { job, reply }).await
    }

    /// Starts nothing more of a job.
    ///
    /// # Errors
    /// If there is none, it has ended, or the driver does not.
    pub(crate) async fn pause(&self, name: &JobName) -> Result<Job, DeskError> {
        self.change(name, |job, reply| Request::Pause { job, reply }).await
    }

    /// Goes on with a job.
    ///
    /// # Errors
    /// If there is none, it has ended, or the driver does not.
    pub(crate) async fn unpause(&self, name: &JobName) -> Result<Job, DeskError> {
        self.change(name, |job, reply| Request::Unpause { job, reply }).await
    }

    /// Why a job, or one item of it, waits. `item` counts from 0.
    ///
    /// # Errors
    /// If there is none, or the driver does not answer.
    pub(crate) async fn explain(
        &self,
        job: JobId,
        item: Option<u64>,
    ) -> Result<Explanation, DeskError> {
        self.entry(&JobName::Id(job))?;
        let mut told = self.ask(|reply| Request::Explain { job, item, reply }).await?;
        let surplus = told.attempts.len().saturating_sub(ATTEMPTS_TOLD_MAX);
        told.attempts.drain(..surplus);
        told.attempts.iter_mut().for_each(|attempt| cut(&mut attempt.remark));
        Ok(told)
    }

    /// Which workers there are.
    ///
    /// # Errors
    /// If the driver does not answer.
    pub(crate) async fn workers(&self) -> Result<Vec<WorkerTold>, DeskError> {
        let mut told = self.ask(|reply| Request::Workers { reply }).await?;
        told.iter_mut().for_each(|worker| cut(&mut worker.state));
        Ok(told)
    }

    /// Removes jobs that have ended.
    ///
    /// # Errors
    /// If one that was named does not exist or has not ended, or the driver does not answer.
    pub(crate) async fn prune(&self, prune: Prune) -> Result<Pruned, DeskError> {
        for &job in &prune.jobs {
            if !self.entry(&JobName::Id(job))?.has_ended() {
                return Err(DeskError::NotEnded(job));
            }
        }
        self.ask(|reply| Request::Prune { prune, reply }).await
    }

    fn registry(&self) -> &Registry {
        &self.counter.registry
    }

    fn entry(&self, name: &JobName) -> Result<Arc<JobEntry>, DeskError> {
        self.registry().named(name).ok_or_else(|| match name {
            JobName::Id(id) => DeskError::NoSuchJob(*id),
            JobName::SubmitKey(key) => DeskError::NoSuchKey(key.clone()),
        })
    }

    async fn change(
        &self,
        name: &JobName,
        request: impl FnOnce(JobId, Reply<()>) -> Request,
    ) -> Result<Job, DeskError> {
        let entry = self.entry(name)?;
        self.ask(|reply| request(entry.id, reply)).await?;
        Ok(entry.told())
    }

    /// Asks the driver, and waits for the answer for a bounded time.
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, DeskError> {
        let (reply, answer) = oneshot::channel();
        let asking = async {
            let sent = self.counter.requests.send(request(reply)).await;
            sent.map_err(|_| DeskError::Stopping)?;
            // A driver that drops a request is ending.
            Ok(answer.await.map_err(|_| DeskError::Stopping)??)
        };
        within(Duration::from_millis(REQUEST_MS), asking).await
    }
}

/// A job as a line of a list, so that a page of them fits a message.
fn in_short(mut job: Job) -> Job {
    if let JobState::Ended(Ending {
        how: How::Unusable(why) | How::Failed(why) | How::Halted(why),
        ..
    }) = &mut job.status.state
    {
        cut(why);
    }
    if let Some(waits_for) = &mut job.status.waits_for {
        cut(waits_for);
    }
    job
}

fn cut(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(LINE_CHARS_SHOWN) {
        text.truncate(end);
        text.push('…');
    }
}

async fn within<T>(
    limit: Duration,
    asking: impl Future<Output = Result<T, DeskError>>,
) -> Result<T, DeskError> {
    tokio::time::timeout(limit, asking).await.unwrap_or(Err(DeskError::Busy))
}
