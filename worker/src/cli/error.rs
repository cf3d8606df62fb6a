//! Why a worker does not come up, and the status that says so.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use widemap_cluster::IdentityError;
use widemap_cluster::config::ConfigError;
use widemap_cluster::mdns::MdnsError;

use crate::register::RegisterError;
use crate::spawner::{RunAsError, SpawnerError};
use crate::worker::WorkerError;

/// The command line was wrong; nothing was started.
pub(super) const USAGE: u8 = 2;
/// The worker could not be brought up.
pub(super) const NOT_UP: u8 = 3;
/// Why the worker did not come up, or went.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
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
    #[error("cannot write to {path}: {1}", path = .0.display())]
    Manual(PathBuf, #[source] io::Error),
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
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::Address(..)
            | Self::NotLoopback(_)
            | Self::Log(..)
            | Self::Manual(..)
            | Self::LogFormat { .. }
            | Self::Identity(_)
            | Self::Config(_)
            | Self::RunAs(_)
            | Self::Register(_)
            | Self::Spawner(SpawnerError::RunAs(_) | SpawnerError::Cgroup(_)) => USAGE,
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
