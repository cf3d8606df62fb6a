//! The options of what users ask of a coordinator that serves.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use widemap_common::ids::JobId;
use widemap_common::time::Timers;
use widemap_common::units::parse_duration;

use super::{
    CoordinatorArgs, HOW, JobArgs, ListFormat, LogArgs, OUT, RecordArgs, TrustArgs, WHERE,
    parse_every,
};

const SUBMIT_EXAMPLES: &str = "\
Examples:
  id=$(widemap submit -a list -- identify {})       one process an item, wherever the coordinator has workers
  widemap results $id > sizes                       now or tomorrow: waits, and gives the same each time
  seq 10 | widemap submit --submit-key night-7 --builtin square

The id of the job is all that is printed, once the job and its items are on the coordinator's disk.
Exit status: 0 it is a job, 2 it was refused, 3 the coordinator cannot be used.";

const STATUS_FIELDS: &str = "\
With --format json, one object:
  job           its number; `id` is the same as j3
  name, submitter, submit_key, function, priority, weight: as it was submitted
  state         queued, running, paused, complete, cancelled, unusable (no worker can run it), failed,
                halted (--halt, --canary)
  message       why it is unusable or failed, or null
  waits_for     what it waits for, in one sentence, or null
  created_ms, started_ms, ended_ms: Unix times in milliseconds, or null
  items         read so far, total (null until all are read), ok, failed
  retried       runs of items beyond their first
  attempts      attempts at chunks; speculative_wins: second ones that came in first
  workers       that ran it or could have; workers_lost: that were lost while they did
  input_bytes, output_bytes: of its items, and of its results so far
  format, unordered: the form of its results";

/// Which coordinator, and how this side proves itself to it.
#[derive(Debug, Args)]
pub(crate) struct UserArgs {
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,

    /// Do not look for the coordinator on the local network
    #[arg(long, help_heading = WHERE)]
    pub(crate) no_mdns: bool,

    /// Look for it over this interface alone; may be repeated [env: WIDEMAP_MDNS_INTERFACE]
    #[arg(long, value_name = "NAME", help_heading = WHERE, value_delimiter = ',')]
    #[arg(conflicts_with = "no_mdns", hide_short_help = true)]
    pub(crate) mdns_interface: Vec<String>,

    #[command(flatten)]
    pub(crate) trust: TrustArgs,

    /// Timers of the connection, NAME=MS,...
    #[arg(long, value_name = "TIMERS", hide = true, default_value = "")]
    pub(crate) timers: Timers,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// Options of `widemap submit`.
#[derive(Debug, Args)]
#[command(override_usage = "widemap submit [OPTIONS] [--] COMMAND [ARG]... [::: ITEM...]\n       \
                            widemap submit [OPTIONS] --python|--wasm|--builtin X [::: ITEM...]")]
#[command(after_long_help = SUBMIT_EXAMPLES)]
#[command(after_help = "More, with examples: widemap submit --help")]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,

    /// Keep what --joblog and --results of `widemap results` need
    #[arg(long, help_heading = OUT)]
    pub(crate) keep_records: bool,

    #[command(flatten)]
    pub(crate) user: UserArgs,
}

/// Options of `widemap jobs`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub(crate) struct JobsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<JobsCommand>,

    /// The form of the list
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub(crate) format: ListFormat,

    #[command(flatten)]
    pub(crate) user: UserArgs,
}

/// What `widemap jobs` does beside listing them.
#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// Remove jobs that have ended, with their items and results; prints which
    Prune(Box<PruneArgs>),
}

/// Options of `widemap jobs prune`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true))]
pub(crate) struct PruneArgs {
    /// These
    #[arg(value_name = "J", value_parser = parse_job, group = "which", conflicts_with = "all")]
    pub(crate) jobs: Vec<JobId>,

    /// Only those that ended longer ago
    #[arg(long, value_name = "TIME", value_parser = parse_duration, group = "which")]
    pub(crate) older_than: Option<Duration>,

    /// All that have ended
    #[arg(long, group = "which")]
    pub(crate) all: bool,

    #[command(flatten)]
    pub(crate) user: UserArgs,
}

/// Which job.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct JobArg {
    /// The job: 3, or j3
    #[arg(value_name = "J", value_parser = parse_job)]
    pub(crate) job: JobId,
}

