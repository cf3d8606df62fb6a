//! The worker from outside: its session spoken raw, its commands, and what it leaves behind.
#![allow(clippy::unwrap_used, reason = "these are tests")]

#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(target_os = "linux")]
mod closed;
#[cfg(target_os = "linux")]
mod commands;
#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod filter;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod many;
mod mdns;
mod register;
#[cfg(target_os = "linux")]
mod run_as;
mod session;
mod support;
#[cfg(target_os = "linux")]
mod widths;
