//! Puts results in the order of the items: what is next goes to the sink, the rest waits, in memory
//! and then on disk. Nothing here waits for a disk or for whoever reads the output.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use widemap_common::ids::{AttemptId, ItemRange};
use widemap_common::limits::{
    REORDER_BYTES_MAX, SINK_BUFFER_BYTES, SINK_QUEUE_BYTES, SPILL_BATCH_BYTES, SPILL_BYTES_MAX,
    SPILL_QUEUE_BYTES,
};

use super::piece::{Emit, Piece};
use super::reorder::Reorder;
use super::report::{FailureRecord, Results};
use super::sink::{Sink, SinkConfig, SinkError, SinkReport};
use super::spill::{Spill, SpillError};
use super::staging::{StageError, Staging};

/// How results are put in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergeConfig {
    /// Whether results go out in the order of the items; if not, as they are accepted.
    pub is_ordered: bool,
    /// What may wait in memory.
    pub memory_bytes_max: u64,
    /// What may wait on disk.
    pub spill_bytes_max: u64,
    /// Where the disk's part lies.
    pub spill_directory: PathBuf,
}

impl Default for MergeConfig {
    fn default() -> Self {
        Self {
            is_ordered: true,
            memory_bytes_max: REORDER_BYTES_MAX,
            spill_bytes_max: SPILL_BYTES_MAX,
            spill_directory: std::env::temp_dir(),
        }
    }
}

/// Bounds inside the merge that only tests change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MergeBounds {
    /// What is handed to the sink at once.
    pub sink_buffer_bytes: u64,
    /// What waits for the sink.
    pub sink_queue_bytes: u64,
    /// What is sent to the spill at once.
    pub spill_batch_bytes: u64,
    /// What is on its way to the spill.
    pub spill_queue_bytes: u64,
}

impl Default for MergeBounds {
    fn default() -> Self {
        Self {
            sink_buffer_bytes: SINK_BUFFER_BYTES as u64,
            sink_queue_bytes: SINK_QUEUE_BYTES,
            spill_batch_bytes: SPILL_BATCH_BYTES,
            spill_queue_bytes: SPILL_QUEUE_BYTES,
        }
    }
}

/// How full the merge is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MergeLevel {
    /// Bytes that wait in memory, those on their way to the disk with them.
    pub memory_bytes: u64,
    /// Bytes that wait on disk.
    pub spilled_bytes: u64,
    /// Whether nothing more should be run ahead: what the head brings is always taken.
    pub is_full: bool,
    /// Whether some of it is on its way to the disk, so that room comes without the head.
    pub is_clearing: bool,
}

/// Puts results in order. One for each job.
pub struct Merge {
    is_ordered: bool,
    memory_bytes_max: u64,
    pub(super) bounds: MergeBounds,
    staging: Staging,
    reorder: Reorder,
    spill: Spill,
    sink: Sink,
    /// What is next to be handed to the sink, many small results at once.
    outgoing: Vec<Emit>,
    outgoing_bytes: u64,
    /// Without order, the place of the next result is the next place.
    arrivals: u64,
}

impl Merge {
    /// Starts the sink. `notify` is called, from threads, when [`Merge::pump`] has something to do:
    /// the sink has room again or has ended, or something was written to disk.
    ///
    /// # Errors
    /// If the sink's thread can not be started.
    pub fn start(
        config: MergeConfig,
        sink: SinkConfig,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, SinkError> {
        let notify: Arc<dyn Fn() + Send + Sync> = Arc::new(notify);
        let spill = Spill::new(config.spill_directory, config.spill_bytes_max, Arc::clone(&notify));
        let sink = Sink::start(sink, notify)?;
        Ok(Self::new(config.is_ordered, config.memory_bytes_max, spill, sink))
    }

    pub(super) fn new(is_ordered: bool, memory_bytes_max: u64, spill: Spill, sink: Sink) -> Self {
        Self {
            is_ordered,
            memory_bytes_max,
            bounds: MergeBounds::default(),
            staging: Staging::default(),
            reorder: Reorder::new(),
            spill,
            sink,
            outgoing: Vec::new(),
            outgoing_bytes: 0,
            arrivals: 0,
        }
    }

    /// Keeps a part of an attempt's output that came before its end. Parts that come again are
    /// passed over.
    ///
    /// # Errors
    /// [`StageError`] if a part before it is missing: the result is to be rejected.
    pub fn stage(
        &mut self,
        attempt: AttemptId,
        offset: u64,
        data: &Bytes,
    ) -> Result<(), StageError> {
        self.staging.stage(attempt, offset, data)?;
        self.relieve();
        Ok(())
    }

    /// Keeps the last part of an attempt's output, and checks its length. What is accepted of it
    /// follows; then [`Merge::discard`].
    ///
    /// # Errors
    /// [`StageError`] if the parts are not what they were said to be: the result is to be rejected
    /// and discarded.
    pub fn finish(
        &mut self,
        attempt: AttemptId,
        last: Bytes,
        output_bytes: u64,
    ) -> Result<(), StageError> {
        self.staging.finish(attempt, last, output_bytes)
    }

    /// The attempt's output `within` is the final result of `range`.
    pub fn accept(&mut self, attempt: AttemptId, range: ItemRange, within: Range<u64>) {
        match self.staging.whole(attempt, &within) {
            Some(whole) => self.enter(range, std::iter::once(Emit::Piece(Piece::Memory(whole)))),
            None => {
                let pieces = self.staging.slice(attempt, within);
                self.enter(range, pieces.into_iter().map(Emit::Piece));
            }
        }
    }

    /// The same, with what it takes to render the results, for JSON.
    pub fn accept_results(
        &mut self,
        attempt: AttemptId,
        within: Range<u64>,
        results: Box<Results>,
    ) {
        let range = results.range;
        let output = self.staging.slice(attempt, within);
        self.enter(range, std::iter::once(Emit::Results(results, output)));
    }

    /// An item, or a block, failed for good.
    pub fn fail(&mut self, record: Box<FailureRecord>) {
        self.enter(record.range, std::iter::once(Emit::Failure(record)));
    }

    /// The items up to `end` were not run: what is behind them need not wait for them.
    pub fn skip(&mut self, first: u64, end: u64) {
        if self.is_ordered {
            self.place(first, end, std::iter::empty());
        }
    }

    /// Forgets what is staged of an attempt.
    pub fn discard(&mut self, attempt: AttemptId) {
        self.staging.discard(attempt);
    }

    /// Hands over to the sink what is next and what it has room for. To be called at the end of
    /// each turn of the driver, and when notified.
    pub fn pump(&mut self) {
        while self.has_room() {
            let Some(emit) = self.reorder.pop() else { break };
            self.push(emit);
        }
        self.hand_over();
        self.relieve();
    }

    /// How full it is.
    #[must_use]
    pub fn level(&self) -> MergeLevel {
        let memory_bytes = self.resident_bytes() + self.spill.memory_bytes();
        let is_full = memory_bytes >= self.memory_bytes_max;
        let (spilled_bytes, is_clearing) = (self.spill.file_bytes(), self.spill.is_writing());
        MergeLevel { memory_bytes, spilled_bytes, is_full, is_clearing }
    }

    /// Why the disk takes nothing more, told once. Nothing is lost by it: what it did not take
    /// stays in memory.
    pub fn take_spill_error(&mut self) -> Option<SpillError> {
        self.spill.take_error()
    }

    /// Whether the sink has failed, so that nothing more can be written; [`Merge::outcome`] will
    /// tell why.
    #[must_use]
    pub fn sink_has_failed(&self) -> bool {
        self.sink.has_failed()
    }

    /// Bytes of output written so far.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.sink.written_bytes()
    }

