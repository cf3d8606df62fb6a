//! Control groups (Linux, version 2): one for each slot, so that whatever an item started ends with it, also
//! what left its process group and session, and that all its processes together take no more memory than
//! one may.
//!
//! The files of a group are opened before the worker gives up root: what they allow is what their opener
//! was allowed. How groups behave is told in the kernel's Documentation/admin-guide/cgroup-v2.rst.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest file that is read of a group.
const FILE_BYTES: usize = 4096;

/// How often, and with which pause, an empty group is removed whose last process is just ending.
const REMOVALS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(5);

/// Where a worker's control groups are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroup {
    /// Nowhere.
    Off,
    /// Below its own group, where that is delegated to it; else nowhere.
    Auto,
    /// Below this directory of a mounted hierarchy.
    Below(PathBuf),
}

/// Why there are no control groups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The directory is none of a hierarchy of version 2.
    #[error(
        "{} is no control group of version 2, or has no cgroup.kill (Linux has it since 5.14); --cgroup off does \
         without",
        .0.display()
    )]
    NotOne(PathBuf),
    /// Something in it cannot be used.
    #[error("cannot {what} {}: {error} (--cgroup)", .path.display())]
    Failed {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
}

/// The groups of a worker, and where they are.
#[derive(Debug)]
pub(super) struct Groups {
    pub(super) slots: Vec<SlotGroup>,
    pub(super) directories: Directories,
}

/// The directories to remove at the end, the inner ones first.
#[derive(Debug, Clone, Default)]
pub(super) struct Directories(Vec<PathBuf>);

/// The group of one slot.
#[derive(Debug)]
pub(super) struct SlotGroup {
    procs: File,
    kill: File,
    events: File,
    memory: Option<Memory>,
}

#[derive(Debug)]
struct Memory {
    max: File,
    events: File,
    /// What the group may take now.
    limit: Option<u64>,
    /// How many of its processes had been killed for want of memory when the last one was started.
    killed: u64,
}

impl Cgroup {
    /// Makes a group for each slot; nothing where that is not asked for, or the own group is not delegated.
    pub(super) fn make(&self, slots: u32) -> Result<Option<Groups>, CgroupError> {
        match self {
            Self::Off => Ok(None),
            Self::Below(parent) => Groups::make(parent, slots).map(Some),
            Self::Auto => match own().filter(|path| is_delegated(path)) {
                Some(own) => Groups::make_in_own(&own, slots).map(Some),
                None => Ok(None),
            },
        }
    }
}

impl Groups {
    fn make(parent: &Path, slots: u32) -> Result<Self, CgroupError> {
        if !parent.join("cgroup.procs").exists() {
            return Err(CgroupError::NotOne(parent.to_owned()));
        }
        let whole = parent.join(format!("widemap-{}", std::process::id()));
        let mut directories = Directories(vec![whole.clone()]);
        let made = Self::fill(parent, &whole, slots, &mut directories);
        if made.is_err() {
            directories.remove();
        }
        Ok(Self { slots: made?, directories })
    }

    /// This process moves out of the way first: a group whose members are limited has none of its own.
    fn make_in_own(own: &Path, slots: u32) -> Result<Self, CgroupError> {
        let main = own.join("widemap-main");
        match std::fs::create_dir(&main) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", &main)(error));
            }
            _ => {}
        }
        write(&main.join("cgroup.procs"), b"0")?;
        Self::make(own, slots)
    }

    fn fill(
        parent: &Path,
        whole: &Path,
        slots: u32,
        directories: &mut Directories,
    ) -> Result<Vec<SlotGroup>, CgroupError> {
        make_directory(whole)?;
        if !whole.join("cgroup.kill").exists() {
            return Err(CgroupError::NotOne(parent.to_owned()));
        }
        let has_memory = limits_memory(parent) && limits_memory(whole);
        let mut groups = Vec::with_capacity(slots as usize);
        for slot in 1..=slots {
            let directory = whole.join(format!("slot-{slot}"));
            make_directory(&directory)?;
            directories.0.insert(0, directory.clone());
            groups.push(SlotGroup::open(&directory, has_memory)?);
        }
        Ok(groups)
    }
}

impl Directories {
    /// Removes them, as far as they are empty or about to be.
    pub(super) fn remove(&self) {
        for directory in &self.0 {
            for _ in 0..REMOVALS {
                match std::fs::remove_dir(directory) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                    _ => break,
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
}

impl SlotGroup {
    fn open(directory: &Path, has_memory: bool) -> Result<Self, CgroupError> {
        let memory = match has_memory {
            true => Some(Memory {
                max: open(&directory.join("memory.max"), true)?,
                events: open(&directory.join("memory.events"), false)?,
                limit: None,
                killed: 0,
            }),
            false => None,
        };
        if has_memory {
            // What could be moved to the disk instead would be no limit. Not every kernel has it.
            let _ = write(&directory.join("memory.swap.max"), b"0");
        }
        Ok(Self {
            procs: open(&directory.join("cgroup.procs"), true)?,
            kill: open(&directory.join("cgroup.kill"), true)?,
            events: open(&directory.join("cgroup.events"), false)?,
            memory,
        })
    }

    /// Lets the next process, and all that it starts, take so much memory together.
    pub(super) fn prepare(&mut self, limit: Option<u64>) -> io::Result<()> {
        let Some(memory) = &mut self.memory else { return Ok(()) };
        if memory.limit != limit {
            let told = limit.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
            memory.max.write_all_at(told.as_bytes(), 0)?;
            memory.limit = limit;
        }
        memory.killed = memory.killed_so_far();
        Ok(())
    }

    /// Where a process that writes `0` joins the group.
    pub(super) fn procs(&self) -> BorrowedFd<'_> {
        self.procs.as_fd()
    }

    /// Whether anything runs in it.
    pub(super) fn is_populated(&self) -> bool {
        value(&self.events, "populated") != Some(0)
    }

    /// Ends everything that runs in it.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.kill.write_all_at(b"1", 0)
    }

    /// Whether a process was killed for want of memory since [`Self::prepare`].
    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.killed_so_far() > memory.killed)
    }
}

