//! A worker that was built without WebAssembly (the cargo feature `wasm`): it has no such runtime, and says so.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use widemap_common::spec::Wasm;

use super::{Attempt, Progress, Workbench};
use crate::slots::TaskInput;

/// Whether this worker was built with the runtime.
pub(crate) const IS_BUILT: bool = false;

/// What a slot uses again for each block: nothing.
#[derive(Default)]
pub(super) struct Clock {}

/// No modules.
#[derive(Debug)]
pub(crate) struct WasmModules;

impl WasmModules {
    pub(crate) fn new() -> Self {
        Self
    }
}

/// There is none.
#[derive(Debug)]
pub(crate) struct WasmJob(Infallible);

impl WasmJob {
    pub(crate) fn open(
        _: &Arc<WasmModules>,
        _: &Wasm,
        _: &Path,
        _: Vec<(String, String)>,
        _: Option<PathBuf>,
    ) -> Result<Self, String> {
        Err("this worker was built without WebAssembly".to_owned())
    }
}

/// Never called: there is no such job.
pub(super) fn run(
    _: &mut Attempt<'_>,
    _: &mut Workbench,
    wasm: &WasmJob,
    _: TaskInput,
) -> Progress {
    match wasm.0 {}
}
