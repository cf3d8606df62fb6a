//! Widemap's scheduler: pure, events in and actions out.
//!
//! [`event`] lists what it is told and what it asks for; [`Scheduler::handle`] is the only thing
//! that changes it. It has no clock, no file and no payload. The state is split by entity: a job
//! (`job.rs`) has a list of chunks that are not final (`chunk.rs`), a chunk has an attempt or two
//! (`attempt.rs`), which are on a worker's list (`worker.rs`). What is final is forgotten at once.

mod adopt;
mod assign;
mod attempt;
mod chunk;
pub mod event;
mod exclude;
mod explain;
mod ghost;
mod invariants;
mod job;
mod members;
mod outcome;
mod pool;
mod record;
mod scheduler;
mod sizing;
mod slab;
mod speculate;
mod suspect;
#[cfg(test)]
mod tests;
mod window;
mod worker;

pub use explain::{WorkerState, WorkerView};
pub use job::Counts;
pub use scheduler::{Scheduler, SchedulerConfig};
