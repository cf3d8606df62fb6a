//! The file system as the journal needs it, so that tests can tear writes, lose them and refuse them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, pread};

use crate::page_cache;

/// See the file's head.
pub(crate) trait Medium: Send + Sync {
    /// A file to be written from its start: it must not be there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn MediumFile>>;
    /// A file that is there, to be read and written.
    fn open(&self, path: &Path) -> io::Result<Box<dyn MediumFile>>;
    /// Makes a directory, and those above it.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Gives a file or directory another name, in place of what has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file one more name, where nothing is: what is in it goes with the last of them.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Removes a directory with all that is in it.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
    /// Takes a lock until what is returned is dropped; `WouldBlock` if another process has it.
    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn Send + Sync>>;
}

/// A file of a [`Medium`].
pub(crate) trait MediumFile: Send + Sync {
    /// Writes bytes at a place.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reads bytes from a place; fewer at the end of the file.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
    /// Its length.
    fn length(&self) -> io::Result<u64>;
    /// Cuts it off.
    fn cut(&self, length: u64) -> io::Result<()>;

    /// What is durable of a piece will hardly be read again soon.
    fn let_go(&self, _offset: u64, _length: u64) {}

    /// Reads exactly so many bytes.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match self.read_at(&mut bytes[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => done += read,
            }
        }
        Ok(())
    }

    /// Exactly so many bytes of it.
    fn read_piece(&self, length: usize, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// All of it.
    fn read_all(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.length()?).map_err(io::Error::other)?;
        self.read_piece(length, 0)
    }
}

/// The real one.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Disk;

impl Medium for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn MediumFile>> {
        let options = OpenOptions::new().read(true).write(true).create_new(true).to_owned();
        Ok(Box::new(options.open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn MediumFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        // What people submit is not for everybody's eyes.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name()));
        let names: io::Result<Vec<_>> = names.collect();
        let mut names: Vec<_> =
            names?.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn Send + Sync>> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.set_len(0)?;
        file.write_all_at(holder.as_bytes(), 0)?;
        Ok(Box::new(file))
    }
}

impl MediumFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, bytes, offset)
    }

    // Straight into memory that nobody has to clear before.
    fn read_piece(&self, length: usize, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = offset + bytes.len() as u64;
            match pread(self, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        // An allocator may give more than it was asked for.
        bytes.truncate(length);
        Ok(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn let_go(&self, offset: u64, length: u64) {
        page_cache::let_go(self, offset, length);
    }
}

/// Writes a small file so that it is there whole or not at all, also after a power cut.
pub(super) fn write_whole(medium: &dyn Medium, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new: PathBuf = directory.join(format!(".{name}-{:016x}", fastrand::u64(..)));
    let file = medium.create(&new)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    drop(file);
    medium.rename(&new, path)?;
    medium.sync_directory(directory)
}
