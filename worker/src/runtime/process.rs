//! One process of a slot, from its start to the end of its group: its input is fed, its output is
//! read, its limits are kept, all in the slot's own thread with one `poll` a turn.
//!
//! Waiting is paced. A process that ends at once wakes the slot once, not once for each pipe; one
//! that streams is read a few times a millisecond's worth at a time, not for each little write.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Signal;
use signal_hook::consts::SIGXCPU;
use widemap_common::failure::FailureKind;
use widemap_common::limits::{SLOT_INPUT_PARTS, TURN_BYTES};
use widemap_common::time::Timers;

use super::Workbench;
use super::results::Failure;
use super::streams::{Streams, enlarge};
use super::tail::Tail;
use crate::job::Job;
use crate::slots::{AttemptOutput, SlotControl, Taken, TaskInput, timespec};
use crate::spawner::{Reply, SlotChannel, SpawnerGone};

/// How long only the end of a process is waited for at first: most commands are over by then.
const FIRST_LOOK: Duration = Duration::from_millis(2);

/// How long a process that streams is left alone before its pipes are looked at again.
const STREAM_PAUSE: Duration = Duration::from_millis(1);

/// A turn that moved as much has to do with a process that streams.
const STREAM_BYTES: usize = 48 * 1024;

/// What is read of standard error at once.
const STDERR_READ_BYTES: usize = 16 * 1024;

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    NotStarted(Errno),
    Exited(i32),
    Killed(i32),
    /// All that it had started took too much memory together, and one of those processes was killed: it,
    /// by this signal, or another, on which it exited with this status.
    OutOfMemory {
        exit: Option<i32>,
        signal: Option<i32>,
    },
    TimedOut,
    TooMuchOutput,
    Cancelled,
}

/// What a process may take.
#[derive(Debug)]
pub(super) struct Limits {
    deadline: Option<Instant>,
    max_output: u64,
    kill_grace: Duration,
    pipe_grace: Duration,
}

impl Limits {
    pub(super) fn of(job: &Job, began: Instant, timers: &Timers) -> Self {
        Self {
            deadline: job.timeout.and_then(|timeout| began.checked_add(timeout)),
            max_output: job.max_output,
            kill_grace: Duration::from_millis(timers.kill_grace_ms),
            pipe_grace: Duration::from_millis(timers.pipe_grace_ms),
        }
    }
}

/// What goes to the standard input of a process.
pub(super) struct Feed {
    parts: VecDeque<Bytes>,
    input: Option<TaskInput>,
}

impl Feed {
    pub(super) fn new(input: TaskInput) -> Self {
        match input {
            TaskInput::Whole(bytes) => Self { parts: VecDeque::from([bytes]), input: None },
            stream @ TaskInput::Stream(_) => Self { parts: VecDeque::new(), input: Some(stream) },
        }
    }

    /// Takes what has arrived, up to a few parts. Whether more will come.
    pub(super) fn fill(&mut self, control: &Arc<SlotControl>) -> bool {
        let Some(TaskInput::Stream(stream)) = &self.input else { return false };
        while self.parts.len() < SLOT_INPUT_PARTS {
            match stream.take(control) {
                Taken::Part(part) => self.parts.push_back(part),
                Taken::NothingYet => break,
                Taken::End => {
                    self.input = None;
                    return false;
                }
            }
        }
        true
    }

    /// Takes all that is here.
    #[cfg(feature = "wasm")]
    pub(super) fn take_parts(&mut self, mut taken: impl FnMut(Bytes)) {
        self.parts.drain(..).for_each(&mut taken);
    }
}

/// Why a process is being ended.
#[derive(Debug)]
struct Ending {
    outcome: Outcome,
    kill_at: Option<Instant>,
}

/// What the next wait is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wait {
    /// The end of the process, for so long.
    Pause(Duration),
    /// Anything.
    Ready,
}

