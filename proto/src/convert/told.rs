//! What is told of jobs and workers to whoever looks at them.

use std::time::Duration;

use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::limits::{MESSAGE_BYTES_MAX, NAME_BYTES_MAX};

use super::jobs::{counts_from_wire, counts_to_wire, form_from_wire, form_to_wire};
use super::{Result, WireError, shown};
use crate::jobs::{
    AttemptState, AttemptTold, Ended, Explanation, Job, JobState, JobStatus, Prune, Pruned,
    WhatRuns, WorkerTold, WorkerTraits,
};
use crate::wire;

impl From<Job> for wire::Job {
    fn from(job: Job) -> Self {
        Self {
            job: job.id.0,
            name: job.name,
            submit_key: job.submit_key.unwrap_or_default(),
            submitter: job.submitter,
            function: job.function,
            weight: job.weight,
            priority: job.priority,
            created_ms: job.created_ms,
            input_bytes: job.input_bytes,
            status: Some(job.status.into()),
            output: Some(form_to_wire(job.output)),
            what_runs: job.what_runs.map(Into::into),
        }
    }
}

impl From<WhatRuns> for wire::WhatRuns {
    fn from(what: WhatRuns) -> Self {
        let WhatRuns { runtime, argv, framing, digest } = what;
        Self { runtime, argv, framing, digest }
    }
}

impl From<wire::WhatRuns> for WhatRuns {
    fn from(what: wire::WhatRuns) -> Self {
        let wire::WhatRuns { runtime, argv, framing, digest } = what;
        Self { runtime, argv, framing, digest }
    }
}

impl TryFrom<wire::Job> for Job {
    type Error = WireError;
    fn try_from(job: wire::Job) -> Result<Self> {
        let name = |text| shown(text, NAME_BYTES_MAX);
        Ok(Self {
            id: JobId(job.job),
            name: name(job.name),
            submit_key: (!job.submit_key.is_empty()).then_some(job.submit_key),
            submitter: name(job.submitter),
            function: name(job.function),
            weight: job.weight,
            priority: job.priority,
            created_ms: job.created_ms,
            input_bytes: job.input_bytes,
            status: job.status.ok_or(WireError::Field("Job.status"))?.try_into()?,
            output: form_from_wire(job.output)?,
            what_runs: job.what_runs.map(Into::into),
        })
    }
}

