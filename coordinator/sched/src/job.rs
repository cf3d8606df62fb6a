//! A job as the scheduler sees it, from its opening to its end.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use widemap_common::ids::{AttemptId, JobId};
use widemap_common::limits::{COUNTS_KEPT, JOBS_PER_SESSION_MAX};
use widemap_common::time::Time;

use crate::chunk::{Chunk, ChunkState};
use crate::event::{Action, InputLevel, JobPolicy};
use crate::pool::Pool;
use crate::record::Records;
use crate::scheduler::{Due, Scheduler};
use crate::sizing::Sizing;
use crate::slab::Key;
use crate::worker::Standing;

/// What has become of a job so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Items (for block-wise jobs those of the blocks) whose result is final.
    pub accepted_items: u64,
    /// Items that failed for good.
    pub failed_items: u64,
    /// How often an item (a block) that failed was to run again.
    pub retries: u64,
    /// Attempts so far, speculative ones included.
    pub attempts: u64,
    /// Chunks that are cut and not final.
    pub chunks_in_flight: u64,
    /// Speculative attempts so far.
    pub speculative: u64,
    /// Those of them that ended first.
    pub speculative_wins: u64,
    /// Workers that were lost while they had attempts of the job.
    pub workers_lost: u64,
}

/// What is known of the input.
#[derive(Debug)]
pub(crate) struct Input {
    /// As it was told last, less what was cut since.
    pub(crate) level: InputLevel,
    /// Whether there is something to be cut, as far as is known.
    pub(crate) ready: bool,
    /// Whether it was told that all of it is cut.
    pub(crate) ended: bool,
    pub(crate) cut_items: u64,
    pub(crate) cut_bytes: u64,
}

/// Where a job stands among those that want a worker: the first comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Rank {
    pub(crate) priority: Reverse<i32>,
    /// Attempts in flight for each unit of weight.
    pub(crate) share: u64,
    pub(crate) job: Key<Job>,
}

/// A job that has not ended.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) policy: JobPolicy,
    pub(crate) block_wise: bool,
    pub(crate) sizing: Sizing,
    pub(crate) input: Input,
    /// Whether nothing more is started, as its user wishes.
    pub(crate) paused: bool,
    /// Whether accepted results cannot be stored any more: only the head goes on.
    pub(crate) storage_full: bool,
    /// The chunks that are not final, in the order of their items. The first is the head.
    pub(crate) first: Option<Key<Chunk>>,
    pub(crate) last: Option<Key<Chunk>>,
    /// The same by their first item, from the first adoption on: then chunks are cut between others.
    pub(crate) by_item: Option<BTreeMap<u64, Key<Chunk>>>,
    pub(crate) chunks: u64,
    /// Chunks that wait for a worker, by their first item.
    pub(crate) queue: BTreeSet<(u64, Key<Chunk>)>,
    /// Those that may have killed a worker.
    pub(crate) suspects: BTreeSet<(u64, Key<Chunk>)>,
    /// Attempts that have not ended.
    pub(crate) in_flight: u32,
    /// Attempts that were asked back, and nothing was answered yet.
    pub(crate) asked_back: u32,
    /// The workers that are ready for it.
    pub(crate) pool: Pool,
    /// Those of them where attempts wait; the more of them, the lower the level.
    pub(crate) hoards: Pool,
    /// How attempts ended on each worker.
    pub(crate) records: Records,
    /// Running attempts since when they run, where there may be speculation.
    pub(crate) runners: BTreeSet<(Time, AttemptId)>,
    /// When the next of them is well past the usual time.
    pub(crate) straggler_at: Option<Time>,
    /// How many workers were told of the job, are ready for it, and refused it.
    pub(crate) asked: u32,
    pub(crate) ready: u32,
    pub(crate) refused: u32,
    /// Whether it was said that no worker can run it.
    pub(crate) told_unusable: bool,
    /// Its place among those that want a worker, and whether its attempts are short.
    pub(crate) rank: Option<(Rank, bool)>,
    pub(crate) counts: Counts,
}

impl Job {
    /// Whether a chunk can be asked for.
    pub(crate) fn can_cut(&self) -> bool {
        self.input.ready && !self.storage_full
    }

    /// The items that are still to be cut, as far as it is known.
    pub(crate) fn items_left(&self) -> Option<u64> {
        let rest_bytes = self.input.level.rest_bytes?;
        let bytes_each = (self.input.cut_bytes / self.input.cut_items.max(1)).max(1);
        Some(self.input.level.ready_items + rest_bytes / bytes_each)
    }
}

impl Scheduler {
    pub(crate) fn open_job(&mut self, id: JobId, policy: JobPolicy, actions: &mut Vec<Action>) {
        assert!(!self.job_keys.contains_key(&id), "{id} is opened once");
        let job = self.jobs.insert(Job {
            id,
            block_wise: policy.runtime.is_block_wise(),
            sizing: Sizing::new(&policy),
            policy,
            input: Input {
                level: InputLevel::default(),
                ready: false,
                ended: false,
                cut_items: 0,
                cut_bytes: 0,
            },
            paused: false,
            storage_full: false,
            first: None,
            last: None,
            by_item: None,
            chunks: 0,
            queue: BTreeSet::new(),
            suspects: BTreeSet::new(),
            in_flight: 0,
            asked_back: 0,
            pool: Pool::new(),
            hoards: Pool::new(),
            records: Records::default(),
            runners: BTreeSet::new(),
            straggler_at: None,
            asked: 0,
            ready: 0,
            refused: 0,
            told_unusable: false,
            rank: None,
            counts: Counts::default(),
        });
        self.job_keys.insert(id, job);
        debug_assert!(self.jobs.len() <= JOBS_PER_SESSION_MAX, "the driver bounds open jobs");
        if self.jobs[job].policy.speculate {
            self.speculating.insert(job);
        }
        let workers: Vec<_> = self.worker_keys.values().copied().collect();
        for worker in workers {
            self.offer_job(worker, job, actions);
        }
    }

