//! `widemap serve` from its start to its end: the journal, the driver on this thread, and the server of
//! users on threads of its own, so that neither holds up the other.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal as SignalNumber;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use widemap_cluster::Identity;
use widemap_common::time::Timers;

use super::kept::Kept;
use super::{Desk, DeskLimits, Registry};
use crate::driver::{self, ServiceMake};
use crate::embedded::Spawner;
use crate::error::MapError;
use crate::journal::{Disk, Writer};
use crate::operations::{self, Hosts, Operations, Told};
use crate::places::Source;
use crate::session::Trust;
use crate::{api, exit, say};

/// Threads that serve users.
const SERVER_THREADS: usize = 2;

/// How long users may take to be done once the service ends.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// Is told where users are served; what comes back lives as long as the service.
pub(crate) type Begun = Box<dyn FnOnce(SocketAddr) -> Result<Box<dyn Send>, MapError>>;

/// What a service is told.
pub(crate) struct ServeConfig {
    /// Where users are served.
    pub(crate) listen: String,
    /// Where jobs are kept.
    pub(crate) data: PathBuf,
    /// Who this is to users and to workers; nobody, without a key.
    pub(crate) identity: Option<Arc<Identity>>,
    /// Where workers may be.
    pub(crate) sources: Vec<Box<dyn Source>>,
    /// How they are proved.
    pub(crate) trust: Trust,
    /// Slots in this process, and what starts their commands.
    pub(crate) local: Option<(Spawner, u32)>,
    /// At most so many slots of each worker.
    pub(crate) slots_max: Option<u32>,
    /// The timers of the sessions.
    pub(crate) timers: Timers,
    /// How much is taken in.
    pub(crate) limits: DeskLimits,
    /// How long what has ended is kept.
    pub(crate) keep: Option<Duration>,
    /// Where health and metrics are told, if anywhere.
    pub(crate) http: Option<String>,
    /// What is done once users are served: it is told where. What comes back lives as long as the service.
    pub(crate) begun: Begun,
}

/// Runs the service until it is told to end.
///
/// # Errors
/// What kept it from starting, or made it end.
pub(crate) fn run(config: ServeConfig) -> Result<u8, MapError> {
    let server = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SERVER_THREADS)
        .thread_name("users")
        .enable_all()
        .build()
        .map_err(MapError::Start)?;
    let (operations, left) = (Operations::new(), CancellationToken::new());
    // Before the journal is read: that it takes its time is told, too.
    let telling = match &config.http {
        Some(listen) => {
            let listener = server.block_on(tell(listen))?;
            let told = Told { operations: operations.clone(), hosts: Hosts::of(listen) };
            Some(server.spawn(operations::serve(listener, told, left.clone())))
        }
        None => None,
    };
    let progressed = Arc::new(Notify::new());
    let wake = Arc::clone(&progressed);
    let medium = Arc::new(Disk);
    let writer = Writer::start(medium.clone(), move || wake.notify_one(), operations.meter())?;
    let registry = Arc::new(Registry::default());
    let (kept, remarks) = Kept::open(medium, &config.data, writer, &registry)?;
    let kept = Arc::new(kept);
    for remark in remarks {
        say::line(&format!("widemap: WARNING: {remark}"));
    }
    let (desk, requests) = Desk::new(Arc::clone(&registry), kept.ledger(), config.limits);
    let listener = server.block_on(TcpListener::bind(&config.listen));
    let listener =
        listener.map_err(|source| MapError::Listen { address: config.listen.clone(), source })?;
    let address = listener.local_addr().map_err(MapError::Start)?;
    let stop = CancellationToken::new();
    let make = ServiceMake {
        sources: config.sources,
        trust: config.trust,
        local: config.local,
        slots_max: config.slots_max,
        timers: config.timers,
        registry,
        kept,
        requests,
        progressed,
        keep: config.keep,
        pulse: operations.pulse(),
    };
    let (identity, timers, leave) = (config.identity, config.timers, left.clone());
    let serving =
        server.spawn(async move { api::serve(desk, listener, identity, &timers, leave).await });
    let driver = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(MapError::Start)?;
    let begun = (config.begun)(address)?;
    say::result(&format!("listening on {address}"));
    let served = driver.block_on(async {
        tokio::select! {
            served = driver::serve(make, stop.clone()) => Ok(served),
            told = until_told(stop.clone()) => Err(told),
        }
    });
    // Users hear that this life is over, and come back to the next one.
    left.cancel();
    let ended = server.block_on(async { tokio::time::timeout(LEAVE_PATIENCE, serving).await });
    if let Some(telling) = telling
        && let Err(error) = server.block_on(telling)
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
    server.shutdown_background();
    driver.shutdown_background();
    drop(begun);
    match served {
        Ok(served) => served?,
        Err(told) => return told.map_err(MapError::Start),
    }
    match ended {
        Ok(Ok(Err(error))) => Err(MapError::Api(error.to_string())),
        Ok(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        _ => Ok(exit::OK),
    }
}

/// Says where health and metrics are told.
async fn tell(listen: &str) -> Result<TcpListener, MapError> {
    let failed = |source| MapError::Listen { address: listen.to_owned(), source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    if !address.ip().is_loopback() {
        say::line(&format!(
            "widemap: WARNING: whoever reaches {address} sees the metrics: names of nothing, and how much runs"
        ));
    }
    say::line(&format!("widemap: metrics and health: http://{address}/metrics, /healthz, /readyz"));
    Ok(listener)
}

/// Waits for a signal to end, and for a second one, which ends the process at once with this status.
async fn until_told(stop: CancellationToken) -> std::io::Result<u8> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let told = tokio::select! {
        _ = interrupt.recv() => SignalNumber::INT,
        _ = terminate.recv() => SignalNumber::TERM,
    };
    say::line(
        "widemap: ending: workers keep what they run for the next start; once more ends at once",
    );
    tracing::info!(signal = told.as_raw(), "ending");
    stop.cancel();
    tokio::select! {
        _ = interrupt.recv() => Ok(exit::by_signal(SignalNumber::INT.as_raw())),
        _ = terminate.recv() => Ok(exit::by_signal(SignalNumber::TERM.as_raw())),
    }
}