    /// The first item whose result was not handed to the sink: what the output waits for.
    #[must_use]
    pub fn next_item(&self) -> u64 {
        self.reorder.next()
    }

    /// Bytes that an attempt has staged in parts: where its worker has to go on.
    #[must_use]
    pub fn staged_bytes(&self, attempt: AttemptId) -> u64 {
        self.staging.staged_bytes(attempt)
    }

    /// Whether everything that was accepted is with the sink.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reorder.is_empty() && self.outgoing.is_empty()
    }

    /// Whether something waits only for room in the sink.
    #[must_use]
    pub fn is_next_ready(&self) -> bool {
        !self.sink.has_failed() && (!self.outgoing.is_empty() || self.reorder.is_next_ready())
    }

    /// Gives up what waits for an item that will not come: of it only failures go to the sink, which
    /// lists them.
    pub fn abandon(&mut self) {
        for failure in self.reorder.take_failures() {
            self.outgoing_bytes += failure.memory_bytes();
            self.outgoing.push(failure);
        }
        self.hand_over();
    }

    /// Nothing more will be accepted: the sink ends when it has written what it has. To be called
    /// once [`Merge::is_empty`], or when what waits is given up.
    pub fn close(&mut self) {
        self.hand_over();
        self.sink.close();
    }

    /// How the sink ended, once it has: after [`Merge::close`], and a notification.
    pub fn outcome(&mut self) -> Option<Result<SinkReport, SinkError>> {
        self.sink.outcome()
    }

    fn enter(&mut self, range: ItemRange, parts: impl Iterator<Item = Emit>) {
        let (first, end) = if self.is_ordered {
            (range.first, range.end())
        } else {
            (self.arrivals, self.arrivals + 1)
        };
        self.arrivals += 1;
        self.place(first, end, parts);
    }

    fn place(&mut self, first: u64, end: u64, parts: impl Iterator<Item = Emit>) {
        if self.reorder.is_next(first) && self.has_room() {
            self.reorder.pass(first, end);
            parts.for_each(|part| self.push(part));
        } else {
            self.reorder.add(first, end, parts);
            self.relieve();
        }
    }

    /// Hands the next thing to the sink; small ones with others.
    fn push(&mut self, emit: Emit) {
        let payload_bytes = emit.payload_bytes();
        let rest = match self.outgoing.last_mut() {
            Some(last) => last.join(emit),
            None => Some(emit),
        };
        self.outgoing_bytes += match rest {
            Some(emit) => {
                let bytes = emit.memory_bytes();
                self.outgoing.push(emit.detached());
                bytes
            }
            None => payload_bytes,
        };
        if self.outgoing_bytes >= self.bounds.sink_buffer_bytes {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        if !self.outgoing.is_empty() {
            self.sink.push(&mut self.outgoing);
            self.outgoing_bytes = 0;
        }
    }

    fn has_room(&self) -> bool {
        self.sink.has_room(self.outgoing_bytes)
    }

    fn resident_bytes(&self) -> u64 {
        self.reorder.memory_bytes() + self.staging.memory_bytes()
    }

    /// Spills before memory is full, so that it is full only where the disk is full or too slow.
    fn relieve(&mut self) {
        let resident_bytes_max = self.memory_bytes_max - self.memory_bytes_max / 4;
        while self.resident_bytes() > resident_bytes_max && self.spill.has_room() {
            let batch_bytes = self.bounds.spill_batch_bytes;
            let is_relieved = self.reorder.spill(&mut self.spill, batch_bytes)
                || self.staging.spill(&mut self.spill, batch_bytes);
            if !is_relieved {
                break;
            }
        }
    }
}
