//! A process that a slot keeps from one chunk of a job to the next: its pipes, and how it is ended.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Signal;
use widemap_common::ids::ItemRange;
use widemap_common::limits::TURN_BYTES;
use widemap_common::time::Timers;

use super::python::Interpreter;
use super::streams::Streams;
use super::tail::Tail;
use crate::job::Job;
use crate::slots::{AttemptOutput, LaneId, SlotControl, timespec};
use crate::spawner::{Reply, SlotChannel, SpawnRequest, SpawnerGone};

/// What is read of standard error at once.
const STDERR_READ_BYTES: usize = 16 * 1024;

/// See the file's head.
pub(super) struct Live {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    ended: Option<Reply>,
}

/// A process that waits for more of its job.
pub(super) struct Kept {
    pub(super) live: Live,
    pub(super) job: Arc<Job>,
    pub(super) lane: LaneId,
    /// What it has run last; nothing of one that was started ahead of its chunk.
    pub(super) last: Option<ItemRange>,
    /// What belongs to it if it is an interpreter.
    pub(super) interpreter: Option<Box<Interpreter>>,
}

/// How a process is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Parting {
    /// It may come to its end by itself: its input is over.
    Gentle,
    /// It is of no use any more.
    Firm,
}

/// What is waited for beside the process's own end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wish {
    /// That it takes more input.
    pub(super) write: bool,
    /// That it prints.
    pub(super) read: bool,
    pub(super) until: Option<Instant>,
}

