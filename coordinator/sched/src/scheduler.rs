//! The scheduler's state and its one entry point. Nothing else changes it, and it reads no clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use widemap_common::backoff::Rng;
use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_common::time::{Time, Timers};

use crate::adopt::Adopted;
use crate::attempt::Attempt;
use crate::chunk::Chunk;
use crate::event::{Action, Event};
use crate::job::{Counts, Job, Rank};
use crate::slab::{Key, Slab};
use crate::window::Window;
use crate::worker::{Standing, Worker};

/// What a scheduler is made with.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Draws the jitter: the same seed and the same events give the same actions.
    pub seed: u64,
    /// The pauses before retries.
    pub timers: Timers,
}

/// What becomes due by time alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Due {
    /// A paused chunk runs again.
    Retry(Key<Chunk>),
    /// An excluded worker is used again.
    Trust(Key<Worker>),
    /// A cancelled attempt of which nothing was heard is not waited for any more.
    Ghost(Key<Worker>, AttemptId),
}

/// Chunks that were asked for and have not come yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cutting {
    pub(crate) job: Key<Job>,
    pub(crate) chunks_left: u32,
}

/// Decides which items run where and when. Events in, actions out.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) timers: Timers,
    pub(crate) rng: Rng,
    pub(crate) now: Time,
    pub(crate) jobs: Slab<Job>,
    pub(crate) workers: Slab<Worker>,
    pub(crate) chunks: Slab<Chunk>,
    pub(crate) attempts: Window<Attempt>,
    pub(crate) job_keys: BTreeMap<JobId, Key<Job>>,
    pub(crate) worker_keys: BTreeMap<WorkerId, Key<Worker>>,
    /// The jobs that want a worker, the next one first, and how many of them have long attempts.
    pub(crate) order: BTreeSet<Rank>,
    pub(crate) long_wanting: u32,
    /// Jobs of which attempts wait on a worker.
    pub(crate) hoarding: BTreeSet<Key<Job>>,
    /// Jobs whose stragglers get a second attempt.
    pub(crate) speculating: BTreeSet<Key<Job>>,
    pub(crate) excluded: BTreeSet<Key<Worker>>,
    pub(crate) cutting: Option<Cutting>,
    pub(crate) due: BTreeSet<(Time, Due)>,
    /// What became of the last jobs that ended.
    pub(crate) ended: VecDeque<(JobId, Counts)>,
}

