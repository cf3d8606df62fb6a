//! Items that are not to be cut, since they are final already or a former epoch's attempts have them.

use std::collections::BTreeMap;

use widemap_common::ids::ItemRange;

/// Ranges of items that do not overlap, neighbours joined.
#[derive(Debug, Default)]
pub(super) struct Excluded {
    /// The end of each by its beginning.
    ranges: BTreeMap<u64, u64>,
}

impl Excluded {
    /// Whether any of the items is in one of the ranges.
    pub(super) fn overlaps(&self, range: ItemRange) -> bool {
        self.ranges.range(..range.end()).next_back().is_some_and(|(_, &end)| end > range.first)
    }

    /// Adds a range that overlaps none.
    pub(super) fn add(&mut self, range: ItemRange) {
        debug_assert!(!self.overlaps(range), "{range} is excluded once");
        let (mut first, mut end) = (range.first, range.end());
        if let Some(next) = self.ranges.remove(&end) {
            end = next;
        }
        if let Some((&before, _)) =
            self.ranges.range(..first).next_back().filter(|&(_, &end)| end == first)
        {
            first = before;
        }
        self.ranges.insert(first, end);
    }

    /// Of so many items from `first` on: how many are none of these, and how many after those are.
    pub(super) fn within(&self, first: u64, items: u64) -> (u64, u64) {
        let end = first + items;
        if let Some((_, &to)) =
            self.ranges.range(..=first).next_back().filter(|&(_, &to)| to > first)
        {
            return (0, to.min(end) - first);
        }
        match self.ranges.range(first..end).next() {
            Some((&from, &to)) => (from - first, to.min(end) - from),
            None => (items, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range() {
        let mut excluded = Excluded::default();
        for (first, items) in [(10, 5), (20, 5), (15, 5), (0, 3)] {
            excluded.add(ItemRange::new(first, items));
        }
        assert_eq!(excluded.ranges, BTreeMap::from([(0, 3), (10, 25)]));
        assert!(
            excluded.overlaps(ItemRange::new(24, 9)) && excluded.overlaps(ItemRange::new(5, 6))
        );
        assert!(
            !excluded.overlaps(ItemRange::new(25, 1)) && !excluded.overlaps(ItemRange::new(3, 7))
        );
    }

    #[test]
    fn a_run_of_items_is_told_apart_piece_by_piece() {
        let mut excluded = Excluded::default();
        excluded.add(ItemRange::new(10, 5));
        assert_eq!(excluded.within(0, 5), (5, 0));
        assert_eq!(excluded.within(5, 20), (5, 5));
        assert_eq!(excluded.within(12, 20), (0, 3));
        assert_eq!(excluded.within(12, 2), (0, 2));
        assert_eq!(excluded.within(15, 20), (20, 0));
    }
}
