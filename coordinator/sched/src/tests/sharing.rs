//! Full storage, stragglers, cuts and drains: who keeps what.

use widemap_common::ids::{AttemptId, JobId, WorkerId};

use super::chunks_of;
use super::script::Script;
use crate::event::{Action, DeathProof, Event, JobPolicy};

#[test]
fn nothing_further_ahead_is_started_while_storage_is_full() {
    let mut script = Script::new().workers(2, 1).job(chunks_of(1), 10);
    script.storage(true);
    script.done(1);
    script.expect(&["a0 c0+1 to w0", "a1 c1+1 to w1", "accept c1+1 a1 run 1"]);
    assert!(script.scheduler.explain(JobId(0)).contains("no more results can be stored"));
    script.storage(false);
    script.expect(&["a2 c2+1 to w1"]);
}

#[test]
fn the_head_takes_the_slot_of_what_is_farthest_ahead() {
    let mut script = Script::new().workers(3, 1).job(chunks_of(1), 10);
    script.said();
    script.storage(true);
    script.tell(Event::WorkerDead { worker: WorkerId(0), proof: DeathProof::LeaseEnded });
    script.expect(&["cancel a2 on w2", "a3 c0+1 to w2"]);
    script.done(3);
    script.expect(&["accept c0+1 a3 run 2"]);
    script.done(1);
    script.expect(&["accept c1+1 a1 run 1", "a4 c2+1 to w1"]);
}

#[test]
fn a_straggler_gets_a_second_attempt_and_the_first_result_counts() {
    let speculate = JobPolicy { speculate: true, ..chunks_of(1) };
    let mut script = Script::new().workers(2, 1).job(speculate, 5);
    for attempt in [1, 2, 3, 4] {
        script.now = script.now + std::time::Duration::from_millis(20);
        script.done_in(attempt, 20, &[]);
    }
    script.said();
    assert!(script.scheduler.next_deadline().is_some());
    script.passes(1_000);
    script.expect(&["a5 c0+1 to w1"]);
    script.done(5);
    script.expect(&["accept c0+1 a5 run 1", "cancel a0 on w0", "ended j0"]);
    assert_eq!(script.scheduler.counts(JobId(0)).unwrap().speculative_wins, 1);
}

#[test]
fn twins_that_both_fail_are_one_charge() {
    let speculate = JobPolicy { speculate: true, ..chunks_of(1) };
    let mut script = Script::new().workers(2, 1).job(speculate, 2);
    script.done(1);
    script.passes(1_000);
    script.expect(&["a0 c0+1 to w0", "a1 c1+1 to w1", "accept c1+1 a1 run 1", "a2 c0+1 to w1"]);
    script.faulty(0, &[0]);
    script.expect(&[]);
    script.faulty(2, &[0]);
    script.expect(&["retry c0+1 error"]);
}

#[test]
fn a_twin_whose_original_has_failed_gets_no_twin_of_its_own() {
    let speculate = JobPolicy { speculate: true, ..chunks_of(1) };
    let mut script = Script::new().workers(3, 1).job(speculate, 12);
    (1..12).for_each(|attempt| script.done(attempt));
    script.said();
    script.passes(1_000);
    script.expect(&["a12 c0+1 to w1"]);
    script.faulty(0, &[0]);
    script.passes(60_000);
    script.expect(&[]);
    script.faulty(12, &[0]);
    script.expect(&["retry c0+1 error"]);
}

#[test]
fn without_speculation_a_straggler_is_left_alone() {
    let mut script = Script::new().workers(2, 1).job(chunks_of(1), 2);
    script.done(1);
    script.said();
    assert_eq!(script.scheduler.next_deadline(), None);
    script.passes(60_000);
    script.expect(&[]);
}

#[test]
fn a_cut_worker_keeps_what_it_has_until_it_is_back() {
    let mut script = Script::new().workers(2, 2).job(chunks_of(1), 4);
    script.said();
    script.tell(Event::WorkerCut { worker: WorkerId(0) });
    script.done(1);
    script.done(3);
    script.expect(&["accept c1+1 a1 run 1", "accept c3+1 a3 run 1"]);
    assert!(script.scheduler.explain(JobId(0)).contains("cut off and keeps it"));
    let held = vec![AttemptId(0), AttemptId(1)];
    script.tell(Event::WorkerBack { worker: WorkerId(0), held });
    script.expect(&["cancel a1 on w0", "cancel a2 on w0", "a4 c2+1 to w1"]);
    script.done(0);
    script.done(4);
    script.expect(&["accept c0+1 a0 run 1", "accept c2+1 a4 run 2", "ended j0"]);
}

#[test]
fn a_worker_that_is_back_is_told_again_of_what_is_open_and_what_is_over() {
    let mut script = Script::new().workers(1, 1).job(chunks_of(1), 1);
    script.done(0);
    script.open(chunks_of(1), 1);
    script.tell(Event::WorkerCut { worker: WorkerId(0) });
    let (worker, held) = (WorkerId(0), vec![AttemptId(1)]);
    let mut actions = Vec::new();
    script.scheduler.handle(script.now, Event::WorkerBack { worker, held }, &mut actions);
    let (over, open) = (JobId(0), JobId(1));
    assert_eq!(
        actions,
        [Action::CloseJob { worker, job: over }, Action::OpenJob { worker, job: open }]
    );
}

#[test]
fn a_draining_worker_ends_what_it_runs_and_nobody_is_charged() {
    let mut script = Script::new().workers(2, 1).job(chunks_of(1), 4);
    script.said();
    script.tell(Event::WorkerDraining { worker: WorkerId(0) });
    script.done(0);
    script.expect(&["accept c0+1 a0 run 1"]);
    script.tell(Event::WorkerDead { worker: WorkerId(0), proof: DeathProof::Drained });
    assert_eq!(script.scheduler.counts(JobId(0)).unwrap().workers_lost, 0);
}

#[test]
fn a_lower_credit_takes_back_what_waits() {
    let mut script = Script::new().workers(1, 1).job(chunks_of(1), 6);
    script.done_in(0, 0, &[]);
    script.said();
    script.tell(Event::WorkerCredit { worker: WorkerId(0), slots: 1, queue: 2 });
    script.expect(&["revoke a5 from w0", "revoke a4 from w0"]);
}
