//! What a slot and the spawner say to each other over their socket: a request in one piece with the
//! process's files beside it, and answers of eight bytes.

use std::num::{NonZeroU32, NonZeroU64};

use rustix::io::Errno;
use widemap_common::spec::Limits;

/// The length of each answer.
pub(super) const ANSWER_BYTES: usize = 8;

/// The kind of a request and the length of its body.
pub(super) const HEADER_BYTES: usize = 5;

const SPAWN: u8 = 1;
const SIGNAL: u8 = 2;
const LOOK: u8 = 3;

/// The request to look at the slot's process.
pub(super) const LOOK_REQUEST: [u8; HEADER_BYTES] = [LOOK, 0, 0, 0, 0];

const CLEAR_ENVIRONMENT: u8 = 1;
const HAS_STDIN: u8 = 2;

const PROGRAM: u8 = 1;
const DIRECTORY: u8 = 2;
const ARGUMENT: u8 = 3;
const NAME: u8 = 4;
const VALUE: u8 = 5;
const LIMITS: u8 = 6;

/// A process to start, in the form that goes over the socket: filled in place, so that an item
/// costs no allocation, and used again for the next one.
#[derive(Debug, Default)]
pub(crate) struct SpawnRequest {
    bytes: Vec<u8>,
}

impl SpawnRequest {
    /// Begins a new request.
    ///
    /// The files that go with it are standard input (if `stdin`), output and error. Without
    /// `clear_environment` the process has the spawner's environment, and the variables beside it.
    pub(crate) fn begin(&mut self, clear_environment: bool, stdin: bool) {
        self.bytes.clear();
        self.bytes.extend_from_slice(&[SPAWN, 0, 0, 0, 0]);
        let clear = if clear_environment { CLEAR_ENVIRONMENT } else { 0 };
        self.bytes.push(clear | if stdin { HAS_STDIN } else { 0 });
    }

    /// Forgets what was too large to be sent.
    pub(crate) fn forget(&mut self) {
        self.bytes = Vec::new();
    }

    /// The path of the program.
    pub(crate) fn program(&mut self, path: &[u8]) {
        self.field(PROGRAM, path);
    }

    /// Where the process works; unset is where the worker does.
    pub(crate) fn directory(&mut self, path: &[u8]) {
        self.field(DIRECTORY, path);
    }

    /// The next argument, written by `fill`; the first one is the name of the command. Returns it.
    pub(crate) fn argument(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        let head = self.bytes.len();
        self.bytes.extend_from_slice(&[ARGUMENT, 0, 0, 0, 0]);
        let start = self.bytes.len();
        fill(&mut self.bytes);
        let length = length_of(self.bytes.len() - start);
        self.bytes[head + 1..start].copy_from_slice(&length);
        &self.bytes[start..]
    }

    /// A variable of the environment.
    pub(crate) fn variable(&mut self, name: &[u8], value: &[u8]) {
        self.field(NAME, name);
        self.field(VALUE, value);
    }

    /// What the process may take.
    pub(crate) fn limits(&mut self, limits: &Limits) {
        if *limits == Limits::default() {
            return;
        }
        let mut value = [0; 13];
        value[..8].copy_from_slice(&limits.memory.map_or(0, NonZeroU64::get).to_le_bytes());
        value[8..12].copy_from_slice(&limits.cpu_seconds.map_or(0, NonZeroU32::get).to_le_bytes());
        value[12] = limits.nice;
        self.field(LIMITS, &value);
    }

    /// The whole request.
    pub(super) fn finish(&mut self) -> &[u8] {
        let length = length_of(self.bytes.len() - HEADER_BYTES);
        self.bytes[1..HEADER_BYTES].copy_from_slice(&length);
        &self.bytes
    }

    fn field(&mut self, tag: u8, value: &[u8]) {
        self.bytes.push(tag);
        self.bytes.extend_from_slice(&length_of(value.len()));
        self.bytes.extend_from_slice(value);
    }
}

fn length_of(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("a request is bounded by the messages it is made of").to_le_bytes()
}

/// A request to send `signal` to the process group of the slot.
pub(super) fn signal_request(signal: i32) -> [u8; HEADER_BYTES + 4] {
    let mut request = [SIGNAL, 4, 0, 0, 0, 0, 0, 0, 0];
    request[HEADER_BYTES..].copy_from_slice(&signal.to_le_bytes());
    request
}

/// A request as the spawner reads it.
#[derive(Debug)]
pub(super) enum Request<'a> {
    Spawn { clear_environment: bool, stdin: bool, fields: Fields<'a> },
    Signal(i32),
    Look,
}

/// Reads the first request of `bytes`, and tells how long it is. Nothing if it is not whole yet.
pub(super) fn read_request(bytes: &[u8]) -> Option<(Request<'_>, usize)> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let body = rest.get(..length)?;
    let request = match header[0] {
        SIGNAL => {
            Request::Signal(i32::from_le_bytes(body.try_into().expect("a signal has four bytes")))
        }
        LOOK => Request::Look,
        _ => {
            let (flags, fields) =
                body.split_first().expect("a request to spawn begins with its flags");
            Request::Spawn {
                clear_environment: flags & CLEAR_ENVIRONMENT != 0,
                stdin: flags & HAS_STDIN != 0,
                fields: Fields { bytes: fields },
            }
        }
    };
    Some((request, HEADER_BYTES + length))
}

