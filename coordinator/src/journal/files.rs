//! What the writer's thread writes for one job: results as pieces of segments, then the facts that point to
//! them, and at last, once both are durable, the shelf from which they are read.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use widemap_common::ids::JobId;
use widemap_common::limits::{JOURNAL_RECORD_BYTES, JOURNAL_SEGMENT_BYTES};

use super::error::JournalError;
use super::extent::Segment;
use super::fact::{self, Fact};
use super::medium::{Medium, MediumFile};
use super::record;
use super::shelf::{FACTS, Final, Shelf, segment_path};
use super::writer::Entry;

/// What a job's facts are written to.
pub(super) struct JobFiles {
    pub(super) shelf: Arc<Shelf>,
    pub(super) facts: Box<dyn MediumFile>,
    /// The length of the log, and the number of its next record.
    pub(super) facts_end: u64,
    pub(super) sequence: u64,
    pub(super) next_segment: u32,
    pub(super) segment: Option<Segment>,
}

/// What a commit has written for one job and publishes once it is durable.
pub(super) struct Written {
    pub(super) job: JobId,
    pub(super) finals: Vec<(u64, Final)>,
    /// Of those that failed, how.
    descriptions: BTreeMap<usize, Vec<u8>>,
    others: Vec<Fact>,
    /// Pieces of standard error, and, once they are written, where.
    stderr: Vec<Bytes>,
    stderr_places: Vec<(u64, u32)>,
}

/// A piece that is being gathered.
#[derive(Clone, Copy)]
struct Piece {
    first: u64,
    items: u32,
    offset: u64,
    raw_bytes: u64,
}

impl JobFiles {
    fn segment_error(&self, source: io::Error) -> JournalError {
        let number = self.segment.as_ref().map_or(self.next_segment, |segment| segment.number);
        JournalError::io("write", &segment_path(self.shelf.directory(), number), source)
    }

    fn facts_path(&self) -> PathBuf {
        self.shelf.directory().join(FACTS)
    }

    pub(super) fn write_payload(
        &mut self,
        medium: &dyn Medium,
        job: JobId,
        entries: impl Iterator<Item = Entry>,
    ) -> Result<Written, JournalError> {
        let mut written = Written::of(job);
        let mut piece: Option<Piece> = None;
        for entry in entries {
            let (range, mut payload, record) = match entry {
                Entry::Accepted { range, payload } => (range, payload, None),
                Entry::Failed { range, record, payload } => (range, payload, Some(record)),
                Entry::Input(prefix) => {
                    written.others.push(Fact::Input(prefix));
                    continue;
                }
                Entry::Stderr(lines) => {
                    written.stderr.push(lines);
                    continue;
                }
                Entry::Paused(paused) => {
                    written.others.push(Fact::Paused(paused));
                    continue;
                }
                Entry::Ended(last) => {
                    written.others.push(Fact::Ended(last));
                    continue;
                }
            };
            let joins = record.is_none()
                && piece.as_ref().is_some_and(|piece| {
                    piece.first + u64::from(piece.items) == range.first
                        && piece.items.checked_add(range.items).is_some()
                });
            if !joins {
                self.end_piece(piece.take(), &mut written);
                let segment = self.segment(medium)?;
                let offset = segment.end();
                piece = Some(Piece { first: range.first, items: 0, offset, raw_bytes: 0 });
            }
            let segment = self.segment.as_mut().expect("it was just opened");
            let raw_bytes =
                payload.write_to(segment).map_err(|source| self.segment_error(source))?;
            let open = piece.as_mut().expect("it was just begun");
            open.items += range.items;
            open.raw_bytes += raw_bytes;
            if let Some(record) = record {
                self.end_piece(piece.take(), &mut written);
                written.describe(record);
            }
        }
        self.end_piece(piece, &mut written);
        Ok(written)
    }

    fn end_piece(&mut self, piece: Option<Piece>, written: &mut Written) {
        let Some(Piece { first, items, offset, raw_bytes }) = piece else { return };
        let segment = self.segment.as_mut().expect("a piece lies in a segment");
        let extent = segment.extent(offset, raw_bytes);
        written.finals.push((first, Final { items, extent, failure: None }));
    }

