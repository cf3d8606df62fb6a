//! Nothing goes wrong: cutting, sizes, prefetch, fetching back, and the ends of jobs.

use widemap_common::ids::{AttemptId, JobId, WorkerId};
use widemap_common::spec::Runtime;

use super::script::Script;
use super::{chunks_of, policy};
use crate::event::{Event, InputLevel, JobPolicy};

#[test]
fn a_list_goes_over_the_workers_and_ends() {
    let mut script = Script::new().workers(2, 1).job(chunks_of(2), 6);
    script.expect(&["a0 c0+2 to w0", "a1 c2+2 to w1"]);
    script.done(1);
    script.expect(&["accept c2+2 a1 run 1", "a2 c4+2 to w1"]);
    script.done(0);
    script.expect(&["accept c0+2 a0 run 1"]);
    script.done(2);
    script.expect(&["accept c4+2 a2 run 1", "ended j0"]);
    assert_eq!(script.scheduler.counts(JobId(0)).unwrap().accepted_items, 6);
    assert_eq!(script.scheduler.next_deadline(), None);
}

#[test]
fn an_empty_list_ends_at_once() {
    Script::new().workers(1, 1).job(policy(), 0).expect(&["ended j0"]);
    Script::new().job(policy(), 0).expect(&["ended j0"]);
}

#[test]
fn items_are_spread_over_workers_before_they_double_up() {
    let mut script = Script::new().workers(2, 4).job(chunks_of(1), 4);
    script.expect(&["a0 c0+1 to w0", "a1 c1+1 to w1", "a2 c2+1 to w0", "a3 c3+1 to w1"]);
}

#[test]
fn a_worker_that_joins_gets_work_at_once() {
    let mut script = Script::new().workers(1, 1).job(chunks_of(1), 3);
    script.expect(&["a0 c0+1 to w0"]);
    script.add_worker(1);
    script.expect(&["a1 c1+1 to w1"]);
}

#[test]
fn a_result_of_an_attempt_that_has_ended_counts_for_nothing() {
    let mut script = Script::new().workers(1, 1).job(chunks_of(1), 3);
    script.done(0);
    script.expect(&["a0 c0+1 to w0", "accept c0+1 a0 run 1", "a1 c1+1 to w0"]);
    script.done(0);
    script.done(77);
    script.tell(Event::AttemptRejected { attempt: AttemptId(0) });
    script.expect(&[]);
}

#[test]
fn chunks_double_while_attempts_are_short() {
    let mut script = Script::new().workers(1, 1).job(policy(), 1_000_000);
    script.expect(&["a0 c0+1 to w0"]);
    script.done_in(0, 0, &[]);
    let lines = script.said();
    assert_eq!(&lines[..2], ["accept c0+1 a0 run 1", "a1 c1+2 to w0"], "{lines:?}");
}

#[test]
fn short_attempts_are_sent_ahead_and_long_ones_are_not() {
    let mut short = Script::new().workers(1, 1).job(chunks_of(1), 1_000);
    short.done_in(0, 0, &[]);
    let ahead = short.said().iter().filter(|line| line.ends_with("to w0")).count();
    assert_eq!(ahead, 1 + 1 + 100, "one ran, one runs, the whole queue waits");

    let mut long = Script::new().workers(1, 1).job(chunks_of(1), 100);
    long.done_in(0, 50, &[]);
    long.expect(&["a0 c0+1 to w0", "accept c0+1 a0 run 1", "a1 c1+1 to w0"]);
}

#[test]
fn what_waits_is_fetched_back_for_an_idle_slot() {
    let mut script = Script::new().workers(2, 1).job(chunks_of(1), 6);
    script.done_in(0, 1, &[]);
    script.expect(&[
        "a0 c0+1 to w0",
        "a1 c1+1 to w1",
        "accept c0+1 a0 run 1",
        "a2 c2+1 to w0",
        "a3 c3+1 to w0",
    ]);
    script.done_in(1, 1, &[]);
    script.expect(&["accept c1+1 a1 run 1", "a4 c4+1 to w1", "a5 c5+1 to w1"]);
    script.done_in(4, 1, &[]);
    script.done_in(5, 1, &[]);
    script.expect(&["accept c4+1 a4 run 1", "accept c5+1 a5 run 1", "revoke a3 from w0"]);
    script.tell(Event::Revoked { attempt: AttemptId(3) });
    script.expect(&["a6 c3+1 to w1"]);
    script.done(6);
    script.expect(&["accept c3+1 a6 run 1"]);
}

#[test]
fn what_failed_on_the_idle_worker_is_not_fetched_back_for_it() {
    let mut script = Script::new().workers(2, 1).job(chunks_of(1), 3);
    script.done_in(0, 1, &[]);
    script.done_in(1, 1, &[0]);
    script.said();
    script.passes(50);
    // It waits behind the other item, and would be sent there again each time.
    script.expect(&["a3 c1+1 to w0"]);
    script.done(2);
    script.expect(&["accept c2+1 a2 run 1"]);
}

