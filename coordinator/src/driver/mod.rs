//! The drivers: what owns the scheduler and turns what links, inputs, outputs, signals and time say into
//! events for it, and its actions into what is done. A driver never waits for a disk, a reader of the
//! output or a slow worker: those have threads and tasks of their own. [`core`] is what both have in
//! common: a map of one's own ([`one_shot`]), and a service that runs the jobs of many.

mod act;
mod company;
mod core;
mod fleet;
mod hear;
mod job;
mod journaled;
mod notices;
mod one_shot;
mod plan;
mod returning;
mod service;
mod tally;
#[cfg(test)]
mod tests;
mod unsettled;

use tokio::time::Instant;
use widemap_common::ids::{AttemptId, Epoch};
use widemap_common::time::Time;

pub(crate) use fleet::{Fleet, LinkStatus};
pub(crate) use one_shot::run;
pub(crate) use plan::{Ending, JournalPlan, Outcome, Plan, Results, block_rule, job_policy};
pub(crate) use service::{Observed, Pulse, ServiceMake, serve};
pub(crate) use tally::Tally;

#[cfg(test)]
use one_shot::drive;

/// The build, as a hello tells it.
pub(crate) const BUILD: &str = concat!("widemap ", env!("CARGO_PKG_VERSION"));

/// The ids of attempts of different epochs do not meet: each has so many bits.
const ATTEMPT_BITS: u32 = 40;

/// The first attempt of an epoch.
fn first_attempt(epoch: Epoch) -> AttemptId {
    AttemptId(epoch.0 << ATTEMPT_BITS)
}

/// Sleeps until a moment of the driver's clock; forever if there is none.
async fn until(begun: Instant, deadline: Option<Time>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(begun + at.since(Time::ZERO)).await,
        None => std::future::pending().await,
    }
}
