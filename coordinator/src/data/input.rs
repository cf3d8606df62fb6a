//! The input of a job as the driver sees it: what has been read, how much, and chunks cut from it
//! when a slot asks for one. Nothing here waits.

mod opening;

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use widemap_common::framing::Framing;
use widemap_common::ids::ItemRange;

use super::arriving::Arriving;
use super::block::{Block, BlockRule, Bounds, fit};
use super::excluded::Excluded;
use super::prefix::Prefix;
use super::reader::Reader;
use super::source::InputError;

/// A contiguous run of items, the unit that is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Which items.
    pub range: ItemRange,
    /// Their bytes with their framing, shared with the read buffer.
    pub bytes: Bytes,
    /// Where they begin, counted from the first byte that was read.
    pub offset: u64,
}

/// What has been read and is not cut, and what is known of the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InputLevel {
    /// Items that can be cut now; blocks, where each block is a chunk.
    pub ready_items: u64,
    /// Bytes that can be cut now.
    pub ready_bytes: u64,
    /// Bytes that come after those, if it is known; `Some(0)` only once the input has ended.
    pub rest_bytes: Option<u64>,
}

/// A regular file that is being read, from which payload can be read again.
#[derive(Debug)]
pub struct InputFile {
    pub(super) file: File,
    pub(super) name: String,
    /// Where reading began in it: standard input may have been read before us.
    pub(super) base: u64,
    /// What it must still be when it is read again; not known of one that is still being written.
    pub(super) stamp: Option<Stamp>,
}

/// What tells a regular file from a changed one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    pub(super) length: u64,
    pub(super) modified: (i64, i64),
}

/// The input of a job.
pub struct Input {
    framing: Framing,
    rule: BlockRule,
    ready: VecDeque<Ready>,
    /// Items that are not cut, since a former epoch has: those that were read already are not here.
    excluded: Excluded,
    ready_items: u64,
    ready_bytes: u64,
    gathered: Gathered,
    cut_items: u64,
    /// Items that have arrived, those that are excluded too.
    arrived_items: u64,
    /// Bytes that have arrived from the reader, and how many are expected of a regular file.
    arrived_bytes: u64,
    expected_bytes: Option<u64>,
    end: Option<Result<(), InputError>>,
    /// How much was read, if that is followed, and whether it is known to be what it was.
    prefix: Option<Prefix>,
    is_checked: bool,
    reader: Option<Reader>,
    file: Option<InputFile>,
    /// How far the file is, if it is still being written.
    arriving: Option<Arc<Arriving>>,
}

/// A block, and which items it has.
struct Ready {
    first: u64,
    block: Block,
    /// Whether the reader has room for another block once this one is cut up: the last part has.
    is_last: bool,
}

/// The beginning of a chunk of an exact number of items, joined from several blocks.
#[derive(Default)]
struct Gathered {
    bytes: Vec<u8>,
    first: u64,
    items: u64,
    offset: u64,
}

impl Input {
    /// Takes what has arrived. True if the level may have changed.
    pub fn poll(&mut self) -> bool {
        let Some(reader) = &mut self.reader else { return false };
        let arrived = reader.take();
        let changed = !arrived.blocks.is_empty() || arrived.end.is_some();
        if arrived.end.is_some() {
            self.end = arrived.end;
        }
        (self.prefix, self.is_checked) = (arrived.prefix, arrived.is_checked);
        self.arrive(arrived.blocks);
        changed
    }

    /// What can be cut now, and what is known of the rest.
    #[must_use]
    pub fn level(&self) -> InputLevel {
        let expected_bytes = match &self.arriving {
            Some(arriving) => arriving.total(),
            None => self.expected_bytes,
        };
        let rest_bytes = match (&self.end, expected_bytes) {
            (Some(_), _) => Some(0),
            // A file that grew, or has no length to tell, has not ended before its end was read.
            (None, Some(expected)) => Some(expected.saturating_sub(self.arrived_bytes).max(1)),
            (None, None) => None,
        };
        let ready_items =
            if self.rule.is_block_wise() { self.ready.len() as u64 } else { self.ready_items };
        InputLevel { ready_items, ready_bytes: self.ready_bytes, rest_bytes }
    }

