//! What a job is: its function, how its items are framed, and what a worker must know to run it.

use std::time::Duration;

use crate::framing::Framing;
use crate::template::Template;

/// What can run a function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Runtime {
    /// One process an item.
    Exec,
    /// One process a block, the block on its standard input.
    Pipe,
    /// A function registered in the worker.
    Builtin,
}

impl Runtime {
    /// All runtimes, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Exec, Self::Pipe, Self::Builtin];

    /// The word that flags and listings use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Pipe => "pipe",
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
        self == Self::Pipe
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
    /// A command, one process a block.
    Pipe {
        /// The command and its arguments, as they are.
        argv: Vec<Vec<u8>>,
    },
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
            Self::Pipe { .. } => Runtime::Pipe,
            Self::Builtin { .. } => Runtime::Builtin,
        }
    }
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
    /// The time that one item (one block) may take.
    pub timeout: Option<Duration>,
    /// The bytes that one item (one block) may print.
    pub max_output: u64,
    /// Whether the length and duration of each item are wanted, as for JSON.
    pub per_item: bool,
}
