//! What a seed expands into: every choice of a run by name, printed when it fails.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use fastrand::Rng;
use widemap::data::MergeBounds;

use super::input::InputBounds;
use super::outgoing::OutputBounds;

/// The choices of one run.
#[derive(Clone, Debug)]
pub struct Options {
    pub(super) seed: u64,
    // The network.
    pub(super) delay_us: u64,
    pub(super) jitter_us: u64,
    /// The chance that a message breaks its stream, and that a result is sent twice.
    pub(super) loss_per_10k: u32,
    pub(super) twice_per_10k: u32,
    // How both sides send.
    pub(super) send_us: u64,
    pub(super) batch_bytes: usize,
    pub(super) batch_entries: usize,
    pub(super) part_bytes: usize,
    pub(super) input_bounds: InputBounds,
    pub(super) output_bounds: OutputBounds,
    pub(super) output_window: u64,
    /// What may be on the way in any case, and how long a round trip may become before it is no more.
    pub(super) pace_window: u64,
    pub(super) patience_ms: u64,
    /// How late the driver may hear of what a link says, and how often a link measures.
    pub(super) news_us: u64,
    pub(super) ping_ms: u64,
    // The workers.
    pub(super) workers: u32,
    pub(super) slots_max: u32,
    /// Of a hundred workers so many are slow, lie, or refuse jobs.
    pub(super) slow_percent: u32,
    pub(super) slow_pace_percent: u64,
    pub(super) liars_percent: u32,
    pub(super) lies_per_10k: u32,
    pub(super) corrupts_per_10k: u32,
    pub(super) refusers_percent: u32,
    /// The first worker is found under two addresses.
    pub(super) two_addresses: bool,
    pub(super) restart_ms: u64,
    pub(super) drain_ms: u64,
    /// How long a process takes to end when it is told to.
    pub(super) kill_us: u64,
    /// In how many pieces the output of an attempt comes at the most.
    pub(super) pieces_max: u64,
    // The coordinator.
    pub(super) jobs: Vec<JobOptions>,
    pub(super) merge: MergeBounds,
    /// How long the sink and the spill take for what they have; and how much the sink still writes
    /// for a reader that does not read.
    pub(super) sink_us: u64,
    pub(super) sink_steps: u32,
    // What goes wrong before everything is well again, and how often.
    pub(super) trouble_ms: u64,
    pub(super) resets: u32,
    pub(super) partitions: u32,
    pub(super) partition_ms_max: u64,
    pub(super) freezes: u32,
    pub(super) crashes: u32,
    pub(super) drains: u32,
    pub(super) joins: u32,
    pub(super) credits: u32,
    pub(super) stalls: u32,
    pub(super) check_every: u64,
}

/// The choices of one job.
#[derive(Clone, Debug)]
pub(super) struct JobOptions {
    pub(super) items: usize,
    pub(super) item_us: u64,
    pub(super) item_spread_percent: u64,
    /// A result has so many digits at the least.
    pub(super) digits: usize,
    pub(super) fails_percent: u32,
    pub(super) poison_items: u32,
    /// A fixed size; adaptive without one.
    pub(super) chunk_items: Option<u32>,
    /// Block-wise, with so many items a block.
    pub(super) block_items: Option<u32>,
    pub(super) retries: u32,
    pub(super) crash_limit: u32,
    pub(super) speculate: bool,
    pub(super) slots_per_item: NonZeroU32,
    pub(super) weight: u32,
    pub(super) priority: i32,
    pub(super) reorder_bytes: u64,
    pub(super) spill_bytes: u64,
    pub(super) is_disk_full: bool,
    pub(super) inflight_bytes: u64,
    pub(super) input_items: usize,
    pub(super) input_us: u64,
    pub(super) length_known: bool,
    /// When it is opened, and when the user gives it up, in percent of the time of trouble.
    pub(super) opens_percent: u64,
    pub(super) cancel_percent: Option<u64>,
}

impl Options {
    /// A good network: where stories begin.
    #[must_use]
    pub fn calm(seed: u64) -> Self {
        Self {
            seed,
            delay_us: 200,
            jitter_us: 0,
            loss_per_10k: 0,
            twice_per_10k: 0,
            send_us: 20,
            batch_bytes: 4_096,
            batch_entries: 64,
            part_bytes: 1_024,
            input_bounds: InputBounds { window_bytes: 1 << 20, step_bytes: 1_024 },
            output_bounds: OutputBounds {
                attempt_bytes: 1 << 20,
                session_bytes: 1 << 20,
                part_bytes_min: 16,
            },
            output_window: 4_096,
            pace_window: 1 << 20,
            patience_ms: 1_000,
            news_us: 0,
            ping_ms: 0,
            workers: 0,
            slots_max: 1,
            slow_percent: 0,
            slow_pace_percent: 100,
            liars_percent: 0,
            lies_per_10k: 0,
            corrupts_per_10k: 0,
            refusers_percent: 0,
            two_addresses: false,
            restart_ms: 500,
            drain_ms: 30_000,
            kill_us: 1_000,
            pieces_max: 1,
            jobs: Vec::new(),
            merge: MergeBounds::default(),
            sink_us: 0,
            sink_steps: 0,
            trouble_ms: 0,
            resets: 0,
            partitions: 0,
            partition_ms_max: 0,
            freezes: 0,
            crashes: 0,
            drains: 0,
            joins: 0,
            credits: 0,
            stalls: 0,
            check_every: 1,
        }
    }

