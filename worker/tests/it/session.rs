//! The session of a worker, spoken raw: in process over a socket pair, and with the real binary
//! where a stream must break.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{
    JOB, Link, PATIENCE, WorkerProcess, assign, builtin, eventually, hello, shell,
};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use widemap_common::failure::FailureKind;
use widemap_common::framing::{Framing, push_length_prefixed};
use widemap_common::ids::{AttemptId, ItemRange};
use widemap_common::spec::JobSpec;
use widemap_proto::VERSION;
use widemap_proto::session::{
    CoordinatorHello, Credit, HeldAttempt, HeldState, Order, OutputGrant, Report, Version,
};
use widemap_worker::{Context, FunctionError, Output, Registry, Worker, WorkerConfig, WorkerError};

/// A worker in this process that runs functions only.
struct InProcess {
    channel: Channel,
    shutdown: CancellationToken,
    serving: JoinSet<Result<(), WorkerError>>,
}

impl InProcess {
    async fn start(slots: u32) -> Self {
        let (near, far) = UnixStream::pair().unwrap();
        let labels = BTreeMap::from([("gpu".to_owned(), "no".to_owned())]);
        let config = WorkerConfig { slots, labels, ..WorkerConfig::default() };
        let registry = Registry::stock().function("panic", panics).function("long", long);
        let worker = Worker::functions_only(config, registry);
        let shutdown = CancellationToken::new();
        let mut serving = JoinSet::new();
        serving.spawn(worker.serve_stream(far, shutdown.clone()));
        let mut near = Some(near);
        let connector = tower::service_fn(move |_| {
            let near = near.take().map(TokioIo::new);
            std::future::ready(near.ok_or_else(|| std::io::Error::other("taken")))
        });
        let endpoint = Endpoint::from_static("http://worker");
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        Self { channel, shutdown, serving }
    }

    async fn link(&self) -> Link {
        Link::open(self.channel.clone(), hello(1, 1)).await.expect("the worker greets")
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.serving.join_next());
        ended.await.expect("in time").expect("it serves").unwrap().unwrap();
    }
}

fn panics(item: &[u8], output: &mut Output, _: &Context) -> Result<(), FunctionError> {
    output.extend_from_slice(item);
    assert!(item != b"bad", "a bad item");
    Ok(())
}

fn long(item: &[u8], output: &mut Output, _: &Context) -> Result<(), FunctionError> {
    let length: usize = std::str::from_utf8(item)?.parse()?;
    output.extend_from_slice(&vec![b'x'; length]);
    Ok(())
}

#[tokio::test]
async fn a_worker_greets_and_maps() {
    let worker = InProcess::start(3).await;
    let mut link = worker.link().await;
    assert_eq!((link.hello.slots, link.hello.version), (3, VERSION));
    assert_eq!(link.hello.functions, ["identity", "long", "panic", "sleep", "square"]);
    assert_eq!(link.hello.labels["gpu"], "no");
    assert_eq!(link.held, []);
    assert_eq!(link.credit.slots, 3);
    link.open_job(builtin("square")).await;
    let (output, done) = link.run(1, b"1\n2\nx\n-30").await;
    assert_eq!(output, b"1\n4\n900\n");
    assert_eq!(done.faults.len(), 1);
    assert_eq!((done.faults[0].index, done.faults[0].retryable), (2, false));
    assert_eq!(done.faults[0].message, "`x` is not an integer");
    assert!(done.item_lengths.is_empty());
    worker.end().await;
}

#[tokio::test]
async fn a_panic_fails_its_item_and_no_other() {
    let worker = InProcess::start(1).await;
    let mut link = worker.link().await;
    link.open_job(JobSpec { per_item: true, ..builtin("panic") }).await;
    let (output, done) = link.run(1, b"a\nbad\nb\n").await;
    assert_eq!(output, b"a\nb\n");
    assert_eq!(done.faults[0].message, "panicked: a bad item");
    let lengths: Vec<_> = widemap_common::varint::iter(&done.item_lengths).collect();
    assert_eq!(lengths, [2, 0, 2]);
    worker.end().await;
}

