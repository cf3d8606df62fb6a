//! Input that was cut and is not final: held, so that it can be sent again. What a regular file
//! still has is dropped when memory is short, and read again where it is needed.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use bytes::Bytes;
use widemap_common::framing::Framing;
use widemap_common::ids::ItemRange;
use widemap_common::limits::INFLIGHT_BYTES_MAX;

use super::input::{Chunk, InputFile, Stamp};

/// Why input that was dropped from memory could not be had again.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    /// The file is not what it was when it was read first.
    #[error(
        "{name} has changed while it is being mapped: items {first} to {last} can not be read \
         again as they were"
    )]
    Changed {
        /// The file.
        name: String,
        /// The first item, from 1.
        first: u64,
        /// The last item.
        last: u64,
    },
    /// The read failed.
    #[error("cannot read {name} again at byte {offset}: {source}")]
    Read {
        /// The file.
        name: String,
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
}

/// What was cut and is not final, by its first item.
pub struct HeldInput {
    framing: Framing,
    chunks: BTreeMap<u64, Held>,
    bytes: u64,
    keep_bytes_max: u64,
    file: Option<InputFile>,
}

struct Held {
    range: ItemRange,
    offset: u64,
    length: usize,
    /// `None` while only the file has it.
    bytes: Option<Bytes>,
    /// Whether all of it was handed to a session, so that it can be dropped.
    sent: bool,
    /// Items that are not final.
    items_left: u32,
}

