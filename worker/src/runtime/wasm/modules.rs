//! Compiled modules, by content: jobs that have the same module share one, and the last few are kept for the
//! next job.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use wasmtime::{Config, Engine, ExternType, InstancePre, Linker, Module};
use widemap_common::artifact::Digest;
use widemap_common::limits::WASM_MODULES_KEPT;
use widemap_common::spec::Wasm;

use super::epochs::{Epochs, Ticking};
use super::guest::State;

/// What runs modules, made when the first one comes.
#[derive(Default)]
pub(crate) struct WasmModules(OnceLock<Result<Machine, String>>);

/// A module of a job, ready to be run.
pub(crate) struct WasmJob {
    /// Keeps the machine alive.
    modules: Arc<WasmModules>,
    pub(super) module: InstancePre<State>,
    /// What it is called, as its only argument.
    pub(super) name: String,
    pub(super) environment: Vec<(String, String)>,
    /// What it may read.
    pub(super) directory: Option<PathBuf>,
}

struct Machine {
    engine: Engine,
    linker: Linker<State>,
    epochs: Epochs,
    /// The last ones, the latest at the end.
    kept: Mutex<Vec<(Digest, Arc<Compiled>)>>,
}

/// Compiled by the first who wants it, while the others wait.
type Compiled = Mutex<Option<InstancePre<State>>>;

impl WasmModules {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn machine(&self) -> Result<&Machine, String> {
        let made = self.0.get_or_init(|| {
            Machine::new().map_err(|error| format!("WebAssembly cannot be run here: {error:#}"))
        });
        made.as_ref().map_err(Clone::clone)
    }
}

impl Machine {
    fn new() -> wasmtime::Result<Self> {
        let mut config = Config::new();
        config.epoch_interruption(true);
        let engine = Engine::new(&config)?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state: &mut State| &mut state.wasi)?;
        let epochs = Epochs::new(engine.clone());
        Ok(Self { engine, linker, epochs, kept: Mutex::default() })
    }

    /// The module that lies at `path`.
    fn module(&self, digest: Digest, path: &Path) -> Result<InstancePre<State>, String> {
        let compiled = self.place(digest);
        let mut compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = &*compiled {
            return Ok(module.clone());
        }
        let code = fs::read(path).map_err(|error| format!("its module cannot be read: {error}"))?;
        let begun = Instant::now();
        let module = self.compile(&code)?;
        let (module_digest, took) = (digest.to_string(), begun.elapsed());
        tracing::debug!(module = module_digest, ?took, "compiled a module of WebAssembly");
        Ok(compiled.insert(module).clone())
    }

    fn compile(&self, code: &[u8]) -> Result<InstancePre<State>, String> {
        let module = Module::new(&self.engine, code).map_err(|error| format!("{error:#}"))?;
        let start = module.get_export("_start");
        let is_command = matches!(&start, Some(ExternType::Func(start))
            if start.params().len() == 0 && start.results().len() == 0);
        if !is_command {
            return Err("it exports no function `_start`, so it is no WASI command".to_owned());
        }
        self.linker.instantiate_pre(&module).map_err(|error| {
            format!("it wants what a WASI preview 1 command does not have: {error:#}")
        })
    }

    /// Where a module is or will be; the one that was not wanted for longest makes room.
    fn place(&self, digest: Digest) -> Arc<Compiled> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| *known == digest);
        let entry = at.map_or_else(|| (digest, Arc::default()), |at| kept.remove(at));
        let compiled = Arc::clone(&entry.1);
        kept.push(entry);
        if kept.len() > WASM_MODULES_KEPT {
            kept.remove(0);
        }
        compiled
    }
}

impl WasmJob {
    /// Compiles the module that lies at `path`, if that has not been done, and sees whether it can be run.
    pub(crate) fn open(
        modules: &Arc<WasmModules>,
        wasm: &Wasm,
        path: &Path,
        environment: Vec<(String, String)>,
        directory: Option<PathBuf>,
    ) -> Result<Self, String> {
        let module = modules.machine()?.module(wasm.module, path)?;
        let modules = Arc::clone(modules);
        let name = String::from_utf8_lossy(&wasm.path).into_owned();
        Ok(Self { modules, module, name, environment, directory })
    }

    /// The module begins to run.
    pub(super) fn tick(&self) -> io::Result<Ticking> {
        self.modules.machine().map_err(io::Error::other)?.epochs.tick()
    }
}

impl fmt::Debug for WasmModules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WasmModules")
    }
}

impl fmt::Debug for WasmJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmJob").field("name", &self.name).finish_non_exhaustive()
    }
}
