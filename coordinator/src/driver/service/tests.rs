//! A service in this process, with its own journal on a real disk, and a worker that outlives it: real gRPC
//! over loopback. A life that is killed is dropped where it stands.

#![allow(clippy::disallowed_methods, reason = "each handle is kept, and ends with its test")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use widemap_common::artifact::JobFiles;
use widemap_common::framing::LINES;
use widemap_common::ids::JobId;
use widemap_common::limits;
use widemap_common::spec::{Directory, Function, JobSpec};
use widemap_common::time::Timers;
use widemap_proto::jobs::{
    AttemptState, Blocks, Collecting, How, Job, JobName, JobState, JobStatus, OutputForm, Policy,
    Position, Prune, Stops, Submission,
};
use widemap_worker::{Context, FunctionError, Output, Registry as Functions, Worker, WorkerConfig};

use super::{Observed, Pulse, ServiceMake, serve};
use crate::error::MapError;
use crate::journal::{Disk, Writer};
use crate::places::Fixed;
use crate::service::{Collect, Desk, DeskError, DeskLimits, JobEntry, Kept, Registry};
use crate::session::Trust;

/// A bound for what should take moments.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often each item ran, and whether those that wait may end.
#[derive(Default)]
struct Witness {
    /// Items below this number may end.
    open: AtomicU64,
    runs: Mutex<BTreeMap<u64, u32>>,
    running: AtomicU32,
}

impl Witness {
    fn runs(&self) -> BTreeMap<u64, u32> {
        self.runs.lock().unwrap().clone()
    }
}

/// A worker of functions on a port of its own.
struct Host {
    address: String,
    witness: Arc<Witness>,
    _serving: JoinHandle<()>,
}

impl Host {
    async fn start(slots: u32) -> Self {
        let witness = Arc::new(Witness::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let for_items = Arc::clone(&witness);
        let gated = move |item: &[u8], output: &mut Output, context: &Context| {
            *for_items.runs.lock().unwrap().entry(context.sequence()).or_default() += 1;
            for_items.running.fetch_add(1, Ordering::SeqCst);
            let number = context.sequence();
            while number >= for_items.open.load(Ordering::SeqCst) && !context.is_cancelled() {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            for_items.running.fetch_sub(1, Ordering::SeqCst);
            output.extend_from_slice(item);
            Ok::<_, FunctionError>(())
        };
        let fails = |item: &[u8], output: &mut Output, _: &Context| {
            output.extend_from_slice(item);
            match item {
                b"3" => Err(FunctionError::new("three is refused")),
                _ => Ok(()),
            }
        };
        let for_the_slow = Arc::clone(&witness);
        let slow = move |item: &[u8], output: &mut Output, _: &Context| {
            if for_the_slow.open.load(Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            output.extend_from_slice(item);
            Ok::<_, FunctionError>(())
        };
        let functions = Functions::stock()
            .function("gated", gated)
            .function("fails", fails)
            .function("slow", slow);
        let config = WorkerConfig {
            name: "ann".to_owned(),
            slots,
            timers: timers(),
            ..WorkerConfig::default()
        };
        let worker = Worker::functions_only(config, functions);
        let serving = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            worker.serve_incoming(incoming, CancellationToken::new()).await.unwrap();
        });
        Self { address, witness, _serving: serving }
    }
}

struct NoPulse;

impl Pulse for NoPulse {
    fn beat(&mut self) {}
    fn ready(&mut self, _: bool) {}
    fn observe(&mut self, _: &Observed) {}
}

/// One life of a service.
struct Life {
    desk: Desk,
    registry: Arc<Registry>,
    kept: Arc<Kept>,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), MapError>>,
}

