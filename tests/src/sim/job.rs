//! A job as the simulated driver keeps it: input that arrives and is cut, what is held of it, and
//! its results on their way to the output. Held input and reports are the coordinator's own.

use std::sync::Arc;

use bytes::Bytes;
use widemap::data::{
    Chunk, FailureRecord, HeldInput, MergeBounds, Report, ResultShape, Shape, SteppedConfig,
};
use widemap_common::artifact::JobFiles;
use widemap_common::framing::LINES;
use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::spec::{Function, JobSpec, Runtime};
use widemap_proto::session::{Done, Part};
use widemap_sched::event::{Failure, InputLevel, JobPolicy};

use super::oracle::Oracle;
use super::results::Results;

/// See the file's head.
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) policy: JobPolicy,
    pub(super) spec: JobSpec,
    pub(super) oracle: Oracle,
    pub(super) results: Results,
    pub(super) reorder_bytes_max: u64,
    spill_bytes_max: u64,
    spill_batch_bytes: u64,
    /// What may be kept of results until storage is told to be full, or not, again.
    memory_bytes_most: u64,
    input: Bytes,
    /// Where each item begins in the input, and where the last one ends.
    starts: Vec<usize>,
    /// Items that come at a time, and how long each time takes.
    arriving_items: usize,
    pub(super) input_us: u64,
    /// Items that have been read, and that were cut.
    arrived_items: usize,
    cut_items: usize,
    /// Whether the length of the input is known before its end.
    length_known: bool,
    held: HeldInput,
    inflight_bytes_max: u64,
    gated: bool,
    pub(super) is_full: bool,
    pub(super) told_full: bool,
    judged: Option<(AttemptId, ItemRange, Report)>,
    /// Every range that was assigned, in order.
    pub(super) assigned: Vec<ItemRange>,
    /// Every range that a worker began to run.
    pub(super) started: Vec<ItemRange>,
    pub(super) rejected: u32,
    pub(super) opened: bool,
    /// The user gave it up.
    pub(super) stopped: bool,
    pub(super) ended: bool,
}

/// The bounds of a job's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) reorder_bytes: u64,
    pub(super) spill_bytes: u64,
    pub(super) is_disk_full: bool,
    pub(super) merge: MergeBounds,
    pub(super) inflight_bytes: u64,
    /// Items that are there at the start; the others arrive later.
    pub(super) arrived_items: usize,
    pub(super) input_us: u64,
    pub(super) length_known: bool,
}

impl Job {
    pub(super) fn new(id: JobId, policy: JobPolicy, oracle: Oracle, bounds: Bounds) -> Self {
        let input = oracle.input();
        let ends = input.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let results = match policy.runtime {
            Runtime::Filter | Runtime::Python | Runtime::Builtin => ResultShape::Framed(LINES),
            Runtime::Exec | Runtime::Pipe | Runtime::Wasm => ResultShape::Printed,
        };
        let is_block_wise = policy.runtime.is_block_wise();
        let merge = SteppedConfig {
            memory_bytes_max: bounds.reorder_bytes,
            spill_bytes_max: bounds.spill_bytes,
            bounds: bounds.merge,
            shape: Shape { input: LINES, results, is_block_wise },
            is_disk_full: bounds.is_disk_full,
        };
        let starts = std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect();
        Self {
            id,
            spec: spec(&policy),
            policy,
            arriving_items: bounds.arrived_items.max(1),
            input_us: bounds.input_us,
            arrived_items: bounds.arrived_items.min(oracle.items.len()),
            oracle,
            results: Results::new(merge),
            reorder_bytes_max: bounds.reorder_bytes,
            spill_bytes_max: bounds.spill_bytes,
            spill_batch_bytes: bounds.merge.spill_batch_bytes,
            memory_bytes_most: u64::MAX,
            input,
            starts,
            cut_items: 0,
            length_known: bounds.length_known,
            held: HeldInput::new(LINES),
            inflight_bytes_max: bounds.inflight_bytes,
            gated: false,
            is_full: false,
            told_full: false,
            judged: None,
            assigned: Vec::new(),
            started: Vec::new(),
            rejected: 0,
            opened: false,
            stopped: false,
            ended: false,
        }
    }

    /// More of the input has been read. Whether there is still more to come.
    pub(super) fn arrive(&mut self) -> bool {
        self.arrived_items =
            self.arrived_items.saturating_add(self.arriving_items).min(self.oracle.items.len());
        !self.all_arrived()
    }

    fn all_arrived(&self) -> bool {
        self.arrived_items == self.oracle.items.len()
    }

