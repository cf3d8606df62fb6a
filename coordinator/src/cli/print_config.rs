//! `--print-config`: what holds of all that flags, variables and the configuration file can say, and where it
//! was said.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use widemap_cluster::config::Config;
use widemap_common::limits::{MAX_OUTPUT_BYTES, WAIT_WORKERS_S};

use super::options::{
    CoordinatorArgs, JobArgs, LogArgs, MapArgs, PlaceArgs, TrustArgs, UserArgs, Wait,
};
use super::place::variable;
use super::{Command, complain};
use crate::error::MapError;
use crate::{exit, say};

/// What a command says of what can be configured. What it does not look at is none of it.
pub(super) struct Said<'a> {
    log: &'a LogArgs,
    log_default: &'static str,
    trust: &'a TrustArgs,
    no_mdns: bool,
    mdns_interface: &'a [String],
    place: Option<&'a PlaceArgs>,
    coordinator: Option<&'a CoordinatorArgs>,
    /// Of those that have it.
    jobs: Option<Option<u32>>,
    wait_workers: Option<Option<Wait>>,
    max_output: Option<Option<u64>>,
}

impl<'a> Said<'a> {
    fn of_place(place: &'a PlaceArgs, log: &'a LogArgs) -> Self {
        Self {
            log,
            log_default: "warn",
            trust: &place.trust,
            no_mdns: place.no_mdns,
            mdns_interface: &place.mdns_interface,
            place: Some(place),
            coordinator: None,
            jobs: None,
            wait_workers: None,
            max_output: None,
        }
    }

    fn of_map(map: &'a MapArgs) -> Self {
        Self {
            coordinator: Some(&map.coordinator),
            jobs: Some(map.jobs),
            wait_workers: Some(map.wait_workers),
            max_output: Some(map.job.max_output),
            ..Self::of_place(&map.place, &map.log)
        }
    }

    fn of_user(user: &'a UserArgs, job: Option<&JobArgs>) -> Self {
        Self {
            log: &user.log,
            log_default: "warn",
            trust: &user.trust,
            no_mdns: user.no_mdns,
            mdns_interface: &user.mdns_interface,
            place: None,
            coordinator: Some(&user.coordinator),
            jobs: None,
            wait_workers: None,
            max_output: job.map(|job| job.max_output),
        }
    }
}

/// What a command says, if it is asked for that.
pub(super) fn asked(command: &Command) -> Option<Said<'_>> {
    let said = match command {
        Command::Map(args) => Said::of_map(args),
        Command::Repair(args) => Said::of_map(&args.map),
        Command::Submit(args) => Said::of_user(&args.user, Some(&args.job)),
        Command::Serve(args) => {
            let place = Said::of_place(&args.place, &args.log);
            Said { jobs: Some(args.jobs), log_default: "info", ..place }
        }
        Command::Jobs(args) => match &args.command {
            Some(super::options::JobsCommand::Prune(args)) => Said::of_user(&args.user, None),
            None => Said::of_user(&args.user, None),
        },
        Command::Status(args) => Said::of_user(&args.user, None),
        Command::Results(args) => Said::of_user(&args.user, None),
        Command::Cancel(args) | Command::Pause(args) | Command::Unpause(args) => {
            Said::of_user(&args.user, None)
        }
        Command::Explain(args) => Said::of_user(&args.user, None),
        Command::Workers(args) => {
            Said { coordinator: Some(&args.coordinator), ..Said::of_place(&args.place, &args.log) }
        }
        Command::Doctor(args) => Said::of_place(&args.place, &args.log),
        Command::Key(_) | Command::Journal(_) | Command::Manual { .. } => return None,
    };
    said.log.print_config.then_some(said)
}

