//! A disk of memory. What was written and not made durable may be there or not after a crash, block by
//! block; it may refuse to write or to make durable, at the call that a test names.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::journal::medium::{Medium, MediumFile};

/// What is written at once or not at all.
const BLOCK_BYTES: usize = 16;

/// See the file's head.
#[derive(Clone, Default)]
pub(super) struct Memory {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Default)]
struct Disk {
    files: BTreeMap<PathBuf, File>,
    directories: BTreeSet<PathBuf>,
    locked: BTreeSet<PathBuf>,
    /// Files that were made so far.
    made: u64,
    /// Calls that change something, so far, and at which of them what happens.
    calls: u64,
    fault: Option<(u64, Fault)>,
    has_failed: bool,
}

/// What a disk may do to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// This write, and all after it, find no room.
    Full,
    /// This call, and all after it, fail.
    Broken,
    /// This call fails, and no other does: a system tells of a lost page once.
    Lossy,
}

#[derive(Clone, Default)]
struct File {
    /// Which it is, whatever it is called.
    id: u64,
    written: Vec<u8>,
    durable: Vec<u8>,
}

struct Handle {
    disk: Arc<Mutex<Disk>>,
    id: u64,
}

impl Memory {
    /// From that call on there is a fault.
    pub(super) fn fails_at(&self, call: u64, fault: Fault) {
        let mut disk = self.disk.lock().unwrap();
        disk.fault = Some((disk.calls + call, fault));
    }

    /// Whether the fault was met.
    pub(super) fn has_failed(&self) -> bool {
        self.disk.lock().unwrap().has_failed
    }

    /// What is on the disk after a power cut: of what was not made durable any blocks, as drawn.
    pub(super) fn after_a_crash(&self, rng: &mut fastrand::Rng) -> Self {
        let disk = self.disk.lock().unwrap();
        let torn = |file: &File| {
            let mut bytes = file.durable.clone();
            let kept = rng.usize(file.durable.len().min(file.written.len())..=file.written.len());
            bytes.resize(kept.max(file.durable.len().min(kept)), 0);
            bytes.resize(kept, 0);
            let written =
                file.written[..kept].chunks(BLOCK_BYTES).zip(bytes.chunks_mut(BLOCK_BYTES));
            for (index, (written, block)) in written.enumerate() {
                let old = file.durable.get(index * BLOCK_BYTES..).unwrap_or_default();
                let is_same = old.len() >= written.len() && old[..written.len()] == *written;
                if !is_same && rng.bool() {
                    block.copy_from_slice(written);
                }
            }
            File { id: file.id, written: bytes.clone(), durable: bytes }
        };
        let mut torn = torn;
        let files = disk.files.iter().map(|(path, file)| (path.clone(), torn(file))).collect();
        let (directories, made) = (disk.directories.clone(), disk.made);
        let disk = Disk { files, directories, made, ..Disk::default() };
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// Changes a bit of a file.
    pub(super) fn flip(&self, path: &Path, bit: usize) {
        let mut disk = self.disk.lock().unwrap();
        let file = disk.files.get_mut(path).unwrap();
        file.written[bit / 8] ^= 1 << (bit % 8);
        file.durable = file.written.clone();
    }

    pub(super) fn length(&self, path: &Path) -> usize {
        self.disk.lock().unwrap().files[path].written.len()
    }

    /// What would be there after a power cut, at the least.
    pub(super) fn durable_length(&self, path: &Path) -> usize {
        self.disk.lock().unwrap().files[path].durable.len()
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.disk.lock().unwrap().files.keys().cloned().collect()
    }
}

impl Disk {
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.fault {
            Some((at, fault)) if self.calls >= at => {
                self.has_failed = true;
                if fault == Fault::Lossy {
                    self.fault = None;
                }
                Err(match fault {
                    Fault::Full => io::ErrorKind::StorageFull.into(),
                    Fault::Broken | Fault::Lossy => io::Error::other("the disk is broken"),
                })
            }
            _ => Ok(()),
        }
    }
}

