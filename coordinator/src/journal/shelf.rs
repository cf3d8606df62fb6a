//! What is durable of one job: which items are final, and where their results are. The writer's thread
//! adds to it, readers share it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;
use widemap_common::ids::ItemRange;

use super::cursor::Cursor;
use super::extent::Extent;
use super::medium::{Medium, MediumFile};
use crate::data::Prefix;

/// See the file's head.
pub(crate) struct Shelf {
    directory: PathBuf,
    medium: Arc<dyn Medium>,
    is_ordered: bool,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

/// What became final together, or lies side by side.
#[derive(Clone, Debug)]
pub(super) struct Final {
    pub(super) items: u32,
    pub(super) extent: Extent,
    /// Where the failure is described in the log of facts: the place and the length.
    pub(super) failure: Option<(u64, u32)>,
}

#[derive(Default)]
struct State {
    finals: BTreeMap<u64, Final>,
    /// The order in which they became final, for a job whose results are not put in order.
    log: Vec<u64>,
    /// The first item that is not final, and what the output has of those before it.
    next: u64,
    output_bytes: u64,
    failures: u64,
    kept_bytes: u64,
    ok_items: u64,
    failed_items: u64,
    /// How much of the input was read, each time that was noted.
    inputs: Vec<Prefix>,
    /// What items have written on their standard error: where in the log of facts, and how long.
    stderr: Vec<(u64, u32)>,
    stderr_bytes: u64,
    paused: bool,
    ended: Option<Bytes>,
    /// The last segment that was opened for reading.
    segment: Option<(u32, Arc<dyn MediumFile>)>,
    facts: Option<Arc<dyn MediumFile>>,
}

impl Shelf {
    /// A shelf with nothing on it. `is_ordered` says whether results are read in the order of the items,
    /// or as they became final.
    pub(super) fn new(medium: Arc<dyn Medium>, directory: PathBuf, is_ordered: bool) -> Self {
        let (state, changes) = (Mutex::default(), watch::Sender::new(0));
        Self { directory, medium, is_ordered, state, changes }
    }

    /// Items that succeeded, and that failed for good.
    pub(crate) fn final_items(&self) -> (u64, u64) {
        let state = self.lock();
        (state.ok_items, state.failed_items)
    }

    /// Bytes of the output that can be read now.
    pub(crate) fn output_bytes(&self) -> u64 {
        self.lock().output_bytes
    }

    /// Failures that can be read now.
    pub(crate) fn failures(&self) -> u64 {
        self.lock().failures
    }

    /// Pieces of standard error that can be read now.
    pub(crate) fn stderr_pieces(&self) -> u64 {
        self.lock().stderr.len() as u64
    }

    /// The bytes of all of them.
    pub(crate) fn stderr_bytes(&self) -> u64 {
        self.lock().stderr_bytes
    }

    /// Bytes of results on the disk.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.lock().kept_bytes
    }

    /// The first item that is not final.
    #[cfg(test)]
    pub(crate) fn next_item(&self) -> u64 {
        self.lock().next
    }

    /// Every item that is final, neighbours together.
    pub(crate) fn final_ranges(&self) -> Vec<ItemRange> {
        let state = self.lock();
        let mut ranges: Vec<ItemRange> = Vec::new();
        for (&first, entry) in &state.finals {
            match ranges.last_mut() {
                Some(last)
                    if last.end() == first && last.items.checked_add(entry.items).is_some() =>
                {
                    last.items += entry.items;
                }
                _ => ranges.push(ItemRange::new(first, entry.items)),
            }
        }
        ranges
    }

    /// Whether an item is final, and whether it failed.
    pub(crate) fn is_final(&self, item: u64) -> Option<bool> {
        let state = self.lock();
        let (&first, entry) = state.finals.range(..=item).next_back()?;
        (item < first + u64::from(entry.items)).then_some(entry.failure.is_some())
    }

    /// How much of the input was read, each time that was noted.
    pub(crate) fn inputs(&self) -> Vec<Prefix> {
        self.lock().inputs.clone()
    }

    /// Whether the job is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// The job's last word.
    pub(crate) fn ended(&self) -> Option<Bytes> {
        self.lock().ended.clone()
    }

    /// Changes whenever something is added.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Another one whenever something was added.
    pub(crate) fn version(&self) -> u64 {
        *self.changes.borrow()
    }

