//! Limits that a flag, a variable or the configuration file can set, in this order.

use widemap_cluster::config::Config;
use widemap_common::limits::{MAX_OUTPUT_BYTES, SLOTS_MAX, WAIT_WORKERS_S};
use widemap_common::units::parse_size;

use super::Wait;
use super::options::{MapArgs, parse_wait};
use super::place::{slots, variable};
use crate::error::MapError;

/// See the file's head.
pub(super) struct Settings {
    /// At most so many slots of each worker.
    pub(super) jobs: Option<u32>,
    /// How long to wait for a usable worker.
    pub(super) wait_workers: Wait,
    /// The most that an item may print.
    pub(super) max_output: u64,
}

impl Settings {
    /// What holds for this map.
    ///
    /// # Errors
    /// The variable, or the value of the file, that makes no sense.
    pub(super) fn find(args: &MapArgs, config: &Config) -> Result<Self, MapError> {
        let jobs = slots_max(args.jobs, config)?;
        let wait = level(args.wait_workers, "WIDEMAP_WAIT_WORKERS", parse_wait, || {
            read(config, "wait-workers", config.wait_workers.as_deref(), parse_wait)
        })?;
        Ok(Self {
            jobs,
            wait_workers: wait.unwrap_or(Wait::For(std::time::Duration::from_secs(WAIT_WORKERS_S))),
            max_output: max_output(args.job.max_output, config)?,
        })
    }
}

/// At most so many slots of each worker.
///
/// # Errors
/// The variable, or the value of the file, that makes no sense.
pub(super) fn slots_max(flag: Option<u32>, config: &Config) -> Result<Option<u32>, MapError> {
    Ok(match (flag, variable("WIDEMAP_JOBS"), config.jobs) {
        (Some(jobs), ..) => Some(jobs),
        (None, Some(text), _) => Some(slots("WIDEMAP_JOBS", &text)?),
        (None, None, Some(jobs)) if !(1..=SLOTS_MAX).contains(&jobs) => {
            let problem = format!("a number of slots is from 1 to {SLOTS_MAX}");
            return Err(configured(config, "jobs", problem));
        }
        (None, None, jobs) => jobs,
    })
}

/// The most that an item may print.
///
/// # Errors
/// The variable, or the value of the file, that makes no sense.
pub(super) fn max_output(flag: Option<u64>, config: &Config) -> Result<u64, MapError> {
    let max_output = level(flag, "WIDEMAP_MAX_OUTPUT", parse_size, || {
        read(config, "max-output", config.max_output.as_deref(), parse_size)
    })?;
    Ok(max_output.unwrap_or(MAX_OUTPUT_BYTES))
}

fn level<T, E: std::fmt::Display>(
    flag: Option<T>,
    name: &'static str,
    parse: impl Fn(&str) -> Result<T, E>,
    file: impl FnOnce() -> Result<Option<T>, MapError>,
) -> Result<Option<T>, MapError> {
    match (flag, variable(name)) {
        (Some(value), _) => Ok(Some(value)),
        (None, Some(text)) => parse(&text)
            .map(Some)
            .map_err(|error| MapError::Flag { flag: name, problem: error.to_string() }),
        (None, None) => file(),
    }
}

fn read<T, E: std::fmt::Display>(
    config: &Config,
    what: &'static str,
    text: Option<&str>,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>, MapError> {
    let value = text.map(parse).transpose();
    value.map_err(|error| configured(config, what, error.to_string()))
}

fn configured(config: &Config, what: &'static str, problem: String) -> MapError {
    MapError::Configured { path: config.path.clone().unwrap_or_default(), what, problem }
}
