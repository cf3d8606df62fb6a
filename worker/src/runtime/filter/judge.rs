//! What came of a group, in results and in words; and which smaller groups follow from it.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use memchr::{memchr_iter, memrchr};
use widemap_common::failure::FailureKind;
use widemap_common::framing::Framing;
use widemap_common::ids::ItemRange;

use super::{Filter, Group, Step, Verdict};
use crate::runtime::live::Kept;
use crate::runtime::process::{Outcome, failure_of};
use crate::runtime::results::Failure;
use crate::spawner::SpawnerGone;

impl Filter<'_, '_> {
    /// What it takes to start a process for a chunk is none of the items': else chunks would be small where
    /// starting takes long, and it would take long for each item.
    pub(super) fn note_start(&mut self, items: u32, micros: u64) {
        if !self.manner.once.load(Ordering::Relaxed) {
            return;
        }
        let silence_us = match self.is_silenced {
            true => self.bench.timers.filter_silence_ms.saturating_mul(1_000),
            false => 0,
        };
        let rest_us = micros.saturating_sub(silence_us);
        let mut costs = self.manner.costs.lock().unwrap_or_else(PoisonError::into_inner);
        self.attempt.fixed_us = micros - costs.items_us(items, rest_us).min(micros);
    }

    /// Starts the program ahead of the next chunk, if it is started for each: meanwhile the slot hands in
    /// what it has.
    pub(super) fn start_ahead(&mut self) -> Result<(), SpawnerGone> {
        if self.manner.once.load(Ordering::Relaxed)
            && let Ok(live) = self.start(0)?
        {
            let (job, lane) = (self.attempt.job.clone(), self.attempt.lane);
            self.bench.kept = Some(Kept { live, job, lane, last: None, interpreter: None });
        }
        Ok(())
    }

    /// Its input was closed so that it prints what it holds back.
    pub(super) fn note_silence(&self) {
        if !self.is_prompt() {
            self.note_held_back();
        }
    }

    pub(super) fn note_held_back(&self) {
        if self.manner.once.swap(true, Ordering::Relaxed) {
            return;
        }
        let program = self.program();
        let cure = match program.as_str() {
            "sed" => "`sed -u`",
            "grep" | "egrep" | "fgrep" => "`grep --line-buffered`",
            "jq" => "`jq --unbuffered`",
            "awk" | "gawk" | "mawk" | "nawk" => {
                "`fflush()` after each `print`, or `stdbuf -oL awk`"
            }
            "perl" => "`$| = 1`",
            name if name.starts_with("python") => "`python3 -u`",
            _ => "an option of its own, or `stdbuf -oL`",
        };
        let text = format!(
            "`{program}` keeps back what it prints, or takes long for it: it is started for each chunk \
             instead of once ({cure} makes it print at once)"
        );
        self.attempt.output.say(self.attempt.job.id, text);
    }

    pub(super) fn say_late(&self, last: ItemRange) {
        let text = format!(
            "WARNING: `{}` has printed more lines than it was given, too late to be counted: what it answered \
             for items {} to {} may be another item's; it is started for each chunk from now on (--pipe \
             allows any number of lines)",
            self.program(),
            last.first + 1,
            last.end()
        );
        self.attempt.output.say(self.attempt.job.id, text);
    }

    /// The program's name, for people.
    pub(super) fn program(&self) -> String {
        let name = self.argv.first().map_or(b"".as_slice(), Vec::as_slice);
        let base = memrchr(b'/', name).map_or(name, |slash| &name[slash + 1..]);
        String::from_utf8_lossy(base).into_owned()
    }