    /// What can be cut, and what is known of the rest.
    pub(super) fn level(&self) -> InputLevel {
        if self.stopped {
            return InputLevel { ready_items: 0, ready_bytes: 0, rest_bytes: Some(0) };
        }
        // Blocks are counted when they are whole; what is read of a chunk of a fixed size counts
        // before it can be cut.
        let whole = match self.oracle.block_items.map(|items| items as usize) {
            Some(items) if !self.all_arrived() => {
                let ready = self.arrived_items - self.cut_items;
                self.cut_items + ready - ready % items
            }
            _ => self.arrived_items,
        };
        let bytes = |from: usize, to: usize| (self.starts[to] - self.starts[from]) as u64;
        let ready_bytes = bytes(self.cut_items, whole);
        let rest = bytes(whole, self.oracle.items.len());
        let rest_bytes = match self.all_arrived() {
            true => Some(0),
            false => self.length_known.then_some(rest.max(1)),
        };
        if self.gated {
            let rest_bytes = rest_bytes.map(|rest| (rest + ready_bytes).max(1));
            return InputLevel { ready_items: 0, ready_bytes: 0, rest_bytes };
        }
        let ready = whole - self.cut_items;
        let ready = self.oracle.block_items.map_or(ready, |items| ready.div_ceil(items as usize));
        InputLevel { ready_items: ready as u64, ready_bytes, rest_bytes }
    }

    fn fixed_items(&self) -> Option<usize> {
        self.oracle.block_items.or(self.policy.chunk_items).map(|items| items as usize)
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
        let ready = self.arrived_items - self.cut_items;
        let items = match self.fixed_items() {
            Some(items) if ready < items && !self.all_arrived() => 0,
            Some(items) => ready.min(items),
            None => {
                let fits = |items: &usize| {
                    let bytes = self.starts[self.cut_items + items] - self.starts[self.cut_items];
                    bytes as u64 <= bytes_max
                };
                let most = ready.min(items_max as usize);
                (1..=most).take_while(fits).last().unwrap_or(most.min(1))
            }
        };
        if items == 0 {
            return None;
        }
        let (from, to) = (self.starts[self.cut_items], self.starts[self.cut_items + items]);
        let count = u32::try_from(items).expect("a simulated list is short");
        let range = ItemRange::new(self.cut_items as u64, count);
        self.cut_items += items;
        self.held.hold(Chunk { range, bytes: self.input.slice(from..to), offset: from as u64 });
        Some((range, (to - from) as u64))
    }

    /// Whether what was held back may be cut now.
    pub(super) fn poll_gate(&mut self) -> bool {
        let released = self.gated && self.held.bytes() < self.inflight_bytes_max;
        self.gated &= !released;
        released
    }

    /// The bytes of a chunk, or of a part of one.
    pub(super) fn input_of(&mut self, range: ItemRange) -> Bytes {
        let input = self.held.slice(range).expect("it is all in memory");
        self.held.sent(range);
        input
    }

    /// Whether it is there and not delivered yet.
    pub(super) fn is_open(&self) -> bool {
        self.opened && !self.is_over()
    }

