//! Every id is a type of its own, so that a worker cannot be passed where an attempt is meant, and
//! each prints in a short form that logs and errors share (`j3/c17+4#2`).

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id! {
    /// One map: a function, an input list, a policy. Unique within one coordinator.
    JobId(u32), "j"
}
id! {
    /// One worker as a coordinator knows it: one incarnation, under any number of addresses.
    WorkerId(u32), "w"
}
id! {
    /// One try at a chunk. Unique within one coordinator, over all of its epochs, never used again.
    AttemptId(u64), "a"
}
id! {
    /// One life of a coordinator. A worker refuses a lower epoch of the same coordinator.
    Epoch(u64), "e"
}
id! {
    /// One life of a worker: random, drawn at its start. Another value at the same address proves
    /// that the former worker is dead.
    Incarnation(u64), "i"
}
id! {
    /// A coordinator, over all of its epochs: random for a one-shot `map`.
    CoordinatorId(u64), "k"
}

/// The identity of a chunk: the contiguous items `first .. first + items` of a job, counted from 0.
///
/// Sizes adapt and chunks are split, so a running number would mean nothing; a range always does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ItemRange {
    /// The first item, counted from 0.
    pub first: u64,
    /// How many items, at least 1.
    pub items: u32,
}

impl ItemRange {
    /// The range of `items` items from `first` on.
    #[must_use]
    pub fn new(first: u64, items: u32) -> Self {
        debug_assert!(items > 0, "a chunk has at least one item");
        Self { first, items }
    }

    /// The item after the last one.
    #[must_use]
    pub fn end(self) -> u64 {
        self.first + u64::from(self.items)
    }

    /// Whether `item` (counted from 0) lies in the range.
    #[must_use]
    pub fn contains(self, item: u64) -> bool {
        (self.first..self.end()).contains(&item)
    }

    /// Whether all of `other` lies in the range.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.first <= other.first && other.end() <= self.end()
    }
}

impl fmt::Display for ItemRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}+{}", self.first, self.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_in_their_short_form() {
        let shown = format!("{}/{}#{}", JobId(3), ItemRange::new(17, 4), 2);
        assert_eq!(shown, "j3/c17+4#2");
        assert_eq!(WorkerId(1).to_string(), "w1");
    }

    #[test]
    fn a_range_knows_what_it_covers() {
        let range = ItemRange::new(10, 5);
        assert!(range.contains(10) && range.contains(14) && !range.contains(15));
        assert!(range.covers(ItemRange::new(12, 3)) && !range.covers(ItemRange::new(12, 4)));
    }
}