    pub(crate) fn input_level(
        &mut self,
        job: Key<Job>,
        level: InputLevel,
        actions: &mut Vec<Action>,
    ) {
        let input = &mut self.jobs[job].input;
        input.level = level;
        input.ready = level.ready_items > 0;
        input.ended = level.ready_items == 0 && level.rest_bytes == Some(0);
        self.reorder(job);
        self.end_if_over(job, actions);
    }

    pub(crate) fn cut_ended(&mut self, job: Key<Job>, actions: &mut Vec<Action>) {
        self.jobs[job].input.ready = false;
        if self.cutting.is_some_and(|cutting| cutting.job == job) {
            self.cutting = None;
        }
        self.reorder(job);
        self.end_if_over(job, actions);
    }

    pub(crate) fn storage(&mut self, job: Key<Job>, full: bool) {
        self.jobs[job].storage_full = full;
        if full {
            self.give_back_reserved(job);
        }
        self.reorder(job);
    }

    /// Takes the job out of the order, or puts it in its place, after anything of it has changed.
    pub(crate) fn reorder(&mut self, key: Key<Job>) {
        let wants = self.wants_worker(key);
        let job = &self.jobs[key];
        let rank = wants.then(|| {
            let slots = u64::from(job.in_flight) * u64::from(job.policy.slots_per_item.get());
            let share = (slots << 16) / u64::from(job.policy.weight.max(1));
            let rank = Rank { priority: Reverse(job.policy.priority), share, job: key };
            (rank, job.sizing.is_short())
        });
        if rank == job.rank {
            return;
        }
        if let Some((old, short)) = job.rank {
            self.order.remove(&old);
            self.long_wanting -= u32::from(!short);
        }
        if let Some((new, short)) = rank {
            self.order.insert(new);
            self.long_wanting += u32::from(!short);
        }
        self.jobs[key].rank = rank;
    }

    fn wants_worker(&self, key: Key<Job>) -> bool {
        let job = &self.jobs[key];
        if job.paused {
            return false;
        }
        if job.storage_full {
            return job.first.is_some_and(|head| match self.chunks[head].state {
                ChunkState::Ready => true,
                ChunkState::Out { attempt, twin: None } => self.waits(attempt),
                ChunkState::Out { .. } | ChunkState::Paused { .. } => false,
            });
        }
        !job.queue.is_empty() || !job.suspects.is_empty() || job.can_cut()
    }

    /// Gives everything of the job up.
    pub(crate) fn cancel_job(&mut self, now: Time, job: Key<Job>, actions: &mut Vec<Action>) {
        self.jobs[job].input.ready = false;
        let next = |&key: &Key<Chunk>| self.chunks[key].next;
        let chunks: Vec<_> = std::iter::successors(self.jobs[job].first, next).collect();
        for chunk in chunks {
            match self.chunks[chunk].state {
                ChunkState::Ready => {}
                ChunkState::Paused { until } => {
                    self.due.remove(&(until, Due::Retry(chunk)));
                    self.chunks[chunk].state = ChunkState::Ready;
                }
                ChunkState::Out { attempt, twin } => {
                    for id in std::iter::once(attempt).chain(twin) {
                        self.cancel_attempt(now, id, actions);
                    }
                }
            }
            self.leave_reserved(chunk);
            self.remove_chunk(chunk);
        }
        self.close_job(job, actions);
    }

    /// Ends the job if there is nothing left of it. Returns whether it has.
    pub(crate) fn end_if_over(&mut self, key: Key<Job>, actions: &mut Vec<Action>) -> bool {
        let job = &self.jobs[key];
        let cutting = self.cutting.is_some_and(|cutting| cutting.job == key);
        let over = job.input.ended && job.chunks == 0 && !cutting;
        if over {
            self.close_job(key, actions);
        }
        over
    }

    fn close_job(&mut self, key: Key<Job>, actions: &mut Vec<Action>) {
        let workers: Vec<_> = self.worker_keys.values().copied().collect();
        for worker in workers {
            let there = &mut self.workers[worker];
            let Some(standing) = there.remove_job(key) else { continue };
            if standing == Standing::Refused {
                continue;
            }
            if !there.is_cut() {
                actions.push(Action::CloseJob { worker: there.id, job: self.jobs[key].id });
            }
        }
        if self.cutting.is_some_and(|cutting| cutting.job == key) {
            self.cutting = None;
        }
        self.reorder(key);
        if let Some((rank, short)) = self.jobs[key].rank {
            self.order.remove(&rank);
            self.long_wanting -= u32::from(!short);
        }
        self.speculating.remove(&key);
        self.hoarding.remove(&key);
        let job = self.jobs.remove(key);
        debug_assert!(job.in_flight == 0 && job.chunks == 0, "{} has ended", job.id);
        self.job_keys.remove(&job.id);
        self.ended.push_back((job.id, job.counts));
        if self.ended.len() > COUNTS_KEPT {
            self.ended.pop_front();
        }
        actions.push(Action::JobEnded { job: job.id });
    }
}
