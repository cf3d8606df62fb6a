//! The harness of the outer rings: finds (and builds) the binaries, starts workers, runs maps, and
//! ends whatever it started. Nothing here waits without a bound.

mod background;
mod binaries;
mod containers;
mod name_server;
mod net;
mod observe;
mod process;
mod said;
pub mod sim;
mod supervisor;
mod wait;

pub use background::MapProcess;
pub use binaries::{binary, example, without_this_crate};
pub use containers::{Container, Demo, Docker};
pub use name_server::NameServer;
pub use net::{Cable, Host, Network, Way};
pub use observe::{cpu_time, memory_bytes, memory_peak_bytes, processes_with};
pub use process::{
    Run, WorkerProcess, announced_worker, bytes_of, exec_in_background, run, run_within, widemap,
    without_configuration, worker,
};
pub use supervisor::SupervisedWorker;
pub use wait::{always_for, eventually, eventually_within, needs, needs_root, unmet};
