//! Items fail, results do not fit, workers are blamed.

use std::time::Duration;

use widemap_common::failure::FailureKind;
use widemap_common::ids::{AttemptId, JobId, WorkerId};
use widemap_common::spec::Runtime;

use super::chunks_of;
use super::script::Script;
use crate::event::{Event, ItemFault, JobPolicy};

#[test]
fn a_faulty_item_runs_again_alone_elsewhere_and_its_siblings_are_kept() {
    let mut script = Script::new().workers(2, 1).job(chunks_of(5), 10);
    script.faulty(0, &[2]);
    script.expect(&[
        "a0 c0+5 to w0",
        "a1 c5+5 to w1",
        "accept c0+2 a0 run 1",
        "retry c2+1 error",
        "accept c3+2 a0 run 1",
    ]);
    script.passes(100);
    script.expect(&[]);
    assert!(script.scheduler.explain(JobId(0)).contains("waits for a worker where it has not"));
    script.done(1);
    script.expect(&["accept c5+5 a1 run 1", "a2 c2+1 to w1"]);
    script.faulty(2, &[0]);
    script.expect(&["fail c2+1 error run 2", "ended j0"]);
    let counts = script.scheduler.counts(JobId(0)).unwrap();
    assert_eq!((counts.accepted_items, counts.failed_items, counts.retries), (9, 1, 1));
}

#[test]
fn the_only_worker_tries_again_itself_after_a_pause() {
    let mut script = Script::new().workers(1, 1).job(chunks_of(1), 1);
    script.faulty(0, &[0]);
    script.expect(&["a0 c0+1 to w0", "retry c0+1 error"]);
    let pause = script.scheduler.next_deadline().unwrap() - script.now;
    assert!(pause >= Duration::from_millis(25) && pause <= Duration::from_millis(50));
    script.passes(50);
    script.expect(&["a1 c0+1 to w0"]);
    script.done(1);
    script.expect(&["accept c0+1 a1 run 2", "ended j0"]);
}

#[test]
fn what_cannot_change_is_not_tried_again() {
    let mut script = Script::new().workers(1, 1).job(chunks_of(2), 2);
    let fault = ItemFault { index: 1, kind: FailureKind::Error, retryable: false };
    let faults = vec![fault, ItemFault { index: 9, ..fault }];
    script.tell(Event::AttemptDone { attempt: AttemptId(0), busy_us: 1, faults });
    script.expect(&["a0 c0+2 to w0", "accept c0+1 a0 run 1", "fail c1+1 error run 1", "ended j0"]);
}

#[test]
fn a_block_fails_and_runs_again_whole() {
    let pipe = JobPolicy { runtime: Runtime::Pipe, ..chunks_of(100) };
    let mut script = Script::new().workers(2, 1).job(pipe, 100);
    script.faulty(0, &[0]);
    script.passes(50);
    script.expect(&["a0 c0+100 to w0", "retry c0+100 error", "a1 c0+100 to w1"]);
    script.faulty(1, &[0]);
    script.expect(&["fail c0+100 error run 2", "ended j0"]);
    assert_eq!(script.scheduler.counts(JobId(0)).unwrap().failed_items, 100);
}

#[test]
fn a_result_that_does_not_fit_spends_a_run_of_its_chunk() {
    let mut script = Script::new().workers(2, 1).job(chunks_of(2), 2);
    script.tell(Event::AttemptRejected { attempt: AttemptId(0) });
    script.passes(50);
    script.expect(&["a0 c0+2 to w0", "retry c0+2 error", "cancel a0 on w0", "a1 c0+2 to w1"]);
    script.tell(Event::AttemptRejected { attempt: AttemptId(1) });
    let ends = ["fail c0+1 error run 2", "fail c1+1 error run 2", "cancel a1 on w1", "ended j0"];
    script.expect(&ends);
}

#[test]
fn a_worker_that_fails_what_succeeds_elsewhere_is_excluded_for_a_growing_time() {
    let mut script = Script::new().workers(2, 1).job(chunks_of(1), 1_000);
    let excluded = |script: &mut Script| script.said().into_iter().find(|l| l.starts_with("excl"));
    for exclusion in ["exclude w0 for 1s", "exclude w0 for 2s"] {
        let line = (0..30).find_map(|_| {
            fail_on_w0_and_succeed_on_w1(&mut script);
            excluded(&mut script)
        });
        assert_eq!(line.as_deref(), Some(exclusion));
        script.passes(2_000);
    }
}

/// Ends what runs on either worker, once.
fn fail_on_w0_and_succeed_on_w1(script: &mut Script) {
    let running = |script: &Script, worker| script.scheduler.attempts_of(WorkerId(worker));
    for attempt in running(script, 0) {
        script.faulty(attempt.0, &[0]);
    }
    script.passes(50);
    for attempt in running(script, 1) {
        script.done(attempt.0);
    }
}

#[test]
fn a_worker_that_fails_everything_fast_does_not_eat_a_job_without_retries() {
    let policy = JobPolicy { retries: 0, ..chunks_of(1) };
    let mut script = Script::new().workers(2, 1).job(policy, 1_000);
    // One fails whatever it gets, ten times as fast as the other works.
    for _ in 0..30 {
        for _ in 0..10 {
            let spoilt = script.scheduler.attempts_of(WorkerId(0)).first().copied();
            spoilt.into_iter().for_each(|attempt| script.done_in(attempt.0, 5, &[0]));
            script.passes(5);
        }
        let good = script.scheduler.attempts_of(WorkerId(1)).first().copied();
        script.done(good.expect("the other has work").0);
    }
    let said = script.said();
    let failed = said.iter().filter(|line| line.starts_with("fail ")).count();
    assert!((10..15).contains(&failed), "{failed} items were spoilt");
    assert!(said.iter().any(|line| line == "exclude w0 for 1s"), "{said:?}");
}

#[test]
fn the_only_worker_is_never_excluded() {
    let mut script = Script::new().workers(1, 1).job(chunks_of(1), 10);
    for attempt in 0..10 {
        script.faulty(attempt, &[0]);
    }
    assert!(!script.said().iter().any(|line| line.starts_with("exclude")));
}

#[test]
fn a_job_that_every_worker_refuses_is_unusable_until_another_worker_comes() {
    let mut script = Script::new().refuse_jobs(true).workers(2, 1).job(chunks_of(1), 3);
    script.expect(&["unusable j0"]);
    assert!(script.scheduler.explain(JobId(0)).contains("all workers (2) refused it"));
    script.add_worker(1);
    script.expect(&["unusable j0"]);
    script = script.refuse_jobs(false);
    script.add_worker(1);
    script.expect(&["a0 c0+1 to w3"]);
}
