//! The outer rings: the simulation, and real processes, on loopback and on hosts that are network
//! namespaces.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod chaos;
mod clock;
mod conformance;
mod containers;
mod deaths;
mod discovery;
mod doctor;
mod door;
mod ends;
mod errors;
mod faults;
mod files;
mod filter;
mod functions;
mod fuzz;
mod help;
mod hosts;
mod items;
mod journal;
mod large;
mod limits;
mod map;
mod operations;
mod outputs;
mod partitions;
mod places;
mod pool;
mod property;
mod python;
mod readers;
mod readme;
mod results;
mod resumed;
mod role;
mod service;
mod simulation;
mod stragglers;
mod support;
mod trust;
mod wasm;
mod weather;