impl Life {
    fn begin(directory: &std::path::Path, workers: &[&Host]) -> Self {
        let progressed = Arc::new(Notify::new());
        let wake = Arc::clone(&progressed);
        let medium = Arc::new(Disk);
        let writer = Writer::start(medium.clone(), move || wake.notify_one(), |_| {}).unwrap();
        let registry = Arc::new(Registry::default());
        let (kept, remarks) = Kept::open(medium, directory, writer, &registry).unwrap();
        assert_eq!(remarks, Vec::<String>::new());
        let kept = Arc::new(kept);
        let (desk, requests) =
            Desk::new(Arc::clone(&registry), kept.ledger(), DeskLimits::default());
        let addresses = workers.iter().map(|host| host.address.clone()).collect();
        let make = ServiceMake {
            sources: vec![Box::new(Fixed { name: "test".to_owned(), addresses })],
            trust: Trust::default(),
            local: None,
            slots_max: None,
            timers: timers(),
            registry: Arc::clone(&registry),
            kept: Arc::clone(&kept),
            requests,
            progressed,
            keep: None,
            pulse: Box::new(NoPulse),
        };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(make, stop.clone()));
        Self { desk, registry, kept, stop, serving }
    }

    /// It ends in good order.
    async fn end(self) {
        self.stop.cancel();
        self.serving.await.unwrap().unwrap();
    }

    /// It is gone, wherever it was.
    async fn kill(self) {
        self.serving.abort();
        assert!(self.serving.await.unwrap_err().is_cancelled());
    }

    async fn submit(&self, submission: Submission, items: &str) -> JobId {
        let mut intake = self.desk.enter().unwrap().begin(submission).await.unwrap();
        intake.write(Bytes::copy_from_slice(items.as_bytes())).await.unwrap();
        intake.finish().await.unwrap().job.id
    }

    /// The whole output, the failures, and the job once it has ended.
    async fn collect(&self, job: JobId) -> (String, Vec<String>, Job) {
        let mut collect = self.desk.collect(job, Position::default()).unwrap();
        let (mut output, mut failures) = (Vec::new(), Vec::new());
        loop {
            let next = tokio::time::timeout(PATIENCE, collect.next()).await.expect("it ends");
            match next.unwrap().expect("the end is told") {
                Collecting::Output(part) => output.extend_from_slice(&part.data),
                Collecting::Failures(part) => failures.extend(
                    part.records.iter().map(|record| String::from_utf8_lossy(record).into_owned()),
                ),
                Collecting::Stderr(_) => {}
                Collecting::OfJob(job) => panic!("nobody asked early for {job}"),
                Collecting::Ended(job) => {
                    return (String::from_utf8(output).unwrap(), failures, *job);
                }
            }
        }
    }

    fn job(&self, job: JobId) -> Job {
        self.desk.job(&JobName::Id(job)).unwrap()
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}: never"));
}

fn timers() -> Timers {
    Timers { heartbeat_ms: 100, lease_ms: 30_000, lease_margin_ms: 500, ..Timers::default() }
}

fn submission(function: &str) -> Submission {
    Submission {
        name: String::new(),
        submit_key: None,
        spec: JobSpec {
            function: Function::Builtin { name: function.to_owned() },
            framing: LINES,
            directory: Directory::Private,
            environment: Vec::new(),
            files: JobFiles::default(),
            timeout: None,
            max_output: limits::MAX_OUTPUT_BYTES,
            limits: widemap_common::spec::Limits::default(),
            slots_per_item: std::num::NonZeroU32::MIN,
            per_item: false,
            ok_exit: Vec::new(),
        },
        blocks: Blocks::ItemWise,
        policy: Policy {
            retries: 1,
            crash_limit: 3,
            chunk_items: None,
            chunk_target: Duration::from_millis(20),
            weight: 1,
            priority: 0,
            speculate: false,
            require: BTreeMap::new(),
            stops: Stops::default(),
        },
        output: OutputForm {
            json: false,
            unordered: false,
            separator: b'\n',
            fill: None,
            tag: false,
            records: false,
            frames: false,
        },
        submitter: "a test".to_owned(),
        submitted_ms: 0,
        begins_at_once: false,
        early_key: None,
    }
}

/// One item a chunk, so that what runs is known.
fn gated() -> Submission {
    let submission = submission("gated");
    let policy = Policy { chunk_items: Some(1), ..submission.policy.clone() };
    Submission { policy, ..submission }
}

/// It may run while it comes, and its results can be had then.
fn early(submission: Submission) -> Submission {
    Submission { begins_at_once: true, early_key: Some("early".to_owned()), ..submission }
}

/// So many bytes of output, as they come.
async fn output(collect: &mut Collect, bytes: usize) -> String {
    let mut output = Vec::new();
    while output.len() < bytes {
        match tokio::time::timeout(PATIENCE, collect.next()).await.expect("it comes").unwrap() {
            Some(Collecting::Output(part)) => output.extend_from_slice(&part.data),
            other => panic!("{other:?} in place of output"),
        }
    }
    String::from_utf8(output).unwrap()
}

fn numbers(count: u64) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

