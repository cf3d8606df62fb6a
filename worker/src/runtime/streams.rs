//! The pipes of processes, and what stands in for them.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;
use widemap_common::limits::PIPE_BYTES;

/// The pipes of a process: our ends and, until it is started, its own.
pub(super) struct Streams {
    /// Ours, then its own.
    pub(super) stdin: Option<(OwnedFd, OwnedFd)>,
    pub(super) stdout: (OwnedFd, OwnedFd),
    pub(super) stderr: (OwnedFd, OwnedFd),
}

impl Streams {
    pub(super) fn open(stdin: bool) -> Result<Self, Errno> {
        let streams = Self {
            stdin: if stdin { Some(pipe().map(|(read, write)| (write, read))?) } else { None },
            stdout: pipe()?,
            stderr: pipe()?,
        };
        for ours in [&streams.stdout.0, &streams.stderr.0] {
            rustix::fs::fcntl_setfl(ours, OFlags::NONBLOCK)?;
        }
        if let Some((ours, _)) = &streams.stdin {
            rustix::fs::fcntl_setfl(ours, OFlags::NONBLOCK)?;
            enlarge(ours);
            enlarge(&streams.stdout.0);
        }
        Ok(streams)
    }

    /// A socket for both ways, which is its standard input, and a file of ours as its standard output.
    pub(super) fn open_socket(file: &OwnedFd) -> Result<Self, Errno> {
        let (ours, theirs) = socket()?;
        let stderr = pipe()?;
        for ours in [&ours, &stderr.0] {
            rustix::fs::fcntl_setfl(ours, OFlags::NONBLOCK)?;
        }
        for end in [&ours, &theirs] {
            // The system takes as much of it as it allows.
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(end, PIPE_BYTES);
        }
        let (read, file) = (duplicate(&ours)?, duplicate(file)?);
        Ok(Self { stdin: Some((ours, theirs)), stdout: (read, file), stderr })
    }

    /// Our ends and its own, in the order of their numbers, of a process that has a standard input.
    ///
    /// # Panics
    /// If it has none.
    pub(super) fn split(self) -> ([OwnedFd; 3], [OwnedFd; 3]) {
        let stdin = self.stdin.expect("it was opened with a standard input");
        let [ours, theirs] =
            [[stdin.0, self.stdout.0, self.stderr.0], [stdin.1, self.stdout.1, self.stderr.1]];
        (ours, theirs)
    }
}

/// The ends of a socket that processes do not inherit.
fn socket() -> Result<(OwnedFd, OwnedFd), Errno> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    #[cfg(target_os = "linux")]
    return socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    #[cfg(not(target_os = "linux"))]
    {
        let ends = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None)?;
        for end in [&ends.0, &ends.1] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
        }
        Ok(ends)
    }
}

/// The same file once more, which processes do not inherit.
fn duplicate(file: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(file, 3)
}

/// The reading end and the writing end of a pipe that processes do not inherit.
fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    #[cfg(target_os = "linux")]
    return rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    #[cfg(not(target_os = "linux"))]
    {
        let ends = rustix::pipe::pipe()?;
        for end in [&ends.0, &ends.1] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
        }
        Ok(ends)
    }
}

/// Lets a pipe hold more, if the system allows it.
pub(super) fn enlarge(pipe: &OwnedFd) {
    #[cfg(target_os = "linux")]
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BYTES);
    #[cfg(not(target_os = "linux"))]
    let _ = (pipe, PIPE_BYTES);
}
