//! Items that are put together from several lists, or split into columns: on the reader's thread, no further
//! than the cutting has room for. The first list, and what is linked to it, is read as it comes; of the others
//! each value is needed again and again, so they are kept.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use regex::bytes::Regex;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use widemap_common::framing::push_length_prefixed;
use widemap_common::limits::{ITEM_BYTES_MAX, LISTS_BYTES_MAX, READ_BLOCK_BYTES};

use super::block::Splitter;
use super::source::{InputError, open_file, widen_pipe};

/// What is read of a file at once.
const READ_BYTES: usize = 256 * 1024;

/// Where the values of one list come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Values {
    /// They are there already, as from the command line.
    List(Vec<Vec<u8>>),
    /// A file, a FIFO or a device, by its path.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

/// What is between the columns of a value.
#[derive(Clone, Debug)]
pub struct ColumnSeparator {
    pattern: Regex,
    /// Blanks at the beginning of a column are none of it.
    pub trims_left: bool,
    /// Blanks at its end likewise.
    pub trims_right: bool,
}

/// How an item of several columns lies in the input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ItemForm {
    /// As [`widemap_common::framing::Framing::Columns`] has it.
    Columns,
    /// An array of JSON, of which the columns are the values; it ends in the separator.
    Json,
}

/// How items are made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipe {
    /// The lists of a group go together, value by value, as far as the shortest of them; the items are the
    /// product of the groups, the first the slowest.
    pub groups: Vec<Vec<Values>>,
    /// What splits each value into columns.
    pub split: Option<ColumnSeparator>,
    /// What a value of a file ends in.
    pub separator: u8,
    /// How items lie in the input.
    pub form: ItemForm,
}

impl ColumnSeparator {
    /// A single character stands for itself; all else is a regular expression, as for GNU parallel.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn new(text: &str) -> Result<Self, String> {
        let pattern = match text.chars().count() {
            1 => regex::escape(text),
            _ => text.to_owned(),
        };
        let pattern = regex::bytes::RegexBuilder::new(&pattern)
            .unicode(false)
            .build()
            .map_err(|error| format!("`{text}` is no regular expression: {error}"))?;
        if pattern.is_match(b"") {
            return Err(format!(
                "`{text}` matches where there is nothing, and would split between all bytes"
            ));
        }
        Ok(Self { pattern, trims_left: true, trims_right: true })
    }

    fn columns<'a>(&'a self, value: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.pattern.split(value).map(|column| {
            let column = if self.trims_left { column.trim_ascii_start() } else { column };
            if self.trims_right { column.trim_ascii_end() } else { column }
        })
    }
}

impl PartialEq for ColumnSeparator {
    fn eq(&self, other: &Self) -> bool {
        let trims = |separator: &Self| (separator.trims_left, separator.trims_right);
        self.pattern.as_str() == other.pattern.as_str() && trims(self) == trims(other)
    }
}

impl Eq for ColumnSeparator {}

impl Recipe {
    /// Whether the same items can be made a second time.
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        self.groups.iter().flatten().all(|values| match values {
            Values::List(_) => true,
            Values::File(path) => std::fs::metadata(path).is_ok_and(|file| file.is_file()),
            Values::Stdin => false,
        })
    }

    /// Appends the columns of a value, as they lie in an item.
    fn push_columns(&self, out: &mut Vec<u8>, value: &[u8]) {
        match &self.split {
            None => self.push_column(out, value),
            Some(split) => split.columns(value).for_each(|column| self.push_column(out, column)),
        }
    }

    fn push_column(&self, out: &mut Vec<u8>, column: &[u8]) {
        if self.form == ItemForm::Columns {
            return push_length_prefixed(out, column);
        }
        if !out.is_empty() {
            out.push(b',');
        }
        // The end of a line is a blank to JSON.
        out.extend(column.iter().map(|&byte| if byte == b'\n' { b' ' } else { byte }));
    }

    /// Appends an item of these columns.
    fn push_item(&self, out: &mut Vec<u8>, columns: &[u8]) {
        match self.form {
            ItemForm::Columns => push_length_prefixed(out, columns),
            ItemForm::Json => {
                out.push(b'[');
                out.extend_from_slice(columns);
                out.extend_from_slice(&[b']', self.separator]);
            }
        }
    }
}

