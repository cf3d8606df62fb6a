//! Calls a Python function with the items of a chunk, in an interpreter that the slot keeps.
//!
//! A chunk goes over as it is, and is read and written at once on the other side. Results come back in
//! batches: what an interpreter had run and not told of when it died runs again, but for the item that it
//! was at, which the page that both share names.

mod frames;
mod interpreter;
mod outcome;
mod stderr;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use widemap_common::failure::FailureKind;
use widemap_common::framing::Framing;

use self::frames::{Answer, AnswerKind, REQUEST_BYTES, Told, request};
pub(super) use self::interpreter::Interpreter;
use self::interpreter::{At, arguments, set_up};
use super::exec::begin_request;
use super::live::{Kept, Live, Parting, Wish};
use super::process::{Outcome, failure_of};
use super::results::Failure;
use super::tail::Tail;
use super::{Attempt, Progress, Workbench, micros_since};
use crate::job::{Program, PythonJob};
use crate::spawner::{Reply, SpawnerGone};

/// How long the death of a process is waited for whose socket is closed.
const DEATH_PATIENCE: Duration = Duration::from_secs(1);

/// Items that run together.
#[derive(Debug, Clone)]
struct Group {
    /// Counted from the attempt's first.
    first: u32,
    items: u32,
    /// Where they lie in the attempt's input.
    bytes: Range<usize>,
}

/// What is to be done next, of what is left of an attempt.
enum Step {
    Run(Group),
    /// The item of this index has failed; so many bytes of its output cannot be taken back.
    Fail {
        index: u32,
        failure: Failure,
        left: u64,
        micros: u64,
    },
}

/// What came of a group, of which the first items are settled.
enum Verdict {
    Done,
    /// The interpreter has died, at this item of the group if that is known.
    Died {
        settled: u32,
        at: Option<u32>,
        failure: Failure,
        left: u64,
    },
    /// This item took too long.
    Late {
        settled: u32,
        at: u32,
    },
    /// The function cannot be loaded.
    Unusable(String),
    Cancelled,
}

/// Runs the function over the items of `input`.
pub(super) fn run(
    attempt: &mut Attempt<'_>,
    bench: &mut Workbench,
    python: &PythonJob,
    input: &[u8],
) -> Result<Progress, SpawnerGone> {
    let framing = attempt.job.framing;
    let items = attempt.range.items;
    let mut calls = Calls {
        attempt,
        bench,
        python,
        input,
        framing,
        is_reused: false,
        stderr: BTreeMap::new(),
        stderr_bytes: 0,
    };
    if framing.count(input) != u64::from(items) {
        for index in 0..items {
            let failure = Failure::error("the chunk has other items than it says").permanent();
            calls.attempt.results.fault(index, failure, 0, 0, 0);
        }
        return Ok(Progress::Finished);
    }
    let mut steps = vec![Step::Run(Group { first: 0, items, bytes: 0..input.len() })];
    while let Some(step) = steps.pop() {
        let group = match step {
            Step::Fail { index, failure, left, micros } => {
                // Those before it have run: its output would be next.
                let start = calls.attempt.output.position() - left;
                calls.attempt.results.fault(index, failure, start, left, micros);
                if calls.attempt.job.per_item {
                    calls.attempt.results.item(left, micros);
                }
                continue;
            }
            Step::Run(group) if group.items == 0 => continue,
            Step::Run(group) => calls.as_many_as_recycle_allows(group, &mut steps),
        };
        let began = Instant::now();
        let verdict = calls.run_group(&group)?;
        if let Verdict::Cancelled = verdict {
            return Ok(Progress::Cancelled);
        }
        calls.follow(&group, verdict, micros_since(began), &mut steps);
    }
    calls.hand_in_stderr();
    Ok(Progress::Finished)
}

/// Starts an interpreter and loads the function, before anything runs; it is kept for the first chunk.
/// Nothing comes of it if it is cancelled.
pub(super) fn probe(
    attempt: &mut Attempt<'_>,
    bench: &mut Workbench,
    python: &PythonJob,
) -> Result<Option<Result<(), String>>, SpawnerGone> {
    let framing = attempt.job.framing;
    let mut calls = Calls {
        attempt,
        bench,
        python,
        input: &[],
        framing,
        is_reused: false,
        stderr: BTreeMap::new(),
        stderr_bytes: 0,
    };
    let group = Group { first: 0, items: 0, bytes: 0..0 };
    let verdict = calls.run_group(&group)?;
    let said: Vec<_> = std::mem::take(&mut calls.stderr).into_values().collect();
    for mut tail in said {
        let (text, _) = tail.take();
        let text = String::from_utf8_lossy(&text).trim_end().to_owned();
        calls.attempt.output.say(calls.attempt.job.id, text);
    }
    Ok(match verdict {
        Verdict::Cancelled => None,
        Verdict::Done | Verdict::Late { .. } => Some(Ok(())),
        Verdict::Unusable(message) => Some(Err(message)),
        Verdict::Died { failure, .. } => Some(Err(failure.message)),
    })
}

