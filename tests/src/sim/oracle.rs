//! What each item is, what a sequential run of the list gives, and what an item may come to: every
//! verdict of the scheduler is held against it.

use bytes::Bytes;
use widemap_common::failure::{FailureKind, Fault};
use widemap_common::ids::ItemRange;
use widemap_common::limits::DEATHS_NEAR_MAX;
use widemap_sched::event::{Failure, JobPolicy};

/// What an item does to whoever runs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nature {
    /// It succeeds.
    Good,
    /// It fails each time.
    Fails,
    /// It fails, and says that it always will.
    Permanent,
    /// It fails so many times, then it succeeds.
    Flaky(u32),
    /// It kills the process of the worker.
    Poison,
}

/// One item of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) value: u64,
    pub(super) nature: Nature,
    pub(super) cost_us: u64,
}

/// What has become of an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Open,
    Accepted,
    Failed(FailureKind),
}

/// What is known of an item's life.
#[derive(Clone, Copy, Debug)]
struct Life {
    fate: Fate,
    fails_left: u32,
    /// Failed runs that the scheduler was told of, refused results among them.
    failures_told: u32,
    /// Runs that the scheduler has charged to it.
    charges: u32,
    /// Proved deaths of workers that held it.
    deaths: u32,
    /// Processes that it killed, and those of them of which nobody could know that it was there.
    kills: u32,
    kills_unseen: u32,
}

/// What came of running an attempt.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) output: Bytes,
    pub(super) faults: Vec<Fault>,
}

/// The list of a job, as a single process would work it off.
#[derive(Debug)]
pub(super) struct Oracle {
    pub(super) function: fn(u64) -> u64,
    pub(super) items: Vec<Item>,
    /// Items of a block, where the block is the unit.
    pub(super) block_items: Option<u32>,
    /// A result has so many digits at the least.
    digits: usize,
    lives: Vec<Life>,
    final_items: usize,
    /// What must go out for the items before `expected_items`, and how much of it has.
    expected: Vec<u8>,
    expected_items: u64,
    checked_bytes: usize,
}

impl Oracle {
    pub(super) fn new(
        function: fn(u64) -> u64,
        items: Vec<Item>,
        block_items: Option<u32>,
        digits: usize,
    ) -> Self {
        let life = |item: &Item| Life {
            fate: Fate::Open,
            fails_left: match item.nature {
                Nature::Good | Nature::Poison => 0,
                Nature::Fails | Nature::Permanent => u32::MAX,
                Nature::Flaky(times) => times,
            },
            failures_told: 0,
            charges: 0,
            deaths: 0,
            kills: 0,
            kills_unseen: 0,
        };
        let lives = items.iter().map(life).collect();
        Self {
            function,
            items,
            block_items,
            digits,
            lives,
            final_items: 0,
            expected: Vec::new(),
            expected_items: 0,
            checked_bytes: 0,
        }
    }

    /// The items as a file would have them.
    pub(super) fn input(&self) -> Bytes {
        self.items.iter().flat_map(|item| format!("{}\n", item.value).into_bytes()).collect()
    }

    /// What a worker's process makes of a range, if it lives through it.
    pub(super) fn run(&mut self, range: ItemRange) -> Run {
        let mut run = Run { output: Bytes::new(), faults: Vec::new() };
        if self.block_items.is_some() {
            match self.indices(range).find_map(|index| self.fault_of(index, 0)) {
                Some(fault) => run.faults.push(fault),
                None => run.output = self.results(range).into(),
            }
            return run;
        }
        let mut output = Vec::new();
        for (index, at) in (0..).zip(self.indices(range)) {
            match self.fault_of(at, index) {
                Some(fault) => {
                    run.faults.push(Fault { output_offset: output.len() as u64, ..fault });
                }
                None => output.extend(self.results(ItemRange::new(at as u64, 1))),
            }
        }
        run.output = output.into();
        run
    }

    fn fault_of(&mut self, at: usize, index: u32) -> Option<Fault> {
        let left = &mut self.lives[at].fails_left;
        if *left == 0 {
            return None;
        }
        *left = left.saturating_sub(u32::from(*left != u32::MAX));
        Some(Fault {
            index,
            kind: FailureKind::Error,
            message: String::new(),
            exit: Some(1),
            signal: None,
            unfit: false,
            output_offset: 0,
            output_bytes: 0,
            retryable: self.items[at].nature != Nature::Permanent,
            micros: 0,
        })
    }

