//! `widemap serve`: from what was typed to a service.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use widemap_cluster::Identity;
use widemap_cluster::config::Config;
use widemap_cluster::mdns::{Announcer, Service};
use widemap_cluster::record::Announcement;
use widemap_common::ids::Incarnation;
use widemap_common::limits::{ANNOUNCED_NAME_BYTES_MAX, SERVICE_LEASE_MS};
use widemap_common::time::Timers;
use widemap_proto::VERSION;

use super::options::ServeArgs;
use super::place::{self, Sources, Whereabouts};
use super::settings::slots_max;
use super::{complain, map};
use crate::embedded::Spawner;
use crate::error::MapError;
use crate::places::COORDINATOR_PORT;
use crate::service::{self, DeskLimits, ServeConfig};
use crate::{logging, say};

/// Runs `widemap serve`.
pub(crate) fn run(args: ServeArgs) -> ExitCode {
    match config(args).and_then(service::run) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            complain(&error, error.hint());
            ExitCode::from(error.status())
        }
    }
}

/// Decides everything that can be decided before anybody is served, and starts the spawner while the
/// process has one thread.
fn config(args: ServeArgs) -> Result<ServeConfig, MapError> {
    let config = Config::find()?;
    logging::start_service(&args.log, &config)?;
    let slots_max = slots_max(args.jobs, &config)?;
    let whereabouts = Whereabouts::find(&args.place, &config)?;
    let local = map::local_slots(&whereabouts, slots_max);
    let local = match local {
        Some(slots) => Some((Spawner::start(slots)?, slots)),
        None => None,
    };
    // The key is read after the spawner was forked: it is in no process that runs items.
    let interfaces = place::interfaces(&args.place.mdns_interface, &config);
    let (Sources { sources, trust, exposed }, identity) = whereabouts.open_service()?;
    map::warn_of(&exposed);
    let listen = listen(&args, identity.is_some());
    check(&listen, identity.is_some() || args.place.trust.insecure)?;
    let is_announced = !args.place.no_mdns && config.mdns != Some(false);
    let entrance = Entrance {
        identity: identity.clone(),
        insecure: args.place.trust.insecure,
        interfaces,
        is_announced,
    };
    Ok(ServeConfig {
        listen,
        data: args.data.unwrap_or_else(usual_data),
        identity,
        sources,
        trust,
        local,
        slots_max,
        timers: lasting(args.place.timers),
        limits: DeskLimits {
            jobs_max: args.jobs_max,
            input_bytes_max: args.input_max,
            disk_bytes_max: args.disk_max,
        },
        keep: args.keep,
        http: args.http,
        begun: Box::new(move |address| entrance.open(address)),
    })
}

/// Workers wait longer for a coordinator that comes back than for a map, unless something else is said.
fn lasting(timers: Timers) -> Timers {
    match timers.lease_ms == Timers::default().lease_ms {
        true => Timers { lease_ms: SERVICE_LEASE_MS, ..timers },
        false => timers,
    }
}

/// Where to listen: beyond this host only with a key, unless that is said.
fn listen(args: &ServeArgs, has_identity: bool) -> String {
    let host = if has_identity { "0.0.0.0" } else { "127.0.0.1" };
    args.listen.clone().unwrap_or_else(|| format!("{host}:{COORDINATOR_PORT}"))
}

/// Nobody beyond this host is let in unless whoever comes is proved, or that was said not to matter.
fn check(listen: &str, beyond: bool) -> Result<(), MapError> {
    let addresses = listen.to_socket_addrs();
    let mut addresses =
        addresses.map_err(|source| MapError::Listen { address: listen.to_owned(), source })?;
    match addresses.find(|address| !address.ip().is_loopback()) {
        Some(open) if !beyond => Err(MapError::NotLoopback(open)),
        _ => Ok(()),
    }
}

/// Where jobs are kept if nothing is said: the user's state directory.
fn usual_data() -> PathBuf {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::home_dir().map(|home| home.join(".local/state"));
    let directory = state.filter(|path| path.is_absolute()).or_else(home);
    directory.unwrap_or_else(|| PathBuf::from("/var/lib")).join("widemap").join("serve")
}

/// How users find the way in.
struct Entrance {
    identity: Option<Arc<Identity>>,
    insecure: bool,
    interfaces: Vec<String>,
    is_announced: bool,
}

impl Entrance {
    /// Says where users are served, and announces it for as long as what comes back lives.
    fn open(self, address: SocketAddr) -> Result<Box<dyn Send>, MapError> {
        let port = address.port();
        match &self.identity {
            Some(identity) => {
                let cluster =
                    identity.cluster().map_or_else(String::new, |id| format!("cluster {id}, "));
                say::line(&format!("widemap: {cluster}by the {}", identity.source()));
            }
            None if !address.ip().is_loopback() => say::line(&format!(
                "widemap: WARNING: --insecure: whoever reaches {address} runs commands on the workers"
            )),
            None if self.insecure => say::line(
                "widemap: WARNING: --insecure: every user of this host can run commands on the workers",
            ),
            None => {
                say::line(&format!(
                    "widemap: use it from this host: widemap submit --coordinator 127.0.0.1:{port} -- \
                     COMMAND"
                ));
                say::line(
                    "widemap: for other hosts: widemap key new, the same file on each of them, start \
                     it again",
                );
            }
        }
        if !self.is_announced || address.ip().is_loopback() {
            return Ok(Box::new(()));
        }
        let mut name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        name.truncate(name.floor_char_boundary(ANNOUNCED_NAME_BYTES_MAX));
        let announcement = Announcement {
            name,
            protocol: (VERSION.major, VERSION.minor),
            incarnation: Incarnation(fastrand::u64(..)),
            slots: 0,
            cluster: self.identity.as_ref().and_then(|identity| identity.cluster()),
        };
        let started = Announcer::start(
            Service::Coordinator,
            &announcement,
            port,
            address.ip(),
            &self.interfaces,
        );
        match started {
            Ok(announcer) => Ok(Box::new(Presence(Some(announcer)))),
            Err(error) => {
                // Those who name it reach it all the same.
                say::line(&format!("widemap: WARNING: not announced: {error}"));
                Ok(Box::new(()))
            }
        }
    }
}

/// What is announced; the link is told when it ends.
struct Presence(Option<Announcer>);

impl Drop for Presence {
    fn drop(&mut self) {
        let Some(announcer) = self.0.take() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        // Without one it is not said, and whoever looks finds nobody there.
        if let Ok(runtime) = runtime {
            runtime.block_on(announcer.goodbye());
        }
    }
}