struct Calls<'a, 'b> {
    attempt: &'a mut Attempt<'b>,
    bench: &'a mut Workbench,
    python: &'a PythonJob,
    input: &'a [u8],
    framing: Framing,
    /// Whether the last group has met an interpreter that had been left alone since it was loaded or had run
    /// others.
    is_reused: bool,
    /// What items wrote on standard error.
    stderr: BTreeMap<u32, Tail>,
    stderr_bytes: usize,
}

/// How far a group is.
struct Pass {
    settled: u32,
    /// The answer whose body is coming, what was told in it, and what is missing of the body.
    open: Option<(Answer, Vec<u8>, u64)>,
    /// Where the open answer's output begins.
    start: u64,
    /// What is said in words.
    words: Vec<u8>,
    /// Until when what comes is read of an interpreter that has ended.
    read_until: Option<Instant>,
}

impl Calls<'_, '_> {
    /// An interpreter runs so many items at the most.
    fn as_many_as_recycle_allows(&self, group: Group, steps: &mut Vec<Step>) -> Group {
        let Some(recycle) = self.python.python.recycle else { return group };
        let ran = self.kept_interpreter().map_or(0, |interpreter| interpreter.ran);
        let room = match recycle.get().saturating_sub(ran) {
            0 => recycle.get(),
            room => room,
        };
        if room >= group.items {
            return group;
        }
        let (now, later) = self.cut(&group, room);
        steps.push(Step::Run(later));
        now
    }

    fn kept_interpreter(&self) -> Option<&Interpreter> {
        self.bench.kept.as_ref()?.interpreter.as_deref()
    }

    /// Runs a group, in the interpreter that is kept if there is one that may run more.
    fn run_group(&mut self, group: &Group) -> Result<Verdict, SpawnerGone> {
        let recycle = self.python.python.recycle.map_or(u32::MAX, std::num::NonZeroU32::get);
        self.is_reused = self.kept_interpreter().is_some();
        let (mut live, mut interpreter) = match self.bench.kept.take() {
            Some(Kept { live, interpreter: Some(interpreter), .. })
                if live.ended().is_none() && interpreter.ran < recycle =>
            {
                (live, interpreter)
            }
            kept => {
                if let Some(kept) = kept {
                    self.end(kept.live, Parting::Gentle)?;
                }
                self.is_reused = false;
                match self.start()? {
                    Ok(started) => started,
                    Err(message) => return Ok(Verdict::Unusable(message)),
                }
            }
        };
        let verdict = self.carry(group, &mut live, &mut interpreter)?;
        match verdict {
            Verdict::Done => {
                interpreter.ran = interpreter.ran.saturating_add(group.items);
                let (job, lane) = (self.attempt.job.clone(), self.attempt.lane);
                let interpreter = Some(interpreter);
                self.bench.kept = Some(Kept { live, job, lane, last: None, interpreter });
            }
            _ => drop(self.end(live, Parting::Firm)?),
        }
        Ok(verdict)
    }

    fn start(&mut self) -> Result<Result<(Live, Box<Interpreter>), String>, SpawnerGone> {
        let failed = |what: std::io::Error| format!("the interpreter cannot be started: {what}");
        let (interpreter, streams) = match Interpreter::prepare() {
            Ok(prepared) => prepared,
            Err(errno) => return Ok(Err(failed(errno.into()))),
        };
        let request = &mut self.bench.request;
        let sequence = self.attempt.range.first + 1;
        begin_request(request, &self.python.launch, sequence, self.bench.control.index + 1, true);
        if let Program::Found(path) = &self.python.launch.program {
            request.program(path.as_os_str().as_encoded_bytes());
        }
        for argument in arguments(self.python) {
            request.argument(|out| out.extend_from_slice(&argument));
        }
        let channel = self.bench.channel.as_mut().ok_or(SpawnerGone)?;
        Ok(Ok((Live::start(channel, request, streams)?, Box::new(interpreter))))
    }

