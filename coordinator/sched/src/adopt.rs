//! What a former epoch of this coordinator left on workers goes on, and jobs whose user wants nothing
//! of them started for a time.

use std::collections::BTreeMap;

use widemap_common::ids::{AttemptId, ItemRange};
use widemap_common::time::Time;

use crate::attempt::Stage;
use crate::chunk::{Chunk, ChunkState};
use crate::event::Action;
use crate::job::Job;
use crate::scheduler::Scheduler;
use crate::slab::Key;
use crate::worker::Worker;

/// An attempt of a former epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adopted {
    pub(crate) attempt: AttemptId,
    pub(crate) range: ItemRange,
    pub(crate) bytes: u64,
}

impl Scheduler {
    /// Takes the attempt as one that was assigned.
    pub(crate) fn adopt(
        &mut self,
        now: Time,
        job: Key<Job>,
        worker: Key<Worker>,
        Adopted { attempt: id, range, bytes }: Adopted,
    ) {
        assert!(self.attempts.is_foreign(id), "{id} is of a former epoch");
        self.index_chunks(job);
        let chunk = self.append_chunk(job, range);
        let state = &mut self.jobs[job];
        state.input.cut_items += u64::from(range.items);
        state.input.cut_bytes += bytes;
        let attempt = self.sent_last(chunk, worker);
        self.attempts.insert_foreign(id, attempt);
        self.chunks[chunk].state = ChunkState::Out { attempt: id, twin: None };
        self.list_attempt(now, id);
    }

    /// Lists the job's chunks by their first item, if that was not done before.
    fn index_chunks(&mut self, job: Key<Job>) {
        if self.jobs[job].by_item.is_some() {
            return;
        }
        let next = |&key: &Key<Chunk>| self.chunks[key].next;
        let chunks = std::iter::successors(self.jobs[job].first, next);
        let by_item: BTreeMap<_, _> =
            chunks.map(|key| (self.chunks[key].range.first, key)).collect();
        self.jobs[job].by_item = Some(by_item);
    }

    /// Starts nothing more of the job, or lets it go on.
    pub(crate) fn pause_job(&mut self, job: Key<Job>, paused: bool, actions: &mut Vec<Action>) {
        if std::mem::replace(&mut self.jobs[job].paused, paused) == paused {
            return;
        }
        if paused {
            self.give_back_reserved(job);
            let workers: Vec<_> = self.worker_keys.values().copied().collect();
            for worker in workers {
                self.ask_all_back(worker, job, actions);
            }
        }
        self.reorder(job);
    }

    /// Asks for everything of the job that waits on the worker.
    fn ask_all_back(&mut self, worker: Key<Worker>, job: Key<Job>, actions: &mut Vec<Action>) {
        if self.workers[worker].is_cut() {
            return;
        }
        for id in self.attempts_on(worker) {
            let attempt = self.attempt(id);
            let waits = attempt.stage == Stage::Waiting && !attempt.asked_back;
            if attempt.job == job && waits {
                self.ask_back(id, actions);
            }
        }
    }
}
