//! Workers die, and the item that killed them is found.

use widemap_common::ids::{AttemptId, JobId, WorkerId};
use widemap_common::spec::Runtime;

use super::chunks_of;
use super::script::Script;
use crate::event::{DeathProof, Event, JobPolicy};

/// Plays workers of one slot on which this item kills whoever runs it, until the job ends. Returns
/// the deaths, and what was asked for.
fn poisoned(policy: JobPolicy, items: u64, poison: u64) -> (u32, Vec<String>) {
    poisoned_after(policy, items, poison, 0)
}

/// The same where, before the first death, the worker has finished so many attempts of which nobody hears.
fn poisoned_after(
    policy: JobPolicy,
    items: u64,
    poison: u64,
    unheard: usize,
) -> (u32, Vec<String>) {
    let mut script = Script::new().workers(3, 1).job(policy, items);
    let (mut deaths, mut all) = (0, Vec::new());
    for _ in 0..10_000 {
        all.extend(script.said());
        if all.last().is_some_and(|line| line.starts_with("ended")) {
            return (deaths, all);
        }
        let workers: Vec<_> = script.scheduler.workers().map(|worker| worker.worker).collect();
        for worker in workers {
            let attempts = script.scheduler.attempts_of(worker);
            let Some(&attempt) = attempts.first() else { continue };
            let unheard = if deaths == 0 { unheard } else { 0 };
            let holds_poison =
                |attempt: &AttemptId| script.scheduler.range_of(*attempt).unwrap().contains(poison);
            if holds_poison(&attempt) || attempts.get(unheard).is_some_and(holds_poison) {
                deaths += 1;
                script.dies(worker.0);
                script.add_worker(1);
            } else {
                script.done(attempt.0);
            }
        }
    }
    panic!("the job did not end: {}", script.scheduler.explain(JobId(0)));
}

#[test]
fn a_poison_item_is_found_within_its_deaths_and_all_others_succeed() {
    for (items, chunk, limit) in
        [(10, 10, 3), (1_000, 1_000, 3), (5_000, 700, 2), (40, 7, 1), (3, 1, 3)]
    {
        let policy = JobPolicy { crash_limit: limit, ..chunks_of(chunk) };
        let (deaths, lines) = poisoned(policy, items, items / 2);
        assert_eq!(deaths, limit + 1, "{items} items, limit {limit}");
        let failed: Vec<_> = lines.iter().filter(|line| line.starts_with("fail")).collect();
        assert_eq!(failed, [&format!("fail c{}+1 crash run {}", items / 2, limit + 1)]);
    }
}

/// What a worker has finished is lost with it if it dies at once after: what it began then was thought to
/// wait. That death counts too.
#[test]
fn a_poison_item_that_began_unnoticed_is_found_within_its_deaths() {
    for limit in 1..=4 {
        let policy = JobPolicy { crash_limit: limit, ..chunks_of(1) };
        let (deaths, lines) = poisoned_after(policy, 20, 9, 1);
        assert_eq!(deaths, limit + 1, "limit {limit}: {lines:?}");
        let failed: Vec<_> = lines.iter().filter(|line| line.starts_with("fail")).collect();
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert!(failed[0].starts_with("fail c9+1 crash"), "{failed:?}");
    }
}

#[test]
fn a_poison_block_fails_whole() {
    let policy = JobPolicy { runtime: Runtime::Pipe, ..chunks_of(50) };
    let (deaths, lines) = poisoned(policy, 200, 77);
    assert_eq!(deaths, 4);
    assert!(lines.contains(&"fail c50+50 crash run 4".to_owned()), "{lines:?}");
}

#[test]
fn without_a_limit_nothing_runs_twice_after_a_death() {
    let policy = JobPolicy { crash_limit: 0, ..chunks_of(1) };
    let (deaths, lines) = poisoned(policy, 10, 4);
    assert_eq!(deaths, 1);
    assert!(lines.contains(&"fail c4+1 crash run 1".to_owned()));
}

