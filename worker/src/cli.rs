//! The command line of a worker, for the stock binary and for those with functions of their own.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use widemap_cluster::config::{Config, ConfigError};
use widemap_cluster::harden;
use widemap_cluster::mdns::{Announcer, MdnsError, Service};
use widemap_cluster::{Identity, IdentityError, Role, Wanted};
use widemap_common::limits::SLOTS_MAX;
use widemap_common::spec::Runtime;
use widemap_common::time::Timers;
use widemap_common::units::parse_duration;

use crate::function::Registry;
use crate::register::{RegisterError, Registration};
use crate::spawner::{RunAs, RunAsError, Spawner, SpawnerError};
use crate::worker::{Worker, WorkerConfig, WorkerError};

/// The command line was wrong; nothing was started.
const USAGE: u8 = 2;
/// The worker could not be brought up.
const NOT_UP: u8 = 3;
/// What a process that is ended by a signal adds to the signal's number.
const BY_SIGNAL: u8 = 128;

const RUN_AS: &str = "\
Run commands as another user, and remove their directories as that one: what starts them gives up root for it, for \
good, before the worker serves. HOME, USER and LOGNAME are that user's. The worker has to be root. Functions that \
are registered in the worker (builtin) run in it, as the user that it was started by: leave them out with --allow";

const MDNS_INTERFACE: &str = "\
Announce it over this interface alone; may be repeated

[env: WIDEMAP_MDNS_INTERFACE]";

