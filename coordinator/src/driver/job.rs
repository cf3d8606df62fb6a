//! The job of a map as the driver keeps it: its input, what is held of it, its results on their way
//! to the output, and what must be said of it at the end.

mod ending;
mod members;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;
use widemap_common::failure::FailureKind;
use widemap_common::ids::{AttemptId, ItemRange, WorkerId};
use widemap_common::limits::SUMMARY_FAILURES;
use widemap_common::spec::{Directory, JobSpec, Runtime};
use widemap_proto::session::{Done, Part};
use widemap_sched::event::{Failure, InputLevel, JobPolicy};

use super::Attempt;
use super::plan::{Plan, Results};
use crate::data::{
    self, BlockRule, FailureRecord, FailuresFile, Format, HeldInput, Input, Merge, MergeConfig,
    OutputFile, Report, ResultShape, Shape, SinkConfig, SinkTarget,
};
use crate::error::MapError;
use crate::summary::{Counts, NamedFailure};

pub(super) use ending::Lost;

/// See the file's head.
pub(super) struct Job {
    spec: JobSpec,
    policy: JobPolicy,
    shape: Shape,
    private: bool,
    results: Results,
    output: Option<OutputFile>,
    receipt: Option<OutputFile>,
    failures_file: PathBuf,
    input: Input,
    held: HeldInput,
    inflight_bytes_max: u64,
    reorder_bytes_max: u64,
    /// Cutting waits for held input to become final.
    gated: bool,
    /// Nothing more is cut: the job was given up.
    stopped: bool,
    /// The scheduler knows how much input there is: a list is there before anything arrives.
    level_told: bool,
    merge: Merge,
    is_full: bool,
    closed: bool,
    delivered: Option<Result<data::SinkReport, data::SinkError>>,
    /// The attempt whose end is being judged.
    judged: Option<Judged>,
    refusals: BTreeMap<WorkerId, Refused>,
    has_been_ready: bool,
    counts: Counts,
    failures: Vec<NamedFailure>,
}

/// Why a worker is not used.
struct Refused {
    message: String,
    /// Whether it lacks what the function needs: if all do, the function is unusable.
    unable: bool,
}

/// The end of an attempt, until the scheduler has judged it.
struct Judged {
    attempt: AttemptId,
    told: Told,
}

enum Told {
    /// Every item succeeded, and nothing else is wanted of them: the usual case, and a cheap one.
    Plain { output_bytes: u64 },
    /// Whatever else.
    Full(Box<Report>),
}

impl Job {
    /// Opens the input and the output: what cannot be read or written is found out before anything
    /// runs.
    pub(super) fn open(plan: Plan, progressed: &Arc<Notify>) -> Result<Self, MapError> {
        let wake = || {
            let progressed = Arc::clone(progressed);
            move || progressed.notify_one()
        };
        let Plan { spec, policy, results, blocks, .. } = plan;
        let shape = shape(&spec, blocks);
        let output = results.output.as_deref().map(OutputFile::create).transpose()?;
        let receipt = results.receipt.as_deref().map(OutputFile::create).transpose();
        let receipt = receipt.map_err(MapError::Receipt)?;
        let failures_file = results.failures.clone().unwrap_or_else(failures_path);
        let failures = match results.failures.is_some() {
            true => FailuresFile::create(failures_file.clone()).map_err(MapError::FailuresFile)?,
            false => FailuresFile::at_first_failure(failures_file.clone()),
        };
        let mut input = Input::open(plan.source, spec.framing, blocks, wake())?;
        let held = match input.take_file() {
            Some(file) => HeldInput::with_file(spec.framing, file),
            None => HeldInput::new(spec.framing),
        };
        let sink = SinkConfig {
            target: match &output {
                Some(output) => SinkTarget::output_file(output)?,
                None => SinkTarget::stdout()?,
            },
            format: if results.json { Format::Json } else { Format::Raw { fill: None } },
            shape,
            separator: results.separator,
            is_hashed: results.receipt.is_some(),
            failures: Some(failures),
            function: data::function_digest(&spec.function, spec.framing),
        };
        let config = MergeConfig {
            is_ordered: !results.unordered,
            memory_bytes_max: plan.reorder_bytes_max,
            spill_bytes_max: plan.spill_bytes_max,
            ..MergeConfig::default()
        };
        let merge = Merge::start(config, sink, wake())?;
        Ok(Self {
            spec,
            policy,
            shape,
            private: plan.private,
            results,
            output,
            receipt,
            failures_file,
            input,
            held,
            inflight_bytes_max: plan.inflight_bytes_max,
            reorder_bytes_max: plan.reorder_bytes_max,
            gated: false,
            stopped: false,
            level_told: false,
            merge,
            is_full: false,
            closed: false,
            delivered: None,
            judged: None,
            refusals: BTreeMap::new(),
            has_been_ready: false,
            counts: Counts::default(),
            failures: Vec::new(),
        })
    }

