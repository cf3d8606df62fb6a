//! What went wrong with attempts of a job, so that a person can ask why an item is late or has failed.

use std::collections::VecDeque;

use widemap_common::failure::FailureKind;
use widemap_common::ids::ItemRange;
use widemap_common::limits::HISTORY_MAX;
use widemap_common::time::Time;

/// How one run of some items ended that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::driver) struct Ended {
    /// When.
    pub(in crate::driver) at: Time,
    /// Which items.
    pub(in crate::driver) range: ItemRange,
    /// How.
    pub(in crate::driver) kind: FailureKind,
    /// Where.
    pub(in crate::driver) worker: String,
    /// The how manieth run it was.
    pub(in crate::driver) runs: u32,
    /// Whether the items run again.
    pub(in crate::driver) again: bool,
}

/// The last runs that did not succeed.
#[derive(Debug, Default)]
pub(super) struct History {
    ended: VecDeque<Ended>,
}

impl History {
    pub(super) fn note(&mut self, ended: Ended) {
        if self.ended.len() >= HISTORY_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }

    /// Those of one item, the first one first; of all items, if none is named.
    pub(super) fn of(&self, item: Option<u64>) -> impl Iterator<Item = &Ended> {
        let concerns = move |ended: &&Ended| item.is_none_or(|item| ended.range.contains(item));
        self.ended.iter().filter(concerns)
    }
}
