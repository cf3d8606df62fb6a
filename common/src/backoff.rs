//! Pauses that double, with jitter, so that many that failed together do not come back together.
//!
//! The scheme is "equal jitter" of Marc Brooker, "Exponential Backoff And Jitter" (2015): half of
//! the pause is fixed, the other half random.

use std::time::Duration;

pub use fastrand::Rng;

/// The pause before retry number `retry` (from 0): `base` doubled `retry` times, at most `max`,
/// of which a random half is left out.
#[must_use]
pub fn pause(retry: u32, base: Duration, max: Duration, rng: &mut Rng) -> Duration {
    let whole = base.saturating_mul(1_u32.checked_shl(retry).unwrap_or(u32::MAX)).min(max);
    let half_us = u64::try_from(whole.as_micros() / 2).unwrap_or(u64::MAX / 2);
    Duration::from_micros(half_us + rng.u64(0..=half_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound_and_keep_half() {
        let mut rng = Rng::with_seed(1);
        let (base, max) = (Duration::from_millis(100), Duration::from_millis(1_000));
        for (retry, whole_ms) in [(0, 100), (1, 200), (3, 800), (4, 1_000), (40, 1_000)] {
            let pause = pause(retry, base, max, &mut rng);
            let whole = Duration::from_millis(whole_ms);
            assert!(pause >= whole / 2 && pause <= whole, "retry {retry}: {pause:?}");
        }
    }
}