/// Makes the items of a recipe.
pub(super) struct Combiner {
    recipe: Recipe,
    groups: Vec<Vec<Opened>>,
}

enum Opened {
    List(std::vec::IntoIter<Vec<u8>>),
    File(Box<ValueReader>),
}

/// The values of a file, one after the other.
struct ValueReader {
    file: File,
    name: String,
    is_regular: bool,
    separator: u8,
    buffer: Vec<u8>,
    /// Where the next value begins in it.
    start: usize,
    /// Up to where it was searched for the end of that.
    scanned: usize,
    read_bytes: u64,
    is_over: bool,
}

/// What came of asking for a value.
enum Next {
    Value(Vec<u8>),
    End,
    /// Nobody wants them any more.
    Closed,
}

/// Where items go; false if nobody wants them any more.
pub(super) type Deliver<'a> = dyn FnMut(&mut Splitter) -> Result<bool, InputError> + 'a;

impl Combiner {
    /// Opens every file of it.
    ///
    /// # Errors
    /// The first that cannot be opened.
    pub(super) fn open(mut recipe: Recipe) -> Result<Self, InputError> {
        let separator = recipe.separator;
        let mut groups = Vec::new();
        for group in std::mem::take(&mut recipe.groups) {
            let opened = group.into_iter().map(|values| Opened::new(values, separator));
            groups.push(opened.collect::<Result<Vec<_>, _>>()?);
        }
        Ok(Self { recipe, groups })
    }

    /// Makes all items. `None` if nobody wanted them any more.
    pub(super) fn run(
        self,
        splitter: &mut Splitter,
        wake: &OwnedFd,
        deliver: &mut Deliver<'_>,
    ) -> Result<Option<()>, InputError> {
        let Self { recipe, groups } = self;
        let mut groups = groups.into_iter();
        let Some(mut first) = groups.next() else { return Ok(Some(())) };
        let mut others = Vec::new();
        let mut kept_bytes = 0;
        for mut group in groups {
            let mut tuples = Vec::new();
            loop {
                match tuple(&mut group, &recipe, wake, &mut || Ok(true))? {
                    Next::Value(columns) => {
                        kept_bytes += columns.len() + size_of::<Vec<u8>>();
                        if kept_bytes > LISTS_BYTES_MAX {
                            return Err(InputError::ListsTooLong { bytes_max: LISTS_BYTES_MAX });
                        }
                        tuples.push(columns);
                    }
                    Next::End => break,
                    Next::Closed => return Ok(None),
                }
            }
            if tuples.is_empty() {
                return Ok(Some(()));
            }
            others.push(tuples);
        }
        let mut number = 0;
        loop {
            // What is there is handed over before more is waited for.
            let next = tuple(&mut first, &recipe, wake, &mut || deliver(splitter))?;
            let columns = match next {
                Next::Value(columns) => columns,
                Next::End => return Ok(Some(())),
                Next::Closed => return Ok(None),
            };
            let mut places = vec![0; others.len()];
            let mut item = columns.clone();
            loop {
                item.truncate(columns.len());
                for (tuples, &place) in others.iter().zip(&places) {
                    if recipe.form != ItemForm::Columns {
                        item.push(b',');
                    }
                    item.extend_from_slice(&tuples[place]);
                }
                number += 1;
                if item.len() > ITEM_BYTES_MAX {
                    let bytes_max = ITEM_BYTES_MAX;
                    return Err(InputError::ItemTooLong { item: number, offset: 0, bytes_max });
                }
                let buffer = splitter.room();
                recipe.push_item(buffer, &item);
                if buffer.len() >= READ_BLOCK_BYTES && !deliver(splitter)? {
                    return Ok(None);
                }
                if !advance(&mut places, &others) {
                    break;
                }
            }
        }
    }
}

