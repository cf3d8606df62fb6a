//! Reads the results of a job for one who collects them: what is durable, then what becomes so, as fast
//! as it is taken.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use widemap_common::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, PART_BYTES_MAX};
use widemap_proto::jobs::{Collecting, FailuresPart, JobPart, Position, StderrPart};

use super::desk::DeskError;
use super::ledger::{Next, ShelfCursor};
use super::registry::JobEntry;
use crate::failpoint;

/// See the file's head.
pub(crate) struct Collect {
    entry: Arc<JobEntry>,
    /// Where it is, and what was read there and is not given away yet.
    place: Option<Place>,
    /// What comes next is read while what was read last is sent.
    reading: Option<JoinHandle<io::Result<Batch>>>,
    changes: watch::Receiver<u64>,
    at: Position,
    /// What is left of a failure that is longer than a part.
    rest: Option<Bytes>,
    is_over: bool,
}

struct Place {
    cursor: Box<dyn ShelfCursor>,
    ahead: Option<Next>,
}

/// What is told at once, and where it goes on.
struct Batch {
    told: Told,
    place: Place,
}

enum Told {
    Output(Bytes),
    Failures(Vec<Bytes>),
    Stderr(Vec<Bytes>),
    Nothing,
    End,
}

impl Collect {
    pub(super) fn new(entry: Arc<JobEntry>, position: Position) -> Result<Self, DeskError> {
        let changes = entry.shelf.changes();
        let there = Position {
            output_bytes: entry.shelf.output_bytes(),
            failures: entry.shelf.failures(),
            stderr: entry.shelf.stderr_pieces(),
        };
        // Nobody has been given what is not durable: it is another job's, or another coordinator's.
        let is_beyond = position.output_bytes > there.output_bytes
            || position.failures > there.failures
            || position.stderr > there.stderr;
        if is_beyond {
            return Err(DeskError::NotReached { job: entry.id, wanted: position, there });
        }
        let place = Some(Place { cursor: entry.shelf.read_from(position), ahead: None });
        let (reading, rest) = (None, None);
        Ok(Self { entry, place, reading, changes, at: position, rest, is_over: false })
    }

    /// What comes next, as soon as it is there; `None` once the job's end was told. Whoever does not
    /// await it to the end does not ask again.
    ///
    /// # Errors
    /// If results cannot be read, or nobody writes any more.
    pub(crate) async fn next(&mut self) -> Result<Option<Collecting>, DeskError> {
        if self.is_over {
            return Ok(None);
        }
        if let Some(rest) = self.rest.take() {
            return Ok(Some(self.failures(vec![rest])));
        }
        loop {
            let read = self.read().await;
            if self.entry.is_given_up() {
                // What is left of it is being removed.
                return Err(DeskError::GivenUp(self.entry.id));
            }
            match read? {
                Told::Output(data) => {
                    failpoint::hit("result.emitted");
                    let part = JobPart { offset: self.at.output_bytes, data };
                    self.at.output_bytes += part.data.len() as u64;
                    return Ok(Some(Collecting::Output(part)));
                }
                Told::Failures(records) => return Ok(Some(self.failures(records))),
                Told::Stderr(pieces) => {
                    let first = self.at.stderr;
                    self.at.stderr += pieces.len() as u64;
                    return Ok(Some(Collecting::Stderr(StderrPart { first, pieces })));
                }
                // Nobody is told of the end of a job that may be gone with the next start.
                Told::End if !self.entry.is_accepted().await => {}
                Told::End => {
                    self.is_over = true;
                    return Ok(Some(Collecting::Ended(Box::new(self.entry.told()))));
                }
                Told::Nothing => {
                    tokio::select! {
                        changed = self.changes.changed() => {
                            changed.map_err(|_| DeskError::Stopping)?;
                        }
                        () = self.entry.given_up() => {}
                    }
                }
            }
        }
    }

    /// A part of failures; what is too long for it goes into the next one.
    fn failures(&mut self, mut records: Vec<Bytes>) -> Collecting {
        let first = self.at.failures;
        if let Some(last) = records.last_mut()
            && last.len() > PART_BYTES_MAX
        {
            self.rest = Some(last.split_off(PART_BYTES_MAX));
        }
        let is_unfinished = self.rest.is_some();
        self.at.failures += records.len() as u64 - u64::from(is_unfinished);
        Collecting::Failures(FailuresPart { first, records, is_unfinished })
    }

    /// What comes next, and begins to read what comes then.
    async fn read(&mut self) -> Result<Told, DeskError> {
        if self.reading.is_none() {
            self.begin_to_read();
        }
        let reading = self.reading.take().ok_or(DeskError::Stopping)?;
        let batch = match reading.await {
            Ok(read) => read,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(DeskError::Stopping),
        };
        let Batch { told, place } =
            batch.map_err(|source| DeskError::Unreadable { job: self.entry.id, source })?;
        self.place = Some(place);
        if !matches!(told, Told::Nothing | Told::End) {
            self.begin_to_read();
        }
        Ok(told)
    }

    /// Reads on a thread that may wait for the disk, for nothing else, and so ends by itself.
    fn begin_to_read(&mut self) {
        // What becomes durable from now on may not be found.
        self.changes.borrow_and_update();
        self.reading = self.place.take().map(|place| spawn_blocking(move || gather(place)));
    }
}

/// Takes what comes next, and what small neighbours of the same kind come after it.
fn gather(Place { mut cursor, ahead }: Place) -> io::Result<Batch> {
    let first = match ahead {
        Some(next) => next,
        None => cursor.next()?,
    };
    let (told, ahead) = match first {
        Next::Wait => (Told::Nothing, None),
        Next::End => (Told::End, None),
        Next::Output(data) if data.len() >= BATCH_BYTES_MAX => (Told::Output(data), None),
        Next::Output(data) => {
            let mut gathered = BytesMut::from(data);
            let ahead = loop {
                match cursor.next()? {
                    Next::Output(more) if gathered.len() + more.len() <= PART_BYTES_MAX => {
                        gathered.extend_from_slice(&more);
                    }
                    other => break other,
                }
            };
            (Told::Output(gathered.freeze()), Some(ahead))
        }
        Next::Stderr(lines) => {
            let mut bytes = lines.len();
            let mut pieces = vec![lines];
            let ahead = loop {
                match cursor.next()? {
                    Next::Stderr(more) if bytes + more.len() <= BATCH_BYTES_MAX => {
                        bytes += more.len();
                        pieces.push(more);
                    }
                    other => break Some(other),
                }
            };
            (Told::Stderr(pieces), ahead)
        }
        Next::Failure(record) => {
            let mut bytes = record.len();
            let mut records = vec![record];
            let ahead = loop {
                if bytes >= BATCH_BYTES_MAX || records.len() == BATCH_ENTRIES_MAX {
                    break None;
                }
                match cursor.next()? {
                    // A long one goes by itself.
                    Next::Failure(more) if bytes + more.len() <= PART_BYTES_MAX => {
                        bytes += more.len();
                        records.push(more);
                    }
                    other => break Some(other),
                }
            };
            (Told::Failures(records), ahead)
        }
    };
    // What there is not yet is asked for again.
    let ahead = ahead.filter(|next| *next != Next::Wait);
    Ok(Batch { told, place: Place { cursor, ahead } })
}