/// A running process.
pub(super) struct Process<'a, 'b> {
    channel: &'a mut SlotChannel,
    control: &'a Arc<SlotControl>,
    tail: &'a mut Tail,
    output: &'a mut AttemptOutput<'b>,
    /// Where its output begins in the attempt's.
    output_start: u64,
    stdin: Option<(OwnedFd, Feed)>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    limits: Limits,
    ended: Option<Reply>,
    ending: Option<Ending>,
    /// Until when a pipe is read that a child of the ended process holds open.
    read_until: Option<Instant>,
    enlarged: bool,
}

impl<'a, 'b> Process<'a, 'b> {
    /// Starts what the workbench's request describes.
    pub(super) fn start(
        bench: &'a mut Workbench,
        output: &'a mut AttemptOutput<'b>,
        streams: Streams,
        feed: Option<Feed>,
        limits: Limits,
    ) -> Result<Self, SpawnerGone> {
        let channel = bench.channel.as_mut().ok_or(SpawnerGone)?;
        let (stdin, theirs) = streams.stdin.unzip();
        let mut files = Vec::with_capacity(3);
        files.extend(theirs.as_ref().map(AsFd::as_fd));
        files.extend([streams.stdout.1.as_fd(), streams.stderr.1.as_fd()]);
        channel.spawn(&mut bench.request, &files)?;
        let enlarged = stdin.is_some();
        Ok(Self {
            channel,
            control: &bench.control,
            tail: &mut bench.tail,
            output_start: output.position(),
            output,
            stdin: stdin.zip(feed),
            stdout: Some(streams.stdout.0),
            stderr: Some(streams.stderr.0),
            limits,
            ended: None,
            ending: None,
            read_until: None,
            enlarged,
        })
    }

    /// Sees the process to its end.
    pub(super) fn run(mut self) -> Result<Outcome, SpawnerGone> {
        let mut wait = Wait::Pause(FIRST_LOOK);
        if self.stdin.is_some() {
            wait =
                if self.pump() >= STREAM_BYTES { Wait::Pause(STREAM_PAUSE) } else { Wait::Ready };
        }
        loop {
            self.wait(wait)?;
            let moved = self.pump();
            self.keep_limits()?;
            if let Some(outcome) = self.outcome()? {
                return Ok(outcome);
            }
            let streams = moved >= STREAM_BYTES && self.ended.is_none();
            if streams && !self.enlarged {
                self.enlarged = true;
                self.stdout.iter().for_each(enlarge);
            }
            wait = if streams { Wait::Pause(STREAM_PAUSE) } else { Wait::Ready };
        }
    }

    /// Waits, and takes the spawner's reply if it is there.
    fn wait(&mut self, wait: Wait) -> Result<(), SpawnerGone> {
        let begun = Instant::now();
        let full = self.output.is_full();
        let starved = self.stdin.as_ref().is_some_and(|(_, feed)| feed.parts.is_empty());
        let timeout =
            self.wake_at(begun, wait).map(|at| timespec(at.saturating_duration_since(begun)));
        let mut polled = Vec::with_capacity(5);
        polled.push(PollFd::new(self.control, PollFlags::IN));
        if self.ended.is_none() {
            polled.push(PollFd::new(&*self.channel, PollFlags::IN));
        }
        let has_channel = self.ended.is_none();
        if wait == Wait::Ready {
            let readable = |fd| PollFd::new(fd, PollFlags::IN);
            polled.extend(self.stdout.as_ref().filter(|_| !full).map(readable));
            polled.extend(self.stderr.as_ref().map(readable));
            let stdin = self.stdin.as_ref().filter(|_| !starved);
            polled.extend(stdin.map(|(fd, _)| PollFd::new(fd, PollFlags::OUT)));
        }
        // An interrupted wait is one that ended early.
        let _ = rustix::event::poll(&mut polled, timeout.as_ref());
        let woken = !polled[0].revents().is_empty();
        let replied = has_channel && !polled[1].revents().is_empty();
        drop(polled);
        if woken {
            self.control.clear_wake();
        }
        if replied {
            self.ended = Some(self.channel.reply()?);
            self.close_stdin();
        }
        if let Some(deadline) = self.limits.deadline.as_mut().filter(|_| full || starved) {
            // What the process waits for the network is not its own time.
            *deadline += begun.elapsed();
        }
        Ok(())
    }