    /// A group was answered as it should be.
    pub(super) fn keep(&mut self, group: &Group, start: u64, micros: u64) {
        if !self.attempt.job.per_item {
            return;
        }
        let output = &self.attempt.output;
        if group.items == 1 {
            return self.attempt.results.item(output.position() - start, micros);
        }
        let mut open_bytes = 0;
        for piece in output.since(start) {
            let mut line_start = 0;
            for end in memchr_iter(self.separator, piece) {
                let bytes = open_bytes + (end + 1 - line_start) as u64;
                self.attempt.results.item(bytes, micros / u64::from(group.items));
                (line_start, open_bytes) = (end + 1, 0);
            }
            open_bytes += (piece.len() - line_start) as u64;
        }
    }

    pub(super) fn fail(&mut self, index: u32, failure: Failure, start: u64, micros: u64) {
        let left = self.attempt.output.truncate(start);
        self.attempt.results.fault(index, failure, start, left, micros);
        if self.attempt.job.per_item {
            self.attempt.results.item(self.attempt.output.position() - start, micros);
        }
    }

    /// What a verdict means for the item that stands alone.
    pub(super) fn failure(&self, verdict: Verdict) -> Failure {
        let wrong = |what: String| Failure {
            unfit: true,
            ..Failure::error(format!("{what} (with --filter each item gives exactly one line)"))
                .permanent()
        };
        let job = self.attempt.job;
        match verdict {
            Verdict::Wrong(0) => wrong("printed nothing".to_owned()),
            Verdict::Wrong(_) => wrong("printed more than one line".to_owned()),
            Verdict::Died(lines, Outcome::Exited(status)) => {
                let lines =
                    if lines == 0 { "nothing".to_owned() } else { format!("{lines} lines") };
                let what = format!("printed {lines}, and exited with status {status}");
                // What ends so of itself may end otherwise another time.
                Failure { exit: Some(status), retryable: status != 0, ..wrong(what) }
            }
            Verdict::Died(_, outcome) => failure_of(&outcome, job),
            Verdict::Late(_) => Failure::timeout(job.timeout),
            Verdict::TooMuch(_) => Failure::too_much_output(job.max_output),
            Verdict::Right | Verdict::Cancelled => {
                Failure { kind: FailureKind::Cancelled, ..Failure::error("cancelled") }
            }
        }
    }

    /// A group that was not answered as it should be, in smaller ones.
    pub(super) fn split(&self, group: &Group, verdict: Verdict, steps: &mut Vec<Step>) {
        let at = match verdict {
            Verdict::Late(lines) | Verdict::TooMuch(lines) => {
                // The item in turn is known; what came before is proved, what comes after goes on.
                let at = u32::try_from(lines).unwrap_or(u32::MAX).min(group.items - 1);
                let (before, rest) = self.cut(group, at);
                let (_, after) = self.cut(&rest, 1);
                let after = Group { once: group.once, ..after };
                steps.push(Step::Run(after));
                steps.push(Step::Fail(group.first + at, self.failure(verdict)));
                return steps.push(Step::Run(before));
            }
            Verdict::Died(lines, _) if lines > 0 => {
                u32::try_from(lines).unwrap_or(u32::MAX).min(group.items - 1)
            }
            _ => group.items / 2,
        };
        let (before, rest) = self.cut(group, at);
        if matches!(verdict, Verdict::Died(1.., _)) {
            let (suspect, after) = self.cut(&rest, 1);
            steps.extend([Step::Run(after), Step::Run(suspect)]);
        } else {
            steps.push(Step::Run(rest));
        }
        steps.push(Step::Run(before));
    }

    /// The first items of a group, and the rest, each in a process of its own.
    pub(super) fn cut(&self, group: &Group, items: u32) -> (Group, Group) {
        let framing = Framing::Separator(self.separator);
        let bytes = &self.input[group.bytes.clone()];
        let split = group.bytes.start + framing.offset_of(bytes, u64::from(items));
        let before =
            Group { first: group.first, items, bytes: group.bytes.start..split, once: true };
        let after = Group {
            first: group.first + items,
            items: group.items - items,
            bytes: split..group.bytes.end,
            once: true,
        };
        (before, after)
    }
}
