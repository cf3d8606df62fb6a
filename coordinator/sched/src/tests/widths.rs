//! Attempts that take several slots, alone and beside others.

use std::num::NonZeroU32;

use widemap_common::ids::{AttemptId, JobId, WorkerId};

use super::script::Script;
use super::{chunks_of, policy};
use crate::event::{Event, JobPolicy};

fn wide(slots: u32) -> JobPolicy {
    JobPolicy { slots_per_item: NonZeroU32::new(slots).unwrap(), ..chunks_of(1) }
}

#[test]
fn as_many_run_as_their_slots_allow() {
    let mut script = Script::new().workers(1, 5).job(wide(2), 6);
    script.expect(&["a0 c0+1 to w0", "a1 c1+1 to w0"]);
    let explained = script.scheduler.explain(JobId(0));
    assert!(explained.contains("has been running"), "{explained}");
    script.done_in(0, 1_000, &[]);
    script.expect(&["accept c0+1 a0 run 1", "a2 c2+1 to w0"]);
}

#[test]
fn a_worker_with_fewer_slots_is_not_told_of_them() {
    let mut script = Script::new().workers(2, 3).job(wide(4), 2);
    script.expect(&[]);
    let explained = script.scheduler.explain(JobId(0));
    assert!(explained.contains("no worker has 4 slots"), "{explained}");
    script.add_worker(4);
    script.expect(&["a0 c0+1 to w2"]);
    assert!(script.scheduler.explain_item(JobId(0), 0).unwrap().contains("running"));
}

#[test]
fn where_others_leave_fewer_slots_one_runs_alone() {
    let mut script = Script::new().workers(1, 4).job(wide(4), 2);
    script.expect(&["a0 c0+1 to w0"]);
    script.tell(Event::WorkerCredit { worker: WorkerId(0), slots: 2, queue: 100 });
    script.done_in(0, 1_000, &[]);
    script.expect(&["accept c0+1 a0 run 1", "a1 c1+1 to w0"]);
    assert!(script.scheduler.explain_item(JobId(0), 1).unwrap().contains("running"));
}

/// A job of long items takes every slot that becomes idle, one at a time: a job that needs all of them
/// has its turn all the same.
#[test]
fn those_that_need_several_slots_are_not_starved_by_those_that_need_one() {
    let mut script = Script::new().workers(1, 4).job(chunks_of(1), 100);
    script.done_in(0, 1_000, &[]);
    let job = script.open(wide(4), 3);
    let ended = |script: &mut Script| script.said().contains(&format!("ended {job}"));
    for _ in 0..40 {
        script.now = script.now + std::time::Duration::from_millis(10);
        let first = script.scheduler.attempts_of(WorkerId(0))[0];
        script.done_in(first.0, 1_000, &[]);
        if ended(&mut script) {
            let others = script.scheduler.counts(JobId(0)).unwrap().attempts;
            assert!((6..30).contains(&others), "{others} attempts of the others meanwhile");
            return;
        }
    }
    panic!("{}", script.scheduler.explain(job));
}

/// Two heads that cannot be stored ahead of, on a worker that lends fewer slots than before: what the
/// first one cancels puts the second before it in the order, and that is looked at again.
#[test]
fn a_head_is_not_passed_over_where_room_for_another_was_looked_for() {
    let mut script = Script::new().workers(1, 3);
    script.tell(Event::WorkerCredit { worker: WorkerId(0), slots: 0, queue: 0 });
    script.open(policy(), 15);
    script.open(JobPolicy { weight: 3, chunk_items: None, ..wide(2) }, 15);
    script.tell(Event::WorkerCredit { worker: WorkerId(0), slots: 3, queue: 5 });
    script.done_in(0, 0, &[0]);
    script.done_in(1, 0, &[0]);
    script.tell(Event::WorkerCut { worker: WorkerId(0) });
    script.storage(true);
    script.passes(100);
    script.tell(Event::Storage { job: JobId(1), full: true });
    script.tell(Event::WorkerCredit { worker: WorkerId(0), slots: 1, queue: 5 });
    script.said();
    let held = script.scheduler.attempts_of(WorkerId(0));
    assert!(held.contains(&AttemptId(3)), "{held:?}");
    script.tell(Event::WorkerBack { worker: WorkerId(0), held });
    let said = script.said();
    assert!(said.iter().any(|line| line.ends_with(" c0+1 to w0")), "{said:?}");
}
