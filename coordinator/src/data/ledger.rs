//! Results on their way to the journal: parts are staged until their attempt has ended, and what is
//! accepted is handed over at once, in any order. Whoever wants the results reads them from the journal, so
//! nothing waits here for an earlier item.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use widemap_common::framing::Framing;
use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::limits::{REORDER_BYTES_MAX, SPILL_BATCH_BYTES, SPILL_BYTES_MAX};

use super::format::{self, Format, ResultShape, Shape};
use super::merge::MergeLevel;
use super::piece::Piece;
use super::prefix::Prefix;
use super::report::{FailureRecord, Results};
use super::spill::{Spill, SpillError};
use super::staging::{StageError, Staging};
use super::unframe::Unframe;
use crate::journal::{Entry, Payload, Ticket, Writer};

/// How results are written, and where.
pub(crate) struct LedgerConfig {
    /// Whose they are.
    pub(crate) job: JobId,
    /// Where they go.
    pub(crate) writer: Arc<Writer>,
    /// How they are rendered.
    pub(crate) rendering: Rendering,
    /// The digest of the function, for the records of failures.
    pub(crate) function: String,
    /// Where parts of long outputs lie that do not fit into memory.
    pub(crate) spill_directory: PathBuf,
}

/// What a result looks like in the output.
#[derive(Debug, Clone)]
pub(crate) struct Rendering {
    pub(crate) format: Format,
    pub(crate) shape: Shape,
    pub(crate) separator: u8,
}

/// See the file's head.
pub(crate) struct Ledger {
    config: LedgerConfig,
    rendering: Arc<Rendering>,
    staging: Staging,
    spill: Spill,
    /// Of attempts that are being judged: what was handed over last.
    tickets: HashMap<AttemptId, Ticket>,
}

impl Ledger {
    /// A ledger with nothing in it. `notify` is called when something was written to the spill.
    pub(crate) fn new(config: LedgerConfig, notify: impl Fn() + Send + Sync + 'static) -> Self {
        let directory = config.spill_directory.clone();
        Self {
            rendering: Arc::new(config.rendering.clone()),
            staging: Staging::default(),
            spill: Spill::new(directory, SPILL_BYTES_MAX, Arc::new(notify)),
            tickets: HashMap::new(),
            config,
        }
    }

    /// Keeps a part of an attempt's output that came before its end.
    pub(crate) fn stage(
        &mut self,
        attempt: AttemptId,
        offset: u64,
        data: &Bytes,
    ) -> Result<(), StageError> {
        self.staging.stage(attempt, offset, data)?;
        self.relieve();
        Ok(())
    }

    /// Keeps the last part, and checks the whole.
    pub(crate) fn finish(
        &mut self,
        attempt: AttemptId,
        last: Bytes,
        output_bytes: u64,
    ) -> Result<(), StageError> {
        self.staging.finish(attempt, last, output_bytes)
    }

    /// The attempt's output `within` is the final result of `range`.
    pub(crate) fn accept(&mut self, attempt: AttemptId, range: ItemRange, within: Range<u64>) {
        let output = self.output(attempt, within);
        let payload =
            Box::new(Rendered { rendering: self.rendering.clone(), results: None, output });
        self.append(attempt, Entry::Accepted { range, payload });
    }

    /// The same, with what it takes to render the results as JSON.
    pub(crate) fn accept_results(
        &mut self,
        attempt: AttemptId,
        within: Range<u64>,
        results: Box<Results>,
    ) {
        let (range, output) = (results.range, self.output(attempt, within));
        let rendering = self.rendering.clone();
        let payload = Box::new(Rendered { rendering, results: Some(results), output });
        self.append(attempt, Entry::Accepted { range, payload });
    }

    /// An item, or a block, failed for good.
    pub(crate) fn fail(&mut self, record: &FailureRecord, told_by: Option<AttemptId>) {
        let Rendering { ref format, shape, separator } = *self.rendering;
        let mut line = Vec::new();
        format::push_failure_record(&mut line, shape, record, &self.config.function);
        let (mut output, mut raw_bytes) = (Vec::new(), 0);
        if let Some(fill) = format.fill() {
            output.extend_from_slice(fill);
            output.push(separator);
            raw_bytes = output.len() as u64;
        }
        if format.is_made() {
            output.clear();
            format::push_failure(&mut output, format, shape, record);
        }
        let payload = Box::new(Line { output, raw_bytes });
        let entry = Entry::Failed { range: record.range, record: line, payload };
        let ticket = self.config.writer.append(self.config.job, entry);
        if let Some(attempt) = told_by {
            self.tickets.insert(attempt, ticket);
        }
    }

    /// So much of the input was read.
    pub(crate) fn note_input(&self, prefix: Prefix) {
        self.config.writer.append(self.config.job, Entry::Input(prefix));
    }