impl Medium for Memory {
    fn create(&self, path: &Path) -> io::Result<Box<dyn MediumFile>> {
        let mut disk = self.disk.lock().unwrap();
        disk.call()?;
        let parent = path.parent().unwrap();
        assert!(disk.directories.contains(parent), "{} is there", parent.display());
        disk.made += 1;
        let id = disk.made;
        let before = disk.files.insert(path.to_owned(), File { id, ..File::default() });
        assert!(before.is_none(), "{} is made once", path.display());
        Ok(Box::new(Handle { disk: Arc::clone(&self.disk), id }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn MediumFile>> {
        let disk = self.disk.lock().unwrap();
        let id = disk.files.get(path).ok_or(io::ErrorKind::NotFound)?.id;
        Ok(Box::new(Handle { disk: Arc::clone(&self.disk), id }))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        disk.call()?;
        disk.directories.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        disk.call()?;
        let moved = |path: &PathBuf| {
            let rest = path.strip_prefix(from).ok()?;
            let is_itself = rest.as_os_str().is_empty();
            Some(if is_itself { to.to_owned() } else { to.join(rest) })
        };
        let files = std::mem::take(&mut disk.files);
        let (going, staying): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|(path, _)| path.starts_with(from));
        disk.files = staying.into_iter().collect();
        for (path, file) in going {
            disk.files.insert(moved(&path).unwrap(), file);
        }
        let directories = std::mem::take(&mut disk.directories);
        disk.directories =
            directories.iter().map(|path| moved(path).unwrap_or_else(|| path.clone())).collect();
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        disk.call()?;
        // Nobody writes to either any more: a copy is as good.
        let file = disk.files.get(from).cloned().ok_or(io::ErrorKind::NotFound)?;
        let before = disk.files.insert(to.to_owned(), file);
        assert!(before.is_none(), "{} is made once", to.display());
        Ok(())
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        self.disk.lock().unwrap().call()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk.lock().unwrap();
        let within = disk.files.keys().chain(&disk.directories);
        let names = within.filter(|other| other.parent() == Some(path));
        let names: BTreeSet<_> =
            names.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        Ok(names.into_iter().collect())
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        disk.call()?;
        disk.files.retain(|other, _| !other.starts_with(path));
        disk.directories.retain(|other| !other.starts_with(path));
        Ok(())
    }

    fn lock(&self, path: &Path, _: &str) -> io::Result<Box<dyn Send + Sync>> {
        struct Held(Arc<Mutex<Disk>>, PathBuf);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.lock().unwrap().locked.remove(&self.1);
            }
        }
        if !self.disk.lock().unwrap().locked.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Held(Arc::clone(&self.disk), path.to_owned())))
    }
}

impl Handle {
    fn with<T>(&self, change: impl FnOnce(&mut File) -> T) -> io::Result<T> {
        let mut disk = self.disk.lock().unwrap();
        disk.call()?;
        let file = disk.files.values_mut().find(|file| file.id == self.id);
        Ok(change(file.expect("an open file is there")))
    }
}

impl MediumFile for Handle {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|file| {
            let end = offset as usize + bytes.len();
            if file.written.len() < end {
                file.written.resize(end, 0);
            }
            file.written[offset as usize..end].copy_from_slice(bytes);
        })
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let disk = self.disk.lock().unwrap();
        let file = disk.files.values().find(|file| file.id == self.id);
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        let rest = file.written.get(offset as usize..).unwrap_or_default();
        let read = rest.len().min(bytes.len());
        bytes[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|file| file.durable = file.written.clone())
    }

    fn length(&self) -> io::Result<u64> {
        let disk = self.disk.lock().unwrap();
        let file = disk.files.values().find(|file| file.id == self.id);
        Ok(file.ok_or(io::ErrorKind::NotFound)?.written.len() as u64)
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.with(|file| file.written.truncate(length as usize))
    }
}
