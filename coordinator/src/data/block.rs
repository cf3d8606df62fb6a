//! Where blocks of input end: pure code over a buffer, so that the same input gives the same blocks
//! however its bytes arrive.

use bytes::Bytes;
use widemap_common::framing::Framing;
use widemap_common::limits::{
    BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BLOCK_ITEMS_MAX, BLOCKS_PER_SIZE, CHUNK_ITEMS_MAX,
    FILTER_CHUNK_BYTES_MAX, FILTER_CHUNK_ITEMS_MAX, READ_BLOCK_BYTES,
};

use super::source::InputError;

/// What decides where a block of input ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockRule {
    /// For runtimes that work item by item: a block is whatever was read, up to its last whole
    /// item, and chunks of any size are cut from it.
    ItemWise,
    /// As `ItemWise`, read in larger pieces, for chunks that are worth the start of a process each.
    ItemWiseLarge,
    /// Each block is one chunk: the shortest run of whole items with at least so many bytes (or
    /// with [`BLOCK_ITEMS_MAX`] items, if that comes first).
    Fixed(u64),
    /// As `Fixed`, with sizes that start at [`BLOCK_BYTES_MIN`], so that all slots have work early,
    /// and double every [`BLOCKS_PER_SIZE`] blocks up to [`BLOCK_BYTES_MAX`].
    Schedule,
}

impl BlockRule {
    /// Whether each block is exactly one chunk.
    #[must_use]
    pub fn is_block_wise(self) -> bool {
        matches!(self, Self::Fixed(_) | Self::Schedule)
    }

    /// The most items that are cut at once.
    pub(super) fn chunk_items_max(self) -> u32 {
        match self {
            Self::ItemWise => CHUNK_ITEMS_MAX,
            Self::ItemWiseLarge => FILTER_CHUNK_ITEMS_MAX,
            Self::Fixed(_) | Self::Schedule => BLOCK_ITEMS_MAX,
        }
    }

    /// The bytes that block number `index` (from 0) reaches for.
    fn target_bytes(self, index: u64) -> usize {
        let bytes = match self {
            Self::ItemWise => READ_BLOCK_BYTES as u64,
            Self::ItemWiseLarge => FILTER_CHUNK_BYTES_MAX,
            Self::Fixed(bytes) => bytes.max(1),
            Self::Schedule => {
                let doublings = (index / BLOCKS_PER_SIZE).min(u64::from(u32::BITS)) as u32;
                (BLOCK_BYTES_MIN << doublings).min(BLOCK_BYTES_MAX)
            }
        };
        usize::try_from(bytes).unwrap_or(usize::MAX / 2)
    }
}

/// Whole items, as they lay in the input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Block {
    pub(super) bytes: Bytes,
    pub(super) items: u64,
    /// Where it begins, counted from the first byte that was read.
    pub(super) offset: u64,
}

/// How a run of items can be bounded when it is cut from a block.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) items_max: u64,
    pub(super) bytes_max: usize,
}

/// Bytes beyond a block's target that one read may bring: what is moved to the next buffer.
const SLACK_BYTES: usize = 64 * 1024;

/// Finds blocks in a buffer that the reader fills.
pub(super) struct Splitter {
    framing: Framing,
    rule: BlockRule,
    item_bytes_max: usize,
    buffer: Vec<u8>,
    /// Where the current block begins in the buffer.
    start: usize,
    /// Up to where the buffer was searched for the end of the current block.
    scanned: usize,
    /// Items of the current block that end before `scanned`.
    items: u64,
    /// Blocks found so far, and the items in them.
    blocks: u64,
    items_before: u64,
    /// Where the buffer begins in the input.
    offset: u64,
}

impl Splitter {
    pub(super) fn new(framing: Framing, rule: BlockRule, item_bytes_max: usize) -> Self {
        let mut splitter = Self {
            framing,
            rule,
            item_bytes_max,
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            items: 0,
            blocks: 0,
            items_before: 0,
            offset: 0,
        };
        splitter.buffer = splitter.new_buffer(0);
        splitter
    }

    /// The buffer, with room for a read.
    pub(super) fn room(&mut self) -> &mut Vec<u8> {
        if self.is_full() {
            // One item, or one block, is longer than the buffer: doubling keeps copying linear.
            self.buffer.reserve(self.buffer.len().max(SLACK_BYTES));
        }
        &mut self.buffer
    }

    /// Whether another read needs a larger buffer.
    pub(super) fn is_full(&self) -> bool {
        self.buffer.len() == self.buffer.capacity()
    }

