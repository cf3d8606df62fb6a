//! The worker from outside: its session spoken raw, its commands, and what it leaves behind.
#![allow(clippy::unwrap_used, reason = "these are tests")]

#[cfg(target_os = "linux")]
mod commands;
mod session;
mod support;