impl From<JobStatus> for wire::JobStatus {
    fn from(status: JobStatus) -> Self {
        use wire::job_status::State;
        let (counts, started_ms) = (status.counts, status.started_ms);
        let state = match status.state {
            JobState::Queued => State::Queued(true),
            JobState::Running => State::Running(true),
            JobState::Paused => State::Paused(true),
            JobState::Ended(ending) => State::Ended(Ended { ending, counts, started_ms }.into()),
        };
        Self {
            state: Some(state),
            counts: Some(counts_to_wire(counts)),
            output_bytes: status.output_bytes,
            started_ms: started_ms.unwrap_or(0),
            waits_for: status.waits_for.unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::JobStatus> for JobStatus {
    type Error = WireError;
    fn try_from(status: wire::JobStatus) -> Result<Self> {
        use wire::job_status::State;
        let state = match status.state.ok_or(WireError::Field("JobStatus.state"))? {
            State::Queued(_) => JobState::Queued,
            State::Running(_) => JobState::Running,
            State::Paused(_) => JobState::Paused,
            State::Ended(ended) => JobState::Ended(Ended::try_from(ended)?.ending),
        };
        let waits_for = shown(status.waits_for, MESSAGE_BYTES_MAX);
        Ok(Self {
            state,
            counts: counts_from_wire(&status.counts.unwrap_or_default()),
            output_bytes: status.output_bytes,
            started_ms: (status.started_ms > 0).then_some(status.started_ms),
            waits_for: (!waits_for.is_empty()).then_some(waits_for),
        })
    }
}

impl From<Explanation> for wire::Explanation {
    fn from(explanation: Explanation) -> Self {
        let attempts = explanation.attempts.into_iter().map(attempt_to_wire).collect();
        Self { sentence: explanation.sentence, attempts }
    }
}

impl TryFrom<wire::Explanation> for Explanation {
    type Error = WireError;
    fn try_from(explanation: wire::Explanation) -> Result<Self> {
        Ok(Self {
            sentence: shown(explanation.sentence, MESSAGE_BYTES_MAX),
            attempts: explanation
                .attempts
                .into_iter()
                .map(attempt_from_wire)
                .collect::<Result<_>>()?,
        })
    }
}

fn attempt_to_wire(told: AttemptTold) -> wire::AttemptTold {
    use wire::attempt_told::State;
    wire::AttemptTold {
        attempt: told.attempt.0,
        first_item: told.range.first,
        items: told.range.items,
        worker: told.worker,
        assigned_ms: told.assigned_ms,
        ran_us: micros(told.ran),
        state: match told.state {
            AttemptState::Waiting => State::Waiting,
            AttemptState::Running => State::Running,
            AttemptState::Succeeded => State::Succeeded,
            AttemptState::Failed => State::Failed,
            AttemptState::Lost => State::Lost,
            AttemptState::Cancelled => State::Cancelled,
            AttemptState::Revoked => State::Revoked,
            AttemptState::Rejected => State::Rejected,
        }
        .into(),
        remark: told.remark,
        speculative: told.speculative,
    }
}

fn attempt_from_wire(told: wire::AttemptTold) -> Result<AttemptTold> {
    use wire::attempt_told::State;
    let state = match told.state() {
        State::Waiting => AttemptState::Waiting,
        State::Running => AttemptState::Running,
        State::Succeeded => AttemptState::Succeeded,
        State::Failed => AttemptState::Failed,
        State::Lost => AttemptState::Lost,
        State::Cancelled => AttemptState::Cancelled,
        State::Revoked => AttemptState::Revoked,
        State::Rejected => AttemptState::Rejected,
        State::Unspecified => return Err(WireError::Field("AttemptTold.state")),
    };
    if told.items == 0 || told.first_item.checked_add(told.items.into()).is_none() {
        return Err(WireError::Field("AttemptTold.items"));
    }
    Ok(AttemptTold {
        attempt: AttemptId(told.attempt),
        range: ItemRange::new(told.first_item, told.items),
        worker: shown(told.worker, NAME_BYTES_MAX),
        assigned_ms: told.assigned_ms,
        ran: Duration::from_micros(told.ran_us),
        state,
        remark: shown(told.remark, MESSAGE_BYTES_MAX),
        speculative: told.speculative,
    })
}

impl From<WorkerTold> for wire::WorkerTold {
    fn from(told: WorkerTold) -> Self {
        Self {
            address: told.address,
            sources: told.sources,
            state: told.state,
            worker: told.worker.map(|worker| wire::WorkerTraits {
                name: worker.name,
                build: worker.build,
                slots: worker.slots,
                runtimes: worker.runtimes,
                labels: worker.labels.into_iter().collect(),
                round_trip_us: worker.round_trip.map_or(0, micros),
                left_out_ms: worker.left_out.map_or(0, |time| micros(time).div_ceil(1_000)),
                running: worker.running,
                waiting: worker.waiting,
            }),
        }
    }
}

impl From<wire::WorkerTold> for WorkerTold {
    fn from(told: wire::WorkerTold) -> Self {
        let name = |text| shown(text, NAME_BYTES_MAX);
        Self {
            address: name(told.address),
            sources: told.sources.into_iter().map(name).collect(),
            state: shown(told.state, MESSAGE_BYTES_MAX),
            worker: told.worker.map(|worker| WorkerTraits {
                name: name(worker.name),
                build: name(worker.build),
                slots: worker.slots,
                runtimes: worker.runtimes.into_iter().map(name).collect(),
                labels: worker.labels.into_iter().map(|(k, v)| (name(k), name(v))).collect(),
                round_trip: (worker.round_trip_us > 0)
                    .then(|| Duration::from_micros(worker.round_trip_us)),
                left_out: (worker.left_out_ms > 0)
                    .then(|| Duration::from_millis(worker.left_out_ms)),
                running: worker.running,
                waiting: worker.waiting,
            }),
        }
    }
}

impl From<Prune> for wire::PruneRequest {
    fn from(prune: Prune) -> Self {
        Self {
            jobs: prune.jobs.iter().map(|job| job.0).collect(),
            ended_before_ms: u64::try_from(prune.ended_before.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl From<wire::PruneRequest> for Prune {
    fn from(request: wire::PruneRequest) -> Self {
        Self {
            jobs: request.jobs.into_iter().map(JobId).collect(),
            ended_before: Duration::from_millis(request.ended_before_ms),
        }
    }
}

impl From<Pruned> for wire::PruneReply {
    fn from(pruned: Pruned) -> Self {
        let jobs = pruned.jobs.iter().map(|job| job.0).collect();
        Self { jobs, freed_bytes: pruned.freed_bytes }
    }
}

impl From<wire::PruneReply> for Pruned {
    fn from(reply: wire::PruneReply) -> Self {
        let jobs = reply.jobs.into_iter().map(JobId).collect();
        Self { jobs, freed_bytes: reply.freed_bytes }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