/// Options of `widemap status`.
#[derive(Debug, Args)]
#[command(after_long_help = STATUS_FIELDS)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) job: JobArg,

    /// The form of the answer
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub(crate) format: ListFormat,

    #[command(flatten)]
    pub(crate) user: UserArgs,
}

/// Options of `widemap results`.
#[derive(Debug, Args)]
pub(crate) struct ResultsArgs {
    #[command(flatten)]
    pub(crate) job: JobArg,

    /// Write the results to FILE, which appears whole or not at all
    #[arg(long, value_name = "FILE", help_heading = OUT)]
    pub(crate) output: Option<PathBuf>,

    /// Write what failed to FILE, a JSON object a line [default: a file that is named, if any did]
    #[arg(long, value_name = "FILE", help_heading = OUT)]
    pub(crate) failures: Option<PathBuf>,

    /// Write what was run, its counts and the hash of the output to FILE, as JSON
    #[arg(long, value_name = "FILE", help_heading = OUT)]
    pub(crate) receipt: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) records: RecordArgs,

    /// Say so often which item the results wait for
    #[arg(long, value_name = "TIME", value_parser = parse_every, help_heading = HOW)]
    #[arg(hide_short_help = true)]
    pub(crate) explain_every: Option<Duration>,

    /// Say nothing but errors
    #[arg(short, long, help_heading = OUT)]
    pub(crate) quiet: bool,

    /// Show no progress on the terminal
    #[arg(long, help_heading = OUT)]
    pub(crate) no_progress: bool,

    #[command(flatten)]
    pub(crate) user: UserArgs,
}

/// Options of `widemap cancel`, `pause` and `unpause`.
#[derive(Debug, Args)]
pub(crate) struct TouchArgs {
    #[command(flatten)]
    pub(crate) job: JobArg,

    #[command(flatten)]
    pub(crate) user: UserArgs,
}

/// Options of `widemap explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The job, or one item of it: j3, j3/17 (its 17th item), j3/c16 (as the log shows a chunk)
    #[arg(value_name = "J[/C]", value_parser = parse_place)]
    pub(crate) place: (JobId, Option<u64>),

    /// The form of the answer
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub(crate) format: ListFormat,

    #[command(flatten)]
    pub(crate) user: UserArgs,
}

fn parse_job(text: &str) -> Result<JobId, String> {
    let digits = text.strip_prefix('j').unwrap_or(text);
    let number = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    number.map(JobId).ok_or_else(|| format!("`{text}` is no job: it is called 3, or j3"))
}

/// A job, and an item of it, counted from 0.
fn parse_place(text: &str) -> Result<(JobId, Option<u64>), String> {
    let Some((job, item)) = text.split_once('/') else { return Ok((parse_job(text)?, None)) };
    let bad = || format!("`{item}` is no item: it is 17 (counted from 1), or c16+4 (from 0)");
    let place = match item.strip_prefix('c') {
        Some(range) => {
            let (first, items) = range.split_once('+').unwrap_or((range, "1"));
            let known: Option<(u64, u32)> = first.parse().ok().zip(items.parse().ok());
            known.map(|(first, _)| first).ok_or_else(bad)?
        }
        None => item.parse::<u64>().ok().and_then(|seq| seq.checked_sub(1)).ok_or_else(bad)?,
    };
    Ok((parse_job(job)?, Some(place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_a_number_with_or_without_its_letter() {
        assert_eq!(parse_job("3"), Ok(JobId(3)));
        assert_eq!(parse_job("j3"), Ok(JobId(3)));
        for bad in ["", "j", "jj3", "+3", "-3", "3/1", "99999999999", "k3"] {
            assert!(parse_job(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_item_is_counted_as_people_do_and_a_chunk_as_the_log_does() {
        assert_eq!(parse_place("j3"), Ok((JobId(3), None)));
        assert_eq!(parse_place("3/17"), Ok((JobId(3), Some(16))));
        assert_eq!(parse_place("j3/c16"), Ok((JobId(3), Some(16))));
        assert_eq!(parse_place("j3/c16+4"), Ok((JobId(3), Some(16))));
        for bad in ["j3/", "j3/0", "j3/c", "j3/c1+", "j3/x", "x/1"] {
            assert!(parse_place(bad).is_err(), "{bad}");
        }
    }
}
