//! The input of a job as the driver sees it: what has been read, how much, and chunks cut from it
//! when a slot asks for one. Nothing here waits.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use bytes::Bytes;
use widemap_common::framing::{Framing, push_length_prefixed};
use widemap_common::ids::ItemRange;
use widemap_common::limits::{ITEM_BYTES_MAX, READ_BLOCK_BYTES};

use super::block::{Block, BlockRule, Bounds, Splitter, fit};
use super::combine::Combiner;
use super::excluded::Excluded;
use super::prefix::{Prefix, Trail};
use super::reader::{Feed, Reader, Reading};
use super::source::{InputError, Source, open_file, widen_pipe};

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
    /// Opens the input and starts to read it. `notify` is called, from a thread, whenever
    /// [`Input::poll`] has something to take.
    ///
    /// # Errors
    /// [`InputError`] if it cannot be opened, or (for a list) an item does not fit the framing.
    pub fn open(
        source: Source,
        framing: Framing,
        rule: BlockRule,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, InputError> {
        Self::open_with(source, framing, rule, None, notify)
    }

    /// The same, following how much was read: [`Input::prefix`]. It must begin with what a former life has
    /// read, of which nothing is cut before it is known to be the same.
    ///
    /// # Errors
    /// As [`Input::open`]; that it has changed is told as what ended it, and at once.
    pub fn open_again(
        source: Source,
        framing: Framing,
        rule: BlockRule,
        before: Vec<Prefix>,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, InputError> {
        Self::open_with(source, framing, rule, Some(before), notify)
    }

    fn open_with(
        source: Source,
        framing: Framing,
        rule: BlockRule,
        before: Option<Vec<Prefix>>,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, InputError> {
        let mut input = Self {
            framing,
            rule,
            ready: VecDeque::new(),
            excluded: Excluded::default(),
            ready_items: 0,
            ready_bytes: 0,
            gathered: Gathered::default(),
            cut_items: 0,
            arrived_items: 0,
            arrived_bytes: 0,
            expected_bytes: None,
            end: None,
            prefix: None,
            is_checked: false,
            reader: None,
            file: None,
        };
        let trail = |name: &str| before.map(|before| Trail::new(name.to_owned(), before));
        let splitter = Splitter::new(framing, rule, ITEM_BYTES_MAX);
        let (file, name) = match source {
            Source::Made(recipe) => {
                let name = "the items".to_owned();
                let feed = Feed::Made(Some(Box::new(Combiner::open(recipe)?)));
                let trail = trail(&name);
                let reading = Reading { feed, name: name.clone(), is_regular: false, trail };
                let reader = Reader::start(reading, splitter, Box::new(notify));
                let failed = |source| InputError::Start { name, source };
                input.reader = Some(reader.map_err(failed)?);
                return Ok(input);
            }
            Source::Items(items) => {
                let mut blocks = split_list(&items, framing, splitter)?;
                if let Some(mut trail) = trail("the list of items") {
                    blocks = trail.pass(blocks)?;
                    blocks.append(&mut trail.end()?);
                    (input.prefix, input.is_checked) = (Some(trail.prefix()), true);
                }
                input.arrive(blocks);
                input.end = Some(Ok(()));
                notify();
                return Ok(input);
            }
            Source::File(path) => (open_file(&path)?, path.display().to_string()),
            Source::Stdin => {
                let name = "standard input".to_owned();
                match io::stdin().as_fd().try_clone_to_owned() {
                    Ok(fd) => (File::from(fd), name),
                    Err(source) => return Err(InputError::Start { name, source }),
                }
            }
        };
        let trail = trail(&name);
        input.start(file, &name, splitter, trail, Box::new(notify))?;
        Ok(input)
    }

    fn start(
        &mut self,
        mut file: File,
        name: &str,
        splitter: Splitter,
        trail: Option<Trail>,
        notify: super::reader::Notify,
    ) -> Result<(), InputError> {
        let failed = |source| InputError::Start { name: name.to_owned(), source };
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() {
            let base = file.stream_position().map_err(failed)?;
            self.expected_bytes = Some(metadata.len().saturating_sub(base));
            self.file = Some(InputFile {
                file: file.try_clone().map_err(failed)?,
                name: name.to_owned(),
                base,
                length: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
            });
        } else {
            widen_pipe(&file);
        }
        let (name, is_regular) = (name.to_owned(), metadata.is_file());
        let reading = Reading { feed: Feed::File(file), name, is_regular, trail };
        self.reader = Some(Reader::start(reading, splitter, notify).map_err(failed)?);
        Ok(())
    }

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
        let rest_bytes = match (&self.end, self.expected_bytes) {
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

fn split_list(
    items: &[Vec<u8>],
    framing: Framing,
    mut splitter: Splitter,
) -> Result<Vec<Block>, InputError> {
    let mut blocks = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let number = index as u64 + 1;
        if item.len() > ITEM_BYTES_MAX {
            let bytes_max = ITEM_BYTES_MAX;
            return Err(InputError::ItemTooLong { item: number, offset: 0, bytes_max });
        }
        let buffer = splitter.room();
        match framing {
            Framing::LengthPrefixed | Framing::Columns => push_length_prefixed(buffer, item),
            Framing::Separator(separator) if memchr::memchr(separator, item).is_some() => {
                return Err(InputError::SeparatorInItem { item: number, separator });
            }
            Framing::Separator(separator) => {
                buffer.extend_from_slice(item);
                buffer.push(separator);
            }
        }
        if buffer.len() >= READ_BLOCK_BYTES {
            blocks.extend(splitter.take_blocks()?);
        }
    }
    blocks.extend(splitter.finish()?);
    Ok(blocks)
}