#[tokio::test]
async fn results_of_length_prefixed_items_are_length_prefixed() {
    let worker = InProcess::start(1).await;
    let mut link = worker.link().await;
    let framing = Framing::LengthPrefixed;
    link.open_job(JobSpec { framing, ..builtin("identity") }).await;
    let mut input = Vec::new();
    push_length_prefixed(&mut input, b"a\nb");
    push_length_prefixed(&mut input, b"");
    let Order::Assign(mut order) = assign(1, 0, &input) else { unreachable!() };
    order.range.items = 2;
    link.send(vec![Order::Assign(order)]).await;
    let (output, done) = link.done(1).await;
    assert_eq!((output, done.faults.len()), (input, 0));
    worker.end().await;
}

#[tokio::test]
async fn a_function_out_of_time_and_a_cancelled_one_are_woken() {
    let worker = InProcess::start(1).await;
    let mut link = worker.link().await;
    let timeout = Some(Duration::from_millis(50));
    link.open_job(JobSpec { timeout, ..builtin("sleep") }).await;
    let (output, done) = link.run(1, b"1\n60000\n2\n").await;
    assert_eq!(output, b"1\n2\n");
    assert_eq!(done.faults[0].kind, FailureKind::Timeout);
    assert_eq!(done.faults[0].message, "took longer than 50ms");
    let other = widemap_common::ids::JobId(2);
    link.send(vec![Order::OpenJob(other, Box::new(builtin("sleep")))]).await;
    let Order::Assign(mut sleeper) = assign(2, 0, b"60000\n") else { unreachable!() };
    sleeper.job = other;
    link.send(vec![Order::Assign(sleeper), Order::Cancel(AttemptId(2)), assign(3, 0, b"5\n")])
        .await;
    assert_eq!(link.done(3).await.0, b"5\n");
    worker.end().await;
}

#[tokio::test]
async fn what_waits_is_given_back_and_what_runs_is_not() {
    let worker = InProcess::start(1).await;
    let mut link = worker.link().await;
    link.open_job(builtin("sleep")).await;
    link.send(vec![assign(1, 0, b"1500\n"), assign(2, 1, b"0\n"), assign(3, 2, b"0\n")]).await;
    // A heartbeat, once a second, tells that it runs.
    link.running(1).await;
    link.send(vec![Order::Revoke(AttemptId(1)), Order::Revoke(AttemptId(2)), Order::Ping(7)]).await;
    assert_eq!(link.next().await.unwrap(), Report::TooLate(AttemptId(1)));
    assert_eq!(link.next().await.unwrap(), Report::Revoked(AttemptId(2)));
    assert_eq!(link.next().await.unwrap(), Report::Pong(7));
    assert_eq!(link.done(1).await.0, b"1500\n");
    assert_eq!(link.done(3).await.0, b"0\n");
    worker.end().await;
}

#[tokio::test]
async fn output_waits_for_its_grant_and_the_urgent_attempt_does_not() {
    let worker = InProcess::start(1).await;
    let mut link = worker.link().await;
    link.open_job(builtin("long")).await;
    let grant = |total, urgent| Order::OutputGrant(OutputGrant { total, urgent });
    link.send(vec![grant(0, None), assign(2, 5, b"1000\n"), assign(1, 0, b"1000\n")]).await;
    // Small reports are never behind output.
    link.send(vec![Order::Ping(1)]).await;
    assert_eq!(link.next().await.unwrap(), Report::Pong(1));
    link.send(vec![grant(0, Some((AttemptId(2), 4096)))]).await;
    assert_eq!(link.done(2).await.0.len(), 1001);
    link.send(vec![Order::Ping(2)]).await;
    assert_eq!(link.next().await.unwrap(), Report::Pong(2));
    link.send(vec![grant(4096, None)]).await;
    assert_eq!(link.done(1).await.0.len(), 1001);
    worker.end().await;
}

