//! A job as the driver keeps it: its input, what is held of it, its results on their way, and what must
//! be said of it at the end.

mod deliverer;
mod direct;
mod ending;
mod history;
mod members;
mod outlets;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;
use widemap_common::failure::FailureKind;
use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_common::limits::{
    BATCH_BYTES_MAX, INFLIGHT_BYTES_MAX, JOB_STDERR_BYTES_MAX, KEPT_INPUT_BYTES, SUMMARY_FAILURES,
};
use widemap_common::spec::{Directory, JobSpec, Runtime};
use widemap_proto::jobs::{AttemptState, Blocks, Submission};
use widemap_proto::session::{Done, HeldAttempt, Part};
use widemap_sched::event::{Failure, InputLevel, JobPolicy};

use super::core::Attempt;
use super::journaled::Journaled;
use super::one_shot::THE_JOB;
use super::plan::Plan;
use crate::data::{
    self, BlockRule, FailureRecord, HeldInput, Input, Ledger, LedgerConfig, MergeLevel, Prefix,
    Rendering, Report, ResultShape, Shape,
};
use crate::error::MapError;
use crate::journal::{Shelf, Ticket, Writer};
use crate::summary::{Counts, NamedFailure};
use deliverer::{Delivered, Deliverer};
use direct::Direct;
use history::History;
use outlets::Outlets;

pub(super) use ending::Lost;
pub(super) use history::Ended;

/// See the file's head.
pub(super) struct Job {
    spec: JobSpec,
    policy: JobPolicy,
    shape: Shape,
    private: bool,
    /// Whether results are rendered as JSON, which takes more of them.
    json: bool,
    input: Input,
    held: HeldInput,
    inflight_bytes_max: u64,
    /// Cutting waits for held input to become final.
    gated: bool,
    /// Nothing more is cut: the job was given up.
    stopped: bool,
    /// The scheduler knows how much input there is: a list is there before anything arrives.
    level_told: bool,
    way: Way,
    /// What a map of one's own writes, and what brings it there from its journal, if it has one.
    outlets: Option<Outlets>,
    deliverer: Option<Deliverer>,
    /// How much of the input the journal knows, now and of former lives.
    noted: Option<Prefix>,
    noted_before: u64,
    /// What is kept of the items' standard error, in bytes.
    stderr_bytes: u64,
    is_full: bool,
    /// The attempt whose end is being judged.
    judged: Option<Judged>,
    refusals: BTreeMap<WorkerId, Refused>,
    has_been_ready: bool,
    counts: Counts,
    failures: Vec<NamedFailure>,
    history: History,
}

/// A job of a service, to be opened.
pub(super) struct KeptPlan {
    pub(super) id: JobId,
    pub(super) submission: Submission,
    /// Its items.
    pub(super) input: PathBuf,
    pub(super) writer: Arc<Writer>,
    /// What is durable of it already.
    pub(super) shelf: Option<Arc<Shelf>>,
}

/// Where results go.
enum Way {
    /// Straight to the output.
    Direct(Box<Direct>),
    /// To the journal, from which whoever asks for them reads them.
    Ledger(Box<Ledger>),
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
    pub(super) fn open(
        plan: Plan,
        journaled: Option<&Journaled>,
        progressed: &Arc<Notify>,
    ) -> Result<Self, MapError> {
        let wake = || {
            let progressed = Arc::clone(progressed);
            move || progressed.notify_one()
        };
        let Plan { spec, policy, results, blocks, .. } = plan;
        let shape = shape(&spec, blocks);
        let (json, is_ordered) = (results.json, !results.unordered);
        let function = data::function_digest(&spec.function, spec.framing);
        // The output is made before the input is opened: what cannot be written is found out first.
        let (outlets, sink) = Outlets::create(results, shape, function)?;
        let mut counts = Counts::default();
        let mut input = match journaled {
            None => Input::open(plan.source, spec.framing, blocks, wake())?,
            Some(Journaled { shelf, .. }) => {
                let before = shelf.inputs();
                let mut input =
                    Input::open_again(plan.source, spec.framing, blocks, before, wake())?;
                counts = leave_out(&mut input, shelf);
                input
            }
        };
        let held = match input.take_file() {
            Some(file) => HeldInput::with_file(spec.framing, file),
            None => HeldInput::new(spec.framing),
        };
        let (way, deliverer) = match journaled {
            None => {
                let store = direct::Store {
                    memory_bytes_max: plan.reorder_bytes_max,
                    spill_bytes_max: plan.spill_bytes_max,
                };
                let direct = Direct::start(sink, is_ordered, store, wake())?;
                (Way::Direct(Box::new(direct)), None)
            }
            Some(Journaled { writer, shelf, .. }) => {
                let config = LedgerConfig {
                    job: THE_JOB,
                    writer: Arc::clone(writer),
                    rendering: rendering(json, shape, sink.separator),
                    function: sink.function.clone(),
                    spill_directory: std::env::temp_dir(),
                };
                let delivery = outlets::delivery(sink);
                let deliverer = Deliverer::start(shelf, delivery, wake());
                let deliverer = deliverer.map_err(MapError::Start)?;
                (Way::Ledger(Box::new(Ledger::new(config, wake()))), Some(deliverer))
            }
        };
        let noted = journaled.and_then(|journaled| journaled.shelf.inputs().into_iter().max());
        Ok(Self {
            spec,
            policy,
            shape,
            private: plan.private,
            json,
            input,
            held,
            inflight_bytes_max: plan.inflight_bytes_max,
            gated: false,
            stopped: false,
            level_told: false,
            way,
            outlets: Some(outlets),
            deliverer,
            noted,
            noted_before: noted.map_or(0, |noted| noted.bytes),
            stderr_bytes: 0,
            is_full: false,
            judged: None,
            refusals: BTreeMap::new(),
            has_been_ready: false,
            counts,
            failures: Vec::new(),
            history: History::default(),
        })
    }

