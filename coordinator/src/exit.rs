//! Exit statuses, fixed by the contract of the command line.

/// All items succeeded; also when a reader closes the output pipe.
pub(crate) const OK: u8 = 0;
/// Some items failed for good.
pub(crate) const ITEMS_FAILED: u8 = 1;
/// Nothing was run: usage, or the function is unusable everywhere.
pub(crate) const USAGE: u8 = 2;
/// The cluster or the disk failed, not the items.
pub(crate) const CLUSTER: u8 = 3;

/// Ended by a signal: 130 where it was interrupted from the terminal, 143 where it was told to end.
pub(crate) fn by_signal(signal: i32) -> u8 {
    128 + u8::try_from(signal).unwrap_or_default()
}