/// One field of a request to spawn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Field<'a> {
    Program(&'a [u8]),
    Directory(&'a [u8]),
    Argument(&'a [u8]),
    Variable(&'a [u8], &'a [u8]),
    Limits(Limits),
}

/// The fields of a request to spawn, in order.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    fn raw(&mut self) -> Option<(u8, &'a [u8])> {
        let (head, rest) = self.bytes.split_at_checked(5)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (value, rest) = rest.split_at_checked(length)?;
        self.bytes = rest;
        Some((head[0], value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let (tag, value) = self.raw()?;
        Some(match tag {
            PROGRAM => Field::Program(value),
            DIRECTORY => Field::Directory(value),
            NAME => Field::Variable(value, self.raw()?.1),
            LIMITS => Field::Limits(limits(value)),
            _ => Field::Argument(value),
        })
    }
}

fn limits(value: &[u8]) -> Limits {
    let value: &[u8; 13] = value.try_into().expect("limits have thirteen bytes");
    let [m0, m1, m2, m3, m4, m5, m6, m7, c0, c1, c2, c3, nice] = *value;
    Limits {
        memory: NonZeroU64::new(u64::from_le_bytes([m0, m1, m2, m3, m4, m5, m6, m7])),
        cpu_seconds: NonZeroU32::new(u32::from_le_bytes([c0, c1, c2, c3])),
        nice,
    }
}

/// What the spawner says to a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// To a request to spawn, sooner or later.
    Ended(Reply),
    /// To a request to look, at once: whether the process waits for input.
    Looked(bool),
}

const LOOKED: u8 = 4;

impl Answer {
    pub(super) fn to_bytes(self) -> [u8; ANSWER_BYTES] {
        match self {
            Self::Ended(reply) => reply.to_bytes(),
            Self::Looked(waits) => [LOOKED, u8::from(waits), 0, 0, 0, 0, 0, 0],
        }
    }

    pub(super) fn from_bytes(bytes: [u8; ANSWER_BYTES]) -> Self {
        match bytes[0] {
            LOOKED => Self::Looked(bytes[1] != 0),
            _ => Self::Ended(Reply::from_bytes(bytes)),
        }
    }
}

/// What became of a process that was to be started. Each request to spawn has exactly one reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    /// It could not be started.
    Failed(Errno),
    /// It exited. Out of memory: a process of its control group was killed for that.
    Exited { status: i32, group_left: bool, out_of_memory: bool },
    /// A signal ended it.
    Killed { signal: i32, group_left: bool, out_of_memory: bool },
}

impl Reply {
    fn to_bytes(self) -> [u8; ANSWER_BYTES] {
        let (kind, group_left, value) = match self {
            Self::Failed(errno) => (1, false, errno.raw_os_error()),
            Self::Exited { status, group_left, .. } => (2, group_left, status),
            Self::Killed { signal, group_left, .. } => (3, group_left, signal),
        };
        let out_of_memory = match self {
            Self::Failed(_) => false,
            Self::Exited { out_of_memory, .. } | Self::Killed { out_of_memory, .. } => {
                out_of_memory
            }
        };
        let value = value.to_le_bytes();
        let [v0, v1, v2, v3] = value;
        [kind, u8::from(group_left), u8::from(out_of_memory), 0, v0, v1, v2, v3]
    }

    fn from_bytes(bytes: [u8; ANSWER_BYTES]) -> Self {
        let value = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let (group_left, out_of_memory) = (bytes[1] != 0, bytes[2] != 0);
        match bytes[0] {
            1 => Self::Failed(Errno::from_raw_os_error(value)),
            2 => Self::Exited { status: value, group_left, out_of_memory },
            _ => Self::Killed { signal: value, group_left, out_of_memory },
        }
    }

    /// Whether processes of its group are left.
    pub(crate) fn group_left(self) -> bool {
        match self {
            Self::Failed(_) => false,
            Self::Exited { group_left, .. } | Self::Killed { group_left, .. } => group_left,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written_and_only_when_whole() {
        let mut request = SpawnRequest::default();
        request.begin(true, false);
        request.program(b"/bin/echo");
        assert_eq!(request.argument(|out| out.extend_from_slice(b"echo")), b"echo");
        assert_eq!(request.argument(|_| ()), b"");
        request.variable(b"A", b"1=2");
        let limits =
            Limits { memory: NonZeroU64::new(1 << 40), cpu_seconds: NonZeroU32::new(7), nice: 3 };
        request.limits(&limits);
        request.limits(&Limits::default());
        let bytes = request.finish().to_vec();
        assert!(read_request(&bytes[..bytes.len() - 1]).is_none());
        let (read, length) = read_request(&bytes).expect("the request is whole");
        assert_eq!(length, bytes.len());
        let Request::Spawn { clear_environment, stdin, fields } = read else {
            panic!("it asks to spawn");
        };
        assert!(clear_environment && !stdin);
        let want = [
            Field::Program(b"/bin/echo"),
            Field::Argument(b"echo"),
            Field::Argument(b""),
            Field::Variable(b"A", b"1=2"),
            Field::Limits(limits),
        ];
        assert_eq!(fields.collect::<Vec<_>>(), want);
    }

    #[test]
    fn answers_survive_the_way() {
        assert!(matches!(read_request(&LOOK_REQUEST), Some((Request::Look, HEADER_BYTES))));
        for waits in [true, false] {
            let looked = Answer::Looked(waits);
            assert_eq!(Answer::from_bytes(looked.to_bytes()), looked);
        }
        for reply in [
            Reply::Failed(Errno::NOENT),
            Reply::Exited { status: 3, group_left: false, out_of_memory: false },
            Reply::Killed { signal: 9, group_left: true, out_of_memory: false },
            Reply::Killed { signal: 9, group_left: false, out_of_memory: true },
        ] {
            let ended = Answer::Ended(reply);
            assert_eq!(Answer::from_bytes(ended.to_bytes()), ended);
        }
    }
}