/// Runs items for widemap coordinators that connect to it.
#[derive(Debug, Parser)]
#[command(
    name = "widemap-worker",
    version,
    after_help = "On this host alone:    widemap-worker --listen 127.0.0.1:7433\n\
                  On several hosts:      widemap key new, the same file on each, then: widemap-worker"
)]
struct Options {
    /// Where to listen; port 0 takes a free one [default: 0.0.0.0:7433 with a key, else 127.0.0.1:0]
    #[arg(long, value_name = "ADDR", help_heading = "Where")]
    listen: Option<String>,
    /// Do not announce the worker on the local network
    #[arg(long, help_heading = "Where")]
    no_mdns: bool,
    // The variable is not for clap, to which it would be as good as the flag: one that is set for all
    // of a host's workers must not make --no-mdns an error.
    /// Announce it over this interface alone; may be repeated [env: WIDEMAP_MDNS_INTERFACE]
    #[arg(
        long,
        value_name = "NAME",
        help_heading = "Where",
        long_help = MDNS_INTERFACE,
        conflicts_with = "no_mdns",
        value_delimiter = ','
    )]
    mdns_interface: Vec<String>,
    /// Keep a file with this worker's address in DIR, for `widemap map --workers-file DIR`
    #[arg(long, value_name = "DIR", help_heading = "Where")]
    register: Option<PathBuf>,

    /// The cluster's key, or a worker bundle [default: ~/.config/widemap/key, /etc/widemap/key; env:
    /// WIDEMAP_KEY]
    #[arg(long, value_name = "FILE", help_heading = "Trust", conflicts_with = "insecure")]
    key: Option<PathBuf>,
    /// Certificates made elsewhere: this worker's own, in PEM form
    #[arg(long, value_name = "FILE", help_heading = "Trust", conflicts_with = "insecure")]
    tls_cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    tls_key: Option<PathBuf>,
    /// The authority that certifies coordinators
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    tls_ca: Option<PathBuf>,
    /// No key, and beyond this host all the same: whoever reaches the port runs commands here
    #[arg(long, help_heading = "Trust")]
    insecure: bool,

    /// Items that run at a time [default: the cores]
    #[arg(long, value_name = "N", help_heading = "What",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(SLOTS_MAX)))]
    slots: Option<u32>,
    /// The worker's name in listings and messages [default: the host's name]
    #[arg(long, help_heading = "What")]
    name: Option<String>,
    /// A label that jobs can require; may be repeated
    #[arg(long = "label", value_name = "K=V", help_heading = "What", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// The runtimes that jobs may use: exec, pipe, builtin
    #[arg(long, value_name = "RUNTIME,...", value_delimiter = ',', help_heading = "What",
          value_parser = parse_runtime)]
    allow: Vec<Runtime>,
    /// Run commands as another user; builtin functions run in the worker, as this one
    #[arg(long, value_name = "USER", help_heading = "What", long_help = RUN_AS)]
    run_as: Option<String>,
    /// Serve gRPC reflection
    #[arg(long, help_heading = "What")]
    reflection: bool,

    /// How long running items may go on after SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "30s", help_heading = "Life",
          value_parser = parse_duration)]
    drain_timeout: Duration,
    /// End after so long without an item
    #[arg(long, value_name = "DURATION", help_heading = "Life", value_parser = parse_duration)]
    idle_timeout: Option<Duration>,

    /// What is logged on standard error: error, warn, info, debug, trace
    #[arg(
        long,
        value_name = "LEVEL",
        env = "WIDEMAP_LOG",
        hide_env_values = true,
        help_heading = "Log"
    )]
    log: Option<String>,
    /// How it is logged: text, json
    #[arg(
        long,
        value_name = "FORMAT",
        help_heading = "Log",
        env = "WIDEMAP_LOG_FORMAT",
        hide_env_values = true
    )]
    log_format: Option<LogFormat>,

    #[arg(long, hide = true, value_name = "NAME=MS,...")]
    timers: Option<Timers>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Why the worker did not come up, or went.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("--listen {0}: {1} (say HOST:PORT)")]
    Address(String, #[source] io::Error),
    #[error(
        "--listen {0}: without a key, whoever reaches that port runs commands here as this user.\n  \
         Make a key (widemap key new), copy the file to every host, and start the worker again;\n  \
         or listen on 127.0.0.1 (an SSH tunnel reaches it: ssh -L 7433:127.0.0.1:PORT HOST),\n  \
         or add --insecure if everybody on the network is trusted"
    )]
    NotLoopback(SocketAddr),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{path}: log-format: `{text}` is neither text nor json")]
    LogFormat { path: String, text: String },
    #[error(
        "cannot announce the worker by mDNS: {0}\n  Name it to those who use it (--worker HOST:PORT) and add --no-mdns"
    )]
    Mdns(#[from] MdnsError),
    #[error("--log {0}: {1}")]
    Log(String, #[source] tracing_subscriber::filter::ParseError),
    #[error("cannot listen on {0}: {1}{hint}", hint = in_use(.1))]
    Listen(String, #[source] io::Error),
    #[error("{0}")]
    Spawner(#[from] SpawnerError),
    #[error("{0}")]
    RunAs(#[from] RunAsError),
    #[error("{0}")]
    Register(#[from] RegisterError),
    #[error("cannot close this process's memory to its jobs: {0}")]
    Harden(#[source] io::Error),
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] io::Error),
    #[error("cannot write the address to standard output: {0}")]
    Announce(#[source] io::Error),
    #[error("{0}")]
    Worker(#[from] WorkerError),
}

impl CliError {
    fn status(&self) -> u8 {
        match self {
            Self::Address(..)
            | Self::NotLoopback(_)
            | Self::Log(..)
            | Self::LogFormat { .. }
            | Self::Identity(_)
            | Self::Config(_)
            | Self::RunAs(_)
            | Self::Register(_)
            | Self::Spawner(SpawnerError::RunAs(_)) => USAGE,
            Self::Mdns(_)
            | Self::Listen(..)
            | Self::Spawner(_)
            | Self::Runtime(_)
            | Self::Harden(_) => NOT_UP,
            Self::Announce(_) | Self::Worker(_) => 1,
        }
    }
}

/// What to do where the port is taken, most likely by another worker.
fn in_use(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "\n  Another worker on this host? --listen 0.0.0.0:0 takes a free port (on this host alone: 127.0.0.1:0)"
        }
        _ => "",
    }
}

/// A worker of its own process, with the command line of `widemap-worker`: the `main` of a binary
/// that registers functions. It must be called before any thread is started.
#[must_use]
pub fn main(registry: Registry) -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            // Help goes to standard output and is no error; where it cannot be printed, so be it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    match run(options, registry) {
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
    let spawner = start_spawner(options.run_as.as_deref(), slots)?;
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
        say_start(address, &options, identity.as_deref()).map_err(CliError::Announce)?;
        let config = worker_config(options, name, slots, identity);
        let worker = Worker::new(config, registry, spawner);
        let announcer = match announced {
            true => announce(&worker, address, &interfaces, is_asked_for)?,
            false => None,
        };
        serve(worker, listener, Presence { announcer, registration }, patience).await
    })
}

/// The identity that flags or variables name, or else the configuration file, or else the usual key.
fn identity(options: &Options, config: &Config) -> Result<Option<Identity>, CliError> {
    if options.insecure {
        return Ok(None);
    }
    let wanted = Wanted {
        key: options.key.clone(),
        certificate: options.tls_cert.clone(),
        private_key: options.tls_key.clone(),
        authority: options.tls_ca.clone(),
    };
    Ok(Identity::find(&wanted.or(Wanted::of_environment()).or(config.identity()), Role::Worker)?)
}

fn log_format(options: &Options, config: &Config) -> Result<LogFormat, CliError> {
    match (options.log_format, &config.log_format) {
        (Some(format), _) => Ok(format),
        (None, None) => Ok(LogFormat::Text),
        (None, Some(text)) => LogFormat::from_str(text, false).map_err(|_| CliError::LogFormat {
            path: config.path.as_deref().unwrap_or(Path::new("widemap.toml")).display().to_string(),
            text: text.clone(),
        }),
    }
}

/// Where to listen: beyond this host only with a key, unless that is said.
fn listen(options: &Options, has_identity: bool) -> String {
    let default = if has_identity { "0.0.0.0:7433" } else { "127.0.0.1:0" };
    options.listen.clone().unwrap_or_else(|| default.to_owned())
}

/// The only interfaces to announce the worker over, unless empty: those that flags name, or else a
/// variable, or else the configuration file.
fn interfaces(options: &Options, variable: Option<String>, config: &Config) -> Vec<String> {
    let variable = variable.unwrap_or_default();
    let named = variable.split([',', ' ']).filter(|part| !part.is_empty()).map(str::to_owned);
    let levels = [options.mdns_interface.clone(), named.collect(), config.mdns_interface.clone()];
    levels.into_iter().find(|names| !names.is_empty()).unwrap_or_default()
}

/// Announces the worker. Where that cannot be done, those who name the worker reach it all the same:
/// it is an error for somebody alone who has just asked for it, by a flag.
fn announce(
    worker: &Worker,
    address: SocketAddr,
    interfaces: &[String],
    is_asked_for: bool,
) -> Result<Option<Announcer>, CliError> {
    let (announcement, listen) = (worker.announcement(), address.ip());
    let started =
        Announcer::start(Service::Worker, &announcement, address.port(), listen, interfaces);
    match started.map_err(CliError::Mdns) {
        Ok(announcer) => Ok(Some(announcer)),
        Err(error) if is_asked_for => Err(error),
        Err(error) => {
            say(&format!("WARNING: {error}"));
            Ok(None)
        }
    }
}

/// What a variable says; one that is empty says nothing.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().trim().to_owned();
    (!value.is_empty()).then_some(value)
}

