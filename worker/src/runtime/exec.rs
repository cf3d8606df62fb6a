//! One process an item.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use widemap_common::limits::ARGUMENT_BYTES_MAX;
use widemap_common::template::{Fill, Template};

use super::process::{Limits, Outcome, Process, failure_of};
use super::results::Failure;
use super::streams::Streams;
use super::{Attempt, Progress, Workbench, micros_since};
use crate::job::{Launch, Program};
use crate::spawner::{SpawnRequest, SpawnerGone};

/// The longest value of `WIDEMAP_ITEM`: the system counts the name too.
const ITEM_VARIABLE_BYTES_MAX: usize = ARGUMENT_BYTES_MAX - b"WIDEMAP_ITEM=".len();

/// Runs the command once for each item of `input`.
pub(super) fn run(
    attempt: &mut Attempt<'_>,
    bench: &mut Workbench,
    launch: &Launch,
    argv: &[Template],
    input: &Bytes,
) -> Result<Progress, SpawnerGone> {
    let mut items = attempt.job.framing.items(input);
    for index in 0..attempt.range.items {
        if bench.control.is_cancelled() {
            return Ok(Progress::Cancelled);
        }
        bench.control.item.store(index, Ordering::Relaxed);
        let began = Instant::now();
        let start = attempt.output.position();
        let outcome = match items.next() {
            None => Err(Failure::error("the chunk has fewer items than it says").permanent()),
            Some(item) => run_item(attempt, bench, launch, argv, item, index, began)?,
        };
        let mut status = 0;
        let failure = match outcome {
            Ok(Outcome::Cancelled) => return Ok(Progress::Cancelled),
            Ok(Outcome::Exited(code)) if attempt.job.is_ok(code) => {
                status = code;
                None
            }
            Ok(outcome) => Some(failure_of(&outcome, attempt.job)),
            Err(failure) => Some(failure),
        };
        attempt.results.stderr(index, &mut bench.tail);
        let micros = micros_since(began);
        if let Some(failure) = failure {
            let left = attempt.output.truncate(start);
            attempt.results.fault(index, failure, start, left, micros);
        }
        if attempt.job.per_item {
            attempt.results.item(attempt.output.position() - start, micros);
        }
        if attempt.job.tells_exits() {
            attempt.results.exit(status);
        }
    }
    Ok(Progress::Finished)
}

/// Runs the command for one item. A failure that is found before anything is started is an `Err`
/// inside.
fn run_item(
    attempt: &mut Attempt<'_>,
    bench: &mut Workbench,
    launch: &Launch,
    argv: &[Template],
    item: &[u8],
    index: u32,
    began: Instant,
) -> Result<Result<Outcome, Failure>, SpawnerGone> {
    let framing = attempt.job.framing;
    let columns: Vec<_> = framing.columns(item).collect();
    let item = framing.joined(item);
    let fill = Fill {
        item: &item,
        columns: &columns,
        sequence: attempt.range.first + u64::from(index) + 1,
        slot: bench.control.index + 1,
    };
    if let Err(failure) = fill_request(&mut bench.request, launch, argv, &fill) {
        bench.request.forget();
        return Ok(Err(failure));
    }
    let streams = match Streams::open(false) {
        Ok(streams) => streams,
        Err(errno) => return Ok(Ok(Outcome::NotStarted(errno))),
    };
    let limits = Limits::of(attempt.job, began, &bench.timers);
    Process::start(bench, &mut attempt.output, streams, None, limits)?.run().map(Ok)
}

fn fill_request(
    request: &mut SpawnRequest,
    launch: &Launch,
    argv: &[Template],
    fill: &Fill<'_>,
) -> Result<(), Failure> {
    begin_request(request, launch, fill.sequence, fill.slot, false);
    match (&launch.program, argv.first()) {
        (Program::Found(path), _) => request.program(path.as_os_str().as_bytes()),
        (Program::PerItem, name) => {
            let mut command = Vec::new();
            if let Some(name) = name {
                name.fill(fill, &mut command);
            }
            let path = launch.find(&command).map_err(|error| {
                let command = String::from_utf8_lossy(&command);
                Failure::error(format!("`{command}` cannot be run: {error}"))
            })?;
            request.program(Path::new(&path).as_os_str().as_bytes());
        }
    }
    for template in argv {
        let argument = request.argument(|out| template.fill(fill, out));
        if argument.len() > ARGUMENT_BYTES_MAX {
            let message = format!(
                "an argument of {} bytes is longer than the system passes on ({ARGUMENT_BYTES_MAX} bytes)",
                argument.len()
            );
            return Err(Failure::error(message).permanent());
        }
        if let Some(at) = memchr::memchr(0, argument) {
            let message = format!(
                "an argument of {} bytes has a NUL at byte {}, which cannot be passed on",
                argument.len(),
                at + 1
            );
            return Err(Failure::error(message).permanent());
        }
    }
    if fill.item.len() <= ITEM_VARIABLE_BYTES_MAX && memchr::memchr(0, fill.item).is_none() {
        request.variable(b"WIDEMAP_ITEM", fill.item);
    }
    Ok(())
}

/// Begins a request with what is the same for each process of a job, and the item's number.
pub(super) fn begin_request(
    request: &mut SpawnRequest,
    launch: &Launch,
    sequence: u64,
    slot: u32,
    stdin: bool,
) {
    request.begin(launch.environment.clear, stdin);
    request.limits(&launch.limits);
    if let Some(directory) = &launch.directory {
        request.directory(directory.as_os_str().as_bytes());
    }
    for (name, value) in &launch.environment.variables {
        request.variable(name, value);
    }
    request.variable(b"WIDEMAP_SEQ", sequence.to_string().as_bytes());
    request.variable(b"WIDEMAP_SLOT", slot.to_string().as_bytes());
}