    /// How the job is to be run.
    pub(super) fn policy(&self) -> &JobPolicy {
        &self.policy
    }

    /// What a worker is told: one in this process works where the caller does.
    pub(super) fn spec_for(&self, embedded: bool) -> JobSpec {
        let mut spec = self.spec.clone();
        if embedded && self.private {
            spec.directory = Directory::Inherit;
        }
        spec
    }

    // ---- Input ----

    /// Takes what has been read; the level, if it may have changed.
    pub(super) fn poll_input(&mut self) -> Option<InputLevel> {
        let arrived = self.input.poll() || !std::mem::replace(&mut self.level_told, true);
        let released = self.gated && self.held.bytes() < self.inflight_bytes_max;
        self.gated &= !released;
        (arrived || released).then(|| self.level())
    }

    /// Cuts a chunk, if there is one and it may be held.
    pub(super) fn cut(&mut self, items_max: u32, bytes_max: u64) -> Option<(ItemRange, u64)> {
        if self.stopped {
            return None;
        }
        if self.held.bytes() >= self.inflight_bytes_max {
            self.gated = true;
            return None;
        }
        let chunk = match self.policy.chunk_items.filter(|_| !self.shape.is_block_wise) {
            Some(items) => self.input.cut_exact(items),
            None => self.input.cut(items_max, bytes_max),
        }?;
        let cut = (chunk.range, chunk.bytes.len() as u64);
        self.held.hold(chunk);
        Some(cut)
    }

    /// What is left to be cut.
    pub(super) fn level(&self) -> InputLevel {
        if self.stopped {
            return InputLevel { ready_items: 0, ready_bytes: 0, rest_bytes: Some(0) };
        }
        let data::InputLevel { ready_items, ready_bytes, rest_bytes } = self.input.level();
        if self.gated {
            // What may not be held may not be cut: it counts as still to come.
            let rest_bytes = rest_bytes.map(|rest| (rest + ready_bytes).max(1));
            return InputLevel { ready_items: 0, ready_bytes: 0, rest_bytes };
        }
        InputLevel { ready_items, ready_bytes, rest_bytes }
    }

    /// The bytes of a chunk, or of a part of one.
    pub(super) fn input_of(&mut self, range: ItemRange) -> Result<Bytes, MapError> {
        let input = self.held.slice(range)?;
        self.held.sent(range);
        Ok(input)
    }

    /// The job was given up: nothing more is cut.
    pub(super) fn stop_reading(&mut self) {
        self.stopped = true;
    }

    /// How many items there are, once the input has ended.
    pub(super) fn items_in_all(&self) -> Option<u64> {
        let level = self.input.level();
        let known = level.rest_bytes == Some(0) && !self.shape.is_block_wise;
        known.then(|| self.input.cut_items() + level.ready_items)
    }

    // ---- Output on its way ----

    /// Keeps a part of an attempt's output.
    pub(super) fn stage(&mut self, part: &Part) -> Result<(), data::StageError> {
        self.merge.stage(part.attempt, part.offset, &part.data)
    }

    /// Forgets what is staged of an attempt.
    pub(super) fn discard(&mut self, attempt: AttemptId) {
        self.merge.discard(attempt);
        if self.judged.as_ref().is_some_and(|judged| judged.attempt == attempt) {
            self.judged = None;
        }
    }

