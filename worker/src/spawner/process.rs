//! The spawner's own life: one thread that waits for requests of the slots and for the end of what
//! it started.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use widemap_common::spec::Limits;

use super::cgroup::SlotGroup;
use super::message::{Answer, Field, Fields, Reply, Request, read_request};
use super::{descendants, look};

/// What is read from a slot's socket at once.
const READ_BYTES: usize = 64 * 1024;

/// Serves the slots behind `sockets`, each with its control group if there are any, until the worker
/// has closed them all, then ends all that is
/// left of what was started.
pub(super) fn run(sockets: Vec<UnixStream>, groups: Vec<SlotGroup>) -> io::Result<()> {
    let child_ended = set_up()?;
    let groups = groups.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    let slots = sockets.into_iter().zip(groups);
    let mut spawner = SpawnerLoop {
        slots: slots.map(|(socket, group)| Slot::new(socket, group)).collect::<io::Result<_>>()?,
        leaders: HashMap::new(),
        child_ended,
        buffer: vec![0; READ_BYTES],
    };
    let served = loop {
        if spawner.slots.iter().all(|slot| slot.socket.is_none()) {
            break Ok(());
        }
        if let Err(error) = spawner.turn() {
            break Err(error);
        }
    };
    descendants::end_all();
    served
}

/// Makes this process what it is to be, and returns a socket that is readable when a child ended.
fn set_up() -> io::Result<UnixStream> {
    // A session of its own, and a process group with it: Ctrl-C is for the worker, which tells us
    // what to end, and the terminal that it was started from is no business of jobs. One that runs
    // as another user could read there what its owner types, and type in that one's place.
    rustix::process::setsid()?;
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        // A handler that does nothing, since children would inherit that a signal is ignored.
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    // The worker's standard streams are not ours to hold open.
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    #[cfg(target_os = "linux")]
    {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        // Only a name in listings.
        let _ = rustix::thread::set_name(c"widemap-spawner");
    }
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(SIGCHLD, write)?;
    Ok(read)
}

struct SpawnerLoop {
    slots: Vec<Slot>,
    /// The slot of each process that was started and has not ended.
    leaders: HashMap<Pid, usize>,
    child_ended: UnixStream,
    buffer: Vec<u8>,
}

/// What the spawner knows of a slot.
struct Slot {
    /// Nothing once the worker has closed it.
    socket: Option<UnixStream>,
    inbox: Vec<u8>,
    files: VecDeque<OwnedFd>,
    /// The group of its process, while anything of it may be left.
    group: Option<Pid>,
    /// Where all that it starts is, also what leaves that.
    cgroup: Option<SlotGroup>,
}

impl SpawnerLoop {
    /// Waits for something to do, and does it.
    fn turn(&mut self) -> io::Result<()> {
        let (mut ready, ended) = self.wait()?;
        if ended {
            while matches!((&self.child_ended).read(&mut self.buffer), Ok(1..)) {}
            self.reap();
        }
        while let Some(index) = ready.pop() {
            self.serve(index);
        }
        Ok(())
    }

