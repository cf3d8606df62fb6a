//! A small process of the worker's own that starts every command and ends with the worker, so that
//! spawning costs the same however large the worker is, and nothing that it started outlives it.

mod cgroup;
mod descendants;
mod look;
mod message;
mod process;
mod run_as;
mod steward;

use std::io::{IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use rustix::fs::Access;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions};
use widemap_cluster::harden::close_memory;
use widemap_common::limits::SLOTS_MAX;

use crate::artifacts::Place;
use crate::files::Files;
use cgroup::{Directories, Groups, SlotGroup};
use steward::{Beginning, StewardEnds};

pub use cgroup::{Cgroup, CgroupError};
use message::Answer;
pub(crate) use message::{Reply, SpawnRequest};
pub use run_as::{RunAs, RunAsError, Step};
pub(crate) use steward::Steward;

/// Files beside the slots' own that the spawner itself needs.
const SPAWNER_FILES: u64 = 64;

/// Files of a control group.
const GROUP_FILES: u64 = 5;

/// The process that starts commands, and a channel to it for each slot.
///
/// It is started first thing in `main`: it is forked from this process, which must not have other
/// threads yet.
pub struct Spawner {
    channels: Vec<SlotChannel>,
    process: SpawnerProcess,
    /// Whom everything that it starts runs as; nothing if that is the user of this process.
    run_as: Option<Arc<RunAs>>,
    /// Looks after the files of what it starts.
    files: Arc<Files>,
}

