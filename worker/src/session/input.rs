//! How much input a session has room for: what its slots have not taken stays within a window.

use std::sync::Arc;

use widemap_common::limits::{INPUT_WINDOW_BYTES, PART_BYTES_MAX};

use crate::slots::InputMeter;

/// A step of the grant that is worth a report.
const STEP_BYTES: u64 = PART_BYTES_MAX as u64;

/// Input of a session, counted for the grants.
#[derive(Debug)]
pub(super) struct InputAccount {
    meter: Arc<InputMeter>,
    /// Received in all of the session's life.
    received_bytes: u64,
    /// Received on the present stream.
    stream_bytes: u64,
    /// The total that the present stream was granted.
    granted_bytes: u64,
    /// Nothing starts but what the coordinator waits for, which may not have come yet.
    is_paused: bool,
}

impl InputAccount {
    pub(super) fn new(meter: Arc<InputMeter>) -> Self {
        Self { meter, received_bytes: 0, stream_bytes: 0, granted_bytes: 0, is_paused: false }
    }

    /// Begins a stream, and returns its first grant.
    pub(super) fn begin_stream(&mut self) -> u64 {
        self.stream_bytes = 0;
        self.granted_bytes = self.grantable();
        self.granted_bytes
    }

    pub(super) fn received(&mut self, bytes: usize) {
        self.received_bytes += bytes as u64;
        self.stream_bytes += bytes as u64;
    }

    /// Bytes that no slot will take.
    pub(super) fn dropped(&self, bytes: usize) {
        self.meter.take(bytes);
    }

    /// Whether nothing starts but what the coordinator waits for.
    pub(super) fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// A grant that is worth a report.
    pub(super) fn next_grant(&mut self) -> Option<u64> {
        let grantable = self.grantable();
        let moved = grantable.saturating_sub(self.granted_bytes);
        let exhausted = self.granted_bytes < self.stream_bytes + STEP_BYTES;
        let urgent = moved > 0 && exhausted && self.is_short();
        (moved >= STEP_BYTES || urgent).then(|| {
            self.granted_bytes = grantable;
            grantable
        })
    }

    /// The total of input that this stream may reach.
    fn grantable(&self) -> u64 {
        let held = self.received_bytes.saturating_sub(self.meter.taken_bytes());
        let mut room = INPUT_WINDOW_BYTES.saturating_sub(held);
        if self.is_short() {
            // What is waited for must not wait for those that wait for a slot.
            room = room.max(STEP_BYTES);
        }
        self.stream_bytes + room
    }

    /// Whether a part is waited for: by a slot, or by the coordinator, whose head may be behind what
    /// cannot start.
    fn is_short(&self) -> bool {
        self.is_paused || self.meter.is_starving()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::{InputStream, SlotControl};

    #[test]
    fn what_the_slots_take_is_granted_again() {
        let meter = Arc::new(InputMeter::default());
        let mut account = InputAccount::new(meter.clone());
        assert_eq!(account.begin_stream(), INPUT_WINDOW_BYTES);
        account.received(3 * PART_BYTES_MAX);
        assert_eq!(account.next_grant(), None);
        meter.take(PART_BYTES_MAX / 2);
        assert_eq!(account.next_grant(), None);
        meter.take(PART_BYTES_MAX / 2);
        assert_eq!(account.next_grant(), Some(INPUT_WINDOW_BYTES + STEP_BYTES));
        // What is held when another stream begins leaves less room.
        assert_eq!(account.begin_stream(), INPUT_WINDOW_BYTES - 2 * STEP_BYTES);
    }

    #[test]
    fn a_paused_session_still_takes_what_the_coordinator_waits_for() {
        let mut account = InputAccount::new(Arc::new(InputMeter::default()));
        account.begin_stream();
        account.received(usize::try_from(INPUT_WINDOW_BYTES).unwrap());
        assert_eq!(account.next_grant(), None);
        account.set_paused(true);
        assert_eq!(account.next_grant(), Some(INPUT_WINDOW_BYTES + STEP_BYTES));
        assert_eq!(account.next_grant(), None);
    }

    #[test]
    fn a_slot_that_waits_for_input_gets_some_past_a_full_window() {
        let meter = Arc::new(InputMeter::default());
        let mut account = InputAccount::new(meter.clone());
        account.begin_stream();
        account.received(usize::try_from(INPUT_WINDOW_BYTES).unwrap());
        assert_eq!(account.next_grant(), None);
        let control = Arc::new(SlotControl::new(0).unwrap());
        InputStream::new(1, meter).take(&control);
        assert_eq!(account.next_grant(), Some(INPUT_WINDOW_BYTES + STEP_BYTES));
    }
}
