//! Hosts of a simulated network with workers, and a map over them. Time is simulated, the slots'
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
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use turmoil::net::{TcpListener, TcpStream};
use widemap_common::artifact::JobFiles;
use widemap_common::framing::LINES;
use widemap_common::limits;
use widemap_common::spec::{Directory, Function, JobSpec, Runtime};
use widemap_common::time::Timers;
use widemap_proto::jobs::{OutputForm, Stops};
use widemap_sched::event::JobPolicy;
use widemap_worker::{Registry, Worker, WorkerConfig};

use super::middleman::{self, Mischief};
use crate::cli::Wait;
use crate::data::{Artifacts, BlockRule, Source};
use crate::driver::drive;
use crate::driver::plan::{Outcome, Plan, Results};
use crate::places;

pub(super) const PORT: u16 = 7433;

/// What a step of the simulation is long.
const TICK: Duration = Duration::from_millis(1);

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
pub(super) struct Witness {
    pub(super) open: AtomicBool,
    /// Streams that a middleman has passed on.
    pub(super) streams: AtomicU32,
    runs: AtomicU32,
    /// Items that run at this moment, and how often the same one ran in two places.
    running: Mutex<BTreeMap<u64, u32>>,
    overlaps: AtomicU32,
}

impl Witness {
    pub(super) fn runs(&self) -> u32 {
        self.runs.load(Ordering::SeqCst)
    }

    pub(super) fn running_now(&self) -> u32 {
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
pub(super) struct Connection {
    stream: TcpStream,
    /// Nothing more is read from it.
    ended: Arc<AtomicBool>,
}

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
        if self.ended.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

async fn serve(name: String, slots: u32, witness: Arc<Witness>) -> turmoil::Result {
    let config = WorkerConfig { name, slots, timers: timers(), ..WorkerConfig::default() };
    let worker = Worker::functions_only(config, registry(&witness));
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    let (incoming, accepting) = connections(&listener, Arc::default());
    tokio::select! {
        served = worker.serve_incoming(incoming, CancellationToken::new()) => Ok(served?),
        () = accepting => Ok(()),
    }
}

/// The connections of a listener, and what accepts them until nobody takes them any more. They end
/// once `ended` is set and something arrives.
pub(super) fn connections(
    listener: &TcpListener,
    ended: Arc<AtomicBool>,
) -> (ReceiverStream<std::io::Result<Connection>>, impl Future<Output = ()>) {
    let (sender, connections) = tokio::sync::mpsc::channel(1);
    let accepting = async move {
        loop {
            let accepted = listener.accept().await;
            let ended = Arc::clone(&ended);
            let accepted = accepted.map(|(stream, _)| Connection { stream, ended });
            if sender.send(accepted).await.is_err() {
                return;
            }
        }
    };
    (ReceiverStream::new(connections), accepting)
}

/// A map to be started.
#[derive(Clone, Copy)]
pub(super) struct Draft {
    pub(super) workers: &'static [&'static str],
    pub(super) items: u32,
    pub(super) function: &'static str,
    pub(super) retries: u32,
    /// The longest that a message is on its way.
    pub(super) latest: Duration,
    /// The coordinator speaks to the only worker through a middleman.
    pub(super) mischief: Option<Mischief>,
}

/// A map over hosts of a simulated network.
pub(super) struct Cluster<'a> {
    pub(super) sim: turmoil::Sim<'a>,
    pub(super) witness: Arc<Witness>,
    outcome: Arc<Mutex<Option<Outcome>>>,
    directory: tempfile::TempDir,
    draft: Draft,
}

impl Draft {
    /// Items that wait for the gate, on workers of these names with two slots each.
    pub(super) fn gated(workers: &'static [&'static str], items: u32) -> Self {
        let (function, latest) = ("gated", Duration::from_millis(2));
        Self { workers, items, function, retries: 1, latest, mischief: None }
    }

    pub(super) fn start<'a>(self) -> Cluster<'a> {
        let mut sim = turmoil::Builder::new()
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(600))
            .min_message_latency(Duration::ZERO)
            .max_message_latency(self.latest)
            .tcp_capacity(1 << 16)
            .enable_tokio_io()
            .rng_seed(7)
            .build();
        let witness = Arc::new(Witness::default());
        for &host in self.workers {
            let witness = Arc::clone(&witness);
            sim.host(host, move || serve(host.to_owned(), 2, Arc::clone(&witness)));
        }
        let mut places = self.workers;
        if let Some(mischief) = self.mischief {
            let upstream = self.workers[0];
            let witness = Arc::clone(&witness);
            sim.host("middleman", move || {
                middleman::serve(upstream, mischief, Arc::clone(&witness))
            });
            places = &["middleman"];
        }
        let directory = tempfile::tempdir().expect("a directory can be made");
        let plan = plan(self, places, directory.path());
        let outcome = Arc::new(Mutex::new(None));
        let told = Arc::clone(&outcome);
        sim.client("coordinator", async move {
            *told.lock().unwrap() = Some(drive(plan, None).await?);
            Ok(())
        });
        Cluster { sim, witness, outcome, directory, draft: self }
    }
}

