//! The end of a job: its output in its place, its receipt, its counts, and how to go on.

use std::path::Path;
use std::time::Duration;

use super::deliverer::Deliverer;
use super::way::Way;
use super::{Job, outlets};
use crate::data::{InputError, ItemCounts};
use crate::driver::plan::{Ending, Outcome};
use crate::error::MapError;
use crate::summary::Counts;

/// What only the scheduler counts.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::driver) struct Lost {
    /// Workers that were ever attached.
    pub(in crate::driver) workers: usize,
    /// Workers that were lost while they had attempts.
    pub(in crate::driver) workers_lost: u64,
    /// Speculative attempts that came in first.
    pub(in crate::driver) speculative_wins: u64,
}

impl Job {
    /// Whether what is left can never be delivered: the sink has failed.
    pub(in crate::driver) fn cannot_deliver(&self) -> bool {
        match &self.way {
            Way::Direct(direct) => direct.merge.sink_has_failed(),
            Way::Ledger(_) => self.deliverer.as_ref().is_some_and(Deliverer::has_failed),
        }
    }

    /// Nothing more is accepted: lets the output end once it has everything that is next.
    pub(in crate::driver) fn finish(&mut self) {
        match &mut self.way {
            Way::Direct(direct) => {
                // What stands for a failed item in the output has its place there.
                let results = self.outlets.as_ref().map(|outlets| &outlets.results);
                let fills = results.is_some_and(|results| results.form.fill.is_some());
                direct.finish(self.stopped, self.is_made || fills);
            }
            Way::Ledger(_) => self.deliverer.iter().for_each(Deliverer::close),
        }
    }

    /// Whether the input was read to its end.
    pub(in crate::driver) fn has_read_all(&self) -> bool {
        self.input.is_exhausted() && self.input.error().is_none()
    }

    /// Whether the output has ended.
    pub(in crate::driver) fn is_delivered(&self) -> bool {
        self.outlets.as_ref().is_none_or(|outlets| outlets.delivered.is_some())
    }

    /// Puts the output in its place, writes the receipt, and says what came of the map. `finished`
    /// says whether every item has its last word.
    pub(in crate::driver) fn close(
        mut self,
        ending: Ending,
        error: Option<MapError>,
        lost: Lost,
        elapsed: Duration,
        journal: Option<&Path>,
    ) -> Outcome {
        let counts = Counts {
            workers: lost.workers,
            workers_lost: lost.workers_lost,
            speculative_wins: lost.speculative_wins,
            ..self.counts()
        };
        let mut error = error.or_else(|| self.take_input_error());
        let is_refused = matches!(&error, Some(MapError::Input(InputError::Changed { .. })));
        let complete = error.is_none() && ending == Ending::Complete;
        let mut outlets = self.outlets.take().expect("a map of one's own has its outlets");
        let delivered = outlets.delivered.take();
        let items = ItemCounts {
            read: counts.read,
            ok: counts.ok,
            failed: counts.failed,
            not_run: if complete {
                0
            } else {
                counts.read.saturating_sub(counts.ok + counts.failed)
            },
        };
        if let Err(unbalanced) = items.check() {
            error.get_or_insert(unbalanced.into());
        }
        let complete = error.is_none() && ending == Ending::Complete;
        let placed = outlets.place_output(complete);
        let delivered = delivered.and_then(Result::ok);
        let told =
            delivered.as_ref().is_some_and(|report| report.failures_kept && report.failures > 0);
        let receipt = delivered
            .map_or(Ok(()), |report| outlets.write_receipt(&self.spec, items, &report, elapsed));
        let mut advice = None;
        match placed.and_then(|partial| receipt.map(|()| partial)) {
            Ok(partial) => {
                advice = match journal {
                    Some(journal) => {
                        let is_over = complete || is_refused || ending == Ending::ReaderGone;
                        outlets::journal_advice(journal, partial, is_over)
                    }
                    None => outlets.advice(ending, partial, items, self.way.delivered_items()),
                };
            }
            Err(failed) => {
                error.get_or_insert(failed);
            }
        }
        Outcome {
            ending,
            // What could not be written is not told of.
            failures_file: (counts.failed > 0 && told).then_some(outlets.failures_file),
            failures: self.failures,
            counts,
            advice,
            error,
        }
    }

    /// What was done so far.
    pub(in crate::driver) fn counts(&self) -> Counts {
        let read = self.input.cut_items()
            + if self.shape.is_block_wise { 0 } else { self.input.level().ready_items };
        // A former life may have read further than this one has by now.
        let read = read.max(self.counts.ok + self.counts.failed);
        Counts { read, ..self.counts.clone() }
    }
}