    /// Reads the results from a byte of the output, a number of failures and a number of pieces of
    /// standard error on, which have been reached.
    pub(crate) fn read_from(
        self: &Arc<Self>,
        output_bytes: u64,
        failures: u64,
        stderr: u64,
    ) -> Cursor {
        Cursor::new(Arc::clone(self), output_bytes, failures, stderr)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    // ---- For the writer ----

    /// Items have become final.
    pub(super) fn put(&self, first: u64, entry: Final) {
        let mut state = self.lock();
        let items = u64::from(entry.items);
        state.kept_bytes += entry.extent.length;
        match entry.failure {
            Some(_) => state.failed_items += items,
            None => state.ok_items += items,
        }
        if !self.is_ordered {
            state.output_bytes += entry.extent.length;
            state.failures += u64::from(entry.failure.is_some());
            state.log.push(first);
        }
        let before = state.finals.insert(first, entry);
        debug_assert!(before.is_none(), "item {first} is final once");
        state.advance(self.is_ordered);
    }

    pub(super) fn add_input(&self, prefix: Prefix) {
        self.lock().inputs.push(prefix);
    }

    pub(super) fn add_stderr(&self, at: u64, length: u32) {
        let mut state = self.lock();
        state.stderr.push((at, length));
        state.stderr_bytes += u64::from(length);
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.lock().paused = paused;
    }

    pub(super) fn end(&self, last: Bytes) {
        self.lock().ended = Some(last);
    }

    /// Tells readers that there is more.
    pub(super) fn tell(&self) {
        self.changes.send_modify(|version| *version += 1);
    }

    // ---- For readers ----

    /// The entry that comes next: at an item, or at a place of the log.
    pub(super) fn at(&self, item: u64, place: usize) -> Option<(u64, Final)> {
        let state = self.lock();
        let first = if self.is_ordered { item } else { *state.log.get(place)? };
        Some((first, state.finals.get(&first)?.clone()))
    }

    /// Where a piece of standard error is.
    pub(super) fn stderr_at(&self, number: usize) -> Option<(u64, u32)> {
        self.lock().stderr.get(number).copied()
    }

    /// Whether nothing will be added.
    pub(super) fn is_over(&self) -> bool {
        self.lock().ended.is_some()
    }

    /// The bytes of an extent from `at` on, up to the end of the part that they lie in, checked.
    ///
    /// # Errors
    /// If they cannot be read, or are not what was written: with the file and the place.
    pub(super) fn read(&self, extent: &Extent, at: u64) -> io::Result<Vec<u8>> {
        let path = segment_path(&self.directory, extent.segment);
        let named = |source: io::Error| {
            io::Error::new(source.kind(), format!("{}, {source}", path.display()))
        };
        let file = self.segment(extent.segment, &path).map_err(named)?;
        extent.read(&*file, at).map_err(named)
    }

    /// What the log of facts says at a place: a failure as it was described, or a piece of standard error.
    pub(super) fn told_at(&self, at: u64, length: u32) -> io::Result<Bytes> {
        let path = self.directory.join(FACTS);
        let facts = {
            let known = self.lock().facts.clone();
            match known {
                Some(facts) => facts,
                None => {
                    let facts: Arc<dyn MediumFile> = Arc::from(self.medium.open(&path)?);
                    self.lock().facts = Some(Arc::clone(&facts));
                    facts
                }
            }
        };
        let bytes = facts.read_piece(length as usize, at).map_err(|source| {
            let text = format!("{}, at byte {at}: {source}", path.display());
            io::Error::new(source.kind(), text)
        })?;
        Ok(bytes.into())
    }

    fn segment(&self, number: u32, path: &Path) -> io::Result<Arc<dyn MediumFile>> {
        let known = self.lock().segment.clone();
        if let Some((_, file)) = known.filter(|(known, _)| *known == number) {
            return Ok(file);
        }
        let file: Arc<dyn MediumFile> = Arc::from(self.medium.open(path)?);
        self.lock().segment = Some((number, Arc::clone(&file)));
        Ok(file)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn advance(&mut self, is_ordered: bool) {
        while let Some(entry) = self.finals.get(&self.next) {
            self.next += u64::from(entry.items);
            if is_ordered {
                self.output_bytes += entry.extent.length;
                self.failures += u64::from(entry.failure.is_some());
            }
        }
    }
}

/// The log of facts in a job's directory.
pub(super) const FACTS: &str = "facts";

/// A segment in a job's directory.
pub(super) fn segment_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("payload-{number:06}"))
}
