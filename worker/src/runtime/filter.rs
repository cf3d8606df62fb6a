//! A program that answers each line with exactly one line.
//!
//! It goes on from chunk to chunk, and what it prints is counted against what it was given. Where the two do
//! not agree nothing of it is believed: the items run again in groups, each in a process of its own whose
//! input ends with the group, so that the end of its output proves how many lines it has; and groups are
//! halved until the item stands alone that is answered otherwise.

mod costs;
mod judge;
mod pass;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use memchr::{memchr_iter, memrchr};
use widemap_common::framing::Framing;
use widemap_common::ids::ItemRange;
use widemap_common::limits::FILTER_GROUP_BYTES;

use self::costs::Costs;
use self::pass::Pass;
use super::exec::begin_request;
use super::live::{Kept, Live, Parting, Wish};
use super::process::Outcome;
use super::results::Failure;
use super::streams::Streams;
use super::{Attempt, Progress, Workbench, micros_since};
use crate::job::{Launch, Program};
use crate::spawner::{Reply, SpawnerGone};

/// A program whose lines come at once is waited for longer: it is slow, and does not hold back.
const PROMPT_PATIENCE: u32 = 25;

/// So many chunks are looked at once more, after a moment, for a line too many.
const PROVED_CHUNKS: u32 = 8;

/// That moment.
const SECOND_LOOK: Duration = Duration::from_millis(2);

/// A program that has so much to print is left alone for a while between two looks.
const STREAM_BYTES: u64 = 128 * 1024;

/// That while.
const STREAM_PAUSE: Duration = Duration::from_micros(300);

/// What is known of how a job's program prints.
#[derive(Debug, Default)]
pub(crate) struct FilterManner {
    /// It holds back what it prints, or cannot be trusted: it is started for each chunk.
    once: AtomicBool,
    /// It has answered without its input being closed.
    prompt: AtomicBool,
    /// Chunks that were right.
    proved: AtomicU32,
    /// What chunks take that have a process of their own.
    costs: Mutex<Costs>,
}

/// Items that run together.
#[derive(Debug)]
struct Group {
    /// Counted from the attempt's first.
    first: u32,
    items: u32,
    /// Where they lie in the attempt's input.
    bytes: Range<usize>,
    /// In a process of their own.
    once: bool,
}

/// What is to be done next, of what is left of an attempt.
enum Step {
    Run(Group),
    /// The item of this index has failed.
    Fail(u32, Failure),
}

/// What came of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// One line for each item.
    Right,
    /// Not so; how many lines there were, as far as that is known.
    Wrong(u64),
    /// A signal has ended it after so many lines.
    Died(u64, Outcome),
    /// The item after so many lines took too long.
    Late(u64),
    /// The item after so many lines printed too much.
    TooMuch(u64),
    Cancelled,
}

/// Runs the program over the lines of `input`.
pub(super) fn run(
    attempt: &mut Attempt<'_>,
    bench: &mut Workbench,
    launch: &Launch,
    argv: &[Vec<u8>],
    manner: &FilterManner,
    input: &[u8],
) -> Result<Progress, SpawnerGone> {
    let Framing::Separator(separator) = attempt.job.framing else { return Ok(Progress::Finished) };
    let items = attempt.range.items;
    let mut steps = if Framing::Separator(separator).count(input) == u64::from(items) {
        let once = manner.once.load(Ordering::Relaxed);
        vec![Step::Run(Group { first: 0, items, bytes: 0..input.len(), once })]
    } else {
        let short = || Failure::error("the chunk has other items than it says").permanent();
        (0..items).rev().map(|index| Step::Fail(index, short())).collect()
    };
    let mut filter = Filter {
        attempt,
        bench,
        launch,
        argv,
        manner,
        input,
        separator,
        is_reused: false,
        is_silenced: false,
        is_waiting: false,
    };
    while let Some(step) = steps.pop() {
        let began = Instant::now();
        let group = match step {
            Step::Fail(index, failure) => {
                let start = filter.attempt.output.position();
                filter.fail(index, failure, start, 0);
                continue;
            }
            Step::Run(group) if group.items == 0 => continue,
            Step::Run(group) => group,
        };
        let start = filter.attempt.output.position();
        let verdict = filter.run_group(&group)?;
        let micros = micros_since(began);
        match verdict {
            Verdict::Cancelled => return Ok(Progress::Cancelled),
            Verdict::Right => {
                filter.keep(&group, start, micros);
                if group.items == items {
                    filter.note_start(items, micros);
                }
                if filter.hand_over() == Progress::Cancelled {
                    return Ok(Progress::Cancelled);
                }
            }
            Verdict::Wrong(_) | Verdict::Died(..) if group.items == 1 && filter.is_reused => {
                // Perhaps the process had come to its end with what it was given before. What the session
                // has of it cannot be taken back.
                if filter.attempt.output.truncate(start) == 0 {
                    steps.push(Step::Run(Group { once: true, ..group }));
                } else {
                    let failure = filter.failure(verdict);
                    filter.fail(group.first, failure, start, micros);
                }
            }
            verdict if group.items == 1 => {
                let failure = filter.failure(verdict);
                filter.fail(group.first, failure, start, micros);
            }
            verdict => {
                // Nothing of several items is handed over before it is right.
                filter.attempt.output.truncate(start);
                filter.split(&group, verdict, &mut steps);
            }
        }
    }
    filter.start_ahead()?;
    Ok(Progress::Finished)
}