    /// Opens a job of a service: its input is a file, its results go to the journal. What is final already
    /// is not run again.
    pub(super) fn kept(plan: KeptPlan, progressed: &Arc<Notify>) -> Result<Self, MapError> {
        let wake = || {
            let progressed = Arc::clone(progressed);
            move || progressed.notify_one()
        };
        let Submission { spec, blocks, policy, output, .. } = plan.submission;
        let blocks = match blocks {
            Blocks::ItemWise => BlockRule::ItemWise,
            Blocks::Fixed(bytes) => BlockRule::Fixed(bytes),
            Blocks::Schedule => BlockRule::Schedule,
        };
        let shape = shape(&spec, blocks);
        let source = data::Source::File(plan.input);
        let mut input = Input::open(source, spec.framing, blocks, wake())?;
        let counts = plan.shelf.as_ref().map(|shelf| leave_out(&mut input, shelf));
        let held = match input.take_file() {
            Some(file) => HeldInput::with_file(spec.framing, file).keeping(KEPT_INPUT_BYTES),
            None => HeldInput::new(spec.framing),
        };
        let config = LedgerConfig {
            job: plan.id,
            writer: plan.writer,
            rendering: rendering(output.json, shape, output.separator),
            function: data::function_digest(&spec.function, spec.framing),
            spill_directory: std::env::temp_dir(),
        };
        let way = Way::Ledger(Box::new(Ledger::new(config, wake())));
        let policy = JobPolicy {
            runtime: spec.function.runtime(),
            require: policy.require,
            retries: policy.retries,
            crash_limit: policy.crash_limit,
            chunk_items: policy.chunk_items,
            chunk_target: policy.chunk_target,
            weight: policy.weight,
            priority: policy.priority,
            speculate: policy.speculate,
        };
        Ok(Self {
            spec,
            policy,
            shape,
            // What others submit does not run in this process's own directory.
            private: false,
            json: output.json,
            input,
            held,
            inflight_bytes_max: INFLIGHT_BYTES_MAX,
            gated: false,
            stopped: false,
            level_told: false,
            way,
            outlets: None,
            deliverer: None,
            noted: None,
            noted_before: u64::MAX,
            stderr_bytes: plan.shelf.as_ref().map_or(0, |shelf| shelf.stderr_bytes()),
            is_full: false,
            judged: None,
            refusals: BTreeMap::new(),
            has_been_ready: false,
            counts: counts.unwrap_or_default(),
            failures: Vec::new(),
            history: History::default(),
        })
    }

    /// Why the input could not be read to its end, if so.
    pub(super) fn take_input_error(&mut self) -> Option<MapError> {
        self.input.take_error().map(MapError::from)
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
        self.note_input();
        let released = self.gated && self.held.bytes() < self.inflight_bytes_max;
        self.gated &= !released;
        (arrived || released).then(|| self.level())
    }

    /// What was read is noted in the journal, if the items are not kept there: before anything of it is
    /// assigned, so that whoever goes on knows what it was.
    fn note_input(&mut self) {
        let (Some(prefix), Way::Ledger(ledger)) = (self.input.prefix(), &self.way) else { return };
        if self.noted.is_none_or(|noted| noted < prefix) {
            ledger.note_input(prefix);
            self.noted = Some(prefix);
        }
    }

