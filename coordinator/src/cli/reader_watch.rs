//! Watches the other end of standard output. Most writes find out by themselves that nobody reads any more;
//! a program that reads frames may leave while nothing is written for hours.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};

use crate::thread::Thread;

/// See the file's head. Dropped, it watches no more.
pub(super) struct ReaderWatch {
    /// Closed to wake the thread.
    wake: Option<OwnedFd>,
    thread: Thread,
}

impl ReaderWatch {
    /// Begins to watch. Once the reader has left, this process is told to end.
    ///
    /// # Errors
    /// If the system has no room for it.
    pub(super) fn start() -> std::io::Result<Self> {
        let stdout = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
        let (wake_read, wake_write) = rustix::pipe::pipe()?;
        let thread = Thread::start("reader", move || {
            if waits_for_the_end(&stdout, &wake_read) {
                // As a person would: what runs is ended with its grace.
                let _ = kill_process(getpid(), Signal::TERM);
            }
        })?;
        Ok(Self { wake: Some(wake_write), thread })
    }
}

impl Drop for ReaderWatch {
    fn drop(&mut self) {
        drop(self.wake.take());
        self.thread.leave();
    }
}

/// Waits until the reader has left. False if that is of no interest any more.
fn waits_for_the_end(stdout: &File, wake: &OwnedFd) -> bool {
    // Of what is written to, errors are told without being asked for.
    let mut fds = [
        PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty()),
        PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    fds[1].revents().is_empty() && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_seen_that_the_reader_leaves_and_that_nobody_watches() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (wake_read, wake_write) = rustix::pipe::pipe().unwrap();
        let watched =
            std::thread::spawn(move || waits_for_the_end(&File::from(writer), &wake_read));
        drop(reader);
        assert!(watched.join().unwrap());
        drop(wake_write);
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let (wake_read, wake_write) = rustix::pipe::pipe().unwrap();
        let watched =
            std::thread::spawn(move || waits_for_the_end(&File::from(writer), &wake_read));
        drop(wake_write);
        assert!(!watched.join().unwrap());
    }
}
