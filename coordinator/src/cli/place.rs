//! Where a map runs, which is never a guess: the highest of flags, environment and configuration file
//! that names a place replaces the lower ones; within a level they add. A named place turns mDNS off
//! unless that is asked for as well; with a key and no place mDNS is asked; with neither, this machine
//! it is.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use widemap_cluster::config::Config;
use widemap_cluster::{Identity, Role, Wanted, harden, key};
use widemap_common::limits::SLOTS_MAX;

use super::options::{CoordinatorArgs, PlaceArgs, TrustArgs};
use crate::error::MapError;
use crate::places::{self, Dns, Fixed, Mdns, Source, Watched};
use crate::say;
use crate::session::Trust;

/// The variable that names a coordinator.
const COORDINATOR: &str = "WIDEMAP_COORDINATOR";

/// What one level says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Level {
    workers: Option<Fixed>,
    files: Vec<Watched>,
    dns: Vec<Dns>,
    local: Option<u32>,
    mdns: bool,
    /// A coordinator that is to do it all.
    coordinator: Option<Named>,
}

/// A coordinator that was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// By what: `--coordinator`.
    pub(super) by: String,
    /// Its address: `HOST:PORT`.
    pub(super) address: String,
}

impl Level {
    /// A place that is named beside the coordinator, which knows the workers itself.
    fn beside_the_coordinator(&self) -> Option<String> {
        let Self { workers, files, dns, local, mdns, .. } = self;
        let workers = workers.iter().map(|fixed| fixed.name.clone());
        let files = files.iter().map(|file| file.name.clone());
        let names = dns.iter().map(|dns| dns.name.clone());
        let local = local.map(|slots| format!("{slots} slots on this machine (--local)"));
        let mdns = mdns.then(|| "mDNS".to_owned());
        workers.chain(files).chain(names).chain(local).chain(mdns).next()
    }
}

impl Level {
    fn names_a_place(&self) -> bool {
        Self { mdns: false, ..self.clone() } != Self::default()
    }
}

/// The places of a map, before anything secret is read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whereabouts {
    level: Level,
    interfaces: Vec<String>,
    /// What proves this side, unless that is not wanted or not needed.
    wanted: Option<Wanted>,
    /// A configuration file that may be there and could not be looked at, where nothing else names a
    /// place.
    hidden: Option<PathBuf>,
}

/// Where workers may be, and whom to trust.
pub(crate) struct Sources {
    pub(crate) sources: Vec<Box<dyn Source>>,
    pub(crate) trust: Trust,
    /// Sources that lead beyond this host without a key.
    pub(super) exposed: Vec<String>,
}

impl Whereabouts {
    /// Decides where workers are. A coordinator that is named somewhere is for others.
    ///
    /// # Errors
    /// If what is said cannot be read, or leaves nothing to ask.
    pub(crate) fn find(args: &PlaceArgs, config: &Config) -> Result<Self, MapError> {
        let levels = [of_flags(args), of_environment()?, of_file(config)?];
        Self::of(args, config, &levels)
    }

    /// Decides the same where a coordinator may be asked instead.
    ///
    /// # Errors
    /// As [`Self::find`], and if a coordinator is named beside something else.
    pub(super) fn find_or_coordinator(
        args: &PlaceArgs,
        coordinator: &CoordinatorArgs,
        config: &Config,
    ) -> Result<Self, MapError> {
        let mut levels = [of_flags(args), of_environment()?, of_file(config)?];
        for (level, named) in levels.iter_mut().zip(named(coordinator, config)?) {
            level.coordinator = named;
        }
        Self::of(args, config, &levels)
    }

    fn of(args: &PlaceArgs, config: &Config, levels: &[Level; 3]) -> Result<Self, MapError> {
        let wanted = wanted(&args.trust, config);
        // Where there may be one that this user cannot look at, that is said when it is read.
        let has_key = wanted
            .as_ref()
            .is_some_and(|wanted| !wanted.is_empty() || !matches!(key::usual_file(), Ok(None)));
        let no_mdns = args.no_mdns || (config.mdns == Some(false) && !args.mdns);
        let level = decide(levels, has_key, args.trust.insecure, no_mdns)?;
        let hidden = config.hidden.clone().filter(|_| !levels.iter().any(Level::names_a_place));
        let interfaces = interfaces(&args.mdns_interface, config);
        Ok(Self { level, interfaces, wanted, hidden })
    }