    /// That the input is not the one that the map was begun with.
    pub(super) fn take_change(&mut self) -> Option<MapError> {
        self.input.take_change().map(MapError::from)
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

    /// The bytes of a chunk, or of a part of one, and where they begin in the input.
    pub(super) fn input_of(&mut self, range: ItemRange) -> Result<(Bytes, u64), MapError> {
        let input = self.held.slice(range)?;
        let offset = self.held.offset(range)?;
        self.held.sent(range);
        Ok((input, offset))
    }

    /// The job was given up: nothing more is cut. Whether that was so before.
    pub(super) fn stop(&mut self) -> bool {
        std::mem::replace(&mut self.stopped, true)
    }

    /// Whether the job was given up.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Takes in an attempt that a former epoch has assigned, if its items are not cut in this one.
    pub(super) fn adopt(&mut self, held: &HeldAttempt) -> bool {
        let HeldAttempt { range, input_offset, input_length, .. } = *held;
        // Of what nobody knows any more what it was, nothing is taken in.
        let is_known =
            input_offset.checked_add(input_length).is_some_and(|end| end <= self.noted_before);
        // In this order: what cannot be read again must be cut again.
        is_known
            && self.held.can_adopt(range, input_offset, input_length)
            && self.input.exclude(range)
            && self.held.adopt(range, input_offset, input_length)
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
        match &mut self.way {
            Way::Direct(direct) => direct.merge.stage(part.attempt, part.offset, &part.data),
            Way::Ledger(ledger) => ledger.stage(part.attempt, part.offset, &part.data),
        }
    }

    /// Forgets what is staged of an attempt.
    pub(super) fn discard(&mut self, attempt: AttemptId) {
        match &mut self.way {
            Way::Direct(direct) => direct.merge.discard(attempt),
            Way::Ledger(ledger) => drop(ledger.release(attempt)),
        }
        if self.judged.as_ref().is_some_and(|judged| judged.attempt == attempt) {
            self.judged = None;
        }
    }

    /// The same, of an attempt whose end was judged; when its worker may forget it, if not at once.
    pub(super) fn release(&mut self, attempt: AttemptId) -> Option<Ticket> {
        let ticket = match &mut self.way {
            Way::Direct(_) => None,
            Way::Ledger(ledger) => ledger.release(attempt),
        };
        self.discard(attempt);
        ticket
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
        let (output, bytes) = (done.output.clone(), done.output_bytes);
        match &mut self.way {
            Way::Direct(direct) => direct.merge.finish(attempt, output, bytes)?,
            Way::Ledger(ledger) => ledger.finish(attempt, output, bytes)?,
        }
        let lines = self.stderr_lines(range, done);
        let lines = self.keep_stderr(lines);
        let plain = done.faults.is_empty() && !self.json;
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
        if self.json {
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
    pub(super) fn accept(&mut self, attempt: AttemptId, range: ItemRange, worker: &str, runs: u32) {
        let judged = self.judged.as_mut().filter(|judged| judged.attempt == attempt);
        let judged = judged.expect("an accept follows the end of its attempt");
        match &mut judged.told {
            Told::Plain { output_bytes } => self.way.accept(attempt, range, 0..*output_bytes),
            Told::Full(report) if !self.json => match report.within(range) {
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
    pub(super) fn fail_items(&mut self, range: ItemRange, failure: &Failure, worker: Option<&str>) {
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
                    false => format!("item {} `{}`", own.first + 1, data::item_shown(&record.item)),
                };
                let message = data::line_shown(&record.message);
                self.failures.push(NamedFailure { item, message });
            }
            match &mut self.way {
                Way::Direct(direct) => direct.merge.fail(Box::new(record)),
                Way::Ledger(ledger) => ledger.fail(&record, told_by),
            }
        }
        self.counts.failed += u64::from(range.items);
        self.held.release(range);
    }

    /// A worker is not used for a time.
    pub(super) fn left_out(&mut self, name: &str) {
        *self.counts.left_out.entry(name.to_owned()).or_default() += 1;
    }

    /// Items run again.
    pub(super) fn retried(&mut self, range: ItemRange) {
        self.counts.retried += u64::from(range.items);
    }

    /// How the attempt that is judged has ended.
    pub(super) fn verdict_on(&self, attempt: AttemptId) -> (AttemptState, String) {
        match &self.judged {
            Some(Judged { attempt: of, told: Told::Full(report) }) if *of == attempt => {
                match report.first_fault() {
                    Some(message) => (AttemptState::Failed, message.to_owned()),
                    None => (AttemptState::Succeeded, String::new()),
                }
            }
            _ => (AttemptState::Succeeded, String::new()),
        }
    }

    /// An attempt has ended.
    pub(super) fn note(&mut self, ended: Ended) {
        self.history.note(ended);
    }

    /// The last attempts that have ended, of one item or of all.
    pub(super) fn history(&self, item: Option<u64>) -> Vec<&Ended> {
        self.history.of(item)
    }

    /// Whether results can be stored, if that has changed.
    pub(super) fn poll_storage(&mut self) -> Option<bool> {
        let full = self.way.level().is_full;
        (full != std::mem::replace(&mut self.is_full, full)).then_some(full)
    }

    /// Bytes of results that wait in memory, and on disk.
    pub(super) fn kept_bytes(&self) -> (u64, u64) {
        let MergeLevel { memory_bytes, spilled_bytes, .. } = self.way.level();
        (memory_bytes, spilled_bytes)
    }

    /// Whether results are on their way to the disk, which makes room.
    pub(super) fn is_clearing(&self) -> bool {
        self.way.level().is_clearing
    }

    /// Whether nothing more can be stored but what the output waits for.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Moves the output on; says what is wrong with it.
    pub(super) fn poll_output(&mut self) -> Result<Option<data::SpillError>, MapError> {
        let delivered = match &mut self.way {
            Way::Direct(direct) => direct.poll(),
            Way::Ledger(_) => self.poll_deliverer(),
        };
        if let (Some(delivered), Some(outlets)) = (delivered, &mut self.outlets) {
            match delivered {
                Ok(report) => outlets.delivered = Some(Ok(report)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.way.take_spill_error())
    }

    fn poll_deliverer(&mut self) -> Option<Result<data::SinkReport, data::SinkError>> {
        let deliverer = self.deliverer.as_mut()?;
        deliverer.stir(self.input.is_checked());
        let outcome = deliverer.outcome()?;
        Some(outcome.map(|Delivered { report, failures }| {
            // Those of former lives too.
            self.failures = failures;
            report
        }))
    }

    /// The bound of what waits in memory.
    pub(super) fn kept_bytes_max(&self) -> u64 {
        match &self.way {
            Way::Direct(direct) => direct.memory_bytes_max(),
            Way::Ledger(ledger) => ledger.memory_bytes_max(),
        }
    }

    /// The first item that the output waits for, if it must be stored before others.
    pub(super) fn next_item(&self) -> Option<u64> {
        match &self.way {
            Way::Direct(direct) => self.is_full.then(|| direct.merge.next_item()),
            // The journal takes results in any order, and has room again once the disk has.
            Way::Ledger(_) => None,
        }
    }
}

impl Way {
    fn accept(&mut self, attempt: AttemptId, range: ItemRange, within: std::ops::Range<u64>) {
        match self {
            Self::Direct(direct) => direct.merge.accept(attempt, range, within),
            Self::Ledger(ledger) => ledger.accept(attempt, range, within),
        }
    }

    fn accept_results(
        &mut self,
        attempt: AttemptId,
        within: std::ops::Range<u64>,
        results: Box<data::Results>,
    ) {
        match self {
            Self::Direct(direct) => direct.merge.accept_results(attempt, within, results),
            Self::Ledger(ledger) => ledger.accept_results(attempt, within, results),
        }
    }

    fn take_spill_error(&mut self) -> Option<data::SpillError> {
        match self {
            Self::Direct(direct) => direct.merge.take_spill_error(),
            Self::Ledger(ledger) => ledger.take_spill_error(),
        }
    }

    /// How many items, from the first on, are in the output.
    fn delivered_items(&self) -> u64 {
        match self {
            Self::Direct(direct) => direct.merge.next_item(),
            Self::Ledger(_) => 0,
        }
    }

    fn level(&self) -> MergeLevel {
        match self {
            Self::Direct(direct) => direct.merge.level(),
            Self::Ledger(ledger) => ledger.level(),
        }
    }
}

/// Leaves out what is final already; counts it.
fn leave_out(input: &mut Input, shelf: &Shelf) -> Counts {
    for range in shelf.final_ranges() {
        let is_new = input.exclude(range);
        debug_assert!(is_new, "{range} is final once");
    }
    let (ok, failed) = shelf.final_items();
    Counts { ok, failed, ..Counts::default() }
}

fn rendering(json: bool, shape: Shape, separator: u8) -> Rendering {
    let format = if json { data::Format::Json } else { data::Format::Raw { fill: None } };
    Rendering { format, shape, separator }
}

fn shape(spec: &JobSpec, blocks: BlockRule) -> Shape {
    let results = match spec.function.runtime() {
        Runtime::Builtin => ResultShape::Framed(spec.framing),
        Runtime::Exec | Runtime::Pipe => ResultShape::Printed,
    };
    Shape { input: spec.framing, results, is_block_wise: blocks.is_block_wise() }
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
