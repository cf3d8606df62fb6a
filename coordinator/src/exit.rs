//! Exit statuses, fixed by the contract of the command line.

/// All items succeeded; also when a reader closes the output pipe.
pub(crate) const OK: u8 = 0;
/// Some items failed for good.
pub(crate) const ITEMS_FAILED: u8 = 1;
/// Nothing was run: usage, or the function is unusable everywhere.
pub(crate) const USAGE: u8 = 2;
/// The cluster or the disk failed, not the items.
pub(crate) const CLUSTER: u8 = 3;
/// Interrupted from the terminal.
pub(crate) const INTERRUPTED: u8 = 130;
/// Told to end.
pub(crate) const TERMINATED: u8 = 143;