    /// Takes every block that the buffer holds whole. Item-wise, that is one: all whole items.
    pub(super) fn take_blocks(&mut self) -> Result<Vec<Block>, InputError> {
        let mut ends = Vec::new();
        while let Some(end) = self.find_end()? {
            let items = std::mem::take(&mut self.items);
            ends.push((end, items));
            self.start = end;
            self.scanned = end;
            self.blocks += 1;
            self.items_before += items;
        }
        if self.buffer.len() - self.start > self.block_bytes_sane() {
            return Err(self.too_long());
        }
        Ok(self.split_off(&ends))
    }

    /// Takes what is left when the input has ended; its last item may lack its end.
    pub(super) fn finish(&mut self) -> Result<Vec<Block>, InputError> {
        let mut blocks = self.take_blocks()?;
        if self.framing.separator().is_none() && self.scanned < self.buffer.len() {
            return Err(InputError::CutShort { item: self.items_before + self.items + 1 });
        }
        if !self.buffer.is_empty() {
            let items = self.framing.count(&self.buffer);
            self.items_before += items;
            blocks.extend(self.split_off(&[(self.buffer.len(), items)]));
        }
        Ok(blocks)
    }

    /// Takes the whole items that are left when the input broke off: what is behind them is no item.
    pub(super) fn finish_broken(&mut self) -> Vec<Block> {
        let whole = match self.framing {
            Framing::Separator(separator) => {
                memchr::memrchr(separator, &self.buffer).map_or(0, |at| at + 1)
            }
            Framing::LengthPrefixed | Framing::Columns => {
                self.framing.offset_of(&self.buffer, u64::MAX)
            }
        };
        self.buffer.truncate(whole);
        let items = self.framing.count(&self.buffer);
        if items == 0 { Vec::new() } else { self.split_off(&[(whole, items)]) }
    }

    /// Whether each block is exactly one chunk.
    pub(super) fn is_block_wise(&self) -> bool {
        self.rule.is_block_wise()
    }

    /// The end of the current block, if the buffer holds it; `items` is then the block's.
    fn find_end(&mut self) -> Result<Option<usize>, InputError> {
        match self.framing {
            Framing::Separator(separator) if self.rule.is_block_wise() => {
                Ok(self.find_target_end(separator))
            }
            Framing::Separator(separator) => Ok(self.find_last_end(separator)),
            Framing::LengthPrefixed | Framing::Columns => self.walk_to_end(),
        }
    }

    /// The last end in the buffer.
    fn find_last_end(&mut self, separator: u8) -> Option<usize> {
        let found = memchr::memrchr(separator, &self.buffer[self.scanned..]);
        let Some(at) = found else {
            self.scanned = self.buffer.len();
            return None;
        };
        let end = self.scanned + at + 1;
        self.items = memchr::memchr_iter(separator, &self.buffer[self.start..end]).count() as u64;
        Some(end)
    }

    /// The first end that reaches the target, or the one that completes the most items of a chunk.
    fn find_target_end(&mut self, separator: u8) -> Option<usize> {
        let target = self.start.saturating_add(self.rule.target_bytes(self.blocks) - 1);
        let below = target.min(self.buffer.len());
        if self.scanned < below {
            let window = &self.buffer[self.scanned..below];
            let ends = memchr::memchr_iter(separator, window).count() as u64;
            let left = u64::from(BLOCK_ITEMS_MAX) - self.items;
            if ends >= left {
                self.items += left;
                return Some(self.scanned + self.framing.offset_of(window, left));
            }
            self.items += ends;
            self.scanned = below;
        }
        match memchr::memchr(separator, &self.buffer[self.scanned..]) {
            Some(at) => {
                self.items += 1;
                Some(self.scanned + at + 1)
            }
            None => {
                self.scanned = self.buffer.len();
                None
            }
        }
    }

    /// As above, for items with their lengths before them.
    fn walk_to_end(&mut self) -> Result<Option<usize>, InputError> {
        let target = self.start.saturating_add(self.rule.target_bytes(self.blocks));
        let items_max = match self.rule {
            BlockRule::ItemWise | BlockRule::ItemWiseLarge => u64::MAX,
            BlockRule::Fixed(_) | BlockRule::Schedule => u64::from(BLOCK_ITEMS_MAX),
        };
        while let Some(prefix) = self.buffer[self.scanned..].first_chunk() {
            let length = u32::from_le_bytes(*prefix) as usize;
            if length > self.item_bytes_max {
                return Err(self.too_long());
            }
            let end = self.scanned + prefix.len() + length;
            if end > self.buffer.len() {
                break;
            }
            self.scanned = end;
            self.items += 1;
            if self.rule.is_block_wise() && (end >= target || self.items == items_max) {
                return Ok(Some(end));
            }
        }
        let some = !self.rule.is_block_wise() && self.items > 0;
        Ok(some.then_some(self.scanned))
    }