struct Filter<'a, 'b> {
    attempt: &'a mut Attempt<'b>,
    bench: &'a mut Workbench,
    launch: &'a Launch,
    argv: &'a [Vec<u8>],
    manner: &'a FilterManner,
    input: &'a [u8],
    separator: u8,
    /// Whether the last group has run in a process that had run others.
    is_reused: bool,
    /// Whether its input was closed because it was silent.
    is_silenced: bool,
    /// Whether that of the last group was closed because it waited for more.
    is_waiting: bool,
}

impl Filter<'_, '_> {
    /// Runs a group, in the process that is kept if there is one.
    fn run_group(&mut self, group: &Group) -> Result<Verdict, SpawnerGone> {
        let mut group_once = group.once;
        let is_used = self.bench.kept.as_ref().is_some_and(|kept| kept.last.is_some());
        let mut live = match self.bench.kept.take() {
            Some(kept) if kept.last.is_none() => Some(kept.live),
            Some(mut kept) if !group_once && kept.live.ended().is_none() => {
                if let Some(last) = kept.last.filter(|_| kept.live.is_babbling()) {
                    self.say_late(last);
                    self.manner.once.store(true, Ordering::Relaxed);
                    group_once = true;
                    self.end(kept.live, Parting::Firm)?;
                    None
                } else {
                    Some(kept.live)
                }
            }
            Some(kept) => {
                self.end(kept.live, Parting::Gentle)?;
                None
            }
            None => None,
        };
        self.is_reused = is_used && live.is_some();
        let mut live = match live.take() {
            Some(live) => live,
            None => match self.start(group.first)? {
                Ok(live) => live,
                Err(outcome) => return Ok(Verdict::Died(0, outcome)),
            },
        };
        let mut pass = Pass::begin(self.attempt.output.position());
        self.is_waiting = false;
        let verdict = self.carry(group, &mut live, &mut pass, group_once)?;
        if let Some(index) = pass.stderr_at {
            let index = u32::try_from(index).unwrap_or(u32::MAX).min(group.items - 1);
            self.attempt.results.stderr(group.first + index, &mut self.bench.tail);
        }
        let is_right = matches!(verdict, Verdict::Right);
        if is_right && std::mem::take(&mut self.is_waiting) {
            // Its answers were there, and came only when its input was over.
            self.note_held_back();
        }
        if is_right && live.takes_input() && live.ended().is_none() {
            self.manner.prompt.store(true, Ordering::Relaxed);
            self.manner.proved.fetch_add(1, Ordering::Relaxed);
            let (job, lane) = (self.attempt.job.clone(), self.attempt.lane);
            let first = self.attempt.range.first + u64::from(group.first);
            let last = Some(ItemRange::new(first, group.items));
            self.bench.kept = Some(Kept { live, job, lane, last, interpreter: None });
        } else {
            let parting = if is_right { Parting::Gentle } else { Parting::Firm };
            self.end(live, parting)?;
        }
        Ok(verdict)
    }

    fn start(&mut self, first: u32) -> Result<Result<Live, Outcome>, SpawnerGone> {
        let request = &mut self.bench.request;
        let sequence = self.attempt.range.first + u64::from(first) + 1;
        begin_request(request, self.launch, sequence, self.bench.control.index + 1, true);
        if let Program::Found(path) = &self.launch.program {
            request.program(path.as_os_str().as_encoded_bytes());
        }
        for argument in self.argv {
            request.argument(|out| out.extend_from_slice(argument));
        }
        let streams = match Streams::open(true) {
            Ok(streams) => streams,
            Err(errno) => return Ok(Err(Outcome::NotStarted(errno))),
        };
        let channel = self.bench.channel.as_mut().ok_or(SpawnerGone)?;
        Live::start(channel, request, streams).map(Ok)
    }

