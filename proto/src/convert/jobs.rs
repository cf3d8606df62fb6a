//! Jobs of a coordinator that serves: submitting, collecting, and what of it is kept.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use widemap_common::ids::JobId;
use widemap_common::limits::{NAME_BYTES_MAX, PART_BYTES_MAX};

use super::spec::{job_from_wire, job_to_wire};
use super::{Result, WireError, shown};
use crate::jobs::{
    Blocks, Collecting, Ended, Ending, FailuresPart, Halt, How, JobCounts, JobName, JobPart,
    OutputForm, Policy, Position, StderrPart, Stops, Submission, Submitted, Submitting,
};
use crate::wire;

/// What stands for the number of a job that has none yet.
const NO_JOB: JobId = JobId(0);

impl Submission {
    /// The submission as it is kept and sent.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        wire::Submission::from(self.clone()).encode_to_vec().into()
    }

    /// The submission of such bytes.
    ///
    /// # Errors
    /// If they are of another build, or none.
    pub fn from_bytes(bytes: Bytes) -> Result<Self> {
        wire::Submission::decode(bytes).map_err(|_| WireError::Field("Submission"))?.try_into()
    }
}

impl Ended {
    /// The last word as it is kept.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        wire::Ended::from(self.clone()).encode_to_vec().into()
    }

    /// The last word of such bytes.
    ///
    /// # Errors
    /// If they are of another build, or none.
    pub fn from_bytes(bytes: Bytes) -> Result<Self> {
        wire::Ended::decode(bytes).map_err(|_| WireError::Field("Ended"))?.try_into()
    }
}

