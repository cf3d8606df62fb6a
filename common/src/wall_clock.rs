//! The wall clock, for people alone: it can jump, and differs from host to host. Whatever waits or is
//! decided takes its time from a clock that does neither.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds; none before 1970.
#[must_use]
pub fn unix_ms() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}