#[test]
fn one_dead_worker_costs_no_item() {
    let mut script = Script::new().workers(2, 1).job(chunks_of(1), 3);
    script.said();
    script.dies(0);
    script.done(1);
    script.expect(&["accept c1+1 a1 run 1", "a2 c0+1 to w1"]);
    script.done(2);
    script.done(3);
    script.expect(&["accept c0+1 a2 run 2", "a3 c2+1 to w1", "accept c2+1 a3 run 1", "ended j0"]);
    assert_eq!(script.scheduler.counts(JobId(0)).unwrap().workers_lost, 1);
}

#[test]
fn a_worker_that_falls_silent_makes_nobody_suspect() {
    let mut script = Script::new().workers(2, 2).job(chunks_of(10), 40);
    script.said();
    script.tell(Event::WorkerDead { worker: WorkerId(0), proof: DeathProof::LeaseEnded });
    script.done(1);
    script.done(3);
    script.expect(&[
        "accept c10+10 a1 run 1",
        "a4 c0+10 to w1",
        "accept c30+10 a3 run 1",
        "a5 c20+10 to w1",
    ]);
}

#[test]
fn suspects_run_one_at_a_time_on_a_worker_and_the_last_try_is_alone() {
    let policy = JobPolicy { crash_limit: 1, ..chunks_of(2) };
    let mut script = Script::new().workers(2, 2).job(policy, 8);
    script.said();
    script.dies(0);
    script.expect(&[]);
    script.done(1);
    script.expect(&["accept c2+2 a1 run 1"]);
    script.done(3);
    script.expect(&["accept c6+2 a3 run 1", "a4 c0+1 to w1"]);
    script.done(4);
    script.expect(&["accept c0+1 a4 run 2", "a5 c1+1 to w1"]);
}

#[test]
fn a_chunk_that_was_near_two_deaths_becomes_suspect_itself() {
    let mut script = Script::new().workers(2, 2).job(chunks_of(1), 6);
    script.said();
    script.dies(0);
    script.expect(&[]);
    script.add_worker(2);
    // Suspects go one to a worker: the other slot of the new worker takes a new chunk.
    script.expect(&["a4 c0+1 to w2", "a5 c4+1 to w2"]);
    script.dies(2);
    script.add_worker(2);
    // Item 4 ran beside a suspect, and is charged only if that happens again.
    script.expect(&["a6 c0+1 to w3", "a7 c4+1 to w3"]);
    script.dies(3);
    script.done(1);
    script.done(3);
    // Item 0 is on its last try: a worker was emptied for it.
    script.expect(&["accept c1+1 a1 run 1", "accept c3+1 a3 run 1", "a8 c0+1 to w1"]);
    script.done(8);
    script.expect(&["accept c0+1 a8 run 4", "a9 c2+1 to w1", "a10 c5+1 to w1"]);
    script.done(10);
    script.expect(&["accept c5+1 a10 run 1"]);
    script.done(9);
    script.expect(&["accept c2+1 a9 run 2", "a11 c4+1 to w1"]);
    script.done(11);
    script.expect(&["accept c4+1 a11 run 3", "ended j0"]);
}

#[test]
fn a_suspect_at_the_head_of_a_full_store_gets_its_worker_emptied() {
    let policy = JobPolicy { crash_limit: 1, ..chunks_of(1) };
    let mut script = Script::new().workers(2, 2).job(policy, 8);
    script.said();
    script.dies(0);
    script.expect(&[]);
    // What runs on the other worker could not be stored, and would never make room.
    script.storage(true);
    script.expect(&["cancel a3 on w1", "cancel a1 on w1", "a4 c0+1 to w1"]);
}

#[test]
fn a_worker_kept_for_a_suspect_is_the_head_s_when_storage_is_full() {
    let policy = JobPolicy { crash_limit: 1, ..chunks_of(1) };
    let mut script = Script::new().workers(3, 1).job(policy, 3);
    script.said();
    script.dies(2);
    script.storage(true);
    script.done(0);
    script.faulty(1, &[0]);
    script.expect(&["accept c0+1 a0 run 1", "retry c1+1 error"]);
    script.passes(50);
    script.expect(&["a3 c1+1 to w0"]);
}