    /// Items have written these lines on their standard error.
    pub(crate) fn note_stderr(&self, mut lines: String) {
        lines.truncate(lines.trim_end_matches('\n').len());
        self.config.writer.append(self.config.job, Entry::Stderr(lines.into_bytes().into()));
    }

    /// Forgets what is staged of an attempt. When what was accepted of it is durable, if anything was.
    pub(crate) fn release(&mut self, attempt: AttemptId) -> Option<Ticket> {
        self.staging.discard(attempt);
        self.tickets.remove(&attempt)
    }

    /// How full it is. The journal's own room is for all jobs.
    pub(crate) fn level(&self) -> MergeLevel {
        let memory_bytes = self.staging.memory_bytes() + self.spill.memory_bytes();
        MergeLevel {
            memory_bytes,
            spilled_bytes: self.spill.file_bytes(),
            is_full: memory_bytes >= REORDER_BYTES_MAX || !self.config.writer.has_room(),
            is_clearing: self.spill.is_writing() || !self.config.writer.has_room(),
        }
    }

    /// The bound of what waits in memory.
    pub(crate) fn memory_bytes_max(&self) -> u64 {
        REORDER_BYTES_MAX
    }

    /// Why the disk takes nothing more of long outputs, told once.
    pub(crate) fn take_spill_error(&mut self) -> Option<SpillError> {
        self.spill.take_error()
    }

    fn append(&mut self, attempt: AttemptId, entry: Entry) {
        let ticket = self.config.writer.append(self.config.job, entry);
        self.tickets.insert(attempt, ticket);
    }

    fn output(&self, attempt: AttemptId, within: Range<u64>) -> Output {
        match self.staging.whole(attempt, &within) {
            Some(whole) => Output::Whole(whole),
            None => Output::Pieces(self.staging.slice(attempt, within)),
        }
    }

    fn relieve(&mut self) {
        let resident_bytes_max = REORDER_BYTES_MAX - REORDER_BYTES_MAX / 4;
        while self.staging.memory_bytes() > resident_bytes_max && self.spill.has_room() {
            if !self.staging.spill(&mut self.spill, SPILL_BATCH_BYTES) {
                break;
            }
        }
    }
}

enum Output {
    Whole(Bytes),
    Pieces(Vec<Piece>),
}

/// Results, to be rendered by the journal's thread.
struct Rendered {
    rendering: Arc<Rendering>,
    /// What JSON says of them.
    results: Option<Box<Results>>,
    output: Output,
}

impl Output {
    fn each(&self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Self::Whole(bytes) => each(bytes),
            Self::Pieces(pieces) => pieces.iter().try_for_each(|piece| piece.read(&mut each)),
        }
    }

    fn memory_bytes(&self) -> u64 {
        match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::Pieces(pieces) => pieces.iter().map(Piece::resident_bytes).sum(),
        }
    }
}

impl Payload for Rendered {
    fn write_to(&mut self, to: &mut dyn Write) -> io::Result<u64> {
        let Rendering { ref format, shape, separator } = *self.rendering;
        let mut raw_bytes = 0;
        if let (Some(results), true) = (&self.results, format.is_made()) {
            let mut joined = Vec::new();
            let output: &[u8] = match &self.output {
                Output::Whole(bytes) => bytes,
                pieces => {
                    pieces.each(|bytes| {
                        joined.extend_from_slice(bytes);
                        Ok(())
                    })?;
                    &joined
                }
            };
            let mut lines = Vec::new();
            format::push_results(&mut lines, format, shape, results, output);
            to.write_all(&lines)?;
            return Ok(format::raw_bytes(shape, results, output));
        }
        let mut unframe = (shape.results == ResultShape::Framed(Framing::LengthPrefixed))
            .then(|| Unframe::new(separator));
        self.output.each(|bytes| match &mut unframe {
            None => {
                raw_bytes += bytes.len() as u64;
                to.write_all(bytes)
            }
            Some(unframe) => unframe.part(bytes, |bytes| {
                raw_bytes += bytes.len() as u64;
                to.write_all(bytes)
            }),
        })?;
        Ok(raw_bytes)
    }

    fn memory_bytes(&self) -> u64 {
        const OVERHEAD_BYTES: u64 = 128;
        let results = self.results.as_ref().map_or(0, |results| results.memory_bytes());
        OVERHEAD_BYTES + results + self.output.memory_bytes()
    }
}

/// What stands for a failed item in the output.
struct Line {
    output: Vec<u8>,
    /// How much of raw output it is.
    raw_bytes: u64,
}

impl Payload for Line {
    fn write_to(&mut self, to: &mut dyn Write) -> io::Result<u64> {
        to.write_all(&self.output)?;
        Ok(self.raw_bytes)
    }

    fn memory_bytes(&self) -> u64 {
        self.output.len() as u64
    }
}
