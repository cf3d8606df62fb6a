//! What became of items, in results; and what follows for those that are left of a group.

use memchr::memchr_iter;

use super::frames::{FaultKind, Told, ToldFault};
use super::interpreter::Nonsense;
use super::{Calls, Group, Step, Verdict};
use crate::runtime::results::Failure;

impl Calls<'_, '_> {
    /// Notes what became of items whose output begins at `start`.
    pub(super) fn settle(
        &mut self,
        first: u32,
        items: u32,
        told: Told,
        start: u64,
        bytes: u64,
    ) -> Result<(), Nonsense> {
        let Told { micros, faults, lengths } = told;
        let per_item = self.attempt.job.per_item;
        if faults.is_empty() && !per_item {
            return Ok(());
        }
        let micros = micros / u64::from(items.max(1));
        let good = items as usize - faults.len().min(items as usize);
        let lengths = match (lengths.is_empty(), good) {
            (false, _) => lengths,
            (true, 0) => Vec::new(),
            (true, 1) => vec![bytes],
            (true, _) => self.line_lengths(bytes),
        };
        if lengths.len() != good || lengths.iter().sum::<u64>() != bytes {
            return Err(Nonsense);
        }
        let mut lengths = lengths.into_iter();
        let mut faults = faults.into_iter().peekable();
        let mut position = start;
        for index in 0..items {
            let length = match faults.next_if(|fault| fault.index == index) {
                Some(fault) => {
                    let failure = failure(fault);
                    self.attempt.results.fault(first + index, failure, position, 0, micros);
                    0
                }
                None => lengths.next().ok_or(Nonsense)?,
            };
            position += length;
            if per_item {
                self.attempt.results.item(length, micros);
            }
        }
        Ok(())
    }

    /// The lengths of the lines that the last so many bytes of the output are.
    fn line_lengths(&self, bytes: u64) -> Vec<u64> {
        let output = &self.attempt.output.buffer;
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(output.len());
        let mut begin = 0;
        let line = |end: usize| {
            let length = end + 1 - begin;
            begin = end + 1;
            length as u64
        };
        memchr_iter(b'\n', &output[output.len() - bytes..]).map(line).collect()
    }

    /// What follows from a verdict.
    pub(super) fn follow(
        &mut self,
        group: &Group,
        verdict: Verdict,
        micros: u64,
        steps: &mut Vec<Step>,
    ) {
        match verdict {
            Verdict::Done | Verdict::Cancelled => {}
            Verdict::Unusable(message) => {
                // It could be loaded when the job was opened.
                let fail = |index| {
                    let failure = Failure::error(message.clone());
                    Step::Fail { index, failure, left: 0, micros: 0 }
                };
                steps.extend((group.first..group.first + group.items).rev().map(fail));
            }
            Verdict::Late { settled, at } => {
                let failure = Failure::timeout(self.attempt.job.timeout);
                self.leave_out(group, settled, at, failure, 0, micros, steps);
            }
            Verdict::Died { settled, at: Some(at), failure, left } => {
                self.leave_out(group, settled, at, failure, left, micros, steps);
            }
            Verdict::Died { settled, at: None, failure, .. } => {
                let (_, rest) = self.cut(group, settled);
                match rest.items {
                    0 => {}
                    // It may have died before it was given anything.
                    1 if settled == 0 && self.is_reused => steps.push(Step::Run(rest)),
                    1 => self.leave_out(group, settled, settled, failure, 0, micros, steps),
                    items => {
                        // Between items, or at all of them: halved until one stands alone.
                        let (before, after) = self.cut(&rest, items / 2);
                        steps.extend([Step::Run(after), Step::Run(before)]);
                    }
                }
            }
        }
    }

    /// The item `at` has failed; those between `settled` and it run again, and those behind it run.
    #[expect(clippy::too_many_arguments, reason = "the parts of a verdict")]
    fn leave_out(
        &self,
        group: &Group,
        settled: u32,
        at: u32,
        failure: Failure,
        left: u64,
        micros: u64,
        steps: &mut Vec<Step>,
    ) {
        let (_, rest) = self.cut(group, settled);
        let (before, rest) = self.cut(&rest, at - settled);
        let (_, after) = self.cut(&rest, 1);
        steps.push(Step::Run(after));
        steps.push(Step::Fail { index: group.first + at, failure, left, micros });
        steps.push(Step::Run(before));
    }

    /// The first items of a group, and the rest.
    pub(super) fn cut(&self, group: &Group, items: u32) -> (Group, Group) {
        let bytes = &self.input[group.bytes.clone()];
        let split = group.bytes.start + self.framing.offset_of(bytes, u64::from(items));
        let before = Group { first: group.first, items, bytes: group.bytes.start..split };
        let after = Group {
            first: group.first + items,
            items: group.items - items,
            bytes: split..group.bytes.end,
        };
        (before, after)
    }
}

fn failure(fault: ToldFault) -> Failure {
    let failure = Failure::error(fault.message);
    match fault.kind {
        FaultKind::Error => failure,
        FaultKind::TooMuch => failure.permanent(),
        FaultKind::NotJson => Failure { unfit: true, ..failure.permanent() },
    }
}