    /// How long a range takes, up to the item that kills the process, if one does.
    pub(super) fn cost_us(&self, range: ItemRange) -> (u64, Option<u64>) {
        let mut cost_us = 0;
        for at in self.indices(range) {
            cost_us += self.items[at].cost_us;
            if self.items[at].nature == Nature::Poison {
                return (cost_us, Some(at as u64));
            }
        }
        (cost_us, None)
    }

    /// The result of a range in which every item succeeds.
    pub(super) fn results(&self, range: ItemRange) -> Vec<u8> {
        let results = self.indices(range).map(|at| (self.function)(self.items[at].value));
        match self.block_items {
            Some(_) => self.line(results.fold(0, u64::wrapping_add)),
            None => results.flat_map(|result| self.line(result)).collect(),
        }
    }

    fn line(&self, result: u64) -> Vec<u8> {
        format!("{result:0digits$}\n", digits = self.digits).into_bytes()
    }

    /// An attempt at the range ended, and these of its items failed.
    pub(super) fn told_of_faults(&mut self, range: ItemRange, faults: &[Fault]) {
        for fault in faults {
            let at = ItemRange::new(range.first + u64::from(fault.index), 1);
            self.told(if self.block_items.is_some() { range } else { at });
        }
    }

    /// The result of an attempt at the range was refused, or all of it failed.
    pub(super) fn told(&mut self, range: ItemRange) {
        for at in self.indices(range) {
            self.lives[at].failures_told += 1;
        }
    }

    /// A worker that held the range is proved dead.
    pub(super) fn died_with(&mut self, range: ItemRange) {
        for at in self.indices(range) {
            self.lives[at].deaths += 1;
        }
    }

    /// The item killed a process. `seen` says whether the coordinator could know of it.
    pub(super) fn killed(&mut self, item: u64, seen: bool) {
        let life = &mut self.lives[index(item)];
        life.kills += 1;
        life.kills_unseen += u32::from(!seen);
    }

    /// The scheduler has accepted a range.
    pub(super) fn accepted(&mut self, range: ItemRange) {
        if let Some(block) = self.block_items {
            assert_eq!(range.first % u64::from(block), 0, "{range} is a block");
            assert!(range.items == block || range.end() == self.items.len() as u64, "a whole one");
        }
        self.settle(range, Fate::Accepted);
    }

    /// The scheduler lets items run again, which is charged to them.
    pub(super) fn retried(&mut self, range: ItemRange, policy: &JobPolicy) {
        for at in self.indices(range) {
            let life = &mut self.lives[at];
            assert_eq!(life.fate, Fate::Open, "item {at} runs again");
            life.charges += 1;
            assert!(life.charges <= policy.retries, "item {at} runs too often: {life:?}");
        }
    }

    /// The scheduler has given up a range, for a reason.
    pub(super) fn failed(&mut self, range: ItemRange, failure: &Failure, policy: &JobPolicy) {
        let permanent = |at: usize| self.items[at].nature == Nature::Permanent;
        for at in self.indices(range) {
            let life = &self.lives[at];
            let reason = match failure.kind {
                FailureKind::Error => life.failures_told > policy.retries || permanent(at),
                FailureKind::Crash => life.deaths > policy.crash_limit,
                FailureKind::Timeout | FailureKind::Lost | FailureKind::Cancelled => false,
            };
            let some_permanent = self.block_items.is_some() && self.indices(range).any(permanent);
            assert!(reason || some_permanent, "item {at} failed as {failure:?}, but {life:?}");
        }
        self.settle(range, Fate::Failed(failure.kind));
    }

    fn settle(&mut self, range: ItemRange, fate: Fate) {
        for at in self.indices(range) {
            let life = &mut self.lives[at];
            assert_eq!(life.fate, Fate::Open, "item {at} is final once, not {fate:?} again");
            life.fate = fate;
            self.final_items += 1;
        }
    }

