//! How much input a session of a worker has room for: it keeps to the worker's own account, with a
//! window that is met.

/// The window of input that waits on a worker, and what is worth a report.
#[derive(Clone, Copy, Debug)]
pub(super) struct InputBounds {
    pub(super) window_bytes: u64,
    pub(super) step_bytes: u64,
}

/// What a session holds of its input at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct InputHeld {
    /// Received, and not taken by a slot.
    pub(super) bytes: u64,
    /// A part is waited for: by a slot, or, while nothing else starts, by the coordinator.
    pub(super) is_short: bool,
}

/// Input of a session, counted for the grants.
#[derive(Debug)]
pub(super) struct InputAccount {
    bounds: InputBounds,
    /// Received on the present stream, and the total that it was granted.
    stream_bytes: u64,
    granted_bytes: u64,
}

impl InputAccount {
    pub(super) fn new(bounds: InputBounds) -> Self {
        Self { bounds, stream_bytes: 0, granted_bytes: 0 }
    }

    /// Begins a stream, and returns its first grant.
    pub(super) fn begin_stream(&mut self, held: InputHeld) -> u64 {
        self.stream_bytes = 0;
        self.granted_bytes = self.grantable(held);
        self.granted_bytes
    }

    pub(super) fn received(&mut self, bytes: usize) {
        self.stream_bytes += bytes as u64;
        assert!(self.stream_bytes <= self.granted_bytes, "input comes only as it was granted");
    }

    /// A grant that is worth a report.
    pub(super) fn next_grant(&mut self, held: InputHeld) -> Option<u64> {
        let grantable = self.grantable(held);
        let moved = grantable.saturating_sub(self.granted_bytes);
        let exhausted = self.granted_bytes < self.stream_bytes + self.bounds.step_bytes;
        let urgent = moved > 0 && exhausted && held.is_short;
        (moved >= self.bounds.step_bytes || urgent).then(|| {
            self.granted_bytes = grantable;
            grantable
        })
    }

    fn grantable(&self, held: InputHeld) -> u64 {
        let mut room = self.bounds.window_bytes.saturating_sub(held.bytes);
        if held.is_short {
            room = room.max(self.bounds.step_bytes);
        }
        self.stream_bytes + room
    }
}
