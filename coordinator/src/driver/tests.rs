//! A whole map over a simulated network: the real driver, links and workers with real gRPC between
//! them, while what they send is delayed, reordered, held up and lost. Time is simulated, the slots'
//! threads are real: what an item does is to wait until the test lets it go on.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use turmoil::net::{TcpListener, TcpStream};
use widemap_common::framing::LINES;
use widemap_common::limits;
use widemap_common::spec::{Directory, Function, JobSpec, Runtime};
use widemap_common::time::Timers;
use widemap_sched::event::JobPolicy;
use widemap_worker::{Registry, Worker, WorkerConfig};

use super::plan::{Outcome, Plan, Results};
use crate::cli::Wait;
use crate::data::{BlockRule, Source};
use crate::places;

const PORT: u16 = 7433;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What a step of the simulation is long.
const TICK: Duration = MS;

/// What slots' threads get to do their part of a step.
const TURN: Duration = Duration::from_micros(20);

/// The timers of design §5, a fifth of them, so that a run takes few steps.
fn timers() -> Timers {
    Timers {
        heartbeat_ms: 200,
        keepalive_ms: 2_000,
        keepalive_timeout_ms: 1_000,
        lease_ms: 4_000,
        lease_margin_ms: 400,
        ..Timers::default()
    }
}

/// What the items of a run did, and whether they may end.
#[derive(Default)]
struct Witness {
    open: AtomicBool,
    runs: AtomicU32,
    /// Items that run at this moment, and how often the same one ran in two places.
    running: Mutex<BTreeMap<u64, u32>>,
    overlaps: AtomicU32,
}

impl Witness {
    fn runs(&self) -> u32 {
        self.runs.load(Ordering::SeqCst)
    }

    fn running_now(&self) -> u32 {
        self.running.lock().unwrap().values().sum()
    }

    fn enter(&self, item: u64) {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let mut running = self.running.lock().unwrap();
        let here = running.entry(item).or_default();
        *here += 1;
        if *here > 1 {
            self.overlaps.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn leave(&self, item: u64) {
        let mut running = self.running.lock().unwrap();
        *running.get_mut(&item).expect("it was entered") -= 1;
    }
}

/// The functions of a simulated worker: `gated` gives each item back once the gate is open.
fn registry(witness: &Arc<Witness>) -> Registry {
    let witness = Arc::clone(witness);
    Registry::stock().function(
        "gated",
        move |item: &[u8],
              output: &mut widemap_worker::Output,
              context: &widemap_worker::Context| {
            witness.enter(context.sequence());
            while !witness.open.load(Ordering::SeqCst) && !context.is_cancelled() {
                std::thread::park_timeout(TURN);
            }
            witness.leave(context.sequence());
            output.extend_from_slice(item);
            Ok(())
        },
    )
}

/// A simulated connection, as tonic's server wants it.
struct Connection(TcpStream);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

async fn serve(name: String, slots: u32, witness: Arc<Witness>) -> turmoil::Result {
    let config = WorkerConfig { name, slots, timers: timers(), ..WorkerConfig::default() };
    let worker = Worker::functions_only(config, registry(&witness));
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    let (sender, connections) = tokio::sync::mpsc::channel(1);
    let accepting = async {
        loop {
            let accepted = listener.accept().await.map(|(stream, _)| Connection(stream));
            if sender.send(accepted).await.is_err() {
                return;
            }
        }
    };
    let incoming = tokio_stream::wrappers::ReceiverStream::new(connections);
    tokio::select! {
        served = worker.serve_incoming(incoming, CancellationToken::new()) => Ok(served?),
        () = accepting => Ok(()),
    }
}

/// A map over hosts of a simulated network.
struct Cluster<'a> {
    sim: turmoil::Sim<'a>,
    witness: Arc<Witness>,
    outcome: Arc<Mutex<Option<Outcome>>>,
    directory: tempfile::TempDir,
    items: u32,
    hosts: &'static [&'static str],
}

