//! How tests tell stories: a cluster, a list, what goes wrong, and what comes out.

use std::time::Duration;

use widemap::data::MergeBounds;
use widemap_common::failure::FailureKind;
use widemap_common::ids::{ItemRange, JobId};
use widemap_common::spec::Runtime;
use widemap_common::time::Time;
use widemap_sched::Counts;

use super::agenda::{Due, HostId};
use super::draft::{Draft, Map};
use super::faults::Fault;
use super::job::Job;
use super::options::{JobOptions, Options};
use super::oracle::{Calm, Fate, Item, Nature};
use super::world::World;

/// A simulated cluster and its jobs.
pub struct Sim {
    world: World,
    /// What a job is like, unless the story says otherwise.
    job: JobOptions,
    /// How much of what happened is shown when a test fails.
    pub(super) lines_shown: usize,
}

/// What a story shows of itself when it fails.
const STORY_LINES: usize = 60;

/// The chunk at this place, of a job whose chunks have one size.
#[derive(Clone, Copy, Debug)]
pub struct Chunk(u32);

/// The chunk at this place, counted from 0.
#[must_use]
pub fn chunk(index: u32) -> Chunk {
    Chunk(index)
}

impl Chunk {
    fn range(self, map: Map) -> ItemRange {
        ItemRange::new(u64::from(self.0 * map.chunk_items), map.chunk_items)
    }
}

/// Something to wait for.
pub trait Condition {
    /// Whether it has come to pass.
    fn holds(&self, sim: &Sim) -> bool;
}

impl<F: Fn(&Sim) -> bool> Condition for F {
    fn holds(&self, sim: &Sim) -> bool {
        self(sim)
    }
}

/// The worker holds the chunk of the first job.
pub fn holds(worker: &'static str, chunk: Chunk) -> impl Condition {
    move |sim: &Sim| {
        let Some(session) = sim.world.hosts[sim.host(worker)].session() else { return false };
        let range = chunk.range(sim.map_at(0));
        session.held().any(|(job, held)| job == JobId(0) && held.contains(range.first))
    }
}

/// So many items of the first job have come to their end.
pub fn settled(items: usize) -> impl Condition {
    move |sim: &Sim| sim.world.coordinator.jobs[0].oracle.final_items() >= items
}

/// The coordinator has given up a worker.
pub fn lost(workers: u32) -> impl Condition {
    move |sim: &Sim| sim.world.coordinator.lost_workers >= workers
}

/// The results of the first job cannot be stored.
pub fn storage_full() -> impl Condition {
    |sim: &Sim| sim.world.coordinator.jobs[0].is_full
}

/// The process of a worker has ended.
pub fn gone(worker: &'static str) -> impl Condition {
    move |sim: &Sim| sim.world.hosts[sim.host(worker)].process.is_none()
}

