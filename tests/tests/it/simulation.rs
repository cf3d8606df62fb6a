//! Ring 2, as stories and from seeds: the real scheduler on a simulated cluster.

use std::time::Duration;

use widemap_common::failure::FailureKind;
use widemap_tests::sim::{Nature, Sim, chunk, gone, holds, lost, run_seed, settled, storage_full};

/// Seeds of the ordinary run; `WIDEMAP_SIM_SEEDS` asks for more.
const SEEDS: u64 = 10_000;

fn square(number: u64) -> u64 {
    number * number
}

fn squares(numbers: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    numbers.map(square).collect()
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

#[test]
fn trouble_from_a_seed_ends_as_a_sequential_run_would() {
    if let Some(seed) = number("WIDEMAP_SIM_SEED") {
        println!("seed {seed}: {:?}", run_seed(seed, true));
        return;
    }
    let first = number("WIDEMAP_SIM_FIRST").unwrap_or(1);
    let seeds = number("WIDEMAP_SIM_SEEDS").unwrap_or(SEEDS);
    for seed in first..first + seeds {
        run_seed(seed, false);
    }
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in [7, 79, 181] {
        let (once, again) = (run_seed(seed, false), run_seed(seed, false));
        assert_eq!((once.events, once.simulated), (again.events, again.simulated), "seed {seed}");
    }
}

#[test]
fn a_killed_worker_costs_one_more_attempt_and_no_item() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]).slots(1);
    let job = sim.map(square, 1..=6).chunk_size(2);
    sim.until(holds("ann", chunk(0)));
    sim.crash("ann");
    sim.run_to_end();
    assert_eq!(sim.output(job), [1, 4, 9, 16, 25, 36]);
    assert_eq!(sim.attempts(job, chunk(0)), 2);
    assert_eq!(sim.counts(job).workers_lost, 1);
}

#[test]
fn a_cut_of_three_seconds_runs_nothing_again() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]).slots(2);
    let job = sim.map(square, 1..=8).taking(Duration::from_secs(10)).chunk_size(1);
    sim.until(holds("ann", chunk(0)));
    sim.cut("ann", Duration::from_secs(3));
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=8));
    assert!((0..8).all(|index| sim.runs(job, chunk(index)) == 1));
    assert_eq!(sim.counts(job).workers_lost, 0);
}

#[test]
fn what_ends_during_a_cut_is_delivered_after_it() {
    let mut sim = Sim::seeded(3).workers(["ann"]);
    let job = sim.map(square, 1..=3).chunk_size(3);
    sim.until(holds("ann", chunk(0)));
    sim.cut("ann", Duration::from_secs(8));
    sim.run_to_end();
    assert_eq!(sim.output(job), [1, 4, 9]);
    assert_eq!(sim.attempts(job, chunk(0)), 1);
}

#[test]
fn a_lease_that_ends_gives_the_chunk_to_another_and_the_late_result_is_ignored() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]);
    let job = sim.map(square, 1..=4).taking(Duration::from_secs(25)).chunk_size(1);
    sim.until(holds("ann", chunk(0)));
    sim.silence("ann", Duration::from_secs(90));
    sim.until(lost(1));
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=4));
    assert_eq!(sim.attempts(job, chunk(0)), 2);
    assert!((0..4).all(|index| sim.failure(job, index + 1).is_none()));
}

#[test]
fn a_worker_that_forgot_the_job_in_a_long_cut_is_told_of_it_again() {
    // In some of these the worker notices the cut well before the coordinator does, so that its
    // lease is over when it can be reached again, and the coordinator's is not.
    for seed in 0..40 {
        let mut sim = Sim::seeded(seed).workers(["ann"]);
        let job = sim.map(square, 1..=40).chunk_size(1);
        sim.until(settled(5));
        sim.silence("ann", Duration::from_secs(26));
        sim.run_to_end();
        assert_eq!(sim.output(job), squares(1..=40), "seed {seed}");
    }
}