    /// Says what may have been said of where a map runs and could not be read.
    pub(super) fn warn(&self) {
        if let Some(path) = &self.hidden {
            say::line(&format!(
                "widemap: {} may say where workers are, and this user cannot look there: it is left \
                 out of account",
                path.display()
            ));
        }
    }

    /// The coordinator that is asked instead of workers.
    pub(super) fn coordinator(&self) -> Option<&Named> {
        self.level.coordinator.as_ref()
    }

    /// The slots of this machine that are asked for.
    pub(super) fn local(&self) -> Option<u32> {
        self.level.local
    }

    /// Whether nobody but this machine is asked.
    pub(crate) fn is_here_only(&self) -> bool {
        !self.asks_others()
    }

    /// Whether a place is named, so that workers are found without mDNS.
    pub(crate) fn names_places(&self) -> bool {
        let Level { workers, files, dns, .. } = &self.level;
        workers.is_some() || !files.is_empty() || !dns.is_empty()
    }

    /// Whether workers are looked for by mDNS.
    pub(crate) fn asks_mdns(&self) -> bool {
        self.level.mdns
    }

    /// The only interfaces that mDNS uses, unless empty.
    pub(crate) fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    fn asks_others(&self) -> bool {
        self.names_places() || self.asks_mdns()
    }

    /// The sources, and what proves this side to those who are there: the key is read only now, and
    /// only if somebody else is asked.
    ///
    /// # Errors
    /// If the key, or what stands for it, cannot be used.
    pub(crate) fn open(self) -> Result<Sources, MapError> {
        let nobody = Sources { sources: Vec::new(), trust: Trust::default(), exposed: Vec::new() };
        if !self.asks_others() {
            return Ok(nobody);
        }
        let identity = identity(self.wanted.as_ref(), Role::Coordinator)?;
        self.open_as(identity.as_ref())
    }

    /// The same for a coordinator that serves, which proves itself to users too, whoever else is asked.
    ///
    /// # Errors
    /// If the key, or what stands for it, cannot be used.
    pub(super) fn open_service(self) -> Result<(Sources, Option<Arc<Identity>>), MapError> {
        let identity = identity(self.wanted.as_ref(), Role::Service)?;
        Ok((self.open_as(identity.as_ref())?, identity))
    }

    fn open_as(self, identity: Option<&Arc<Identity>>) -> Result<Sources, MapError> {
        raise_open_files();
        let Level { workers, files, dns, mdns, .. } = self.level;
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        let mut exposed = Vec::new();
        if let Some(fixed) = workers {
            exposed.extend(fixed.addresses.iter().filter(|a| !is_loopback(a)).cloned());
            sources.push(Box::new(fixed));
        }
        for file in files {
            exposed.push(file.name.clone());
            sources.push(Box::new(file));
        }
        for dns in dns {
            exposed.push(dns.name.clone());
            sources.push(Box::new(dns));
        }
        if mdns {
            let mdns = Mdns { interfaces: self.interfaces, identity: identity.cloned() };
            exposed.push(mdns.name().to_owned());
            sources.push(Box::new(mdns));
        }
        let config = match identity {
            Some(identity) => {
                exposed.clear();
                Some(identity.client().map_err(|error| MapError::Certificate(error.to_string()))?)
            }
            None => None,
        };
        Ok(Sources { sources, trust: Trust(config), exposed })
    }
}

/// What proves this side, if it is wanted and there is one.
///
/// # Errors
/// If the key, or what stands for it, cannot be used.
pub(super) fn identity(
    wanted: Option<&Wanted>,
    role: Role,
) -> Result<Option<Arc<Identity>>, MapError> {
    let Some(wanted) = wanted else { return Ok(None) };
    // Before there is a secret in memory: items of this machine run as the same user.
    harden::close_memory().map_err(MapError::Start)?;
    Ok(Identity::find(wanted, role)?.map(Arc::new))
}

