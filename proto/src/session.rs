//! What a coordinator and a worker say to each other, as the program sees it: closed enums of typed
//! ids. The wire's own types stay in this crate.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use widemap_common::artifact::Digest;
use widemap_common::failure::Fault;
use widemap_common::ids::{AttemptId, CoordinatorId, Epoch, Incarnation, ItemRange, JobId};
use widemap_common::spec::{JobSpec, Runtime};

/// A protocol version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// Versions of different majors do not work together.
    pub major: u32,
    /// Of two minors the lower holds.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// One thing that a coordinator tells a worker.
#[derive(Clone, PartialEq, Debug)]
pub enum Order {
    /// The first order of each stream.
    Hello(CoordinatorHello),
    /// How many attempts the coordinator could use at a time.
    Demand(u32),
    /// What the worker must know of a job.
    OpenJob(JobId, Box<JobSpec>),
    /// The job is over here.
    CloseJob(JobId),
    /// Run these items.
    Assign(Assign),
    /// A further part of an attempt's input.
    Input(Part),
    /// Give it back if it has not started.
    Revoke(AttemptId),
    /// End it and forget it.
    Cancel(AttemptId),
    /// These results are final: forget them.
    Accepted(Vec<AttemptId>),
    /// Output that the coordinator can store.
    OutputGrant(OutputGrant),
    /// Answer with a pong of this stamp: microseconds since the stream began.
    Ping(u64),
    /// The last order: forget this coordinator.
    Goodbye,
    /// The worker gets no work for a time.
    LeftOut(LeftOut),
}

/// One thing that a worker tells a coordinator.
#[derive(Clone, PartialEq, Debug)]
pub enum Report {
    /// The first report of each stream.
    Hello(Box<WorkerHello>),
    /// What the worker holds; right after the hello.
    Held(Vec<HeldAttempt>),
    /// How many attempts the coordinator may have here.
    Credit(Credit),
    /// What is in these files of the job is not here: it is to be sent, and the job opened then.
    JobNeeds(JobId, Vec<Digest>),
    /// The job can run here.
    JobReady(JobId),
    /// The job cannot run here.
    JobRefused(JobId, Refusal),
    /// Given back, not started.
    Revoked(AttemptId),
    /// Started or ended already, or not known.
    TooLate(AttemptId),
    /// A part of an attempt's output, not the last.
    Output(Part),
    /// An attempt has ended.
    Done(Box<Done>),
    /// The progress of each running attempt.
    Heartbeat(Vec<Progress>),
    /// Something that the user of a job should read.
    Log(Option<JobId>, String),
    /// The worker takes no new work and will be gone in so many milliseconds.
    Draining(u64),
    /// The answer to a ping.
    Pong(u64),
    /// The total of input bytes that may be sent on this stream.
    InputGrant(u64),
    /// Nothing of a cancelled attempt runs any more.
    Cancelled(AttemptId),
    /// Why the worker takes no work for now; nothing if it does again.
    Paused(Option<String>),
}

/// Who the coordinator is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoordinatorHello {
    /// The protocol that it speaks.
    pub version: Version,
    /// Its build, for a person.
    pub build: String,
    /// Which coordinator, over all of its lives.
    pub coordinator: CoordinatorId,
    /// Which life of it.
    pub epoch: Epoch,
    /// How long a cut-off worker keeps attempts and results.
    pub linger_ms: u64,
}

/// Who the worker is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerHello {
    /// The protocol that it speaks.
    pub version: Version,
    /// Its build, for a person.
    pub build: String,
    /// Its name, for a person.
    pub name: String,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Running attempts at a time.
    pub slots: u32,
    /// The runtimes that it allows. Names this build does not know are left out.
    pub runtimes: Vec<Runtime>,
    /// Labels that jobs can require.
    pub labels: BTreeMap<String, String>,
    /// The functions that are registered in it.
    pub functions: Vec<String>,
    /// The longest time for which a coordinator still leaves it out.
    pub left_out: Option<LeftOut>,
    /// Its wall clock at the hello, Unix time in milliseconds; to be shown, and for nothing else.
    pub clock_ms: Option<u64>,
}

