//! The coordinator of Widemap, as a library: the binary `widemap` is a call of [`main`], and the
//! outer tests and benches reach the data plane through [`data`].

pub mod data;

mod api;
mod cli;
mod client;
mod doctor;
mod driver;
mod embedded;
mod error;
mod exit;
#[doc(hidden)]
pub mod failpoint;
mod journal;
mod logging;
mod operations;
mod page_cache;
mod places;
mod progress;
mod say;
mod service;
mod session;
mod summary;
mod thread;

/// The parts of a session that have no network in them, for the simulation.
#[doc(hidden)]
pub mod session_for_tests {
    pub use crate::session::{Outbox, PaceBounds, Recalled, SendBounds, StreamId};
}

/// The reader of the journal's log, for its fuzz target.
#[doc(hidden)]
pub mod journal_for_tests {
    pub use crate::journal::fuzz::{facts_of, good_log};
}

use std::path::Path;
use std::process::ExitCode;

use widemap_common::memory::keep_freed_blocks;

/// The whole program: reads the command line, does what it says, returns the exit status.
///
/// Must be called before the process has a second thread: the spawner of embedded workers is forked
/// from it.
#[must_use]
pub fn main() -> ExitCode {
    keep_freed_blocks();
    let argv: Vec<_> = std::env::args_os().collect();
    // Where space is dear, a link of that name is a second program: most of this one is the worker's.
    match argv.first().is_some_and(|name| Path::new(name).ends_with("widemap-worker")) {
        true => embedded::alone(),
        false => cli::run(&argv),
    }
}