    /// Takes in the end of an attempt, to be judged next; what its items wrote on standard error
    /// comes back as lines for people.
    pub(super) fn arrived(
        &mut self,
        range: ItemRange,
        worker: &str,
        done: &Done,
    ) -> Result<Vec<String>, data::StageError> {
        let attempt = done.attempt;
        self.merge.finish(attempt, done.output.clone(), done.output_bytes)?;
        let lines = self.stderr_lines(range, done);
        let plain = done.faults.is_empty() && !self.results.json;
        let told = match plain {
            true => Told::Plain { output_bytes: done.output_bytes },
            false => {
                let framed = match self.shape.results {
                    ResultShape::Framed(framing) => Some(framing),
                    ResultShape::Printed => None,
                };
                Told::Full(Box::new(Report::new(range, Arc::from(worker), done, framed)))
            }
        };
        self.judged = Some(Judged { attempt, told });
        Ok(lines)
    }

    fn stderr_lines(&mut self, range: ItemRange, done: &Done) -> Vec<String> {
        if self.results.json {
            return Vec::new();
        }
        let line = |told: &widemap_proto::session::ItemStderr| {
            let item = range.first + u64::from(told.index);
            let shown = match self.shape.is_block_wise {
                true => Bytes::new(),
                false => self.held.item(item).unwrap_or_default(),
            };
            let lines = data::stderr_lines(item + 1, &shown, &told.data, told.cut);
            lines.trim_end_matches('\n').to_owned()
        };
        done.stderr.iter().map(line).collect()
    }

    /// Some items of the attempt that is judged are final.
    pub(super) fn accept(&mut self, attempt: AttemptId, range: ItemRange, worker: &str, runs: u32) {
        let judged = self.judged.as_mut().filter(|judged| judged.attempt == attempt);
        let judged = judged.expect("an accept follows the end of its attempt");
        match &mut judged.told {
            Told::Plain { output_bytes } => self.merge.accept(attempt, range, 0..*output_bytes),
            Told::Full(report) if !self.results.json => match report.within(range) {
                Some(within) => self.merge.accept(attempt, range, within),
                None => return self.cannot_place(range, worker),
            },
            Told::Full(report) => {
                let input = self.held.slice(range).unwrap_or_default();
                match report.results(range, runs, input) {
                    Some((within, results)) => {
                        self.merge.accept_results(attempt, within, Box::new(results));
                    }
                    None => return self.cannot_place(range, worker),
                }
            }
        }
        self.counts.ok += u64::from(range.items);
        self.held.release(range);
    }

    /// A worker of another make that marks no item's place: its results are no use.
    fn cannot_place(&mut self, range: ItemRange, worker: &str) {
        let message = format!("worker {worker} did not tell where its output lies");
        self.fail_each(range, |range, item| {
            FailureRecord::untold(range, item, FailureKind::Error, message.clone())
        });
    }

    /// Items (a block) failed for good.
    pub(super) fn fail_items(&mut self, range: ItemRange, failure: &Failure, worker: Option<&str>) {
        let judged = self.judged.take();
        let told = failure.told_by.and_then(|(attempt, index)| match &judged {
            Some(Judged { attempt: of, told: Told::Full(report) }) if *of == attempt => {
                Some((report, index))
            }
            _ => None,
        });
        let Failure { kind, runs, .. } = *failure;
        self.fail_each(range, |range, item| match told {
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
    fn fail_each(&mut self, range: ItemRange, record: impl Fn(ItemRange, Bytes) -> FailureRecord) {
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
                    false => format!("item {} `{}`", own.first + 1, data::item_shown(&record.item)),
                };
                let message = data::line_shown(&record.message);
                self.failures.push(NamedFailure { item, message });
            }
            self.merge.fail(Box::new(record));
        }
        self.counts.failed += u64::from(range.items);
        self.held.release(range);
    }

    /// A worker is not used for a time.
    pub(super) fn left_out(&mut self, name: String) {
        *self.counts.left_out.entry(name).or_default() += 1;
    }