    /// Blocks until slots have requests or children have ended.
    fn wait(&self) -> io::Result<(Vec<usize>, bool)> {
        let open =
            || self.slots.iter().enumerate().filter_map(|(i, s)| Some((i, s.socket.as_ref()?)));
        let mut polled = Vec::with_capacity(self.slots.len() + 1);
        polled.push(PollFd::new(&self.child_ended, PollFlags::IN));
        polled.extend(open().map(|(_, socket)| PollFd::new(socket, PollFlags::IN)));
        match rustix::event::poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok((Vec::new(), false)),
            Err(error) => return Err(error.into()),
        }
        let ready = open()
            .zip(&polled[1..])
            .filter(|(_, polled)| !polled.revents().is_empty())
            .map(|((index, _), _)| index)
            .collect();
        Ok((ready, !polled[0].revents().is_empty()))
    }

    /// Reaps every child that has ended, orphans too, and tells the slots of theirs.
    fn reap(&mut self) {
        let mut ended = Vec::new();
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(index) = self.leaders.remove(&pid) {
                        ended.push((index, status));
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => break,
            }
        }
        for (index, status) in ended {
            self.slots[index].ended(status);
        }
    }

    /// Reads what a slot has sent and does what is whole of it.
    fn serve(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if !slot.receive(&mut self.buffer) {
            slot.signal(Signal::KILL);
            slot.socket = None;
            return;
        }
        let inbox = std::mem::take(&mut slot.inbox);
        let mut rest = inbox.as_slice();
        while let Some((request, length)) = read_request(rest) {
            match request {
                Request::Spawn { clear_environment, stdin, fields } => {
                    self.spawn(index, clear_environment, stdin, fields);
                }
                Request::Signal(raw) => {
                    if let Some(signal) = Signal::from_named_raw(raw) {
                        self.slots[index].signal(signal);
                    }
                }
                Request::Look => {
                    let slot = &self.slots[index];
                    let leader = slot.group.filter(|group| self.leaders.contains_key(group));
                    slot.answer(Answer::Looked(leader.is_some_and(look::waits_for_input)));
                }
            }
            rest = &rest[length..];
        }
        let done = inbox.len() - rest.len();
        let mut inbox = inbox;
        inbox.drain(..done);
        self.slots[index].inbox = inbox;
    }

    fn spawn(&mut self, index: usize, clear_environment: bool, stdin: bool, fields: Fields<'_>) {
        let slot = &mut self.slots[index];
        // What the former process left behind has had its time.
        slot.signal(Signal::KILL);
        let wanted = if stdin { 3 } else { 2 };
        if slot.files.len() < wanted {
            // The system had no room for the files that came with the request.
            slot.files.clear();
            return slot.reply(Reply::Failed(Errno::MFILE));
        }
        if let Err(error) = slot.prepare(fields.clone()) {
            slot.files.clear();
            return slot.reply(Reply::Failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)));
        }
        let mut command = command(clear_environment, fields);
        if let Some(cgroup) = &slot.cgroup {
            join(&mut command, cgroup.procs());
        }
        let mut next_file = || Stdio::from(slot.files.pop_front().expect("they were counted"));
        command.stdin(if stdin { next_file() } else { Stdio::null() });
        command.stdout(next_file()).stderr(next_file());
        match command.spawn() {
            Ok(child) => {
                let pid = Pid::from_child(&child);
                slot.group = Some(pid);
                self.leaders.insert(pid, index);
            }
            Err(error) => {
                slot.reply(Reply::Failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)));
            }
        }
    }
}

/// The command that a request describes. Its program is a path and there is nothing to run between
/// fork and exec, which lets the standard library take `posix_spawn`.
fn command(clear_environment: bool, fields: Fields<'_>) -> Command {
    let program = fields.clone().find_map(|field| match field {
        Field::Program(path) => Some(path),
        _ => None,
    });
    let mut command = Command::new(OsStr::from_bytes(program.unwrap_or_default()));
    command.process_group(0);
    if clear_environment {
        command.env_clear();
    }
    let mut named = false;
    for field in fields {
        match field {
            Field::Program(_) => {}
            Field::Directory(path) => {
                command.current_dir(OsStr::from_bytes(path));
            }
            Field::Argument(name) if !named => {
                command.arg0(OsStr::from_bytes(name));
                named = true;
            }
            Field::Argument(argument) => {
                command.arg(OsStr::from_bytes(argument));
            }
            Field::Limits(limits) => limit(&mut command, limits),
            Field::Variable(name, value) => {
                command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
            }
        }
    }
    command
}