impl Cluster<'_> {
    /// One tick; whether the map has ended.
    pub(super) fn step(&mut self) -> bool {
        std::thread::park_timeout(TURN);
        self.sim.step().expect("nothing fails in the simulation")
    }

    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            self.step();
        }
    }

    pub(super) fn until(&mut self, what: &str, holds: impl Fn(&Witness) -> bool) {
        for _ in 0..600_000 {
            if holds(&self.witness) {
                return;
            }
            self.step();
        }
        panic!("{what}: still not at {:?}, {} runs", self.sim.elapsed(), self.witness.runs());
    }

    /// Lets items end, and the map with them; what came of it.
    pub(super) fn end(mut self) -> (Outcome, u32, u32) {
        self.witness.open.store(true, Ordering::SeqCst);
        while !self.step() {}
        let outcome = self.outcome.lock().unwrap().take().expect("the map has ended");
        let output = std::fs::read_to_string(self.directory.path().join("out"));
        let failed: Vec<_> = outcome.failures.iter().map(|failure| failure.item.clone()).collect();
        let shown = |item: &u32| format!("item {item} `{item}`");
        let good = (1..=self.draft.items).filter(|item| !failed.contains(&shown(item)));
        let want: String = good.map(|item| format!("{item}\n")).collect();
        assert_eq!(output.expect("the output is in its place"), want);
        assert_eq!(outcome.counts.ok + outcome.counts.failed, u64::from(self.draft.items));
        assert!(outcome.error.is_none(), "{:?}", outcome.error);
        (outcome, self.witness.runs(), self.witness.overlaps.load(Ordering::SeqCst))
    }

    pub(super) fn cut_all(&self) {
        self.draft.workers.iter().for_each(|&host| self.sim.partition("coordinator", host));
    }

    pub(super) fn mend_all(&self) {
        self.draft.workers.iter().for_each(|&host| self.sim.repair("coordinator", host));
    }
}

fn plan(draft: Draft, places: &[&str], directory: &Path) -> Plan {
    let Draft { items, function, retries, .. } = draft;
    let addresses = places.iter().map(|host| format!("{host}:{PORT}")).collect();
    Plan {
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
        policy: JobPolicy {
            runtime: Runtime::Builtin,
            slots_per_item: std::num::NonZeroU32::MIN,
            require: BTreeMap::new(),
            retries,
            crash_limit: 3,
            chunk_items: Some(1),
            chunk_target: Duration::from_millis(20),
            weight: 1,
            priority: 0,
            speculate: false,
        },
        source: Source::Items((1..=items).map(|item| item.to_string().into_bytes()).collect()),
        blocks: BlockRule::ItemWise,
        sources: vec![Box::new(places::Fixed { name: "test".to_owned(), addresses })],
        trust: crate::session::Trust::default(),
        local: None,
        slots_max: None,
        wait: Wait::For(Duration::from_secs(300)),
        timers: timers(),
        results: Results {
            output: Some(directory.join("out")),
            form: OutputForm {
                json: false,
                unordered: false,
                separator: b'\n',
                fill: None,
                tag: false,
                records: false,
                frames: false,
            },
            recording: None,
            failures: Some(directory.join("failures")),
            receipt: None,
        },
        quiet: true,
        progress: false,
        explain_every: None,
        artifacts: Artifacts::default(),
        private: true,
        stops: Stops::default(),
        journal: None,
        reorder_bytes_max: limits::REORDER_BYTES_MAX,
        spill_bytes_max: limits::SPILL_BYTES_MAX,
        inflight_bytes_max: limits::INFLIGHT_BYTES_MAX,
    }
}