/// Each worker is a connection, and many may be dialled at a time. What runs on this machine keeps the
/// former limit: it was started before.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where the hard limit is "unlimited", systems refuse it as a soft one: then all stays as it is.
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
}

/// The level that counts, with mDNS as it follows from the rules.
fn decide(
    levels: &[Level; 3],
    has_key: bool,
    insecure: bool,
    no_mdns: bool,
) -> Result<Level, MapError> {
    let chosen = levels.iter().position(Level::names_a_place);
    // Said at that level or above it, mDNS is asked beside the place; below, the place turns it off.
    let levels_that_count = &levels[..chosen.map_or(levels.len(), |level| level + 1)];
    let mdns = !no_mdns && levels_that_count.iter().any(|level| level.mdns);
    let nothing_named = chosen.is_none() && !mdns;
    let mut level = chosen.map(|level| levels[level].clone()).unwrap_or_default();
    level.mdns = mdns;
    if let Some(coordinator) = &level.coordinator
        && let Some(other) = level.beside_the_coordinator()
    {
        return Err(MapError::Alone { coordinator: coordinator.by.clone(), other });
    }
    if level.mdns && !has_key && !insecure {
        return Err(MapError::Flag {
            flag: "--mdns",
            problem:
                "anybody on the network can announce a worker: make a key (widemap key new) and \
                      copy it to every host, or say --insecure as well"
                    .to_owned(),
        });
    }
    if nothing_named && has_key {
        if no_mdns {
            return Err(MapError::NobodyToAsk);
        }
        level.mdns = true;
    }
    Ok(level)
}

/// The only interfaces that mDNS uses, unless empty.
pub(super) fn interfaces(flag: &[String], config: &Config) -> Vec<String> {
    let levels =
        [flag.to_vec(), variable_list("WIDEMAP_MDNS_INTERFACE"), config.mdns_interface.clone()];
    levels.into_iter().find(|names| !names.is_empty()).unwrap_or_default()
}

/// What proves this side, by flags, else by the environment, else by the file; nothing does if that is
/// said.
pub(crate) fn wanted(args: &TrustArgs, config: &Config) -> Option<Wanted> {
    if args.insecure {
        return None;
    }
    let flags = Wanted {
        key: args.key.clone(),
        certificate: args.tls_cert.clone(),
        private_key: args.tls_key.clone(),
        authority: args.tls_ca.clone(),
    };
    Some(flags.or(Wanted::of_environment()).or(config.identity()))
}

/// The coordinator that each level names: flags, environment, configuration file.
///
/// # Errors
/// If one of them cannot be read.
pub(super) fn named(
    args: &CoordinatorArgs,
    config: &Config,
) -> Result<[Option<Named>; 3], MapError> {
    let flag = args.coordinator.clone();
    let flag = flag.map(|address| Named { by: "--coordinator".to_owned(), address });
    let variable = variable(COORDINATOR).map(|text| {
        let address = places::parse_coordinator(&text).map_err(|error| bad(COORDINATOR, error))?;
        Ok::<_, MapError>(Named { by: COORDINATOR.to_owned(), address })
    });
    let file = config.coordinator.as_ref().map(|text| {
        let path = config.path.clone().unwrap_or_default();
        let by = format!("coordinator in {}", path.display());
        let address = places::parse_coordinator(text);
        let problem = |error: places::AddressError| error.to_string();
        let address = address.map_err(|error| MapError::Configured {
            path,
            what: "coordinator",
            problem: problem(error),
        })?;
        Ok::<_, MapError>(Named { by, address })
    });
    Ok([flag, variable.transpose()?, file.transpose()?])
}

