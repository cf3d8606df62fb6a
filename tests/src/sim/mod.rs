//! Ring 2: the real scheduler over a simulated network and simulated workers, in simulated time,
//! held against a sequential run of the list at every step.
//!
//! [`Sim`] is for stories, [`run_seed`] for runs in which a seed decides what goes wrong. The driver
//! (`coordinator.rs`, `act.rs`, `fleet.rs`, `outbox.rs`) and the worker (`worker.rs`) are simulated
//! and keep to the real ones; the scheduler, held input, reports and the messages of a session are
//! the real ones. The reorder buffer is a simple one, since the real one writes through threads.

#![allow(clippy::needless_pass_by_value, reason = "what happens in a simulation is consumed by it")]

mod act;
mod agenda;
mod coordinator;
mod faults;
mod fleet;
mod host;
mod job;
mod merge;
mod network;
mod options;
mod oracle;
mod outbox;
mod seeds;
mod story;
mod worker;
mod world;

pub use options::Options;
pub use oracle::Nature;
pub use seeds::{Ran, run_seed};
pub use story::{
    Chunk, Condition, Draft, Map, Sim, chunk, gone, holds, lost, settled, storage_full,
};