#[tokio::test]
async fn a_long_output_stops_the_function_until_it_is_granted() {
    let worker = InProcess::start(1).await;
    let mut link = worker.link().await;
    link.open_job(builtin("long")).await;
    link.send(vec![Order::OutputGrant(OutputGrant { total: 0, urgent: None })]).await;
    let input = b"3000000\n".repeat(10);
    link.send(vec![assign(1, 0, &input)]).await;
    let stalled = |report| match report {
        Report::Heartbeat(running) => {
            running.first().is_some_and(|p| p.stalled).then_some(running[0].item)
        }
        _ => None,
    };
    // Eight MiB are held, then the function waits.
    assert_eq!(link.until(stalled).await, 2);
    link.send(vec![Order::OutputGrant(OutputGrant { total: u64::MAX, urgent: None })]).await;
    let (output, done) = link.done(1).await;
    assert_eq!((output.len(), done.faults.len()), (30_000_010, 0));
    worker.end().await;
}

#[tokio::test]
async fn thousands_of_attempts_are_answered_once_each() {
    let worker = InProcess::start(2).await;
    let mut link = worker.link().await;
    link.open_job(builtin("square")).await;
    let mut answered = 0;
    for round in 0..5_u64 {
        let first = round * 4_000;
        let orders = (first..first + 4_000).map(|n| assign(n, n, format!("{n}\n").as_bytes()));
        link.send(orders.collect()).await;
        let mut accepted = Vec::new();
        while accepted.len() < 4_000 {
            let done = link.until(|report| match report {
                Report::Done(done) => Some(done),
                _ => None,
            });
            let done = done.await;
            assert_eq!(done.output, format!("{}\n", done.attempt.0.pow(2)).as_bytes());
            accepted.push(done.attempt);
            answered += 1;
        }
        link.send(vec![Order::Accepted(accepted)]).await;
    }
    assert_eq!(answered, 20_000);
    worker.end().await;
}

#[tokio::test]
async fn another_major_version_is_refused_naming_both() {
    let worker = InProcess::start(1).await;
    let newer = CoordinatorHello { version: Version { major: 2, minor: 3 }, ..hello(1, 1) };
    let refused = Link::open(worker.channel.clone(), newer).await.err().expect("it is refused");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let text = "this worker speaks protocol 1.0, the coordinator 2.3";
    assert!(refused.message().starts_with(text), "{}", refused.message());
    worker.end().await;
}

#[tokio::test]
async fn who_breaks_the_protocol_is_told_how() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    link.send(vec![assign(1, 0, b"x\n")]).await;
    let status = link.next().await.expect_err("the stream is ended");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "a1 belongs to j1, which is not open here");
}

#[tokio::test]
async fn health_is_served() {
    let worker = InProcess::start(1).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(worker.channel.clone());
    let service = "widemap.v1.Worker".to_owned();
    let answer = health.check(tonic_health::pb::HealthCheckRequest { service }).await.unwrap();
    assert_eq!(answer.into_inner().status, 1);
    worker.end().await;
}

#[tokio::test]
async fn a_cut_keeps_results_and_a_new_stream_gets_them_again() {
    let worker = WorkerProcess::start(&["--slots", "1"]);
    let mut link = worker.link().await;
    let incarnation = link.hello.incarnation;
    let gate = tempfile::tempdir().unwrap();
    let open = gate.path().join("open");
    let script =
        format!("while [ $1 = wait ] && ! [ -e {} ]; do sleep 0.01; done; echo $1", open.display());
    link.open_job(shell(&script)).await;
    assert_eq!(link.run(1, b"first\n").await.0, b"first\n");
    link.send(vec![assign(2, 1, b"wait\n"), assign(3, 2, b"last\n")]).await;
    link.running(2).await;
    worker.cut();
    drop(link);

    let mut link = worker.link().await;
    assert_eq!(link.hello.incarnation, incarnation);
    let held: Vec<_> = link.held.iter().map(|held| (held.attempt.0, held.state)).collect();
    assert_eq!(held, [(1, HeldState::Finished), (2, HeldState::Running), (3, HeldState::Queued)]);
    let grant = Order::OutputGrant(OutputGrant { total: 1 << 20, urgent: None });
    link.send(vec![grant, assign(1, 0, b"first\n"), assign(3, 2, b"last\n")]).await;
    assert_eq!(link.done(1).await.0, b"first\n");
    std::fs::write(&open, "").unwrap();
    assert_eq!(link.done(2).await.0, b"wait\n");
    assert_eq!(link.done(3).await.0, b"last\n");
    let all = [1, 2, 3].map(AttemptId).to_vec();
    link.send(vec![Order::Accepted(all), Order::Ping(1)]).await;
    link.until(|report| (report == Report::Pong(1)).then_some(())).await;
    drop(link);
    assert_eq!(worker.link().await.held, []);
}

