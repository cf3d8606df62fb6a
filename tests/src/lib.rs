//! The harness of the outer rings: finds (and builds) the binaries, starts workers, runs maps, and
//! ends whatever it started. Nothing here waits without a bound.

mod binaries;
mod process;
pub mod sim;
mod wait;

pub use binaries::binary;
pub use process::{Run, WorkerProcess, bytes_of, exec_in_background, run, run_within, widemap};
pub use wait::{eventually, needs};