/// Has the process take less. The standard library forks for it, where it takes `posix_spawn` otherwise.
#[allow(unsafe_code)]
fn limit(command: &mut Command, limits: Limits) {
    let set = move || {
        if let Some(bytes) = limits.memory {
            set_limit(Resource::As, bytes.get(), bytes.get())?;
        }
        if let Some(seconds) = limits.cpu_seconds {
            // One that ignores the signal is killed a second later.
            let seconds = u64::from(seconds.get());
            set_limit(Resource::Cpu, seconds, seconds + 1)?;
        }
        if limits.nice > 0 {
            rustix::process::nice(limits.nice.into())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only, and neither allocates nor locks.
    unsafe { command.pre_exec(set) };
}

/// Has the process join a control group before it does anything else.
#[allow(unsafe_code)]
fn join(command: &mut Command, procs: BorrowedFd<'_>) {
    let procs = procs.as_raw_fd();
    let write = move || {
        // SAFETY: the slot keeps the file for as long as the spawner lives.
        let procs = unsafe { BorrowedFd::borrow_raw(procs) };
        rustix::io::write(procs, b"0")?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes one system call, and neither allocates nor locks.
    unsafe { command.pre_exec(write) };
}

/// Sets a limit, or less where less is allowed.
fn set_limit(resource: Resource, current: u64, maximum: u64) -> io::Result<()> {
    let allowed = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let (current, maximum) = (Some(current.min(allowed)), Some(maximum.min(allowed)));
    Ok(rustix::process::setrlimit(resource, Rlimit { current, maximum })?)
}

impl Slot {
    fn new(socket: UnixStream, cgroup: Option<SlotGroup>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (inbox, files) = (Vec::new(), VecDeque::new());
        Ok(Self { socket: Some(socket), inbox, files, group: None, cgroup })
    }

    /// Sets what the next process and all that it starts may take together.
    fn prepare(&mut self, mut fields: Fields<'_>) -> io::Result<()> {
        let Some(cgroup) = &mut self.cgroup else { return Ok(()) };
        let memory = fields.find_map(|field| match field {
            Field::Limits(limits) => limits.memory,
            _ => None,
        });
        cgroup.prepare(memory.map(NonZeroU64::get))
    }

    /// Reads once what the slot has sent. False when the worker has closed the socket.
    fn receive(&mut self, buffer: &mut [u8]) -> bool {
        let Some(socket) = &self.socket else { return true };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(buffer)];
        #[cfg(target_os = "linux")]
        let flags = RecvFlags::CMSG_CLOEXEC;
        #[cfg(not(target_os = "linux"))]
        let flags = RecvFlags::empty();
        let received = match rustix::net::recvmsg(socket, &mut pieces, &mut control, flags) {
            Ok(message) => message.bytes,
            Err(Errno::INTR | Errno::AGAIN) => return true,
            Err(_) => 0,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.extend(files);
            }
        }
        self.inbox.extend_from_slice(&buffer[..received]);
        received > 0
    }

    /// Its process has ended and is reaped.
    fn ended(&mut self, status: WaitStatus) {
        let group_left = self.group.is_some_and(|group| {
            rustix::process::test_kill_process_group(group) != Err(Errno::SRCH)
        });
        if !group_left {
            // The number may be given to another process from now on.
            self.group = None;
        }
        let group_left = group_left || self.cgroup.as_ref().is_some_and(SlotGroup::is_populated);
        let out_of_memory = self.cgroup.as_ref().is_some_and(SlotGroup::ran_out_of_memory);
        self.reply(match (status.exit_status(), status.terminating_signal()) {
            (Some(status), _) => Reply::Exited { status, group_left, out_of_memory },
            (None, signal) => {
                Reply::Killed { signal: signal.unwrap_or_default(), group_left, out_of_memory }
            }
        });
    }

    fn signal(&mut self, signal: Signal) {
        if signal == Signal::KILL
            && let Some(cgroup) = &self.cgroup
            && cgroup.is_populated()
        {
            // What it does not reach ends with the group of processes, and with the spawner.
            let _ = cgroup.kill();
        }
        let Some(group) = self.group else { return };
        let sent = rustix::process::kill_process_group(group, signal);
        if sent == Err(Errno::SRCH) {
            self.group = None;
        }
    }

    fn reply(&self, reply: Reply) {
        self.answer(Answer::Ended(reply));
    }

    fn answer(&self, answer: Answer) {
        if let Some(mut socket) = self.socket.as_ref() {
            // A worker that is gone is noticed by its closed socket.
            let _ = socket.write_all(&answer.to_bytes());
        }
    }
}
