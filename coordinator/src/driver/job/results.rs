//! Attempts that have ended, and what the scheduler makes of them: results that are final, and failures.

use std::sync::Arc;

use bytes::Bytes;
use widemap_common::failure::FailureKind;
use widemap_common::framing::LINES;
use widemap_common::ids::{AttemptId, ItemRange};
use widemap_common::limits::{BATCH_BYTES_MAX, JOB_STDERR_BYTES_MAX, SUMMARY_FAILURES};
use widemap_common::wall_clock;
use widemap_proto::session::Done;
use widemap_sched::event::Failure;

use super::stops::Stops;
use super::way::Way;
use super::{Job, Judged, Told};
use crate::data::{self, FailureRecord, Report, ResultShape};
use crate::summary::NamedFailure;

impl Job {
    /// Takes in the end of an attempt, to be judged next; what its items wrote on standard error
    /// comes back as lines for people.
    pub(in crate::driver) fn arrived(
        &mut self,
        range: ItemRange,
        worker: &str,
        done: &Done,
    ) -> Result<Vec<String>, data::StageError> {
        let attempt = done.attempt;
        let (output, bytes) = (done.output.clone(), done.output_bytes);
        match &mut self.way {
            Way::Direct(direct) => direct.merge.finish(attempt, output, bytes)?,
            Way::Ledger(ledger) => ledger.finish(attempt, output, bytes)?,
        }
        let lines = self.stderr_lines(range, done);
        let lines = self.keep_stderr(lines);
        let plain = done.faults.is_empty() && !self.is_made;
        let told = match plain {
            true => Told::Plain { output_bytes: done.output_bytes },
            false => {
                let framed = match self.shape.results {
                    ResultShape::Framed(framing) => Some(framing),
                    ResultShape::Json => Some(LINES),
                    ResultShape::Printed => None,
                };
                let report = Report::new(range, Arc::from(worker), done, framed);
                let arrived_ms = self.has_times.then(wall_clock::unix_ms).flatten();
                Told::Full(Box::new(report.arrived_at(arrived_ms)))
            }
        };
        self.judged = Some(Judged { attempt, told });
        Ok(lines)
    }

    fn stderr_lines(&mut self, range: ItemRange, done: &Done) -> Vec<String> {
        if !self.says_stderr {
            return Vec::new();
        }
        let line = |told: &widemap_proto::session::ItemStderr| {
            if self.is_framed {
                return data::plain_lines(&told.data);
            }
            let item = range.first + u64::from(told.index);
            let shown = match self.shape.is_block_wise {
                true => Bytes::new(),
                false => self.held.item(item).unwrap_or_default(),
            };
            let shown = self.shape.input.joined(&shown);
            let lines = data::stderr_lines(item + 1, &shown, &told.data, told.cut);
            lines.trim_end_matches('\n').to_owned()
        };
        done.stderr.iter().map(line).collect()
    }

    /// Keeps what items of a service's job wrote on standard error for those who collect its results, up
    /// to a bound. What is not kept comes back.
    fn keep_stderr(&mut self, lines: Vec<String>) -> Vec<String> {
        let Way::Ledger(ledger) = &self.way else { return lines };
        if self.outlets.is_some() {
            return lines;
        }
        let mut piece = String::new();
        for line in lines {
            if self.stderr_bytes >= JOB_STDERR_BYTES_MAX {
                continue;
            }
            self.stderr_bytes += line.len() as u64 + 1;
            if self.stderr_bytes >= JOB_STDERR_BYTES_MAX {
                piece.push_str("widemap: more of the items' standard error is not kept");
                piece.push('\n');
                continue;
            }
            piece.push_str(&line);
            piece.push('\n');
            if piece.len() >= BATCH_BYTES_MAX {
                ledger.note_stderr(std::mem::take(&mut piece));
            }
        }
        if !piece.is_empty() {
            ledger.note_stderr(piece);
        }
        Vec::new()
    }