    /// Holds the output so far against a sequential run. The items before `next` are with the sink.
    pub(super) fn check_output(&mut self, output: &[u8], next: u64) {
        let all = self.items.len() as u64;
        // Of neighbours that wait together the first may be out before the sink has the last.
        while self.expected_items < next
            || (self.expected.len() < output.len() && self.expected_items < all)
        {
            let left = narrow(all - self.expected_items);
            let range =
                ItemRange::new(self.expected_items, self.block_items.unwrap_or(1).min(left));
            let fate = self.lives[index(self.expected_items)].fate;
            assert_ne!(fate, Fate::Open, "{range} goes out before it is accepted");
            if fate == Fate::Accepted {
                self.expected.extend(self.results(range));
            }
            self.expected_items = range.end();
        }
        if output.len() == self.checked_bytes {
            return;
        }
        let goes_on = self
            .expected
            .get(..output.len())
            .is_some_and(|expected| expected[self.checked_bytes..] == output[self.checked_bytes..]);
        let shown = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[self.checked_bytes.min(bytes.len())..]).into_owned()
        };
        assert!(
            goes_on,
            "{} goes out after {} bytes, not {}",
            shown(output),
            self.checked_bytes,
            shown(&self.expected)
        );
        self.checked_bytes = output.len();
    }

    /// About the longest result that there can be of one attempt, all items of the list together.
    pub(super) fn longest(&self) -> u64 {
        self.items.len() as u64 * (self.digits as u64).max(20)
    }

    /// Whether all that is with the sink has gone out.
    pub(super) fn is_all_out(&self) -> bool {
        self.checked_bytes == self.expected.len()
    }

    /// No item fails or kills more often than it may.
    pub(super) fn check_budgets(&self, policy: &JobPolicy, single_poison: bool) {
        // A speculative twin may fail beside its original, at one charge.
        let twins = if policy.speculate { 2 } else { 1 };
        // A death may be charged to another suspect, but not for ever.
        let near = if single_poison { 1 } else { DEATHS_NEAR_MAX };
        for (at, life) in self.lives.iter().enumerate() {
            let most = twins * (policy.retries + 1);
            assert!(life.failures_told <= most, "item {at} ran too often: {life:?}");
            // What is no suspect yet may have a twin, which dies before it can be cancelled.
            let twin = u32::from(policy.speculate);
            let most = near * (policy.crash_limit + 1) + twin + life.kills_unseen;
            // Where it was moved elsewhere before the death was heard of, nobody could know.
            let known = life.kills.min(life.deaths);
            assert!(known <= most, "item {at} killed too many: {life:?}");
        }
    }

    /// What every item came to in the end.
    pub(super) fn check_end(&self, policy: &JobPolicy, calm: Calm) {
        for (at, (item, life)) in self.items.iter().zip(&self.lives).enumerate() {
            assert_ne!(life.fate, Fate::Open, "item {at} has come to an end");
            let alone = self.block_items.is_none();
            match (item.nature, life.fate) {
                (Nature::Poison | Nature::Fails | Nature::Permanent, fate) => {
                    assert_ne!(fate, Fate::Accepted, "item {at} cannot succeed");
                }
                // Where one death convicts, it convicts all that ran there.
                (Nature::Good, fate) if alone && calm.nobody_lies && calm.nobody_crashes => {
                    let sure = policy.crash_limit > 0;
                    assert!(
                        fate == Fate::Accepted || !sure,
                        "item {at} is good, but {fate:?}: {life:?}"
                    );
                }
                _ => {}
            }
        }
    }

    /// Whether a process was killed by what nobody could know to be there.
    pub(super) fn has_unseen_kills(&self) -> bool {
        self.lives.iter().any(|life| life.kills_unseen > 0)
    }

    /// How often an item killed a process.
    pub(super) fn kills(&self, item: u64) -> u32 {
        self.lives[index(item)].kills
    }

    pub(super) fn fate(&self, item: u64) -> Fate {
        self.lives[index(item)].fate
    }

    /// How many items have come to an end.
    pub(super) fn final_items(&self) -> usize {
        self.final_items
    }

    fn indices(&self, range: ItemRange) -> std::ops::Range<usize> {
        index(range.first)..index(range.end())
    }
}

/// What did not happen in a run, so that more can be asked of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calm {
    /// No result was refused.
    pub(super) nobody_lies: bool,
    /// No process died but by a poison item.
    pub(super) nobody_crashes: bool,
}

fn index(item: u64) -> usize {
    usize::try_from(item).expect("a simulated list fits the memory")
}

fn narrow(items: u64) -> u32 {
    u32::try_from(items).expect("a simulated list is short")
}