    /// Cuts a chunk of at most `items_max` items and `bytes_max` bytes from what has arrived; one
    /// longer item goes alone. Block-wise, it is the next block, whatever its size.
    pub fn cut(&mut self, items_max: u32, bytes_max: u64) -> Option<Chunk> {
        if self.gathered.items > 0 {
            return Some(self.take_gathered());
        }
        let Ready { block, .. } = self.ready.front()?;
        let (items, length) = if self.rule.is_block_wise() {
            (block.items, block.bytes.len())
        } else {
            let bounds = Bounds {
                items_max: u64::from(items_max.clamp(1, self.rule.chunk_items_max())),
                bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX),
            };
            fit(self.framing, &block.bytes, block.items, bounds)
        };
        Some(self.take_chunk(items, length))
    }

    /// Cuts a chunk of exactly `items` items, joined by a copy where they lie in several blocks;
    /// fewer only at the end of the input, or before items that are excluded. `None` until that many have arrived.
    pub fn cut_exact(&mut self, items: u32) -> Option<Chunk> {
        let wanted = u64::from(items.clamp(1, self.rule.chunk_items_max()));
        loop {
            let missing = wanted - self.gathered.items;
            let Some(Ready { first, block, .. }) = self.ready.front() else { break };
            if self.gathered.items > 0 && *first != self.gathered.first + self.gathered.items {
                return Some(self.take_gathered());
            }
            if self.gathered.items == 0 && block.items >= wanted {
                let bounds = Bounds { items_max: wanted, bytes_max: usize::MAX };
                let (items, length) = fit(self.framing, &block.bytes, block.items, bounds);
                return Some(self.take_chunk(items, length));
            }
            // What is gathered no longer holds up the reader, however many blocks it takes.
            let bounds = Bounds { items_max: missing, bytes_max: usize::MAX };
            let (items, length) = fit(self.framing, &block.bytes, block.items, bounds);
            let (bytes, first, offset) = self.take(items, length);
            if self.gathered.items == 0 {
                (self.gathered.first, self.gathered.offset) = (first, offset);
            }
            self.gathered.bytes.extend_from_slice(&bytes);
            self.gathered.items += items;
            self.ready_items += items;
            self.ready_bytes += bytes.len() as u64;
            if self.gathered.items == wanted {
                break;
            }
        }
        let complete = self.gathered.items == wanted
            || (self.gathered.items > 0 && self.end.is_some() && self.ready.is_empty());
        complete.then(|| self.take_gathered())
    }

    /// How much was read so far, if that is followed: all that was cut is among it.
    #[must_use]
    pub fn prefix(&self) -> Option<Prefix> {
        self.prefix
    }

    /// Whether all that a former life has read is known to be the same.
    #[must_use]
    pub fn is_checked(&self) -> bool {
        self.is_checked
    }

    /// That the input has changed, told once, and at once.
    pub fn take_change(&mut self) -> Option<InputError> {
        match &self.end {
            Some(Err(InputError::Changed { .. })) => self.end.replace(Ok(()))?.err(),
            _ => None,
        }
    }

    /// Why the input could not be read to its end: told once every item before is cut.
    #[must_use]
    pub fn error(&self) -> Option<&InputError> {
        let nothing_before = self.ready.is_empty() && self.gathered.items == 0;
        self.end.as_ref().filter(|_| nothing_before)?.as_ref().err()
    }

    /// The same, given away.
    pub fn take_error(&mut self) -> Option<InputError> {
        self.error()?;
        self.end.replace(Ok(()))?.err()
    }

    /// Whether everything was read and cut, or an error ended it.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.end.is_some() && self.ready.is_empty() && self.gathered.items == 0
    }

    /// Items that were cut so far, those that are excluded and were passed too.
    #[must_use]
    pub fn cut_items(&self) -> u64 {
        self.cut_items
    }

    /// The regular file that is read, if it is one: for [`super::HeldInput::with_file`]. Told once.
    pub fn take_file(&mut self) -> Option<InputFile> {
        self.file.take()
    }

    /// Leaves items out that a former epoch has cut. False, and nothing is done, if any of them was cut
    /// in this one.
    pub fn exclude(&mut self, range: ItemRange) -> bool {
        let gathered =
            (self.gathered.items > 0).then_some(self.gathered.first + self.gathered.items);
        let cut_end = self.ready.front().map_or(self.arrived_items, |ready| ready.first);
        let is_cut = range.first < gathered.unwrap_or(0).max(cut_end.min(self.arrived_items));
        if is_cut || self.excluded.overlaps(range) {
            return false;
        }
        self.excluded.add(range);
        if range.first < self.arrived_items {
            // What is ready comes once more, without them.
            let ready = std::mem::take(&mut self.ready);
            (self.ready_items, self.ready_bytes) =
                (self.gathered.items, self.gathered.bytes.len() as u64);
            for Ready { first, block, is_last } in ready {
                self.enter(first, block, is_last);
            }
        }
        true
    }

    fn arrive(&mut self, blocks: impl IntoIterator<Item = Block>) {
        for block in blocks {
            self.arrived_bytes += block.bytes.len() as u64;
            let first = self.arrived_items;
            self.arrived_items += block.items;
            self.enter(first, block, true);
        }
    }

    /// Makes a block ready but for what is excluded of it.
    fn enter(&mut self, mut first: u64, mut block: Block, is_last: bool) {
        let ready_before = self.ready.len();
        while block.items > 0 {
            let (kept, left_out) = self.excluded.within(first, block.items);
            if kept > 0 {
                let part = self.split(&mut block, kept);
                self.ready_items += part.items;
                self.ready_bytes += part.bytes.len() as u64;
                self.ready.push_back(Ready { first, block: part, is_last: false });
            }
            self.split(&mut block, left_out);
            self.cut_items += left_out;
            first += kept + left_out;
        }
        match self.ready.len() > ready_before {
            true => self.ready.back_mut().expect("one was just added").is_last = is_last,
            false if is_last => self.block_done(),
            false => {}
        }
    }

    fn block_done(&self) {
        if let Some(reader) = &self.reader {
            reader.block_done();
        }
    }

    /// Takes the first items off a block.
    fn split(&self, block: &mut Block, items: u64) -> Block {
        let offset = block.offset;
        let length = match items == block.items {
            true => block.bytes.len(),
            false => self.framing.offset_of(&block.bytes, items),
        };
        block.items -= items;
        block.offset += length as u64;
        Block { bytes: block.bytes.split_to(length), items, offset }
    }

    /// Takes so many items, of so many bytes, from the first block; with which item they begin, and
    /// where.
    fn take(&mut self, items: u64, length: usize) -> (Bytes, u64, u64) {
        let ready = self.ready.front_mut().expect("the caller looked at the first block");
        let (first, block) = (ready.first, &mut ready.block);
        let offset = block.offset;
        self.ready_items -= items;
        self.ready_bytes -= length as u64;
        if length < block.bytes.len() {
            ready.first += items;
            block.items -= items;
            block.offset += length as u64;
            return (block.bytes.split_to(length), first, offset);
        }
        let ready = self.ready.pop_front().expect("the caller looked at the first block");
        if ready.is_last {
            self.block_done();
        }
        (ready.block.bytes, first, offset)
    }

    fn take_chunk(&mut self, items: u64, length: usize) -> Chunk {
        let (bytes, first, offset) = self.take(items, length);
        self.chunk(bytes, first, items, offset)
    }

    fn take_gathered(&mut self) -> Chunk {
        let Gathered { bytes, first, items, offset } = std::mem::take(&mut self.gathered);
        self.ready_items -= items;
        self.ready_bytes -= bytes.len() as u64;
        self.chunk(Bytes::from(bytes), first, items, offset)
    }

    fn chunk(&mut self, bytes: Bytes, first: u64, items: u64, offset: u64) -> Chunk {
        let count = u32::try_from(items).expect("a chunk has at most BLOCK_ITEMS_MAX items");
        self.cut_items += items;
        Chunk { range: ItemRange::new(first, count), bytes, offset }
    }
}
