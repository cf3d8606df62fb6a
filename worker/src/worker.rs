//! A worker as a value: configured, then served over a listener or one stream.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::Stream as Incoming;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use widemap_cluster::Identity;
use widemap_cluster::record::Announcement;
use widemap_common::ids::Incarnation;
use widemap_common::limits::{FILE_CACHE_BYTES, SLOTS_MAX};
use widemap_common::spec::Runtime;
use widemap_common::time::Timers;
use widemap_door::{Door, Host as DoorHost};
use widemap_proto::VERSION;
use widemap_proto::session::WorkerHello;

use crate::artifacts::ArtifactCache;
use crate::function::Registry;
use crate::job::Host;
use crate::memory::MemoryWatch;
use crate::runtime::{WASM_IS_BUILT, WasmModules};
use crate::server;
use crate::session::Hub;
use crate::slots::Slots;
use crate::spawner::Spawner;

/// How long connections may take to close once the worker has ended.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// What a worker is and allows.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its name, for people.
    pub name: String,
    /// Attempts that run at a time.
    pub slots: u32,
    /// Labels that jobs can require.
    pub labels: BTreeMap<String, String>,
    /// The runtimes that it allows.
    pub runtimes: Vec<Runtime>,
    /// The timers of its sessions.
    pub timers: Timers,
    /// How long what runs may go on when the worker is told to end.
    pub drain_timeout: Duration,
    /// Bytes of files of jobs that are kept on disk for the next job.
    pub file_cache_bytes: u64,
    /// Bytes of memory that are to be available while work is taken; nothing is 256 MiB, or a tenth of all
    /// if that is less, and 0 is never to look. An embedded worker never does.
    pub min_memory: Option<u64>,
    /// The worker ends by itself after so long without an attempt.
    pub idle_timeout: Option<Duration>,
    /// Whether it serves gRPC reflection.
    pub reflection: bool,
    /// What it proves itself with, and whom it serves; without one, whoever reaches it.
    pub identity: Option<Arc<Identity>>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            name: "worker".to_owned(),
            slots: 1,
            labels: BTreeMap::new(),
            runtimes: Runtime::ALL.to_vec(),
            timers: Timers::default(),
            drain_timeout: Duration::ZERO,
            file_cache_bytes: FILE_CACHE_BYTES,
            min_memory: None,
            idle_timeout: None,
            reflection: false,
            identity: None,
        }
    }
}