#[tokio::test]
async fn what_is_submitted_is_collected_in_order_and_again() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(2).await);
    let life = Life::begin(directory.path(), &[&ann]);
    let job = life.submit(submission("square"), &numbers(20_000)).await;
    let want: String = (1..=20_000_u64).map(|number| format!("{}\n", number * number)).collect();
    let (output, failures, ended) = life.collect(job).await;
    assert_eq!((output == want, failures), (true, Vec::new()));
    assert_eq!((ended.status.state.name(), ended.status.counts.ok), ("complete", 20_000));
    assert_eq!(ended.status.output_bytes, want.len() as u64);
    assert!(life.collect(job).await.0 == want);
    life.end().await;
    // And in another life.
    let life = Life::begin(directory.path(), &[]);
    let (output, _, again) = life.collect(job).await;
    assert!(output == want);
    assert_eq!(again.status, ended.status);
    let empty = life.submit(submission("square"), "").await;
    assert_eq!(empty, JobId(job.0 + 1));
    life.end().await;
}

#[tokio::test]
async fn what_failed_is_told_with_its_place_and_the_output_lacks_it() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(1).await);
    let life = Life::begin(directory.path(), &[&ann]);
    let job = life.submit(submission("fails"), &numbers(5)).await;
    let (output, failures, ended) = life.collect(job).await;
    assert_eq!(output, "1\n2\n4\n5\n");
    assert_eq!(failures.len(), 1);
    assert!(
        failures[0].contains("\"seq\":3") && failures[0].ends_with("\"offset\":4}"),
        "{failures:?}"
    );
    assert!(failures[0].contains("three is refused"), "{failures:?}");
    assert_eq!((ended.status.counts.ok, ended.status.counts.failed), (4, 1));
    let explained = life.desk.explain(job, None).await.unwrap();
    assert!(explained.sentence.contains("has ended"), "{explained:?}");
    life.end().await;
}

#[tokio::test]
async fn a_life_that_is_killed_is_gone_on_from_and_nothing_runs_twice() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(3).await);
    let life = Life::begin(directory.path(), &[&ann]);
    let done = life.submit(submission("square"), &numbers(10)).await;
    life.collect(done).await;
    let job = life.submit(gated(), &numbers(8)).await;
    until("every slot has an item", || ann.witness.running.load(Ordering::SeqCst) == 3).await;
    life.kill().await;
    // They end while nobody can be told.
    ann.witness.open.store(u64::MAX, Ordering::SeqCst);
    until("they have ended", || ann.witness.running.load(Ordering::SeqCst) == 0).await;
    let life = Life::begin(directory.path(), &[&ann]);
    let (output, _, ended) = life.collect(job).await;
    assert_eq!(output, numbers(8));
    assert_eq!(ended.status.counts.ok, 8);
    let runs = ann.witness.runs();
    assert!(runs.values().all(|&runs| runs == 1) && runs.len() == 8, "{runs:?}");
    life.end().await;
}

#[tokio::test]
async fn what_is_final_is_not_run_again_by_a_worker_that_knows_nothing() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(1).await);
    let life = Life::begin(directory.path(), &[&ann]);
    ann.witness.open.store(100, Ordering::SeqCst);
    let job = life.submit(gated(), &numbers(200)).await;
    until("some are durable", || life.job(job).status.output_bytes > 20).await;
    until("one is held up", || ann.witness.running.load(Ordering::SeqCst) == 1).await;
    life.kill().await;
    let bob = Host::start(2).await;
    bob.witness.open.store(u64::MAX, Ordering::SeqCst);
    let life = Life::begin(directory.path(), &[&bob]);
    assert_eq!(life.collect(job).await.0, numbers(200));
    let (before, after) = (ann.witness.runs(), bob.witness.runs());
    assert!(after.values().all(|&runs| runs == 1));
    // What ann had not handed in ran again, and that is no more than she could have at a time.
    let twice = after.keys().filter(|item| before.contains_key(item)).count();
    assert!(twice <= 40 && after.len() < 200, "{twice} ran again, {} in all", after.len());
    life.end().await;
}

