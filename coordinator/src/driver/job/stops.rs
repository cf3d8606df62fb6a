//! When a job is to stop before its end: after so many failures (`--halt`), or because one of its first
//! items failed, which run alone (`--canary`).

use widemap_common::ids::ItemRange;
use widemap_proto::jobs::{Halt, Stops as Wanted};

use crate::error::MapError;

/// See the file's head.
#[derive(Debug)]
pub(super) struct Stops {
    halt: Option<Halt>,
    canary: Canary,
    /// It was said that the job halts.
    is_told: bool,
}

/// Why a job halts.
#[derive(Debug)]
pub(in crate::driver) struct Halting {
    pub(in crate::driver) error: MapError,
    /// What runs is ended, too.
    pub(in crate::driver) now: bool,
}

/// The items, or blocks, that run before all others.
#[derive(Debug)]
struct Canary {
    wanted: u64,
    to_cut: u64,
    running: u64,
    has_failed: bool,
    /// What is behind them may run, and that is not told yet.
    is_news: bool,
}

impl Stops {
    /// Of a job of which so many items had their last word before.
    pub(super) fn new(wanted: Wanted, done: u64) -> Self {
        let Wanted { halt, canary } = wanted;
        // A former life has seen them.
        let to_cut = canary.saturating_sub(done);
        Self {
            halt,
            canary: Canary {
                wanted: canary,
                to_cut,
                running: 0,
                has_failed: false,
                is_news: false,
            },
            is_told: false,
        }
    }

    /// How many items, or blocks, may be cut now, if not all.
    pub(super) fn room(&self) -> Option<u64> {
        match (self.canary.to_cut, self.canary.running) {
            (0, 0) => None,
            (to_cut, _) => Some(to_cut),
        }
    }

    /// So many items, or blocks, were cut.
    pub(super) fn cut(&mut self, units: u64) {
        let canary = &mut self.canary;
        if canary.to_cut > 0 {
            canary.to_cut = canary.to_cut.saturating_sub(units);
            canary.running += units;
        }
    }

    /// So many have their last word, a good one.
    pub(super) fn succeeded(&mut self, units: u64) {
        let canary = &mut self.canary;
        if canary.running > 0 {
            canary.running = canary.running.saturating_sub(units);
            canary.is_news = canary.running == 0 && canary.to_cut == 0 && !canary.has_failed;
        }
    }

    /// So many failed for good.
    pub(super) fn failed(&mut self, units: u64) {
        self.canary.has_failed |= self.canary.running > 0;
        self.succeeded(units);
    }

    /// Whether what is behind the first items may run since this was asked last.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.canary.is_news)
    }

    /// Whether it halts, with so many failures.
    pub(super) fn is_halting(&self, failed: u64) -> bool {
        self.canary.has_failed || self.halt.is_some_and(|halt| failed >= halt.failures)
    }

    /// Why it halts, told once.
    pub(super) fn take_halting(&mut self, failed: u64) -> Option<Halting> {
        if self.is_told || !self.is_halting(failed) {
            return None;
        }
        self.is_told = true;
        let canary = self.canary.has_failed.then_some(self.canary.wanted);
        let now = canary.is_none() && self.halt.is_some_and(|halt| halt.now);
        Some(Halting { error: MapError::Halted { failed, canary }, now })
    }

    /// The units of a range.
    pub(super) fn units(range: ItemRange, is_block_wise: bool) -> u64 {
        if is_block_wise { 1 } else { u64::from(range.items) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_items_run_alone() {
        let mut stops = Stops::new(Wanted { halt: None, canary: 3 }, 0);
        assert_eq!(stops.room(), Some(3));
        stops.cut(2);
        assert_eq!(stops.room(), Some(1));
        stops.cut(1);
        assert_eq!(stops.room(), Some(0));
        stops.succeeded(2);
        assert!(!stops.take_news());
        stops.succeeded(1);
        assert!(stops.take_news() && !stops.take_news());
        assert_eq!(stops.room(), None);
        stops.cut(100);
        stops.failed(7);
        assert!(stops.take_halting(7).is_none(), "only the first ones count");
        assert_eq!(Stops::new(Wanted { halt: None, canary: 3 }, 3).room(), None);
    }

    #[test]
    fn a_failure_among_the_first_items_ends_it() {
        let mut stops = Stops::new(Wanted { halt: None, canary: 2 }, 0);
        stops.cut(2);
        stops.succeeded(1);
        stops.failed(1);
        assert!(!stops.take_news());
        let halting = stops.take_halting(1).unwrap();
        assert!(matches!(halting.error, MapError::Halted { failed: 1, canary: Some(2) }));
        assert!(!halting.now && stops.take_halting(1).is_none() && stops.is_halting(1));
    }

    #[test]
    fn so_many_failures_end_it() {
        let halt = Some(Halt { failures: 2, now: true });
        let mut stops = Stops::new(Wanted { halt, canary: 0 }, 0);
        assert!(stops.take_halting(1).is_none() && !stops.is_halting(1));
        assert!(stops.take_halting(2).unwrap().now && stops.is_halting(3));
    }
}
