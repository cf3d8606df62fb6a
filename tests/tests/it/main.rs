//! The outer rings: the simulation, and real processes, on loopback and on hosts that are network
//! namespaces.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod chaos;
mod clock;
mod deaths;
mod discovery;
mod doctor;
mod door;
mod ends;
mod errors;
mod faults;
mod fuzz;
mod help;
mod journal;
mod large;
mod map;
mod operations;
mod partitions;
mod places;
mod property;
mod readers;
mod readme;
mod results;
mod role;
mod service;
mod simulation;
mod stragglers;
mod support;
mod trust;
mod weather;