impl Scheduler {
    /// A scheduler without jobs and workers.
    #[must_use]
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            timers: config.timers,
            rng: Rng::with_seed(config.seed),
            now: Time::ZERO,
            jobs: Slab::new(),
            workers: Slab::new(),
            chunks: Slab::new(),
            attempts: Window::new(),
            job_keys: BTreeMap::new(),
            worker_keys: BTreeMap::new(),
            order: BTreeSet::new(),
            long_wanting: 0,
            hoarding: BTreeSet::new(),
            speculating: BTreeSet::new(),
            excluded: BTreeSet::new(),
            cutting: None,
            due: BTreeSet::new(),
            ended: VecDeque::new(),
        }
    }

    /// The same, which numbers its attempts from there on: smaller ids are of former epochs.
    #[must_use]
    pub fn numbering_from(config: SchedulerConfig, first: AttemptId) -> Self {
        Self { attempts: Window::starting_at(first), ..Self::new(config) }
    }

    /// Takes in what happened, and appends what is to be done about it. What is told of jobs,
    /// workers and attempts that are gone is late, and changes nothing.
    pub fn handle(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        let now = now.max(self.now);
        self.now = now;
        self.expire(now);
        self.apply(now, event, actions);
        // While chunks that were asked for are still coming, each is placed as it comes.
        if self.cutting.is_none() {
            self.settle(now, actions);
        }
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let due = self.due.first().map(|&(time, _)| time);
        let stragglers = self.speculating.iter().filter_map(|&job| self.jobs[job].straggler_at);
        due.into_iter().chain(stragglers).min()
    }

    fn expire(&mut self, now: Time) {
        while let Some(&(time, due)) = self.due.first() {
            if time > now {
                break;
            }
            self.due.pop_first();
            match due {
                Due::Retry(chunk) => self.enqueue(chunk),
                Due::Trust(worker) => self.trust_again(worker),
                Due::Ghost(worker, attempt) => self.cancelled(worker, attempt),
            }
        }
    }

    fn apply(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::JobOpened { job, policy } => self.open_job(job, policy, actions),
            Event::InputLevel { job, level } => {
                if let Some(job) = self.job(job) {
                    self.input_level(job, level, actions);
                }
            }
            Event::ChunkCut { job, range, bytes } => {
                if let Some(job) = self.job(job) {
                    self.chunk_cut(now, job, range, bytes, actions);
                }
            }
            Event::CutEnded { job } => {
                if let Some(job) = self.job(job) {
                    self.cut_ended(job, actions);
                }
            }
            Event::JobCancelled { job } => {
                if let Some(job) = self.job(job) {
                    self.cancel_job(now, job, actions);
                }
            }
            Event::JobPaused { job, paused } => {
                if let Some(job) = self.job(job) {
                    self.pause_job(job, paused, actions);
                }
            }
            Event::Adopted { job, worker, attempt, range, bytes } => {
                let worker = self.worker_keys.get(&worker).copied();
                if let (Some(job), Some(worker)) = (self.job(job), worker) {
                    self.adopt(now, job, worker, Adopted { attempt, range, bytes });
                }
            }
            Event::Storage { job, full } => {
                if let Some(job) = self.job(job) {
                    self.storage(job, full);
                }
            }
            Event::AttemptDone { attempt, busy_us, faults } => {
                self.attempt_done(now, attempt, busy_us, faults, actions);
            }
            Event::AttemptRejected { attempt } => self.attempt_rejected(now, attempt, actions),
            Event::Revoked { attempt } => self.revoked(now, attempt, actions),
            Event::RevokedTooLate { attempt } => self.revoked_too_late(now, attempt),
            Event::Tick => {}
            Event::WorkerUp { worker, traits } => self.worker_up(now, worker, traits, actions),
            event => self.apply_to_worker(now, event, actions),
        }
    }

    fn apply_to_worker(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        let (Event::WorkerCredit { worker: id, .. }
        | Event::RoundTrip { worker: id, .. }
        | Event::JobReady { worker: id, .. }
        | Event::JobRefused { worker: id, .. }
        | Event::Progress { worker: id, .. }
        | Event::WorkerCut { worker: id }
        | Event::WorkerBack { worker: id, .. }
        | Event::WorkerDead { worker: id, .. }
        | Event::WorkerDraining { worker: id }
        | Event::Cancelled { worker: id, .. }) = event
        else {
            unreachable!("every other event is applied above");
        };
        let Some(&worker) = self.worker_keys.get(&id) else { return };
        match event {
            Event::WorkerCredit { slots, queue, .. } => {
                self.worker_credit(now, worker, slots, queue, actions);
            }
            Event::RoundTrip { micros, .. } => self.round_trip(worker, micros),
            Event::JobReady { job, .. } => {
                if let Some(job) = self.job(job) {
                    self.answered(worker, job, Standing::Ready);
                }
            }
            Event::JobRefused { job, .. } => {
                if let Some(job) = self.job(job) {
                    self.answered(worker, job, Standing::Refused);
                    self.relieve_excluded();
                    self.tell_if_unusable(job, actions);
                }
            }
            Event::Progress { running, .. } => self.progress(now, worker, &running),
            Event::WorkerCut { .. } => self.worker_cut(worker),
            Event::WorkerBack { held, .. } => self.worker_back(now, worker, held, actions),
            Event::WorkerDead { proof, .. } => self.worker_dead(now, worker, proof, actions),
            Event::WorkerDraining { .. } => self.worker_draining(worker),
            Event::Cancelled { attempt, .. } => self.cancelled(worker, attempt),
            _ => {}
        }
    }

    pub(crate) fn job(&self, id: JobId) -> Option<Key<Job>> {
        self.job_keys.get(&id).copied()
    }

    fn chunk_cut(
        &mut self,
        now: Time,
        job: Key<Job>,
        range: ItemRange,
        bytes: u64,
        actions: &mut Vec<Action>,
    ) {
        let state = &mut self.jobs[job];
        let input = &mut state.input;
        input.cut_items += u64::from(range.items);
        input.cut_bytes += bytes;
        input.level.ready_bytes = input.level.ready_bytes.saturating_sub(bytes);
        if !state.block_wise {
            // Blocks are not counted ahead: their end is told.
            let items = u64::from(range.items);
            input.level.ready_items = input.level.ready_items.saturating_sub(items);
            input.ready = input.level.ready_items > 0;
        }
        if let Some(cutting) = self.cutting.as_mut().filter(|cutting| cutting.job == job) {
            cutting.chunks_left -= 1;
            if cutting.chunks_left == 0 {
                self.cutting = None;
            }
        }
        let chunk = self.append_chunk(job, range);
        let state = &self.jobs[job];
        let worker = if state.storage_full || state.paused { None } else { self.pick(chunk) };
        match worker {
            Some(worker) => self.assign(now, chunk, worker, actions),
            None => self.enqueue(chunk),
        }
    }
}
