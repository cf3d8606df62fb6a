//! Output of attempts that is not accepted yet: parts that come while an attempt runs, and whole
//! outputs between the attempt's end and the scheduler's verdict.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use bytes::Bytes;
use widemap_common::ids::AttemptId;

use super::piece::{Batch, Piece};
use super::spill::Spill;

/// Why an attempt's output does not fit: its result is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// A part was left out.
    #[error("{attempt}: output from byte {offset} on arrived, but {have} bytes came before")]
    Gap {
        /// Whose.
        attempt: AttemptId,
        /// Where the part begins.
        offset: u64,
        /// What had arrived.
        have: u64,
    },
    /// The end does not fit the parts.
    #[error("{attempt}: {have} bytes of output arrived, {said} were said to be")]
    Length {
        /// Whose.
        attempt: AttemptId,
        /// What had arrived.
        have: u64,
        /// The length that the worker told.
        said: u64,
    },
}

/// What is staged, by attempt.
#[derive(Default)]
pub(super) struct Staging {
    /// Attempts that send their output in parts: few, at most as many as there are slots.
    partial: BTreeMap<AttemptId, Parts>,
    /// Outputs that came whole, with the attempt's end: the usual case, kept apart for speed.
    whole: HashMap<AttemptId, Bytes>,
    memory_bytes: u64,
}

#[derive(Default)]
struct Parts {
    pieces: Vec<Piece>,
    bytes: u64,
}

impl Staging {
    /// Keeps a part. What comes again, after a reconnection, is passed over.
    pub(super) fn stage(
        &mut self,
        attempt: AttemptId,
        offset: u64,
        data: &Bytes,
    ) -> Result<(), StageError> {
        let parts = self.partial.entry(attempt).or_default();
        let have = parts.bytes;
        if offset > have {
            return Err(StageError::Gap { attempt, offset, have });
        }
        let known = (have - offset).min(data.len() as u64) as usize;
        let data = data.slice(known..);
        if !data.is_empty() {
            parts.bytes += data.len() as u64;
            self.memory_bytes += data.len() as u64;
            parts.pieces.push(Piece::Memory(data));
        }
        Ok(())
    }

    /// Keeps the last part, and checks the whole.
    pub(super) fn finish(
        &mut self,
        attempt: AttemptId,
        last: Bytes,
        output_bytes: u64,
    ) -> Result<(), StageError> {
        let have = if self.partial.contains_key(&attempt) {
            let offset = output_bytes.checked_sub(last.len() as u64);
            let said = output_bytes;
            let have = self.staged_bytes(attempt);
            let offset = offset.ok_or(StageError::Length { attempt, have, said })?;
            self.stage(attempt, offset, &last)?;
            self.staged_bytes(attempt)
        } else {
            let have = last.len() as u64;
            self.memory_bytes += have;
            let before = self.whole.insert(attempt, last);
            self.memory_bytes -= before.map_or(0, |before| before.len() as u64);
            have
        };
        if have == output_bytes {
            return Ok(());
        }
        Err(StageError::Length { attempt, have, said: output_bytes })
    }

    /// The pieces of a range of an attempt's output, shared with it.
    pub(super) fn slice(&self, attempt: AttemptId, within: Range<u64>) -> Vec<Piece> {
        if let Some(whole) = self.whole(attempt, &within) {
            return vec![Piece::Memory(whole)];
        }
        let parts = self.partial.get(&attempt).expect("an accepted attempt was finished");
        assert!(within.end <= parts.bytes, "what is accepted lies in the output");
        let mut at = 0;
        let mut pieces = Vec::new();
        for piece in &parts.pieces {
            let start = within.start.saturating_sub(at).min(piece.len());
            let end = within.end.saturating_sub(at).min(piece.len());
            at += piece.len();
            if start < end {
                pieces.push(piece.slice(start..end));
            }
        }
        pieces
    }

    /// The same for an output that came whole: no list is needed.
    pub(super) fn whole(&self, attempt: AttemptId, within: &Range<u64>) -> Option<Bytes> {
        let whole = self.whole.get(&attempt)?;
        Some(whole.slice(within.start as usize..within.end as usize))
    }

    /// Forgets an attempt. What was accepted of it is kept where it is.
    pub(super) fn discard(&mut self, attempt: AttemptId) {
        if let Some(whole) = self.whole.remove(&attempt) {
            self.memory_bytes -= whole.len() as u64;
        }
        if !self.partial.is_empty()
            && let Some(parts) = self.partial.remove(&attempt)
        {
            self.memory_bytes -= parts.pieces.iter().map(Piece::resident_bytes).sum::<u64>();
        }
    }

    /// Sends up to about `bytes` of parts to the spill, of the newest attempts first: they are the
    /// farthest ahead, as a rule. False if nothing could be.
    pub(super) fn spill(&mut self, spill: &mut Spill, bytes: u64) -> bool {
        let mut batch = Batch::default();
        for (&attempt, parts) in self.partial.iter_mut().rev() {
            for (index, piece) in parts.pieces.iter_mut().enumerate() {
                if batch.bytes() < bytes {
                    batch.take((attempt, index), piece);
                }
            }
        }
        if batch.bytes() == 0 {
            return false;
        }
        let mut still_here = 0;
        let taken = batch.bytes();
        let is_spilled = batch.settle(
            |payload| spill.put(payload),
            |(attempt, index), piece| {
                still_here += piece.resident_bytes();
                let parts = self.partial.get_mut(&attempt).expect("it was just looked at");
                parts.pieces[index] = piece;
            },
        );
        self.memory_bytes -= taken - still_here;
        is_spilled
    }

    /// Bytes that are held in memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Bytes of an attempt's output that have arrived in parts.
    pub(super) fn staged_bytes(&self, attempt: AttemptId) -> u64 {
        self.partial.get(&attempt).map_or(0, |parts| parts.bytes)
    }
}
