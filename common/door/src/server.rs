//! How a server of ours is set up: windows for parts of payload, a sign of life asked of silent
//! connections, and what each call passes first.

use std::time::Duration;

use tonic::transport::Server;
use widemap_common::limits::PART_BYTES_MAX;
use widemap_common::time::Timers;

use crate::layers::{Layers, LimitLayer, RoleLayer, TraceLayer};

/// The HTTP/2 windows: a few parts of payload on the way.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// Calls of one connection at a time: streams, unary calls, health checks, reflection.
const CALLS_MAX: u32 = 32;

/// Whose door it is, in the words of what is said there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// A worker's.
    Worker,
    /// A coordinator's that serves users.
    Coordinator,
}

/// Who may pass, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Whose it is.
    pub host: Host,
    /// Whether each call must come from a [`Peer`](crate::Peer) whose certificate is for it.
    pub roles_required: bool,
    /// Calls that may be on their way in at a time, over all connections.
    pub calls_max: usize,
}

impl Host {
    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Coordinator => "coordinator",
        }
    }

    /// The program that it is.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Worker => "widemap-worker",
            Self::Coordinator => "widemap serve",
        }
    }

    /// Who may use it, and for what.
    pub(crate) fn guests(self) -> &'static str {
        match self {
            Self::Worker => "only a coordinator may open a session",
            Self::Coordinator => "jobs are for those who have the key of the cluster",
        }
    }
}

impl Gate {
    /// A server behind it.
    #[must_use]
    pub fn server(self, timers: &Timers) -> Server<Layers> {
        Server::builder()
            .tcp_nodelay(true)
            .http2_keepalive_interval(Some(Duration::from_millis(timers.keepalive_ms)))
            .http2_keepalive_timeout(Some(Duration::from_millis(timers.keepalive_timeout_ms)))
            .initial_connection_window_size(WINDOW_BYTES)
            .initial_stream_window_size(WINDOW_BYTES)
            .max_frame_size(u32::try_from(PART_BYTES_MAX).expect("a part is far below 4 GiB"))
            .max_concurrent_streams(CALLS_MAX)
            .concurrency_limit_per_connection(CALLS_MAX as usize)
            .layer(TraceLayer)
            .layer(RoleLayer::required(self.roles_required, self.host))
            .layer(LimitLayer::new(self.calls_max))
    }
}
