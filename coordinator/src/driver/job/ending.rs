//! The end of a job: its output in its place, its receipt, its counts, and how to go on.

use std::path::PathBuf;
use std::time::Duration;

use super::Job;
use crate::data::{self, ItemCounts};
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
        self.merge.sink_has_failed()
    }

    /// Puts the output in its place, writes the receipt, and says what came of the map. `finished`
    /// says whether every item has its last word.
    pub(in crate::driver) fn close(
        mut self,
        ending: Ending,
        error: Option<MapError>,
        lost: Lost,
        elapsed: Duration,
    ) -> Outcome {
        let counts = Counts {
            workers: lost.workers,
            workers_lost: lost.workers_lost,
            speculative_wins: lost.speculative_wins,
            ..self.counts()
        };
        let mut error = error.or_else(|| self.input_error());
        let complete = error.is_none() && ending == Ending::Complete;
        let delivered = self.delivered.take();
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
        let placed = self.place_output(complete);
        let delivered = delivered.and_then(Result::ok);
        let told =
            delivered.as_ref().is_some_and(|report| report.failures_kept && report.failures > 0);
        let receipt =
            delivered.map_or(Ok(()), |report| self.write_receipt(items, &report, elapsed));
        let mut advice = None;
        match placed.and_then(|partial| receipt.map(|()| partial)) {
            Ok(partial) => advice = self.advice(ending, partial, items),
            Err(failed) => {
                error.get_or_insert(failed);
            }
        }
        Outcome {
            ending,
            // What could not be written is not told of.
            failures_file: (counts.failed > 0 && told).then_some(self.failures_file),
            failures: self.failures,
            counts,
            advice,
            error,
        }
    }

    fn input_error(&mut self) -> Option<MapError> {
        self.input.take_error().map(MapError::from)
    }

    /// The output in its place if it is complete; else where what there is was kept.
    fn place_output(&mut self, complete: bool) -> Result<Option<PathBuf>, MapError> {
        match self.output.take() {
            None => Ok(None),
            Some(output) if complete => Ok(output.commit().map(|()| None)?),
            Some(output) => Ok(output.keep_partial()?),
        }
    }

    fn write_receipt(
        &mut self,
        items: ItemCounts,
        report: &data::SinkReport,
        elapsed: Duration,
    ) -> Result<(), MapError> {
        let Some(receipt) = self.receipt.take() else { return Ok(()) };
        let json = data::receipt_json(&self.spec, items, report, elapsed.as_secs_f64());
        receipt.write_whole(json.as_bytes()).map_err(MapError::Receipt)
    }

    /// How to go on after a map that was stopped.
    fn advice(
        &self,
        ending: Ending,
        partial: Option<PathBuf>,
        items: ItemCounts,
    ) -> Option<String> {
        let kept = partial.map(|path| format!("what there is was kept as {}", path.display()));
        if items.not_run == 0 || ending == Ending::ReaderGone {
            return kept;
        }
        let done = self.merge.next_item();
        let rest = match (self.results.unordered, done) {
            (true, _) => {
                "to go on, run it again: the output does not tell what is missing".to_owned()
            }
            (false, 0) if !matches!(ending, Ending::Signal(_)) => return kept,
            (false, 0) => "to go on, run it again: nothing of the output was written".to_owned(),
            (false, done) => format!(
                "the output has the first {done} of {} items; to go on, map the items from number {} \
                 on and append the output",
                items.read,
                done + 1
            ),
        };
        Some(
            kept.map_or_else(
                || format!("stopped: {rest}"),
                |kept| format!("stopped: {kept}; {rest}"),
            ),
        )
    }

    /// What was done so far.
    pub(in crate::driver) fn counts(&self) -> Counts {
        let read = self.input.cut_items()
            + if self.shape.is_block_wise { 0 } else { self.input.level().ready_items };
        Counts { read, ..self.counts.clone() }
    }
}
