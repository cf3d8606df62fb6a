//! How an item can fail: one taxonomy for every runtime, in the wire types, the journal, the output
//! and the docs. A failure is text, never an object to rebuild.

use std::fmt;

/// What ended an item, if not success.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FailureKind {
    /// A non-zero exit, an exception, a trap, a panic, a wrong number of lines.
    Error,
    /// It took longer than `--timeout`.
    Timeout,
    /// The process that ran it died by a signal.
    Crash,
    /// It never finished: no worker was left.
    Lost,
    /// The job was ended before it.
    Cancelled,
}

impl FailureKind {
    /// All kinds, in the order of the documentation.
    pub const ALL: [Self; 5] =
        [Self::Error, Self::Timeout, Self::Crash, Self::Lost, Self::Cancelled];

    /// The word that output and files use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Crash => "crash",
            Self::Lost => "lost",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One failed item of an attempt, as the worker that ran it tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The item, counted from the attempt's first (0); 0 for a block.
    pub index: u32,
    /// What ended it.
    pub kind: FailureKind,
    /// What happened, for a person: one line or a traceback. At most
    /// [`crate::limits::MESSAGE_BYTES_MAX`].
    pub message: String,
    /// The exit status of its process, if it exited.
    pub exit: Option<i32>,
    /// The signal that ended its process, if one did.
    pub signal: Option<i32>,
    /// The function is not made for its runtime, or for the items: it gave another number of lines than one
    /// where it has to give exactly one, or the item is no JSON.
    pub unfit: bool,
    /// Where the item's output begins in the attempt's output, in bytes.
    pub output_offset: u64,
    /// How many bytes of the attempt's output are the failed item's, and are left out.
    pub output_bytes: u64,
    /// Whether another run could end otherwise: not for an item too long to pass, say.
    pub retryable: bool,
    /// How long it ran.
    pub micros: u64,
}
