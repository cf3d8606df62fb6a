//! What those who serve users and those who run jobs have in common: which jobs there are, how far each
//! is, and what is asked of the driver.
//!
//! The API reaches everything through the [`Desk`]. The driver owns the other end of its requests, and
//! publishes what becomes of a job in the job's [`JobEntry`]. What is kept on disk stands behind
//! [`Ledger`] and [`Shelf`]. How far a job is has its types in `widemap_proto::jobs`, as users see it too.

mod collect;
mod desk;
#[cfg(test)]
pub(crate) mod fake;
mod intake;
mod kept;
mod ledger;
mod registry;
mod request;
mod run;
mod shared;

pub(crate) use collect::Collect;
pub(crate) use desk::{Desk, DeskError, DeskLimits};
pub(crate) use intake::Intake;
pub(crate) use kept::Kept;
pub(crate) use ledger::LedgerError;
pub(crate) use registry::{JobEntry, Registry};
pub(crate) use request::{Reply, Request, RequestError};
pub(crate) use run::{ServeConfig, run};