/// Nobody beyond this host can dial a worker on loopback.
fn is_announced(options: &Options, config: &Config, address: SocketAddr) -> bool {
    !options.no_mdns && config.mdns != Some(false) && !address.ip().is_loopback()
}

/// Starts the spawner, as another user if that was said, and warns if jobs will be root's.
fn start_spawner(run_as: Option<&str>, slots: u32) -> Result<Spawner, CliError> {
    if let Some(user) = run_as {
        return Ok(Spawner::start_as(slots, RunAs::find(user)?)?);
    }
    if rustix::process::geteuid().is_root() {
        say(
            "WARNING: this worker runs as root, and so do jobs: --run-as USER lets them run as another",
        );
    }
    Ok(Spawner::start(slots)?)
}

/// Serves until a first signal has drained the worker, or a second one ends it at once.
async fn serve(
    worker: Worker,
    listener: TcpListener,
    mut presence: Presence,
    drain_timeout: Duration,
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
    let mut serving = pin!(worker.serve_listener(listener, shutdown.clone()));
    tokio::select! {
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
    shutdown.cancel();
    tokio::select! {
        (served, ()) = async { tokio::join!(&mut serving, presence.end()) } => {
            served?;
            say("drained");
            Ok(0)
        }
        number = next_signal() => Ok(BY_SIGNAL + number),
    }
}

/// How those who look for workers know of this one.
struct Presence {
    announcer: Option<Announcer>,
    registration: Option<Registration>,
}

impl Presence {
    /// Nobody new is to come.
    async fn end(&mut self) {
        if let Some(Err(error)) = self.registration.as_mut().map(Registration::remove) {
            say(&format!(
                "cannot remove this worker's file in the directory of --register: {error}"
            ));
        }
        if let Some(announcer) = self.announcer.take() {
            announcer.goodbye().await;
        }
    }
}

/// The addresses to listen on, none of them beyond this host unless whoever comes is proved, or that
/// was said not to matter.
fn addresses(listen: &str, beyond: bool) -> Result<Vec<SocketAddr>, CliError> {
    let addresses: Vec<_> = listen
        .to_socket_addrs()
        .map_err(|error| CliError::Address(listen.to_owned(), error))?
        .collect();
    match addresses.iter().find(|address| !address.ip().is_loopback()) {
        Some(open) if !beyond => Err(CliError::NotLoopback(*open)),
        _ => Ok(addresses),
    }
}

/// Says where the worker listens, on standard output for programs and on standard error for people.
fn say_start(
    address: SocketAddr,
    options: &Options,
    identity: Option<&Identity>,
) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()?;
    let port = address.port();
    match identity {
        Some(identity) => {
            let cluster =
                identity.cluster().map_or_else(String::new, |id| format!("cluster {id}, "));
            say(&format!("{cluster}by the {}", identity.source()));
        }
        None if !address.ip().is_loopback() => say(&format!(
            "WARNING: --insecure: whoever reaches {address} runs commands on this host as this user"
        )),
        None if options.insecure => {
            say("WARNING: --insecure: every user of this host can run commands as this user");
        }
        None => {
            say(&format!(
                "use it from this host: widemap map --worker 127.0.0.1:{port} -- COMMAND"
            ));
            say("for other hosts: widemap key new, the same file on each of them, start it again");
        }
    }
    Ok(())
}

