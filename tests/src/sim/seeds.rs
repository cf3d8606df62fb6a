//! Runs from seeds: a time of trouble, then everything is well and the jobs have to end.

use std::time::Duration;

use fastrand::Rng;
use widemap_common::spec::Runtime;
use widemap_common::time::Time;

use super::agenda::Due;
use super::faults::Fault;
use super::options::{JobOptions, Options};
use super::oracle::{Item, Nature};
use super::story::Sim;
use super::world::World;

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ran {
    /// Events that the scheduler has handled.
    pub events: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Processes that died.
    pub deaths: u32,
    /// How often something ran in two places at once by accident.
    pub overlaps: u64,
}

/// Runs a seed and checks everything that can be checked of it.
///
/// # Panics
/// If anything is wrong. What the seed expands into and the command that runs it again are printed.
pub fn run_seed(seed: u64, tell: bool) -> Ran {
    run_options(Options::from_seed(seed), tell)
}

fn run_options(options: Options, tell: bool) -> Ran {
    let _replay = Replay(&options);
    let mut sim = Sim::with(options.clone());
    match tell {
        true => sim.lines_shown = usize::MAX,
        false => sim.world().coordinator.trace = None,
    }
    populate(sim.world());
    for job in &options.jobs {
        add_job(&mut sim, job);
    }
    plan_troubles(sim.world());
    sim.end_within(bound(&options));
    let world = sim.world();
    Ran {
        events: world.coordinator.events_handled,
        simulated: world.now - Time::ZERO,
        deaths: world.crashes + world.poison_deaths,
        overlaps: world.overlaps,
    }
}

/// Says how to run a seed again, if it panics.
struct Replay<'a>(&'a Options);

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0.seed;
            eprintln!("seed {seed} expands into {}", self.0);
            eprintln!(
                "run it again: WIDEMAP_SIM_SEED={seed} cargo test -p widemap-tests --test it \
                 trouble_from_a_seed"
            );
        }
    }
}

fn populate(world: &mut World) {
    let options = world.options.clone();
    for number in 0..options.workers {
        let slots = world.rng.u32(1..=options.slots_max);
        // One at least is large enough for every job.
        let slots = if number == 0 { options.slots_max } else { slots };
        let host = world.add_host(format!("w{number}"), slots);
        let mut percent = |chance: u32| world.rng.u32(0..100) < chance;
        let (slow, lies) = (percent(options.slow_percent), percent(options.liars_percent));
        // A job that every worker refuses ends at once, with an error.
        let refuses = percent(options.refusers_percent) && number > 0;
        let there = &mut world.hosts[host];
        there.pace_percent = if slow { options.slow_pace_percent } else { 100 };
        if lies {
            there.lies_per_10k = options.lies_per_10k;
            there.corrupts_per_10k = options.corrupts_per_10k;
        }
        there.refuses = refuses;
        there.restart_after = Some(options.restart());
    }
    if options.two_addresses {
        let link = world.coordinator.fleet.add_link(0);
        let at = world.now + Duration::from_micros(options.delay_us);
        world.agenda.put(at, Due::Dial(link));
    }
}

fn add_job(sim: &mut Sim, options: &JobOptions) {
    let rng = &mut sim.world().rng;
    let mut items: Vec<_> =
        (1..=options.items as u64).map(|value| item(rng, options, value)).collect();
    if !items.is_empty() {
        for _ in 0..options.poison_items {
            let at = rng.usize(0..items.len());
            items[at].nature = Nature::Poison;
        }
    }
    let runtime = if rng.bool() { Runtime::Builtin } else { Runtime::Exec };
    sim.draft(options.clone(), items).runtime(runtime).add();
}