#[test]
fn another_worker_at_the_same_address_proves_the_first_one_dead() {
    let mut sim = Sim::seeded(7).workers(["ann"]);
    let job = sim.map(square, 1..=4).chunk_size(1);
    sim.until(holds("ann", chunk(1)));
    sim.crash("ann");
    sim.start("ann");
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=4));
    assert_eq!(sim.counts(job).workers_lost, 1);
    assert_eq!(sim.attempts(job, chunk(1)), 2);
}

#[test]
fn a_result_delivered_twice_counts_once() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]).results_twice();
    let job = sim.map(square, 1..=20).adaptive();
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=20));
    assert_eq!(sim.counts(job).accepted_items, 20);
}

#[test]
fn a_worker_that_lies_about_lengths_is_refused_and_others_do_its_work() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]);
    sim.lies("ann");
    let job = sim.map(square, 1..=12).retries(2).chunk_size(1);
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=12));
    assert!(sim.rejected(job) >= 1);
}

#[test]
fn a_poison_item_is_convicted_within_its_deaths_and_all_others_succeed() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob", "cid"]).slots(2).restarting();
    let job = sim.map(square, 1..=60).item(17, Nature::Poison).chunk_size(20);
    sim.run_to_end();
    assert_eq!(sim.failure(job, 17), Some(FailureKind::Crash));
    assert_eq!(sim.kills(job, 17), 4);
    let others: Vec<_> = (1..=60).filter(|&number| number != 17).map(square).collect();
    assert_eq!(sim.output(job), others);
}

#[test]
fn a_poison_item_at_the_head_of_a_full_store_is_convicted_too() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]).slots(2).restarting().reorder_bytes(16);
    let job = sim.map(square, 1..=40).item(1, Nature::Poison).chunk_size(1);
    sim.run_to_end();
    assert_eq!(sim.failure(job, 1), Some(FailureKind::Crash));
    assert_eq!(sim.output(job), squares(2..=40));
}

#[test]
fn failing_items_fail_alone_and_flaky_ones_succeed() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]).slots(2);
    let draft = sim.map(square, 1..=20).item(3, Nature::Fails).item(4, Nature::Flaky(1));
    let job = draft.item(11, Nature::Permanent).chunk_size(5);
    sim.run_to_end();
    let failed: Vec<_> = (1..=20).filter(|&item| sim.failure(job, item).is_some()).collect();
    assert_eq!(failed, [3, 11]);
    assert_eq!(
        sim.output(job),
        (1..=20).filter(|n| !failed.contains(n)).map(square).collect::<Vec<_>>()
    );
}

#[test]
fn a_block_is_never_split_and_its_failure_is_its_own() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]);
    let job = sim.map(square, 1..=30).item(15, Nature::Fails).blocks_of(10);
    sim.run_to_end();
    let sum = |numbers: std::ops::RangeInclusive<u64>| numbers.map(square).sum::<u64>();
    assert_eq!(sim.output(job), [sum(1..=10), sum(21..=30)]);
}

#[test]
fn the_head_goes_on_when_nothing_more_can_be_stored() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]).slots(2).reorder_bytes(24);
    // The worker that has the head takes forty times as long as the other.
    sim.slow("ann", 40);
    let job = sim.map(square, 1..=60).chunk_size(1);
    sim.until(storage_full());
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=60));
}

#[test]
fn a_cut_under_full_storage_does_not_hold_the_head_for_ever() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]).reorder_bytes(16);
    let job = sim.map(square, 1..=60).taking(Duration::from_millis(5)).chunk_size(2);
    sim.stall();
    sim.until(storage_full());
    sim.reset("ann");
    sim.reset("bob");
    sim.pass(Duration::from_secs(1));
    sim.flow();
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=60));
}

