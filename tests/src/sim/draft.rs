//! How a story describes a map before it begins.

use std::time::Duration;

use widemap_common::ids::JobId;
use widemap_common::limits::CHUNK_TARGET_MS;
use widemap_common::spec::Runtime;
use widemap_sched::event::JobPolicy;

use super::job::{Bounds, Job};
use super::options::JobOptions;
use super::oracle::{Item, Nature, Oracle};
use super::story::Sim;

/// A job, to be asked about later.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    pub(super) id: JobId,
    pub(super) chunk_items: u32,
}

/// A job that is being described.
#[must_use = "a map begins with its chunk_size, blocks_of or adaptive"]
pub struct Draft<'a> {
    pub(super) sim: &'a mut Sim,
    pub(super) function: fn(u64) -> u64,
    pub(super) items: Vec<Item>,
    pub(super) options: JobOptions,
    pub(super) runtime: Runtime,
}

impl<'a> Draft<'a> {
    /// The item (its number from 1) is of this nature.
    pub fn item(mut self, number: usize, nature: Nature) -> Self {
        self.items[number - 1].nature = nature;
        self
    }

    /// How long each item takes.
    pub fn taking(mut self, time: Duration) -> Self {
        let cost_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.items.iter_mut().for_each(|item| item.cost_us = cost_us);
        self
    }

    /// Attempts that take far longer than usual get a second one.
    pub fn speculating(mut self) -> Self {
        self.options.speculate = true;
        self
    }

    /// Worker deaths that may be charged to an item.
    pub fn crash_limit(mut self, deaths: u32) -> Self {
        self.options.crash_limit = deaths;
        self
    }

    /// More runs of a failed item.
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.retries = retries;
        self
    }

    /// Results have so many digits.
    pub fn digits(mut self, digits: usize) -> Self {
        self.options.digits = digits;
        self
    }

    /// Higher ones first.
    pub fn priority(mut self, priority: i32) -> Self {
        self.options.priority = priority;
        self
    }

    pub(super) fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Begins the map, with chunks of this size.
    pub fn chunk_size(mut self, items: u32) -> Map {
        self.options.chunk_items = Some(items);
        self.options.block_items = None;
        self.begin()
    }

    /// Begins the map, with blocks of so many items that are never split.
    pub fn blocks_of(mut self, items: u32) -> Map {
        self.options.block_items = Some(items);
        self.begin()
    }

    /// Begins the map, with chunks as the scheduler likes them.
    pub fn adaptive(mut self) -> Map {
        (self.options.chunk_items, self.options.block_items) = (None, None);
        self.begin()
    }

    fn begin(self) -> Map {
        let (sim, map) = self.add();
        sim.world().open_job(map.id.0 as usize);
        map
    }

    /// Adds the map, to be opened later.
    pub(super) fn add(self) -> (&'a mut Sim, Map) {
        let Self { sim, function, items, options, runtime } = self;
        let world = sim.world();
        let id = JobId(u32::try_from(world.coordinator.jobs.len()).expect("few jobs"));
        let policy = JobPolicy {
            runtime: if options.block_items.is_some() { Runtime::Pipe } else { runtime },
            require: std::collections::BTreeMap::new(),
            retries: options.retries,
            crash_limit: options.crash_limit,
            chunk_items: options.chunk_items.filter(|_| options.block_items.is_none()),
            chunk_target: Duration::from_millis(CHUNK_TARGET_MS),
            weight: options.weight,
            priority: options.priority,
            speculate: options.speculate,
            slots_per_item: options.slots_per_item,
        };
        let bounds = Bounds {
            reorder_bytes: options.reorder_bytes,
            spill_bytes: options.spill_bytes,
            is_disk_full: options.is_disk_full,
            merge: world.options.merge,
            inflight_bytes: options.inflight_bytes,
            arrived_items: options.input_items,
            input_us: options.input_us,
            length_known: options.length_known,
        };
        let chunk_items = policy.chunk_items.or(options.block_items).unwrap_or(1);
        let oracle = Oracle::new(function, items, options.block_items, options.digits);
        world.coordinator.jobs.push(Job::new(id, policy, oracle, bounds));
        (sim, Map { id, chunk_items })
    }
}