/// A worker is given no work for a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftOut {
    /// From now.
    pub for_ms: u64,
    /// For a person.
    pub why: String,
}

/// An attempt that a worker holds when a stream is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// Of which job.
    pub job: JobId,
    /// Its items.
    pub range: ItemRange,
    /// Where its input begins in the job's.
    pub input_offset: u64,
    /// The length of its whole input.
    pub input_length: u64,
    /// How far it is.
    pub state: HeldState,
    /// Input that has arrived; the rest is sent from here.
    pub input_bytes: u64,
}

/// How far a held attempt is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeldState {
    /// Waits for a slot.
    Queued,
    /// Runs; its output comes again from its first byte.
    Running,
    /// Ended; its output and its `done` come again.
    Finished,
}

/// How many attempts a coordinator may have on a worker: an absolute level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Credit {
    /// Running at a time.
    pub slots: u32,
    /// Waiting beyond those.
    pub queue: u32,
}

/// Items to run.
#[derive(Clone, PartialEq, Debug)]
pub struct Assign {
    /// The attempt.
    pub attempt: AttemptId,
    /// Of which job.
    pub job: JobId,
    /// Which items.
    pub range: ItemRange,
    /// Where its input begins in the job's.
    pub input_offset: u64,
    /// The length of the whole input.
    pub input_bytes: u64,
    /// The first part of it, perhaps all.
    pub input: Bytes,
}

/// A part of an attempt's input or output.
#[derive(Clone, PartialEq, Debug)]
pub struct Part {
    /// Of which attempt.
    pub attempt: AttemptId,
    /// Where it begins in the attempt's payload.
    pub offset: u64,
    /// At most [`widemap_common::limits::PART_BYTES_MAX`].
    pub data: Bytes,
}

/// Output that a coordinator can store: absolute levels, counted on this stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutputGrant {
    /// The total of output bytes that may be sent.
    pub total: u64,
    /// An attempt that may go beyond it, up to so many bytes of its own output.
    pub urgent: Option<(AttemptId, u64)>,
}

/// Why a worker cannot run a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// What a program can tell apart.
    pub cause: RefusalCause,
    /// What happened, where, and what to do.
    pub message: String,
}

/// What kept a worker from running a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalCause {
    /// The command or function does not exist there.
    NotFound,
    /// The runtime is not allowed there.
    NotAllowed,
    /// The directory does not exist there, or cannot be made.
    Directory,
    /// The worker is at a limit.
    Limit,
}

/// How an attempt ended, with the last part of its output.
#[derive(Clone, PartialEq, Debug)]
pub struct Done {
    /// Which.
    pub attempt: AttemptId,
    /// The last part of the output.
    pub output: Bytes,
    /// The length of the whole output.
    pub output_bytes: u64,
    /// How long it ran.
    pub busy_us: u64,
    /// Packed varints ([`widemap_common::varint`]): output bytes of each item, if asked for.
    pub item_lengths: Bytes,
    /// Packed varints: microseconds of each item, if asked for.
    pub item_micros: Bytes,
    /// Packed varints: the exit status of each item, if it was asked for and others than 0 are successes.
    pub item_exits: Bytes,
    /// The items that failed, in order. All others succeeded.
    pub faults: Vec<Fault>,
    /// What items wrote on standard error, in order.
    pub stderr: Vec<ItemStderr>,
}

/// What one item wrote on standard error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ItemStderr {
    /// Counted from the attempt's first item (0).
    pub index: u32,
    /// The last bytes of it.
    pub data: Bytes,
    /// Whether there was more before them.
    pub cut: bool,
}

/// A running attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Which.
    pub attempt: AttemptId,
    /// The item that runs, counted from the attempt's first (0).
    pub item: u32,
    /// How long the attempt has run.
    pub running_us: u64,
    /// Whether it waits for output to be granted.
    pub stalled: bool,
}
