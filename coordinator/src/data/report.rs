//! What an attempt told at its end, beside its output: where each item's output lies, and what it
//! takes to render results and failures. Lists are walked only where they are needed.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use widemap_common::failure::{FailureKind, Fault};
use widemap_common::framing::Framing;
use widemap_common::ids::ItemRange;
use widemap_common::varint;
use widemap_proto::session::{Done, ItemStderr};

/// The end of one attempt, as the driver keeps it until the scheduler has released the attempt.
#[derive(Debug)]
pub struct Report {
    range: ItemRange,
    worker: Arc<str>,
    output_bytes: u64,
    busy_us: u64,
    faults: Vec<Fault>,
    stderr: Vec<ItemStderr>,
    item_lengths: Bytes,
    item_micros: Bytes,
    item_exits: Bytes,
    /// When it arrived: Unix time in milliseconds, if that is wanted.
    ended_ms: Option<u64>,
    /// The whole output, where each good item has exactly one framed result in it.
    framed: Option<Framed>,
    at: Cursor,
}

/// An output with one framed result for each good item, if it keeps what its shape promises.
#[derive(Debug)]
struct Framed {
    output: Bytes,
    framing: Framing,
    /// Whether there are as many results as good items: looked at when it is needed. A result with
    /// the separator within it would shift its neighbours.
    is_true: Option<bool>,
}

/// How far the lists were walked: verdicts come in the order of the items.
#[derive(Debug, Clone)]
struct Cursor {
    index: u32,
    output_at: u64,
    fault: usize,
    lengths: Bytes,
    micros: Bytes,
    exits: Bytes,
}

/// Accepted results, with all that JSON says of them.
#[derive(Debug)]
pub struct Results {
    /// Which items; a whole block, block-wise.
    pub range: ItemRange,
    /// The items, with their framing.
    pub input: Bytes,
    /// Where they ran.
    pub worker: Arc<str>,
    /// How often they were run.
    pub runs: u32,
    /// Packed: the bytes of output of each item of `range`. Empty if not known.
    pub item_lengths: Bytes,
    /// Packed: the microseconds of each item of `range`. Empty if not known.
    pub item_micros: Bytes,
    /// Packed: the exit status of each item of `range`. Empty if all are 0, or there are none.
    pub item_exits: Bytes,
    /// How long the attempt ran.
    pub busy_us: u64,
    /// When the last item of `range` ended, about: Unix time in microseconds, if that is wanted.
    pub ended_us: Option<u64>,
    /// Standard error, by index into `range`.
    pub stderr: Vec<ItemStderr>,
}

/// An item, or a block, that failed for good.
#[derive(Debug)]
pub struct FailureRecord {
    /// Which.
    pub range: ItemRange,
    /// The item without its framing; empty for a block.
    pub item: Bytes,
    /// What ended it.
    pub kind: FailureKind,
    /// What happened, for a person.
    pub message: String,
    /// The exit status of its process, if it exited.
    pub exit: Option<i32>,
    /// The signal that ended its process, if one did.
    pub signal: Option<i32>,
    /// The last of its standard error.
    pub stderr: Bytes,
    /// Where it ran last.
    pub worker: Option<Arc<str>>,
    /// How often it was run.
    pub runs: u32,
    /// How long it ran last.
    pub micros: u64,
    /// When that ended, about: Unix time in microseconds, if that is wanted.
    pub ended_us: Option<u64>,
}

impl Report {
    /// The message of the first item that failed, if one did.
    pub(crate) fn first_fault(&self) -> Option<&str> {
        self.faults.first().map(|fault| fault.message.as_str())
    }

    /// What `done` tells of an attempt at `range`. `framed` says how results lie in the output if
    /// there is exactly one for each good item, as for builtin functions.
    #[must_use]
    pub fn new(range: ItemRange, worker: Arc<str>, done: &Done, framed: Option<Framing>) -> Self {
        let is_whole = done.output.len() as u64 == done.output_bytes;
        let output = &done.output;
        let framed = framed.filter(|_| is_whole).map(|framing| Framed {
            output: output.clone(),
            framing,
            is_true: None,
        });
        Self {
            range,
            worker,
            output_bytes: done.output_bytes,
            busy_us: done.busy_us,
            faults: done.faults.clone(),
            stderr: done.stderr.clone(),
            item_lengths: done.item_lengths.clone(),
            item_micros: done.item_micros.clone(),
            item_exits: done.item_exits.clone(),
            ended_ms: None,
            framed,
            at: Cursor::start(&done.item_lengths, &done.item_micros, &done.item_exits),
        }
    }

