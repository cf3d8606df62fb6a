//! Runs one attempt on a slot's thread, whatever its runtime, and gathers what became of its items.

mod exec;
mod function;
mod pipe;
mod process;
mod results;
mod tail;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use widemap_common::ids::ItemRange;
use widemap_common::limits::PART_BYTES_MAX;
use widemap_common::time::Timers;
use widemap_proto::session::Done;

use crate::job::{Job, Runner};
use crate::slots::{
    AttemptOutput, InputStream, LaneId, OutputBuffers, Shared, SlotControl, Taken, Task, TaskInput,
};
use crate::spawner::{SlotChannel, SpawnRequest, SpawnerGone};
use results::Results;
use tail::Tail;

/// What a slot uses again for each attempt.
pub(crate) struct Workbench {
    control: Arc<SlotControl>,
    /// Nothing in a worker that runs functions only.
    channel: Option<SlotChannel>,
    timers: Timers,
    buffers: OutputBuffers,
    request: SpawnRequest,
    tail: Tail,
}

impl Workbench {
    pub(crate) fn new(
        control: Arc<SlotControl>,
        channel: Option<SlotChannel>,
        timers: Timers,
    ) -> Self {
        Self {
            control,
            channel,
            timers,
            buffers: OutputBuffers::default(),
            request: SpawnRequest::default(),
            tail: Tail::default(),
        }
    }
}

/// An attempt while it runs.
struct Attempt<'a> {
    job: &'a Job,
    range: ItemRange,
    output: AttemptOutput<'a>,
    results: Results,
}

/// How far an attempt came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// To its end: every item succeeded or failed.
    Finished,
    /// It was cancelled, and nobody waits for a result.
    Cancelled,
}

/// Runs `task`. Nothing comes of it if it is cancelled.
pub(crate) fn run(
    bench: &mut Workbench,
    shared: &Shared,
    lane: LaneId,
    task: Task,
) -> Result<Option<Box<Done>>, SpawnerGone> {
    let started = Instant::now();
    let control = bench.control.clone();
    let output = AttemptOutput::begin(&mut bench.buffers, task.attempt, lane, shared, &control);
    let job = task.job.as_ref();
    let mut attempt = Attempt { job, range: task.range, output, results: Results::default() };
    let progress = attempt.run(bench, task.input)?;
    let Attempt { mut output, results, .. } = attempt;
    if progress == Progress::Cancelled {
        return Ok(None);
    }
    if results.bytes() > PART_BYTES_MAX {
        output.hand_all();
    }
    let (output, output_bytes) = output.finish(&mut bench.buffers);
    Ok(Some(Box::new(Done {
        attempt: task.attempt,
        output,
        output_bytes,
        busy_us: micros_since(started),
        item_lengths: results.lengths.freeze(),
        item_micros: results.micros.freeze(),
        faults: results.faults,
        stderr: results.stderr,
    })))
}

impl Attempt<'_> {
    fn run(&mut self, bench: &mut Workbench, input: TaskInput) -> Result<Progress, SpawnerGone> {
        // Whatever ends the attempt, input that still comes for it is not waited for.
        let _closed = match &input {
            TaskInput::Stream(stream) => Some(CloseOnDrop(stream.clone())),
            TaskInput::Whole(_) => None,
        };
        match &self.job.runner {
            Runner::Pipe(launch, argv) => pipe::run(self, bench, launch, argv, input),
            Runner::Exec(launch, argv) => match whole(input, &bench.control) {
                Some(input) => exec::run(self, bench, launch, argv, &input),
                None => Ok(Progress::Cancelled),
            },
            Runner::Function(function) => match whole(input, &bench.control) {
                Some(input) => Ok(function::run(self, &bench.control, function.as_ref(), &input)),
                None => Ok(Progress::Cancelled),
            },
        }
    }
}

/// The whole input of an attempt, waited for if it is not all here; nothing if it is cancelled.
fn whole(input: TaskInput, control: &Arc<SlotControl>) -> Option<Bytes> {
    let stream = match input {
        TaskInput::Whole(bytes) => return Some(bytes),
        TaskInput::Stream(stream) => stream,
    };
    let mut gathered = Vec::new();
    loop {
        match stream.take(control) {
            Taken::Part(part) => gathered.extend_from_slice(&part),
            Taken::End => return Some(Bytes::from(gathered)),
            Taken::NothingYet if control.is_cancelled() => return None,
            Taken::NothingYet => control.wait(None),
        }
    }
}

fn micros_since(earlier: Instant) -> u64 {
    u64::try_from(earlier.elapsed().as_micros()).unwrap_or(u64::MAX)
}

struct CloseOnDrop(Arc<InputStream>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}