    /// Items run again.
    pub(super) fn retried(&mut self, range: ItemRange) {
        self.counts.retried += u64::from(range.items);
    }

    /// Whether results can be stored, if that has changed.
    pub(super) fn poll_storage(&mut self) -> Option<bool> {
        let full = self.merge.level().is_full;
        (full != std::mem::replace(&mut self.is_full, full)).then_some(full)
    }

    /// Whether results are on their way to the disk, which makes room.
    pub(super) fn is_clearing(&self) -> bool {
        self.merge.level().is_clearing
    }

    /// Whether nothing more can be stored but what the output waits for.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Moves the output on; says what is wrong with it.
    pub(super) fn poll_sink(&mut self) -> Result<Option<data::SpillError>, MapError> {
        self.merge.pump();
        if self.merge.sink_has_failed() {
            self.close_merge();
        }
        if self.delivered.is_none() {
            self.delivered = self.merge.outcome();
        }
        match self.delivered.take() {
            Some(Err(error)) => Err(error.into()),
            delivered => {
                self.delivered = delivered;
                Ok(self.merge.take_spill_error())
            }
        }
    }

    /// Nothing more is accepted: lets the sink end once it has everything that is next.
    pub(super) fn finish(&mut self) {
        self.merge.pump();
        if self.stopped && !self.merge.is_next_ready() {
            // What waits for an item that was not run is given up; what failed is still told.
            if !self.closed && !self.results.json {
                self.merge.abandon();
            }
            self.close_merge();
        } else if self.merge.is_empty() {
            self.close_merge();
        }
    }

    fn close_merge(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            self.merge.close();
        }
    }

    /// Whether the sink has ended.
    pub(super) fn is_delivered(&self) -> bool {
        self.delivered.is_some()
    }

    /// The bound of what waits in memory.
    pub(super) fn reorder_bytes_max(&self) -> u64 {
        self.reorder_bytes_max
    }

    /// The attempts that the output waits for (a speculative one beside the first), where they run,
    /// and how much of their output is here.
    pub(super) fn head_attempts(
        &self,
        attempts: &HashMap<AttemptId, Attempt>,
    ) -> Vec<(WorkerId, AttemptId, u64)> {
        let next = self.merge.next_item();
        let at_head = attempts.iter().filter(|(_, attempt)| attempt.range.contains(next));
        at_head.map(|(&id, attempt)| (attempt.worker, id, attempt.staged_bytes)).collect()
    }
}

fn shape(spec: &JobSpec, blocks: BlockRule) -> Shape {
    let results = match spec.function.runtime() {
        Runtime::Builtin => ResultShape::Framed(spec.framing),
        Runtime::Exec | Runtime::Pipe => ResultShape::Printed,
    };
    Shape { input: spec.framing, results, is_block_wise: blocks.is_block_wise() }
}

/// Where failures go that nobody asked for by name: the user's state directory.
fn failures_path() -> PathBuf {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || std::env::home_dir().map(|home| home.join(".local/state"));
    let directory = state.or_else(home).unwrap_or_else(std::env::temp_dir);
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    directory.join("widemap").join(format!("failures-{seconds}-{}.jsonl", std::process::id()))
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

/// Whether the end of an attempt fits what is known of it.
///
/// # Errors
/// What does not.
pub(super) fn check(attempt: &Attempt, done: &Done) -> Result<(), &'static str> {
    if attempt.staged_bytes + done.output.len() as u64 != done.output_bytes {
        return Err("its output is not as long as it says");
    }
    let (mut next_index, mut at) = (0, 0);
    for fault in &done.faults {
        if fault.index < next_index || fault.index >= attempt.range.items {
            return Err("its failures name items that it did not have");
        }
        let end = fault.output_offset.checked_add(fault.output_bytes);
        match end {
            Some(end) if fault.output_offset >= at && end <= done.output_bytes => at = end,
            _ => return Err("its failures lie outside its output"),
        }
        next_index = fault.index + 1;
    }
    if done.stderr.iter().any(|stderr| stderr.index >= attempt.range.items) {
        return Err("it tells of items that it did not have");
    }
    Ok(())
}
