//! What users and a coordinator that serves say to each other of jobs, as the program sees it. The
//! wire's own types stay in this crate.

mod told;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use widemap_common::ids::JobId;
use widemap_common::limits::ITEM_CHARS_SHOWN;
use widemap_common::spec::{Function, JobSpec};

use crate::artifact::ArtifactPart;
pub use told::{AttemptState, AttemptTold, Explanation, Prune, Pruned, WorkerTold, WorkerTraits};

/// Everything about a job but its items.
#[derive(Clone, PartialEq, Debug)]
pub struct Submission {
    /// For people; empty if it was given none.
    pub name: String,
    /// Whoever submits with the key of a job that there is gets that job.
    pub submit_key: Option<String>,
    /// What workers must know of it.
    pub spec: JobSpec,
    /// How items become chunks.
    pub blocks: Blocks,
    /// How it is to be run.
    pub policy: Policy,
    /// How its results are written.
    pub output: OutputForm,
    /// Who submits, for people: `ann@host`.
    pub submitter: String,
    /// The submitter's wall clock: Unix time in milliseconds. To be shown, and for nothing else.
    pub submitted_ms: u64,
    /// Whether its items may run while the rest of them comes.
    pub begins_at_once: bool,
    /// By which its results can be had before all of its items are there.
    pub early_key: Option<String>,
}

/// How items become chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blocks {
    /// Chunks of any size.
    ItemWise,
    /// Each block has at least so many bytes of whole items.
    Fixed(u64),
    /// Blocks grow from small ones.
    Schedule,
}

/// How a job is to be run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// More runs of a failed item.
    pub retries: u32,
    /// Worker deaths that may be charged to what was running.
    pub crash_limit: u32,
    /// A fixed number of items a chunk; adaptive if not given.
    pub chunk_items: Option<u32>,
    /// What an attempt should take.
    pub chunk_target: Duration,
    /// The share of the workers relative to other jobs of its priority; at least 1.
    pub weight: u32,
    /// Jobs of a higher one come first.
    pub priority: i32,
    /// Whether stragglers get a speculative attempt.
    pub speculate: bool,
    /// Labels that a worker must have.
    pub require: BTreeMap<String, String>,
    /// When it is to stop before its end.
    pub stops: Stops,
}

/// When a job is to stop before its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stops {
    /// After failures.
    pub halt: Option<Halt>,
    /// So many first items (blocks) run before all others, and a failure among them stops the job. 0 for none.
    pub canary: u64,
}

/// A job stops after failures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Halt {
    /// So many items (blocks) that failed for good; at least 1.
    pub failures: u64,
    /// What runs then is ended, too.
    pub now: bool,
}

/// How results are written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutputForm {
    /// JSON lines, or the raw bytes.
    pub json: bool,
    /// As they come, not in the order of the items.
    pub unordered: bool,
    /// What a line ends in that is added to raw output.
    pub separator: u8,
    /// The line that stands for a failed item in raw output, without its end.
    pub fill: Option<Vec<u8>>,
    /// Each line of raw output has its item before it.
    pub tag: bool,
    /// What is kept says enough of each item for a log of all of them and a directory of outputs.
    pub records: bool,
    /// A frame for each item, for a program that reads them: see `Format::FRAMES` in the protocol.
    pub frames: bool,
}

impl OutputForm {
    /// Whether what is kept are records, of which whoever collects them makes the output.
    #[must_use]
    pub fn is_of_records(&self) -> bool {
        self.tag || self.records
    }
}

/// A message of a submission.
#[derive(Clone, PartialEq, Debug)]
pub enum Submitting {
    /// The first one.
    Begin(Box<Submission>),
    /// A part of what is in the job's files.
    Artifact(ArtifactPart),
    /// A part of the items.
    Items(JobPart),
    /// The last one: the length of the input.
    End(u64),
}

/// A part of a job's input or output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobPart {
    /// Where it begins.
    pub offset: u64,
    /// At most [`widemap_common::limits::PART_BYTES_MAX`].
    pub data: Bytes,
}

/// A job was submitted, now or before.
#[derive(Clone, PartialEq, Debug)]
pub struct Submitted {
    /// The job.
    pub job: Job,
    /// It was there already, submitted with the same key.
    pub was_there: bool,
}