#[tokio::test]
async fn a_job_is_paused_gone_on_with_given_up_and_explained() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(1).await);
    let life = Life::begin(directory.path(), &[&ann]);
    let job = life.submit(gated(), &numbers(4)).await;
    let name = JobName::Id(job);
    until("it runs", || ann.witness.running.load(Ordering::SeqCst) == 1).await;
    assert_eq!(life.desk.pause(&name).await.unwrap().status.state, JobState::Paused);
    let told = life.desk.explain(job, Some(0)).await.unwrap();
    assert!(told.sentence.contains("running") && told.sentence.contains("on ann"), "{told:?}");
    assert_eq!(told.attempts.len(), 1);
    ann.witness.open.store(u64::MAX, Ordering::SeqCst);
    until("what ran has ended", || life.job(job).status.counts.ok == 1).await;
    let told = life.desk.explain(job, None).await.unwrap();
    assert!(told.sentence.contains("is paused"), "{told:?}");
    assert!(matches!(life.desk.explain(job, Some(99)).await, Err(DeskError::Refused(_))));
    life.end().await;
    // A pause outlives the service.
    let life = Life::begin(directory.path(), &[&ann]);
    until("it is paused again", || life.job(job).status.state == JobState::Paused).await;
    ann.witness.open.store(0, Ordering::SeqCst);
    life.desk.unpause(&name).await.unwrap();
    until("it goes on", || ann.witness.running.load(Ordering::SeqCst) == 1).await;
    let cancelled = life.desk.cancel(&name).await.unwrap();
    assert!(matches!(&cancelled.status.ending().unwrap().how, How::Cancelled));
    assert_eq!(life.collect(job).await.0, "1\n");
    assert!(matches!(life.desk.pause(&name).await, Err(DeskError::Refused(_))));
    // Why it ended so can be asked for afterwards.
    let told = life.desk.explain(job, Some(0)).await.unwrap();
    assert_eq!(told.sentence, "Item 1 of j1 has succeeded.");
    let told = life.desk.explain(job, Some(1)).await.unwrap();
    assert!(told.sentence.contains("was not run to its end"), "{told:?}");
    assert!(
        told.attempts.iter().all(|attempt| attempt.state == AttemptState::Cancelled),
        "{told:?}"
    );
    assert!(!told.attempts.is_empty() && told.attempts[0].worker == "ann", "{told:?}");
    assert!(matches!(life.desk.explain(job, Some(99)).await, Err(DeskError::Refused(_))));
    let pruned = life.desk.prune(Prune::default()).await.unwrap();
    assert_eq!(pruned.jobs, [job]);
    assert!(pruned.freed_bytes >= numbers(4).len() as u64);
    assert!(matches!(life.desk.job(&name), Err(DeskError::NoSuchJob(_))));
    let next = life.submit(submission("square"), "2\n").await;
    assert_eq!((next, life.collect(next).await.0), (JobId(2), "4\n".to_owned()));
    life.end().await;
}

#[tokio::test]
async fn a_long_job_does_not_starve_a_short_one_and_priority_comes_first() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(2).await);
    let life = Life::begin(directory.path(), &[&ann]);
    // Minutes long until it is let go on, however long the disk takes for the short one.
    let long = life.submit(submission("slow"), &numbers(1_000_000)).await;
    until("the long one runs", || life.job(long).status.output_bytes > 0).await;
    let short = life.submit(submission("square"), &numbers(10)).await;
    assert_eq!(life.collect(short).await.2.status.counts.ok, 10);
    assert!(life.job(long).status.ending().is_none(), "the long one still runs");
    let workers = life.desk.workers().await.unwrap();
    assert_eq!((workers.len(), workers[0].state.as_str()), (1, "ready"));
    ann.witness.open.store(u64::MAX, Ordering::SeqCst);
    assert_eq!(life.collect(long).await.2.status.counts.ok, 1_000_000);
    life.end().await;
}

#[tokio::test]
async fn a_function_that_no_worker_has_ends_its_job_and_says_so() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(1).await);
    let life = Life::begin(directory.path(), &[&ann]);
    let job = life.submit(submission("cube"), &numbers(3)).await;
    let (output, _, ended) = life.collect(job).await;
    assert_eq!(output, "");
    let How::Unusable(why) = &ended.status.ending().unwrap().how else { panic!("{ended:?}") };
    assert!(why.contains("ann has no function `cube`"), "{why}");
    life.end().await;
}