/// Why a worker ended in bad order.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its slots could not be made.
    #[error("cannot make the slots: {0}")]
    Slots(#[source] io::Error),
    /// Files of jobs cannot be kept.
    #[error("cannot make a directory for files of jobs: {0}")]
    Files(#[source] io::Error),
    /// Its certificate cannot be used.
    #[error("cannot use the certificate: {0}")]
    Identity(#[source] io::Error),
    /// Reflection could not be set up.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The server ended by itself.
    #[error("the server ended: {0}")]
    Server(#[source] tonic::transport::Error),
    /// A session's task panicked.
    #[error(transparent)]
    Session(Box<dyn std::error::Error + Send + Sync>),
    /// A slot or the spawner died.
    #[error("the worker cannot go on: {0}")]
    Fatal(String),
}

/// A worker that has not been served yet.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    registry: Registry,
    spawner: Option<Spawner>,
    embedded: bool,
    incarnation: Incarnation,
}

impl Worker {
    /// A worker of its own process.
    #[must_use]
    pub fn new(config: WorkerConfig, registry: Registry, spawner: Spawner) -> Self {
        Self::build(config, registry, Some(spawner), false)
    }

    /// A worker inside a coordinator: its processes may work in the directory and environment of
    /// this one, and what it holds ends with its stream.
    #[must_use]
    pub fn embedded(config: WorkerConfig, registry: Registry, spawner: Spawner) -> Self {
        Self::build(config, registry, Some(spawner), true)
    }

    /// A worker that runs registered functions and no commands, so that it needs no spawner.
    #[must_use]
    pub fn functions_only(config: WorkerConfig, registry: Registry) -> Self {
        Self::build(config, registry, None, false)
    }

    fn build(
        mut config: WorkerConfig,
        registry: Registry,
        spawner: Option<Spawner>,
        embedded: bool,
    ) -> Self {
        config.slots = config.slots.clamp(1, SLOTS_MAX);
        if let Some(spawner) = &spawner {
            config.slots = config.slots.min(spawner.slots());
        }
        Self { config, registry, spawner, embedded, incarnation: Incarnation(fastrand::u64(..)) }
    }

    /// What is told of it to whoever looks for workers.
    #[must_use]
    pub fn announcement(&self) -> Announcement {
        Announcement {
            name: self.config.name.clone(),
            protocol: (VERSION.major, VERSION.minor),
            incarnation: self.incarnation,
            slots: self.config.slots,
            cluster: self.config.identity.as_ref().and_then(|identity| identity.cluster()),
        }
    }

    /// Serves coordinators that connect to `listener`. When `shutdown` is cancelled the worker
    /// drains, and this ends.
    ///
    /// # Errors
    /// [`WorkerError`] if the worker cannot go on.
    pub async fn serve_listener(
        self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), WorkerError> {
        let door = Door::new(DoorHost::Worker, self.config.identity.clone(), &self.config.timers)
            .map_err(WorkerError::Identity)?;
        let (sender, connections) = mpsc::channel(1);
        let serving = self.serve_incoming(ReceiverStream::new(connections), shutdown);
        let accepting = async {
            door.keep(listener, sender).await;
            std::future::pending().await
        };
        tokio::select! {
            served = serving => served,
            never = accepting => never,
        }
    }

    /// Serves one coordinator at the other end of `stream`, until `shutdown` is cancelled.
    ///
    /// # Errors
    /// [`WorkerError`] if the worker cannot go on.
    pub async fn serve_stream(
        self,
        stream: UnixStream,
        shutdown: CancellationToken,
    ) -> Result<(), WorkerError> {
        self.serve_incoming(server::only(stream), shutdown).await
    }

    /// Serves coordinators over connections of any kind, which the caller accepts and bounds. When
    /// `shutdown` is cancelled the worker drains, and this ends.
    ///
    /// # Errors
    /// [`WorkerError`] if the worker cannot go on.
    pub async fn serve_incoming<S, C>(
        self,
        incoming: S,
        shutdown: CancellationToken,
    ) -> Result<(), WorkerError>
    where
        S: Incoming<Item = io::Result<C>>,
        C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let (streams, waiting) = mpsc::channel(server::STREAMS_WAITING);
        let roles_required = self.config.identity.is_some();
        let (timers, reflection) = (self.config.timers, self.config.reflection);
        let (slots, hub) = self.start()?;
        let artifacts = hub.host.artifacts.clone();
        let router = server::build(streams, artifacts, &timers, reflection, roles_required)
            .await
            .map_err(WorkerError::Reflection)?;
        let stop = CancellationToken::new();
        let mut serving =
            pin!(router.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
        let running = hub.run(waiting, shutdown);
        let mut server_ended = false;
        let ended = tokio::select! {
            ended = running => ended.map_err(|panic| WorkerError::Session(Box::new(panic))),
            Err(error) = end_of(serving.as_mut(), &mut server_ended) => {
                Err(WorkerError::Server(error))
            }
            () = slots.failed() => Err(WorkerError::Fatal(slots.fatal())),
        };
        stop.cancel();
        if !server_ended {
            // A connection that does not close by itself is closed by the end of the process.
            let _ = tokio::time::timeout(CLOSE_PATIENCE, serving).await;
        }
        ended
    }

    /// Makes the slots, and what serves sessions with them.
    fn start(self) -> Result<(Arc<Slots>, Hub), WorkerError> {
        let Self { config, registry, spawner, embedded, incarnation } = self;
        let slot_count = config.slots;
        let mut runtimes = config.runtimes;
        if spawner.is_none() {
            runtimes.retain(|runtime| *runtime == Runtime::Builtin);
        }
        if !WASM_IS_BUILT {
            runtimes.retain(|runtime| *runtime != Runtime::Wasm);
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let files = spawner.as_ref().map(Spawner::files);
        let run_as = spawner.as_ref().and_then(Spawner::run_as);
        let artifacts = spawner.as_ref().map(|spawner| {
            let place = spawner.artifacts().map_err(WorkerError::Files)?;
            Ok(Arc::new(ArtifactCache::new(place, config.file_cache_bytes)))
        });
        let artifacts = artifacts.transpose()?;
        let slots = Slots::new(slot_count, config.timers, spawner).map_err(WorkerError::Slots)?;
        let slots = Arc::new(slots);
        let greeting = WorkerHello {
            version: VERSION,
            build: format!("widemap-worker {}", env!("CARGO_PKG_VERSION")),
            name: config.name.clone(),
            incarnation,
            slots: slot_count,
            runtimes: runtimes.clone(),
            labels: config.labels,
            functions: registry.names().map(str::to_owned).collect(),
            left_out: None,
            clock_ms: None,
        };
        let host = Host {
            name: config.name,
            runtimes,
            registry,
            embedded,
            files,
            artifacts,
            run_as,
            wasm: Arc::new(WasmModules::new()),
            threads_per_slot: (cores / slot_count as usize).max(1),
        };
        let hub = Hub {
            slots: slots.clone(),
            host: Arc::new(host),
            greeting,
            timers: config.timers,
            drain_timeout: config.drain_timeout,
            idle_timeout: config.idle_timeout,
            returns: !embedded,
            // Where this is the only worker nobody else could take the work.
            memory: if embedded { None } else { MemoryWatch::new(config.min_memory) },
        };
        Ok((slots, hub))
    }
}

/// The end of the server, if it is an error; an embedded worker's server accepts one connection and
/// may be done with it before the worker is.
async fn end_of(
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    ended: &mut bool,
) -> Result<(), tonic::transport::Error> {
    let result = serving.await;
    *ended = true;
    result
}