#[tokio::test]
async fn only_a_goodbye_ends_a_session_not_the_end_of_its_stream() {
    let worker = WorkerProcess::start(&["--slots", "1"]);
    let mut link = worker.link().await;
    link.open_job(shell("echo $1")).await;
    assert_eq!(link.run(1, b"first\n").await.0, b"first\n");
    // The connection stands; the stream is reset, as by a coordinator that got a broken message.
    drop(link);
    let mut link = worker.link().await;
    assert_eq!(link.held.iter().map(|held| held.attempt.0).collect::<Vec<_>>(), [1]);
    link.send(vec![Order::Goodbye]).await;
    while link.next().await.is_ok() {}
    assert_eq!(worker.link().await.held, []);
}

#[tokio::test]
async fn a_session_that_takes_long_to_end_does_not_take_its_successor_along() {
    let worker = WorkerProcess::start(&["--slots", "2"]);
    let mut former = worker.link().await;
    former.open_job(shell("trap '' TERM; sleep 60")).await;
    former.send(vec![assign(1, 0, b"x\n")]).await;
    former.running(1).await;
    // What it runs has its grace, of two seconds.
    former.send(vec![Order::Goodbye]).await;
    while former.next().await.is_ok() {}
    let mut next = worker.link().await;
    assert_eq!(next.held, []);
    next.open_job(shell("sleep 3; echo $1")).await;
    assert_eq!(next.run(1, b"mine\n").await.0, b"mine\n");
}

#[tokio::test]
async fn a_lease_that_ends_ends_what_it_held() {
    let worker = WorkerProcess::start(&["--slots", "1"]);
    let brief = CoordinatorHello { linger_ms: 2_100, ..hello(1, 1) };
    let mut link = Link::open(worker.channel().await, brief).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let pid = directory.path().join("pid");
    link.open_job(shell(&format!("echo $$ > {}; exec sleep 60", pid.display()))).await;
    link.send(vec![assign(1, 0, b"x\n")]).await;
    let started = || std::fs::read_to_string(&pid).ok()?.trim().parse().ok();
    eventually("the item runs", || started().is_some()).await;
    worker.cut();
    drop(link);
    eventually("the item is ended", || !started().is_some_and(crate::support::lives)).await;
    assert_eq!(worker.link().await.held, []);
}

#[tokio::test]
async fn a_lower_epoch_is_refused_and_a_higher_one_takes_over_what_is_there() {
    let worker = WorkerProcess::start(&["--slots", "1"]);
    let mut former = Link::open(worker.channel().await, hello(1, 2)).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let gate = directory.path().join("gate");
    let waits = format!("until [ -e {} ]; do sleep 0.01; done; echo $1", gate.display());
    former.open_job(shell(&waits)).await;
    former.send(vec![assign(1, 5, b"x\n")]).await;
    former.running(1).await;
    let refused = Link::open(worker.channel().await, hello(1, 1)).await.err().expect("refused");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("e2 has been here"), "{}", refused.message());
    let mut next = Link::open(worker.channel().await, hello(1, 3)).await.unwrap();
    let held = HeldAttempt {
        attempt: AttemptId(1),
        job: JOB,
        range: ItemRange::new(5, 1),
        input_offset: 0,
        input_length: 2,
        state: HeldState::Running,
        input_bytes: 2,
    };
    assert_eq!(next.held, [held]);
    std::fs::write(&gate, "").unwrap();
    next.send(vec![Order::OutputGrant(OutputGrant { total: u64::MAX, urgent: None })]).await;
    assert_eq!(next.done(1).await.0, b"x\n");
    // What the later epoch has no use for it gives up.
    next.send(vec![Order::Accepted(vec![AttemptId(1)]), Order::CloseJob(JOB)]).await;
    next.open_job(shell("echo $1 again")).await;
    assert_eq!(next.run(1 << 40, b"mine\n").await.0, b"mine again\n");
}

