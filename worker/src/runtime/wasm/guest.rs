//! One instance of a module: what it has, what it may take, and how it ended.

use wasmtime::{Error, ResourceLimiter, Store, Trap, WasmBacktrace};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtxBuilder};

use super::modules::WasmJob;
use super::stdio::Stdio;

/// Functions that are named when a module has trapped, the innermost first.
const FRAMES_NAMED: usize = 4;

/// How a module ended.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Ended {
    Exited(i32),
    TimedOut,
    OutOfCpuTime,
    TooMuchOutput,
    TooMuchMemory,
    Failed(String),
    Cancelled,
}

/// See the file's head.
pub(super) struct Guest {
    store: Store<State>,
    stdio: Stdio,
}

/// What an instance has.
pub(super) struct State {
    pub(super) wasi: WasiP1Ctx,
    memory: MemoryLimit,
}

/// What all memories of an instance may take.
struct MemoryLimit {
    bytes_max: usize,
    bytes: usize,
    is_reached: bool,
}

impl Guest {
    pub(super) fn new(wasm: &WasmJob, stdio: &Stdio, memory: u64) -> wasmtime::Result<Self> {
        let mut builder = WasiCtxBuilder::new();
        builder.arg(&wasm.name).envs(&wasm.environment);
        builder.stdin(stdio.stdin()).stdout(stdio.stdout()).stderr(stdio.stderr());
        if let Some(directory) = &wasm.directory {
            builder.preopened_dir(directory, ".", FsPerms::ReadOnly)?;
        }
        let bytes_max = usize::try_from(memory).unwrap_or(usize::MAX);
        let memory = MemoryLimit { bytes_max, bytes: 0, is_reached: false };
        let state = State { wasi: builder.build_p1(), memory };
        let mut store = Store::new(wasm.module.module().engine(), state);
        store.limiter(|state| &mut state.memory);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        Ok(Self { store, stdio: stdio.clone() })
    }

    /// Runs it to its end.
    pub(super) async fn run(mut self, wasm: &WasmJob) -> Ended {
        let result = async {
            let instance = wasm.module.instantiate_async(&mut self.store).await?;
            let start = instance.get_typed_func::<(), ()>(&mut self.store, "_start")?;
            start.call_async(&mut self.store, ()).await
        };
        match result.await {
            Ok(()) => Ended::Exited(0),
            Err(error) => self.ended(&error),
        }
    }

    fn ended(&self, error: &Error) -> Ended {
        if let Some(I32Exit(status)) = error.downcast_ref() {
            return Ended::Exited(*status);
        }
        if self.store.data().memory.is_reached {
            return Ended::TooMuchMemory;
        }
        if self.stdio.has_overflown() {
            return Ended::TooMuchOutput;
        }
        let mut shown = match error.downcast_ref::<Trap>() {
            Some(trap) => format!("trapped: {trap}").replacen("wasm trap: ", "", 1),
            None => format!("failed: {}", error.root_cause()),
        };
        let trace = error.downcast_ref::<WasmBacktrace>().map(named).unwrap_or_default();
        if !trace.is_empty() {
            shown.push_str(&format!(", in {trace}"));
        }
        Ended::Failed(shown)
    }
}

/// The functions that were running, the innermost first.
fn named(trace: &WasmBacktrace) -> String {
    let mut shown = String::new();
    for (index, frame) in trace.frames().iter().take(FRAMES_NAMED).enumerate() {
        let before = ["", ", called by ", ", ", ", "][index];
        let name = match frame.func_name() {
            Some(name) => format!("`{name}`"),
            None => format!("function {}", frame.func_index()),
        };
        shown.push_str(before);
        shown.push_str(&name);
    }
    if trace.frames().len() > FRAMES_NAMED {
        shown.push_str(", …");
    }
    shown
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let bytes = self.bytes.saturating_add(desired - current);
        if bytes > self.bytes_max {
            // A module that is told so would most often end with a trap that says nothing of memory.
            self.is_reached = true;
            return Err(Error::msg("the limit of memory is reached"));
        }
        self.bytes = bytes;
        Ok(true)
    }

    /// An element of a table takes a word or two.
    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let bytes = |elements: usize| elements.saturating_mul(2 * size_of::<usize>());
        self.memory_growing(bytes(current), bytes(desired), maximum)
    }
}