/// How far results are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Bytes of the output.
    pub output_bytes: u64,
    /// Failures.
    pub failures: u64,
    /// Pieces of standard error.
    pub stderr: u64,
}

/// A message of results.
#[derive(Clone, PartialEq, Debug)]
pub enum Collecting {
    /// Whose results follow, to one who asked by an early key.
    OfJob(JobId),
    /// A part of the output.
    Output(JobPart),
    /// Items that failed for good.
    Failures(FailuresPart),
    /// What items have written on their standard error.
    Stderr(StderrPart),
    /// The job has ended, and all of it was sent.
    Ended(Box<Job>),
}

/// What items have written on their standard error, as it came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StderrPart {
    /// How many pieces there are before these.
    pub first: u64,
    /// Some lines for people each, without the last newline.
    pub pieces: Vec<Bytes>,
}

/// Failures, in the order of the output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FailuresPart {
    /// How many whole ones there are before them.
    pub first: u64,
    /// Lines of the failures file, each a JSON object without the newline; the first may be the rest of
    /// one that the part before it has begun.
    pub records: Vec<Bytes>,
    /// The last one goes on in the next part.
    pub is_unfinished: bool,
}

/// Which job is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JobName {
    /// This one.
    Id(JobId),
    /// The one that was submitted with this key.
    SubmitKey(String),
}

/// A job, as people and programs look at it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Which.
    pub id: JobId,
    /// For people; may be empty.
    pub name: String,
    /// What it was submitted with.
    pub submit_key: Option<String>,
    /// Who submitted it, for people.
    pub submitter: String,
    /// What it runs, for a person, cut short.
    pub function: String,
    /// Its share.
    pub weight: u32,
    /// Its priority.
    pub priority: i32,
    /// When it was durable: Unix time in milliseconds.
    pub created_ms: u64,
    /// The length of its input.
    pub input_bytes: u64,
    /// How its results are written.
    pub output: OutputForm,
    /// What it runs, whole; only where one job is asked for by its name.
    pub what_runs: Option<WhatRuns>,
    /// How far it is.
    pub status: JobStatus,
}

/// What a job runs, as a receipt says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WhatRuns {
    /// The name of the runtime.
    pub runtime: String,
    /// The command, or the function's name. Bytes that are not UTF-8 are replaced: the digest tells them
    /// apart.
    pub argv: Vec<String>,
    /// How items are told from each other.
    pub framing: String,
    /// Of the function, of its files and of how its items are framed: BLAKE3, in hexadecimal.
    pub digest: String,
}

/// How far a job is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobStatus {
    /// Whether it runs.
    pub state: JobState,
    /// What has become of its items.
    pub counts: JobCounts,
    /// Bytes of the output that are final.
    pub output_bytes: u64,
    /// When it first ran: Unix time in milliseconds.
    pub started_ms: Option<u64>,
    /// What it waits for, in one sentence.
    pub waits_for: Option<String>,
}

/// Whether a job runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JobState {
    /// Nothing of it has run yet.
    Queued,
    /// It may.
    Running,
    /// Nothing more of it is started until it is unpaused.
    Paused,
    /// It is over.
    Ended(Ending),
}

/// How a job ended, and when: Unix time in milliseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ending {
    /// How.
    pub how: How,
    /// When.
    pub ended_ms: u64,
}

/// How a job ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum How {
    /// Every item has its result or its failure.
    Complete,
    /// Somebody gave it up.
    Cancelled,
    /// No worker can run it: each one and why.
    Unusable(String),
    /// The coordinator could not go on with it: why.
    Failed(String),
    /// Items failed, and it was to stop then: how many.
    Halted(String),
}

/// What has become of a job's items.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JobCounts {
    /// Items that were read from the input so far.
    pub read: u64,
    /// All items, once all of the input is read.
    pub total: Option<u64>,
    /// Items that succeeded.
    pub ok: u64,
    /// Items that failed for good.
    pub failed: u64,
    /// Runs of items beyond their first.
    pub retried: u64,
    /// Attempts at chunks.
    pub attempts: u64,
    /// Speculative attempts that came in first.
    pub speculative_wins: u64,
    /// Workers that ran anything of it or could have.
    pub workers: u64,
    /// Workers that were lost while they had attempts of it.
    pub workers_lost: u64,
}