    /// Says when it arrived: Unix time in milliseconds.
    #[must_use]
    pub fn arrived_at(self, unix_ms: Option<u64>) -> Self {
        Self { ended_ms: unix_ms, ..self }
    }

    /// Where the output of `range`, good items all, lies in the attempt's output. `None` if that
    /// can not be told: the attempt neither gave lengths, nor do its faults mark the place.
    pub fn within(&mut self, range: ItemRange) -> Option<Range<u64>> {
        if range == self.range && self.faults.is_empty() {
            return Some(0..self.output_bytes);
        }
        let (skip, end) = self.indices(range);
        self.walk_to(skip)?;
        // The bytes of faulty items right before are theirs, not this range's.
        let start = self.at.output_at;
        self.walk_to(end)?;
        (start <= self.at.output_at && self.at.output_at <= self.output_bytes)
            .then_some(start..self.at.output_at)
    }

    /// Where the output of `range` lies, and all else that JSON says of it. `input` are the items
    /// with their framing.
    pub fn results(
        &mut self,
        range: ItemRange,
        runs: u32,
        input: Bytes,
    ) -> Option<(Range<u64>, Results)> {
        let (skip, end) = self.indices(range);
        let is_all = range == self.range && self.faults.is_empty();
        let (within, item_lengths, item_micros, item_exits) = if is_all {
            let lists = (self.item_lengths.clone(), self.item_micros.clone());
            (0..self.output_bytes, lists.0, lists.1, self.item_exits.clone())
        } else {
            self.walk_to(skip)?;
            let before = self.at.clone();
            let within = self.within(range)?;
            let taken = |list: Bytes, rest: &Bytes| list.slice(..list.len() - rest.len());
            let lengths = taken(before.lengths, &self.at.lengths);
            let micros = taken(before.micros, &self.at.micros);
            (within, lengths, micros, taken(before.exits, &self.at.exits))
        };
        let ended_us = self.ended_ms.map(|ms| {
            // What ran behind the range ran after it.
            let later: u64 = varint::iter(&self.item_micros).skip(end as usize).sum();
            ms.saturating_mul(1_000).saturating_sub(later)
        });
        let stderr = self.stderr_of(skip..end).iter();
        let stderr = stderr.map(|told| ItemStderr { index: told.index - skip, ..told.clone() });
        let results = Results {
            range,
            input,
            worker: Arc::clone(&self.worker),
            runs,
            item_lengths,
            item_micros,
            item_exits,
            busy_us: self.busy_us,
            ended_us,
            stderr: stderr.collect(),
        };
        Some((within, results))
    }

    /// The last word on the item `index` of the attempt, which it told of. `item` is without its
    /// framing, and empty for a block.
    #[must_use]
    pub fn failure(&self, range: ItemRange, index: u32, runs: u32, item: Bytes) -> FailureRecord {
        let place = self.faults.binary_search_by_key(&index, |fault| fault.index);
        let fault = place.ok().map(|place| &self.faults[place]);
        let stderr = self.stderr_of(index..index + 1).first();
        FailureRecord {
            range,
            item,
            kind: fault.map_or(FailureKind::Error, |fault| fault.kind),
            message: fault.map_or_else(String::new, |fault| fault.message.clone()),
            exit: fault.and_then(|fault| fault.exit),
            signal: fault.and_then(|fault| fault.signal),
            stderr: stderr.map_or_else(Bytes::new, |told| told.data.clone()),
            worker: Some(Arc::clone(&self.worker)),
            runs,
            micros: fault.map_or(self.busy_us, |fault| fault.micros),
            ended_us: self.ended_ms.map(|ms| ms.saturating_mul(1_000)),
        }
    }

    /// What the items wrote on standard error, by index into the attempt.
    #[must_use]
    pub fn stderr(&self) -> &[ItemStderr] {
        &self.stderr
    }

