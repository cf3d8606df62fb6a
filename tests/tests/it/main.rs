//! The outer rings: real processes on loopback.

mod errors;
mod faults;
mod help;
mod map;
mod property;
mod readme;
mod results;
mod simulation;
