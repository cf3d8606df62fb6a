//! The reorder buffer: accepted results that wait for an earlier one, in runs of neighbours, so
//! that a million one-item results that wait for one straggler are one entry.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::piece::{Batch, Emit};
use super::spill::Spill;

/// Results that wait, by their first item.
pub(super) struct Reorder {
    /// The first item that was not emitted.
    next: u64,
    runs: BTreeMap<u64, Run>,
    /// Runs with bytes that could be spilled: kept from the first spill on, since most jobs have
    /// none.
    in_memory: Option<BTreeSet<u64>>,
    memory_bytes: u64,
}

/// Neighbours. While the first run is being emitted, its first parts are gone already.
struct Run {
    end: u64,
    parts: VecDeque<Emit>,
}

/// What a run costs beside its parts, roughly.
const RUN_OVERHEAD_BYTES: u64 = 160;

/// Parts that are looked at for one batch: most of a long run may be on disk already.
const LOOKED_AT_MAX: usize = 4_096;

impl Reorder {
    pub(super) fn new() -> Self {
        Self { next: 0, runs: BTreeMap::new(), in_memory: None, memory_bytes: 0 }
    }

    /// Whether the items from `first` on can be emitted without a wait here.
    pub(super) fn is_next(&self, first: u64) -> bool {
        first == self.next && !self.runs.contains_key(&first)
    }

    /// The items up to `end` go past the buffer: they are next.
    pub(super) fn pass(&mut self, first: u64, end: u64) {
        debug_assert!(self.is_next(first), "only what is next passes");
        self.next = end;
    }

    /// Keeps the results of `first..end`.
    pub(super) fn add(&mut self, first: u64, end: u64, parts: impl IntoIterator<Item = Emit>) {
        assert!(first >= self.next, "items from {first} on are accepted twice");
        let before = self.runs.range_mut(..=first).next_back();
        let (key, run) = match before {
            Some((&key, run)) if run.end == first => {
                run.end = end;
                (key, run)
            }
            before => {
                assert!(
                    before.is_none_or(|(_, run)| run.end < first),
                    "items from {first} on are accepted twice"
                );
                self.memory_bytes += RUN_OVERHEAD_BYTES;
                let run = self.runs.entry(first).or_insert(Run { end, parts: VecDeque::new() });
                (first, run)
            }
        };
        for part in parts {
            let bytes = part.memory_bytes();
            let rest = match run.parts.back_mut() {
                Some(last) => {
                    let before = last.memory_bytes();
                    let rest = last.join(part);
                    self.memory_bytes += last.memory_bytes() - before;
                    rest
                }
                None => Some(part),
            };
            if let Some(part) = rest {
                run.parts.push_back(part.detached());
                self.memory_bytes += bytes;
            }
        }
        if let Some(in_memory) = &mut self.in_memory {
            in_memory.insert(key);
        }
    }

    /// Takes what is next to be emitted.
    pub(super) fn pop(&mut self) -> Option<Emit> {
        loop {
            let mut entry = self.runs.first_entry()?;
            if *entry.key() != self.next {
                return None;
            }
            let part = entry.get_mut().parts.pop_front();
            if entry.get().parts.is_empty() {
                if let Some(in_memory) = &mut self.in_memory {
                    in_memory.remove(entry.key());
                }
                self.next = entry.remove().end;
                self.memory_bytes -= RUN_OVERHEAD_BYTES;
            }
            if let Some(part) = part {
                self.memory_bytes -= part.memory_bytes();
                return Some(part);
            }
        }
    }

    /// Whether [`Reorder::pop`] would give something.
    pub(super) fn is_next_ready(&self) -> bool {
        self.runs.first_key_value().is_some_and(|(&first, _)| first == self.next)
    }

    /// Takes the failures out of all that waits, which is given up.
    pub(super) fn take_failures(&mut self) -> Vec<Emit> {
        let parts = std::mem::take(&mut self.runs).into_values().flat_map(|run| run.parts);
        let failures = parts.filter(|part| matches!(part, Emit::Failure(_))).collect();
        (self.memory_bytes, self.in_memory) = (0, None);
        failures
    }

    /// Sends up to about `bytes` of what is needed last to the spill. False if nothing could be.
    pub(super) fn spill(&mut self, spill: &mut Spill, bytes: u64) -> bool {
        let in_memory = self.in_memory.get_or_insert_with(|| self.runs.keys().copied().collect());
        let mut batch = Batch::default();
        let mut looked_at = 0;
        while batch.bytes() < bytes && (looked_at <= LOOKED_AT_MAX || batch.bytes() == 0) {
            let Some(&first) = in_memory.last() else { break };
            let run = self.runs.get_mut(&first).expect("a run in memory is a run");
            let mut is_emptied = true;
            for (index, part) in run.parts.iter_mut().enumerate().rev() {
                looked_at += 1;
                if batch.bytes() >= bytes || (batch.bytes() > 0 && looked_at > LOOKED_AT_MAX) {
                    is_emptied = false;
                    break;
                }
                for (at, piece) in part.pieces_mut().iter_mut().enumerate() {
                    batch.take((first, index, at), piece);
                }
            }
            if is_emptied {
                in_memory.remove(&first);
            }
        }
        if batch.bytes() == 0 {
            return false;
        }
        let mut still_here = 0;
        let taken = batch.bytes();
        let is_spilled = batch.settle(
            |payload| spill.put(payload),
            |(first, index, at), piece| {
                still_here += piece.resident_bytes();
                let run = self.runs.get_mut(&first).expect("a run in memory is a run");
                run.parts[index].pieces_mut()[at] = piece;
            },
        );
        self.memory_bytes -= taken - still_here;
        is_spilled
    }

    /// Bytes that are held in memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The first item that was not emitted.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}
