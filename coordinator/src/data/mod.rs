//! The data plane of a job: input to chunks, results to output. The driver owns all of it and never
//! waits for it; OS threads do the waiting, behind bounded queues, and call `notify`.
//!
//! ```text
//! reader thread -> Input --cut--> Chunk -> HeldInput --slice--> session
//! session -> Merge: stage, finish, accept, fail -> reorder buffer <-> spill thread
//!                                                       `-> sink thread -> output, failures file
//! ```
//!
//! The input, with one `notify` that wakes the driver:
//! - [`Input::open`]; on a wake-up [`Input::poll`], then [`Input::level`] is what the scheduler is
//!   told. To cut: [`Input::cut`] (or [`Input::cut_exact`] for `--chunk N`), [`HeldInput::hold`].
//! - To send an attempt: [`HeldInput::slice`] of its range, then [`HeldInput::sent`]. When items
//!   are accepted or have failed for good: [`HeldInput::release`].
//! - [`Input::error`] is told after the last item before it was cut.
//!
//! The results of an attempt:
//! - parts that come early: [`Merge::stage`];
//! - its end: [`Merge::finish`] and [`Report::new`]; an error of `finish` rejects the attempt;
//! - for each range that the scheduler accepts: [`Report::within`] and [`Merge::accept`], or for
//!   JSON [`Report::results`] and [`Merge::accept_results`];
//! - for each item that failed for good: [`Report::failure`] (or [`FailureRecord::untold`]) and
//!   [`Merge::fail`];
//! - when the scheduler releases the attempt: [`Merge::discard`].
//!
//! At the end of each turn, and when notified: [`Merge::pump`], then [`Merge::level`] tells whether
//! the scheduler may run ahead. When everything is accepted and [`Merge::is_empty`]:
//! [`Merge::close`], and once notified [`Merge::outcome`]; then [`OutputFile::commit`].

mod arriving;
mod artifacts;
mod block;
mod combine;
mod delivery;
mod digest;
mod excluded;
mod failures_file;
mod format;
mod frames;
mod held;
mod input;
mod ledger;
mod merge;
mod outlet;
mod output_file;
mod people;
mod piece;
mod prefix;
mod reader;
mod receipt;
mod recorder;
mod render;
mod reorder;
mod report;
mod sink;
mod source;
mod spill;
mod staging;
#[cfg(target_os = "linux")]
mod stepped;
#[cfg(test)]
mod tests;
mod unframe;

pub(crate) use arriving::Arriving;
pub(crate) use artifacts::{Artifact, ArtifactError, ArtifactReader, Artifacts, digest_of};
pub use block::BlockRule;
pub use combine::{ColumnSeparator, ItemForm, Recipe, Values};
pub use delivery::Delivery;
pub use digest::function_digest;
pub use failures_file::FailuresFile;
pub(crate) use format::failures_file_line;
pub use format::{Format, ResultShape, Shape};
pub use held::{HeldError, HeldInput};
pub use input::{Chunk, Input, InputFile, InputLevel};
pub(crate) use ledger::{Ledger, LedgerConfig, Rendering};
pub use merge::{Merge, MergeBounds, MergeConfig, MergeLevel};
pub use output_file::{OutputFile, OutputFileError};
pub use people::{item_shown, line_shown, message_shown, plain_lines, stderr_lines};
pub use prefix::Prefix;
pub use receipt::{ItemCounts, Unbalanced, receipt_json, what_runs};
pub use recorder::{CommandShown, RecordError, Recorder, Recording, raw_output};
pub use report::{FailureRecord, Report, Results};
pub use sink::{SinkConfig, SinkError, SinkReport, SinkTarget};
pub use source::{InputError, Source};
pub use spill::SpillError;
pub use staging::StageError;
#[cfg(target_os = "linux")]
#[doc(hidden)]
pub use stepped::{SteppedConfig, SteppedMerge};
