//! The durable facts of jobs, and their results: what a coordinator that is killed goes on from.
//!
//! A job is a directory: `job` says what was submitted, `input` has the items, `files` what is in its
//! files, `facts` is a small log
//! that is read whole at a start, and `payload-N` are segments with the results, which are read when
//! they are wanted. One thread writes for all jobs and makes many facts durable together. Only what is
//! durable reaches a [`Shelf`], from which results are read, and only [`Durable`] lets a worker forget
//! what it has sent; nobody but the writer makes one.

mod artifacts;
mod check;
mod cursor;
mod error;
mod extent;
mod fact;
mod files;
pub(crate) mod fuzz;
mod job_file;
mod long_file;
mod medium;
mod record;
mod shelf;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use artifacts::artifact_path;
pub(crate) use check::{Finding, check};
pub(crate) use cursor::{Cursor, Next};
pub(crate) use error::JournalError;
pub(crate) use job_file::JobHeader;
pub(crate) use medium::{Disk, Medium};
pub(crate) use shelf::Shelf;
pub(crate) use store::{Draft, KeptJob, Store};
pub(crate) use writer::{Commit, Durable, Entry, Payload, Ticket, Writer};