/// What is handed in may run while the rest of it comes; nobody is told before all of it is there.
#[tokio::test]
async fn a_job_may_run_while_its_items_come() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(2).await);
    ann.witness.open.store(u64::MAX, Ordering::SeqCst);
    let life = Life::begin(directory.path(), &[&ann]);
    let mut intake = life.desk.enter().unwrap().begin(early(gated())).await.unwrap();
    assert!(!intake.may_begin(), "there is nothing to begin with");
    let desk = life.desk.clone();
    let collecting =
        tokio::spawn(
            async move { desk.collect_early("early", JobId(0), Position::default()).await },
        );
    intake.write(numbers(20).into()).await.unwrap();
    assert!(intake.may_begin());
    intake.begin().await.unwrap();
    assert!(!intake.may_begin(), "it begins once");
    until("what is there has run", || ann.witness.runs().len() == 20).await;
    let (of_job, mut collect) = collecting.await.unwrap().unwrap();
    assert_eq!(of_job, JobId(1));
    let first = output(&mut collect, numbers(20).len()).await;
    assert_eq!(first, numbers(20), "who hands it in has what is done");
    assert!(life.desk.job(&JobName::Id(JobId(1))).is_err(), "nobody knows of it");
    assert!(matches!(
        life.desk.collect(JobId(1), Position::default()),
        Err(DeskError::NoSuchJob(_))
    ));
    // Another one is taken in, runs and ends meanwhile.
    let other = life.submit(submission("square"), "7\n").await;
    assert_eq!((other, life.collect(other).await.0.as_str()), (JobId(2), "49\n"));
    let rest = numbers(50)[numbers(20).len()..].to_owned();
    // In pieces that end anywhere.
    for piece in rest.as_bytes().chunks(7) {
        intake.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(output(&mut collect, rest.len()).await, rest);
    let early_end = tokio::time::timeout(Duration::from_millis(50), collect.next()).await;
    assert!(early_end.is_err(), "its end is not there before all of it is: {early_end:?}");
    let job = intake.finish().await.unwrap().job;
    assert_eq!((job.id, job.input_bytes), (JobId(1), numbers(50).len() as u64));
    let (all, _, ended) = life.collect(job.id).await;
    assert_eq!((all, ended.status.counts.ok), (numbers(50), 50));
    let runs = ann.witness.runs();
    assert!(runs.values().all(|&runs| runs == 1) && runs.len() == 50, "{runs:?}");
    life.end().await;
    // It is kept like any other.
    let life = Life::begin(directory.path(), &[&ann]);
    assert_eq!(life.collect(job.id).await.0, numbers(50));
    life.end().await;
}

/// What has begun and is given up ends on its worker, and leaves nothing on the disk.
#[tokio::test]
async fn what_is_given_up_while_it_comes_is_gone() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(1).await);
    let life = Life::begin(directory.path(), &[&ann]);
    let mut intake = life.desk.enter().unwrap().begin(early(gated())).await.unwrap();
    intake.write(numbers(3).into()).await.unwrap();
    intake.begin().await.unwrap();
    let collecting = life.desk.collect_early("early", JobId(0), Position::default()).await;
    let (_, mut collect) = collecting.unwrap();
    until("it runs", || ann.witness.running.load(Ordering::SeqCst) == 1).await;
    drop(intake);
    let told = tokio::time::timeout(PATIENCE, collect.next()).await.expect("it is told");
    assert!(matches!(told, Err(DeskError::GivenUp(JobId(1)))), "{told:?}");
    until("what ran has ended", || ann.witness.running.load(Ordering::SeqCst) == 0).await;
    let of_job = directory.path().join("jobs/1");
    until("it is gone from the disk", || !of_job.exists()).await;
    // One that has ended by itself before, too: there is no such function.
    let mut intake = life.desk.enter().unwrap().begin(early(submission("cube"))).await.unwrap();
    intake.write(numbers(3).into()).await.unwrap();
    intake.begin().await.unwrap();
    let collecting = life.desk.collect_early("early", JobId(0), Position::default()).await;
    let (_, mut collect) = collecting.unwrap();
    let facts = directory.path().join("jobs/2/facts");
    until("it has ended", || std::fs::read(&facts).is_ok_and(|facts| facts.len() > 8)).await;
    assert!(facts.exists(), "its items are still coming");
    let early_end = tokio::time::timeout(Duration::from_millis(50), collect.next()).await;
    assert!(early_end.is_err(), "it may be gone in a moment: {early_end:?}");
    drop(intake);
    until("it is gone too", || !facts.exists()).await;
    assert!(life.desk.list(JobId(0)).0.is_empty());
    let next = life.submit(submission("square"), "2\n").await;
    assert_eq!((next, life.collect(next).await.0.as_str()), (JobId(3), "4\n"));
    life.end().await;
}