impl Cluster<'_> {
    /// Workers of these names with two slots each, and a map of `items` through `function`.
    fn start(hosts: &'static [&'static str], items: u32, function: &str, latest: Duration) -> Self {
        let mut sim = turmoil::Builder::new()
            .tick_duration(TICK)
            .simulation_duration(600 * SECOND)
            .min_message_latency(Duration::ZERO)
            .max_message_latency(latest)
            .tcp_capacity(1 << 16)
            .enable_tokio_io()
            .rng_seed(7)
            .build();
        let witness = Arc::new(Witness::default());
        for &host in hosts {
            let witness = Arc::clone(&witness);
            sim.host(host, move || serve(host.to_owned(), 2, Arc::clone(&witness)));
        }
        let directory = tempfile::tempdir().expect("a directory can be made");
        let plan = plan(hosts, items, function, directory.path());
        let outcome = Arc::new(Mutex::new(None));
        let told = Arc::clone(&outcome);
        sim.client("coordinator", async move {
            *told.lock().unwrap() = Some(super::drive(plan, None).await?);
            Ok(())
        });
        Self { sim, witness, outcome, directory, items, hosts }
    }

    /// One tick; whether the map has ended.
    fn step(&mut self) -> bool {
        std::thread::park_timeout(TURN);
        self.sim.step().expect("nothing fails in the simulation")
    }

    fn pass(&mut self, time: Duration) {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            self.step();
        }
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Witness) -> bool) {
        for _ in 0..600_000 {
            if holds(&self.witness) {
                return;
            }
            self.step();
        }
        panic!("{what}: still not at {:?}, {} runs", self.sim.elapsed(), self.witness.runs());
    }

    /// Lets items end, and the map with them; what came of it.
    fn end(mut self) -> (Outcome, u32, u32) {
        self.witness.open.store(true, Ordering::SeqCst);
        while !self.step() {}
        let outcome = self.outcome.lock().unwrap().take().expect("the map has ended");
        let output = std::fs::read_to_string(self.directory.path().join("out"));
        let want: String = (1..=self.items).map(|item| format!("{item}\n")).collect();
        assert_eq!(output.expect("the output is in its place"), want);
        assert_eq!(outcome.counts.ok, u64::from(self.items));
        assert!(outcome.error.is_none(), "{:?}", outcome.error);
        (outcome, self.witness.runs(), self.witness.overlaps.load(Ordering::SeqCst))
    }

    fn cut_all(&self) {
        self.hosts.iter().for_each(|&host| self.sim.partition("coordinator", host));
    }

    fn mend_all(&self) {
        self.hosts.iter().for_each(|&host| self.sim.repair("coordinator", host));
    }
}

fn plan(hosts: &[&str], items: u32, function: &str, directory: &Path) -> Plan {
    let addresses = hosts.iter().map(|host| format!("{host}:{PORT}")).collect();
    Plan {
        spec: JobSpec {
            function: Function::Builtin { name: function.to_owned() },
            framing: LINES,
            directory: Directory::Private,
            environment: Vec::new(),
            timeout: None,
            max_output: limits::MAX_OUTPUT_BYTES,
            per_item: false,
        },
        policy: JobPolicy {
            runtime: Runtime::Builtin,
            require: BTreeMap::new(),
            retries: 1,
            crash_limit: 3,
            chunk_items: Some(1),
            chunk_target: 20 * MS,
            weight: 1,
            priority: 0,
            speculate: false,
        },
        source: Source::Items((1..=items).map(|item| item.to_string().into_bytes()).collect()),
        blocks: BlockRule::ItemWise,
        sources: vec![places::Source::Fixed { name: "test".to_owned(), addresses }],
        local: None,
        slots_max: None,
        wait: Wait::For(300 * SECOND),
        timers: timers(),
        results: Results {
            output: Some(directory.join("out")),
            json: false,
            separator: b'\n',
            unordered: false,
            failures: Some(directory.join("failures")),
            receipt: None,
        },
        quiet: true,
        progress: false,
        private: true,
        reorder_bytes_max: limits::REORDER_BYTES_MAX,
        spill_bytes_max: limits::SPILL_BYTES_MAX,
        inflight_bytes_max: limits::INFLIGHT_BYTES_MAX,
    }
}

#[test]
fn delays_and_reordering_change_nothing() {
    let cluster = Cluster::start(&["ann", "bob"], 300, "identity", 100 * MS);
    cluster.end();
}

#[test]
fn a_partition_within_the_lease_runs_nothing_again() {
    let mut cluster = Cluster::start(&["ann", "bob"], 40, "gated", 2 * MS);
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
    let mut cluster = Cluster::start(&["ann", "bob"], 12, "gated", 2 * MS);
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
        let mut cluster = Cluster::start(&["ann"], 12, "gated", 2 * MS);
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
    let mut cluster = Cluster::start(&["ann", "bob"], 12, "gated", 2 * MS);
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
    let mut cluster = Cluster::start(&["ann", "bob"], 40, "gated", 2 * MS);
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
    let mut cluster = Cluster::start(&["ann", "bob", "cid"], 400, "gated", 20 * MS);
    cluster.witness.open.store(true, Ordering::SeqCst);
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..12 {
        let host = cluster.hosts[rng.usize(..cluster.hosts.len())];
        cluster.sim.partition("coordinator", host);
        cluster.pass(rng.u32(50..3_000) * MS);
        cluster.sim.repair("coordinator", host);
        cluster.pass(rng.u32(10..500) * MS);
    }
    cluster.end();
}