    /// The next moment at which something is due by itself.
    fn wake_at(&self, now: Instant, wait: Wait) -> Option<Instant> {
        let pause = match wait {
            Wait::Pause(pause) => Some(now + pause),
            Wait::Ready => None,
        };
        let deadline = self.limits.deadline.filter(|_| self.ending.is_none());
        let kill_at = self.ending.as_ref().and_then(|ending| ending.kill_at);
        [pause, deadline, kill_at, self.read_until].into_iter().flatten().min()
    }

    /// Moves what can be moved without waiting. Returns how many bytes of input and output.
    fn pump(&mut self) -> usize {
        let moved = self.feed() + self.read_stdout();
        self.read_stderr();
        moved
    }

    fn feed(&mut self) -> usize {
        let Some((pipe, feed)) = &mut self.stdin else { return 0 };
        let mut moved = 0;
        loop {
            // The end is looked for first: a process that waits for it may never say another word.
            let more = feed.fill(self.control);
            let Some(part) = feed.parts.front_mut() else {
                if !more {
                    self.stdin = None;
                }
                return moved;
            };
            if moved >= TURN_BYTES {
                return moved;
            }
            match rustix::io::write(&*pipe, part) {
                Ok(written) => {
                    moved += written;
                    part.advance(written);
                    if part.is_empty() {
                        feed.parts.pop_front();
                    }
                }
                Err(Errno::AGAIN) => return moved,
                Err(Errno::INTR) => {}
                // A process need not read all of its input.
                Err(_) => {
                    self.close_stdin();
                    return moved;
                }
            }
        }
    }

    fn close_stdin(&mut self) {
        if let Some((_, Feed { input: Some(TaskInput::Stream(stream)), .. })) = self.stdin.take() {
            stream.close();
        }
    }

