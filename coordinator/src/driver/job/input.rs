//! The input of a job: what is cut of it, held, and taken in from former epochs.

use bytes::Bytes;
use widemap_common::ids::ItemRange;
use widemap_proto::session::HeldAttempt;
use widemap_sched::event::InputLevel;

use super::Job;
use super::stops::{Halting, Stops};
use super::way::Way;
use crate::data;
use crate::error::MapError;

impl Job {
    /// Takes what has been read; the level, if it may have changed.
    pub(in crate::driver) fn poll_input(&mut self) -> Option<InputLevel> {
        let arrived = self.input.poll() || !std::mem::replace(&mut self.level_told, true);
        self.note_input();
        let released = self.gated && self.held.bytes() < self.inflight_bytes_max;
        self.gated &= !released;
        let arrived = arrived || self.stops.take_news();
        (arrived || released).then(|| self.level())
    }

    /// What was read is noted in the journal, if the items are not kept there: before anything of it is
    /// assigned, so that whoever goes on knows what it was.
    fn note_input(&mut self) {
        let (Some(prefix), Way::Ledger(ledger)) = (self.input.prefix(), &self.way) else { return };
        if self.noted.is_none_or(|noted| noted < prefix) {
            ledger.note_input(prefix);
            self.noted = Some(prefix);
        }
    }

    /// That the input is not the one that the map was begun with.
    pub(in crate::driver) fn take_change(&mut self) -> Option<MapError> {
        self.input.take_change().map(MapError::from)
    }

    /// Cuts a chunk, if there is one and it may be held.
    pub(in crate::driver) fn cut(
        &mut self,
        items_max: u32,
        bytes_max: u64,
    ) -> Option<(ItemRange, u64)> {
        let room = self.stops.room();
        if self.stopped || room == Some(0) || self.is_halting() {
            return None;
        }
        if self.held.bytes() >= self.inflight_bytes_max {
            self.gated = true;
            return None;
        }
        let chunk = match self.policy.chunk_items.filter(|_| !self.shape.is_block_wise) {
            Some(items) => self.input.cut_exact(within(items, room)),
            None => self.input.cut(within(items_max, room), bytes_max),
        }?;
        self.stops.cut(Stops::units(chunk.range, self.shape.is_block_wise));
        let cut = (chunk.range, chunk.bytes.len() as u64);
        self.held.hold(chunk);
        Some(cut)
    }

    /// What is left to be cut.
    pub(in crate::driver) fn level(&self) -> InputLevel {
        if self.stopped || self.is_halting() {
            return InputLevel { ready_items: 0, ready_bytes: 0, rest_bytes: Some(0) };
        }
        let data::InputLevel { ready_items, ready_bytes, rest_bytes } = self.input.level();
        if self.gated {
            // What may not be held may not be cut: it counts as still to come.
            let rest_bytes = rest_bytes.map(|rest| (rest + ready_bytes).max(1));
            return InputLevel { ready_items: 0, ready_bytes: 0, rest_bytes };
        }
        if let Some(room) = self.stops.room().filter(|&room| room < ready_items) {
            // What has to wait for the first items is still to come.
            let bytes = if room > 0 { ready_bytes } else { 0 };
            let rest_bytes = rest_bytes.map(|rest| (rest + ready_bytes).max(1));
            return InputLevel { ready_items: room, ready_bytes: bytes, rest_bytes };
        }
        InputLevel { ready_items, ready_bytes, rest_bytes }
    }

    /// The bytes of a chunk, or of a part of one, and where they begin in the input.
    pub(in crate::driver) fn input_of(
        &mut self,
        range: ItemRange,
    ) -> Result<(Bytes, u64), MapError> {
        let input = self.held.slice(range)?;
        let offset = self.held.offset(range)?;
        self.held.sent(range);
        Ok((input, offset))
    }

    /// Whether enough has failed that nothing more is cut.
    fn is_halting(&self) -> bool {
        self.stops.is_halting(self.failed_units)
    }

    /// Why it halts, told once.
    pub(in crate::driver) fn take_halting(&mut self) -> Option<Halting> {
        self.stops.take_halting(self.failed_units)
    }

    /// The job was given up: nothing more is cut. Whether that was so before.
    pub(in crate::driver) fn stop(&mut self) -> bool {
        std::mem::replace(&mut self.stopped, true)
    }

    /// Whether the job was given up.
    pub(in crate::driver) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Takes in an attempt that a former epoch has assigned, if its items are not cut in this one.
    pub(in crate::driver) fn adopt(&mut self, held: &HeldAttempt) -> bool {
        let HeldAttempt { range, input_offset, input_length, .. } = *held;
        // Of what nobody knows any more what it was, nothing is taken in.
        let is_known =
            input_offset.checked_add(input_length).is_some_and(|end| end <= self.noted_before);
        // In this order: what cannot be read again must be cut again.
        is_known
            && self.held.can_adopt(range, input_offset, input_length)
            && self.input.exclude(range)
            && self.held.adopt(range, input_offset, input_length)
    }

    /// How many items there are, once the input has ended.
    pub(in crate::driver) fn items_in_all(&self) -> Option<u64> {
        let level = self.input.level();
        let known = level.rest_bytes == Some(0) && !self.shape.is_block_wise;
        known.then(|| self.input.cut_items() + level.ready_items)
    }
}

/// A number of items that is no larger than there is room for.
fn within(items: u32, room: Option<u64>) -> u32 {
    room.map_or(items, |room| u32::try_from(room).unwrap_or(u32::MAX).min(items))
}