fn of_flags(args: &PlaceArgs) -> Level {
    let watched = |path: &PathBuf| Watched {
        name: format!("--workers-file {}", path.display()),
        path: path.clone(),
    };
    let dns = |(host, port): &(String, u16)| Dns {
        name: format!("--dns {host}"),
        host: host.clone(),
        port: *port,
    };
    Level {
        workers: fixed("--worker".to_owned(), args.worker.clone()),
        files: args.workers_file.iter().map(watched).collect(),
        dns: args.dns.iter().map(dns).collect(),
        local: args.local,
        mdns: args.mdns,
        coordinator: None,
    }
}

fn of_environment() -> Result<Level, MapError> {
    let workers = variable_list("WIDEMAP_WORKERS");
    let addresses = workers.iter().map(|text| places::parse(text)).collect::<Result<_, _>>();
    let addresses = addresses.map_err(|error| bad("WIDEMAP_WORKERS", error))?;
    let watched = |path: std::ffi::OsString| Watched {
        name: format!("WIDEMAP_WORKERS_FILE {}", path.to_string_lossy()),
        path: path.into(),
    };
    let file = std::env::var_os("WIDEMAP_WORKERS_FILE").filter(|value| !value.is_empty());
    let names = variable_list("WIDEMAP_DNS");
    let dns = names.iter().map(|text| {
        let (host, port) = places::parse_name(text).map_err(|error| bad("WIDEMAP_DNS", error))?;
        Ok(Dns { name: format!("WIDEMAP_DNS {host}"), host, port })
    });
    Ok(Level {
        workers: fixed("WIDEMAP_WORKERS".to_owned(), addresses),
        files: file.map(watched).into_iter().collect(),
        dns: dns.collect::<Result<_, MapError>>()?,
        local: variable("WIDEMAP_LOCAL").map(|text| slots("WIDEMAP_LOCAL", &text)).transpose()?,
        mdns: false,
        coordinator: None,
    })
}

fn of_file(config: &Config) -> Result<Level, MapError> {
    let Some(path) = &config.path else { return Ok(Level::default()) };
    let said = |what: &str| format!("{what} in {}", path.display());
    let problem =
        |what, error: String| MapError::Configured { path: path.clone(), what, problem: error };
    let addresses = config.workers.iter().map(|text| places::parse(text)).collect::<Result<_, _>>();
    let addresses = addresses.map_err(|error| problem("workers", error.to_string()))?;
    let watched = |path: &PathBuf| Watched {
        name: said(&format!("workers-file {}", path.display())),
        path: path.clone(),
    };
    let dns = config.dns.iter().map(|text| {
        let (host, port) =
            places::parse_name(text).map_err(|error| problem("dns", error.to_string()))?;
        Ok(Dns { name: said(&format!("dns {host}")), host, port })
    });
    if config.local.is_some_and(|slots| slots == 0 || slots > SLOTS_MAX) {
        return Err(problem("local", format!("a number of slots is from 1 to {SLOTS_MAX}")));
    }
    Ok(Level {
        workers: fixed(said("workers"), addresses),
        files: config.workers_file.iter().map(watched).collect(),
        dns: dns.collect::<Result<_, MapError>>()?,
        local: config.local,
        mdns: config.mdns == Some(true),
        coordinator: None,
    })
}

fn fixed(name: String, addresses: Vec<String>) -> Option<Fixed> {
    (!addresses.is_empty()).then_some(Fixed { name, addresses })
}

fn bad(flag: &'static str, error: impl std::fmt::Display) -> MapError {
    MapError::Flag { flag, problem: error.to_string() }
}

/// A variable, unless it is empty.
pub(super) fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().trim().to_owned();
    (!value.is_empty()).then_some(value)
}

fn variable_list(name: &str) -> Vec<String> {
    let text = variable(name).unwrap_or_default();
    text.split([',', ' ']).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// A number of slots.
pub(super) fn slots(name: &'static str, text: &str) -> Result<u32, MapError> {
    match text.parse() {
        Ok(slots) if (1..=SLOTS_MAX).contains(&slots) => Ok(slots),
        _ => Err(bad(name, format!("`{text}` is not a number of slots, from 1 to {SLOTS_MAX}"))),
    }
}

pub(super) fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests;
