//! Real gRPC over loopback, before what is kept in a temporary directory and a driver that does what the
//! test says.

mod collecting;
mod early;
mod looking;
mod submitting;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use widemap_common::artifact::JobFiles;
use widemap_common::framing::LINES;
use widemap_common::ids::JobId;
use widemap_common::spec::{Directory, Function, JobSpec};
use widemap_common::time::Timers;
use widemap_proto::jobs::{Blocks, Halt, OutputForm, Policy, Stops, Submission, Submitted};

use crate::client::Coordinator;
use crate::data::Artifacts;
use crate::data::Source;
use crate::service::fake::{FakeLedger, FakeShelf};
use crate::service::{Desk, DeskLimits, Registry, Request};

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);

/// A coordinator that serves, and its users' way to it.
struct Served {
    address: SocketAddr,
    ledger: Arc<FakeLedger>,
    registry: Arc<Registry>,
    requests: mpsc::Receiver<Request>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Served {
    async fn start() -> Self {
        Self::with(DeskLimits::default()).await
    }

    async fn with(limits: DeskLimits) -> Self {
        let (ledger, registry) = (Arc::new(FakeLedger::new()), Arc::new(Registry::default()));
        let (desk, requests) = Desk::new(registry.clone(), ledger.clone(), limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let stop = shutdown.clone();
        tasks.spawn(async move {
            super::serve(desk, listener, None, &Timers::default(), stop).await.unwrap();
        });
        Self { address, ledger, registry, requests, shutdown, tasks }
    }

    fn user(&self) -> Coordinator {
        Coordinator::on_loopback(self.address)
    }

    async fn submit(&self, items: &[&str]) -> Submitted {
        self.user().submit(submission(), list(items), Artifacts::default()).await.unwrap()
    }

    fn shelf(&self, job: JobId) -> Arc<FakeShelf> {
        self.ledger.shelf(job)
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        self.tasks.join_next().await.unwrap().unwrap();
    }
}

fn list(items: &[&str]) -> Source {
    Source::Items(items.iter().map(|item| item.as_bytes().to_vec()).collect())
}

fn submission() -> Submission {
    Submission {
        name: "night".to_owned(),
        submit_key: None,
        spec: JobSpec {
            function: Function::Builtin { name: "identity".to_owned() },
            framing: LINES,
            directory: Directory::Private,
            environment: Vec::new(),
            files: JobFiles::default(),
            timeout: None,
            max_output: 1,
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
            require: [("gpu".to_owned(), "yes".to_owned())].into(),
            stops: Stops { halt: Some(Halt { failures: 2, now: true }), canary: 3 },
        },
        output: OutputForm {
            json: false,
            unordered: false,
            separator: b'\n',
            fill: Some(b"-".to_vec()),
            tag: false,
            records: false,
            frames: false,
        },
        submitter: "ann@lab".to_owned(),
        submitted_ms: 7,
        begins_at_once: false,
        early_key: None,
    }
}

fn keyed(key: &str) -> Submission {
    Submission { submit_key: Some(key.to_owned()), ..submission() }
}

/// Waits until something is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A wire that can be cut.
struct Wire {
    address: SocketAddr,
    /// What is connected now.
    connected: Arc<std::sync::Mutex<CancellationToken>>,
    _tasks: JoinSet<()>,
}

impl Wire {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connected = Arc::new(std::sync::Mutex::new(CancellationToken::new()));
        let (now, mut tasks) = (connected.clone(), JoinSet::new());
        tasks.spawn(async move {
            let mut carried = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let cut = now.lock().unwrap().clone();
                carried.spawn(async move {
                    let mut far = TcpStream::connect(server).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = cut.cancelled() => {}
                    }
                });
            }
        });
        Self { address, connected, _tasks: tasks }
    }

    fn cut(&self) {
        std::mem::take(&mut *self.connected.lock().unwrap()).cancel();
    }

    fn user(&self) -> Coordinator {
        Coordinator::on_loopback(self.address)
    }
}