#[tokio::test]
async fn two_coordinators_share_the_slots() {
    let worker = WorkerProcess::start(&["--slots", "4"]);
    let mut first = worker.link().await;
    assert_eq!(first.credit.slots, 4);
    let second = Link::open(worker.channel().await, hello(2, 1)).await.unwrap();
    assert_eq!(second.credit.slots, 2);
    let credit = |report| match report {
        Report::Credit(Credit { slots, .. }) => Some(slots),
        _ => None,
    };
    assert_eq!(first.until(credit).await, 2);
    second.send(vec![Order::Demand(0)]).await;
    assert_eq!(first.until(credit).await, 4);
}

#[tokio::test]
async fn a_drain_gives_back_what_waits_and_finishes_what_runs() {
    let mut worker = WorkerProcess::start(&["--slots", "1"]);
    let mut link = worker.link().await;
    link.open_job(shell("sleep 0.3; echo $1")).await;
    link.send(vec![assign(1, 0, b"a\n"), assign(2, 1, b"b\n")]).await;
    link.running(1).await;
    worker.signal(Signal::TERM);
    let draining = |report| match report {
        Report::Draining(deadline_ms) => Some(deadline_ms),
        _ => None,
    };
    assert!(link.until(draining).await > 20_000);
    assert_eq!(link.next().await.unwrap(), Report::Credit(Credit { slots: 0, queue: 0 }));
    assert_eq!(link.next().await.unwrap(), Report::Revoked(AttemptId(2)));
    assert_eq!(link.done(1).await.0, b"a\n");
    link.send(vec![Order::Accepted(vec![AttemptId(1)])]).await;
    assert!(link.next().await.is_err(), "the stream has ended");
    let status = tokio::task::spawn_blocking(move || worker.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_and_a_second_signal_at_once() {
    for (timeout, signals, code) in [("50ms", 1, 0), ("60s", 2, 143)] {
        let mut worker = WorkerProcess::start(&["--slots", "1", "--drain-timeout", timeout]);
        let mut link = worker.link().await;
        link.open_job(shell("sleep 60")).await;
        link.send(vec![assign(1, 0, b"a\n")]).await;
        link.running(1).await;
        worker.signal(Signal::TERM);
        if signals == 2 {
            let draining = |report| matches!(report, Report::Draining(_)).then_some(());
            link.until(draining).await;
            worker.signal(Signal::TERM);
        }
        let ended = tokio::task::spawn_blocking(move || worker.wait());
        let status = tokio::time::timeout(PATIENCE, ended).await.expect("in time").unwrap();
        assert_eq!(status.code(), Some(code));
    }
}

#[tokio::test]
async fn an_idle_worker_ends_by_itself() {
    let mut worker = WorkerProcess::start(&["--idle-timeout", "100ms"]);
    let ended = tokio::task::spawn_blocking(move || worker.wait());
    let status = tokio::time::timeout(PATIENCE, ended).await.expect("in time").unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_worker_whose_spawner_has_died_ends() {
    let mut worker = WorkerProcess::start(&["--slots", "1"]);
    let mut link = worker.link().await;
    // Brief, since nobody is left to end it.
    link.open_job(shell("sleep 3")).await;
    link.send(vec![assign(1, 0, b"a\n")]).await;
    link.running(1).await;
    let children = format!("/proc/{0}/task/{0}/children", worker.pid());
    let spawner = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let spawner = rustix::process::Pid::from_raw(spawner).unwrap();
    rustix::process::kill_process(spawner, Signal::KILL).unwrap();
    let ended = tokio::task::spawn_blocking(move || worker.wait());
    let status = tokio::time::timeout(PATIENCE, ended).await.expect("in time").unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_signal_is_heard_as_soon_as_it_is_said_where_a_worker_listens() {
    for _ in 0..20 {
        let mut worker = WorkerProcess::start(&["--slots", "1"]);
        worker.signal(Signal::TERM);
        assert_eq!(worker.wait().code(), Some(0), "it drains");
    }
}