    /// Moves input and output until it is clear what came of the group.
    fn carry(
        &mut self,
        group: &Group,
        live: &mut Live,
        pass: &mut Pass,
        once: bool,
    ) -> Result<Verdict, SpawnerGone> {
        let items = u64::from(group.items);
        let mut rest = &self.input[group.bytes.clone()];
        // The last item of all may have no end.
        let ending = [self.separator];
        let mut end = if rest.last() == Some(&self.separator) { &[][..] } else { &ending[..] };
        let mut looked_twice = self.manner.proved.load(Ordering::Relaxed) >= PROVED_CHUNKS;
        loop {
            let before = rest.len() + end.len();
            if !live.feed(&mut rest) || rest.is_empty() && !live.feed(&mut end) {
                (rest, end) = (&[], &[]);
            }
            let is_fed = rest.is_empty() && end.is_empty();
            let is_fresh = before > rest.len() + end.len();
            if is_fed && once {
                live.close_stdin();
            }
            let is_full = group.items == 1 && self.attempt.output.is_full();
            let read = if is_full { 0 } else { self.take(live, pass) };
            let now = Instant::now();
            if is_fresh || read > 0 {
                pass.moved(now);
            }
            let in_turn = pass.lines.min(items - 1);
            self.bench
                .control
                .item
                .store(group.first + u32::try_from(in_turn).unwrap_or(u32::MAX), Ordering::Relaxed);
            if live.read_stderr(&mut self.bench.tail) {
                pass.stderr_at.get_or_insert(in_turn);
            }
            if self.bench.control.is_cancelled() {
                return Ok(Verdict::Cancelled);
            }
            if let Some(verdict) = self.excess(group, pass) {
                return Ok(verdict);
            }
            if live.ended().is_some() && pass.read_until.is_none() {
                let grace = Duration::from_millis(self.bench.timers.pipe_grace_ms);
                pass.read_until = Some(now + grace);
            }
            if live.is_silent() || pass.read_until.is_some_and(|until| until <= now) {
                return self.at_end(group, live, pass);
            }
            let is_whole = pass.lines == items && pass.open_bytes == 0 && is_fed;
            let is_open = live.takes_input();
            if is_whole && live.takes_input() && live.ended().is_none() {
                if std::mem::replace(&mut looked_twice, true) {
                    return Ok(Verdict::Right);
                }
                self.wait(live, Wish { write: false, read: true, until: Some(now + SECOND_LOOK) })?;
                continue;
            }
            let late_at = self.late_at(group, pass, is_full).filter(|_| !is_whole);
            if late_at.is_some_and(|at| at <= now) {
                return Ok(match self.is_prompt() || group.items == 1 {
                    true => Verdict::Late(in_turn),
                    false => Verdict::Wrong(pass.lines),
                });
            }
            let is_due = is_fed && !is_full && (is_open || is_whole);
            let look_at = pass.look_at().filter(|_| is_due && is_open && !is_whole);
            if look_at.is_some_and(|at| at <= now) {
                pass.looked();
                if self.waits_for_input(live)? {
                    // What it had printed before is there.
                    if self.take(live, pass) > 0 {
                        pass.moved(Instant::now());
                    } else {
                        live.close_stdin();
                        self.is_waiting = true;
                    }
                }
                continue;
            }
            let silent_at = self.silent_at(pass, is_open).filter(|_| is_due);
            if silent_at.is_some_and(|at| at <= now) {
                if !is_open {
                    // All is said, and its end is not worth waiting for.
                    return Ok(Verdict::Right);
                }
                live.close_stdin();
                self.is_silenced = true;
                self.note_silence();
                continue;
            }
            let printed = self.attempt.output.position() - pass.start;
            if (group.bytes.len() as u64).saturating_sub(printed) > STREAM_BYTES && read > 0 {
                // Much is still to come: it is not looked at for each little write.
                self.wait(
                    live,
                    Wish { write: false, read: false, until: Some(now + STREAM_PAUSE) },
                )?;
                continue;
            }
            let until = [late_at, silent_at, look_at, pass.read_until].into_iter().flatten().min();
            self.wait(live, Wish { write: !is_fed, read: !is_full, until })?;
        }
    }

    /// Reads and counts. How many bytes.
    fn take(&mut self, live: &mut Live, pass: &mut Pass) -> usize {
        let separator = self.separator;
        live.read_tentatively(&mut self.attempt.output, |printed| {
            match memrchr(separator, printed) {
                None => pass.open_bytes += printed.len() as u64,
                Some(last) => {
                    pass.lines += memchr_iter(separator, printed).count() as u64;
                    pass.open_bytes = (printed.len() - last - 1) as u64;
                    pass.line_at = Instant::now();
                }
            }
        })
    }