#[test]
fn a_drained_worker_finishes_what_it_runs_and_loses_nothing() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]).slots(2);
    let job = sim.map(square, 1..=30).chunk_size(1);
    sim.until(settled(6));
    sim.drain("ann");
    sim.until(gone("ann"));
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=30));
    assert!((0..30).all(|index| sim.runs(job, chunk(index)) == 1), "nothing ran twice");
    assert_eq!(sim.counts(job).workers_lost, 0);
}

#[test]
fn a_straggler_gets_a_second_attempt_that_wins() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]);
    sim.slow("ann", 50);
    let job = sim.map(square, 1..=10).speculating().chunk_size(1);
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=10));
    assert_eq!(sim.counts(job).speculative_wins, 1);
    assert!(sim.now().since(widemap_common::time::Time::ZERO) < Duration::from_secs(170));
}

#[test]
fn a_result_that_does_not_fit_what_is_left_of_a_grant_goes_out() {
    // Two results in one window, such that the second fits neither what is left of the grant nor what
    // a part may be cut to.
    let value = |number| if number == 1 { 10_u64.pow(7) } else { 10_u64.pow(19) };
    let mut sim = Sim::seeded(7).workers(["ann"]).least_part(16).reorder_bytes(40);
    let job = sim.map(value, 1..=8).chunk_size(1);
    sim.run_to_end();
    assert_eq!(sim.output(job), (1..=8).map(value).collect::<Vec<_>>());
}

#[test]
fn what_the_sink_takes_makes_room_though_nobody_wakes_the_driver() {
    // When the head ends, all that waited for it goes to the sink at once, and nothing else runs.
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]).reorder_bytes(300);
    sim.slow("ann", 20);
    let job = sim.map(square, 1..=40).chunk_size(1);
    sim.until(storage_full());
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=40));
}

#[test]
fn two_addresses_of_one_worker_settle_however_busy_the_driver_is() {
    let mut sim = Sim::seeded(7).workers(["ann"]).busy_driver(Duration::from_millis(5));
    sim = sim.also_found_elsewhere("ann");
    let job = sim.map(square, 1..=10).chunk_size(1);
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=10));
    assert!(sim.now().since(widemap_common::time::Time::ZERO) < Duration::from_secs(140));
}

#[test]
fn a_suspect_is_not_charged_for_a_cancelled_twin_that_kills_its_worker() {
    // Item 1 is poison and has a twin when it kills its worker. The twin is cancelled, but may kill
    // the other worker before that arrives: nobody else must be charged on his last try.
    for seed in 0..60 {
        let mut sim = Sim::seeded(seed).workers(["ann", "bob", "cid"]).restarting();
        sim.slow("ann", 30);
        let draft = sim.map(square, 1..=12).item(1, Nature::Poison).item(2, Nature::Poison);
        let job = draft.crash_limit(1).speculating().chunk_size(1);
        sim.run_to_end();
        assert_eq!(sim.output(job), squares(3..=12), "seed {seed}");
    }
}

#[test]
fn jobs_share_the_workers_by_priority_and_each_has_its_own_output() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]).slots(2);
    let low = sim.map(square, 1..=40).chunk_size(1);
    let high = sim.map(|number| number + 1, 1..=20).priority(1).chunk_size(1);
    sim.until(move |sim: &Sim| sim.output(high).len() == 20);
    assert!(sim.output(low).len() <= 8, "the other job was first: {:?}", sim.output(low));
    sim.run_to_end();
    assert_eq!(sim.output(low), squares(1..=40));
    assert_eq!(sim.output(high), (2..=21).collect::<Vec<_>>());
}

#[test]
fn a_job_that_is_given_up_leaves_a_prefix_and_nothing_behind() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]).slots(2);
    let job = sim.map(square, 1..=40).chunk_size(2);
    sim.until(settled(8));
    sim.give_up();
    sim.run_to_end();
    let output = sim.output(job);
    assert!(output.len() >= 4 && output.len() < 40);
    assert_eq!(output, squares(1..=output.len() as u64));
}