/// One key.
struct Key {
    name: &'static str,
    /// Whether it says where a map runs: then the highest level that says anything of that counts alone.
    is_place: bool,
    flag: (&'static str, Option<String>),
    variable: &'static str,
    file: Option<String>,
    default: String,
}

/// Where something was said, the highest first.
const LEVELS: usize = 3;

/// Prints what holds, a line each.
pub(super) fn run(said: &Said<'_>) -> ExitCode {
    match Config::find().map_err(MapError::from) {
        Ok(config) => {
            print(said, &config);
            ExitCode::from(exit::OK)
        }
        Err(error) => {
            complain(&error, error.hint());
            ExitCode::from(error.status())
        }
    }
}

fn print(said: &Said<'_>, config: &Config) {
    let keys = keys(said, config);
    let said = |key: &Key| -> [Option<(String, String)>; LEVELS] {
        let file = config.path.as_ref().map(|path| path.display().to_string());
        [
            key.flag.1.clone().map(|value| (value, key.flag.0.to_owned())),
            variable(key.variable).map(|value| (quoted(&value), key.variable.to_owned())),
            key.file.clone().zip(file),
        ]
    };
    let places: Vec<_> = keys.iter().filter(|key| key.is_place).map(&said).collect();
    let level = (0..LEVELS).find(|&level| places.iter().any(|said| said[level].is_some()));
    match &config.path {
        Some(path) => say::result(&format!("# {}", path.display())),
        None => {
            let places = Config::usual_places();
            let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
            say::result(&format!("# no configuration file: {}", places.join(", ")));
        }
    }
    for key in &keys {
        let said = said(key);
        let counts = |index: usize| !key.is_place || Some(index) == level;
        let held = said.iter().enumerate().find(|(index, said)| said.is_some() && counts(*index));
        let line = match held {
            Some((_, Some((value, from)))) => format!("{} = {value}  # {from}", key.name),
            _ => format!("# {}: {}", key.name, key.default),
        };
        say::result(&line);
        for (value, from) in said
            .iter()
            .enumerate()
            .filter(|(index, _)| !counts(*index))
            .filter_map(|(_, said)| said.as_ref())
        {
            say::result(&format!("#   not {value}, of {from}: a place is named above it"));
        }
    }
}

fn keys(said: &Said<'_>, config: &Config) -> Vec<Key> {
    let mut keys = Vec::new();
    if let Some(place) = said.place {
        keys.extend(place_keys(place, config));
    }
    if let Some(named) = said.coordinator {
        keys.push(Key {
            is_place: true,
            ..key(
                "coordinator",
                ("--coordinator", shown(&named.coordinator)),
                "WIDEMAP_COORDINATOR",
                shown(&config.coordinator),
                match said.place {
                    Some(_) => "none is named",
                    None => "the one that is announced by mDNS",
                },
            )
        });
    }
    keys.extend(network_keys(said, config));
    if let Some(jobs) = said.jobs {
        keys.push(key(
            "jobs",
            ("-j", jobs.map(|n| n.to_string())),
            "WIDEMAP_JOBS",
            config.jobs.map(|n| n.to_string()),
            "all slots of each worker",
        ));
    }
    if let Some(time) = said.wait_workers {
        let wait = |wait: Wait| match wait {
            Wait::Forever => quoted("never"),
            Wait::For(time) => quoted(&format!("{time:?}")),
        };
        keys.push(key(
            "wait-workers",
            ("--wait-workers", time.map(wait)),
            "WIDEMAP_WAIT_WORKERS",
            shown(&config.wait_workers),
            &format!("{WAIT_WORKERS_S}s"),
        ));
    }
    if let Some(bytes) = said.max_output {
        keys.push(key(
            "max-output",
            ("--max-output", bytes.map(|n| n.to_string())),
            "WIDEMAP_MAX_OUTPUT",
            shown(&config.max_output),
            &MAX_OUTPUT_BYTES.to_string(),
        ));
    }
    keys.extend(log_keys(said, config));
    keys
}

/// Where workers are.
fn place_keys(place: &PlaceArgs, config: &Config) -> [Key; 4] {
    let place_key = |name, flag, variable, file, default: &str| Key {
        is_place: true,
        ..key(name, flag, variable, file, default)
    };
    let dns: Vec<_> = place.dns.iter().map(|(host, port)| format!("{host}:{port}")).collect();
    let files = |files: &[PathBuf]| {
        list(&files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>())
    };
    [
        place_key(
            "workers",
            ("--worker", list(&place.worker)),
            "WIDEMAP_WORKERS",
            list(&config.workers),
            "none is named",
        ),
        place_key(
            "workers-file",
            ("--workers-file", files(&place.workers_file)),
            "WIDEMAP_WORKERS_FILE",
            files(&config.workers_file),
            "none is named",
        ),
        place_key("dns", ("--dns", list(&dns)), "WIDEMAP_DNS", list(&config.dns), "none is named"),
        place_key(
            "local",
            ("--local", place.local.map(|n| n.to_string())),
            "WIDEMAP_LOCAL",
            config.local.map(|n| n.to_string()),
            "as many slots as cores, where no place is named and there is no key",
        ),
    ]
}

/// How others are found, and how this side is proved to them.
fn network_keys(said: &Said<'_>, config: &Config) -> [Key; 6] {
    let path = |path: &Option<PathBuf>| path.as_deref().map(in_toml);
    let is_said = said.place.is_some_and(|place| place.mdns);
    let mdns = match (is_said, said.no_mdns) {
        (true, _) => Some("true".to_owned()),
        (_, true) => Some("false".to_owned()),
        _ => None,
    };
    [
        key(
            "mdns",
            (if said.no_mdns { "--no-mdns" } else { "--mdns" }, mdns),
            "",
            config.mdns.map(|is| is.to_string()),
            "where there is a key and no place is named",
        ),
        key(
            "mdns-interface",
            ("--mdns-interface", list(said.mdns_interface)),
            "WIDEMAP_MDNS_INTERFACE",
            list(&config.mdns_interface),
            "all",
        ),
        key(
            "key",
            ("--key", path(&said.trust.key)),
            "WIDEMAP_KEY",
            path(&config.key),
            "~/.config/widemap/key, else /etc/widemap/key",
        ),
        key(
            "tls-cert",
            ("--tls-cert", path(&said.trust.tls_cert)),
            "WIDEMAP_TLS_CERT",
            path(&config.tls_cert),
            "made from the key",
        ),
        key(
            "tls-key",
            ("--tls-key", path(&said.trust.tls_key)),
            "WIDEMAP_TLS_KEY",
            path(&config.tls_key),
            "made from the key",
        ),
        key(
            "tls-ca",
            ("--tls-ca", path(&said.trust.tls_ca)),
            "WIDEMAP_TLS_CA",
            path(&config.tls_ca),
            "made from the key",
        ),
    ]
}

fn log_keys(said: &Said<'_>, config: &Config) -> [Key; 2] {
    let log = said.log;
    let form = log.log_format.map(|form| quoted(&format!("{form:?}").to_lowercase()));
    [
        key(
            "log",
            ("--log or WIDEMAP_LOG", shown(&log.log)),
            "",
            shown(&config.log),
            said.log_default,
        ),
        key(
            "log-format",
            ("--log-format or WIDEMAP_LOG_FORMAT", form),
            "",
            shown(&config.log_format),
            "text",
        ),
    ]
}

fn key(
    name: &'static str,
    flag: (&'static str, Option<String>),
    variable: &'static str,
    file: Option<String>,
    default: &str,
) -> Key {
    Key { name, is_place: false, flag, variable, file, default: default.to_owned() }
}

fn shown(text: &Option<String>) -> Option<String> {
    text.as_deref().map(quoted)
}

fn in_toml(path: &Path) -> String {
    quoted(&path.display().to_string())
}

fn list(names: &[String]) -> Option<String> {
    let names: Vec<_> = names.iter().map(|name| quoted(name)).collect();
    (!names.is_empty()).then(|| format!("[{}]", names.join(", ")))
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    format!("{text:?}")
}
