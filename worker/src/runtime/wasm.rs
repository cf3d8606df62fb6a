//! Modules of WebAssembly: compiled once and kept by content, an instance a block, which has nothing but its
//! standard streams, the variables that it was given, and the files that its job brought along, to read.
//!
//! A module runs on the slot's own thread. It gives way at each tick of an *epoch*, a counter of wasmtime's,
//! so that one that never ends can be stopped; and whenever it waits.

mod epochs;
mod guest;
mod host;
mod modules;
mod stdio;

use std::io;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use widemap_common::limits::WASM_MEMORY_BYTES;

pub(crate) use modules::{WasmJob, WasmModules};

use super::results::Failure;
use super::{Attempt, Progress, Workbench, micros_since};
use crate::slots::TaskInput;
use guest::{Ended, Guest};
use host::{Bounds, Host};
use stdio::Stdio;

/// Whether this worker was built with the runtime.
pub(crate) const IS_BUILT: bool = true;

/// How often a running module is looked after: the length of an epoch.
const TICK: Duration = Duration::from_millis(10);

/// What a slot uses again for each block.
#[derive(Default)]
pub(super) struct Clock(Option<Runtime>);

impl Clock {
    /// What has timers for modules that sleep, and a thread for those that read files.
    fn get(&mut self) -> io::Result<&Runtime> {
        let runtime = match self.0.take() {
            Some(runtime) => runtime,
            None => Builder::new_current_thread().enable_time().max_blocking_threads(1).build()?,
        };
        Ok(self.0.insert(runtime))
    }
}

/// Runs the module over the whole block.
pub(super) fn run(
    attempt: &mut Attempt<'_>,
    bench: &mut Workbench,
    wasm: &WasmJob,
    input: TaskInput,
) -> Progress {
    let (began, limits) = (Instant::now(), attempt.job.limits);
    let memory = limits.memory.map_or(WASM_MEMORY_BYTES, NonZeroU64::get);
    let stdio = Stdio::new(attempt.job.max_output);
    let ended = match (bench.clock.get(), wasm.tick()) {
        (Ok(clock), Ok(_ticking)) => clock.block_on(async {
            let deadline = attempt.job.timeout.and_then(|timeout| began.checked_add(timeout));
            let bounds = Bounds { deadline, cpu_seconds: limits.cpu_seconds };
            let mut host = Host::new(&bench.control, &stdio, &mut attempt.output, input, bounds);
            match Guest::new(wasm, &stdio, memory) {
                Ok(guest) => host.see_through(guest.run(wasm)).await,
                Err(error) => Ended::Failed(format!("cannot be given its files: {error:#}")),
            }
        }),
        (Err(error), _) | (_, Err(error)) => Ended::Failed(error.to_string()),
    };
    let error = |message: String| Some(Failure::error(message));
    let mut ok_status = 0;
    let failure = match ended {
        Ended::Cancelled => return Progress::Cancelled,
        Ended::Exited(code) if attempt.job.is_ok(code) => {
            ok_status = code;
            None
        }
        Ended::Exited(status) => {
            let message = format!("exited with status {status}");
            Some(Failure { exit: Some(status), ..Failure::error(message) })
        }
        Ended::TimedOut => Some(Failure::timeout(attempt.job.timeout)),
        Ended::OutOfCpuTime => limits.cpu_seconds.map(Failure::cpu_time),
        Ended::TooMuchOutput => Some(Failure::too_much_output(attempt.job.max_output)),
        Ended::TooMuchMemory => {
            error(format!("wanted more than {memory} bytes of memory (--memory)"))
        }
        Ended::Failed(why) => error(why),
    };
    stdio.take_stderr(&mut bench.tail);
    attempt.results.stderr(0, &mut bench.tail);
    let micros = micros_since(began);
    if let Some(failure) = failure {
        let left = attempt.output.truncate(0);
        attempt.results.fault(0, failure, 0, left, micros);
    }
    if attempt.job.per_item {
        attempt.results.item(attempt.output.position(), micros);
    }
    if attempt.job.tells_exits() {
        attempt.results.exit(ok_status);
    }
    Progress::Finished
}