/// A line for people. Where nobody can read it any more, the worker goes on.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
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

/// Why a value of a flag was refused.
#[derive(Debug)]
struct FlagError(String);

impl fmt::Display for FlagError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FlagError {}

fn parse_label(text: &str) -> Result<(String, String), FlagError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(FlagError("a label is KEY=VALUE".to_owned())),
    }
}

fn parse_runtime(text: &str) -> Result<Runtime, FlagError> {
    Runtime::from_name(text).ok_or_else(|| {
        let known = Runtime::ALL.map(Runtime::name).join(", ");
        FlagError(format!("there are: {known}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_fits_a_screen() {
        let help = <Options as clap::CommandFactory>::command().term_width(100).render_help();
        insta::assert_snapshot!(help);
    }

    #[test]
    fn a_flag_names_interfaces_before_a_variable_and_that_before_the_file() {
        let config = Config { mdns_interface: vec!["eth9".to_owned()], ..Config::default() };
        let found = |args: &[&str], variable: Option<&str>| {
            let args = ["widemap-worker"].iter().chain(args);
            let options = Options::try_parse_from(args).expect("the flags are good");
            interfaces(&options, variable.map(str::to_owned), &config).join(" ")
        };
        let flags = ["--mdns-interface", "eth0,eth1", "--mdns-interface", "eth2"];
        assert_eq!(found(&flags, Some("eth3")), "eth0 eth1 eth2");
        assert_eq!(found(&[], Some("eth3, eth4 eth5")), "eth3 eth4 eth5");
        assert_eq!(found(&[], Some(",")), "eth9");
        assert_eq!(found(&[], None), "eth9");
        let both = ["widemap-worker", "--no-mdns", "--mdns-interface", "eth0"];
        assert!(Options::try_parse_from(both).is_err());
    }

    #[test]
    fn only_loopback_is_listened_on_without_a_key_or_insecure() {
        let parse = |args: &[&str], has_identity: bool| {
            let args = ["widemap-worker"].iter().chain(args);
            let options = Options::try_parse_from(args).expect("the flags are good");
            addresses(&listen(&options, has_identity), has_identity || options.insecure)
        };
        assert_eq!(parse(&[], false).unwrap(), ["127.0.0.1:0".parse().unwrap()]);
        assert_eq!(parse(&[], true).unwrap(), ["0.0.0.0:7433".parse().unwrap()]);
        assert!(parse(&["--listen", "[::1]:0"], false).is_ok());
        assert!(parse(&["--listen", "0.0.0.0:7433", "--insecure"], false).is_ok());
        let refused = parse(&["--listen", "0.0.0.0:7433"], false).expect_err("it is refused");
        assert_eq!(refused.status(), USAGE);
        assert!(refused.to_string().contains("--insecure"), "{refused}");
        assert!(parse(&["--listen", "7433"], false).is_err());
    }
}