impl Memory {
    fn killed_so_far(&self) -> u64 {
        value(&self.events, "oom_kill").unwrap_or(0)
    }
}

/// The number behind a key of a file of keys and numbers.
fn value(file: &File, key: &str) -> Option<u64> {
    let mut bytes = [0; FILE_BYTES];
    let length = file.read_at(&mut bytes, 0).ok()?;
    value_in(std::str::from_utf8(&bytes[..length]).ok()?, key)
}

fn value_in(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

/// The group of this process, as a directory.
fn own() -> Option<PathBuf> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    own_in(&groups, &mounts)
}

fn own_in(groups: &str, mounts: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        // The file system's type is the first field behind the dash.
        let (mount, file_system) = line.split_once(" - ")?;
        if file_system.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = Path::new(group).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

/// Whether whoever manages the system has left the group to its processes: systemd says so, and a group of a
/// user that is not root was given to that one.
fn is_delegated(group: &Path) -> bool {
    let is_marked = ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut mark = [0; 8];
        rustix::fs::getxattr(group, *name, &mut mark[..])
            .is_ok_and(|length| &mark[..length] == b"1")
    });
    let me = rustix::process::geteuid();
    let is_mine = || {
        rustix::fs::stat(group.join("cgroup.procs")).is_ok_and(|stat| stat.st_uid == me.as_raw())
    };
    is_marked || (!me.is_root() && is_mine())
}

/// Has the groups below limit memory. Whether they do.
fn limits_memory(group: &Path) -> bool {
    let has = |file: &str| {
        let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
        text.split_whitespace().any(|controller| controller == "memory")
    };
    has("cgroup.controllers")
        && (has("cgroup.subtree_control")
            || write(&group.join("cgroup.subtree_control"), b"+memory").is_ok())
}

fn make_directory(path: &Path) -> Result<(), CgroupError> {
    std::fs::create_dir(path).map_err(failed("make", path))
}

fn open(path: &Path, to_write: bool) -> Result<File, CgroupError> {
    let opened = OpenOptions::new().read(!to_write).write(to_write).open(path);
    opened.map_err(failed("open", path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CgroupError> {
    let written = open(path, true)?.write_all(bytes);
    written.map_err(failed("write to", path))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |error| CgroupError::Failed { what, path, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_a_process_is_found_where_it_is_mounted() {
        let unified = "25 1 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let group = "0::/system.slice/widemap-worker.service\n";
        let found = own_in(group, unified);
        assert_eq!(found, Some("/sys/fs/cgroup/system.slice/widemap-worker.service".into()));
        // Beside the first version; in a container that sees a part of the hierarchy.
        let both = "30 1 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                    31 1 0:27 /docker/7 /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            own_in("4:memory:/m\n0::/docker/7/a\n", both),
            Some("/sys/fs/cgroup/unified/a".into())
        );
        assert_eq!(own_in("0::/elsewhere\n", both), None);
        assert_eq!(own_in("4:memory:/m\n", both), None);
    }

    #[test]
    fn numbers_are_read_by_their_whole_key() {
        let events = "low 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 3\n";
        assert_eq!((value_in(events, "oom_kill"), value_in(events, "oom")), (Some(1), Some(2)));
        assert_eq!(value_in(events, "populated"), None);
    }

    /// A directory with the files of a group: what is written where a limit is set.
    #[test]
    fn a_limit_of_memory_is_written_once_and_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for file in
            ["cgroup.procs", "cgroup.kill", "cgroup.events", "memory.max", "memory.swap.max"]
        {
            std::fs::write(at(file), "").unwrap();
        }
        std::fs::write(at("memory.events"), "oom 1\noom_kill 1\n").unwrap();
        let mut group = SlotGroup::open(directory.path(), true).unwrap();
        group.prepare(Some(1 << 30)).unwrap();
        assert_eq!(std::fs::read_to_string(at("memory.max")).unwrap(), "1073741824");
        assert!(!group.ran_out_of_memory());
        std::fs::write(at("memory.events"), "oom 2\noom_kill 2\n").unwrap();
        assert!(group.ran_out_of_memory());
        std::fs::write(at("memory.max"), "").unwrap();
        group.prepare(Some(1 << 30)).unwrap();
        assert_eq!(std::fs::read_to_string(at("memory.max")).unwrap(), "");
        assert!(!group.ran_out_of_memory());
        group.prepare(None).unwrap();
        assert_eq!(std::fs::read_to_string(at("memory.max")).unwrap(), "max");
    }

    #[test]
    fn what_is_no_group_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let error = Cgroup::Below(directory.path().to_owned()).make(1).unwrap_err();
        assert!(error.to_string().contains("no control group of version 2"), "{error}");
        assert!(Cgroup::Off.make(1).unwrap().is_none());
    }
}
