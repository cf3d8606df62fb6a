//! What the scheduler costs for each event, at 10, 100 and 1,000 workers and up to a million chunks
//! of one item each: the worst case of events for work done.
//!
//! A chunk's life is three events (cut, done, and its share of the level's): the figures are for
//! one event.

use std::collections::{BTreeMap, VecDeque};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_common::spec::Runtime;
use widemap_common::time::{Time, Timers};
use widemap_sched::event::{Action, Event, InputLevel, JobPolicy, WorkerTraits};
use widemap_sched::{Scheduler, SchedulerConfig};

const JOB: JobId = JobId(1);
const SLOTS: u32 = 8;

/// A scheduler with workers that do whatever they are given.
struct Bench {
    scheduler: Scheduler,
    now: Time,
    events: VecDeque<Event>,
    running: VecDeque<AttemptId>,
    actions: Vec<Action>,
    chunks_left: u64,
    next_item: u64,
    handled: u64,
}

impl Bench {
    fn new(workers: u32, chunks: u64) -> Self {
        let config = SchedulerConfig { seed: 1, timers: Timers::default() };
        let mut bench = Self {
            scheduler: Scheduler::new(config),
            now: Time::ZERO,
            events: VecDeque::new(),
            running: VecDeque::new(),
            actions: Vec::new(),
            chunks_left: chunks,
            next_item: 0,
            handled: 0,
        };
        bench.events.push_back(Event::JobOpened { job: JOB, policy: policy() });
        for worker in (1..=workers).map(WorkerId) {
            bench.events.push_back(Event::WorkerUp { worker, traits: traits() });
            bench.events.push_back(Event::JobReady { worker, job: JOB });
        }
        let level =
            InputLevel { ready_items: chunks, ready_bytes: chunks * 8, rest_bytes: Some(0) };
        bench.settle();
        bench.events.push_back(Event::InputLevel { job: JOB, level });
        bench.settle();
        bench
    }

    fn settle(&mut self) {
        while let Some(event) = self.events.pop_front() {
            self.handled += 1;
            self.now.0 += 1;
            self.scheduler.handle(self.now, event, &mut self.actions);
            for action in std::mem::take(&mut self.actions) {
                self.act(&action);
            }
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Cut { chunks, .. } => {
                for _ in 0..chunks {
                    if self.chunks_left == 0 {
                        self.events.push_back(Event::CutEnded { job: JOB });
                        break;
                    }
                    self.chunks_left -= 1;
                    let range = ItemRange::new(self.next_item, 1);
                    self.next_item += 1;
                    self.events.push_back(Event::ChunkCut { job: JOB, range, bytes: 8 });
                }
            }
            Action::Assign { attempt, .. } => self.running.push_back(attempt),
            _ => {
                black_box(action);
            }
        }
    }

    /// Ends attempts until the job is over.
    fn run(&mut self) -> u64 {
        while let Some(attempt) = self.running.pop_front() {
            let done = Event::AttemptDone { attempt, busy_us: 50, faults: Vec::new() };
            self.events.push_back(done);
            self.settle();
        }
        assert_eq!(self.chunks_left, 0, "the scheduler stopped asking");
        self.handled
    }
}

fn policy() -> JobPolicy {
    JobPolicy {
        runtime: Runtime::Builtin,
        require: BTreeMap::new(),
        retries: 1,
        crash_limit: 3,
        chunk_items: Some(1),
        chunk_target: Duration::from_millis(20),
        weight: 1,
        priority: 0,
        slots_per_item: NonZeroU32::MIN,
        speculate: false,
    }
}

fn traits() -> WorkerTraits {
    WorkerTraits {
        name: "any".to_owned(),
        slots: SLOTS,
        queue: 64,
        runtimes: vec![Runtime::Builtin],
        labels: BTreeMap::new(),
        round_trip_us: 200,
    }
}

fn main() {
    let quick = std::env::var_os("WIDEMAP_BENCH_QUICK").is_some();
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let sizes: &[(u32, u64)] = match quick {
        true => &[(10, 10_000), (1_000, 10_000)],
        false => &[(10, 100_000), (100, 100_000), (1_000, 100_000), (1_000, 1_000_000)],
    };
    let mut group = criterion.benchmark_group("scheduler, an event");
    for &(workers, chunks) in sizes {
        group.throughput(Throughput::Elements(1));
        let id = BenchmarkId::new(format!("{workers} workers"), format!("{chunks} chunks"));
        group.bench_function(id, |bencher| {
            bencher.iter_custom(|iterations| {
                let (mut spent, mut handled) = (Duration::ZERO, 0);
                while handled < iterations {
                    let mut bench = Bench::new(workers, chunks);
                    let before = bench.handled;
                    let begun = Instant::now();
                    handled += bench.run() - before;
                    spent += begun.elapsed();
                }
                spent.mul_f64(iterations as f64 / handled as f64)
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