    /// Moves input and answers until it is clear what came of the group. One that has no items is over
    /// when the function is loaded.
    fn carry(
        &mut self,
        group: &Group,
        live: &mut Live,
        interpreter: &mut Interpreter,
    ) -> Result<Verdict, SpawnerGone> {
        let words = match interpreter.is_ready {
            true => Vec::new(),
            false => {
                let job = &self.attempt.job;
                set_up(self.python, job.max_output, job.limits.cpu_seconds, self.framing)
            }
        };
        let head: [u8; REQUEST_BYTES];
        let input = self.input;
        let mut pieces = vec![words.as_slice()];
        if group.items > 0 {
            head = request(group.items, group.bytes.len());
            pieces.extend([head.as_slice(), &input[group.bytes.clone()]]);
        }
        let mut pieces = pieces.into_iter().peekable();
        let start = self.attempt.output.position();
        let mut pass = Pass { settled: 0, open: None, start, words: Vec::new(), read_until: None };
        let mut began = Instant::now();
        loop {
            while let Some(piece) = pieces.peek_mut() {
                if !live.feed(piece) {
                    *piece = &[];
                }
                if !piece.is_empty() {
                    break;
                }
                pieces.next();
            }
            let is_fed = pieces.peek().is_none();
            let is_full = self.attempt.output.is_full();
            let is_silent = live.is_silent();
            if !is_full {
                interpreter.receive(live);
            }
            // What is said is of an item before it is known how that has ended.
            self.hear_stderr(group, live, interpreter);
            let was_ready = interpreter.is_ready;
            let is_sense = self.take_answers(group, interpreter, &mut pass);
            match is_sense {
                Ok(None) => {}
                Ok(Some(message)) => return Ok(Verdict::Unusable(message)),
                Err(interpreter::Nonsense) => {
                    let what = "the interpreter has said what it never says: has the function written to \
                                its file descriptors?";
                    return Ok(self.died(group, interpreter, &pass, Failure::error(what)));
                }
            }
            if interpreter.is_ready && !was_ready {
                self.attempt.fixed_us += micros_since(began);
                began = Instant::now();
            }
            if interpreter.is_ready && pass.settled == group.items && pass.open.is_none() {
                return Ok(Verdict::Done);
            }
            if self.bench.control.is_cancelled() {
                return Ok(Verdict::Cancelled);
            }
            let at = interpreter.at();
            if let At::Item(item, _) = at {
                self.bench
                    .control
                    .item
                    .store(group.first + item.min(group.items), Ordering::Relaxed);
            }
            if live.ended().is_some() && pass.read_until.is_none() {
                // What it has forked may hold its end of the socket open.
                let grace = Duration::from_millis(self.bench.timers.pipe_grace_ms);
                pass.read_until = Some(Instant::now() + grace);
            }
            let is_over = pass.read_until.is_some_and(|until| until <= Instant::now());
            if (is_silent || is_over) && !is_full {
                return self.at_end(group, live, interpreter, &pass);
            }
            let now = Instant::now();
            let late_at = match (self.attempt.job.timeout, at) {
                (None, _) => None,
                (Some(limit), At::Item(item, since)) => {
                    // What it has told of those before it is taken in first.
                    let is_heard = !is_full && pass.open.is_none() && interpreter.waiting() == 0;
                    let is_of_group = item >= pass.settled && item < group.items;
                    if since >= limit && is_heard && is_of_group {
                        return Ok(Verdict::Late { settled: pass.settled, at: item });
                    }
                    now.checked_add(limit.saturating_sub(since).max(Duration::from_millis(1)))
                }
                (Some(limit), At::Elsewhere) => now.checked_add(limit),
            };
            let until = [late_at, pass.read_until].into_iter().flatten().min();
            let wish = Wish { write: !is_fed, read: !is_full, until };
            let channel = self.bench.channel.as_mut().ok_or(SpawnerGone)?;
            live.wait(channel, &self.bench.control, wish)?;
        }
    }

