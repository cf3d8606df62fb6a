//! Accepted ranges to an output prefix: the reorder buffer, simply. The coordinator's own writes
//! through threads, so that its state between two steps is not the same in each run of a seed.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use widemap_common::ids::{AttemptId, ItemRange};

/// See the file's head.
#[derive(Debug)]
pub(super) struct Merge {
    staged: BTreeMap<AttemptId, Vec<u8>>,
    staged_bytes: u64,
    /// Results that wait, by their first item: the item after the last, and the bytes.
    waiting: BTreeMap<u64, (u64, Vec<u8>)>,
    waiting_bytes: u64,
    memory_bytes_max: u64,
    next: u64,
    /// What has gone out.
    output: Vec<u8>,
    /// Bytes that the sink still takes while whoever reads the output does not.
    sink_room: Option<u64>,
}

impl Merge {
    pub(super) fn new(memory_bytes_max: u64) -> Self {
        Self {
            staged: BTreeMap::new(),
            staged_bytes: 0,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            memory_bytes_max,
            next: 0,
            output: Vec::new(),
            sink_room: None,
        }
    }

    /// Keeps a part of an attempt's output. False if one before it is missing.
    pub(super) fn stage(&mut self, attempt: AttemptId, offset: u64, data: &Bytes) -> bool {
        let staged = self.staged.entry(attempt).or_default();
        let Some(known) = (staged.len() as u64).checked_sub(offset) else { return false };
        let known = usize::try_from(known).map_or(data.len(), |known| known.min(data.len()));
        staged.extend_from_slice(&data[known..]);
        self.staged_bytes += (data.len() - known) as u64;
        true
    }

    /// Keeps the last part. False if the whole is not as long as it was said to be.
    pub(super) fn finish(&mut self, attempt: AttemptId, last: &Bytes, output_bytes: u64) -> bool {
        let offset = output_bytes.checked_sub(last.len() as u64);
        let staged = offset.is_some_and(|offset| self.stage(attempt, offset, last));
        staged && self.staged.get(&attempt).is_some_and(|all| all.len() as u64 == output_bytes)
    }

    pub(super) fn discard(&mut self, attempt: AttemptId) {
        if let Some(staged) = self.staged.remove(&attempt) {
            self.staged_bytes -= staged.len() as u64;
        }
    }

    /// These bytes of an attempt's output.
    pub(super) fn slice(&self, attempt: AttemptId, within: Range<u64>) -> Vec<u8> {
        let staged = self.staged.get(&attempt).expect("an accepted attempt was finished");
        let at = |bound: u64| usize::try_from(bound).expect("an output fits the memory");
        staged[at(within.start)..at(within.end)].to_vec()
    }

    /// The final result of these items; none, if they failed.
    pub(super) fn enter(&mut self, range: ItemRange, bytes: Vec<u8>) {
        assert!(range.first >= self.next, "{range} has gone out already");
        self.waiting_bytes += bytes.len() as u64;
        let before = self.waiting.insert(range.first, (range.end(), bytes));
        assert!(before.is_none(), "{range} is entered once");
        self.pump();
    }

    /// Lets out what is next, as far as it is taken.
    pub(super) fn pump(&mut self) {
        while self.sink_room != Some(0)
            && let Some(entry) = self.waiting.first_entry()
            && *entry.key() == self.next
        {
            let (end, bytes) = entry.remove();
            self.waiting_bytes -= bytes.len() as u64;
            if let Some(room) = &mut self.sink_room {
                *room = room.saturating_sub(bytes.len() as u64);
            }
            self.output.extend_from_slice(&bytes);
            self.next = end;
        }
    }

    /// Whoever reads the output stops: the sink takes so many bytes more.
    pub(super) fn stall(&mut self, sink_bytes: u64) {
        self.sink_room = Some(sink_bytes);
    }

    /// Whoever reads the output goes on.
    pub(super) fn flow(&mut self) {
        self.sink_room = None;
        self.pump();
    }

    pub(super) fn is_full(&self) -> bool {
        self.staged_bytes + self.waiting_bytes >= self.memory_bytes_max
    }

    /// The first item that has not gone out.
    pub(super) fn next_item(&self) -> u64 {
        self.next
    }

    pub(super) fn output(&self) -> &[u8] {
        &self.output
    }

    /// Whether nothing waits and nothing is staged.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.staged.is_empty()
    }
}
