//! Where results go.

use std::ops::Range;

use widemap_common::ids::{AttemptId, ItemRange};

use super::direct::Direct;
use crate::data::{Ledger, MergeLevel, Results, SpillError};

/// Where results go.
pub(super) enum Way {
    /// Straight to the output.
    Direct(Box<Direct>),
    /// To the journal, from which whoever asks for them reads them.
    Ledger(Box<Ledger>),
}

impl Way {
    pub(super) fn accept(&mut self, attempt: AttemptId, range: ItemRange, within: Range<u64>) {
        match self {
            Self::Direct(direct) => direct.merge.accept(attempt, range, within),
            Self::Ledger(ledger) => ledger.accept(attempt, range, within),
        }
    }

    pub(super) fn accept_results(
        &mut self,
        attempt: AttemptId,
        within: Range<u64>,
        results: Box<Results>,
    ) {
        match self {
            Self::Direct(direct) => direct.merge.accept_results(attempt, within, results),
            Self::Ledger(ledger) => ledger.accept_results(attempt, within, results),
        }
    }

    pub(super) fn take_spill_error(&mut self) -> Option<SpillError> {
        match self {
            Self::Direct(direct) => direct.merge.take_spill_error(),
            Self::Ledger(ledger) => ledger.take_spill_error(),
        }
    }

    /// How many items, from the first on, are in the output.
    pub(super) fn delivered_items(&self) -> u64 {
        match self {
            Self::Direct(direct) => direct.merge.next_item(),
            Self::Ledger(_) => 0,
        }
    }

    pub(super) fn level(&self) -> MergeLevel {
        match self {
            Self::Direct(direct) => direct.merge.level(),
            Self::Ledger(ledger) => ledger.level(),
        }
    }
}