    /// Takes in what has come. Why the function cannot be loaded, if that was said.
    fn take_answers(
        &mut self,
        group: &Group,
        interpreter: &mut Interpreter,
        pass: &mut Pass,
    ) -> Result<Option<String>, interpreter::Nonsense> {
        loop {
            let (answer, told, mut missing) = match pass.open.take() {
                Some(open) => open,
                None => match interpreter.next_answer()? {
                    Some((answer, told)) => {
                        pass.start = self.attempt.output.position();
                        pass.words.clear();
                        (answer, told, answer.body_bytes)
                    }
                    None => return Ok(None),
                },
            };
            let is_done = answer.kind == AnswerKind::Done;
            let into = if is_done { &mut self.attempt.output.buffer } else { &mut pass.words };
            missing -= interpreter.take(missing, into);
            if is_done && answer.number == 1 {
                // One result is not waited for to its end: it may be long.
                self.attempt.output.hand_over();
            }
            if missing > 0 {
                let is_stuck = interpreter.waiting() == 0;
                pass.open = Some((answer, told, missing));
                if is_stuck {
                    return Ok(None);
                }
                continue;
            }
            match answer.kind {
                AnswerKind::Ready => interpreter.is_ready = true,
                AnswerKind::Unusable => {
                    return Ok(Some(String::from_utf8_lossy(&pass.words).into_owned()));
                }
                AnswerKind::Said => {
                    let index = group.first + answer.number.min(group.items.saturating_sub(1));
                    let words = std::mem::take(&mut pass.words);
                    self.note_stderr(index, &words);
                }
                AnswerKind::Done => {
                    let told = Told::read(&told).ok_or(interpreter::Nonsense)?;
                    if answer.number > group.items - pass.settled {
                        return Err(interpreter::Nonsense);
                    }
                    let first = group.first + pass.settled;
                    self.settle(first, answer.number, told, pass.start, answer.body_bytes)?;
                    pass.settled += answer.number;
                    self.attempt.output.hand_over();
                }
            }
        }
    }

    /// The socket is closed: the interpreter ends, in a moment.
    fn at_end(
        &mut self,
        group: &Group,
        live: &mut Live,
        interpreter: &Interpreter,
        pass: &Pass,
    ) -> Result<Verdict, SpawnerGone> {
        let give_up = Instant::now() + DEATH_PATIENCE;
        while live.ended().is_none() && Instant::now() < give_up {
            let wish = Wish { write: false, read: false, until: Some(give_up) };
            let channel = self.bench.channel.as_mut().ok_or(SpawnerGone)?;
            live.wait(channel, &self.bench.control, wish)?;
            self.hear_stderr(group, live, interpreter);
        }
        self.hear_stderr(group, live, interpreter);
        let failure = match live.ended() {
            Some(reply @ (Reply::Killed { .. } | Reply::Exited { out_of_memory: true, .. })) => {
                failure_of(&Outcome::of(reply), self.attempt.job)
            }
            Some(Reply::Failed(errno)) => {
                let error = std::io::Error::from(errno);
                let message = format!("the interpreter cannot be started: {error}");
                return Ok(Verdict::Unusable(message));
            }
            Some(Reply::Exited { status, .. }) => Failure {
                exit: Some(status),
                ..Failure::error(format!("the interpreter has ended itself, with status {status}"))
            },
            None => Failure::error("the interpreter has closed its connection"),
        };
        let is_limit = failure.kind == FailureKind::Timeout;
        let kind = if is_limit { FailureKind::Timeout } else { FailureKind::Crash };
        let failure = Failure { kind, ..failure };
        if !interpreter.is_ready {
            return Ok(Verdict::Unusable(format!("while loading: {}", failure.message)));
        }
        Ok(self.died(group, interpreter, pass, failure))
    }

    fn died(
        &mut self,
        group: &Group,
        interpreter: &Interpreter,
        pass: &Pass,
        failure: Failure,
    ) -> Verdict {
        let settled = pass.settled;
        let is_done =
            pass.open.as_ref().is_some_and(|(answer, ..)| answer.kind == AnswerKind::Done);
        let left = if is_done { self.attempt.output.truncate(pass.start) } else { 0 };
        let at = match interpreter.at() {
            _ if left > 0 => Some(settled),
            At::Item(item, _) if item >= settled && item < group.items => Some(item),
            At::Item(..) | At::Elsewhere => None,
        };
        Verdict::Died { settled, at, failure, left }
    }

    fn end(&mut self, live: Live, parting: Parting) -> Result<Reply, SpawnerGone> {
        let channel = self.bench.channel.as_mut().ok_or(SpawnerGone)?;
        live.end(channel, &self.bench.control, &self.bench.timers, parting)
    }
}