impl Sim {
    /// A cluster without workers, where nothing goes wrong by itself.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self::with(Options::calm(seed))
    }

    pub(super) fn with(options: Options) -> Self {
        let mut world = World::new(options);
        world.coordinator.trace = Some(std::collections::VecDeque::new());
        Self { world, job: JobOptions::calm(), lines_shown: STORY_LINES }
    }

    /// Adds workers of one slot.
    #[must_use]
    pub fn workers<const N: usize>(mut self, names: [&str; N]) -> Self {
        for name in names {
            self.world.add_host(name.to_owned(), 1);
        }
        self
    }

    /// Gives every worker so many slots.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        for host in &mut self.world.hosts {
            (host.slots, host.slots_left) = (slots, slots);
        }
        self
    }

    /// The worker is found under another address too.
    #[must_use]
    pub fn also_found_elsewhere(mut self, worker: &str) -> Self {
        let host = self.host(worker);
        let link = self.world.coordinator.fleet.add_link(host);
        self.world.agenda.put(self.world.now, Due::Dial(link));
        self
    }

    /// The driver is so busy that it hears so late of what links say.
    #[must_use]
    pub fn busy_driver(mut self, late: Duration) -> Self {
        self.world.options.news_us = u64::try_from(late.as_micros()).expect("a short time");
        self
    }

    /// Attempts hand over their output in so many pieces at the most, and workers keep so much of it.
    #[must_use]
    pub fn printing_in_pieces(mut self, pieces: u64, kept_bytes: u64) -> Self {
        self.world.options.pieces_max = pieces;
        self.world.options.output_bounds.attempt_bytes = kept_bytes;
        self
    }

    /// Workers start nothing but the head while they keep so much output.
    #[must_use]
    pub fn keeping_output(mut self, bytes: u64) -> Self {
        self.world.options.output_bounds.session_bytes = bytes;
        self
    }

    /// A part of output is not cut smaller than this to fit what is granted.
    #[must_use]
    pub fn least_part(mut self, bytes: u64) -> Self {
        self.world.options.output_bounds.part_bytes_min = bytes;
        self.world.coordinator.output_window.0 = bytes;
        self
    }

    /// Workers take so much input ahead of their slots.
    #[must_use]
    pub fn input_window(mut self, bytes: u64) -> Self {
        self.world.options.input_bounds.window_bytes = bytes;
        self.world.options.input_bounds.step_bytes = bytes;
        self
    }

    /// What does not fit the memory of the first bound goes to a disk of this size, which may take
    /// nothing.
    #[must_use]
    pub fn spill(mut self, bytes: u64, is_disk_full: bool) -> Self {
        (self.job.spill_bytes, self.job.is_disk_full) = (bytes, is_disk_full);
        self
    }

    /// The sink and the spill take so long for what they have.
    #[must_use]
    pub fn slow_sink(mut self, time: Duration) -> Self {
        self.world.options.sink_us = u64::try_from(time.as_micros()).expect("a short time");
        self
    }

    /// So much may wait for the sink.
    #[must_use]
    pub fn sink_queue(mut self, bytes: u64) -> Self {
        self.world.options.merge.sink_queue_bytes = bytes;
        self
    }

    /// Bounds what may wait for an earlier result.
    #[must_use]
    pub fn reorder_bytes(mut self, bytes: u64) -> Self {
        self.job.reorder_bytes = bytes;
        self.world.options.merge = MergeBounds { sink_buffer_bytes: 1, ..MergeBounds::default() };
        self.world.options.merge.sink_queue_bytes = 100;
        self.world.coordinator.output_window.1 = 64;
        self
    }

    /// Every process that its work kills is started again.
    #[must_use]
    pub fn restarting(mut self) -> Self {
        for host in &mut self.world.hosts {
            host.restart_after = Some(self.world.options.restart());
        }
        self
    }

    /// Every result is sent twice.
    #[must_use]
    pub fn results_twice(mut self) -> Self {
        self.world.options.twice_per_10k = 10_000;
        self
    }

    /// Maps a function over numbers; each takes a second.
    pub fn map(
        &mut self,
        function: fn(u64) -> u64,
        items: std::ops::RangeInclusive<u64>,
    ) -> Draft<'_> {
        let options = self.job.clone();
        let item = |value| Item { value, nature: Nature::Good, cost_us: options.item_us };
        let items: Vec<_> = items.map(item).collect();
        Draft { sim: self, function, items, options, runtime: Runtime::Builtin }
    }

    pub(super) fn draft(&mut self, options: JobOptions, items: Vec<Item>) -> Draft<'_> {
        let function = |value| value * value;
        Draft { sim: self, function, items, options, runtime: Runtime::Builtin }
    }

    /// Goes on until it holds.
    ///
    /// # Panics
    /// If it does not, within an hour of simulated time.
    pub fn until(&mut self, condition: impl Condition) {
        let bound = self.world.now + Duration::from_secs(3_600);
        while !condition.holds(self) {
            let in_time = self.world.agenda.next_at().is_some_and(|at| at < bound);
            assert!(in_time, "it never holds: {}", self.world.explain());
            self.world.step();
        }
    }

    /// Lets simulated time pass.
    pub fn pass(&mut self, time: Duration) {
        let until = self.world.now + time;
        while self.world.agenda.next_at().is_some_and(|at| at <= until) {
            self.world.step();
        }
        self.world.now = until;
    }

    /// The worker's process is killed; nothing listens at its address.
    pub fn crash(&mut self, worker: &str) {
        let host = self.host(worker);
        self.befall(Fault::Crash { host, restart_after: None });
    }

    /// Another process starts at the worker's address.
    pub fn start(&mut self, worker: &str) {
        let host = self.host(worker);
        self.befall(Fault::Start(host));
    }

    /// The worker's streams are reset.
    pub fn reset(&mut self, worker: &str) {
        let host = self.host(worker);
        self.befall(Fault::Reset(host));
    }

    /// Nothing passes between the worker and anybody for so long, and nobody is told.
    pub fn silence(&mut self, worker: &str, for_time: Duration) {
        let host = self.host(worker);
        self.befall(Fault::Partition { host, down: true, up: true, for_time });
    }

    /// The worker's streams are reset, and it cannot be reached for so long.
    pub fn cut(&mut self, worker: &str, for_time: Duration) {
        self.reset(worker);
        let delays =
            Duration::from_micros(2 * (self.world.options.delay_us + self.world.options.jitter_us));
        self.pass(delays);
        self.silence(worker, for_time);
    }

    /// The worker is told to end.
    pub fn drain(&mut self, worker: &str) {
        let host = self.host(worker);
        self.befall(Fault::Drain { host, restart_after: None });
    }

    /// The user gives the first job up.
    pub fn give_up(&mut self) {
        self.befall(Fault::Cancel(0));
    }

    /// The worker's process is stopped, and goes on after so long.
    pub fn freeze(&mut self, worker: &str, for_time: Duration) {
        let host = self.host(worker);
        self.befall(Fault::Freeze { host, for_time });
    }

    /// Whoever reads the output of the first job stops.
    pub fn stall(&mut self) {
        self.befall(Fault::Stall(0));
    }

    /// Whoever reads the output of the first job goes on.
    pub fn flow(&mut self) {
        self.befall(Fault::Flow(0));
    }

    /// The worker's results are not as long as they say.
    pub fn lies(&mut self, worker: &str) {
        let host = self.host(worker);
        self.world.hosts[host].lies_per_10k = 10_000;
    }

    /// What the worker sends of its results arrives changed, until told otherwise.
    pub fn corrupts(&mut self, worker: &str, corrupts: bool) {
        let host = self.host(worker);
        self.world.hosts[host].corrupts_per_10k = if corrupts { 10_000 } else { 0 };
    }

    /// The worker takes so many times as long as the others.
    pub fn slow(&mut self, worker: &str, times: u64) {
        let host = self.host(worker);
        self.world.hosts[host].pace_percent = 100 * times;
    }

    fn befall(&mut self, fault: Fault) {
        let now = self.world.now;
        self.world.agenda.put(now, Due::Fault(fault));
        self.world.step();
    }

    /// Goes on until every job has ended, and everything that it held is given back.
    ///
    /// # Panics
    /// If that takes more than an hour of simulated time, or anything is left.
    pub fn run_to_end(&mut self) {
        self.end_within(Duration::from_secs(3_600));
    }

    pub(super) fn end_within(&mut self, time: Duration) {
        let bound = self.world.now + time;
        let ended = |sim: &Sim| sim.world.coordinator.jobs.iter().all(super::job::Job::is_over);
        while !ended(self) {
            let in_time = self.world.agenda.next_at().is_some_and(|at| at < bound);
            assert!(in_time, "it does not end within {time:?}: {}", self.world.explain());
            self.world.step();
        }
        // Long enough for every lease to end and every cut to heal.
        self.pass(Duration::from_secs(120));
        self.check_end();
    }

    fn check_end(&mut self) {
        let World { coordinator, options, crashes, .. } = &mut self.world;
        coordinator.scheduler.check_invariants();
        assert!(coordinator.attempts.is_empty(), "no attempt is left: {:?}", coordinator.attempts);
        let network_calm = options.is_network_calm() && options.drains == 0;
        let poison = |item: &&Item| item.nature == Nature::Poison;
        let items = coordinator.jobs.iter().flat_map(|job| &job.oracle.items);
        let one_poison = items.filter(poison).count() <= 1;
        for job in &mut coordinator.jobs {
            job.check_empty();
            let unseen = job.oracle.has_unseen_kills();
            let single_poison = network_calm && one_poison && !unseen && *crashes == 0;
            job.oracle.check_budgets(&job.policy, single_poison);
            let calm = Calm {
                nobody_lies: job.rejected == 0,
                nobody_crashes: network_calm && *crashes == 0,
            };
            if !job.stopped {
                job.oracle.check_end(&job.policy, calm);
            }
        }
        for host in &self.world.hosts {
            if let Some(session) = host.session() {
                let left = session.has_attempts() || session.has_jobs();
                assert!(!left, "{} holds nothing any more: {session:?}", host.name);
            }
        }
    }

    fn host(&self, worker: &str) -> HostId {
        let found = self.world.hosts.iter().position(|host| host.name == worker);
        found.expect("the story names the worker first")
    }

    fn map_at(&self, index: usize) -> Map {
        let job = &self.world.coordinator.jobs[index];
        Map { id: job.id, chunk_items: job.policy.chunk_items.unwrap_or(1) }
    }

    fn job(&self, map: Map) -> &Job {
        &self.world.coordinator.jobs[map.id.0 as usize]
    }

    /// The numbers in the output so far.
    #[must_use]
    pub fn output(&self, map: Map) -> Vec<u64> {
        let text = String::from_utf8_lossy(self.job(map).results.output());
        text.lines().map(|line| line.parse().expect("results are numbers")).collect()
    }

    /// How often items of the chunk were assigned.
    #[must_use]
    pub fn attempts(&self, map: Map, chunk: Chunk) -> usize {
        let range = chunk.range(map);
        self.job(map).assigned.iter().filter(|assigned| range.covers(**assigned)).count()
    }

    /// How often a worker began to run items of the chunk.
    #[must_use]
    pub fn runs(&self, map: Map, chunk: Chunk) -> usize {
        let range = chunk.range(map);
        self.job(map).started.iter().filter(|started| range.covers(**started)).count()
    }

    /// How the item (its number from 1) failed, if it did.
    #[must_use]
    pub fn failure(&self, map: Map, number: u64) -> Option<FailureKind> {
        match self.job(map).oracle.fate(number - 1) {
            Fate::Failed(kind) => Some(kind),
            Fate::Open | Fate::Accepted => None,
        }
    }

    /// How many processes the item (its number from 1) has killed.
    #[must_use]
    pub fn kills(&self, map: Map, number: u64) -> u32 {
        self.job(map).oracle.kills(number - 1)
    }

    /// How many bytes of results wait on disk.
    #[must_use]
    pub fn spilled_bytes(&self, map: Map) -> u64 {
        self.job(map).results.level().spilled_bytes
    }

    /// How many results were refused.
    #[must_use]
    pub fn rejected(&self, map: Map) -> u32 {
        self.job(map).rejected
    }

    /// What the scheduler has counted of a job.
    ///
    /// # Panics
    /// If it ended long ago.
    #[must_use]
    pub fn counts(&self, map: Map) -> Counts {
        self.world.coordinator.scheduler.counts(map.id).expect("it was opened")
    }

    /// The simulated time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.world.now
    }

    pub(super) fn world(&mut self) -> &mut World {
        &mut self.world
    }
}

impl Drop for Sim {
    /// A test that fails shows what happened before.
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(trace) = &self.world.coordinator.trace
        {
            let last = trace.len().saturating_sub(self.lines_shown);
            let lines: Vec<_> = trace.iter().skip(last).map(String::as_str).collect();
            eprintln!("what happened last:\n{}", lines.join("\n"));
        }
    }
}