/// The last word on a job, as it is kept: what [`JobStatus`] of an ended job is made from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// How, and when.
    pub ending: Ending,
    /// What was done.
    pub counts: JobCounts,
    /// When it first ran: Unix time in milliseconds.
    pub started_ms: Option<u64>,
}

impl Submission {
    /// What differs between two submissions that have the same key, for a person; `None` if they are of
    /// one job. Who submits and when makes no difference.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        let (spec, others) = (&self.spec, &other.spec);
        let (policy, other_policy) = (&self.policy, &other.policy);
        [
            (spec.function != others.function, "what it runs"),
            (spec.framing != others.framing, "how its items are separated"),
            (self.blocks != other.blocks, "the size of its blocks (--block)"),
            (spec.directory != others.directory, "its directory (--wd)"),
            (spec.environment != others.environment, "its environment (--env)"),
            (spec.files != others.files, "its files (--file)"),
            (spec.timeout != others.timeout, "its time limit (--timeout)"),
            (spec.max_output != others.max_output, "its output limit (--max-output)"),
            (
                spec.limits != others.limits,
                "what an item may take (--memory, --cpu-seconds, --nice)",
            ),
            (policy.retries != other_policy.retries, "its retries (--retries)"),
            (policy.require != other_policy.require, "the labels that it requires (--require)"),
            (
                (policy.weight, policy.priority) != (other_policy.weight, other_policy.priority),
                "its weight or priority (--weight, --priority)",
            ),
            (policy != other_policy, "how it is to be run"),
            (
                self.output != other.output,
                "the form of its results (--format, --unordered, --tag, --fill)",
            ),
            (self.name != other.name, "its name (--name)"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }

    /// What it runs, for a person, cut short.
    #[must_use]
    pub fn function_shown(&self) -> String {
        let words: Vec<_> = match &self.spec.function {
            Function::Exec { argv } => {
                argv.iter().map(|word| String::from_utf8_lossy(word.text())).collect()
            }
            Function::Filter { argv } | Function::Pipe { argv } => {
                argv.iter().map(|word| String::from_utf8_lossy(word)).collect()
            }
            Function::Python(python) => vec![
                "--python".into(),
                format!("{}:{}", String::from_utf8_lossy(&python.path), python.function).into(),
            ],
            Function::Wasm(wasm) => vec!["--wasm".into(), String::from_utf8_lossy(&wasm.path)],
            Function::Builtin { name } => vec!["--builtin".into(), name.as_str().into()],
        };
        let text = words.join(" ");
        let mut shown: String = text
            .chars()
            .take(ITEM_CHARS_SHOWN)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        if text.chars().nth(ITEM_CHARS_SHOWN).is_some() {
            shown.push('…');
        }
        shown
    }
}

impl JobStatus {
    /// A job of which nothing has run.
    #[must_use]
    pub fn queued() -> Self {
        Self {
            state: JobState::Queued,
            counts: JobCounts::default(),
            output_bytes: 0,
            started_ms: None,
            waits_for: None,
        }
    }

    /// A job that is over.
    #[must_use]
    pub fn ended(ended: Ended, output_bytes: u64) -> Self {
        Self {
            state: JobState::Ended(ended.ending),
            counts: ended.counts,
            output_bytes,
            started_ms: ended.started_ms,
            waits_for: None,
        }
    }

    /// How it ended; none while it has not.
    #[must_use]
    pub fn ending(&self) -> Option<&Ending> {
        match &self.state {
            JobState::Ended(ending) => Some(ending),
            JobState::Queued | JobState::Running | JobState::Paused => None,
        }
    }
}

impl JobState {
    /// The word that listings use.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ended(Ending { how, .. }) => how.name(),
        }
    }
}

impl How {
    /// The word that listings use.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Cancelled => "cancelled",
            Self::Unusable(_) => "unusable",
            Self::Failed(_) => "failed",
            Self::Halted(_) => "halted",
        }
    }
}

impl JobCounts {
    /// Items that were read, and have neither a result nor a failure.
    #[must_use]
    pub fn not_final(&self) -> u64 {
        self.read.saturating_sub(self.ok + self.failed)
    }
}