    /// Cuts the found blocks off; only the partial tail is copied, to a buffer of its own.
    fn split_off(&mut self, ends: &[(usize, u64)]) -> Vec<Block> {
        let Some(&(split, _)) = ends.last() else { return Vec::new() };
        let bytes = if split < self.buffer.capacity() / 4 {
            // What a slow pipe trickles in must not hold a large buffer each.
            let bytes = Bytes::copy_from_slice(&self.buffer[..split]);
            self.buffer.drain(..split);
            bytes
        } else {
            let mut next = self.new_buffer(self.buffer.len() - split);
            next.extend_from_slice(&self.buffer[split..]);
            self.buffer.truncate(split);
            Bytes::from(std::mem::replace(&mut self.buffer, next))
        };
        let mut start = 0;
        let block = |&(end, items): &(usize, u64)| {
            let block =
                Block { bytes: bytes.slice(start..end), items, offset: self.offset + start as u64 };
            start = end;
            block
        };
        let blocks = ends.iter().map(block).collect();
        self.offset += split as u64;
        self.start = 0;
        self.scanned -= split.min(self.scanned);
        blocks
    }

    fn new_buffer(&self, carried: usize) -> Vec<u8> {
        let target = self.rule.target_bytes(self.blocks).min(BLOCK_BYTES_MAX as usize);
        let slack = if self.rule.is_block_wise() { SLACK_BYTES } else { 0 };
        Vec::with_capacity((target + slack).max(carried + SLACK_BYTES))
    }

    /// What the current block may hold before its last item is surely too long.
    fn block_bytes_sane(&self) -> usize {
        let whole_items =
            if self.rule.is_block_wise() { self.rule.target_bytes(self.blocks) } else { 0 };
        whole_items.saturating_add(self.item_bytes_max)
    }

    fn too_long(&self) -> InputError {
        InputError::ItemTooLong {
            item: self.items_before + self.items + 1,
            offset: self.offset + self.start as u64,
            bytes_max: self.item_bytes_max,
        }
    }
}

/// How many items of `bytes` fit the bounds, and their length; at least one item. `items` is how
/// many there are.
pub(super) fn fit(framing: Framing, bytes: &[u8], items: u64, bounds: Bounds) -> (u64, usize) {
    if items <= bounds.items_max && bytes.len() <= bounds.bytes_max {
        return (items, bytes.len());
    }
    match framing {
        Framing::Separator(separator) => {
            let window = &bytes[..bytes.len().min(bounds.bytes_max)];
            match count_ends(separator, window, bounds.items_max) {
                (0, _) => {
                    let end = memchr::memchr(separator, &bytes[window.len()..]);
                    (1, end.map_or(bytes.len(), |at| window.len() + at + 1))
                }
                fitting => fitting,
            }
        }
        Framing::LengthPrefixed | Framing::Columns => {
            let (mut taken, mut length) = (0, 0);
            for item in framing.items(bytes) {
                let end = length + size_of::<u32>() + item.len();
                if taken > 0 && (taken == bounds.items_max || end > bounds.bytes_max) {
                    break;
                }
                (taken, length) = (taken + 1, end);
            }
            (taken, length)
        }
    }
}

/// The ends in `bytes`, `items_max` at the most, and the offset behind the last of them. Counted in
/// windows, so that many short items cost what their bytes cost.
fn count_ends(separator: u8, bytes: &[u8], items_max: u64) -> (u64, usize) {
    const WINDOW: usize = 4096;
    const FEW: u64 = 64;
    let (mut items, mut at) = (0, 0);
    while items_max - items > FEW && at < bytes.len() {
        let window = &bytes[at..bytes.len().min(at + WINDOW)];
        let ends = memchr::memchr_iter(separator, window).count() as u64;
        if items + ends > items_max {
            break;
        }
        items += ends;
        at += window.len();
    }
    let mut end = None;
    let left = usize::try_from(items_max - items).unwrap_or(usize::MAX);
    for found in memchr::memchr_iter(separator, &bytes[at..]).take(left) {
        items += 1;
        end = Some(at + found + 1);
    }
    let end = end.or_else(|| memchr::memrchr(separator, &bytes[..at]).map(|found| found + 1));
    (items, end.unwrap_or(0))
}
