//! Attempts that a former epoch left on workers, and jobs that are paused.

use widemap_common::ids::{AttemptId, JobId, WorkerId};

use super::chunks_of;
use super::script::Script;
use crate::event::{DeathProof, Event};

/// A second epoch, whose attempts begin at 1,000.
fn restarted(items: u64) -> Script {
    Script::new().numbering_from(1_000).job(chunks_of(2), items)
}

#[test]
fn what_a_former_epoch_left_goes_on_and_is_not_run_again() {
    let mut script = restarted(10);
    script.adds_busy_worker(&[(7, 4, 2)]);
    script.expect(&["a1000 c0+2 to w0"]);
    script.done(7);
    script.expect(&["accept c4+2 a7 run 1", "a1001 c2+2 to w0"]);
    script.done(1000);
    script.expect(&["accept c0+2 a1000 run 1", "a1002 c6+2 to w0"]);
    for attempt in [1001, 1002] {
        script.done(attempt);
    }
    script.expect(&["accept c2+2 a1001 run 1", "a1003 c8+2 to w0", "accept c6+2 a1002 run 1"]);
    script.done(1003);
    script.expect(&["accept c8+2 a1003 run 1", "ended j0"]);
}

#[test]
fn what_fails_of_it_runs_again_and_its_worker_s_death_is_charged() {
    let mut script = restarted(4);
    script.adds_busy_worker(&[(7, 2, 2)]);
    script.expect(&["a1000 c0+2 to w0"]);
    script.faulty(7, &[1]);
    script.expect(&["accept c2+1 a7 run 1", "retry c3+1 error"]);
    script.passes(10_000);
    script.expect(&["a1001 c3+1 to w0"]);
    script.tell(Event::WorkerDead { worker: WorkerId(0), proof: DeathProof::LeaseEnded });
    script.add_worker(2);
    let said = script.said();
    assert_eq!(said.len(), 2, "both run again: {said:?}");
}

#[test]
fn a_job_that_waits_for_its_adopted_part_alone_has_not_ended() {
    let mut script = restarted(2);
    script.add_worker(0);
    script.adopts(0, 7, 0, 2);
    script.tell(Event::InputLevel {
        job: JobId(0),
        level: crate::event::InputLevel { ready_items: 0, ready_bytes: 0, rest_bytes: Some(0) },
    });
    script.expect(&[]);
    script.tell(Event::WorkerBack { worker: WorkerId(0), held: vec![AttemptId(7)] });
    script.expect(&[]);
    script.done(7);
    script.expect(&["accept c0+2 a7 run 1", "ended j0"]);
}

#[test]
fn what_the_worker_holds_beside_it_is_cancelled() {
    let mut script = restarted(2);
    script.add_worker(0);
    script.adopts(0, 7, 0, 2);
    let held = vec![AttemptId(7), AttemptId(8)];
    script.tell(Event::WorkerBack { worker: WorkerId(0), held });
    script.expect(&["cancel a8 on w0"]);
}

#[test]
fn a_paused_job_starts_nothing_and_leaves_its_slots_to_others() {
    let mut script = Script::new().workers(1, 1).job(chunks_of(1), 4);
    script.expect(&["a0 c0+1 to w0"]);
    script.tell(Event::JobPaused { job: JobId(0), paused: true });
    script.open(chunks_of(1), 2);
    script.done(0);
    script.expect(&["accept c0+1 a0 run 1", "a1 c0+1 to w0"]);
    assert!(script.scheduler.explain(JobId(0)).contains("is paused"));
    script.done(1);
    script.done(2);
    script.expect(&["accept c0+1 a1 run 1", "a2 c1+1 to w0", "accept c1+1 a2 run 1", "ended j1"]);
    script.tell(Event::JobPaused { job: JobId(0), paused: false });
    script.expect(&["a3 c1+1 to w0"]);
}

#[test]
fn what_waits_on_workers_comes_back_when_its_job_is_paused() {
    let mut script = Script::new().workers(1, 1).job(chunks_of(1), 100);
    // Short ones are sent ahead.
    for attempt in 0..3 {
        script.done_in(attempt, 0, &[]);
    }
    script.said();
    script.tell(Event::JobPaused { job: JobId(0), paused: true });
    let said = script.said();
    assert!(!said.is_empty() && said.iter().all(|line| line.starts_with("revoke")), "{said:?}");
    for line in &said {
        let attempt = line.split([' ', 'a']).find_map(|word| word.parse().ok()).unwrap();
        script.tell(Event::Revoked { attempt: AttemptId(attempt) });
    }
    script.expect(&[]);
    script.tell(Event::JobPaused { job: JobId(0), paused: false });
    assert!(!script.said().is_empty());
}