impl Live {
    /// Starts what the request describes.
    pub(super) fn start(
        channel: &mut SlotChannel,
        request: &mut SpawnRequest,
        streams: Streams,
    ) -> Result<Self, SpawnerGone> {
        let (ours, theirs) = streams.split();
        let files: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        channel.spawn(request, &files)?;
        let [stdin, stdout, stderr] = ours;
        Ok(Self { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr), ended: None })
    }

    /// Writes as much of `input` as it takes, and cuts that off. Whether it will take more.
    pub(super) fn feed(&mut self, input: &mut &[u8]) -> bool {
        let Some(pipe) = &self.stdin else { return false };
        while !input.is_empty() {
            match rustix::io::write(pipe, input) {
                Ok(written) => *input = &input[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                // It need not read all of its input.
                Err(_) => {
                    self.stdin = None;
                    return false;
                }
            }
        }
        true
    }

    /// Its input is over.
    pub(super) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub(super) fn takes_input(&self) -> bool {
        self.stdin.is_some()
    }

    /// Whether it is known to wait for more input, so that nothing comes of what it was given unless more
    /// is, or none is any more.
    pub(super) fn waits_for_input(
        &mut self,
        channel: &mut SlotChannel,
    ) -> Result<bool, SpawnerGone> {
        if self.ended.is_some() {
            return Ok(false);
        }
        let (waits, ended) = channel.looks_for_input()?;
        self.ended = ended;
        Ok(waits)
    }

    /// Whether nothing more can come of it.
    pub(super) fn is_silent(&self) -> bool {
        self.stdout.is_none()
    }

    /// How it has ended.
    pub(super) fn ended(&self) -> Option<Reply> {
        self.ended
    }

    /// Reads what it has printed and may have to be taken back, a turn of it; `seen` is shown each piece. How
    /// many bytes.
    pub(super) fn read_tentatively(
        &mut self,
        output: &mut AttemptOutput<'_>,
        mut seen: impl FnMut(&[u8]),
    ) -> usize {
        let mut moved = 0;
        while moved < TURN_BYTES {
            let Some(pipe) = &self.stdout else { break };
            match rustix::io::read(pipe, output.room_after_kept()) {
                Ok(0) => self.stdout = None,
                Ok(read) => {
                    moved += read;
                    seen(&output.buffer[output.buffer.len() - read..]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.stdout = None,
            }
        }
        moved
    }

    /// Reads some of what it has printed. How many bytes; none if there are none for now, or no more.
    pub(super) fn read_some(&mut self, buffer: &mut [u8]) -> usize {
        loop {
            let Some(pipe) = &self.stdout else { return 0 };
            match rustix::io::read(pipe, &mut *buffer) {
                Ok(read @ 1..) => return read,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return 0,
                Ok(0) | Err(_) => self.stdout = None,
            }
        }
    }

    /// Whether it has printed something that nobody has asked for. What it was is lost.
    pub(super) fn is_babbling(&mut self) -> bool {
        let mut buffer = [0; 1];
        let Some(pipe) = &self.stdout else { return false };
        matches!(rustix::io::read(pipe, &mut buffer), Ok(1..))
    }

    /// Reads what it has written on standard error. Whether there was something.
    pub(super) fn read_stderr(&mut self, tail: &mut Tail) -> bool {
        let mut buffer = [0; STDERR_READ_BYTES];
        let mut is_some = false;
        for _ in 0..TURN_BYTES / STDERR_READ_BYTES {
            let Some(pipe) = &self.stderr else { break };
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => self.stderr = None,
                Ok(read) => {
                    is_some = true;
                    tail.push(&buffer[..read]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.stderr = None,
            }
        }
        is_some
    }

    /// Waits for what is wished for, its end, or a word to the slot.
    pub(super) fn wait(
        &mut self,
        channel: &mut SlotChannel,
        control: &SlotControl,
        wish: Wish,
    ) -> Result<(), SpawnerGone> {
        let timeout = wish.until.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        let mut polled = Vec::with_capacity(5);
        polled.push(PollFd::new(control, PollFlags::IN));
        let has_channel = self.ended.is_none();
        if has_channel {
            polled.push(PollFd::new(&*channel, PollFlags::IN));
        }
        let readable = |fd| PollFd::new(fd, PollFlags::IN);
        polled.extend(self.stdout.as_ref().filter(|_| wish.read).map(readable));
        polled.extend(self.stderr.as_ref().map(readable));
        let stdin = self.stdin.as_ref().filter(|_| wish.write);
        polled.extend(stdin.map(|fd| PollFd::new(fd, PollFlags::OUT)));
        // An interrupted wait is one that ended early.
        let _ = rustix::event::poll(&mut polled, timeout.as_ref());
        let woken = !polled[0].revents().is_empty();
        let replied = has_channel && !polled[1].revents().is_empty();
        drop(polled);
        if woken {
            control.clear_wake();
        }
        if replied {
            self.ended = Some(channel.reply()?);
        }
        Ok(())
    }

    /// Ends it, with all of its group.
    pub(super) fn end(
        mut self,
        channel: &mut SlotChannel,
        control: &SlotControl,
        timers: &Timers,
        parting: Parting,
    ) -> Result<Reply, SpawnerGone> {
        (self.stdin, self.stdout, self.stderr) = (None, None, None);
        let grace = Duration::from_millis(timers.kill_grace_ms);
        let begun = Instant::now();
        let mut steps = match parting {
            Parting::Gentle => {
                let term_at = begun + Duration::from_millis(timers.pipe_grace_ms);
                vec![(term_at + grace, Signal::KILL), (term_at, Signal::TERM)]
            }
            Parting::Firm => vec![(begun + grace, Signal::KILL), (begun, Signal::TERM)],
        };
        loop {
            if let Some(reply) = self.ended {
                if reply.group_left() {
                    channel.signal(Signal::KILL)?;
                }
                return Ok(reply);
            }
            if control.is_ending() {
                // There is no time for graces.
                steps.truncate(1);
                steps.iter_mut().for_each(|(at, _)| *at = begun);
            }
            if let Some((_, signal)) = steps.pop_if(|(at, _)| *at <= Instant::now()) {
                channel.signal(signal)?;
                continue;
            }
            let until = steps.last().map(|(at, _)| *at);
            self.wait(channel, control, Wish { write: false, read: false, until })?;
        }
    }
}
