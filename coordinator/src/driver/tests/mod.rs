//! A whole map over a simulated network: the real driver, links and workers with real gRPC between
//! them, while what they send is delayed, reordered, held up, lost and changed.

mod cluster;
mod middleman;

use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::{Cluster, Draft};
use middleman::Mischief;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn delays_and_reordering_change_nothing() {
    let draft = Draft::gated(&["ann", "bob"], 300);
    Draft { function: "identity", latest: 100 * MS, ..draft }.start().end();
}

#[test]
fn a_partition_within_the_lease_runs_nothing_again() {
    let mut cluster = Draft::gated(&["ann", "bob"], 40).start();
    cluster.until("every slot has an item", |witness| witness.runs() == 4);
    cluster.cut_all();
    cluster.pass(2 * SECOND);
    // They end while nobody can be told.
    cluster.witness.open.store(true, Ordering::SeqCst);
    cluster.pass(SECOND / 2);
    cluster.mend_all();
    let (outcome, runs, _) = cluster.end();
    assert_eq!((runs, outcome.counts.workers_lost), (40, 0));
}

#[test]
fn a_partition_past_the_lease_runs_what_was_there_once_more_and_never_twice_at_a_time() {
    let mut cluster = Draft::gated(&["ann", "bob"], 12).start();
    cluster.until("every slot has an item", |witness| witness.runs() == 4);
    cluster.sim.partition("coordinator", "ann");
    cluster.until("what ann had is ended there", |witness| witness.running_now() == 2);
    cluster.pass(2 * SECOND);
    cluster.sim.repair("coordinator", "ann");
    let (outcome, runs, overlaps) = cluster.end();
    assert_eq!(outcome.counts.workers_lost, 1);
    assert_eq!((runs, overlaps), (14, 0));
}

#[test]
fn a_partition_of_one_way_is_noticed_by_either_side() {
    for (from, to) in [("coordinator", "ann"), ("ann", "coordinator")] {
        let mut cluster = Draft::gated(&["ann"], 12).start();
        cluster.until("every slot has an item", |witness| witness.runs() == 2);
        cluster.sim.partition_oneway(from, to);
        cluster.pass(3_500 * MS);
        cluster.sim.repair_oneway(from, to);
        let (outcome, runs, overlaps) = cluster.end();
        assert_eq!(overlaps, 0, "{from} to {to}");
        assert!((12..=14).contains(&runs), "{from} to {to}: {runs} runs");
        assert!(outcome.counts.workers_lost <= 1);
    }
}

#[test]
fn words_that_were_held_up_on_the_way_prolong_no_lease() {
    let mut cluster = Draft::gated(&["ann", "bob"], 12).start();
    cluster.until("every slot has an item", |witness| witness.runs() == 4);
    // Nothing is lost: all of it arrives late, the pings of seconds at once.
    cluster.sim.hold("coordinator", "ann");
    cluster.pass(6 * SECOND);
    cluster.sim.release("coordinator", "ann");
    cluster.pass(3 * SECOND);
    let (_, _, overlaps) = cluster.end();
    assert_eq!(overlaps, 0);
}

#[test]
fn a_worker_that_crashes_and_comes_back_is_another_one() {
    let mut cluster = Draft::gated(&["ann", "bob"], 40).start();
    cluster.until("every slot has an item", |witness| witness.runs() == 4);
    cluster.sim.crash("ann");
    cluster.pass(SECOND);
    cluster.sim.bounce("ann");
    cluster.until("what it had runs again", |witness| witness.runs() >= 6);
    let (outcome, runs, _) = cluster.end();
    assert_eq!(outcome.counts.workers_lost, 1);
    assert_eq!(runs, 42);
}

#[test]
fn partitions_again_and_again_lose_nothing() {
    let mut cluster =
        Draft { latest: 20 * MS, ..Draft::gated(&["ann", "bob", "cid"], 400) }.start();
    cluster.witness.open.store(true, Ordering::SeqCst);
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..12 {
        let host = ["ann", "bob", "cid"][rng.usize(..3)];
        cluster.sim.partition("coordinator", host);
        cluster.pass(rng.u32(50..3_000) * MS);
        cluster.sim.repair("coordinator", host);
        cluster.pass(rng.u32(10..500) * MS);
    }
    cluster.end();
}

/// Twelve items on one worker, through a middleman.
fn through(mischief: Mischief, retries: u32) -> Cluster<'static> {
    let draft = Draft::gated(&["ann"], 12);
    Draft { function: "identity", retries, mischief: Some(mischief), ..draft }.start()
}

#[test]
fn a_result_that_was_changed_on_the_way_is_refused_and_runs_again() {
    for mischief in [Mischief::Flips, Mischief::Lengthens] {
        let (outcome, ..) = through(mischief, 1).end();
        assert_eq!((outcome.counts.retried, outcome.counts.failed), (1, 0), "{mischief:?}");
        assert_eq!(outcome.counts.workers_lost, 0, "{mischief:?}");
    }
}

#[test]
fn a_result_that_is_refused_for_good_names_its_worker() {
    for mischief in [Mischief::Flips, Mischief::Lengthens] {
        let (outcome, ..) = through(mischief, 0).end();
        assert_eq!(outcome.counts.failed, 1, "{mischief:?}");
        let message = &outcome.failures[0].message;
        assert!(message.contains("refused") && message.contains("ann"), "{message}");
    }
}

#[test]
fn results_that_come_twice_count_once() {
    let (outcome, ..) = through(Mischief::Doubles, 1).end();
    assert_eq!((outcome.counts.ok, outcome.counts.retried), (12, 0));
}

#[test]
fn a_server_that_goes_away_again_and_again_costs_no_item() {
    let mischief = Some(Mischief::GoesAway { streams: 3 });
    let mut cluster = Draft { retries: 0, mischief, ..Draft::gated(&["ann"], 12) }.start();
    cluster.until("it went away thrice", |witness| witness.streams.load(Ordering::SeqCst) == 4);
    cluster.until("every slot has an item", |witness| witness.running_now() == 2);
    let (outcome, runs, _) = cluster.end();
    assert_eq!((outcome.counts.ok, outcome.counts.workers_lost, runs), (12, 0, 12));
}

#[test]
fn a_worker_that_talks_and_answers_no_ping_is_cut_off() {
    let mischief = Some(Mischief::Unanswering);
    let mut cluster = Draft { retries: 0, mischief, ..Draft::gated(&["ann"], 12) }.start();
    // Its heartbeats come all the while.
    cluster.until("another stream", |witness| witness.streams.load(Ordering::SeqCst) == 2);
    assert!(cluster.sim.elapsed() >= 4 * SECOND, "{:?}", cluster.sim.elapsed());
    assert!(cluster.sim.elapsed() < 6 * SECOND, "{:?}", cluster.sim.elapsed());
    let (outcome, runs, _) = cluster.end();
    assert_eq!((outcome.counts.ok, outcome.counts.workers_lost, runs), (12, 0, 12));
}

#[test]
fn a_place_that_refuses_is_looked_at_again() {
    let mischief = Some(Mischief::RefusesOnce);
    let mut cluster = Draft { mischief, ..Draft::gated(&["ann"], 4) }.start();
    cluster.until("another stream", |witness| witness.streams.load(Ordering::SeqCst) == 2);
    assert!(cluster.sim.elapsed() >= 10 * SECOND, "{:?}", cluster.sim.elapsed());
    assert_eq!(cluster.end().0.counts.ok, 4);
}
