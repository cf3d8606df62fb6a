//! A job as the simulated driver keeps it: input that arrives and is cut, what is held of it, and
//! its results on their way to the output. Held input and reports are the coordinator's own.

use std::sync::Arc;

use bytes::Bytes;
use widemap::data::{Chunk, HeldInput, Report};
use widemap_common::framing::LINES;
use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::spec::{Function, JobSpec, Runtime};
use widemap_proto::session::Done;
use widemap_sched::event::{Failure, InputLevel, JobPolicy};

use super::merge::Merge;
use super::oracle::Oracle;

/// See the file's head.
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) policy: JobPolicy,
    pub(super) spec: JobSpec,
    pub(super) oracle: Oracle,
    pub(super) merge: Merge,
    input: Bytes,
    /// Where each item begins in the input, and where the last one ends.
    starts: Vec<usize>,
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
    pub(super) urged: Option<(AttemptId, u64)>,
    /// Every range that was assigned, in order.
    pub(super) assigned: Vec<ItemRange>,
    /// Every range that a worker began to run.
    pub(super) started: Vec<ItemRange>,
    pub(super) rejected: u32,
    pub(super) ended: bool,
}

/// The bounds of a job's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) reorder_bytes: u64,
    pub(super) inflight_bytes: u64,
    /// Items that are there at the start; the others arrive later.
    pub(super) arrived_items: usize,
    pub(super) length_known: bool,
}

impl Job {
    pub(super) fn new(id: JobId, policy: JobPolicy, oracle: Oracle, bounds: Bounds) -> Self {
        let input = oracle.input();
        let ends = input.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let starts = std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect();
        Self {
            id,
            spec: spec(policy.runtime),
            policy,
            arrived_items: bounds.arrived_items.min(oracle.items.len()),
            oracle,
            merge: Merge::new(bounds.reorder_bytes),
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
            urged: None,
            assigned: Vec::new(),
            started: Vec::new(),
            rejected: 0,
            ended: false,
        }
    }

    /// More of the input has been read. Whether there is still more to come.
    pub(super) fn arrive(&mut self, items: usize) -> bool {
        self.arrived_items = self.arrived_items.saturating_add(items).min(self.oracle.items.len());
        !self.all_arrived()
    }

    fn all_arrived(&self) -> bool {
        self.arrived_items == self.oracle.items.len()
    }

    /// What can be cut, and what is known of the rest.
    pub(super) fn level(&self) -> InputLevel {
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

    /// Takes in the end of an attempt, to be judged next. False if its output does not fit.
    pub(super) fn arrived(&mut self, range: ItemRange, worker: &str, done: &Done) -> bool {
        let attempt = done.attempt;
        if !self.merge.finish(attempt, &done.output, done.output_bytes) {
            return false;
        }
        let framed = (self.policy.runtime == Runtime::Builtin).then_some(LINES);
        self.judged = Some((attempt, range, Report::new(range, Arc::from(worker), done, framed)));
        true
    }

    pub(super) fn accept(&mut self, attempt: AttemptId, range: ItemRange) {
        let judged = self.judged.as_mut().filter(|(of, ..)| *of == attempt);
        let (_, whole, report) = judged.expect("an accept follows the end of its attempt");
        assert!(whole.covers(range), "{range} is of the attempt at {whole}");
        let within = report.within(range).expect("the faults mark every place");
        let bytes = self.merge.slice(attempt, within);
        self.oracle.accepted(range, &bytes);
        self.merge.enter(range, bytes);
        self.held.release(range);
    }

    pub(super) fn fail(&mut self, range: ItemRange, failure: &Failure) {
        self.oracle.failed(range, failure, &self.policy);
        self.merge.enter(range, Vec::new());
        self.held.release(range);
    }

    /// Forgets what is staged of an attempt.
    pub(super) fn discard(&mut self, attempt: AttemptId) {
        self.merge.discard(attempt);
        if self.judged.as_ref().is_some_and(|(of, ..)| *of == attempt) {
            self.judged = None;
        }
    }

    /// Whether results can be stored, if that has changed.
    pub(super) fn poll_storage(&mut self) -> Option<bool> {
        let full = self.merge.is_full();
        (full != std::mem::replace(&mut self.is_full, full)).then_some(full)
    }

    /// Asserts that nothing is left once the job has ended.
    pub(super) fn check_empty(&self) {
        assert!(self.held.is_empty(), "{} holds no input any more", self.id);
        assert!(self.merge.is_empty(), "{} has delivered everything: {:?}", self.id, self.merge);
        assert_eq!(self.merge.next_item(), self.oracle.items.len() as u64, "all of it");
    }
}

fn spec(runtime: Runtime) -> JobSpec {
    let function = match runtime {
        Runtime::Exec => Function::Exec { argv: Vec::new() },
        Runtime::Pipe => Function::Pipe { argv: Vec::new() },
        Runtime::Builtin => Function::Builtin { name: "simulated".into() },
    };
    JobSpec {
        function,
        framing: LINES,
        directory: widemap_common::spec::Directory::Private,
        environment: Vec::new(),
        timeout: None,
        max_output: widemap_common::limits::MAX_OUTPUT_BYTES,
        per_item: false,
    }
}
