//! An input is opened: whatever it is read of.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use widemap_common::framing::{Framing, push_length_prefixed};
use widemap_common::limits::{ITEM_BYTES_MAX, READ_BLOCK_BYTES};

use super::super::arriving::Arriving;
use super::super::block::{Block, BlockRule, Splitter};
use super::super::combine::Combiner;
use super::super::excluded::Excluded;
use super::super::prefix::{Prefix, Trail};
use super::super::reader::{self, Feed, Reader, Reading};
use super::super::source::{InputError, Source, open_file, widen_pipe};
use super::{Gathered, Input, InputFile, Stamp};
use crate::page_cache::Passed;

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

    /// Opens the file of a job that is kept; reads it as it grows, if it is still being written. Nothing
    /// ends what is given up: whoever gave it up ends the job.
    ///
    /// # Errors
    /// As [`Input::open`].
    pub(crate) fn open_kept(
        path: &Path,
        arriving: Option<Arc<Arriving>>,
        framing: Framing,
        rule: BlockRule,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, InputError> {
        let (file, name) = (open_file(path)?, path.display().to_string());
        let mut input = Self::new(framing, rule);
        let failed = |source| InputError::Start { name: name.clone(), source };
        let feed = match arriving {
            None => {
                input.note_file(&file, &name).map_err(failed)?;
                Feed::File(file)
            }
            Some(arriving) => {
                let again = file.try_clone().map_err(failed)?;
                let name = name.clone();
                input.file = Some(InputFile { file: again, name, base: 0, stamp: None });
                input.arriving = Some(Arc::clone(&arriving));
                Feed::Arriving(file, arriving)
            }
        };
        let (name, passed) = (name.clone(), Some(Passed::default()));
        let reading = Reading { feed, name, is_regular: true, trail: None, passed };
        let splitter = Splitter::new(framing, rule, ITEM_BYTES_MAX);
        let reader = Reader::start(reading, splitter, Box::new(notify)).map_err(failed)?;
        input.reader = Some(reader);
        Ok(input)
    }

    fn new(framing: Framing, rule: BlockRule) -> Self {
        Self {
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
            arriving: None,
        }
    }

    fn open_with(
        source: Source,
        framing: Framing,
        rule: BlockRule,
        before: Option<Vec<Prefix>>,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, InputError> {
        let mut input = Self::new(framing, rule);
        let trail = |name: &str| before.map(|before| Trail::new(name.to_owned(), before));
        let splitter = Splitter::new(framing, rule, ITEM_BYTES_MAX);
        let (file, name) = match source {
            Source::Made(recipe) => {
                let name = "the items".to_owned();
                let feed = Feed::Made(Some(Box::new(Combiner::open(recipe)?)));
                let trail = trail(&name);
                let reading =
                    Reading { feed, name: name.clone(), is_regular: false, trail, passed: None };
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
        file: File,
        name: &str,
        splitter: Splitter,
        trail: Option<Trail>,
        notify: reader::Notify,
    ) -> Result<(), InputError> {
        let failed = |source| InputError::Start { name: name.to_owned(), source };
        let is_regular = self.note_file(&file, name).map_err(failed)?;
        if !is_regular {
            widen_pipe(&file);
        }
        let (feed, name) = (Feed::File(file), name.to_owned());
        let reading = Reading { feed, name, is_regular, trail, passed: None };
        self.reader = Some(Reader::start(reading, splitter, notify).map_err(failed)?);
        Ok(())
    }

    /// Notes what a file is, if it is a regular one; whether it is.
    fn note_file(&mut self, mut file: &File, name: &str) -> io::Result<bool> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(false);
        }
        let base = file.stream_position()?;
        self.expected_bytes = Some(metadata.len().saturating_sub(base));
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let stamp = Some(Stamp { length: metadata.len(), modified });
        self.file = Some(InputFile { file: file.try_clone()?, name: name.to_owned(), base, stamp });
        Ok(true)
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
