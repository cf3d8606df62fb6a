//! What of a chunk's time is its items', where each chunk has a process of its own.

/// Of its time so much, but never more than the next, is always its items': what takes no time at all would
/// be given any number of them at once.
const ITEMS_PART: u64 = 8;
const ITEMS_US: u64 = 1_000;

/// What is known of a time weighs so many times what the next one does.
const WEIGHT: f64 = 8.0;

/// One time alone is taken to have this part of it as its deviation.
const FIRST_SPREAD: f64 = 4.0;

/// Two times differ where they are further apart than so many mean deviations.
const SPREADS: f64 = 2.0;

/// How chunks of one size do.
#[derive(Clone, Copy, Debug)]
struct Size {
    items: u32,
    /// A mean that follows the last chunks, in microseconds, and their mean deviation from it.
    mean: f64,
    deviation: f64,
}

impl Size {
    fn first(items: u32, micros: f64) -> Self {
        Self { items, mean: micros, deviation: micros / FIRST_SPREAD }
    }

    fn add(&mut self, micros: f64) {
        let off = micros - self.mean;
        self.mean += off / WEIGHT;
        self.deviation += (off.abs() - self.deviation) / WEIGHT;
    }
}

/// What the smallest chunks and the last larger ones take. Between them only the items differ, so that what
/// the larger take longer is what these cost; the rest is the start of a process and its end.
///
/// On a busy machine one start takes several times what another does. So two sizes differ only beyond the
/// spread of the smaller, and what was seen of larger chunks is forgotten while only small ones come: an
/// item that seemed dear once must not keep chunks small for ever.
#[derive(Debug, Default)]
pub(super) struct Costs {
    small: Option<Size>,
    large: Option<Size>,
}

impl Costs {
    /// What of the time of a chunk is its items', in microseconds.
    pub(super) fn items_us(&mut self, items: u32, micros: u64) -> u64 {
        let taken = micros as f64;
        match &mut self.small {
            Some(small) if small.items < items => match &mut self.large {
                Some(large) if large.items == items => large.add(taken),
                large => *large = Some(Size::first(items, taken)),
            },
            Some(small) if small.items == items => {
                small.add(taken);
                if let Some(large) = &mut self.large {
                    large.mean -= (large.mean - small.mean) / WEIGHT;
                }
            }
            small => {
                self.large = small.or(self.large);
                *small = Some(Size::first(items, taken));
            }
        }
        let least = (micros / ITEMS_PART).min(ITEMS_US);
        let items_us = self.item_us() * f64::from(items);
        (items_us as u64).clamp(least, micros)
    }

    /// What an item costs, as far as it shows.
    fn item_us(&self) -> f64 {
        let (Some(small), Some(large)) = (self.small, self.large) else { return 0.0 };
        let longer = large.mean - small.mean - SPREADS * small.deviation;
        longer.max(0.0) / f64::from(large.items - small.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What chunks of these sizes are said to take, where `took` says what they did.
    fn said(costs: &mut Costs, sizes: &[u32], mut took: impl FnMut(u32) -> u64) -> Vec<u64> {
        sizes.iter().map(|items| costs.items_us(*items, took(*items))).collect()
    }

    #[test]
    fn a_start_is_none_of_the_items() {
        let mut costs = Costs::default();
        let sizes = [&[1; 40][..], &[2, 4, 8, 16, 1_000]].concat();
        let said = said(&mut costs, &sizes, |items| 300_000 + 10 * u64::from(items));
        assert!(said.iter().all(|us| *us <= 20_000), "{said:?}");
        assert!((8_000..=10_000).contains(&costs.items_us(1_000, 310_000)));
    }

    #[test]
    fn items_that_take_long_show_as_soon_as_there_are_two() {
        let mut costs = Costs::default();
        let said =
            said(&mut costs, &[1, 2, 1, 1, 2], |items| 50_000 + 1_000_000 * u64::from(items));
        assert!(said[0] <= ITEMS_US, "{said:?}");
        assert!(said[2] >= 200_000, "{said:?}");
        assert!(said[4] >= 500_000, "{said:?}");
    }

    #[test]
    fn starts_that_take_anything_do_not_look_like_items() {
        let mut costs = Costs::default();
        // From 100 to 500 ms, as on a machine that is busy.
        let mut times = (0_u64..).map(|nth| 100_000 + nth * 7_919 % 400 * 1_000);
        let sizes: Vec<u32> = (0..40).map(|nth| if nth < 20 { 1 } else { 64 }).collect();
        let said = said(&mut costs, &sizes, |_| times.next().unwrap());
        assert!(said[..20].iter().all(|us| *us <= ITEMS_US), "{said:?}");
        assert!(said[20..].iter().sum::<u64>() < 20 * 64 * 1_000, "{said:?}");
    }

    #[test]
    fn what_seemed_dear_once_is_forgotten() {
        let mut costs = Costs::default();
        said(&mut costs, &[1; 8], |_| 100_000);
        assert!(costs.items_us(2, 3_000_000) > 1_000_000);
        let after = said(&mut costs, &[1; 60], |_| 100_000);
        assert!(after[0] > 100_000 / 2, "{after:?}");
        assert_eq!(after[59], ITEMS_US, "{after:?}");
    }
}
