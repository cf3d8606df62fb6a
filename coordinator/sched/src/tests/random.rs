//! Any order of completions, failures, deaths, cuts and full storage ends with every item accepted
//! or failed, once.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;
use widemap_common::failure::FailureKind;
use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_common::spec::Runtime;
use widemap_common::time::{Time, Timers};

use super::policy;
use super::script::line;
use crate::event::{Action, DeathProof, Event, InputLevel, ItemFault, JobPolicy, WorkerTraits};
use crate::{Scheduler, SchedulerConfig};

const JOBS: usize = 2;
const QUEUE: u32 = 5;

/// A worker that runs its first attempts, as many as its slots are enough for.
#[derive(Default)]
struct ToyWorker {
    slots: usize,
    attempts: Vec<(AttemptId, JobId, ItemRange)>,
    asked_back: Vec<AttemptId>,
    cancelled: Vec<AttemptId>,
    cut: bool,
    draining: bool,
}

impl ToyWorker {
    fn running(&self, policies: &[JobPolicy]) -> usize {
        let mut taken = 0;
        let fits = |&&(_, job, _): &&(AttemptId, JobId, ItemRange)| {
            let slots = policies[job.0 as usize].slots_per_item.get() as usize;
            let fits = self.slots > 0 && (taken == 0 || taken + slots <= self.slots);
            taken += slots;
            fits
        };
        self.attempts.iter().take_while(fits).count()
    }
}

/// What an item of a job has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Open,
    Accepted,
    Failed,
}

struct Toy {
    scheduler: Scheduler,
    now: Time,
    workers: BTreeMap<WorkerId, ToyWorker>,
    next_worker: u32,
    policies: Vec<JobPolicy>,
    cut: Vec<u64>,
    fates: Vec<Vec<Fate>>,
    faults: Vec<Vec<u32>>,
    ended: Vec<bool>,
    /// The attempt that ended last, its items, and those of them that failed.
    last_done: Option<(AttemptId, ItemRange, Vec<u32>)>,
    story: Vec<String>,
    /// What is to be told once the actions at hand are carried out, as the driver does.
    events: VecDeque<Event>,
    is_telling: bool,
}

impl Toy {
    fn new(seed: u64, policies: Vec<JobPolicy>, items: usize) -> Self {
        let config = SchedulerConfig { seed, timers: Timers::default() };
        let mut toy = Self {
            scheduler: Scheduler::new(config),
            now: Time::ZERO,
            workers: BTreeMap::new(),
            next_worker: 0,
            cut: vec![0; policies.len()],
            fates: vec![vec![Fate::Open; items]; policies.len()],
            faults: vec![vec![0; items]; policies.len()],
            ended: vec![false; policies.len()],
            policies,
            last_done: None,
            story: Vec::new(),
            events: VecDeque::new(),
            is_telling: false,
        };
        for job in 0..toy.policies.len() {
            let policy = toy.policies[job].clone();
            toy.tell(Event::JobOpened { job: JobId(job as u32), policy });
            toy.tell_level(job);
        }
        toy
    }

    fn add_worker(&mut self, slots: u32) {
        let worker = WorkerId(self.next_worker);
        self.next_worker += 1;
        self.workers.insert(worker, ToyWorker { slots: slots as usize, ..ToyWorker::default() });
        let traits = WorkerTraits {
            name: worker.to_string(),
            slots,
            queue: QUEUE,
            runtimes: Runtime::ALL.to_vec(),
            labels: BTreeMap::new(),
            round_trip_us: 200,
        };
        self.tell(Event::WorkerUp { worker, traits });
    }

    fn tell_level(&mut self, job: usize) {
        let left = self.fates[job].len() as u64 - self.cut[job];
        let level = InputLevel { ready_items: left, ready_bytes: left * 8, rest_bytes: Some(0) };
        self.tell(Event::InputLevel { job: JobId(job as u32), level });
    }

    fn tell(&mut self, event: Event) {
        self.events.push_back(event);
        if std::mem::replace(&mut self.is_telling, true) {
            return;
        }
        while let Some(event) = self.events.pop_front() {
            self.story.push(format!("{} {event:?}", self.now));
            let mut actions = Vec::new();
            self.scheduler.handle(self.now, event, &mut actions);
            self.scheduler.check_invariants();
            for action in actions {
                self.story.push(format!("    {}", line(&action)));
                self.carry_out(&action);
            }
        }
        self.is_telling = false;
    }

