//! What items write on standard error.

use widemap_common::limits::STDERR_ATTEMPT_BYTES;

use super::interpreter::{At, Interpreter};
use super::{Calls, Group};
use crate::runtime::live::Live;

impl Calls<'_, '_> {
    /// Reads what was written on standard error by others than Python itself: it is the item's that runs.
    pub(super) fn hear_stderr(
        &mut self,
        group: &Group,
        live: &mut Live,
        interpreter: &Interpreter,
    ) {
        let mut tail = std::mem::take(&mut self.bench.tail);
        if live.read_stderr(&mut tail) {
            let at = match interpreter.at() {
                At::Item(item, _) => item,
                At::Elsewhere => 0,
            };
            let (text, _) = tail.take();
            self.note_stderr(group.first + at.min(group.items.saturating_sub(1)), &text);
        }
        self.bench.tail = tail;
    }

    pub(super) fn note_stderr(&mut self, index: u32, text: &[u8]) {
        if self.stderr_bytes > STDERR_ATTEMPT_BYTES && !self.stderr.contains_key(&index) {
            return;
        }
        self.stderr_bytes += text.len();
        self.stderr.entry(index).or_default().push(text);
    }

    /// Hands in what items wrote on standard error, in their order.
    pub(super) fn hand_in_stderr(&mut self) {
        for (index, mut tail) in std::mem::take(&mut self.stderr) {
            self.attempt.results.stderr(index, &mut tail);
        }
    }
}
