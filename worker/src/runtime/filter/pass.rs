//! How far a group is.

use std::time::{Duration, Instant};

/// After so long without a move it is asked for the first time whether the program waits for input; then
/// after twice as long, and so on.
const FIRST_LOOK: Duration = Duration::from_millis(4);

/// See the file's head.
pub(super) struct Pass {
    /// Where its output begins.
    pub(super) start: u64,
    pub(super) lines: u64,
    /// Bytes of the line that has begun.
    pub(super) open_bytes: u64,
    pub(super) began: Instant,
    /// When the last line has ended.
    pub(super) line_at: Instant,
    /// When anything last moved.
    pub(super) moved_at: Instant,
    /// How long after that it is looked at next.
    look_after: Duration,
    /// The item that first wrote on standard error.
    pub(super) stderr_at: Option<u64>,
    /// Until when the output is read of a process that has ended, where a child of it holds that open.
    pub(super) read_until: Option<Instant>,
}

impl Pass {
    pub(super) fn begin(start: u64) -> Self {
        let now = Instant::now();
        Self {
            start,
            lines: 0,
            open_bytes: 0,
            began: now,
            line_at: now,
            moved_at: now,
            look_after: FIRST_LOOK,
            stderr_at: None,
            read_until: None,
        }
    }

    /// Something has gone in or come out.
    pub(super) fn moved(&mut self, now: Instant) {
        (self.moved_at, self.look_after) = (now, FIRST_LOOK);
    }

    /// When it is asked whether the program waits for input.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.moved_at.checked_add(self.look_after)
    }

    /// That was asked.
    pub(super) fn looked(&mut self) {
        self.look_after = self.look_after.saturating_mul(2);
    }
}
