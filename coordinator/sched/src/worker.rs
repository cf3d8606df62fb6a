//! A worker as the scheduler sees it: what it can run, what it has, and whether it is trusted.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use widemap_common::ids::{AttemptId, WorkerId};
use widemap_common::limits::{QUEUE_MAX, SLOTS_MAX};
use widemap_common::time::Time;

use crate::chunk::Chunk;
use crate::event::{Action, WorkerTraits};
use crate::job::Job;
use crate::pool::{LEVEL_BUSY, LEVELS, Place, level};
use crate::scheduler::Scheduler;
use crate::slab::Key;

/// Whether a worker can be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Link {
    /// It takes work.
    Up,
    /// Its connection broke; what it has stays its own.
    Cut,
    /// It ends what it runs and takes nothing new.
    Draining,
    /// Both: it will not take anything new once it is back.
    CutDraining,
}

/// Whether a worker is believed to do its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trust {
    /// It is; so many of its failures in a row succeeded elsewhere.
    Given { blame: u32 },
    /// It gets nothing until then.
    Excluded { until: Time },
}

/// How a worker stands to a job that it matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// It was told of the job.
    Asked,
    /// It can run it.
    Ready,
    /// It cannot.
    Refused,
}

/// A worker that has not gone.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) traits: WorkerTraits,
    pub(crate) link: Link,
    pub(crate) trust: Trust,
    /// How often it was excluded since it last succeeded.
    pub(crate) exclusions: u32,
    /// Attempts of one slot each that may run there, and wait beyond those.
    pub(crate) slots: u32,
    pub(crate) queue: u32,
    pub(crate) round_trip_us: u64,
    /// Its attempts in the order in which they were sent: the ends, and the first that waits.
    pub(crate) first: Option<AttemptId>,
    pub(crate) last: Option<AttemptId>,
    pub(crate) first_waiting: Option<AttemptId>,
    pub(crate) attempts: u32,
    pub(crate) running: u32,
    /// The slots that all its attempts take together, and those of them that run.
    pub(crate) taken: u32,
    pub(crate) occupied: u32,
    /// How many of its attempts are of which job.
    pub(crate) of_jobs: Vec<(Key<Job>, u32)>,
    /// The jobs that it was told of.
    pub(crate) jobs: Vec<(Key<Job>, Standing)>,
    /// The suspect that it runs; never two at a time.
    pub(crate) suspect: Option<Key<Chunk>>,
    /// The suspect on its last try that it runs, or is emptied for: nothing else is sent.
    pub(crate) quiet: Option<Key<Chunk>>,
    /// Cancelled attempts that may still run there: no suspect is sent beside them.
    pub(crate) ghosts: BTreeMap<AttemptId, Time>,
}

impl Worker {
    pub(crate) fn new(id: WorkerId, traits: WorkerTraits) -> Self {
        Self {
            id,
            link: Link::Up,
            trust: Trust::Given { blame: 0 },
            exclusions: 0,
            slots: traits.slots.min(SLOTS_MAX),
            queue: traits.queue.min(QUEUE_MAX),
            round_trip_us: traits.round_trip_us,
            first: None,
            last: None,
            first_waiting: None,
            attempts: 0,
            running: 0,
            taken: 0,
            occupied: 0,
            of_jobs: Vec::new(),
            jobs: Vec::new(),
            suspect: None,
            quiet: None,
            ghosts: BTreeMap::new(),
            traits,
        }
    }

    pub(crate) fn matches(&self, job: &Job) -> bool {
        let has = |(key, value)| self.traits.labels.get(key) == Some(value);
        job.policy.slots_per_item.get() <= self.traits.slots.max(1)
            && self.traits.runtimes.contains(&job.policy.runtime)
            && job.policy.require.iter().all(has)
    }

    /// Attempts that it takes beyond those that it has.
    fn credit_left(&self) -> u32 {
        self.slots.saturating_add(self.queue).saturating_sub(self.attempts)
    }

    pub(crate) fn is_cut(&self) -> bool {
        matches!(self.link, Link::Cut | Link::CutDraining)
    }

    /// Whether it may be given work at all.
    pub(crate) fn is_usable(&self) -> bool {
        self.link == Link::Up && matches!(self.trust, Trust::Given { .. })
    }

    pub(crate) fn standing(&self, job: Key<Job>) -> Option<Standing> {
        self.jobs.iter().find(|(key, _)| *key == job).map(|(_, standing)| *standing)
    }

    pub(crate) fn remove_job(&mut self, job: Key<Job>) -> Option<Standing> {
        let index = self.jobs.iter().position(|(key, _)| *key == job)?;
        Some(self.jobs.swap_remove(index).1)
    }

    pub(crate) fn add_of_job(&mut self, job: Key<Job>) {
        match self.of_jobs.iter_mut().find(|(key, _)| *key == job) {
            Some((_, attempts)) => *attempts += 1,
            None => self.of_jobs.push((job, 1)),
        }
    }

    pub(crate) fn remove_of_job(&mut self, job: Key<Job>) {
        let found = self.of_jobs.iter().position(|(key, _)| *key == job);
        let index = found.expect("an attempt is counted for its job");
        self.of_jobs[index].1 -= 1;
        if self.of_jobs[index].1 == 0 {
            self.of_jobs.swap_remove(index);
        }
    }