#[test]
fn what_has_started_is_not_asked_for_twice() {
    let mut script = Script::new().workers(2, 1).job(chunks_of(1), 4);
    script.done_in(0, 1, &[]);
    script.done_in(1, 1, &[]);
    script.said();
    let waiting = script.scheduler.workers().map(|worker| worker.waiting).collect::<Vec<_>>();
    assert_eq!(waiting, [1, 0]);
    script.tell(Event::RevokedTooLate { attempt: AttemptId(3) });
    script.expect(&[]);
    script.done_in(2, 1, &[]);
    script.done_in(3, 1, &[]);
    script.expect(&["accept c2+1 a2 run 1", "accept c3+1 a3 run 1", "ended j0"]);
}

#[test]
fn blocks_go_one_to_a_slot_and_are_accepted_whole() {
    let pipe = JobPolicy { runtime: Runtime::Pipe, ..chunks_of(100) };
    let mut script = Script::new().workers(1, 1).job(pipe, 250);
    script.done_in(0, 30, &[]);
    script.expect(&[
        "a0 c0+100 to w0",
        "accept c0+100 a0 run 1",
        "a1 c100+100 to w0",
        "a2 c200+50 to w0",
    ]);
}

#[test]
fn an_unknown_end_is_waited_for() {
    let mut script = Script::new().workers(1, 1);
    let job = JobId(0);
    script.tell(Event::JobOpened { job, policy: policy() });
    let level = |rest_bytes| InputLevel { rest_bytes, ..InputLevel::default() };
    script.tell(Event::InputLevel { job, level: level(None) });
    script.expect(&[]);
    assert_eq!(script.scheduler.explain(job), "j0 waits for more input.");
    script.tell(Event::InputLevel { job, level: level(Some(0)) });
    script.expect(&["ended j0"]);
}

#[test]
fn a_cancelled_job_leaves_nothing_behind() {
    let mut script = Script::new().workers(2, 1).job(chunks_of(2), 100);
    script.faulty(0, &[0]);
    script.said();
    script.tell(Event::JobCancelled { job: JobId(0) });
    script.expect(&["cancel a1 on w1", "cancel a2 on w0", "ended j0"]);
    script.done(1);
    script.passes(60_000);
    script.expect(&[]);
}

#[test]
fn two_jobs_share_by_weight_and_the_higher_priority_goes_first() {
    let mut script = Script::new().workers(1, 6);
    script.tell(Event::WorkerCredit { worker: WorkerId(0), slots: 0, queue: 0 });
    let weighed = |weight| JobPolicy { weight, ..chunks_of(1) };
    let (one, two) = (script.open(weighed(1), 100), script.open(weighed(2), 100));
    let urgent = script.open(JobPolicy { priority: 1, ..chunks_of(1) }, 0);
    script.tell(Event::WorkerCredit { worker: WorkerId(0), slots: 6, queue: 0 });
    let attempts = |script: &Script, job| script.scheduler.counts(job).unwrap().attempts;
    assert_eq!((attempts(&script, one), attempts(&script, two)), (2, 4));
    assert_eq!(attempts(&script, urgent), 0);
    let urgent = script.open(JobPolicy { priority: 1, ..chunks_of(1) }, 3);
    script.tell(Event::WorkerCredit { worker: WorkerId(0), slots: 9, queue: 0 });
    assert_eq!(attempts(&script, urgent), 3);
}

#[test]
fn a_heavy_tail_ends_as_greedy_list_order_does() {
    let sleeps_ms: Vec<u64> = (0..200_u64)
        .map(|item| 20 + (item * 7919 % 97) * if item % 23 == 0 { 20 } else { 1 })
        .collect();
    let mut script = Script::new().workers(2, 4).job(policy(), 200);
    let mut running: Vec<(u64, u64)> = Vec::new();
    let mut slots = [0_u64; 8];
    for &sleep_ms in &sleeps_ms {
        *slots.iter_mut().min().unwrap() += sleep_ms;
    }
    loop {
        for line in script.said() {
            if let Some((attempt, rest)) = line.strip_prefix('a').and_then(|l| l.split_once(" c")) {
                let Ok(attempt) = attempt.parse() else { continue };
                let first: usize = rest.split('+').next().unwrap().parse().unwrap();
                assert!(rest.contains("+1 "), "long items go alone: {line}");
                running.push((script.now.0 / 1_000 + sleeps_ms[first], attempt));
            }
        }
        let Some(next) = running.iter().copied().min() else { break };
        running.retain(|&entry| entry != next);
        script.now = widemap_common::time::Time::from_ms(next.0);
        let sleep_ms = 20;
        script.done_in(next.1, sleep_ms, &[]);
    }
    let (makespan_ms, greedy_ms) = (script.now.0 / 1_000 - 1, *slots.iter().max().unwrap());
    assert!(makespan_ms * 100 <= greedy_ms * 102, "{makespan_ms} ms, greedy {greedy_ms} ms");
}
