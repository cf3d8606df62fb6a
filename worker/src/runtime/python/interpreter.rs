//! An interpreter that a slot keeps: its process, the page that tells which item it is at, and what of its
//! answers has come.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use serde::Serialize;
use widemap_common::framing::Framing;
use widemap_common::limits::TURN_BYTES;

use super::frames::{ANSWER_BYTES, Answer};
use crate::job::PythonJob;
use crate::runtime::live::Live;
use crate::runtime::streams::Streams;

/// The page that the interpreter shares with its slot.
const PAGE_BYTES: u64 = 4096;

/// No item runs.
const NO_ITEM: u64 = u64::MAX;

/// The results of items that have run are being written.
const ENCODING: u64 = u64::MAX - 1;

/// Runs the program that comes first on standard input.
const STUB: &str = "import os\n\
    n = int.from_bytes(os.read(0, 4), 'little')\n\
    s = b''\n\
    while len(s) < n: s += os.read(0, n - len(s))\n\
    exec(compile(s, '<widemap>', 'exec'), {'__name__': '__main__', '__file__': '<widemap>'})";

/// The program of the interpreter.
const HOST: &str = include_str!("host.py");

/// See the file's head.
pub(in crate::runtime) struct Interpreter {
    page: OwnedFd,
    /// What has come and is not taken.
    inbox: VecDeque<u8>,
    /// Items that it has run.
    pub(super) ran: u32,
    pub(super) is_ready: bool,
}

/// Where an interpreter is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum At {
    /// At this item of its request, since so long.
    Item(u32, Duration),
    /// Between items, or at many of them.
    Elsewhere,
}

#[derive(Serialize)]
struct SetUp<'a> {
    shown: &'a str,
    path: &'a str,
    search: Vec<&'a str>,
    function: &'a str,
    initializer: Option<&'a str>,
    text: bool,
    /// None where items are bytes with their lengths before them.
    separator: Option<u8>,
    max_output: u64,
    cpu_seconds: Option<NonZeroU32>,
    bytecode: bool,
}

impl Interpreter {
    /// One that is to be started with the streams.
    pub(super) fn prepare() -> Result<(Self, Streams), Errno> {
        let page = page()?;
        rustix::fs::ftruncate(&page, PAGE_BYTES)?;
        // It has not begun yet.
        rustix::io::pwrite(&page, &NO_ITEM.to_le_bytes(), 0)?;
        let streams = Streams::open_socket(&page)?;
        let interpreter = Self { page, inbox: VecDeque::new(), ran: 0, is_ready: false };
        Ok((interpreter, streams))
    }

    /// Which item it is at.
    pub(super) fn at(&self) -> At {
        let mut bytes = [0; 16];
        if rustix::io::pread(&self.page, &mut bytes, 0) != Ok(bytes.len()) {
            return At::Elsewhere;
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        match word(0) {
            NO_ITEM | ENCODING => At::Elsewhere,
            item => {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
                let now = Duration::try_from(now).unwrap_or_default();
                let since = Duration::from_nanos(word(8));
                At::Item(u32::try_from(item).unwrap_or(u32::MAX), now.saturating_sub(since))
            }
        }
    }

    /// Takes in what it has said, a turn of it. How many bytes.
    pub(super) fn receive(&mut self, live: &mut Live) -> usize {
        let mut moved = 0;
        let mut buffer = [0; 64 * 1024];
        while moved < TURN_BYTES {
            let read = live.read_some(&mut buffer);
            if read == 0 {
                break;
            }
            self.inbox.extend(&buffer[..read]);
            moved += read;
        }
        moved
    }

    /// The bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.inbox.len()
    }

    /// The next answer's head, and what is told in it, once both are here whole; its body may not be.
    ///
    /// # Errors
    /// If it is none.
    pub(super) fn next_answer(&mut self) -> Result<Option<(Answer, Vec<u8>)>, Nonsense> {
        if self.inbox.len() < ANSWER_BYTES {
            return Ok(None);
        }
        let head: Vec<u8> = self.inbox.iter().take(ANSWER_BYTES).copied().collect();
        let answer = Answer::read(&head).ok_or(Nonsense)?;
        let told_bytes = usize::try_from(answer.told_bytes).map_err(|_| Nonsense)?;
        if self.inbox.len() - ANSWER_BYTES < told_bytes {
            return Ok(None);
        }
        self.inbox.drain(..ANSWER_BYTES);
        Ok(Some((answer, self.inbox.drain(..told_bytes).collect())))
    }

    /// Moves up to so many bytes that wait. How many.
    pub(super) fn take(&mut self, most: u64, into: &mut Vec<u8>) -> u64 {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(self.inbox.len());
        let (front, back) = self.inbox.as_slices();
        let of_front = most.min(front.len());
        into.extend_from_slice(&front[..of_front]);
        into.extend_from_slice(&back[..most - of_front]);
        self.inbox.drain(..most);
        most as u64
    }
}

/// Something else than answers has come.
#[derive(Debug)]
pub(super) struct Nonsense;

/// What is said first: the program, the job, and the user's file.
pub(super) fn set_up(
    job: &PythonJob,
    max_output: u64,
    cpu_seconds: Option<NonZeroU32>,
    framing: Framing,
) -> Vec<u8> {
    let python = &job.python;
    let shown = String::from_utf8_lossy(&python.path);
    let path = job.path.to_string_lossy();
    let search: Vec<_> = job.search.iter().map(|path| path.to_string_lossy()).collect();
    let set_up = SetUp {
        shown: &shown,
        path: &path,
        search: search.iter().map(AsRef::as_ref).collect(),
        function: &python.function,
        initializer: python.initializer.as_deref(),
        text: python.is_text,
        separator: framing.separator(),
        max_output,
        cpu_seconds,
        bytecode: job.keeps_bytecode,
    };
    let set_up = serde_json::to_vec(&set_up).expect("strings and numbers always can be JSON");
    let mut said = Vec::with_capacity(HOST.len() + set_up.len() + python.source.len() + 12);
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    said.extend_from_slice(&length(HOST.as_bytes()));
    said.extend_from_slice(HOST.as_bytes());
    said.extend_from_slice(&length(&set_up));
    said.extend_from_slice(&length(&python.source));
    said.extend_from_slice(&set_up);
    said.extend_from_slice(&python.source);
    said
}

/// The arguments of an interpreter; the last one is for listings of processes.
pub(super) fn arguments(job: &PythonJob) -> [Vec<u8>; 4] {
    let python = &job.python;
    let mut shown = python.path.clone();
    shown.push(b':');
    shown.extend_from_slice(python.function.as_bytes());
    [python.interpreter.clone(), b"-c".to_vec(), STUB.as_bytes().to_vec(), shown]
}

#[cfg(target_os = "linux")]
fn page() -> Result<OwnedFd, Errno> {
    rustix::fs::memfd_create("widemap-page", rustix::fs::MemfdFlags::CLOEXEC)
}

#[cfg(not(target_os = "linux"))]
fn page() -> Result<OwnedFd, Errno> {
    let file = tempfile::tempfile();
    file.map(OwnedFd::from).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
