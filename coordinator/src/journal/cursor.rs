//! Reads the results of a job in their order, from any place on.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::shelf::{Final, Shelf};

/// What comes next of the results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Output, at most a part of it.
    Output(Bytes),
    /// A failure, as it was described, and where in raw output its item would be.
    Failure(Bytes, u64),
    /// What items have written on their standard error: some lines.
    Stderr(Bytes),
    /// Nothing yet.
    Wait,
    /// Nothing more.
    End,
}

/// See the file's head. It waits for a disk, and for nothing else.
pub(crate) struct Cursor {
    shelf: Arc<Shelf>,
    /// The item, or the place in the log, that comes next.
    item: u64,
    place: usize,
    /// What is being read, and how far: whether its failure was told, and bytes of its output.
    entry: Option<Final>,
    told: bool,
    within: u64,
    /// Bytes of raw output before it.
    raw_bytes: u64,
    /// What is to be passed over.
    skip_bytes: u64,
    skip_failures: u64,
    /// Pieces of standard error that were told.
    stderr: usize,
}

impl Cursor {
    pub(super) fn new(shelf: Arc<Shelf>, skip_bytes: u64, skip_failures: u64, stderr: u64) -> Self {
        let stderr = usize::try_from(stderr).unwrap_or(usize::MAX);
        let (item, place, entry, told, within, raw_bytes) = (0, 0, None, false, 0, 0);
        Self {
            shelf,
            item,
            place,
            entry,
            told,
            within,
            raw_bytes,
            skip_bytes,
            skip_failures,
            stderr,
        }
    }

    /// What comes next.
    ///
    /// # Errors
    /// If it cannot be read, or is not what was written: the error names the file and the place.
    pub(crate) fn next(&mut self) -> io::Result<Next> {
        loop {
            let Some(entry) = &self.entry else {
                // Asked before it is looked: what comes between counts as there.
                let is_over = self.shelf.is_over();
                if let Some((at, length)) = self.shelf.stderr_at(self.stderr) {
                    self.stderr += 1;
                    return Ok(Next::Stderr(self.shelf.told_at(at, length)?));
                }
                match self.find(is_over) {
                    Some(next) => return Ok(next),
                    None => continue,
                }
            };
            if let Some((at, length)) = entry.failure.filter(|_| !self.told) {
                self.told = true;
                if self.skip_failures > 0 {
                    self.skip_failures -= 1;
                    continue;
                }
                return Ok(Next::Failure(self.shelf.told_at(at, length)?, self.raw_bytes));
            }
            let left = entry.extent.length - self.within;
            if left == 0 {
                self.raw_bytes += entry.extent.raw_bytes;
                (self.entry, self.told, self.within) = (None, false, 0);
                continue;
            }
            let skipped = self.skip_bytes.min(left);
            if skipped > 0 {
                self.skip_bytes -= skipped;
                self.within += skipped;
                continue;
            }
            let bytes = self.shelf.read(&entry.extent, self.within)?;
            self.within += bytes.len() as u64;
            return Ok(Next::Output(bytes.into()));
        }
    }

    /// Takes the next entry; what to say if there is none.
    fn find(&mut self, is_over: bool) -> Option<Next> {
        let Some((first, entry)) = self.shelf.at(self.item, self.place) else {
            // What lies behind items that were not run is no part of the output.
            return Some(if is_over { Next::End } else { Next::Wait });
        };
        self.item = first + u64::from(entry.items);
        self.place += 1;
        self.entry = Some(entry);
        None
    }
}
