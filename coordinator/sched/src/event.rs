//! What the scheduler is told and what it asks for: two closed enums, and the first file to read.
//!
//! The driver hands every [`Event`] to [`crate::Scheduler::handle`] and carries out each [`Action`]
//! in order. Payload is never here: only ids, counts, lengths and times.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use widemap_common::failure::FailureKind;
use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_common::spec::Runtime;

/// What happened.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum Event {
    /// A job may run from now on.
    JobOpened { job: JobId, policy: JobPolicy },
    /// What has been read of the input and is not cut yet, and what is known of the rest. Sent
    /// whenever it changes by a block, and after the last one.
    InputLevel { job: JobId, level: InputLevel },
    /// A chunk was cut, in answer to [`Action::Cut`].
    ChunkCut { job: JobId, range: ItemRange, bytes: u64 },
    /// Nothing more can be cut now: what was asked for and has not come will not come, until the
    /// next [`Event::InputLevel`].
    CutEnded { job: JobId },
    /// The user gave the job up: everything of it is cancelled.
    JobCancelled { job: JobId },
    /// Nothing more of the job is started, or it goes on. What runs is not disturbed; what waits on
    /// workers is asked back.
    JobPaused { job: JobId, paused: bool },
    /// The worker has an attempt of a former epoch, at items that were never cut in this one: it goes
    /// on as if it had been assigned. Comes after [`Event::WorkerUp`] of its worker, in the order in
    /// which the worker has them.
    Adopted { job: JobId, worker: WorkerId, attempt: AttemptId, range: ItemRange, bytes: u64 },

    /// A worker can be used.
    WorkerUp { worker: WorkerId, traits: WorkerTraits },
    /// How many attempts it takes: absolute.
    WorkerCredit { worker: WorkerId, slots: u32, queue: u32 },
    /// A measured round trip to it.
    RoundTrip { worker: WorkerId, micros: u64 },
    /// It can run the job.
    JobReady { worker: WorkerId, job: JobId },
    /// It cannot run the job: it is set aside for it.
    JobRefused { worker: WorkerId, job: JobId },
    /// The item that each of its running attempts is at. Attempts that are not named have not
    /// started.
    Progress { worker: WorkerId, running: Vec<(AttemptId, u32)> },
    /// Its connection broke: it may still be at work. Nothing new is sent to it; its attempts stay
    /// its own until it is back or dead.
    WorkerCut { worker: WorkerId },
    /// The same incarnation is connected again, and holds these attempts; the others are gone, and
    /// nobody is charged for them. What it holds that is not its own any more is cancelled.
    WorkerBack { worker: WorkerId, held: Vec<AttemptId> },
    /// It is proved dead (refused connection, new incarnation), or its lease has ended.
    WorkerDead { worker: WorkerId, proof: DeathProof },
    /// It takes no new work and hands back what it has not started.
    WorkerDraining { worker: WorkerId },

    /// An attempt ended. All items but the faulty ones succeeded.
    AttemptDone { attempt: AttemptId, busy_us: u64, faults: Vec<ItemFault> },
    /// An attempt's result does not fit (length, checksum): the attempt is counted against its
    /// items' retries, its worker is held to account, and it is cancelled.
    AttemptRejected { attempt: AttemptId },
    /// An attempt was given back, not started.
    Revoked { attempt: AttemptId },
    /// An attempt could not be given back: it has started or ended.
    RevokedTooLate { attempt: AttemptId },
    /// A cancelled attempt is over: nothing of it runs there any more.
    Cancelled { worker: WorkerId, attempt: AttemptId },

    /// Whether accepted results can still be stored (reorder buffer and spill).
    Storage { job: JobId, full: bool },
    /// Time has passed: due when [`crate::Scheduler::next_deadline`] says so.
    Tick,
}