/// Only so many are open while they come; the others wait for their items, and those that are given up are
/// gone all the same.
#[tokio::test]
async fn what_comes_and_is_not_opened_waits_until_it_is_whole() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(1).await);
    let life = Life::begin(directory.path(), &[&ann]);
    let eager = Submission { begins_at_once: true, ..gated() };
    let mut coming = Vec::new();
    for _ in 0..limits::JOBS_OPEN_MAX / 2 + 2 {
        let mut intake = life.desk.enter().unwrap().begin(eager.clone()).await.unwrap();
        intake.write("1\n".into()).await.unwrap();
        intake.begin().await.unwrap();
        coming.push(intake);
    }
    let (last, before) = (coming.pop().unwrap(), coming.pop().unwrap());
    let is_there = |job: usize| directory.path().join(format!("jobs/{job}")).exists();
    let number = coming.len() + 2;
    assert!(is_there(number));
    drop(last);
    until("one that was not opened is gone", || !is_there(number)).await;
    // Whole, it has its turn, beside those that are not.
    ann.witness.open.store(u64::MAX, Ordering::SeqCst);
    let job = before.finish().await.unwrap().job.id;
    assert_eq!(job, JobId(u32::try_from(number - 1).unwrap()));
    assert_eq!(life.collect(job).await.0, "1\n");
    for (index, intake) in coming.into_iter().enumerate() {
        let job = intake.finish().await.unwrap().job.id;
        assert_eq!((job.0 as usize, life.collect(job).await.0.as_str()), (index + 1, "1\n"));
    }
    assert_eq!(life.desk.list(JobId(0)).0.len(), number - 1);
    life.end().await;
}

/// What is asked of a job between its end and the moment when that is durable is refused or changes nothing.
#[tokio::test]
async fn nothing_follows_the_last_word_of_a_job() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(1).await);
    let life = Life::begin(directory.path(), &[&ann]);
    for _ in 0..5 {
        let job = life.submit(submission("square"), "3\n").await;
        let name = JobName::Id(job);
        // At every moment of its life, also while its last word is on its way to the disk.
        let asked = (0..100).map(|step| {
            let (desk, name) = (life.desk.clone(), name.clone());
            async move {
                tokio::time::sleep(Duration::from_millis(step)).await;
                let _ = desk.unpause(&name).await;
            }
        });
        let collected = tokio::join!(life.collect(job), futures_util::future::join_all(asked)).0;
        assert_eq!(collected.0, "9\n");
    }
    life.end().await;
}

/// A job that is cancelled before the driver has heard of it does not run.
#[tokio::test]
async fn a_job_is_cancelled_as_soon_as_it_is_there() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(1).await);
    let life = Life::begin(directory.path(), &[&ann]);
    // It runs, so that it reads no registry any more.
    life.desk.workers().await.unwrap();
    // Registered, and the word to the driver is still on its way.
    let submission_of = gated();
    let draft = life.kept.ledger().begin(submission_of.to_bytes(), None, 1).unwrap();
    let made = draft.finish().unwrap();
    let name = JobName::Id(made.id);
    life.registry.insert(Arc::new(JobEntry {
        id: made.id,
        submission: submission_of,
        created_ms: 1,
        input: Some(made.input),
        input_bytes: 0.into(),
        arriving: None,
        accepted_ms: 0.into(),
        shelf: made.shelf,
        status: watch::Sender::new(JobStatus::queued()),
    }));
    let cancelled = life.desk.cancel(&name).await.unwrap();
    assert!(matches!(cancelled.status.ending().unwrap().how, How::Cancelled), "{cancelled:?}");
    let next = life.submit(submission("square"), "3\n").await;
    assert_eq!(life.collect(next).await.0, "9\n");
    life.end().await;
}

/// A life that ends while a job comes: the job is not there in the next, and its worker is free.
#[tokio::test]
async fn what_was_coming_when_a_life_was_killed_is_not_there_in_the_next() {
    let (directory, ann) = (tempfile::tempdir().unwrap(), Host::start(1).await);
    let life = Life::begin(directory.path(), &[&ann]);
    let eager = Submission { begins_at_once: true, ..gated() };
    let mut intake = life.desk.enter().unwrap().begin(eager).await.unwrap();
    intake.write(numbers(3).into()).await.unwrap();
    intake.begin().await.unwrap();
    until("it runs", || ann.witness.running.load(Ordering::SeqCst) == 1).await;
    life.kill().await;
    drop(intake);
    ann.witness.open.store(u64::MAX, Ordering::SeqCst);
    let life = Life::begin(directory.path(), &[&ann]);
    assert!(!directory.path().join("jobs/1").exists());
    let next = life.submit(gated(), &numbers(5)).await;
    assert_eq!((next, life.collect(next).await.0), (JobId(2), numbers(5)));
    life.end().await;
}