    /// Whether one more attempt of so many slots runs beside those that take `taken`. One that needs
    /// more than the worker lends runs there alone.
    pub(crate) fn fits(&self, taken: u32, slots: u32) -> bool {
        self.slots > 0 && (taken == 0 || taken.saturating_add(slots) <= self.slots)
    }

    /// How many more attempts of so many slots would run at once.
    fn idle(&self, slots: NonZeroU32) -> u32 {
        let idle = self.slots.saturating_sub(self.taken) / slots;
        idle.max(u32::from(self.fits(self.taken, slots.get())))
    }

    /// Attempts that wait for a slot.
    pub(crate) fn waiting(&self) -> u32 {
        self.attempts - self.running
    }
}

impl Scheduler {
    /// Tells the worker of the job, if they match.
    pub(crate) fn offer_job(
        &mut self,
        worker: Key<Worker>,
        job: Key<Job>,
        actions: &mut Vec<Action>,
    ) {
        let there = &mut self.workers[worker];
        if !there.matches(&self.jobs[job]) || there.standing(job).is_some() {
            return;
        }
        there.jobs.push((job, Standing::Asked));
        let state = &mut self.jobs[job];
        state.asked += 1;
        state.told_unusable = false;
        if !there.is_cut() {
            actions.push(Action::OpenJob { worker: there.id, job: state.id });
        }
    }

    /// Notes the worker's answer to a job, or its change of mind.
    pub(crate) fn answered(&mut self, worker: Key<Worker>, job: Key<Job>, standing: Standing) {
        let jobs = &mut self.workers[worker].jobs;
        let Some((_, old)) = jobs.iter_mut().find(|(key, _)| *key == job) else { return };
        let before = std::mem::replace(old, standing);
        let state = &mut self.jobs[job];
        *state.standing_mut(before) -= 1;
        *state.standing_mut(standing) += 1;
        if standing != Standing::Ready {
            state.pool.set(worker, None);
            state.hoards.set(worker, None);
        }
        self.update_places(worker);
    }

    /// Says so, once, when nobody is left who could run the job.
    pub(crate) fn tell_if_unusable(&mut self, job: Key<Job>, actions: &mut Vec<Action>) {
        let state = &mut self.jobs[job];
        let nobody = state.asked == 0 && state.ready == 0 && state.refused > 0;
        if nobody && state.in_flight == 0 && !state.told_unusable {
            state.told_unusable = true;
            actions.push(Action::Unusable { job: state.id });
        }
    }

    /// Says anew what the worker can do for each job, after anything of it has changed.
    pub(crate) fn update_places(&mut self, worker: Key<Worker>) {
        let there = &self.workers[worker];
        // A worker that lends no slot now is nobody to wait for.
        let usable = there.is_usable() && there.slots > 0;
        let load = level(there.taken, there.slots);
        for &(job, standing) in &there.jobs {
            if standing != Standing::Ready {
                continue;
            }
            let slots = self.jobs[job].policy.slots_per_item;
            let place = usable.then(|| {
                let idle = there.idle(slots);
                let level = if idle > 0 { load } else { load.max(LEVEL_BUSY) };
                let (idle, room) = match there.quiet {
                    Some(_) => (0, 0),
                    None => {
                        (idle, (idle + self.prefetch_room(there, job)).min(there.credit_left()))
                    }
                };
                Place { level, slots: (there.slots / slots).max(1), idle, room }
            });
            self.jobs[job].pool.set(worker, place);
            let waiting = there.waiting();
            let hoard = (waiting > 0 && there.link == Link::Up).then(|| Place {
                level: LEVELS - 1 - waiting.ilog2(),
                slots: 0,
                idle: 0,
                room: waiting,
            });
            let hoards = &mut self.jobs[job].hoards;
            hoards.set(worker, hoard);
            let hoards_any = !hoards.is_empty();
            if hoards_any {
                self.hoarding.insert(job);
            }
        }
    }

    /// How many attempts of the job may still wait on the worker.
    fn prefetch_room(&self, there: &Worker, job: Key<Job>) -> u32 {
        let state = &self.jobs[job];
        if there.suspect.is_some() {
            return 0;
        }
        let takes_turn = u32::from(self.takes_turn(there, job));
        let others_short =
            |&(other, _): &(Key<Job>, u32)| other == job || self.jobs[other].sizing.is_short();
        if !there.of_jobs.iter().all(others_short) {
            return takes_turn;
        }
        let depth = state.sizing.depth(there.round_trip_us);
        let waiting = there.taken.saturating_sub(there.slots);
        let ahead = depth.saturating_mul(there.slots).saturating_sub(waiting);
        (ahead / state.policy.slots_per_item).max(takes_turn)
    }

    /// Whether an attempt that takes several slots may wait for them on a worker that is busy with
    /// other jobs: those would take one slot after the other for ever.
    pub(crate) fn takes_turn(&self, there: &Worker, job: Key<Job>) -> bool {
        let slots = self.jobs[job].policy.slots_per_item;
        slots.get() > 1
            && there.idle(slots) == 0
            && there.suspect.is_none()
            && !there.of_jobs.iter().any(|&(other, _)| other == job)
    }
}

impl Job {
    pub(crate) fn standing_mut(&mut self, standing: Standing) -> &mut u32 {
        match standing {
            Standing::Asked => &mut self.asked,
            Standing::Ready => &mut self.ready,
            Standing::Refused => &mut self.refused,
        }
    }
}
