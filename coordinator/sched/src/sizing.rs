//! How large the next chunk is, and how many may wait ahead on a worker: both follow what the
//! attempts of the job were measured to take.

use std::time::Duration;

use widemap_common::limits::{CHUNK_ITEMS_MAX, FILTER_CHUNK_ITEMS_MAX, PREFETCH_PER_SLOT_MAX};
use widemap_common::spec::Runtime;

use crate::event::JobPolicy;

/// Attempts below this are short: one of them may always wait ahead.
const SHORT_ATTEMPT_US: f64 = 10_000.0;

/// Blocks below this are short: a large block must not be waited for while it is sent.
const SHORT_BLOCK_US: f64 = 250_000.0;

/// A chunk never shrinks below what takes this long: its own cost would show.
const WORTHWHILE_US: f64 = 1_000.0;

/// While sizes still double, small attempts that wait ahead would only hold the doubling up.
const GROWING_DEPTH_MAX: u32 = 2;

/// An attempt counts as a straggler's victim no sooner.
const STRAGGLER_US_MIN: f64 = 100_000.0;

/// A mean and a mean deviation that follow the last measurements.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    samples: u64,
    mean: f64,
    deviation: f64,
}

impl Average {
    fn add(&mut self, sample: f64) {
        self.samples += 1;
        if self.samples == 1 {
            (self.mean, self.deviation) = (sample, sample / 2.0);
            return;
        }
        let off = sample - self.mean;
        self.mean += off / 8.0;
        self.deviation += (off.abs() - self.deviation) / 8.0;
    }
}

/// What decides the size of a chunk.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// The input cuts its own blocks.
    Block,
    /// The user named it.
    Fixed(u32),
    /// It doubles until an attempt takes long enough.
    Growing { items: u32 },
    /// It follows the measured cost of an item.
    Measured,
}

/// The sizes and times of one job.
#[derive(Debug)]
pub(crate) struct Sizing {
    rule: Rule,
    items_max: u32,
    target_us: f64,
    attempt_us: Average,
    item_us: Average,
}

impl Sizing {
    pub(crate) fn new(policy: &JobPolicy) -> Self {
        let items_max = match policy.runtime {
            Runtime::Filter => FILTER_CHUNK_ITEMS_MAX,
            _ => CHUNK_ITEMS_MAX,
        };
        let rule = match policy.chunk_items {
            _ if policy.runtime.is_block_wise() => Rule::Block,
            Some(items) => Rule::Fixed(items.clamp(1, CHUNK_ITEMS_MAX)),
            None => Rule::Growing { items: 1 },
        };
        let target_us = (policy.chunk_target.as_micros() as f64).max(1.0);
        Self {
            rule,
            items_max,
            target_us,
            attempt_us: Average::default(),
            item_us: Average::default(),
        }
    }

    /// An attempt at so many items took so long, and all of them failed.
    pub(crate) fn failed(&mut self, busy_us: u64) {
        // What fails fast is no reason to send more of it at a time.
        self.attempt_us.add((busy_us as f64).max(0.5));
    }

    /// An attempt at so many items took so long.
    pub(crate) fn measured(&mut self, items: u32, busy_us: u64) {
        // A clock of microseconds calls many attempts zero.
        let busy = (busy_us as f64).max(0.5);
        self.attempt_us.add(busy);
        self.item_us.add(busy / f64::from(items));
        if let Rule::Growing { items: size } = &mut self.rule {
            if busy * 2.0 >= self.target_us {
                self.rule = Rule::Measured;
            } else if items >= *size {
                *size = size.saturating_mul(2).min(self.items_max);
            }
        }
    }

    /// The items of the next chunk, if so many are left (where that is known) for so many slots.
    pub(crate) fn items(&self, left: Option<u64>, slots: u64) -> u32 {
        let size = match self.rule {
            Rule::Block => return CHUNK_ITEMS_MAX,
            Rule::Fixed(items) => return items,
            Rule::Growing { items } => f64::from(items),
            // The deviation counts, so that a list with a heavy tail is cut small.
            Rule::Measured => self.target_us / (self.item_us.mean + self.item_us.deviation),
        };
        let share = left.map_or(f64::INFINITY, |left| left as f64 / (2 * slots.max(1)) as f64);
        let worthwhile = (WORTHWHILE_US / self.item_us.mean.max(0.001)).min(size);
        let items = size.min(share.max(worthwhile)) as u32;
        items.clamp(1, self.items_max)
    }

    /// What an attempt of the job takes, once that is known.
    pub(crate) fn usual(&self) -> Option<Duration> {
        let is_known = self.attempt_us.samples > 0;
        is_known.then(|| Duration::from_micros(self.attempt_us.mean as u64))
    }