    /// Whether more has come than may.
    fn excess(&mut self, group: &Group, pass: &Pass) -> Option<Verdict> {
        let printed = self.attempt.output.position() - pass.start;
        if pass.lines > u64::from(group.items)
            || pass.lines == u64::from(group.items) && pass.open_bytes > 0
        {
            return Some(Verdict::Wrong(pass.lines + u64::from(pass.open_bytes > 0)));
        }
        if group.items == 1 {
            self.attempt.output.hand_over();
            return (printed > self.attempt.job.max_output).then_some(Verdict::TooMuch(0));
        }
        if pass.open_bytes > self.attempt.job.max_output {
            return Some(Verdict::TooMuch(pass.lines));
        }
        // What is not known to be right is bounded.
        (printed > FILTER_GROUP_BYTES).then_some(Verdict::Wrong(pass.lines))
    }

    /// Its output has ended: so has, in a moment, the process.
    fn at_end(
        &mut self,
        group: &Group,
        live: &mut Live,
        pass: &mut Pass,
    ) -> Result<Verdict, SpawnerGone> {
        if pass.open_bytes > 0 {
            // A last line without an end is a line.
            self.attempt.output.buffer.push(self.separator);
            (pass.lines, pass.open_bytes) = (pass.lines + 1, 0);
        }
        if pass.lines == u64::from(group.items) {
            live.close_stdin();
            return Ok(Verdict::Right);
        }
        live.close_stdin();
        let give_up = Instant::now() + Duration::from_millis(self.bench.timers.pipe_grace_ms);
        while live.ended().is_none() && Instant::now() < give_up {
            self.wait(live, Wish { write: false, read: false, until: Some(give_up) })?;
            live.read_stderr(&mut self.bench.tail);
        }
        Ok(match live.ended() {
            Some(reply @ Reply::Killed { .. }) => Verdict::Died(pass.lines, Outcome::of(reply)),
            Some(Reply::Failed(errno)) => Verdict::Died(0, Outcome::NotStarted(errno)),
            Some(reply @ Reply::Exited { status, .. }) if status != 0 && group.items == 1 => {
                Verdict::Died(pass.lines, Outcome::of(reply))
            }
            _ => Verdict::Wrong(pass.lines),
        })
    }

    /// When the item in turn has taken too long. A program that holds its lines back has the time of all of
    /// them together.
    fn late_at(&self, group: &Group, pass: &mut Pass, is_full: bool) -> Option<Instant> {
        let timeout = self.attempt.job.timeout?;
        if is_full {
            // What it waits for is not its own time.
            (pass.began, pass.line_at) = (Instant::now(), Instant::now());
            return None;
        }
        match self.is_prompt() {
            true => pass.line_at.checked_add(timeout),
            false => pass.began.checked_add(timeout.saturating_mul(group.items)),
        }
    }

    /// When it has been silent for so long that its input is closed; or where that is closed and all is
    /// said, that its end is not waited for.
    fn silent_at(&self, pass: &Pass, is_open: bool) -> Option<Instant> {
        let silence = Duration::from_millis(self.bench.timers.filter_silence_ms);
        let patience = if self.is_prompt() || !is_open { PROMPT_PATIENCE } else { 1 };
        pass.moved_at.checked_add(silence.saturating_mul(patience))
    }

    fn is_prompt(&self) -> bool {
        self.manner.prompt.load(Ordering::Relaxed) && !self.manner.once.load(Ordering::Relaxed)
    }

    /// Hands what is right to the session, and waits for room for more.
    fn hand_over(&mut self) -> Progress {
        self.attempt.output.hand_over();
        while self.attempt.output.is_full() {
            if self.bench.control.is_cancelled() {
                return Progress::Cancelled;
            }
            self.bench.control.wait(None);
        }
        Progress::Finished
    }

    fn waits_for_input(&mut self, live: &mut Live) -> Result<bool, SpawnerGone> {
        live.waits_for_input(self.bench.channel.as_mut().ok_or(SpawnerGone)?)
    }

    fn wait(&mut self, live: &mut Live, wish: Wish) -> Result<(), SpawnerGone> {
        let channel = self.bench.channel.as_mut().ok_or(SpawnerGone)?;
        live.wait(channel, &self.bench.control, wish)
    }

    fn end(&mut self, live: Live, parting: Parting) -> Result<Reply, SpawnerGone> {
        let channel = self.bench.channel.as_mut().ok_or(SpawnerGone)?;
        live.end(channel, &self.bench.control, &self.bench.timers, parting)
    }
}
