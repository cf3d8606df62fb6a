//! Runs a registered function over the items of an attempt: a loop without an allocation, a lock or
//! a system call per item.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use widemap_common::framing::{Framing, Items};
use widemap_common::limits::PART_BYTES_MAX;

use super::results::Failure;
use super::{Attempt, Progress, micros_since};
use crate::function::{Context, Function, FunctionError, Output};
use crate::slots::SlotControl;

/// The length of the prefix before a result in [`Framing::LengthPrefixed`].
const PREFIX: [u8; 4] = [0; 4];

/// Calls `function` for each item of `input`.
pub(super) fn run(
    attempt: &mut Attempt<'_>,
    control: &Arc<SlotControl>,
    function: &dyn Function,
    input: &Bytes,
) -> Progress {
    let context =
        Context { sequence: attempt.range.first, deadline: None, control: control.clone() };
    let out = Output { bytes: std::mem::take(&mut attempt.output.buffer) };
    let items = attempt.job.framing.items(input);
    let mut walk = Walk { function, items, index: 0, start: 0, began: None, out, context, attempt };
    let progress = loop {
        // Caught around the loop, not around the call: an item that does not panic pays nothing.
        match catch_unwind(AssertUnwindSafe(|| walk.go())) {
            Ok(progress) => break progress,
            Err(panic) => walk.panicked(panic.as_ref()),
        }
    };
    walk.attempt.output.buffer = walk.out.bytes;
    progress
}

struct Walk<'a, 'b> {
    function: &'a dyn Function,
    items: Items<'a>,
    /// The item that is run.
    index: u32,
    /// Where its result begins in `out`.
    start: usize,
    began: Option<Instant>,
    out: Output,
    context: Context,
    attempt: &'a mut Attempt<'b>,
}

impl Walk<'_, '_> {
    fn go(&mut self) -> Progress {
        let job = self.attempt.job;
        let timed = job.per_item || job.timeout.is_some();
        let prefixed = job.framing.separator().is_none();
        while self.index < self.attempt.range.items {
            if self.context.is_cancelled() {
                return Progress::Cancelled;
            }
            self.context.control.item.store(self.index, Ordering::Relaxed);
            self.context.sequence = self.attempt.range.first + u64::from(self.index) + 1;
            self.start = self.out.bytes.len();
            if timed {
                let now = Instant::now();
                self.began = Some(now);
                self.context.deadline = job.timeout.and_then(|timeout| now.checked_add(timeout));
            }
            let Some(item) = self.items.next() else {
                self.fail(Failure::error("the chunk has fewer items than it says").permanent());
                continue;
            };
            if prefixed {
                self.out.extend_from_slice(&PREFIX);
            }
            let result = self.function.call(item, &mut self.out, &self.context);
            self.ended(result);
            if self.out.bytes.len() >= PART_BYTES_MAX && self.hand_over() == Progress::Cancelled {
                return Progress::Cancelled;
            }
        }
        Progress::Finished
    }

    /// The function has returned.
    fn ended(&mut self, result: Result<(), FunctionError>) {
        let job = self.attempt.job;
        if self.context.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return self.fail(Failure::timeout(job.timeout));
        }
        if let Err(error) = result {
            let failure = Failure::error(error.message);
            return self.fail(if error.retryable { failure } else { failure.permanent() });
        }
        let printed = self.out.bytes.len() - self.start;
        if printed as u64 > job.max_output {
            return self.fail(Failure::too_much_output(job.max_output));
        }
        match job.framing {
            Framing::Separator(separator) => self.out.push(separator),
            Framing::LengthPrefixed | Framing::Columns => {
                let length = u32::try_from(printed - PREFIX.len()).unwrap_or(u32::MAX);
                self.out.bytes[self.start..self.start + PREFIX.len()]
                    .copy_from_slice(&length.to_le_bytes());
            }
        }
        if job.per_item {
            let bytes = (self.out.bytes.len() - self.start) as u64;
            self.attempt.results.item(bytes, self.began.map_or(0, micros_since));
        }
        self.index += 1;
    }

    fn panicked(&mut self, panic: &(dyn Any + Send)) {
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        self.fail(Failure::error(format!("panicked: {}", text.unwrap_or("(no message)"))));
    }

    /// The item failed: nothing of it stays in the output.
    fn fail(&mut self, failure: Failure) {
        let micros = self.began.map_or(0, micros_since);
        self.out.bytes.truncate(self.start);
        let offset = self.attempt.output.position() + self.start as u64;
        self.attempt.results.fault(self.index, failure, offset, 0, micros);
        if self.attempt.job.per_item {
            self.attempt.results.item(0, micros);
        }
        self.index += 1;
    }

    /// Hands what is there to the session, and waits for room for more.
    fn hand_over(&mut self) -> Progress {
        let output = &mut self.attempt.output;
        output.buffer = std::mem::take(&mut self.out.bytes);
        output.hand_over();
        self.out.bytes = std::mem::take(&mut output.buffer);
        while output.is_full() {
            if self.context.is_cancelled() {
                return Progress::Cancelled;
            }
            self.context.control.wait(None);
        }
        Progress::Finished
    }
}