impl HeldInput {
    /// Holds everything in memory.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        let keep_bytes_max = INFLIGHT_BYTES_MAX / 2;
        Self { framing, chunks: BTreeMap::new(), bytes: 0, keep_bytes_max, file: None }
    }

    /// Drops what the file still has, once more is held than half of [`INFLIGHT_BYTES_MAX`].
    #[must_use]
    pub fn with_file(framing: Framing, file: InputFile) -> Self {
        Self { file: Some(file), ..Self::new(framing) }
    }

    /// The same with another bound than half of [`INFLIGHT_BYTES_MAX`].
    #[must_use]
    pub fn keeping(self, keep_bytes_max: u64) -> Self {
        Self { keep_bytes_max, ..self }
    }

    /// Holds a chunk that was just cut.
    pub fn hold(&mut self, chunk: Chunk) {
        let Chunk { range, bytes, offset } = chunk;
        self.bytes += bytes.len() as u64;
        let held = Held {
            range,
            offset,
            length: bytes.len(),
            bytes: Some(bytes),
            sent: false,
            items_left: range.items,
        };
        let before = self.chunks.insert(range.first, held);
        assert!(before.is_none(), "an item is cut once");
    }

    /// The bytes of items that lie in one held chunk, with their framing.
    ///
    /// # Errors
    /// [`HeldError`] if they were dropped from memory and the file does not have them any more.
    pub fn slice(&mut self, range: ItemRange) -> Result<Bytes, HeldError> {
        let framing = self.framing;
        let held = self.find_loaded(range)?;
        let bytes = held.bytes.as_ref().expect("find_loaded has loaded it");
        if held.range == range {
            return Ok(bytes.clone());
        }
        let skip = range.first - held.range.first;
        Ok(framing.slice(bytes, skip, u64::from(range.items)))
    }

    /// Where the bytes of [`HeldInput::slice`] begin, counted from the first byte that was read.
    ///
    /// # Errors
    /// As [`HeldInput::slice`].
    pub fn offset(&mut self, range: ItemRange) -> Result<u64, HeldError> {
        let framing = self.framing;
        let held = self.find_loaded(range)?;
        let bytes = held.bytes.as_ref().expect("find_loaded has loaded it");
        let skip = range.first - held.range.first;
        Ok(held.offset + framing.offset_of(bytes, skip) as u64)
    }

    /// Whether items that a former epoch has cut are still in the file, and not held already.
    #[must_use]
    pub fn can_adopt(&self, range: ItemRange, offset: u64, length: u64) -> bool {
        let neighbour = self.chunks.range(..range.end()).next_back();
        let overlaps = neighbour.is_some_and(|(_, held)| held.range.end() > range.first);
        let end = offset.checked_add(length);
        let is_there = self.file.as_ref().is_some_and(|file| {
            let end = end.and_then(|end| file.base.checked_add(end));
            end.zip(file.stamp).is_some_and(|(end, stamp)| end <= stamp.length)
        });
        is_there && !overlaps && usize::try_from(length).is_ok()
    }

    /// Holds items that a former epoch has cut; whether it could.
    pub fn adopt(&mut self, range: ItemRange, offset: u64, length: u64) -> bool {
        if !self.can_adopt(range, offset, length) {
            return false;
        }
        let length = usize::try_from(length).expect("it was just looked at");
        let (bytes, sent, items_left) = (None, true, range.items);
        self.chunks.insert(range.first, Held { range, offset, length, bytes, sent, items_left });
        true
    }

    /// Whether an item is held.
    #[must_use]
    pub fn holds(&self, item: u64) -> bool {
        let before = self.chunks.range(..=item).next_back();
        before.is_some_and(|(_, held)| held.range.contains(item))
    }

    /// One item without its framing.
    ///
    /// # Errors
    /// As [`HeldInput::slice`].
    pub fn item(&mut self, item: u64) -> Result<Bytes, HeldError> {
        let framed = self.slice(ItemRange::new(item, 1))?;
        let length = self.framing.items(&framed).next().map_or(0, <[u8]>::len);
        let start = match self.framing {
            Framing::Separator(_) => 0,
            Framing::LengthPrefixed | Framing::Columns => framed.len() - length,
        };
        Ok(framed.slice(start..start + length))
    }

    /// All of the chunk with these items was handed to a session: from now on it may be dropped.
    pub fn sent(&mut self, range: ItemRange) {
        if self.file.is_none() {
            return;
        }
        if let Some(held) = self.find(range) {
            held.sent = true;
        }
        if self.bytes > self.keep_bytes_max {
            self.drop_what_the_file_has();
        }
    }

    /// These items, all of one chunk, are final. The chunk goes with its last item.
    pub fn release(&mut self, range: ItemRange) {
        let held = self.find(range).expect("only held items become final, and once");
        let first = held.range.first;
        assert!(held.items_left >= range.items, "an item of {} is final twice", held.range);
        held.items_left -= range.items;
        if held.items_left == 0 {
            let held = self.chunks.remove(&first).expect("it was just found");
            self.bytes -= held.in_memory();
        }
    }

    /// Bytes that are held in memory: what gates further cutting, together with
    /// [`INFLIGHT_BYTES_MAX`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    fn find(&mut self, range: ItemRange) -> Option<&mut Held> {
        let (_, held) = self.chunks.range_mut(..=range.first).next_back()?;
        held.range.covers(range).then_some(held)
    }

    fn find_loaded(&mut self, range: ItemRange) -> Result<&Held, HeldError> {
        let (_, held) = self
            .chunks
            .range_mut(..=range.first)
            .next_back()
            .filter(|(_, held)| held.range.covers(range))
            .expect("the items that are asked for are held, in one chunk");
        if held.bytes.is_none() {
            let file = self.file.as_ref().expect("only what a file has is dropped");
            held.bytes = Some(file.read_again(held)?);
            // It is wanted now, and perhaps soon again: it may go once it has been sent again.
            held.sent = false;
            self.bytes += held.in_memory();
        }
        Ok(held)
    }

    /// Drops down to half of what may be kept, so that the search is paid once for many chunks.
    fn drop_what_the_file_has(&mut self) {
        for held in self.chunks.values_mut().rev().filter(|held| held.sent) {
            if self.bytes <= self.keep_bytes_max / 2 {
                break;
            }
            self.bytes -= held.in_memory();
            held.bytes = None;
        }
    }
}

impl Held {
    fn in_memory(&self) -> u64 {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)
    }
}

impl InputFile {
    /// Reads a dropped chunk again. The file is held open, so that one renamed over it is harmless;
    /// one that was written to in place is not what was cut.
    fn read_again(&self, held: &Held) -> Result<Bytes, HeldError> {
        let offset = self.base + held.offset;
        let failed = |source| HeldError::Read { name: self.name.clone(), offset, source };
        let mut bytes = vec![0; held.length];
        let read = self.file.read_exact_at(&mut bytes, offset);
        // Looked at after the read, so that no change before it is missed.
        let metadata = self.file.metadata().map_err(failed)?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let found = Stamp { length: metadata.len(), modified };
        if self.stamp.is_some_and(|stamp| stamp != found) {
            let (first, last) = (held.range.first + 1, held.range.end());
            return Err(HeldError::Changed { name: self.name.clone(), first, last });
        }
        read.map_err(failed)?;
        Ok(bytes.into())
    }
}