    /// Whether nothing more will happen to it.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.results.is_delivered()
    }

    /// Keeps a part of an attempt's output. False if one before it is missing.
    pub(super) fn stage(&mut self, part: &Part) -> bool {
        self.results.merge().stage(part.attempt, part.offset, &part.data).is_ok()
    }

    /// Takes in the end of an attempt, to be judged next. False if its output does not fit.
    pub(super) fn arrived(&mut self, range: ItemRange, worker: &str, done: &Done) -> bool {
        let attempt = done.attempt;
        let finished = self.results.merge().finish(attempt, done.output.clone(), done.output_bytes);
        if finished.is_err() {
            return false;
        }
        let framed = (self.policy.runtime == Runtime::Builtin).then_some(LINES);
        self.judged = Some((attempt, range, Report::new(range, Arc::from(worker), done, framed)));
        true
    }

    /// Whether the end of the attempt is being judged.
    pub(super) fn judges(&self, attempt: AttemptId) -> bool {
        self.judged.as_ref().is_some_and(|(of, ..)| *of == attempt)
    }

    pub(super) fn accept(&mut self, attempt: AttemptId, range: ItemRange) {
        let (_, whole, report) = self.judged.as_mut().expect("an accept follows the end");
        assert!(whole.covers(range), "{range} is of the attempt at {whole}");
        let within = report.within(range).expect("the faults mark every place");
        self.oracle.accepted(range);
        self.results.merge().accept(attempt, range, within);
        self.held.release(range);
    }

    pub(super) fn fail(&mut self, range: ItemRange, failure: &Failure) {
        self.oracle.failed(range, failure, &self.policy);
        let units = if self.policy.runtime.is_block_wise() { 1 } else { range.items };
        for unit in 0..units {
            let own = match units {
                1 => range,
                _ => ItemRange::new(range.first + u64::from(unit), 1),
            };
            let record = FailureRecord::untold(own, Bytes::new(), failure.kind, String::new());
            self.results.merge().fail(Box::new(record));
        }
        self.held.release(range);
    }

    pub(super) fn retried(&mut self, range: ItemRange) {
        self.oracle.retried(range, &self.policy);
    }

    /// Forgets what is staged of an attempt.
    pub(super) fn discard(&mut self, attempt: AttemptId) {
        self.results.merge().discard(attempt);
        if self.judges(attempt) {
            self.judged = None;
        }
    }

    /// Whether results can be stored, if that has changed.
    pub(super) fn poll_storage(&mut self) -> Option<bool> {
        let full = self.results.level().is_full;
        (full != std::mem::replace(&mut self.is_full, full)).then_some(full)
    }

    /// Moves the output on.
    pub(super) fn poll_sink(&mut self) {
        self.results.merge().pump();
        self.results.merge().take_spill_error();
        self.results.poll_delivered();
    }

    /// Nothing more is accepted: lets the sink end once it has everything that is next.
    pub(super) fn finish(&mut self) {
        self.results.merge().pump();
        if self.stopped && !self.results.merge().is_next_ready() {
            if !self.results.is_closed() {
                self.results.merge().abandon();
            }
            self.results.close();
        } else if self.results.merge().is_empty() {
            self.results.close();
        }
    }

    /// Asserts that what is held is within its bounds, but for what one more thing may add.
    pub(super) fn check_bounds(&self) {
        let longest = self.starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let items = self.fixed_items().unwrap_or(self.starts.len());
        let chunk_bytes = longest.saturating_mul(items) as u64;
        let held = self.held.bytes();
        assert!(held <= self.inflight_bytes_max + chunk_bytes, "{} holds {held} bytes", self.id);
        let level = self.results.level();
        let memory = level.memory_bytes;
        assert!(memory <= self.memory_bytes_most, "{} keeps {memory} bytes", self.id);
        let spilled_most = self.spill_bytes_max + self.spill_batch_bytes + self.oracle.longest();
        assert!(level.spilled_bytes <= spilled_most, "{} has spilled {level:?}", self.id);
    }

    /// Storage has room again: it will be said when it has not.
    pub(super) fn forget_allowance(&mut self) {
        self.memory_bytes_most = u64::MAX;
    }

    /// What may be kept of results: what was on its way when they were full comes in still; and every
    /// item that is cut may become the head and fail, which costs something beside its bytes.
    pub(super) fn allow(&mut self, bytes_on_the_way: u64) {
        const ITEM_BYTES: u64 = 512;
        let open_items = (self.cut_items - self.oracle.final_items()) as u64;
        let on_the_way = bytes_on_the_way + open_items * ITEM_BYTES;
        let most = self.results.level().memory_bytes.max(self.reorder_bytes_max) + on_the_way;
        self.memory_bytes_most = most + self.oracle.longest();
    }

    /// Asserts that nothing is left once the job has ended.
    pub(super) fn check_empty(&mut self) {
        assert!(self.oracle.is_all_out(), "{} has delivered what it has", self.id);
        if self.stopped {
            return;
        }
        assert!(self.held.is_empty(), "{} holds no input any more", self.id);
        assert!(self.results.merge().is_empty(), "{} has delivered everything", self.id);
        assert_eq!(self.results.next_item(), self.oracle.items.len() as u64, "all of it");
    }
}

fn spec(policy: &JobPolicy) -> JobSpec {
    let function = match policy.runtime {
        Runtime::Exec => Function::Exec { argv: Vec::new() },
        Runtime::Filter => Function::Filter { argv: Vec::new() },
        Runtime::Pipe | Runtime::Wasm => Function::Pipe { argv: Vec::new() },
        Runtime::Python | Runtime::Builtin => Function::Builtin { name: "simulated".into() },
    };
    JobSpec {
        function,
        framing: LINES,
        directory: widemap_common::spec::Directory::Private,
        environment: Vec::new(),
        files: JobFiles::default(),
        timeout: None,
        max_output: widemap_common::limits::MAX_OUTPUT_BYTES,
        limits: widemap_common::spec::Limits::default(),
        slots_per_item: policy.slots_per_item,
        per_item: false,
        ok_exit: Vec::new(),
    }
}
