//! Where items come from, and why they cannot be had.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use widemap_common::limits::PIPE_BYTES;

use super::combine::Recipe;

/// Where items come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Standard input.
    Stdin,
    /// A file, a FIFO or a device, by its path.
    File(PathBuf),
    /// A list that is there already, as from the command line.
    Items(Vec<Vec<u8>>),
    /// Items that are put together from several lists, or split into columns.
    Made(Recipe),
}

/// Why input could not be read, or not cut into items.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It could not be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// As it was named.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory.
    #[error("{} is a directory: name a file of items, or list it with `find`", .0.display())]
    Directory(PathBuf),
    /// The thread that reads could not be started.
    #[error("cannot start to read {name}: {source}")]
    Start {
        /// What is read.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A read failed.
    #[error("cannot read {name} from byte {offset} on: {source}")]
    Read {
        /// What is read.
        name: String,
        /// How far it was read.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// An item is longer than any can be.
    #[error(
        "item {item}, at byte {offset} of the input or behind it, is longer than {bytes_max} \
         bytes: is this the right separator (-0, -d)?"
    )]
    ItemTooLong {
        /// Its number, from 1.
        item: u64,
        /// Where its block begins.
        offset: u64,
        /// The limit.
        bytes_max: usize,
    },
    /// A map goes on, and its input is not the one that it began with.
    #[error("{name} has changed since the map was begun: {how}")]
    Changed {
        /// What is read.
        name: String,
        /// How, with the bytes.
        how: String,
    },
    /// Items with their lengths before them, of which the last is not whole.
    #[error("item {item} is cut short: the input ends within it")]
    CutShort {
        /// Its number, from 1.
        item: u64,
    },
    /// Of lists that are needed again and again there is too much.
    #[error(
        "all lists of items but the first are kept in memory, up to {bytes_max} bytes: name the longest one first"
    )]
    ListsTooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// An item of a list has the separator in it.
    #[error("item {item} contains the separator (byte {separator}) that items end in")]
    SeparatorInItem {
        /// Its number, from 1.
        item: u64,
        /// The separator.
        separator: u8,
    },
}

impl InputError {
    /// Whether nothing of the input was read.
    #[must_use]
    pub fn is_before_start(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::ItemTooLong { .. } | Self::CutShort { .. })
    }
}

pub(super) fn open_file(path: &Path) -> Result<File, InputError> {
    let failed = |source| InputError::Open { path: path.to_owned(), source };
    // A FIFO that nobody writes to yet must not hold up the driver: its reader waits for it.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(InputError::Directory(path.to_owned()));
    }
    Ok(file)
}

/// A larger pipe means fewer turns between the program that writes it and us.
#[cfg(target_os = "linux")]
pub(super) fn widen_pipe(file: &File) {
    // Refused for what is no pipe, or past the user's quota: then it stays as it is.
    let _ = rustix::pipe::fcntl_setpipe_size(file, PIPE_BYTES);
}

#[cfg(not(target_os = "linux"))]
pub(super) fn widen_pipe(_file: &File) {}