fn item(rng: &mut Rng, options: &JobOptions, value: u64) -> Item {
    let spread_us = options.item_us * options.item_spread_percent / 100;
    let cost_us = (options.item_us + rng.u64(0..=spread_us)).max(1);
    let fails = rng.u32(0..100) < options.fails_percent;
    let nature = match rng.u32(0..4) {
        _ if !fails => Nature::Good,
        0 => Nature::Fails,
        1 => Nature::Permanent,
        _ => Nature::Flaky(rng.u32(1..=3)),
    };
    Item { value, nature, cost_us }
}

/// Puts everything that goes wrong on the agenda, and its end.
fn plan_troubles(world: &mut World) {
    let options = world.options.clone();
    let most_us = options.trouble_ms * 1_000;
    let hosts = world.hosts.len();
    let mut rng = world.rng.fork();
    let mut plan = vec![(Time(most_us), Fault::Calm)];
    let mut at = |rng: &mut Rng, fault| plan.push((Time(rng.u64(0..most_us)), fault));
    for _ in 0..options.resets {
        let host = rng.usize(0..hosts);
        at(&mut rng, Fault::Reset(host));
    }
    for _ in 0..options.partitions {
        let (host, way) = (rng.usize(0..hosts), rng.u32(0..4));
        let for_time = Duration::from_millis(rng.u64(1..=options.partition_ms_max.max(1)));
        at(&mut rng, Fault::Partition { host, down: way != 0, up: way != 1, for_time });
    }
    for _ in 0..options.freezes {
        let host = rng.usize(0..hosts);
        let for_time = Duration::from_millis(rng.u64(1..=options.partition_ms_max.max(1)));
        at(&mut rng, Fault::Freeze { host, for_time });
    }
    for _ in 0..options.crashes {
        let host = rng.usize(0..hosts);
        let restart_after = rng.bool().then(|| options.restart());
        at(&mut rng, Fault::Crash { host, restart_after });
    }
    for _ in 0..options.drains {
        let host = rng.usize(0..hosts);
        let restart_after = rng.bool().then(|| options.restart());
        at(&mut rng, Fault::Drain { host, restart_after });
    }
    for _ in 0..options.joins {
        let slots = rng.u32(1..=options.slots_max);
        at(&mut rng, Fault::Join { slots });
    }
    for _ in 0..options.credits {
        let (host, slots) = (rng.usize(0..hosts), rng.u32(0..=options.slots_max));
        at(&mut rng, Fault::Credit { host, slots });
    }
    for _ in 0..options.stalls {
        let job = rng.usize(0..options.jobs.len());
        at(&mut rng, Fault::Stall(job));
        at(&mut rng, Fault::Flow(job));
    }
    for (index, job) in options.jobs.iter().enumerate() {
        let opens_us = most_us * job.opens_percent / 100;
        plan.push((Time(opens_us), Fault::Open(index)));
        if let Some(percent) = job.cancel_percent {
            plan.push((Time(opens_us.max(most_us * percent / 100)), Fault::Cancel(index)));
        }
    }
    for (at, fault) in plan {
        world.agenda.put(at, Due::Fault(fault));
    }
}

/// How long the jobs may take, generously: every item alone on the slowest worker, every death and
/// every exclusion one after the other.
fn bound(options: &Options) -> Duration {
    let of_job = |job: &JobOptions| {
        let spread = 100 + job.item_spread_percent;
        let item_us = job.item_us * spread / 100 * options.slow_pace_percent / 100;
        let runs = u64::from(4 * (job.retries + 2 * job.crash_limit + 2));
        let kills = u64::from(job.poison_items * 2 * (job.crash_limit + 1));
        let deaths_us = kills * (options.restart_ms + 30_000) * 1_000;
        let input_us = job.items as u64 * job.input_us;
        let messages = job.items as u64 * (40 + 8 * job.digits as u64);
        let late_us = options.delay_us + options.jitter_us + options.news_us + options.sink_us;
        job.items as u64 * item_us * runs + deaths_us + input_us + messages * late_us
    };
    let all_us: u64 = options.jobs.iter().map(of_job).sum();
    Duration::from_micros(all_us + options.trouble_ms * 1_000) + Duration::from_secs(600)
}