    /// Some items of the attempt that is judged are final.
    pub(in crate::driver) fn accept(
        &mut self,
        attempt: AttemptId,
        range: ItemRange,
        worker: &str,
        runs: u32,
    ) {
        let judged = self.judged.as_mut().filter(|judged| judged.attempt == attempt);
        let judged = judged.expect("an accept follows the end of its attempt");
        match &mut judged.told {
            Told::Plain { output_bytes } => self.way.accept(attempt, range, 0..*output_bytes),
            Told::Full(report) if !self.is_made => match report.within(range) {
                Some(within) => self.way.accept(attempt, range, within),
                None => return self.cannot_place(range, worker),
            },
            Told::Full(report) => {
                let input = self.held.slice(range).unwrap_or_default();
                match report.results(range, runs, input) {
                    Some((within, results)) => {
                        self.way.accept_results(attempt, within, Box::new(results));
                    }
                    None => return self.cannot_place(range, worker),
                }
            }
        }
        self.counts.ok += u64::from(range.items);
        self.stops.succeeded(Stops::units(range, self.shape.is_block_wise));
        self.held.release(range);
    }

    /// A worker of another make that marks no item's place: its results are no use.
    fn cannot_place(&mut self, range: ItemRange, worker: &str) {
        let message = format!("worker {worker} did not tell where its output lies");
        self.fail_each(range, None, |range, item| {
            FailureRecord::untold(range, item, FailureKind::Error, message.clone())
        });
    }

    /// Items (a block) failed for good.
    pub(in crate::driver) fn fail_items(
        &mut self,
        range: ItemRange,
        failure: &Failure,
        worker: Option<&str>,
    ) {
        let judged = self.judged.take();
        let told_by = failure.told_by.map(|(attempt, _)| attempt);
        let told = failure.told_by.and_then(|(attempt, index)| match &judged {
            Some(Judged { attempt: of, told: Told::Full(report) }) if *of == attempt => {
                Some((report, index))
            }
            _ => None,
        });
        let Failure { kind, runs, .. } = *failure;
        self.fail_each(range, told_by, |range, item| match told {
            Some((report, index)) => report.failure(range, index, runs, item),
            None => {
                let message = untold(kind, runs, worker);
                let mut record = FailureRecord::untold(range, item, kind, message);
                record.worker = worker.map(Arc::from);
                record.runs = runs;
                record
            }
        });
        self.judged = judged;
    }

    /// A record for each item, or one for a block.
    fn fail_each(
        &mut self,
        range: ItemRange,
        told_by: Option<AttemptId>,
        record: impl Fn(ItemRange, Bytes) -> FailureRecord,
    ) {
        let units = if self.shape.is_block_wise { 1 } else { range.items };
        for unit in 0..units {
            let own = match self.shape.is_block_wise {
                true => range,
                false => ItemRange::new(range.first + u64::from(unit), 1),
            };
            let item = match self.shape.is_block_wise {
                true => Bytes::new(),
                false => self.held.item(own.first).unwrap_or_default(),
            };
            let record = record(own, item);
            if self.failures.len() < SUMMARY_FAILURES {
                let item = match self.shape.is_block_wise {
                    true => format!("block of items {} to {}", own.first + 1, own.end()),
                    false => {
                        let item = self.shape.input.joined(&record.item);
                        format!("item {} `{}`", own.first + 1, data::item_shown(&item))
                    }
                };
                let message = data::message_shown(&record.message);
                self.failures.push(NamedFailure { item, message });
            }
            match &mut self.way {
                Way::Direct(direct) => direct.merge.fail(Box::new(record)),
                Way::Ledger(ledger) => ledger.fail(&record, told_by),
            }
        }
        self.counts.failed += u64::from(range.items);
        self.failed_units += u64::from(units);
        self.stops.failed(u64::from(units));
        self.held.release(range);
    }
}

/// Why an item failed of which no attempt told.
fn untold(kind: FailureKind, runs: u32, worker: Option<&str>) -> String {
    let on = worker.map_or_else(String::new, |worker| format!(", {worker} last"));
    match kind {
        FailureKind::Crash => format!("killed the worker that ran it, {runs} times{on}"),
        FailureKind::Lost => "never finished: no worker was left".to_owned(),
        FailureKind::Cancelled => "the map was ended before it".to_owned(),
        FailureKind::Error | FailureKind::Timeout => {
            format!("its result was refused {runs} times{on}")
        }
    }
}