#[test]
fn no_suspect_runs_beside_a_cancelled_attempt_that_may_still_run() {
    let speculate = JobPolicy { speculate: true, crash_limit: 1, ..chunks_of(1) };
    let mut script = Script::new().workers(2, 1).job(speculate, 2);
    script.lingers = true;
    script.done(1);
    script.passes(1_000);
    script.expect(&["a0 c0+1 to w0", "a1 c1+1 to w1", "accept c1+1 a1 run 1", "a2 c0+1 to w1"]);
    // The item killed one worker, and its twin may be about to kill the other.
    script.dies(0);
    script.expect(&["cancel a2 on w1"]);
    script.passes(1_000);
    script.expect(&[]);
    script.tell(Event::Cancelled { worker: WorkerId(1), attempt: AttemptId(2) });
    script.expect(&["a3 c0+1 to w1"]);
}

#[test]
fn what_was_cancelled_before_a_cut_is_asked_for_again_after_it() {
    let policy = JobPolicy { crash_limit: 1, ..chunks_of(1) };
    let mut script = Script::new().workers(2, 2).job(policy, 8);
    script.lingers = true;
    script.said();
    script.dies(0);
    script.storage(true);
    // The head waits for the end of what it took the worker from.
    script.expect(&["cancel a3 on w1", "cancel a1 on w1"]);
    let worker = WorkerId(1);
    script.tell(Event::Cancelled { worker, attempt: AttemptId(3) });
    script.tell(Event::WorkerCut { worker });
    script.tell(Event::WorkerBack { worker, held: vec![AttemptId(1), AttemptId(9)] });
    script.expect(&["cancel a1 on w1", "cancel a9 on w1"]);
    script.tell(Event::Cancelled { worker, attempt: AttemptId(1) });
    script.expect(&[]);
    script.tell(Event::Cancelled { worker, attempt: AttemptId(9) });
    script.expect(&["a4 c0+1 to w1"]);
}

#[test]
fn a_death_beside_a_suspect_counts_though_the_twin_goes_on() {
    // Item 0 is out twice, beside nothing but suspects of another job: two deaths nearby are enough.
    let speculate = JobPolicy { speculate: true, crash_limit: 0, ..chunks_of(1) };
    let mut script = Script::new().workers(1, 1).job(chunks_of(1), 3);
    script.add_worker(1);
    script.add_worker(1);
    script.said();
    (0..3).for_each(|worker| script.dies(worker));
    script.expect(&[]);
    let job = script.open(speculate, 2);
    script.add_worker(2);
    script.add_worker(2);
    script.expect(&["a3 c0+1 to w3", "a4 c0+1 to w3", "a5 c1+1 to w4", "a6 c1+1 to w4"]);
    script.done(6);
    script.passes(1_000);
    script.expect(&["accept c1+1 a6 run 1", "a7 c0+1 to w4"]);
    script.dies(3);
    script.dies(4);
    let failed = script.said().into_iter().find(|line| line.starts_with("fail"));
    assert_eq!(failed.as_deref(), Some("fail c0+1 crash run 2"), "{job} has convicted it");
}

#[test]
fn what_was_near_a_death_gets_no_twin() {
    let speculate = JobPolicy { speculate: true, ..chunks_of(1) };
    let mut script = Script::new().workers(1, 1).job(chunks_of(1), 1);
    script.dies(0);
    // A suspect of one job, and an item of another beside it.
    script.add_worker(2);
    script.open(speculate, 2);
    script.expect(&["a0 c0+1 to w0", "a1 c0+1 to w1", "a2 c0+1 to w1"]);
    script.dies(1);
    (0..4).for_each(|_| script.add_worker(1));
    script.expect(&["a3 c0+1 to w2", "a4 c0+1 to w3", "a5 c1+1 to w4"]);
    script.done(5);
    script.expect(&["accept c1+1 a5 run 1"]);
    script.passes(60_000);
    script.expect(&[]);
}
