//! What a map is to do, decided before anything runs, and what came of it.

use std::path::PathBuf;
use std::time::Duration;

use widemap_common::spec::{JobSpec, Runtime};
use widemap_common::time::Timers;
use widemap_proto::jobs::{Blocks, OutputForm, Policy, Stops, Submission};
use widemap_sched::event::JobPolicy;

use crate::cli::Wait;
use crate::data::{Artifacts, BlockRule, Format, Recording, Source};
use crate::error::MapError;
use crate::places;
use crate::session::Trust;
use crate::summary::{Counts, NamedFailure};

/// One map.
pub(crate) struct Plan {
    /// What a worker must know. Its directory is what workers elsewhere use.
    pub(crate) spec: JobSpec,
    /// What the scheduler must know.
    pub(crate) policy: JobPolicy,
    /// Where the items come from.
    pub(crate) source: Source,
    /// How they are cut.
    pub(crate) blocks: BlockRule,
    /// Where workers may be.
    pub(crate) sources: Vec<Box<dyn places::Source>>,
    /// How they are proved, and this side to them.
    pub(crate) trust: Trust,
    /// Slots on this machine.
    pub(crate) local: Option<u32>,
    /// At most so many slots of each worker.
    pub(crate) slots_max: Option<u32>,
    /// How long to wait for a usable worker.
    pub(crate) wait: Wait,
    /// The timers of the sessions.
    pub(crate) timers: Timers,
    /// Where results go.
    pub(crate) results: Results,
    /// Say nothing but errors.
    pub(crate) quiet: bool,
    /// Show progress, if anybody sees it.
    pub(crate) progress: bool,
    /// How often to say what the output waits for.
    pub(crate) explain_every: Option<Duration>,
    /// What is in the job's files.
    pub(crate) artifacts: Artifacts,
    /// No directory was named: embedded workers use the caller's.
    pub(crate) private: bool,
    /// Accepted results that wait in memory.
    pub(crate) reorder_bytes_max: u64,
    /// Accepted results that wait on disk.
    pub(crate) spill_bytes_max: u64,
    /// Input that is held for retries.
    pub(crate) inflight_bytes_max: u64,
    /// When it is to stop before its end.
    pub(crate) stops: Stops,
    /// Where it is kept, so that it can go on after whatever ends this process.
    pub(crate) journal: Option<JournalPlan>,
}

/// The journal of one map.
#[derive(Debug, Clone)]
pub(crate) struct JournalPlan {
    /// Where it is.
    pub(crate) directory: PathBuf,
    /// Whether to go on with what is there; else nothing must be.
    pub(crate) resume: bool,
    /// What the map is, to be compared with what it was.
    pub(crate) submission: Submission,
}

/// Where results go, and in which form.
#[derive(Debug)]
pub(crate) struct Results {
    /// A file, or standard output.
    pub(crate) output: Option<PathBuf>,
    /// How they are written.
    pub(crate) form: OutputForm,
    /// What is made of records, if that is how they are written.
    pub(crate) recording: Option<Recording>,
    /// Where failures go; else to a file of their own, if there are any.
    pub(crate) failures: Option<PathBuf>,
    /// Where the receipt goes.
    pub(crate) receipt: Option<PathBuf>,
}

/// What came of a map.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How it ended.
    pub(crate) ending: Ending,
    /// What was done.
    pub(crate) counts: Counts,
    /// The first failures.
    pub(crate) failures: Vec<NamedFailure>,
    /// Where all of them are.
    pub(crate) failures_file: Option<PathBuf>,
    /// How to go on, if it was stopped.
    pub(crate) advice: Option<String>,
    /// What went wrong beside the items.
    pub(crate) error: Option<MapError>,
}

/// How a map ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Every item has its result or its failure, or [`Outcome::error`] says why not.
    Complete,
    /// Whoever read standard output has seen enough.
    ReaderGone,
    /// This signal ended it.
    Signal(i32),
}

/// How a job is to be run, for the scheduler.
pub(crate) fn job_policy(spec: &JobSpec, policy: Policy) -> JobPolicy {
    JobPolicy {
        runtime: spec.function.runtime(),
        slots_per_item: spec.slots_per_item,
        require: policy.require,
        retries: policy.retries,
        crash_limit: policy.crash_limit,
        chunk_items: policy.chunk_items,
        chunk_target: policy.chunk_target,
        weight: policy.weight,
        priority: policy.priority,
        speculate: policy.speculate,
    }
}

/// How results are written.
pub(crate) fn format(form: &OutputForm) -> Format {
    let fill = form.fill.clone();
    match (form.is_of_records(), form.json, form.frames) {
        (_, _, true) => Format::Frames,
        (true, _, _) => Format::Records { fill },
        (false, true, _) => Format::Json,
        (false, false, _) => Format::Raw { fill },
    }
}

/// How items are cut.
pub(crate) fn block_rule(blocks: Blocks, runtime: Runtime) -> BlockRule {
    match blocks {
        Blocks::ItemWise if runtime == Runtime::Filter => BlockRule::ItemWiseLarge,
        Blocks::ItemWise => BlockRule::ItemWise,
        Blocks::Fixed(bytes) => BlockRule::Fixed(bytes),
        Blocks::Schedule => BlockRule::Schedule,
    }
}
