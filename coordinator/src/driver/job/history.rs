//! The attempts of a job that have ended, so that a person can ask why an item is late, where it ran, or
//! why it failed: the last ones, and longer those that did not succeed.

use std::collections::VecDeque;

use widemap_common::ids::{AttemptId, ItemRange, WorkerId};
use widemap_common::limits::{HISTORY_MAX, HISTORY_RECENT_MAX};
use widemap_common::time::Time;
use widemap_proto::jobs::AttemptState;

/// An attempt that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::driver) struct Ended {
    /// Which.
    pub(in crate::driver) attempt: AttemptId,
    /// Its items.
    pub(in crate::driver) range: ItemRange,
    /// Where.
    pub(in crate::driver) worker: WorkerId,
    /// Since when it was there, and when it ended.
    pub(in crate::driver) assigned: Time,
    /// When it ended.
    pub(in crate::driver) ended: Time,
    /// How.
    pub(in crate::driver) state: AttemptState,
    /// Whether it was a second one, of a straggler.
    pub(in crate::driver) speculative: bool,
    /// More of it, for a person; may be empty.
    pub(in crate::driver) remark: String,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct History {
    good: VecDeque<Ended>,
    other: VecDeque<Ended>,
}

impl History {
    pub(super) fn note(&mut self, ended: Ended) {
        let (kept, most) = match ended.state {
            AttemptState::Succeeded => (&mut self.good, HISTORY_RECENT_MAX),
            _ => (&mut self.other, HISTORY_MAX),
        };
        if kept.len() >= most {
            kept.pop_front();
        }
        kept.push_back(ended);
    }

    /// Those of one item, the first one first; of all items, if none is named.
    pub(super) fn of(&self, item: Option<u64>) -> Vec<&Ended> {
        let concerns = |ended: &&Ended| item.is_none_or(|item| ended.range.contains(item));
        let mut ended: Vec<_> = self.good.iter().chain(&self.other).filter(concerns).collect();
        ended.sort_by_key(|ended| (ended.ended, ended.attempt));
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(attempt: u64, first: u64, state: AttemptState) -> Ended {
        Ended {
            attempt: AttemptId(attempt),
            range: ItemRange::new(first, 10),
            worker: WorkerId(1),
            assigned: Time::ZERO,
            ended: Time(attempt),
            state,
            speculative: false,
            remark: String::new(),
        }
    }

    #[test]
    fn what_failed_is_remembered_longer_than_what_succeeded() {
        let mut history = History::default();
        history.note(ended(0, 50, AttemptState::Failed));
        for attempt in 1..10_000 {
            history.note(ended(attempt, 50, AttemptState::Succeeded));
        }
        history.note(ended(10_000, 90, AttemptState::Lost));
        let attempts = |item| history.of(item).iter().map(|e| e.attempt.0).collect::<Vec<_>>();
        let of_item = attempts(Some(55));
        assert_eq!(of_item.len(), HISTORY_RECENT_MAX + 1);
        assert_eq!((of_item[0], *of_item.last().unwrap()), (0, 9_999));
        assert_eq!(attempts(Some(95)), [10_000]);
        assert_eq!(attempts(None).len(), HISTORY_RECENT_MAX + 2);
    }
}
