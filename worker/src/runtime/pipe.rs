//! One process a block, the block on its standard input while it arrives.

use std::os::unix::ffi::OsStrExt as _;
use std::time::Instant;

use super::exec::begin_request;
use super::process::{Feed, Limits, Outcome, Process, failure_of};
use super::streams::Streams;
use super::{Attempt, Progress, Workbench, micros_since};
use crate::job::{Launch, Program};
use crate::slots::TaskInput;
use crate::spawner::SpawnerGone;

/// Runs the command over the whole block.
pub(super) fn run(
    attempt: &mut Attempt<'_>,
    bench: &mut Workbench,
    launch: &Launch,
    argv: &[Vec<u8>],
    input: TaskInput,
) -> Result<Progress, SpawnerGone> {
    let began = Instant::now();
    let slot = bench.control.index + 1;
    begin_request(&mut bench.request, launch, attempt.range.first + 1, slot, true);
    if let Program::Found(path) = &launch.program {
        bench.request.program(path.as_os_str().as_bytes());
    }
    for argument in argv {
        bench.request.argument(|out| out.extend_from_slice(argument));
    }
    let outcome = match Streams::open(true) {
        Ok(streams) => {
            let limits = Limits::of(attempt.job, began, &bench.timers);
            let feed = Some(Feed::new(input));
            Process::start(bench, &mut attempt.output, streams, feed, limits)?.run()?
        }
        Err(errno) => Outcome::NotStarted(errno),
    };
    if outcome == Outcome::Cancelled {
        return Ok(Progress::Cancelled);
    }
    attempt.results.stderr(0, &mut bench.tail);
    let micros = micros_since(began);
    let status = match outcome {
        Outcome::Exited(status) if attempt.job.is_ok(status) => Some(status),
        _ => None,
    };
    if status.is_none() {
        let left = attempt.output.truncate(0);
        attempt.results.fault(0, failure_of(&outcome, attempt.job), 0, left, micros);
    }
    if attempt.job.per_item {
        attempt.results.item(attempt.output.position(), micros);
    }
    if attempt.job.tells_exits() {
        attempt.results.exit(status.unwrap_or_default());
    }
    Ok(Progress::Finished)
}