    fn stderr_of(&self, indices: Range<u32>) -> &[ItemStderr] {
        let start = self.stderr.partition_point(|told| told.index < indices.start);
        let end = self.stderr.partition_point(|told| told.index < indices.end);
        &self.stderr[start..end]
    }

    fn indices(&self, range: ItemRange) -> (u32, u32) {
        assert!(self.range.covers(range), "{range} is not of the attempt at {}", self.range);
        let skip = u32::try_from(range.first - self.range.first).expect("within a chunk");
        (skip, skip + range.items)
    }

    /// Walks to the item `index`. What a fault says of its place holds, whatever the lists say.
    fn walk_to(&mut self, index: u32) -> Option<()> {
        if index < self.at.index {
            self.at = Cursor::start(&self.item_lengths, &self.item_micros, &self.item_exits);
        }
        while self.at.index < index {
            match self.faults.get(self.at.fault) {
                Some(fault) if fault.index <= self.at.index => {
                    self.at.output_at = fault.output_offset + fault.output_bytes;
                    take_numbers(&mut self.at.lengths, 1);
                    take_numbers(&mut self.at.micros, 1);
                    take_numbers(&mut self.at.exits, 1);
                    self.at.fault += 1;
                    self.at.index += 1;
                }
                next => {
                    let next = next.map_or(self.range.items, |fault| fault.index);
                    self.walk_good_items(index.min(next) - self.at.index)?;
                }
            }
        }
        Some(())
    }

    fn walk_good_items(&mut self, items: u32) -> Option<()> {
        let at = &mut self.at;
        let end = at.index + items;
        let mark = match self.faults.get(at.fault) {
            Some(fault) => (fault.index, fault.output_offset),
            None => (self.range.items, self.output_bytes),
        };
        let lengths = take_numbers(&mut at.lengths, items);
        // What can not be told leaves the cursor where it is.
        at.output_at = if mark.0 == end {
            mark.1
        } else if !self.item_lengths.is_empty() {
            at.output_at + varint::iter(&lengths).sum::<u64>()
        } else {
            let good_items = u64::from(self.range.items) - self.faults.len() as u64;
            let framed = self.framed.as_mut()?;
            let count = || framed.framing.count(&framed.output) == good_items;
            if !*framed.is_true.get_or_insert_with(count) {
                return None;
            }
            let rest = framed.output.get(usize::try_from(at.output_at).ok()?..)?;
            at.output_at + framed.framing.offset_of(rest, u64::from(items)) as u64
        };
        take_numbers(&mut at.micros, items);
        take_numbers(&mut at.exits, items);
        at.index = end;
        Some(())
    }
}

impl Cursor {
    fn start(lengths: &Bytes, micros: &Bytes, exits: &Bytes) -> Self {
        let (lengths, micros, exits) = (lengths.clone(), micros.clone(), exits.clone());
        Self { index: 0, output_at: 0, fault: 0, lengths, micros, exits }
    }
}

impl Results {
    /// What it keeps in memory, beside the output.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let stderr: usize =
            self.stderr.iter().map(|told| size_of::<ItemStderr>() + told.data.len()).sum();
        let lists = self.item_lengths.len() + self.item_micros.len() + self.item_exits.len();
        (size_of::<Self>() + self.input.len() + lists + stderr) as u64
    }
}

impl FailureRecord {
    /// The last word on what no attempt told of: its worker died, or none was left.
    #[must_use]
    pub fn untold(range: ItemRange, item: Bytes, kind: FailureKind, message: String) -> Self {
        Self {
            range,
            item,
            kind,
            message,
            exit: None,
            signal: None,
            stderr: Bytes::new(),
            worker: None,
            runs: 0,
            micros: 0,
            ended_us: None,
        }
    }

    /// What it keeps in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        (size_of::<Self>() + self.item.len() + self.message.len() + self.stderr.len()) as u64
    }
}

/// Takes the first `count` numbers off a packed list; fewer if there are no more.
fn take_numbers(list: &mut Bytes, count: u32) -> Bytes {
    const CONTINUES: u8 = 0x80;
    let mut left = count;
    let end = list.iter().position(|byte| {
        if left > 0 && byte & CONTINUES == 0 {
            left -= 1;
            return left == 0;
        }
        false
    });
    match end {
        _ if count == 0 => Bytes::new(),
        Some(end) => list.split_to(end + 1),
        None => std::mem::take(list),
    }
}
