//! A script plays the driver: it tells events, answers cuts from an input that is only counted, and
//! notes every other action as a short line.

use std::collections::BTreeMap;
use std::time::Duration;

use widemap_common::failure::FailureKind;
use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_common::spec::Runtime;
use widemap_common::time::{Time, Timers};

use crate::event::{Action, DeathProof, Event, InputLevel, ItemFault, JobPolicy, WorkerTraits};
use crate::{Scheduler, SchedulerConfig};

pub(crate) struct Script {
    pub(crate) scheduler: Scheduler,
    pub(crate) now: Time,
    /// The items of each job: how many are cut, how many there are.
    inputs: BTreeMap<JobId, (u64, u64)>,
    /// Jobs whose runtime cuts its own blocks, of so many items.
    blocks: BTreeMap<JobId, u32>,
    said: Vec<String>,
    /// Items of the first job that are not cut.
    taken: Vec<(u64, u64)>,
    workers: u32,
    refuse: bool,
    /// Whether what is cancelled is over only when the story says so.
    pub(crate) lingers: bool,
}

impl Script {
    pub(crate) fn new() -> Self {
        let config = SchedulerConfig { seed: 7, timers: Timers::default() };
        Self {
            scheduler: Scheduler::new(config),
            now: Time::from_ms(1),
            inputs: BTreeMap::new(),
            blocks: BTreeMap::new(),
            said: Vec::new(),
            taken: Vec::new(),
            workers: 0,
            refuse: false,
            lingers: false,
        }
    }

    /// Adds workers with so many slots, a queue of 100 and a round trip of 0.2 ms.
    pub(crate) fn workers(mut self, count: u32, slots: u32) -> Self {
        (0..count).for_each(|_| self.add_worker(slots));
        self
    }

    pub(crate) fn add_worker(&mut self, slots: u32) {
        let worker = WorkerId(self.workers);
        self.workers += 1;
        let traits = WorkerTraits {
            name: format!("worker {worker}"),
            slots,
            queue: 100,
            runtimes: Runtime::ALL.to_vec(),
            labels: BTreeMap::new(),
            round_trip_us: 200,
        };
        self.tell(Event::WorkerUp { worker, traits });
    }

    /// A later epoch, in which items are left out that the script's own cutting must not give.
    pub(crate) fn numbering_from(mut self, first: u64) -> Self {
        let config = SchedulerConfig { seed: 7, timers: Timers::default() };
        self.scheduler = Scheduler::numbering_from(config, AttemptId(first));
        self
    }

    /// A worker has these items of the former epoch: they are not cut again.
    pub(crate) fn adopts(&mut self, worker: u32, attempt: u64, first: u64, items: u32) {
        self.taken.push((first, first + u64::from(items)));
        let (job, worker, attempt) = (JobId(0), WorkerId(worker), AttemptId(attempt));
        let range = ItemRange::new(first, items);
        self.tell(Event::Adopted { job, worker, attempt, range, bytes: u64::from(items) * 8 });
    }

    /// Adds a worker with one slot which has attempts of the former epoch (id, first item, items), and
    /// room for one more.
    pub(crate) fn adds_busy_worker(&mut self, held: &[(u64, u64, u32)]) {
        let worker = self.workers;
        self.add_worker(0);
        for &(attempt, first, items) in held {
            self.adopts(worker, attempt, first, items);
        }
        let slots = u32::try_from(held.len()).unwrap() + 1;
        self.tell(Event::WorkerCredit { worker: WorkerId(worker), slots, queue: 0 });
    }

    /// Whether workers refuse jobs from now on.
    pub(crate) fn refuse_jobs(mut self, refuse: bool) -> Self {
        self.refuse = refuse;
        self
    }

    /// Opens a job over so many items, all of them read.
    pub(crate) fn job(mut self, policy: JobPolicy, items: u64) -> Self {
        self.open(policy, items);
        self
    }

    pub(crate) fn open(&mut self, policy: JobPolicy, items: u64) -> JobId {
        let job = JobId(u32::try_from(self.inputs.len()).unwrap());
        if policy.runtime.is_block_wise() {
            self.blocks.insert(job, policy.chunk_items.unwrap_or(100));
        }
        self.inputs.insert(job, (0, items));
        self.tell(Event::JobOpened { job, policy });
        self.tell_level(job);
        job
    }

    fn tell_level(&mut self, job: JobId) {
        let (cut, items) = self.inputs[&job];
        let left = items - cut;
        let level = InputLevel { ready_items: left, ready_bytes: left * 8, rest_bytes: Some(0) };
        self.tell(Event::InputLevel { job, level });
    }

