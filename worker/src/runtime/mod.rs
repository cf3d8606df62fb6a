//! Runs one attempt on a slot's thread, whatever its runtime, and gathers what became of its items.

mod exec;
mod filter;
mod function;
mod live;
mod pipe;
mod process;
mod python;
mod results;
mod streams;
mod tail;
#[cfg(feature = "wasm")]
mod wasm;
#[cfg(not(feature = "wasm"))]
#[path = "wasm/absent.rs"]
mod wasm;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use widemap_common::ids::ItemRange;
use widemap_common::limits::{FILTER_CHUNK_BYTES_MAX, PART_BYTES_MAX};
use widemap_common::time::Timers;
use widemap_proto::session::Done;

use crate::job::{Job, Runner};
use crate::slots::{
    AttemptOutput, InputStream, LaneId, OutputBuffers, Shared, SlotControl, Taken, Task, TaskInput,
};
use crate::spawner::{SlotChannel, SpawnRequest, SpawnerGone};
pub(crate) use filter::FilterManner;
use live::{Kept, Parting};
use results::Results;
use tail::Tail;
pub(crate) use wasm::{IS_BUILT as WASM_IS_BUILT, WasmJob, WasmModules};

/// What a slot uses again for each attempt.
pub(crate) struct Workbench {
    control: Arc<SlotControl>,
    /// Nothing in a worker that runs functions only.
    channel: Option<SlotChannel>,
    timers: Timers,
    buffers: OutputBuffers,
    request: SpawnRequest,
    tail: Tail,
    /// A process that waits for more of its job.
    kept: Option<Kept>,
    /// An input that came in parts.
    gathered: Vec<u8>,
    /// What modules of WebAssembly need of a slot.
    #[cfg_attr(not(feature = "wasm"), expect(dead_code, reason = "there are none"))]
    clock: wasm::Clock,
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
            kept: None,
            gathered: Vec::new(),
            clock: wasm::Clock::default(),
        }
    }

    /// The job that something is kept for.
    pub(crate) fn kept_job(&self) -> Option<&Job> {
        self.kept.as_ref().map(|kept| kept.job.as_ref())
    }

    /// Ends what is kept. Tells whose it was.
    pub(crate) fn let_go(&mut self) -> Result<Option<LaneId>, SpawnerGone> {
        let (Some(kept), Some(channel)) = (self.kept.take(), &mut self.channel) else {
            return Ok(None);
        };
        kept.live.end(channel, &self.control, &self.timers, Parting::Gentle)?;
        Ok(Some(kept.lane))
    }
}

/// An attempt while it runs.
struct Attempt<'a> {
    job: &'a Arc<Job>,
    lane: LaneId,
    range: ItemRange,
    output: AttemptOutput<'a>,
    results: Results,
    /// What it took that would have been the same for any number of items, in microseconds: the size of
    /// chunks follows the rest.
    fixed_us: u64,
}

/// How far an attempt came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// To its end: every item succeeded or failed.
    Finished,
    /// It was cancelled, and nobody waits for a result.
    Cancelled,
}

/// Finds out whether a job can run here, before anything of it does. Nothing comes of it if it is cancelled.
pub(crate) fn probe(
    bench: &mut Workbench,
    shared: &Shared,
    lane: LaneId,
    task: &Task,
) -> Result<Option<Result<(), String>>, SpawnerGone> {
    let Runner::Python(python) = &task.job.runner else { return Ok(Some(Ok(()))) };
    bench.let_go()?;
    let control = bench.control.clone();
    let output = AttemptOutput::begin(&mut bench.buffers, task.attempt, lane, shared, &control);
    let (job, range, results) = (&task.job, task.range, Results::default());
    let mut attempt = Attempt { job, lane, range, output, results, fixed_us: 0 };
    python::probe(&mut attempt, bench, python)
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
    let (job, range) = (&task.job, task.range);
    let is_of_another = bench.kept.as_ref().is_some_and(|kept| !Arc::ptr_eq(&kept.job, job));
    if is_of_another {
        bench.let_go()?;
    }
    let results = Results::default();
    let mut attempt = Attempt { job, lane, range, output, results, fixed_us: 0 };
    let progress = attempt.run(bench, task.input)?;
    let Attempt { mut output, results, fixed_us, .. } = attempt;
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
        busy_us: micros_since(started).saturating_sub(fixed_us),
        item_lengths: results.lengths.freeze(),
        item_micros: results.micros.freeze(),
        item_exits: results.exits.freeze(),
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
            Runner::Filter(launch, argv, manner) => {
                let mut gathered = std::mem::take(&mut bench.gathered);
                let progress = match whole_in(input, &bench.control, &mut gathered) {
                    Some(input) => {
                        let input = match &input {
                            Input::Piece(bytes) => bytes.as_ref(),
                            Input::Gathered => gathered.as_slice(),
                        };
                        filter::run(self, bench, launch, argv, manner, input)
                    }
                    None => Ok(Progress::Cancelled),
                };
                // That of an item that was very long is not kept.
                if gathered.capacity() as u64 <= 2 * FILTER_CHUNK_BYTES_MAX {
                    bench.gathered = gathered;
                }
                progress
            }
            Runner::Python(python) => match whole(input, &bench.control) {
                Some(input) => python::run(self, bench, python, &input),
                None => Ok(Progress::Cancelled),
            },
            Runner::Pipe(launch, argv) => pipe::run(self, bench, launch, argv, input),
            Runner::Wasm(module) => Ok(wasm::run(self, bench, module, input)),
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
    let mut gathered = Vec::new();
    Some(match whole_in(input, control, &mut gathered)? {
        Input::Piece(bytes) => bytes,
        Input::Gathered => Bytes::from(gathered),
    })
}

/// Where the whole input of an attempt is.
enum Input {
    Piece(Bytes),
    /// In the buffer that was given for it.
    Gathered,
}

/// As [`whole`], in `gathered` if it does not come in one piece.
fn whole_in(input: TaskInput, control: &Arc<SlotControl>, gathered: &mut Vec<u8>) -> Option<Input> {
    let stream = match input {
        TaskInput::Whole(bytes) => return Some(Input::Piece(bytes)),
        TaskInput::Stream(stream) => stream,
    };
    gathered.clear();
    loop {
        match stream.take(control) {
            Taken::Part(part) => gathered.extend_from_slice(&part),
            Taken::End => return Some(Input::Gathered),
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
