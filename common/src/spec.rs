//! What a job is: its function, how its items are framed, and what a worker must know to run it.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use bytes::Bytes;

use crate::artifact::{Digest, JobFiles};
use crate::framing::Framing;
use crate::template::Template;

/// What can run a function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Runtime {
    /// One process an item.
    Exec,
    /// A process that answers each line of its standard input with one line.
    Filter,
    /// One process a block, the block on its standard input.
    Pipe,
    /// A function of a Python file, in an interpreter that goes on.
    Python,
    /// A module of WebAssembly, run once a block, the block on its standard input.
    Wasm,
    /// A function registered in the worker.
    Builtin,
}

impl Runtime {
    /// All runtimes, in the order of the documentation.
    pub const ALL: [Self; 6] =
        [Self::Exec, Self::Filter, Self::Pipe, Self::Python, Self::Wasm, Self::Builtin];

    /// The word that flags and listings use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Filter => "filter",
            Self::Pipe => "pipe",
            Self::Python => "python",
            Self::Wasm => "wasm",
            Self::Builtin => "builtin",
        }
    }

    /// The runtime of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|runtime| runtime.name() == name)
    }

    /// Whether the unit is a block, fixed by the input alone, and never split.
    #[must_use]
    pub fn is_block_wise(self) -> bool {
        matches!(self, Self::Pipe | Self::Wasm)
    }
}

impl std::fmt::Display for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What is mapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Function {
    /// A command, one process an item; its placeholders are filled in on the worker.
    Exec {
        /// The command and its arguments.
        argv: Vec<Template>,
    },
    /// A command that answers each line with one line; it may go on from chunk to chunk.
    Filter {
        /// The command and its arguments, as they are.
        argv: Vec<Vec<u8>>,
    },
    /// A command, one process a block.
    Pipe {
        /// The command and its arguments, as they are.
        argv: Vec<Vec<u8>>,
    },
    /// A function of a Python file.
    Python(Box<Python>),
    /// A module of WebAssembly, once a block.
    Wasm(Wasm),
    /// A function registered in the worker under this name.
    Builtin {
        /// The name.
        name: String,
    },
}

impl Function {
    /// The runtime that it needs.
    #[must_use]
    pub fn runtime(&self) -> Runtime {
        match self {
            Self::Exec { .. } => Runtime::Exec,
            Self::Filter { .. } => Runtime::Filter,
            Self::Pipe { .. } => Runtime::Pipe,
            Self::Python(_) => Runtime::Python,
            Self::Wasm(_) => Runtime::Wasm,
            Self::Builtin { .. } => Runtime::Builtin,
        }
    }
}

/// A function of a Python file, which travels as a text: it needs no place on a worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Python {
    /// The file, as it was named.
    pub path: Vec<u8>,
    /// What is in it. At most [`crate::limits::PYTHON_SOURCE_BYTES_MAX`].
    pub source: Bytes,
    /// The function's name; with dots it is of a class.
    pub function: String,
    /// A function of the file that is called once in each interpreter, before any item.
    pub initializer: Option<String>,
    /// An interpreter is replaced after so many items.
    pub recycle: Option<NonZeroU32>,
    /// Items are strings, and so are results; else both are values of JSON. Items that have their lengths before
    /// them are bytes, and so are results.
    pub is_text: bool,
    /// The interpreter: a name that is looked for, or a path.
    pub interpreter: Vec<u8>,
}

/// A module of WebAssembly that is a command of WASI preview 1. It travels as files of a job do, by its content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wasm {
    /// The file, as it was named.
    pub path: Vec<u8>,
    /// What is in it.
    pub module: Digest,
    /// How much that is. At most [`crate::limits::WASM_MODULE_BYTES_MAX`].
    pub bytes: u64,
}

/// Where an attempt's processes work.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Directory {
    /// A directory of the job's own on each worker, removed when the job closes.
    #[default]
    Private,
    /// The directory and the environment of the worker process: what embedded workers use.
    Inherit,
    /// This path on each worker; a worker without it is not used.
    Path(Vec<u8>),
}

/// What one item (one block) may take of a worker, beside time and output: each process of it by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Bytes of memory: of address space for a process, of its own memories for a module of WebAssembly.
    pub memory: Option<NonZeroU64>,
    /// Seconds of processor time.
    pub cpu_seconds: Option<NonZeroU32>,
    /// How much less urgent it is than the worker: 0 to [`crate::limits::NICE_MAX`], as for `nice`.
    pub nice: u8,
}

/// What a worker must know of a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobSpec {
    /// What is mapped.
    pub function: Function,
    /// How the items lie in a chunk, and what results of functions end in.
    pub framing: Framing,
    /// Where its processes work.
    pub directory: Directory,
    /// Variables set for its processes, beside those that a worker passes on anyway. A value of
    /// `None` passes on the worker's own.
    pub environment: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Files that are put into its private directory before anything runs.
    pub files: JobFiles,
    /// The time that one item (one block) may take.
    pub timeout: Option<Duration>,
    /// The bytes that one item (one block) may print.
    pub max_output: u64,
    /// What one item (one block) may take otherwise.
    pub limits: Limits,
    /// The slots that an attempt takes while it runs, as one that starts threads of its own needs them.
    /// At most [`crate::limits::SLOTS_MAX`].
    pub slots_per_item: NonZeroU32,
    /// Whether the length and duration of each item are wanted, as for JSON.
    pub per_item: bool,
    /// The exit statuses that count as success, for runtimes that have one; only 0 if it is empty.
    pub ok_exit: Vec<u8>,
}

impl JobSpec {
    /// What is sent to each worker apart from the job: each digest once, with its length.
    #[must_use]
    pub fn artifacts(&self) -> BTreeMap<Digest, u64> {
        let mut artifacts = self.files.artifacts();
        if let Function::Wasm(wasm) = &self.function {
            artifacts.insert(wasm.module, wasm.bytes);
        }
        artifacts
    }
}