/// The next place of a product, the last list the fastest. False after the last.
fn advance(places: &mut [usize], lists: &[Vec<Vec<u8>>]) -> bool {
    for (place, list) in places.iter_mut().zip(lists).rev() {
        *place += 1;
        if *place < list.len() {
            return true;
        }
        *place = 0;
    }
    false
}

/// The columns of the next values of a group.
fn tuple(
    group: &mut [Opened],
    recipe: &Recipe,
    wake: &OwnedFd,
    before_wait: &mut dyn FnMut() -> Result<bool, InputError>,
) -> Result<Next, InputError> {
    let mut columns = Vec::new();
    for opened in group {
        match opened.next(wake, before_wait)? {
            Next::Value(value) => recipe.push_columns(&mut columns, &value),
            other => return Ok(other),
        }
    }
    Ok(Next::Value(columns))
}

impl Opened {
    fn new(values: Values, separator: u8) -> Result<Self, InputError> {
        let (file, name) = match values {
            Values::List(list) => return Ok(Self::List(list.into_iter())),
            Values::File(path) => (open_file(&path)?, path.display().to_string()),
            Values::Stdin => {
                let name = "standard input".to_owned();
                match io::stdin().as_fd().try_clone_to_owned() {
                    Ok(fd) => (File::from(fd), name),
                    Err(source) => return Err(InputError::Start { name, source }),
                }
            }
        };
        let is_regular = match file.metadata() {
            Ok(metadata) => metadata.is_file(),
            Err(source) => return Err(InputError::Start { name, source }),
        };
        if !is_regular {
            widen_pipe(&file);
        }
        Ok(Self::File(Box::new(ValueReader {
            file,
            name,
            is_regular,
            separator,
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            read_bytes: 0,
            is_over: false,
        })))
    }

    fn next(
        &mut self,
        wake: &OwnedFd,
        before_wait: &mut dyn FnMut() -> Result<bool, InputError>,
    ) -> Result<Next, InputError> {
        match self {
            Self::List(list) => Ok(list.next().map_or(Next::End, Next::Value)),
            Self::File(reader) => reader.next(wake, before_wait),
        }
    }
}

impl ValueReader {
    fn next(
        &mut self,
        wake: &OwnedFd,
        before_wait: &mut dyn FnMut() -> Result<bool, InputError>,
    ) -> Result<Next, InputError> {
        loop {
            if let Some(at) = memchr::memchr(self.separator, &self.buffer[self.scanned..]) {
                let end = self.scanned + at;
                let value = self.buffer[self.start..end].to_vec();
                (self.start, self.scanned) = (end + 1, end + 1);
                return Ok(Next::Value(value));
            }
            self.buffer.drain(..self.start);
            (self.start, self.scanned) = (0, self.buffer.len());
            if self.is_over {
                return Ok(match self.buffer.is_empty() {
                    true => Next::End,
                    false => {
                        self.scanned = 0;
                        Next::Value(std::mem::take(&mut self.buffer))
                    }
                });
            }
            if self.buffer.len() > ITEM_BYTES_MAX {
                let (item, bytes_max) = (1, ITEM_BYTES_MAX);
                return Err(InputError::ItemTooLong { item, offset: self.read_bytes, bytes_max });
            }
            if !self.is_regular && (!before_wait()? || !self.wait(wake)) {
                return Ok(Next::Closed);
            }
            self.buffer.reserve(READ_BYTES);
            match rustix::io::read(&self.file, spare_capacity(&mut self.buffer)) {
                Ok(0) => self.is_over = true,
                Ok(bytes) => self.read_bytes += bytes as u64,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => {
                    let (name, source) = (self.name.clone(), errno.into());
                    return Err(InputError::Read { name, offset: self.read_bytes, source });
                }
            }
        }
    }

    /// Waits until it can be read. False if the reader was closed.
    fn wait(&self, wake: &OwnedFd) -> bool {
        let mut fds = [
            PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
        ];
        // An error of poll is met again by the read that follows, which tells it.
        while poll(&mut fds, None) == Err(Errno::INTR) {}
        fds[1].revents().is_empty()
    }
}