#[test]
fn a_frozen_worker_goes_on_where_it_was_if_it_is_back_in_time() {
    for (frozen_s, runs) in [(12, 1), (60, 2)] {
        let mut sim = Sim::seeded(7).workers(["ann", "bob"]);
        let job = sim.map(square, 1..=4).taking(Duration::from_secs(3)).chunk_size(1);
        sim.until(holds("ann", chunk(0)));
        sim.freeze("ann", Duration::from_secs(frozen_s));
        sim.run_to_end();
        assert_eq!(sim.output(job), squares(1..=4));
        assert_eq!(sim.runs(job, chunk(0)), runs, "frozen for {frozen_s} s");
    }
}

#[test]
fn a_payload_that_arrives_changed_is_refused_and_the_stream_begins_anew() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]);
    sim.corrupts("ann", true);
    let job = sim.map(square, 1..=12).retries(3).chunk_size(1);
    sim.until(settled(4));
    sim.corrupts("ann", false);
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=12));
    assert!(sim.rejected(job) >= 1);
}

#[test]
fn a_cut_costs_an_attempt_whose_output_was_not_kept() {
    for (kept_bytes, runs) in [(1 << 20, 1), (64, 2)] {
        let mut sim = Sim::seeded(7).workers(["ann"]).printing_in_pieces(5, kept_bytes);
        let draft = sim.map(square, 1..=20).digits(30).taking(Duration::from_secs(1));
        let job = draft.chunk_size(20);
        sim.pass(Duration::from_secs(18));
        sim.reset("ann");
        sim.run_to_end();
        assert_eq!(sim.output(job), squares(1..=20));
        assert_eq!(sim.runs(job, chunk(0)), runs, "{kept_bytes} bytes are kept");
    }
}

#[test]
fn an_input_longer_than_the_window_comes_as_its_slot_takes_it() {
    let mut sim = Sim::seeded(7).workers(["ann", "bob"]).slots(2).input_window(8);
    let job = sim.map(square, 1..=200).taking(Duration::from_millis(1)).chunk_size(25);
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=200));
}

#[test]
fn what_waits_for_the_head_goes_to_disk_and_a_full_disk_loses_nothing() {
    for is_disk_full in [false, true] {
        let mut sim =
            Sim::seeded(7).workers(["ann", "bob"]).reorder_bytes(1_000).spill(5_000, is_disk_full);
        sim.slow("ann", 60);
        let job = sim.map(square, 1..=50).digits(50).chunk_size(1);
        sim.until(settled(12));
        assert!(sim.spilled_bytes(job) > 0 || is_disk_full);
        sim.run_to_end();
        assert_eq!(sim.output(job), squares(1..=50));
    }
}

#[test]
fn the_head_is_sent_to_a_worker_that_is_full_of_what_cannot_start() {
    // The worker keeps all the output that it may and has its window full of inputs that wait; the
    // head, which failed at first, comes behind them.
    let mut sim = Sim::seeded(7).workers(["ann"]).slots(4).reorder_bytes(100);
    sim = sim.input_window(91).keeping_output(32);
    let draft = sim.map(square, 1..=150).item(15, Nature::Flaky(2)).retries(3);
    let job = draft.taking(Duration::from_micros(20)).chunk_size(10);
    sim.run_to_end();
    assert_eq!(sim.output(job), squares(1..=150));
}

#[test]
fn the_sink_makes_room_where_the_disk_takes_nothing() {
    // A slow head lets the others wait in what the disk did not take; then all goes to the sink.
    for sink_ms in [0, 1, 20, 200] {
        let mut sim = Sim::seeded(7).workers(["ann", "bob"]).reorder_bytes(700).spill(5_000, true);
        sim = sim.slow_sink(Duration::from_millis(sink_ms)).sink_queue(1 << 20);
        sim.slow("ann", 40);
        let job = sim.map(square, 1..=94).digits(50).chunk_size(1);
        sim.run_to_end();
        assert_eq!(sim.output(job), squares(1..=94), "the sink takes {sink_ms} ms");
    }
}