    /// Tells an event, and carries out what comes of it.
    pub(crate) fn tell(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.scheduler.handle(self.now, event, &mut actions);
        self.scheduler.check_invariants();
        for action in actions {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::OpenJob { worker, job } if self.refuse => {
                self.tell(Event::JobRefused { worker, job });
            }
            Action::OpenJob { worker, job } => self.tell(Event::JobReady { worker, job }),
            Action::Cut { job, chunks, items_max, .. } => self.cut(job, chunks, items_max),
            Action::Release { .. } | Action::CloseJob { .. } => {}
            Action::Cancel { worker, attempt } => {
                self.said.push(line(&action));
                if !self.lingers {
                    self.tell(Event::Cancelled { worker, attempt });
                }
            }
            action => self.said.push(line(&action)),
        }
    }

    fn cut(&mut self, job: JobId, chunks: u32, items_max: u32) {
        let items_max = self.blocks.get(&job).copied().unwrap_or(items_max);
        for _ in 0..chunks {
            let (mut cut, items) = self.inputs[&job];
            while let Some(&(_, end)) =
                self.taken.iter().find(|(from, to)| (*from..*to).contains(&cut))
            {
                cut = end;
                self.inputs.insert(job, (cut, items));
            }
            if cut == items {
                break;
            }
            let ahead = self.taken.iter().map(|&(from, _)| from).filter(|&from| from > cut);
            let end = ahead.min().unwrap_or(items);
            let take = u32::try_from((end - cut).min(u64::from(items_max))).unwrap();
            self.inputs.insert(job, (cut + u64::from(take), items));
            let bytes = u64::from(take) * 8;
            self.tell(Event::ChunkCut { job, range: ItemRange::new(cut, take), bytes });
        }
        if self.inputs[&job].0 == self.inputs[&job].1 {
            self.tell_level(job);
            self.tell(Event::CutEnded { job });
        }
    }

    /// An attempt ends after so many milliseconds of work, with these items failed.
    pub(crate) fn done_in(&mut self, attempt: u64, busy_ms: u64, faulty: &[u32]) {
        let fault = |&index| ItemFault { index, kind: FailureKind::Error, retryable: true };
        let faults = faulty.iter().map(fault).collect();
        let attempt = AttemptId(attempt);
        self.tell(Event::AttemptDone { attempt, busy_us: busy_ms * 1_000, faults });
    }

    pub(crate) fn done(&mut self, attempt: u64) {
        self.done_in(attempt, 50, &[]);
    }

    pub(crate) fn faulty(&mut self, attempt: u64, faulty: &[u32]) {
        self.done_in(attempt, 50, faulty);
    }

    pub(crate) fn dies(&mut self, worker: u32) {
        self.tell(Event::WorkerDead { worker: WorkerId(worker), proof: DeathProof::Proved });
    }

    pub(crate) fn storage(&mut self, full: bool) {
        self.tell(Event::Storage { job: JobId(0), full });
    }

    pub(crate) fn passes(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        self.tell(Event::Tick);
    }

    /// What was asked for since the last time.
    pub(crate) fn said(&mut self) -> Vec<String> {
        std::mem::take(&mut self.said)
    }

    /// Compares what was asked for, and forgets it: nothing else was asked.
    #[track_caller]
    pub(crate) fn expect(&mut self, lines: &[&str]) {
        assert_eq!(self.said(), lines);
    }
}

/// A short line for an action.
pub(crate) fn line(action: &Action) -> String {
    match action {
        Action::OpenJob { worker, job } => format!("open {job} on {worker}"),
        Action::CloseJob { worker, job } => format!("close {job} on {worker}"),
        Action::Cut { job, chunks, items_max, .. } => format!("cut {chunks} of {items_max} {job}"),
        Action::Assign { worker, attempt, range, .. } => format!("{attempt} {range} to {worker}"),
        Action::Revoke { worker, attempt } => format!("revoke {attempt} from {worker}"),
        Action::Cancel { worker, attempt } => format!("cancel {attempt} on {worker}"),
        Action::Accept { attempt, range, runs, .. } => {
            format!("accept {range} {attempt} run {runs}")
        }
        Action::Fail { range, failure, .. } => {
            format!("fail {range} {} run {}", failure.kind, failure.runs)
        }
        Action::Retry { range, kind, .. } => format!("retry {range} {kind}"),
        Action::Release { attempt, .. } => format!("release {attempt}"),
        Action::Unusable { job } => format!("unusable {job}"),
        Action::Exclude { worker, for_time } => format!("exclude {worker} for {for_time:?}"),
        Action::JobEnded { job } => format!("ended {job}"),
    }
}
