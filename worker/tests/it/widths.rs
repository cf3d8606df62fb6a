//! Attempts that take several slots, beside others that take one.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use widemap_common::ids::{AttemptId, JobId};
use widemap_common::spec::JobSpec;
use widemap_proto::session::{CoordinatorHello, Order, OutputGrant, Report};

use crate::support::{Link, WorkerProcess, assign_of, eventually, hello, shell};

const NARROW: JobId = JobId(1);
const WIDE: JobId = JobId(2);

/// Says that it has started, and waits for leave to end.
fn waiting_in(directory: &Path, slots: u32) -> JobSpec {
    let directory = directory.display();
    let script = format!(
        "touch {directory}/started.$1; until [ -e {directory}/go.$1 ]; do sleep 0.01; done; echo $1"
    );
    JobSpec { slots_per_item: NonZeroU32::new(slots).unwrap(), ..shell(&script) }
}

/// A link to a worker of four slots with a job of one slot an attempt, and one of three.
async fn two_jobs(worker: &WorkerProcess, directory: &Path) -> Link {
    // Nobody pings here: the lease is long.
    let greeting = CoordinatorHello { linger_ms: 600_000, ..hello(1, 1) };
    let mut link = Link::open(worker.channel().await, greeting).await.unwrap();
    link.send(vec![Order::OutputGrant(OutputGrant { total: u64::MAX, urgent: None })]).await;
    for (job, slots) in [(NARROW, 1), (WIDE, 3)] {
        let spec = Box::new(waiting_in(directory, slots));
        link.send(vec![Order::OpenJob(job, spec)]).await;
        link.until(|report| (report == Report::JobReady(job)).then_some(())).await;
    }
    link
}

/// An attempt at an item that is called as the attempt is.
fn attempt(job: JobId, number: u64) -> Order {
    assign_of(job, number, number, format!("{number}\n").as_bytes())
}

async fn starts(directory: &Path, number: u64) {
    let file = directory.join(format!("started.{number}"));
    eventually(&format!("{number} starts"), || file.exists()).await;
}

/// Long enough for what would start to have done so.
async fn does_not_start(directory: &Path, number: u64) {
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!directory.join(format!("started.{number}")).exists(), "{number} waits");
}

fn go(directory: &Path, number: u64) {
    std::fs::write(directory.join(format!("go.{number}")), "").unwrap();
}

#[tokio::test]
async fn an_attempt_waits_for_its_slots_and_nothing_overtakes_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let worker = WorkerProcess::start(&["--slots", "4"]);
    let mut link = two_jobs(&worker, at).await;
    let narrow = |number| attempt(NARROW, number);
    link.send(vec![narrow(1), narrow(2), attempt(WIDE, 3), narrow(4), narrow(5)]).await;
    starts(at, 1).await;
    starts(at, 2).await;
    does_not_start(at, 3).await;
    does_not_start(at, 4).await;
    go(at, 1);
    link.done(1).await;
    starts(at, 3).await;
    does_not_start(at, 4).await;
    // Three slots are free at once.
    go(at, 3);
    link.done(3).await;
    starts(at, 4).await;
    starts(at, 5).await;
    for number in [2, 4, 5] {
        go(at, number);
        link.done(number).await;
    }
}

#[tokio::test]
async fn what_waited_behind_one_that_is_taken_back_starts() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let worker = WorkerProcess::start(&["--slots", "4"]);
    let mut link = two_jobs(&worker, at).await;
    let narrow = |number| attempt(NARROW, number);
    link.send(vec![narrow(1), narrow(2), attempt(WIDE, 3), narrow(4), narrow(5)]).await;
    starts(at, 2).await;
    does_not_start(at, 4).await;
    link.send(vec![Order::Revoke(AttemptId(3))]).await;
    link.until(|report| (report == Report::Revoked(AttemptId(3))).then_some(())).await;
    starts(at, 4).await;
    starts(at, 5).await;
    for number in [1, 2, 4, 5] {
        go(at, number);
        link.done(number).await;
    }
}

#[tokio::test]
async fn one_that_needs_more_than_there_is_runs_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let worker = WorkerProcess::start(&["--slots", "2"]);
    let mut link = two_jobs(&worker, at).await;
    link.send(vec![attempt(WIDE, 1), attempt(NARROW, 2)]).await;
    starts(at, 1).await;
    does_not_start(at, 2).await;
    go(at, 1);
    link.done(1).await;
    starts(at, 2).await;
    go(at, 2);
    link.done(2).await;
}