    fn read_stdout(&mut self) -> usize {
        let mut moved = 0;
        while moved < TURN_BYTES && !self.output.is_full() {
            let Some(pipe) = &self.stdout else { break };
            match rustix::io::read(pipe, self.output.room()) {
                Ok(0) => self.stdout = None,
                Ok(read) => {
                    moved += read;
                    self.output.hand_over();
                    let printed = self.output.position() - self.output_start;
                    if printed > self.limits.max_output && self.ending.is_none() {
                        // It has had its chance to print less: no grace.
                        self.ending = Some(Ending {
                            outcome: Outcome::TooMuchOutput,
                            kill_at: Some(Instant::now()),
                        });
                        self.stdout = None;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.stdout = None,
            }
        }
        moved
    }

    fn read_stderr(&mut self) {
        let mut buffer = [0; STDERR_READ_BYTES];
        for _ in 0..TURN_BYTES / STDERR_READ_BYTES {
            let Some(pipe) = &self.stderr else { return };
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => self.stderr = None,
                Ok(read) => self.tail.push(&buffer[..read]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.stderr = None,
            }
        }
    }

    /// Ends the process if it is cancelled or out of time, and kills it after the grace.
    fn keep_limits(&mut self) -> Result<(), SpawnerGone> {
        if self.ended.is_some() {
            return Ok(());
        }
        let now = Instant::now();
        if self.ending.is_none() {
            let why = if self.control.is_cancelled() {
                Some(Outcome::Cancelled)
            } else if self.limits.deadline.is_some_and(|deadline| now >= deadline) {
                Some(Outcome::TimedOut)
            } else {
                None
            };
            if let Some(outcome) = why {
                self.channel.signal(Signal::TERM)?;
                self.ending = Some(Ending { outcome, kill_at: Some(now + self.limits.kill_grace) });
                self.stdout = None;
                self.close_stdin();
            }
        }
        if let Some(ending) = &mut self.ending {
            let at_once = self.control.is_ending();
            if ending.kill_at.is_some_and(|at| at_once || now >= at) {
                ending.kill_at = None;
                self.channel.signal(Signal::KILL)?;
            }
        }
        Ok(())
    }

    /// What became of the process, once that is known and nothing more of it is to be read.
    fn outcome(&mut self) -> Result<Option<Outcome>, SpawnerGone> {
        let Some(reply) = self.ended else { return Ok(None) };
        if let Reply::Failed(errno) = reply {
            return Ok(Some(Outcome::NotStarted(errno)));
        }
        let pipes_open = self.stdout.is_some() || self.stderr.is_some();
        if pipes_open && self.ending.is_none() {
            if self.control.is_cancelled() {
                self.ending = Some(Ending { outcome: Outcome::Cancelled, kill_at: None });
            } else if self.output.is_full() {
                return Ok(None);
            } else {
                let now = Instant::now();
                let until = *self.read_until.get_or_insert(now + self.limits.pipe_grace);
                if now < until {
                    return Ok(None);
                }
            }
        }
        if reply.group_left() {
            self.channel.signal(Signal::KILL)?;
        }
        Ok(Some(match &self.ending {
            Some(ending) => ending.outcome,
            None => Outcome::of(reply),
        }))
    }
}

impl Outcome {
    /// What the spawner tells of a process that nobody has ended.
    pub(super) fn of(reply: Reply) -> Self {
        match reply {
            Reply::Failed(errno) => Self::NotStarted(errno),
            Reply::Exited { status, out_of_memory: true, .. } if status != 0 => {
                Self::OutOfMemory { exit: Some(status), signal: None }
            }
            Reply::Exited { status, .. } => Self::Exited(status),
            Reply::Killed { signal, out_of_memory: true, .. } => {
                Self::OutOfMemory { exit: None, signal: Some(signal) }
            }
            Reply::Killed { signal, .. } => Self::Killed(signal),
        }
    }
}

/// What a process that did not exit with 0 means for its item.
pub(super) fn failure_of(outcome: &Outcome, job: &Job) -> Failure {
    match *outcome {
        Outcome::NotStarted(Errno::TOOBIG) => Failure::error(
            "its arguments and environment together are longer than the system passes on",
        )
        .permanent(),
        Outcome::NotStarted(errno) => {
            let error = std::io::Error::from(errno);
            Failure::error(format!("the command could not be started: {error}"))
        }
        Outcome::Exited(status) => {
            // A shell tells so of the signal that has ended its command.
            let why = match job.limits.cpu_seconds {
                Some(seconds) if status == 128 + SIGXCPU => {
                    format!(": more than {seconds} s of processor time (--cpu-seconds)")
                }
                _ => String::new(),
            };
            let message = format!("exited with status {status}{why}");
            Failure { exit: Some(status), ..Failure::error(message) }
        }
        Outcome::Killed(SIGXCPU) if let Some(seconds) = job.limits.cpu_seconds => {
            Failure { signal: Some(SIGXCPU), ..Failure::cpu_time(seconds) }
        }
        Outcome::Killed(signal) => {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("unnamed");
            let mut message = format!("killed by signal {signal} ({name})");
            if let Some(bytes) = job.limits.memory {
                let _ = write!(message, ", where it may take {bytes} bytes of memory (--memory)");
            }
            Failure { kind: FailureKind::Crash, signal: Some(signal), ..Failure::error(message) }
        }
        Outcome::OutOfMemory { exit, signal } => {
            let bytes =
                job.limits.memory.map_or_else(String::new, |bytes| format!(" {bytes} bytes of"));
            let kind = if signal.is_some() { FailureKind::Crash } else { FailureKind::Error };
            let message = format!("its processes together took more than{bytes} memory (--memory)");
            Failure { kind, exit, signal, ..Failure::error(message) }
        }
        Outcome::TimedOut => Failure::timeout(job.timeout),
        Outcome::TooMuchOutput => Failure::too_much_output(job.max_output),
        Outcome::Cancelled => {
            Failure { kind: FailureKind::Cancelled, ..Failure::error("cancelled") }
        }
    }
}
