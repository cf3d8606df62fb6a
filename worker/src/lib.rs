//! A Widemap worker as a library: register your own Rust functions, and the same binary serves them
//! to every coordinator beside commands and pipes.
//!
//! A worker with a function of your own is a `main` of three lines:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use widemap_worker::{Context, FunctionError, Output, Registry};
//!
//! fn count_words(item: &[u8], output: &mut Output, _: &Context) -> Result<(), FunctionError> {
//!     let words = std::str::from_utf8(item)?.split_whitespace().count();
//!     output.extend_from_slice(words.to_string().as_bytes());
//!     Ok(())
//! }
//!
//! fn main() -> ExitCode {
//!     widemap_worker::main(Registry::stock().function("count-words", count_words))
//! }
//! ```
//!
//! Then `widemap map --worker HOST:PORT --builtin count-words < lines`.

mod cli;
mod environment;
mod files;
mod function;
mod job;
mod register;
mod runtime;
mod server;
mod session;
mod slots;
mod spawner;
mod stock;
mod worker;

pub use cli::main;
pub use function::{Context, Function, FunctionError, Output, Registry};
pub use spawner::{RunAs, RunAsError, Spawner, SpawnerError, SpawnerGone, Step};
pub use worker::{Worker, WorkerConfig, WorkerError};