/// What the scheduler asks for.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum Action {
    /// Tell the worker of the job; answered by [`Event::JobReady`] or [`Event::JobRefused`].
    OpenJob { worker: WorkerId, job: JobId },
    /// Tell the worker that the job is over.
    CloseJob { worker: WorkerId, job: JobId },
    /// Cut up to `chunks` chunks of at most `items_max` items and about `bytes_max` bytes each (one
    /// longer item goes alone; block-wise jobs cut their own blocks). Answered at once by as many
    /// [`Event::ChunkCut`] as there are, and [`Event::CutEnded`] if there are fewer than asked for.
    Cut { job: JobId, chunks: u32, items_max: u32, bytes_max: u64 },
    /// Send these items to the worker. A speculative attempt is a second one beside another.
    Assign { worker: WorkerId, attempt: AttemptId, job: JobId, range: ItemRange, speculative: bool },
    /// Ask for an attempt back.
    Revoke { worker: WorkerId, attempt: AttemptId },
    /// End an attempt; nothing that it sends counts any more. Answered by [`Event::Cancelled`] once
    /// nothing of it runs, at once if it was never sent. Comes again after [`Event::WorkerBack`] if
    /// nothing was answered before.
    Cancel { worker: WorkerId, attempt: AttemptId },
    /// These items of the attempt's result are final. Comes once or more right after
    /// [`Event::AttemptDone`], in order of the items, and never twice for an item.
    Accept { job: JobId, attempt: AttemptId, range: ItemRange, worker: WorkerId, runs: u32 },
    /// An item (for block-wise jobs: a block) failed for good. If an attempt told of it, this comes
    /// right after that attempt's [`Event::AttemptDone`].
    Fail { job: JobId, range: ItemRange, failure: Failure },
    /// An item failed and will run again.
    Retry { job: JobId, range: ItemRange, kind: FailureKind, worker: WorkerId, runs: u32 },
    /// The worker may forget the attempt, and so may the driver: whatever of it counted has been
    /// accepted.
    Release { worker: WorkerId, attempt: AttemptId },
    /// Every worker that is there has refused the job, and nothing of it is running.
    Unusable { job: JobId },
    /// A worker is not given work for so long: its attempts failed where others succeeded.
    Exclude { worker: WorkerId, for_time: Duration },
    /// Every item is accepted or failed, and the input has ended (or the job was cancelled).
    JobEnded { job: JobId },
}

/// Why a worker counts as dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeathProof {
    /// The connection was refused, or another incarnation answered: what ran there may have killed
    /// it, and becomes suspect.
    Proved,
    /// The lease ended in silence: nobody is charged.
    LeaseEnded,
    /// It went in good order: nobody is charged.
    Drained,
}

/// The last word on an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What ended it.
    pub kind: FailureKind,
    /// How often it was run.
    pub runs: u32,
    /// Where it ran last.
    pub worker: Option<WorkerId>,
    /// The attempt that told of it and the item's index there, if one did.
    pub told_by: Option<(AttemptId, u32)>,
}

/// A failed item of an attempt, without its text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ItemFault {
    /// Counted from the attempt's first item (0); 0 for a block.
    pub index: u32,
    /// What ended it.
    pub kind: FailureKind,
    /// Whether another run could end otherwise.
    pub retryable: bool,
}

/// How a job is to be run.
#[derive(Clone, PartialEq, Debug)]
pub struct JobPolicy {
    /// What its function needs.
    pub runtime: Runtime,
    /// Labels that a worker must have.
    pub require: BTreeMap<String, String>,
    /// More runs of a failed item.
    pub retries: u32,
    /// Worker deaths that may be charged to what was running there.
    pub crash_limit: u32,
    /// A fixed number of items a chunk; adaptive if not given. Block-wise jobs ignore it.
    pub chunk_items: Option<u32>,
    /// What an attempt should take, if sizes adapt.
    pub chunk_target: Duration,
    /// The share of the workers relative to other jobs of its priority.
    pub weight: u32,
    /// Higher ones first.
    pub priority: i32,
    /// Whether stragglers get a second, speculative attempt.
    pub speculate: bool,
    /// The slots that each attempt takes while it runs.
    pub slots_per_item: NonZeroU32,
}

/// What is known of the input that is not cut yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InputLevel {
    /// Read and ready to be cut, in items (blocks, for block-wise jobs: at least one if any).
    pub ready_items: u64,
    /// Read and ready to be cut, in bytes.
    pub ready_bytes: u64,
    /// Bytes that are still to come after those, if it is known. `Some(0)`: the input has ended.
    pub rest_bytes: Option<u64>,
}

/// What a worker is.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerTraits {
    /// For a person.
    pub name: String,
    /// Attempts of one slot each that may run there at a time.
    pub slots: u32,
    /// Attempts that may wait there beyond those.
    pub queue: u32,
    /// What it can run.
    pub runtimes: Vec<Runtime>,
    /// Labels that jobs can require.
    pub labels: BTreeMap<String, String>,
    /// The first measured round trip.
    pub round_trip_us: u64,
}