    fn carry_out(&mut self, action: &Action) {
        match *action {
            Action::OpenJob { worker, job } => self.tell(Event::JobReady { worker, job }),
            Action::Cut { job, chunks, items_max, .. } => self.cut(job, chunks, items_max),
            Action::Assign { worker, attempt, job, range, .. } => {
                let there = self.workers.get_mut(&worker).expect("a worker that is there");
                assert!(!there.cut && !there.draining, "{worker} takes nothing");
                there.attempts.push((attempt, job, range));
                let most = there.slots + QUEUE as usize;
                assert!(there.attempts.len() <= most, "{worker} has its credit");
            }
            Action::Revoke { worker, attempt } => {
                self.workers.get_mut(&worker).expect("is there").asked_back.push(attempt);
            }
            Action::Cancel { worker, attempt } => {
                let there = self.workers.get_mut(&worker).expect("a worker that is there");
                there.attempts.retain(|entry| entry.0 != attempt);
                there.cancelled.push(attempt);
            }
            Action::Accept { job, attempt, range, .. } => {
                let (done, whole, faulty) = self.last_done.as_ref().expect("an attempt is done");
                assert!(*done == attempt && whole.covers(range), "it is that attempt's result");
                let failed = |&index: &u32| range.contains(whole.first + u64::from(index));
                assert!(!faulty.iter().any(failed), "no faulty item is accepted");
                self.settle(job, range, Fate::Accepted);
            }
            Action::Fail { job, range, .. } => self.settle(job, range, Fate::Failed),
            Action::JobEnded { job } => {
                assert!(!self.ended[job.0 as usize], "{job} ends once");
                self.ended[job.0 as usize] = true;
            }
            Action::Retry { .. }
            | Action::Release { .. }
            | Action::CloseJob { .. }
            | Action::Unusable { .. }
            | Action::Exclude { .. } => {}
        }
    }

    fn settle(&mut self, job: JobId, range: ItemRange, fate: Fate) {
        for item in range.first..range.end() {
            let known = &mut self.fates[job.0 as usize][item as usize];
            assert_eq!(*known, Fate::Open, "item {item} of {job} is final once");
            *known = fate;
        }
    }

    fn cut(&mut self, job: JobId, chunks: u32, items_max: u32) {
        let index = job.0 as usize;
        let items_max = if self.policies[index].runtime.is_block_wise() { 7 } else { items_max };
        for _ in 0..chunks {
            let left = self.fates[index].len() as u64 - self.cut[index];
            if left == 0 {
                break;
            }
            let items = left.min(u64::from(items_max)) as u32;
            let range = ItemRange::new(self.cut[index], items);
            self.cut[index] += u64::from(items);
            self.tell(Event::ChunkCut { job, range, bytes: u64::from(items) * 8 });
        }
        if self.cut[index] == self.fates[index].len() as u64 {
            self.tell_level(index);
            self.tell(Event::CutEnded { job });
        }
    }

    /// The worker ends one of the attempts that it runs; some of the items fail.
    fn complete(&mut self, worker: WorkerId, which: usize, faulty: u32, busy_us: u64) {
        let there = self.workers.get_mut(&worker).expect("a worker that is there");
        let running = there.running(&self.policies);
        if running == 0 || there.cut {
            return;
        }
        let (attempt, job, range) = there.attempts.remove(which % running);
        let index = job.0 as usize;
        let block = self.policies[index].runtime.is_block_wise();
        let items = if block { 1 } else { range.items };
        let fails = |index: &u32| faulty > 0 && (index + which as u32) % 4 < faulty;
        let fault = |index| ItemFault { index, kind: FailureKind::Error, retryable: true };
        let faults: Vec<_> = (0..items).filter(fails).map(fault).collect();
        for fault in &faults {
            let count = &mut self.faults[index][range.first as usize + fault.index as usize];
            *count += 1;
            // A twin may fail beside its original.
            let most = 2 * (self.policies[index].retries + 1);
            assert!(*count <= most, "an item fails no more often than it may");
        }
        let faulty = faults.iter().map(|fault| fault.index).collect();
        self.last_done = Some((attempt, range, faulty));
        self.tell(Event::AttemptDone { attempt, busy_us, faults });
    }

    fn answer(&mut self, worker: WorkerId) {
        let there = self.workers.get_mut(&worker).expect("a worker that is there");
        if there.cut {
            return;
        }
        let cancelled = std::mem::take(&mut there.cancelled);
        for attempt in cancelled {
            self.tell(Event::Cancelled { worker, attempt });
        }
        let there = self.workers.get_mut(&worker).expect("a worker that is there");
        if there.asked_back.is_empty() {
            return;
        }
        let attempt = there.asked_back.remove(0);
        let at = there.attempts.iter().position(|entry| entry.0 == attempt);
        match at.filter(|&at| at >= there.running(&self.policies)) {
            Some(at) => {
                there.attempts.remove(at);
                self.tell(Event::Revoked { attempt });
            }
            None => self.tell(Event::RevokedTooLate { attempt }),
        }
    }

