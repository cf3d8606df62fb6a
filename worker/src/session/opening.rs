//! Jobs that are being opened: what is in their files comes first, then the files are put in place, which
//! is work on a disk and not for the thread that serves the streams.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use widemap_common::ids::JobId;
use widemap_common::spec::JobSpec;
use widemap_proto::session::{Refusal, RefusalCause, Report};

use crate::artifacts::{ArtifactCache, AskerId, Claim, Progress};
use crate::job::{self, Host, Job};

/// See the file's head.
pub(super) struct Opening {
    host: Arc<Host>,
    cache: Option<(Arc<ArtifactCache>, AskerId)>,
    jobs: BTreeMap<JobId, Stage>,
    placements: Vec<Placement>,
    last_placement: u64,
}

enum Stage {
    /// Its files are not all here.
    Waits(Box<JobSpec>, Claim),
    /// They are being put in place, by the placement of this number.
    Placed(u64),
}

/// Work to be done where that keeps nobody else.
pub(super) struct Placement {
    number: u64,
    job: JobId,
    spec: Box<JobSpec>,
    claim: Claim,
    host: Arc<Host>,
}

/// What came of a [`Placement`].
pub(super) struct Opened {
    number: u64,
    pub(super) job: JobId,
    pub(super) result: Result<Job, Refusal>,
}

impl Placement {
    /// Does it.
    pub(super) fn carry_out(self) -> Opened {
        let Self { number, job, spec, claim, host } = self;
        Opened { number, job, result: Job::open(job, *spec, &host, Some(&claim)) }
    }
}

impl Opening {
    pub(super) fn new(host: Arc<Host>) -> Self {
        let cache = host.artifacts.clone().map(|cache| {
            let asker = cache.new_asker();
            (cache, asker)
        });
        Self { host, cache, jobs: BTreeMap::new(), placements: Vec::new(), last_placement: 0 }
    }

    /// Changes when something has come that a job may wait for.
    pub(super) fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.cache.as_ref().map(|(cache, _)| cache.changes())
    }

    /// A stream begins: what was asked for on the former one will not come.
    pub(super) fn begin_stream(&self) {
        self.forget_asked();
    }

    /// Others may ask for what this session has asked for.
    fn forget_asked(&self) {
        if let Some((cache, asker)) = &self.cache {
            cache.forget(*asker);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(super) fn contains(&self, job: JobId) -> bool {
        self.jobs.contains_key(&job)
    }

    /// Begins to open a job that brings files along.
    pub(super) fn begin(&mut self, id: JobId, spec: Box<JobSpec>) -> Result<(), Refusal> {
        job::allowed(spec.function.runtime(), &self.host)?;
        let Some((cache, _)) = &self.cache else { return Err(job::no_commands(&self.host)) };
        let claim = cache.claim(spec.artifacts()).map_err(|error| Refusal {
            cause: RefusalCause::Limit,
            message: format!("{} cannot take the job: {error}", self.host.name),
        })?;
        self.jobs.insert(id, Stage::Waits(spec, claim));
        Ok(())
    }

    /// A job is not wanted any more. What it has asked for may not come: perhaps that is why.
    pub(super) fn close(&mut self, job: JobId) {
        if let Some(Stage::Waits(..)) = self.jobs.remove(&job) {
            self.forget_asked();
        }
    }

    /// Goes on with all jobs. What is to be said of them comes back.
    pub(super) fn advance_all(&mut self) -> Vec<Report> {
        let jobs: Vec<_> = self.jobs.keys().copied().collect();
        jobs.into_iter().filter_map(|job| self.advance(job)).collect()
    }

    /// Goes on with a job, if it is being opened.
    pub(super) fn advance(&mut self, job: JobId) -> Option<Report> {
        let (_, asker) = self.cache.as_ref()?;
        let Stage::Waits(_, claim) = self.jobs.get(&job)? else { return None };
        match claim.progress(*asker) {
            Progress::Waits(ask) => (!ask.is_empty()).then_some(Report::JobNeeds(job, ask)),
            Progress::Failed(why) => {
                self.jobs.remove(&job);
                let message = format!("{} cannot take the job: {why}", self.host.name);
                Some(Report::JobRefused(job, Refusal { cause: RefusalCause::Limit, message }))
            }
            Progress::Ready => {
                self.last_placement += 1;
                let number = self.last_placement;
                if let Some(Stage::Waits(spec, claim)) =
                    self.jobs.insert(job, Stage::Placed(number))
                {
                    let host = Arc::clone(&self.host);
                    self.placements.push(Placement { number, job, spec, claim, host });
                }
                None
            }
        }
    }

    /// What is to be done elsewhere.
    pub(super) fn take_placements(&mut self) -> Vec<Placement> {
        std::mem::take(&mut self.placements)
    }

    /// Whether a job that was opened is still wanted.
    pub(super) fn finish(&mut self, opened: &Opened) -> bool {
        let is_wanted = matches!(self.jobs.get(&opened.job),
            Some(Stage::Placed(number)) if *number == opened.number);
        if is_wanted {
            self.jobs.remove(&opened.job);
        }
        is_wanted
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.forget_asked();
    }
}
