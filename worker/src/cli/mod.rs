//! The command line of a worker, for the stock binary and for those with functions of their own.

mod error;
mod manager;
mod options;
mod presence;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use widemap_cluster::config::Config;
use widemap_cluster::{Identity, harden, manual};
use widemap_common::limits::SLOTS_MAX;
use widemap_common::memory::keep_freed_blocks;
use widemap_common::spec::Runtime;

use crate::function::Registry;
use crate::register::Registration;
use crate::spawner::{Cgroup, RunAs, Spawner, SpawnerError};
use crate::worker::{Worker, WorkerConfig};
use error::{CliError, USAGE};
use manager::Manager;
use options::{
    LogFormat, Options, addresses, host_name, identity, interfaces, is_announced, listen,
    log_format, variable,
};
use presence::{Presence, announce, say_start};

/// What a process that is ended by a signal adds to the signal's number.
const BY_SIGNAL: u8 = 128;

/// A worker of its own process, with the command line of `widemap-worker`: the `main` of a binary
/// that registers functions. It must be called before any thread is started.
#[must_use]
pub fn main(registry: Registry) -> ExitCode {
    keep_freed_blocks();
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            // Help goes to standard output and is no error; where it cannot be printed, so be it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    let done = match &options.manual {
        Some(directory) => manual::write(Options::command(), directory)
            .map(|()| 0)
            .map_err(|error| CliError::Manual(directory.clone(), error)),
        None => run(options, registry),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            say(&format!("widemap-worker: {error}"));
            ExitCode::from(error.status())
        }
    }
}

fn run(options: Options, registry: Registry) -> Result<u8, CliError> {
    let config = Config::find()?;
    let filter = options.log.clone().or_else(|| config.log.clone()).unwrap_or("warn".to_owned());
    let filter = EnvFilter::builder()
        .parse(&filter)
        .map_err(|error| CliError::Log(filter.clone(), error))?;
    let log_format = log_format(&options, &config)?;
    let slots = options.slots.unwrap_or_else(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        u32::try_from(cores).unwrap_or(SLOTS_MAX).min(SLOTS_MAX)
    });
    harden::close_files_on_exec();
    harden::close_memory().map_err(CliError::Harden)?;
    // Before anything that may start a thread, and before a key is read: it begins as a copy.
    let spawner = start_spawner(options.run_as.as_deref(), &options.cgroup, slots)?;
    start_log(filter, log_format);
    let identity = identity(&options, &config)?.map(Arc::new);
    let listen = listen(&options, identity.is_some());
    let addresses = addresses(&listen, identity.is_some() || options.insecure)?;
    // Measured best: one thread serves the streams, and the slots have theirs.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    runtime.block_on(async {
        let unbound = |error| CliError::Listen(listen.clone(), error);
        let listener = TcpListener::bind(addresses.as_slice()).await.map_err(unbound)?;
        let address = listener.local_addr().map_err(unbound)?;
        let announced = is_announced(&options, &config, address);
        let interfaces = interfaces(&options, variable("WIDEMAP_MDNS_INTERFACE"), &config);
        let is_asked_for = !options.mdns_interface.is_empty();
        let (patience, directory) = (options.drain_timeout, options.register.clone());
        let name = options.name.clone().unwrap_or_else(host_name);
        let registration = directory
            .map(|directory| Registration::write(&directory, &name, address, &listener))
            .transpose()?;
        if registration.is_some() && address.ip().is_loopback() {
            say(&format!(
                "WARNING: --register: {address} is this host's own: whoever reads the directory on \
                 another host does not reach this worker by it (with a key, say --listen 0.0.0.0:7433)"
            ));
        }
        let insecure = options.insecure;
        let config = worker_config(options, name, slots, identity.clone());
        let worker = Worker::new(config, registry, spawner);
        let announcer = match announced {
            true => announce(&worker, address, &interfaces, is_asked_for)?,
            false => None,
        };
        let say_start = || say_start(address, insecure, identity.as_deref());
        serve(worker, listener, Presence { announcer, registration }, patience, say_start).await
    })
}

/// Starts the spawner, as another user if that was said, and warns if jobs will be root's.
fn start_spawner(run_as: Option<&str>, cgroup: &Cgroup, slots: u32) -> Result<Spawner, CliError> {
    let user = run_as.map(RunAs::find).transpose()?;
    if user.is_none() && rustix::process::geteuid().is_root() {
        say(
            "WARNING: this worker runs as root, and so do jobs: --run-as USER lets them run as another",
        );
    }
    match Spawner::start_in(slots, user.clone(), cgroup) {
        // It is no more than was there without them.
        Err(SpawnerError::Cgroup(error)) if *cgroup == Cgroup::Auto => {
            say(&format!("WARNING: {error}: items have no control groups"));
            Ok(Spawner::start_in(slots, user, &Cgroup::Off)?)
        }
        started => Ok(started?),
    }
}

/// Serves until a first signal has drained the worker, or a second one ends it at once. Where it
/// listens is said once it serves and signals are heard: whoever reads that may rely on both.
async fn serve(
    worker: Worker,
    listener: TcpListener,
    mut presence: Presence,
    drain_timeout: Duration,
    say_start: impl FnOnce() -> io::Result<()>,
) -> Result<u8, CliError> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Runtime)?;
    let mut next_signal = async || {
        let number = tokio::select! {
            _ = terminate.recv() => SignalKind::terminate(),
            _ = interrupt.recv() => SignalKind::interrupt(),
        };
        u8::try_from(number.as_raw_value()).unwrap_or_default()
    };
    let manager = Manager::find();
    let mut beating = pin!(manager.beat());
    let mut serving = pin!(worker.serve_listener(listener, shutdown.clone()));
    let served = tokio::select! {
        // The worker begins when it is polled first.
        biased;
        served = &mut serving => Some(served),
        () = std::future::ready(()) => None,
    };
    if let Some(served) = served {
        return served.map(|()| 0).map_err(CliError::Worker);
    }
    say_start().map_err(CliError::Announce)?;
    manager.ready();
    tokio::select! {
        never = &mut beating => match never {},
        served = &mut serving => {
            presence.end().await;
            served?;
            return Ok(0);
        }
        _ = next_signal() => {}
    }
    say(&format!(
        "draining: no new work; what runs has up to {drain_timeout:?}; a second signal ends at once"
    ));
    manager.draining();
    shutdown.cancel();
    tokio::select! {
        never = &mut beating => match never {},
        (served, ()) = async { tokio::join!(&mut serving, presence.end()) } => {
            served?;
            say("drained");
            Ok(0)
        }
        number = next_signal() => Ok(BY_SIGNAL + number),
    }
}

/// A line for people. Where nobody can read it any more, the worker goes on.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn worker_config(
    options: Options,
    name: String,
    slots: u32,
    identity: Option<Arc<Identity>>,
) -> WorkerConfig {
    WorkerConfig {
        name,
        slots,
        labels: options.labels.into_iter().collect::<BTreeMap<_, _>>(),
        runtimes: if options.allow.is_empty() { Runtime::ALL.to_vec() } else { options.allow },
        timers: options.timers.unwrap_or_default(),
        drain_timeout: options.drain_timeout,
        file_cache_bytes: options.file_cache,
        min_memory: options.min_memory,
        idle_timeout: options.idle_timeout,
        reflection: options.reflection,
        identity,
    }
}

fn start_log(filter: EnvFilter, format: LogFormat) {
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
