//! Which jobs there are: those that wait, run or are paused, and those that have ended and are kept.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;
use widemap_common::ids::JobId;
use widemap_proto::jobs::{Ended, Job, JobName, JobStatus, Submission};

use super::ledger::Shelf;
use crate::data::Arriving;

/// Every job of this coordinator.
#[derive(Default)]
pub(crate) struct Registry {
    jobs: RwLock<Jobs>,
}

#[derive(Default)]
struct Jobs {
    by_id: BTreeMap<JobId, Arc<JobEntry>>,
    by_key: HashMap<String, JobId>,
}

/// A job.
pub(crate) struct JobEntry {
    /// Which.
    pub(crate) id: JobId,
    /// What was submitted.
    pub(crate) submission: Submission,
    /// When: Unix time in milliseconds.
    pub(crate) created_ms: u64,
    /// The items, as they lie in the submission's framing; none if they are not kept here.
    pub(crate) input: Option<PathBuf>,
    /// How long that is; 0 until all of it is there.
    pub(crate) input_bytes: AtomicU64,
    /// How far it is, of a job that began while it was still coming.
    pub(crate) arriving: Option<Arc<Arriving>>,
    /// When all of it was there, of such a job: it may have ended long before anybody was told of it.
    pub(crate) accepted_ms: AtomicU64,
    /// What is durable of its results.
    pub(crate) shelf: Arc<dyn Shelf>,
    /// How far it is: published by the driver, at the end too.
    pub(crate) status: watch::Sender<JobStatus>,
}

/// What waits, all jobs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Waiting {
    /// Jobs that have not ended.
    pub(crate) jobs: usize,
    /// The bytes of their input.
    pub(crate) input_bytes: u64,
}

impl Registry {
    /// Adds a job. One with the same submit key is found by it no more.
    pub(crate) fn insert(&self, entry: Arc<JobEntry>) {
        let mut jobs = self.write();
        if let Some(key) = &entry.submission.submit_key {
            jobs.by_key.insert(key.clone(), entry.id);
        }
        jobs.by_id.insert(entry.id, entry);
    }

    /// Takes a job out.
    pub(crate) fn remove(&self, id: JobId) -> Option<Arc<JobEntry>> {
        let mut jobs = self.write();
        let entry = jobs.by_id.remove(&id)?;
        if let Some(key) = &entry.submission.submit_key
            && jobs.by_key.get(key) == Some(&id)
        {
            jobs.by_key.remove(key);
        }
        Some(entry)
    }

    /// A job.
    pub(crate) fn get(&self, id: JobId) -> Option<Arc<JobEntry>> {
        self.read().by_id.get(&id).cloned()
    }

    /// The job that was submitted with a key.
    pub(crate) fn by_key(&self, key: &str) -> Option<Arc<JobEntry>> {
        let jobs = self.read();
        jobs.by_key.get(key).and_then(|id| jobs.by_id.get(id)).cloned()
    }

    /// The job of that name.
    pub(crate) fn named(&self, name: &JobName) -> Option<Arc<JobEntry>> {
        match name {
            JobName::Id(id) => self.get(*id),
            JobName::SubmitKey(key) => self.by_key(key),
        }
    }

    /// Up to `jobs_max` jobs after one, in the order in which they were submitted.
    pub(crate) fn after(&self, id: JobId, jobs_max: usize) -> Vec<Arc<JobEntry>> {
        let jobs = self.read();
        let range = jobs.by_id.range((Bound::Excluded(id), Bound::Unbounded));
        range.take(jobs_max).map(|(_, entry)| Arc::clone(entry)).collect()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<JobEntry>> {
        self.read().by_id.values().cloned().collect()
    }

    /// What has not ended.
    pub(crate) fn waiting(&self) -> Waiting {
        let jobs = self.read();
        jobs.by_id.values().filter(|entry| !entry.has_ended()).fold(
            Waiting::default(),
            |sum, entry| Waiting {
                jobs: sum.jobs + 1,
                input_bytes: sum.input_bytes + entry.input_bytes(),
            },
        )
    }

    fn read(&self) -> RwLockReadGuard<'_, Jobs> {
        self.jobs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Jobs> {
        self.jobs.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JobEntry {
    /// How far it is. That it has ended, and what is durable of its output, is the shelf's to say.
    pub(crate) fn status(&self) -> JobStatus {
        let output_bytes = self.shelf.output_bytes();
        match self.ended() {
            Some(ended) => JobStatus::ended(ended, output_bytes),
            None => JobStatus { output_bytes, ..self.status.borrow().clone() },
        }
    }

    /// How many bytes its items have.
    pub(crate) fn input_bytes(&self) -> u64 {
        self.input_bytes.load(Ordering::Acquire)
    }

    /// When all of its items were there, in this life, if it began before: Unix time in milliseconds, or 0.
    pub(crate) fn accepted_ms(&self) -> u64 {
        self.accepted_ms.load(Ordering::Acquire)
    }

    /// Whether it had begun, and was given up before it was accepted.
    pub(crate) fn is_given_up(&self) -> bool {
        self.arriving.as_ref().is_some_and(|arriving| arriving.is_given_up())
    }

    /// Whether it is one that is kept: waits for that, if all of its items are still to come.
    pub(crate) async fn is_accepted(&self) -> bool {
        match &self.arriving {
            Some(arriving) => arriving.is_accepted().await,
            None => true,
        }
    }

    /// Waits until it is given up, which what is kept never is.
    pub(crate) async fn given_up(&self) {
        if self.is_accepted().await {
            std::future::pending::<()>().await;
        }
    }

    /// What users are told of it.
    pub(crate) fn told(&self) -> Job {
        let submission = &self.submission;
        Job {
            id: self.id,
            name: submission.name.clone(),
            submit_key: submission.submit_key.clone(),
            submitter: submission.submitter.clone(),
            function: submission.function_shown(),
            weight: submission.policy.weight,
            priority: submission.policy.priority,
            created_ms: self.created_ms,
            input_bytes: self.input_bytes(),
            output: submission.output.clone(),
            what_runs: None,
            status: self.status(),
        }
    }

    /// Its last word, once that is durable.
    pub(crate) fn ended(&self) -> Option<Ended> {
        // What this build cannot read was refused when the job was restored.
        Ended::from_bytes(self.shelf.ended()?).ok()
    }

    /// Whether it is over.
    pub(crate) fn has_ended(&self) -> bool {
        self.shelf.ended().is_some()
    }
}

impl fmt::Debug for JobEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobEntry").field("id", &self.id).finish_non_exhaustive()
    }
}
