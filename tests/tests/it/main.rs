//! The outer rings: the simulation, and real processes on loopback.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod deaths;
mod errors;
mod faults;
mod help;
mod map;
mod partitions;
mod property;
mod readme;
mod results;
mod simulation;
mod support;
mod weather;
