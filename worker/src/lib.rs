//! A Widemap worker as a library: register your own Rust functions, and the same binary serves them
//! to every coordinator beside commands and pipes.
//!
//! A worker with a function of your own is a `main` of three lines:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use widemap_worker::Registry;
//!
//! fn main() -> ExitCode {
//!     let registry = Registry::stock();
//!     let registry = registry.map("count-words", |line: String| line.split_whitespace().count());
//!     widemap_worker::main(registry)
//! }
//! ```
//!
//! Then `widemap map --worker HOST:PORT --builtin count-words < lines`. It has every flag of the stock worker.
//!
//! - [`Registry::map`]: a function of types, which are [`Input`] and [`Returned`]: texts, bytes, numbers, and
//!   whatever serde reads and writes ([`Json`]).
//! - [`Registry::map_with`]: the same with a state that each slot makes for itself: a connection, a model.
//! - [`Registry::function`]: a function of bytes that appends to the output, and is told of a cancel and of the
//!   item's deadline.
//!
//! An error and a panic fail the item that they are of, and nothing else. `examples/functions.rs` is a whole
//! worker.

mod artifacts;
mod cli;
mod environment;
mod files;
mod function;
mod job;
mod memory;
mod receive;
mod register;
mod runtime;
mod server;
mod session;
mod slots;
mod spawner;
mod stock;
mod typed;
mod worker;

pub use cli::main;
pub use function::{Context, Function, FunctionError, Output, Registry};
pub use spawner::{
    Cgroup, CgroupError, RunAs, RunAsError, Spawner, SpawnerError, SpawnerGone, Step,
};
pub use typed::{Input, Json, Returned};
pub use worker::{Worker, WorkerConfig, WorkerError};