    fn die(&mut self, worker: WorkerId, proof: DeathProof) {
        self.workers.remove(&worker);
        self.tell(Event::WorkerDead { worker, proof });
    }

    fn cut_or_return(&mut self, worker: WorkerId, loses: bool) {
        let there = self.workers.get_mut(&worker).expect("a worker that is there");
        if !there.cut {
            there.cut = true;
            self.tell(Event::WorkerCut { worker });
            return;
        }
        there.cut = false;
        there.asked_back.clear();
        there.cancelled.clear();
        if loses {
            there.attempts.pop();
        }
        let held = there.attempts.iter().map(|entry| entry.0).collect();
        self.tell(Event::WorkerBack { worker, held });
    }

    fn credit(&mut self, worker: WorkerId, slots: usize) {
        self.workers.get_mut(&worker).expect("a worker that is there").slots = slots;
        self.tell(Event::WorkerCredit { worker, slots: slots as u32, queue: QUEUE });
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        self.tell(Event::Tick);
    }

    fn step(&mut self, (kind, a, b): (u8, u8, u8)) {
        let workers: Vec<_> = self.workers.keys().copied().collect();
        if workers.is_empty() || (kind == 0 && workers.len() < 6) {
            return self.add_worker(1 + u32::from(a) % 3);
        }
        let worker = workers[usize::from(a) % workers.len()];
        match kind {
            1 => self.die(worker, DeathProof::Proved),
            2 => self.die(worker, DeathProof::LeaseEnded),
            3 | 4 => self.cut_or_return(worker, b % 3 == 0),
            5 => {
                self.workers.get_mut(&worker).expect("is there").draining = true;
                self.tell(Event::WorkerDraining { worker });
            }
            6 | 7 => {
                let job = JobId(u32::from(a) % JOBS as u32);
                self.tell(Event::Storage { job, full: b % 2 == 0 });
            }
            8..=10 => self.pass(u64::from(b) * 4),
            11 | 12 => self.answer(worker),
            17 => self.credit(worker, usize::from(b) % 4),
            13..=15 => self.complete(worker, usize::from(b), 1 + u32::from(b) % 4, u64::from(b)),
            _ => self.complete(worker, usize::from(b), 0, u64::from(b) * 10),
        }
    }

    /// From here on nothing goes wrong.
    fn calm_down(&mut self) {
        for job in 0..JOBS {
            self.tell(Event::Storage { job: JobId(job as u32), full: false });
        }
        let lending_none: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, there)| there.slots == 0 && !there.attempts.is_empty())
            .map(|(&worker, _)| worker)
            .collect();
        lending_none.into_iter().for_each(|worker| self.credit(worker, 1));
        self.add_worker(3);
        for _ in 0..20_000 {
            if self.ended.iter().all(|&ended| ended) {
                return;
            }
            let workers: Vec<_> = self.workers.keys().copied().collect();
            for worker in workers {
                if self.workers[&worker].cut {
                    self.cut_or_return(worker, false);
                }
                self.answer(worker);
                self.complete(worker, 0, 0, 100);
            }
            let next = self.scheduler.next_deadline();
            self.now = next.map_or(self.now, |next| next.max(self.now)) + Duration::from_millis(1);
            self.tell(Event::Tick);
        }
        let explained: Vec<_> =
            (0..JOBS).map(|job| self.scheduler.explain(JobId(job as u32))).collect();
        panic!("did not end: {explained:?}\n{}", self.story.join("\n"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn every_item_comes_to_one_end(
        seed in any::<u64>(),
        items in 1_usize..120,
        (chunk, speculate, block, limit) in (0_u32..9, any::<bool>(), any::<bool>(), 0_u32..4),
        (wide, wide_too) in (1_u32..4, 1_u32..3),
        steps in proptest::collection::vec((0_u8..24, any::<u8>(), any::<u8>()), 0..300),
    ) {
        let chunk_items = (chunk > 0).then_some(chunk);
        let slots = |slots| NonZeroU32::new(slots).expect("at least one");
        let slots_per_item = slots(wide);
        let first =
            JobPolicy { chunk_items, speculate, crash_limit: limit, slots_per_item, ..policy() };
        let runtime = if block { Runtime::Pipe } else { Runtime::Builtin };
        let slots_per_item = slots(wide_too);
        let second =
            JobPolicy { runtime, retries: 2, weight: 3, speculate, slots_per_item, ..policy() };
        let mut toy = Toy::new(seed, vec![first, second], items);
        steps.into_iter().for_each(|step| toy.step(step));
        toy.calm_down();
        for fates in &toy.fates {
            prop_assert!(!fates.contains(&Fate::Open), "{}", toy.story.join("\n"));
        }
        prop_assert_eq!(toy.scheduler.next_deadline().filter(|&at| at > toy.now + Duration::from_secs(61)), None);
    }
}
