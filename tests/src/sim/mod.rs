//! Ring 2: the real scheduler over a simulated network and simulated workers, in simulated time,
//! held against a sequential run of the list at every step.
//!
//! [`Sim`] is for stories, [`run_seed`] for runs in which a seed decides what goes wrong. The
//! scheduler, held input, reports, the merge with its reorder buffer, spill and sink, the
//! coordinator's outboxes and the messages of a session are the real ones. The driver
//! (`coordinator.rs`, `act.rs`, `fleet.rs`) and the worker (`worker.rs`, `reports.rs`, `outgoing.rs`,
//! `input.rs`) are simulated and keep to the real ones; their files say where they do not.

#![allow(clippy::needless_pass_by_value, reason = "what happens in a simulation is consumed by it")]

mod act;
mod agenda;
mod coordinator;
mod draft;
mod faults;
mod fleet;
mod held;
mod host;
mod input;
mod job;
mod links;
mod network;
mod options;
mod oracle;
mod outgoing;
mod process;
mod reports;
mod results;
mod seeds;
mod story;
mod worker;
mod world;

pub use draft::{Draft, Map};
pub use options::Options;
pub use oracle::Nature;
pub use seeds::{Ran, run_seed};
pub use story::{Chunk, Condition, Sim, chunk, gone, holds, lost, settled, storage_full};
