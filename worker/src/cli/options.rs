//! The flags, and what they, variables and the configuration file come to together.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use widemap_cluster::config::Config;
use widemap_cluster::{Identity, Role, Wanted};
use widemap_common::limits::SLOTS_MAX;
use widemap_common::spec::Runtime;
use widemap_common::time::Timers;
use widemap_common::units::{parse_duration, parse_size};

use crate::spawner::Cgroup;

use super::error::CliError;

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
pub(super) struct Options {
    /// Write man pages and completions for shells to DIR, and end
    #[arg(long, value_name = "DIR", hide = true)]
    pub(super) manual: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one [default: 0.0.0.0:7433 with a key, else 127.0.0.1:0]
    #[arg(long, value_name = "ADDR", help_heading = "Where")]
    pub(super) listen: Option<String>,
    /// Do not announce the worker on the local network
    #[arg(long, help_heading = "Where")]
    pub(super) no_mdns: bool,
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
    pub(super) mdns_interface: Vec<String>,
    /// Keep a file with this worker's address in DIR, for `widemap map --workers-file DIR`
    #[arg(long, value_name = "DIR", help_heading = "Where")]
    pub(super) register: Option<PathBuf>,

    /// The cluster's key, or a worker bundle [default: ~/.config/widemap/key, /etc/widemap/key; env:
    /// WIDEMAP_KEY]
    #[arg(long, value_name = "FILE", help_heading = "Trust", conflicts_with = "insecure")]
    pub(super) key: Option<PathBuf>,
    /// Certificates made elsewhere: this worker's own, in PEM form
    #[arg(long, value_name = "FILE", help_heading = "Trust", conflicts_with = "insecure")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    pub(super) tls_key: Option<PathBuf>,
    /// The authority that certifies coordinators
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    pub(super) tls_ca: Option<PathBuf>,
    /// No key, and beyond this host all the same: whoever reaches the port runs commands here
    #[arg(long, help_heading = "Trust")]
    pub(super) insecure: bool,

    /// Items that run at a time [default: the cores]
    #[arg(long, value_name = "N", help_heading = "What",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(SLOTS_MAX)))]
    pub(super) slots: Option<u32>,
    /// The worker's name in listings and messages [default: the host's name]
    #[arg(long, help_heading = "What")]
    pub(super) name: Option<String>,
    /// A label that jobs can require; may be repeated
    #[arg(long = "label", value_name = "K=V", help_heading = "What", value_parser = parse_label)]
    pub(super) labels: Vec<(String, String)>,
    /// The runtimes that jobs may use: exec, filter, pipe, python, wasm, builtin
    #[arg(long, value_name = "RUNTIME,...", value_delimiter = ',', help_heading = "What",
          value_parser = parse_runtime)]
    pub(super) allow: Vec<Runtime>,
    /// Run commands as another user; builtin functions run in the worker, as this one
    #[arg(long, value_name = "USER", help_heading = "What", long_help = RUN_AS)]
    pub(super) run_as: Option<String>,
    /// Control groups (cgroup v2) for items, each killed whole and limited as one: below DIR; auto: below the
    /// worker's own, where that is delegated; off
    #[arg(long, value_name = "DIR", default_value = "auto", help_heading = "What",
          value_parser = parse_cgroup)]
    pub(super) cgroup: Cgroup,
    /// What is kept on disk of files that jobs bring along (--file); a job takes no more than that
    #[arg(long, value_name = "SIZE", default_value = "4G", help_heading = "What",
          value_parser = parse_size)]
    pub(super) file_cache: u64,
    /// Take no work while less memory than this is available [default: 256M, or a tenth of all]; 0: whatever is
    #[arg(long, value_name = "SIZE", help_heading = "What", value_parser = parse_size)]
    pub(super) min_memory: Option<u64>,
    /// Serve gRPC reflection
    #[arg(long, help_heading = "What")]
    pub(super) reflection: bool,

    /// How long running items may go on after SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "30s", help_heading = "Life",
          value_parser = parse_duration)]
    pub(super) drain_timeout: Duration,
    /// End after so long without an item
    #[arg(long, value_name = "DURATION", help_heading = "Life", value_parser = parse_duration)]
    pub(super) idle_timeout: Option<Duration>,

    /// What is logged on standard error: error, warn, info, debug, trace
    #[arg(
        long,
        value_name = "LEVEL",
        env = "WIDEMAP_LOG",
        hide_env_values = true,
        help_heading = "Log"
    )]
    pub(super) log: Option<String>,
    /// How it is logged: text, json
    #[arg(
        long,
        value_name = "FORMAT",
        help_heading = "Log",
        env = "WIDEMAP_LOG_FORMAT",
        hide_env_values = true
    )]
    pub(super) log_format: Option<LogFormat>,

    #[arg(long, hide = true, value_name = "NAME=MS,...")]
    pub(super) timers: Option<Timers>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

/// The identity that flags or variables name, or else the configuration file, or else the usual key.
pub(super) fn identity(options: &Options, config: &Config) -> Result<Option<Identity>, CliError> {
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

pub(super) fn log_format(options: &Options, config: &Config) -> Result<LogFormat, CliError> {
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
pub(super) fn listen(options: &Options, has_identity: bool) -> String {
    let default = if has_identity { "0.0.0.0:7433" } else { "127.0.0.1:0" };
    options.listen.clone().unwrap_or_else(|| default.to_owned())
}

/// The only interfaces to announce the worker over, unless empty: those that flags name, or else a
/// variable, or else the configuration file.
pub(super) fn interfaces(
    options: &Options,
    variable: Option<String>,
    config: &Config,
) -> Vec<String> {
    let variable = variable.unwrap_or_default();
    let named = variable.split([',', ' ']).filter(|part| !part.is_empty()).map(str::to_owned);
    let levels = [options.mdns_interface.clone(), named.collect(), config.mdns_interface.clone()];
    levels.into_iter().find(|names| !names.is_empty()).unwrap_or_default()
}

/// What a variable says; one that is empty says nothing.
pub(super) fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().trim().to_owned();
    (!value.is_empty()).then_some(value)
}

/// Nobody beyond this host can dial a worker on loopback.
pub(super) fn is_announced(options: &Options, config: &Config, address: SocketAddr) -> bool {
    !options.no_mdns && config.mdns != Some(false) && !address.ip().is_loopback()
}

/// The addresses to listen on, none of them beyond this host unless whoever comes is proved, or that
/// was said not to matter.
pub(super) fn addresses(listen: &str, beyond: bool) -> Result<Vec<SocketAddr>, CliError> {
    let addresses: Vec<_> = listen
        .to_socket_addrs()
        .map_err(|error| CliError::Address(listen.to_owned(), error))?
        .collect();
    match addresses.iter().find(|address| !address.ip().is_loopback()) {
        Some(open) if !beyond => Err(CliError::NotLoopback(*open)),
        _ => Ok(addresses),
    }
}

pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
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

#[expect(clippy::unnecessary_wraps, reason = "this is the form that clap wants")]
fn parse_cgroup(text: &str) -> Result<Cgroup, String> {
    Ok(match text {
        "auto" => Cgroup::Auto,
        "off" => Cgroup::Off,
        directory => Cgroup::Below(PathBuf::from(directory)),
    })
}

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
    use super::super::error::USAGE;
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
