//! What can go wrong in a simulation, and what ends it.

use std::time::Duration;

use super::agenda::HostId;

/// Something that befalls the cluster at a moment.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// All streams of a host are reset.
    Reset(HostId),
    /// Nothing passes to a host, or from it, or both, and nobody is told.
    Partition { host: HostId, down: bool, up: bool, for_time: Duration },
    /// The process of a host is stopped, and goes on later.
    Freeze { host: HostId, for_time: Duration },
    /// The process of a worker dies; another starts at its address later, if told so.
    Crash { host: HostId, restart_after: Option<Duration> },
    /// Another process starts at the address, if there is none.
    Start(HostId),
    /// The worker is told to end; another starts at its address later, if told so.
    Drain { host: HostId, restart_after: Option<Duration> },
    /// Another coordinator takes all but so many slots of the worker.
    Credit { host: HostId, slots: u32 },
    /// Whoever reads the output of a job stops.
    Stall(usize),
    /// Whoever reads the output of a job goes on.
    Flow(usize),
    /// A job is opened.
    Open(usize),
    /// The user gives a job up.
    Cancel(usize),
    /// A worker appears at another address.
    Join { slots: u32 },
    /// From here on nothing goes wrong.
    Calm,
}