    /// What the seed expands into: some of all that can go wrong.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x5eed);
        let mut options = Self::calm(seed);
        options.choose_network(&mut rng);
        options.choose_workers(&mut rng);
        options.choose_coordinator(&mut rng);
        options.choose_troubles(&mut rng);
        options.check_every = 32;
        options
    }

    fn choose_network(&mut self, rng: &mut Rng) {
        self.delay_us = log_uniform(rng, 20, 100_000);
        self.jitter_us = self.delay_us * rng.u64(0..=2);
        self.loss_per_10k = sometimes(rng, 30, 0, |rng| rng.u32(1..300));
        self.twice_per_10k = sometimes(rng, 30, 0, |rng| rng.u32(1..2_000));
        self.send_us = log_uniform(rng, 1, 2_000);
        self.batch_bytes = rng.usize(16..512);
        self.batch_entries = rng.usize(2..64);
        self.part_bytes = rng.usize(8..128);
        let step_bytes = rng.u64(4..64);
        let window_bytes = step_bytes * sometimes(rng, 60, 1_000, |rng| rng.u64(1..8));
        self.input_bounds = InputBounds { window_bytes, step_bytes };
        let part_bytes_min = rng.u64(1..64);
        self.output_bounds = OutputBounds {
            attempt_bytes: sometimes(rng, 40, 1 << 20, |rng| rng.u64(8..400)),
            session_bytes: sometimes(rng, 30, 1 << 20, |rng| rng.u64(8..1_000)),
            part_bytes_min,
        };
        self.output_window = 2 * part_bytes_min + rng.u64(16..512);
        self.pace_window = 2 * part_bytes_min + sometimes(rng, 60, 1 << 20, |rng| rng.u64(0..512));
        self.patience_ms = log_uniform(rng, 1, 2_000);
        self.news_us = sometimes(rng, 30, 0, |rng| log_uniform(rng, 10, 200_000));
        self.ping_ms = sometimes(rng, 60, 0, |rng| log_uniform(rng, 50, 2_000));
    }

    fn choose_workers(&mut self, rng: &mut Rng) {
        self.workers = rng.u32(1..=5);
        self.slots_max = rng.u32(1..=4);
        self.slow_percent = sometimes(rng, 40, 0, |rng| rng.u32(20..60));
        self.slow_pace_percent = rng.u64(150..1_500);
        self.liars_percent = sometimes(rng, 15, 0, |_| 40);
        self.lies_per_10k = rng.u32(0..5_000);
        self.corrupts_per_10k = sometimes(rng, 50, 0, |rng| rng.u32(1..2_000));
        self.refusers_percent = sometimes(rng, 15, 0, |_| 30);
        self.two_addresses = rng.u32(0..100) < 20;
        self.restart_ms = log_uniform(rng, 1, 5_000);
        self.drain_ms = log_uniform(rng, 1, 30_000);
        self.kill_us = log_uniform(rng, 10, 3_000_000);
        self.pieces_max = sometimes(rng, 40, 1, |rng| rng.u64(2..6));
    }

    fn choose_coordinator(&mut self, rng: &mut Rng) {
        let jobs = sometimes(rng, 25, 1, |rng| rng.usize(2..=3));
        for number in 0..jobs {
            let mut job = JobOptions::from_rng(rng);
            job.items = job.items.div_ceil(jobs);
            if number > 0 {
                job.opens_percent = rng.u64(0..100);
            }
            // No more than the largest worker has.
            let wide = |rng: &mut Rng| rng.u32(1..=self.slots_max);
            job.slots_per_item = NonZeroU32::new(sometimes(rng, 25, 1, wide)).expect("from 1 on");
            self.jobs.push(job);
        }
        self.merge = MergeBounds {
            sink_buffer_bytes: rng.u64(1..1_000),
            sink_queue_bytes: sometimes(rng, 40, 1 << 20, |rng| rng.u64(100..2_000)),
            spill_batch_bytes: rng.u64(1..200),
            spill_queue_bytes: rng.u64(1..400),
        };
        self.sink_us = sometimes(rng, 40, 0, |rng| log_uniform(rng, 1, 500_000));
        self.sink_steps = rng.u32(0..20);
    }

    fn choose_troubles(&mut self, rng: &mut Rng) {
        let work_us: u64 = self.jobs.iter().map(|job| job.items as u64 * job.item_us).sum();
        self.trouble_ms = (3 * work_us / 1_000 / u64::from(self.workers)).clamp(20, 90_000);
        self.resets = sometimes(rng, 30, 0, |rng| rng.u32(1..10));
        self.partitions = sometimes(rng, 30, 0, |rng| rng.u32(1..5));
        self.partition_ms_max = log_uniform(rng, 100, 60_000);
        self.freezes = sometimes(rng, 20, 0, |rng| rng.u32(1..4));
        self.crashes = sometimes(rng, 30, 0, |rng| rng.u32(1..6));
        self.drains = sometimes(rng, 20, 0, |rng| rng.u32(1..4));
        self.joins = sometimes(rng, 20, 0, |rng| rng.u32(1..3));
        self.credits = sometimes(rng, 25, 0, |rng| rng.u32(1..8));
        self.stalls = sometimes(rng, 25, 0, |rng| rng.u32(1..3));
    }

    /// Whether streams only break where a process dies.
    pub(super) fn is_network_calm(&self) -> bool {
        let whole = self.loss_per_10k == 0 && self.resets == 0 && self.partitions == 0;
        let liars = self.liars_percent > 0 && self.corrupts_per_10k > 0;
        whole && self.freezes == 0 && !self.two_addresses && !liars
    }

    pub(super) fn restart(&self) -> Duration {
        Duration::from_millis(self.restart_ms)
    }
}