    /// The segment that is written to; another one if it is long enough.
    fn segment(&mut self, medium: &dyn Medium) -> Result<&mut Segment, JournalError> {
        let is_long = |segment: &mut Segment| segment.end() >= JOURNAL_SEGMENT_BYTES;
        if self.segment.as_mut().is_some_and(is_long) {
            self.sync_payload()?;
            self.segment = None;
        }
        if self.segment.is_none() {
            let directory = self.shelf.directory();
            let path = segment_path(directory, self.next_segment);
            let file = medium.create(&path).map_err(|e| JournalError::io("make", &path, e))?;
            let synced = medium.sync_directory(directory);
            synced.map_err(|e| JournalError::io("make durable", directory, e))?;
            self.segment = Some(Segment::new(self.next_segment, file));
            self.next_segment += 1;
        }
        Ok(self.segment.as_mut().expect("it was just opened"))
    }

    pub(super) fn sync_payload(&mut self) -> Result<(), JournalError> {
        let Some(segment) = &mut self.segment else { return Ok(()) };
        let done = segment.hand_over().and_then(|()| segment.file.sync());
        done.map_err(|source| self.segment_error(source))
    }

    /// Writes the facts as one record, so that they are there all or not at all; more than one only if
    /// there are very many.
    pub(super) fn write_facts(
        &mut self,
        written: &mut Written,
        log: &mut Vec<u8>,
    ) -> Result<u64, JournalError> {
        log.clear();
        let mut body = Vec::new();
        let mut places: Vec<(usize, u64)> = Vec::new();
        let end = |body: &mut Vec<u8>, log: &mut Vec<u8>, sequence: &mut u64| {
            record::push(log, *sequence, body);
            *sequence += 1;
            body.clear();
        };
        // What was read comes before what came of it.
        let (inputs, others): (Vec<_>, Vec<_>) =
            written.others.iter().partition(|fact| matches!(fact, Fact::Input(_)));
        inputs.into_iter().for_each(|fact| fact::push_other(&mut body, fact));
        for (index, (first, entry)) in written.finals.iter().enumerate() {
            let description = written.descriptions.get(&index);
            let failure = description.map(Vec::as_slice);
            let described =
                fact::push_final(&mut body, *first, entry.items, &entry.extent, failure);
            if let Some(described) = described {
                let before = self.facts_end + (log.len() + record::HEAD_BYTES) as u64;
                places.push((index, before + u64::from(described.at)));
            }
            if body.len() >= JOURNAL_RECORD_BYTES {
                end(&mut body, log, &mut self.sequence);
            }
        }
        for lines in &written.stderr {
            let told = fact::push_stderr(&mut body, lines);
            let before = self.facts_end + (log.len() + record::HEAD_BYTES) as u64;
            written.stderr_places.push((before + u64::from(told.at), told.length));
        }
        others.into_iter().for_each(|fact| fact::push_other(&mut body, fact));
        if !body.is_empty() {
            end(&mut body, log, &mut self.sequence);
        }
        for (index, at) in places {
            let length = written.descriptions[&index].len();
            let length = u32::try_from(length).expect("a failure is a line");
            written.finals[index].1.failure = Some((at, length));
        }
        let path = self.facts_path();
        self.facts
            .write_at(log, self.facts_end)
            .map_err(|source| JournalError::io("write", &path, source))?;
        self.facts_end += log.len() as u64;
        Ok(log.len() as u64)
    }

    pub(super) fn sync_facts(&self) -> Result<(), JournalError> {
        let path = self.facts_path();
        self.facts.sync().map_err(|source| JournalError::io("make durable", &path, source))
    }

    /// Lets readers have it. Whether that was all.
    pub(super) fn publish(&mut self, written: Written) -> bool {
        let mut is_over = false;
        for (first, entry) in written.finals {
            self.shelf.put(first, entry);
        }
        for fact in written.others {
            match fact {
                Fact::Input(prefix) => self.shelf.add_input(prefix),
                Fact::Paused(paused) => self.shelf.set_paused(paused),
                Fact::Ended(last) => {
                    self.shelf.end(last);
                    is_over = true;
                }
                Fact::Final { .. } | Fact::Stderr(_) => {}
            }
        }
        for (at, length) in written.stderr_places {
            self.shelf.add_stderr(at, length);
        }
        self.shelf.tell();
        is_over
    }
}

impl Written {
    fn of(job: JobId) -> Self {
        Self {
            job,
            finals: Vec::new(),
            descriptions: BTreeMap::new(),
            others: Vec::new(),
            stderr: Vec::new(),
            stderr_places: Vec::new(),
        }
    }

    /// The last item that is final has failed: how.
    fn describe(&mut self, record: Vec<u8>) {
        self.descriptions.insert(self.finals.len() - 1, record);
    }
}
