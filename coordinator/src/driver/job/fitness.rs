//! Whether a function is fit for its runtime and its items, as the first ones show: a program that does not
//! answer a line with a line does so for none of them, a list that is no JSON is none anywhere, and whoever
//! typed it should know before a million items have failed.

use widemap_common::limits::UNFIT_ITEMS;
use widemap_common::spec::Runtime;
use widemap_proto::session::Done;

use super::Job;
use crate::error::MapError;

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Fitness {
    /// An item has not failed so.
    is_proved: bool,
    wrong_items: u64,
    /// What was wrong with the first.
    first: Option<(u64, String)>,
}

impl Job {
    /// Looks at the end of an attempt whose first item is `first_item`, of so many. Tells why the job is
    /// of no use, if that shows now.
    pub(in crate::driver) fn judge_fitness(
        &mut self,
        first_item: u64,
        items: u32,
        done: &Done,
    ) -> Option<MapError> {
        let fitness = &mut self.fitness;
        let wrong = done.faults.iter().filter(|fault| fault.unfit);
        fitness.is_proved |= self.counts.ok > 0;
        let failed = match self.policy.runtime {
            // One that raises an exception says nothing of the others.
            Runtime::Python => done.faults.len(),
            _ => wrong.clone().count(),
        };
        if fitness.is_proved || failed < items as usize {
            fitness.is_proved = true;
            return None;
        }
        if self.policy.runtime == Runtime::Python {
            let first = wrong.min_by_key(|fault| fault.index)?;
            let item = first_item + u64::from(first.index) + 1;
            return Some(MapError::NotJson { item, why: first.message.clone() });
        }
        for fault in wrong {
            fitness.wrong_items += 1;
            let item = first_item + u64::from(fault.index);
            if fitness.first.as_ref().is_none_or(|(first, _)| item < *first) {
                fitness.first = Some((item, fault.message.clone()));
            }
        }
        let wrong_items = fitness.wrong_items;
        if wrong_items < UNFIT_ITEMS && self.items_in_all() != Some(wrong_items) {
            return None;
        }
        let first = self.fitness.first.take().map_or_else(String::new, |(_, message)| message);
        Some(MapError::NoFilter { items: wrong_items, first })
    }
}