impl JobOptions {
    /// A good job.
    pub(super) fn calm() -> Self {
        Self {
            items: 0,
            item_us: 1_000_000,
            item_spread_percent: 0,
            digits: 1,
            fails_percent: 0,
            poison_items: 0,
            chunk_items: None,
            block_items: None,
            retries: 1,
            crash_limit: 3,
            speculate: false,
            slots_per_item: NonZeroU32::MIN,
            weight: 1,
            priority: 0,
            reorder_bytes: 1 << 20,
            spill_bytes: 0,
            is_disk_full: false,
            inflight_bytes: 1 << 20,
            input_items: usize::MAX,
            input_us: 1_000,
            length_known: true,
            opens_percent: 0,
            cancel_percent: None,
        }
    }

    fn from_rng(rng: &mut Rng) -> Self {
        Self {
            items: rng.usize(0..150),
            item_us: log_uniform(rng, 5, 500_000),
            item_spread_percent: sometimes(rng, 50, 0, |rng| rng.u64(1..1_000)),
            digits: sometimes(rng, 30, 1, |rng| rng.usize(1..60)),
            fails_percent: sometimes(rng, 40, 0, |rng| rng.u32(1..40)),
            poison_items: sometimes(rng, 25, 0, |rng| rng.u32(1..=2)),
            chunk_items: sometimes(rng, 50, None, |rng| Some(rng.u32(1..12))),
            block_items: sometimes(rng, 20, None, |rng| Some(rng.u32(1..20))),
            retries: rng.u32(0..4),
            crash_limit: rng.u32(0..4),
            speculate: rng.u32(0..100) < 30,
            slots_per_item: NonZeroU32::MIN,
            weight: rng.u32(1..5),
            priority: rng.i32(0..3),
            reorder_bytes: sometimes(rng, 40, 1 << 20, |rng| rng.u64(1..3_000)),
            spill_bytes: sometimes(rng, 50, 0, |rng| log_uniform(rng, 10, 100_000)),
            is_disk_full: rng.u32(0..100) < 10,
            inflight_bytes: sometimes(rng, 30, 1 << 20, |rng| rng.u64(1..300)),
            input_items: sometimes(rng, 30, usize::MAX, |rng| rng.usize(1..40)),
            input_us: log_uniform(rng, 10, 1_000_000),
            length_known: rng.bool(),
            opens_percent: 0,
            cancel_percent: sometimes(rng, 8, None, |rng| Some(rng.u64(0..100))),
        }
    }
}

impl fmt::Display for Options {
    /// One choice a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:#?}")
    }
}

/// With this chance in a hundred something else than usual.
fn sometimes<T>(rng: &mut Rng, percent: u32, usual: T, other: impl FnOnce(&mut Rng) -> T) -> T {
    if rng.u32(0..100) < percent { other(rng) } else { usual }
}

/// As likely between 1 and 10 as between 10 and 100.
fn log_uniform(rng: &mut Rng, low: u64, high: u64) -> u64 {
    let exponent = rng.f64() * (high as f64 / low as f64).ln();
    (low as f64 * exponent.exp()) as u64
}