/// Why the spawner could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnerError {
    /// The process has other threads already.
    #[error(
        "the spawner must be started before any thread, and there are {0} (start it first thing in main)"
    )]
    Threads(usize),
    /// No socket pair could be made.
    #[error("cannot make the spawner's sockets: {0}")]
    Sockets(#[source] io::Error),
    /// No process could be made.
    #[error("cannot start the spawner's process: {0}")]
    Fork(#[source] io::Error),
    /// Control groups were asked for, and cannot be had.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// It cannot be of the user that jobs are to run as.
    #[error(transparent)]
    RunAs(#[from] RunAsError),
    /// It ended before it served.
    #[error(transparent)]
    Gone(#[from] SpawnerGone),
}

/// The spawner has died: no command can be started any more, and the worker must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process that starts commands has died")]
pub struct SpawnerGone;

impl Spawner {
    /// Starts the spawner for a worker of `slots` slots.
    ///
    /// The soft limit of open files is raised to the hard one, for the worker; what it starts keeps
    /// the former.
    ///
    /// # Errors
    /// [`SpawnerError`] if there are threads already, or the system is at a limit.
    pub fn start(slots: u32) -> Result<Self, SpawnerError> {
        Self::start_in(slots, None, &Cgroup::Off)
    }

    /// Starts the spawner for a worker of `slots` slots, as a process of `user`: it gives up root
    /// before it serves, and with it everything that it starts. This process keeps its own user, as
    /// do the functions that are registered in it, and so its memory and its files are closed to
    /// jobs. To each other jobs are open as those of one user are: one may signal another, and the
    /// spawner, without which the worker ends.
    ///
    /// # Errors
    /// [`SpawnerError`] as for [`Spawner::start`], and if it cannot become that user.
    pub fn start_as(slots: u32, user: RunAs) -> Result<Self, SpawnerError> {
        Self::start_in(slots, Some(user), &Cgroup::Off)
    }

    /// Starts the spawner for a worker of `slots` slots, as a process of `user` if one is given (see
    /// [`Spawner::start_as`]), with a control group for each slot where `cgroup` says.
    ///
    /// # Errors
    /// [`SpawnerError`] as for [`Spawner::start_as`], and if there can be no such groups.
    pub fn start_in(
        slots: u32,
        user: Option<RunAs>,
        cgroup: &Cgroup,
    ) -> Result<Self, SpawnerError> {
        if let Some(user) = &user {
            user.check()?;
        }
        let slots = slots.clamp(1, SLOTS_MAX);
        let threads = thread_count();
        if threads > 1 {
            return Err(SpawnerError::Threads(threads));
        }
        let files = raise_open_files();
        let pairs: Vec<_> = (0..slots)
            .map(|_| UnixStream::pair())
            .collect::<Result<_, _>>()
            .map_err(SpawnerError::Sockets)?;
        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let steward =
            user.as_ref().map(|_| steward::pair()).transpose().map_err(SpawnerError::Sockets)?;
        let (steward, ends) = steward.unzip();
        let (groups, group_directories) = match cgroup.make(slots) {
            Ok(Some(Groups { slots, directories })) => (slots, directories),
            Ok(None) => (Vec::new(), Directories::default()),
            Err(error) => {
                // Whoever tries again without them is to find the limit as it was.
                lower_open_files(files);
                return Err(error.into());
            }
        };
        let group_files = GROUP_FILES * groups.len() as u64;
        let name = format!("widemap-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let directory = std::env::temp_dir().join(name);
        let Some(pid) = fork()? else {
            // The spawner: from here on a process of its own.
            drop((ours, steward));
            lower_open_files(files.max(u64::from(slots) + group_files + SPAWNER_FILES));
            let life = || live(theirs, groups, user.as_ref().zip(ends), &directory);
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(life));
            // Also where the worker had no time to: nothing works there any more.
            let _ = crate::files::remove(&directory);
            group_directories.remove();
            end_process(i32::from(!matches!(ended, Ok(Ok(())))));
        };
        drop((theirs, ends, groups));
        let channels = ours.into_iter().map(|socket| SlotChannel { socket }).collect();
        // A path that is free, and that the spawner removes with all that is in it at its end.
        let mut files = Files::Own { parent: directory.clone() };
        let process = SpawnerProcess { pid, directory, group_directories };
        if let Some((user, steward)) = user.as_ref().zip(steward) {
            if let Err(error) = ready(user, &steward) {
                drop::<Vec<_>>(channels);
                process.wait();
                return Err(error);
            }
            files = Files::Steward(steward);
        }
        Ok(Self { channels, process, run_as: user.map(Arc::new), files: Arc::new(files) })
    }

    /// The slots that it serves.
    #[must_use]
    pub fn slots(&self) -> u32 {
        u32::try_from(self.channels.len()).expect("slots are bounded by SLOTS_MAX")
    }

    /// Whom everything that it starts runs as, if that is another user than this one.
    pub(crate) fn run_as(&self) -> Option<Arc<RunAs>> {
        self.run_as.clone()
    }

    /// Who looks after the files of what it starts.
    pub(crate) fn files(&self) -> Arc<Files> {
        self.files.clone()
    }

    /// Where what is in files of jobs can be kept: with what this process looks after, unless that is
    /// another user's.
    ///
    /// # Errors
    /// If no directory can be made.
    pub(crate) fn artifacts(&self) -> io::Result<Place> {
        match &*self.files {
            Files::Own { parent } => Ok(Place::In(parent.join("artifacts"))),
            Files::Steward(_) => Place::own(&std::env::temp_dir()),
        }
    }

    pub(crate) fn into_parts(self) -> (Vec<SlotChannel>, SpawnerProcess) {
        (self.channels, self.process)
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawner").field("pid", &self.process.pid).finish_non_exhaustive()
    }
}

/// The spawner's process. It ends when the last channel is closed.
#[derive(Debug)]
pub(crate) struct SpawnerProcess {
    pid: Pid,
    directory: PathBuf,
    group_directories: Directories,
}

impl SpawnerProcess {
    /// Waits until it has ended, with all that it started. The channels are closed before.
    pub(crate) fn wait(self) {
        // It ends within a bound of its own. Whoever reaped it before us is welcome.
        let wait = || rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
        while matches!(wait(), Err(Errno::INTR)) {}
        // It did so itself, unless it was killed. What another user has put there is removed as
        // safely: no link is followed.
        let _ = std::fs::remove_dir_all(&self.directory);
        self.group_directories.remove();
    }
}

/// One slot's way to the spawner. A slot runs one process at a time: each request to spawn is
/// followed by exactly one reply before the next.
#[derive(Debug)]
pub(crate) struct SlotChannel {
    socket: UnixStream,
}

impl SlotChannel {
    /// Asks for a process with these files: standard input (if the request says so), output, error.
    pub(crate) fn spawn(
        &mut self,
        request: &mut SpawnRequest,
        files: &[BorrowedFd<'_>],
    ) -> Result<(), SpawnerGone> {
        let bytes = request.finish();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = control.push(SendAncillaryMessage::ScmRights(files));
        assert!(fits, "a process has three files at the most");
        let sent = loop {
            let pieces = [IoSlice::new(bytes)];
            match rustix::net::sendmsg(&self.socket, &pieces, &mut control, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => break sent.map_err(|_| SpawnerGone)?,
            }
        };
        self.socket.write_all(&bytes[sent..]).map_err(|_| SpawnerGone)
    }

    /// Sends a signal to the whole group of the slot's process, if anything of it is left.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<(), SpawnerGone> {
        let request = message::signal_request(signal.as_raw());
        self.socket.write_all(&request).map_err(|_| SpawnerGone)
    }

    /// Reads the reply to a request to spawn; it is there when the socket is readable.
    pub(crate) fn reply(&mut self) -> Result<Reply, SpawnerGone> {
        loop {
            // Looks have their answers before anything else is asked.
            if let Answer::Ended(reply) = self.answer()? {
                return Ok(reply);
            }
        }
    }

    /// Whether the slot's process is known to wait for something to read on its standard input, and to
    /// do nothing else meanwhile; and how it has ended, if that comes first.
    pub(crate) fn looks_for_input(&mut self) -> Result<(bool, Option<Reply>), SpawnerGone> {
        self.socket.write_all(&message::LOOK_REQUEST).map_err(|_| SpawnerGone)?;
        let mut ended = None;
        loop {
            match self.answer()? {
                Answer::Looked(waits) => return Ok((waits, ended)),
                Answer::Ended(reply) => ended = Some(reply),
            }
        }
    }

    fn answer(&mut self) -> Result<Answer, SpawnerGone> {
        let mut bytes = [0; message::ANSWER_BYTES];
        self.socket.read_exact(&mut bytes).map_err(|_| SpawnerGone)?;
        Ok(Answer::from_bytes(bytes))
    }
}

impl AsFd for SlotChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Waits until the spawner is of the user.
fn ready(user: &RunAs, steward: &Steward) -> Result<(), SpawnerError> {
    match steward.beginning() {
        Beginning::Ready => Ok(()),
        Beginning::Refused(step, errno) => Err(user.error(step, errno).into()),
        Beginning::Died => Err(SpawnerGone.into()),
    }
}

/// The spawner's life, from its first moment to the end of all that it started.
fn live(
    slots: Vec<UnixStream>,
    groups: Vec<SlotGroup>,
    other: Option<(&RunAs, StewardEnds)>,
    directory: &Path,
) -> io::Result<()> {
    if let Some((user, ends)) = other {
        if let Err((step, errno)) = become_user(user, directory) {
            ends.refuse(step, errno);
            return Ok(());
        }
        ends.serve(directory)?;
    }
    // Its memory is a copy of the worker's. Last, since a change of user opens or closes it.
    close_memory()?;
    process::run(slots, groups)
}

/// Becomes of the user, for good, and checks that this one can make `directory` when it is needed.
fn become_user(user: &RunAs, directory: &Path) -> Result<(), (Step, nix::errno::Errno)> {
    user.take_on()?;
    let parent = directory.parent().unwrap_or(directory);
    rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|errno| (Step::Temporary, nix::errno::Errno::from_raw(errno.raw_os_error())))
}

/// The threads of this process, where the system tells.
fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Raises the soft limit of open files to the hard one, and returns what it was.
fn raise_open_files() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // Where the hard limit is "unlimited", systems refuse it as a soft one: then all stays as it is.
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    limit.current.unwrap_or(u64::MAX)
}

/// Gives processes the limit that the worker was started with: some close every file up to it.
fn lower_open_files(files: u64) {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(files, |maximum| maximum.min(files));
    let lowered = Rlimit { current: Some(current), maximum: limit.maximum };
    let _ = rustix::process::setrlimit(Resource::Nofile, lowered);
}

/// Forks this process: the new one's id for the old one, nothing for the new one.
#[allow(unsafe_code)]
fn fork() -> Result<Option<Pid>, SpawnerError> {
    // SAFETY: the caller has checked that this process has one thread, so no lock (the
    // allocator's, say) can be held by a thread that does not exist in the child, and the child may
    // go on as any program.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(SpawnerError::Fork(io::Error::last_os_error()));
    }
    Ok(Pid::from_raw(pid))
}

/// Ends this process without what its parent registered to run at its own exit.
#[allow(unsafe_code)]
fn end_process(status: i32) -> ! {
    // SAFETY: `_exit` only ends the process.
    unsafe { libc::_exit(status) }
}