impl From<Submission> for wire::Submission {
    fn from(submission: Submission) -> Self {
        use wire::blocks::Kind;
        Self {
            name: submission.name,
            submit_key: submission.submit_key.unwrap_or_default(),
            spec: Some(job_to_wire(NO_JOB, submission.spec)),
            blocks: Some(wire::Blocks {
                kind: Some(match submission.blocks {
                    Blocks::ItemWise => Kind::ItemWise(true),
                    Blocks::Fixed(bytes) => Kind::FixedBytes(bytes),
                    Blocks::Schedule => Kind::Schedule(true),
                }),
            }),
            policy: Some(policy_to_wire(submission.policy)),
            output: Some(form_to_wire(submission.output)),
            submitted_ms: submission.submitted_ms,
            submitter: submission.submitter,
            begins_at_once: submission.begins_at_once,
            early_key: submission.early_key.unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::Submission> for Submission {
    type Error = WireError;
    fn try_from(submission: wire::Submission) -> Result<Self> {
        use wire::blocks::Kind;
        let spec = job_from_wire(submission.spec.ok_or(WireError::Field("Submission.spec"))?)?;
        let blocks = match submission.blocks.and_then(|blocks| blocks.kind) {
            Some(Kind::ItemWise(_)) => Blocks::ItemWise,
            Some(Kind::FixedBytes(bytes)) if bytes > 0 => Blocks::Fixed(bytes),
            Some(Kind::Schedule(_)) => Blocks::Schedule,
            _ => return Err(WireError::Field("Submission.blocks")),
        };
        if spec.function.runtime().is_block_wise() == (blocks == Blocks::ItemWise) {
            return Err(WireError::Field("Submission.blocks"));
        }
        Ok(Self {
            name: shown(submission.name, NAME_BYTES_MAX),
            submit_key: key_from_wire(submission.submit_key)?,
            spec,
            blocks,
            policy: policy_from_wire(
                submission.policy.ok_or(WireError::Field("Submission.policy"))?,
            )?,
            output: form_from_wire(submission.output)?,
            submitter: shown(submission.submitter, NAME_BYTES_MAX),
            submitted_ms: submission.submitted_ms,
            begins_at_once: submission.begins_at_once,
            early_key: key_from_wire(submission.early_key)?,
        })
    }
}

/// A key is compared byte for byte: it is refused, never made fit.
fn key_from_wire(key: String) -> Result<Option<String>> {
    if key.len() > NAME_BYTES_MAX || key.chars().any(char::is_control) {
        return Err(WireError::Field("submit_key"));
    }
    Ok((!key.is_empty()).then_some(key))
}

fn policy_to_wire(policy: Policy) -> wire::Policy {
    wire::Policy {
        retries: policy.retries,
        crash_limit: policy.crash_limit,
        chunk_items: policy.chunk_items,
        chunk_target_us: u64::try_from(policy.chunk_target.as_micros()).unwrap_or(u64::MAX),
        weight: policy.weight,
        priority: policy.priority,
        speculate: policy.speculate,
        require: policy.require.into_iter().collect(),
        halt_failures: policy.stops.halt.map_or(0, |halt| halt.failures),
        halt_now: policy.stops.halt.is_some_and(|halt| halt.now),
        canary: policy.stops.canary,
    }
}

fn policy_from_wire(policy: wire::Policy) -> Result<Policy> {
    if policy.weight == 0 {
        return Err(WireError::Field("Policy.weight"));
    }
    if policy.chunk_items == Some(0) {
        return Err(WireError::Field("Policy.chunk_items"));
    }
    Ok(Policy {
        retries: policy.retries,
        crash_limit: policy.crash_limit,
        chunk_items: policy.chunk_items,
        chunk_target: Duration::from_micros(policy.chunk_target_us),
        weight: policy.weight,
        priority: policy.priority,
        speculate: policy.speculate,
        require: policy.require.into_iter().collect(),
        stops: Stops {
            halt: (policy.halt_failures > 0)
                .then_some(Halt { failures: policy.halt_failures, now: policy.halt_now }),
            canary: policy.canary,
        },
    })
}

pub(super) fn form_to_wire(form: OutputForm) -> wire::OutputForm {
    use wire::output_form::Format;
    wire::OutputForm {
        format: match (form.frames, form.json) {
            (true, _) => Format::Frames,
            (false, true) => Format::Json,
            (false, false) => Format::Raw,
        }
        .into(),
        unordered: form.unordered,
        separator: form.separator.into(),
        fill: form.fill.map(Bytes::from),
        tag: form.tag,
        records: form.records,
    }
}

pub(super) fn form_from_wire(form: Option<wire::OutputForm>) -> Result<OutputForm> {
    use wire::output_form::Format;
    let form = form.ok_or(WireError::Field("output"))?;
    let (json, frames) = match form.format() {
        Format::Raw => (false, false),
        Format::Json => (true, false),
        Format::Frames => (false, true),
        Format::Unspecified => return Err(WireError::Field("OutputForm.format")),
    };
    let separator = form.separator.try_into();
    Ok(OutputForm {
        json,
        unordered: form.unordered,
        separator: separator.map_err(|_| WireError::Field("OutputForm.separator"))?,
        fill: form.fill.map(|fill| fill.to_vec()),
        tag: form.tag,
        records: form.records,
        frames,
    })
}

impl From<Submitting> for wire::SubmitRequest {
    fn from(submitting: Submitting) -> Self {
        use wire::submit_request::Kind;
        let kind = match submitting {
            Submitting::Begin(submission) => Kind::Begin((*submission).into()),
            Submitting::Artifact(part) => Kind::Artifact(part.into()),
            Submitting::Items(part) => Kind::Items(wire::ItemsPart {
                offset: part.offset,
                crc32c: crc32c::crc32c(&part.data),
                data: part.data,
            }),
            Submitting::End(input_bytes) => Kind::End(wire::SubmitEnd { input_bytes }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<wire::SubmitRequest> for Submitting {
    type Error = WireError;
    fn try_from(request: wire::SubmitRequest) -> Result<Self> {
        use wire::submit_request::Kind;
        Ok(match request.kind.ok_or(WireError::UnknownKind)? {
            Kind::Begin(submission) => Self::Begin(Box::new(submission.try_into()?)),
            Kind::Artifact(part) => Self::Artifact(part.try_into()?),
            Kind::Items(part) => {
                Self::Items(part_from_wire("the items", part.offset, part.data, part.crc32c)?)
            }
            Kind::End(end) => Self::End(end.input_bytes),
        })
    }
}

fn part_from_wire(of: &'static str, offset: u64, data: Bytes, sent: u32) -> Result<JobPart> {
    if data.len() > PART_BYTES_MAX || offset.checked_add(data.len() as u64).is_none() {
        return Err(WireError::Field("part"));
    }
    let got = crc32c::crc32c(&data);
    match got == sent {
        true => Ok(JobPart { offset, data }),
        false => Err(WireError::Changed { of, offset, got, sent }),
    }
}

impl From<Submitted> for wire::SubmitReply {
    fn from(submitted: Submitted) -> Self {
        Self { job: Some(submitted.job.into()), was_there: submitted.was_there }
    }
}

impl TryFrom<wire::SubmitReply> for Submitted {
    type Error = WireError;
    fn try_from(reply: wire::SubmitReply) -> Result<Self> {
        let job = reply.job.ok_or(WireError::Field("SubmitReply.job"))?;
        Ok(Self { job: job.try_into()?, was_there: reply.was_there })
    }
}

impl wire::ResultsRequest {
    /// Asks for the results of a job from a position on.
    #[must_use]
    pub fn from_position(job: JobId, position: Position) -> Self {
        Self {
            job: job.0,
            output_from: position.output_bytes,
            failures_from: position.failures,
            stderr_from: position.stderr,
            early_key: String::new(),
        }
    }

    /// Asks for the results of a job that is being handed in, from a position of `known` on if it is that one.
    #[must_use]
    pub fn early(early_key: String, known: Option<JobId>, position: Position) -> Self {
        Self { early_key, ..Self::from_position(known.unwrap_or(NO_JOB), position) }
    }

    /// From where on results are asked for.
    #[must_use]
    pub fn position(&self) -> Position {
        Position {
            output_bytes: self.output_from,
            failures: self.failures_from,
            stderr: self.stderr_from,
        }
    }
}

impl From<Collecting> for wire::ResultsReply {
    fn from(collecting: Collecting) -> Self {
        use wire::results_reply::Kind;
        let kind = match collecting {
            Collecting::OfJob(job) => Kind::OfJob(job.0),
            Collecting::Output(part) => Kind::Output(wire::ResultsPart {
                offset: part.offset,
                crc32c: crc32c::crc32c(&part.data),
                data: part.data,
            }),
            Collecting::Failures(part) => Kind::Failures(wire::Failures {
                first: part.first,
                crc32c: checksum(&part.records),
                records: part.records,
                unfinished: part.is_unfinished,
            }),
            Collecting::Stderr(part) => Kind::Stderr(wire::Stderr {
                first: part.first,
                crc32c: checksum(&part.pieces),
                pieces: part.pieces,
            }),
            Collecting::Ended(job) => Kind::Ended((*job).into()),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<wire::ResultsReply> for Collecting {
    type Error = WireError;
    fn try_from(reply: wire::ResultsReply) -> Result<Self> {
        use wire::results_reply::Kind;
        Ok(match reply.kind.ok_or(WireError::UnknownKind)? {
            Kind::OfJob(job) => Self::OfJob(JobId(job)),
            Kind::Output(part) => {
                Self::Output(part_from_wire("the output", part.offset, part.data, part.crc32c)?)
            }
            Kind::Failures(failures) => {
                let (got, sent) = (checksum(&failures.records), failures.crc32c);
                if got != sent {
                    let (of, offset) = ("the failures", failures.first);
                    return Err(WireError::Changed { of, offset, got, sent });
                }
                Self::Failures(FailuresPart {
                    first: failures.first,
                    records: failures.records,
                    is_unfinished: failures.unfinished,
                })
            }
            Kind::Stderr(stderr) => {
                let (got, sent) = (checksum(&stderr.pieces), stderr.crc32c);
                if got != sent {
                    let (of, offset) = ("standard error", stderr.first);
                    return Err(WireError::Changed { of, offset, got, sent });
                }
                Self::Stderr(StderrPart { first: stderr.first, pieces: stderr.pieces })
            }
            Kind::Ended(job) => Self::Ended(Box::new(job.try_into()?)),
        })
    }
}

fn checksum(records: &[Bytes]) -> u32 {
    records.iter().fold(0, |crc, record| crc32c::crc32c_append(crc, record))
}

impl From<JobName> for wire::JobName {
    fn from(name: JobName) -> Self {
        use wire::job_name::Kind;
        Self {
            kind: Some(match name {
                JobName::Id(job) => Kind::Job(job.0),
                JobName::SubmitKey(key) => Kind::SubmitKey(key),
            }),
        }
    }
}

impl TryFrom<wire::JobName> for JobName {
    type Error = WireError;
    fn try_from(name: wire::JobName) -> Result<Self> {
        use wire::job_name::Kind;
        Ok(match name.kind.ok_or(WireError::Field("JobName"))? {
            Kind::Job(job) => Self::Id(JobId(job)),
            Kind::SubmitKey(key) => Self::SubmitKey(key),
        })
    }
}

impl From<Ended> for wire::Ended {
    fn from(ended: Ended) -> Self {
        use wire::ended::How as Wire;
        Self {
            ended_ms: ended.ending.ended_ms,
            how: Some(match ended.ending.how {
                How::Complete => Wire::Complete(true),
                How::Cancelled => Wire::Cancelled(true),
                How::Unusable(why) => Wire::Unusable(why),
                How::Failed(why) => Wire::Failed(why),
                How::Halted(why) => Wire::Halted(why),
            }),
            counts: Some(counts_to_wire(ended.counts)),
            started_ms: ended.started_ms.unwrap_or(0),
        }
    }
}

impl TryFrom<wire::Ended> for Ended {
    type Error = WireError;
    fn try_from(ended: wire::Ended) -> Result<Self> {
        use wire::ended::How as Wire;
        let message = |why| shown(why, widemap_common::limits::MESSAGE_BYTES_MAX);
        let how = match ended.how.ok_or(WireError::Field("Ended.how"))? {
            Wire::Complete(_) => How::Complete,
            Wire::Cancelled(_) => How::Cancelled,
            Wire::Unusable(why) => How::Unusable(message(why)),
            Wire::Failed(why) => How::Failed(message(why)),
            Wire::Halted(why) => How::Halted(message(why)),
        };
        Ok(Self {
            ending: Ending { how, ended_ms: ended.ended_ms },
            counts: counts_from_wire(&ended.counts.unwrap_or_default()),
            started_ms: (ended.started_ms > 0).then_some(ended.started_ms),
        })
    }
}

pub(super) fn counts_to_wire(counts: JobCounts) -> wire::JobCounts {
    let JobCounts {
        read,
        total,
        ok,
        failed,
        retried,
        attempts,
        speculative_wins,
        workers,
        workers_lost,
    } = counts;
    wire::JobCounts {
        read,
        total,
        ok,
        failed,
        retried,
        attempts,
        speculative_wins,
        workers,
        workers_lost,
    }
}

pub(super) fn counts_from_wire(counts: &wire::JobCounts) -> JobCounts {
    let &wire::JobCounts {
        read,
        total,
        ok,
        failed,
        retried,
        attempts,
        speculative_wins,
        workers,
        workers_lost,
    } = counts;
    JobCounts {
        read,
        total,
        ok,
        failed,
        retried,
        attempts,
        speculative_wins,
        workers,
        workers_lost,
    }
}