    /// Whether an attempt of the job is so short that others may wait behind it.
    pub(crate) fn is_short(&self) -> bool {
        let limit_us = match self.rule {
            Rule::Block => SHORT_BLOCK_US,
            Rule::Measured if self.item_us.mean * 2.0 < self.target_us => 2.0 * self.target_us,
            // Whoever names the size and what it should take has made attempts that take about that.
            Rule::Fixed(_) => SHORT_ATTEMPT_US.max(self.target_us / 2.0),
            _ => SHORT_ATTEMPT_US,
        };
        self.attempt_us.samples > 0 && self.attempt_us.mean < limit_us
    }

    /// How many attempts may wait for each slot of a worker with this round trip: what it works off
    /// in two of them. None where nothing is known.
    pub(crate) fn depth(&self, round_trip_us: u64) -> u32 {
        if self.attempt_us.samples == 0 {
            return 0;
        }
        let attempts = 2.0 * round_trip_us as f64 / self.attempt_us.mean;
        let depth = if self.is_short() { attempts.ceil().max(1.0) } else { attempts.floor() };
        let most = match self.rule {
            Rule::Growing { .. } => GROWING_DEPTH_MAX,
            _ => PREFETCH_PER_SLOT_MAX,
        };
        (depth as u32).min(most)
    }

    /// How long an attempt may run before it is well past the usual, where that is known.
    pub(crate) fn straggling(&self) -> Option<Duration> {
        let usual = &self.attempt_us;
        let past = (2.0 * usual.mean).max(usual.mean + 4.0 * usual.deviation).max(STRAGGLER_US_MIN);
        (usual.samples > 0).then(|| Duration::from_micros(past as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::policy;

    /// Sizes as attempts of the asked size take `item_us` an item, one after the other.
    fn sizes(item_us: f64, attempts: usize) -> Vec<u32> {
        let mut sizing = Sizing::new(&policy());
        let next = |sizing: &mut Sizing| {
            let items = sizing.items(None, 2);
            sizing.measured(items, (f64::from(items) * item_us) as u64);
            items
        };
        (0..attempts).map(|_| next(&mut sizing)).collect()
    }

    #[test]
    fn sizes_double_until_an_attempt_takes_long_enough() {
        assert_eq!(sizes(1_500.0, 5), [1, 2, 4, 8, 9]);
        assert_eq!(sizes(1_500.0, 40)[39], 13);
        assert_eq!(sizes(0.05, 19)[18], CHUNK_ITEMS_MAX, "tiny items reach large chunks quickly");
    }

    #[test]
    fn long_items_go_alone() {
        assert_eq!(sizes(10_000.0, 4), [1; 4]);
        assert_eq!(sizes(1e6, 4), [1; 4]);
    }

    #[test]
    fn what_fails_fast_is_not_sent_in_larger_chunks() {
        let mut sizing = Sizing::new(&policy());
        (0..100).for_each(|_| sizing.failed(100));
        assert_eq!(sizing.items(None, 2), 1);
        sizing.measured(1, 30_000);
        (0..100).for_each(|_| sizing.failed(100));
        assert_eq!(sizing.items(None, 2), 1);
    }

    #[test]
    fn stragglers_from_before_do_not_double_again() {
        let mut sizing = Sizing::new(&policy());
        (0..100).for_each(|_| sizing.measured(1, 1));
        assert_eq!(sizing.items(None, 2), 2);
    }

    #[test]
    fn a_near_end_is_shared_by_the_slots_but_not_below_a_millisecond() {
        let mut sizing = Sizing::new(&policy());
        for _ in 0..200 {
            let items = sizing.items(None, 8);
            sizing.measured(items, u64::from(items) * 100);
        }
        assert!((100..=200).contains(&sizing.items(None, 8)));
        assert_eq!(sizing.items(Some(800), 8), 50);
        assert_eq!(sizing.items(Some(16), 8), 10);
    }

    #[test]
    fn prefetch_covers_two_round_trips_of_short_attempts() {
        let mut fixed = Sizing::new(&JobPolicy { chunk_items: Some(1), ..policy() });
        assert_eq!(fixed.depth(200), 0, "nothing waits ahead while nothing is known");
        fixed.measured(1, 100);
        assert_eq!(fixed.depth(200), 4);
        fixed.measured(1, 1_000_000);
        assert_eq!(fixed.depth(200), 0, "nothing waits behind something long");
    }

    #[test]
    fn what_is_long_follows_the_target_where_both_are_named() {
        let long = |chunk_target| {
            let mut fixed =
                Sizing::new(&JobPolicy { chunk_items: Some(1), chunk_target, ..policy() });
            fixed.measured(1, 400_000);
            fixed.depth(200)
        };
        assert_eq!(long(policy().chunk_target), 0);
        assert_eq!(long(Duration::from_secs(1)), 1);
    }
}
