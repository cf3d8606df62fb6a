//! What a job is, on the command line: the same for a map of one's own and for a job that is submitted.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueHint};
use widemap_common::limits;
use widemap_common::units::{parse_duration, parse_size};

use super::{FILES, Format, HOW, ITEMS, OUT, SHARED, Speculate, WHAT, WHERE};
use crate::client::is_own_key;

/// What runs, over which items, and how.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// What to run for each item; {} in it is the item, which is added at the end otherwise
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    #[arg(value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,

    /// Run a function that is registered in the worker: identity, square, sleep
    #[arg(long, value_name = "NAME", help_heading = WHAT)]
    pub(crate) builtin: Option<String>,

    /// COMMAND is one word for /bin/sh -c, {} quoted; without it each item is a line
    #[arg(long, help_heading = WHAT, conflicts_with_all = ["builtin", "pipe"])]
    pub(crate) shell: bool,

    /// Run the command once for each block of lines, on its standard input
    #[arg(long, help_heading = WHAT, conflicts_with = "builtin")]
    pub(crate) pipe: bool,

    /// The size of a block [default: grows from 64K to 8M]
    #[arg(long, value_name = "SIZE", value_parser = parse_block, help_heading = WHAT)]
    #[arg(requires = "pipe")]
    pub(crate) block: Option<u64>,

    /// Read the items from FILE, a line each; - is standard input
    #[arg(short = 'a', long, value_name = "FILE", help_heading = ITEMS)]
    pub(crate) input: Option<PathBuf>,

    /// Items end in NUL, not in a newline, and so do the results of functions
    #[arg(short = '0', long, help_heading = ITEMS)]
    pub(crate) null: bool,

    /// Run in DIR on each worker [default: a private one; embedded workers: here]
    #[arg(long, value_name = "DIR", help_heading = FILES)]
    pub(crate) wd: Option<PathBuf>,

    /// Pass on a variable: NAME from here, or NAME=VALUE; may be repeated
    #[arg(long, value_name = "NAME[=V]", help_heading = FILES, action = ArgAction::Append)]
    pub(crate) env: Vec<OsString>,

    /// Run only the items of a file that --failures wrote
    #[arg(long, value_name = "FILE", help_heading = ITEMS)]
    pub(crate) from_failures: Option<PathBuf>,

    /// Use only workers with this label; may be repeated
    #[arg(long, value_name = "K=V", help_heading = WHERE, value_parser = parse_label)]
    pub(crate) require: Vec<(String, String)>,

    /// Send N items at a time [default: as many as take --chunk-target]
    #[arg(long, value_name = "N", help_heading = HOW)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::CHUNK_ITEMS_MAX)))]
    pub(crate) chunk: Option<u32>,

    /// What one sending should take
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = parse_duration)]
    #[arg(help_heading = HOW)]
    pub(crate) chunk_target: Duration,

    /// More runs of an item that failed
    #[arg(long, value_name = "N", default_value_t = limits::RETRIES, help_heading = HOW)]
    pub(crate) retries: u32,

    /// End an item (with --pipe: a block) that takes longer
    #[arg(long, value_name = "TIME", value_parser = parse_timeout, help_heading = HOW)]
    pub(crate) timeout: Option<Duration>,

    /// Worker deaths that one item may cause before it counts as the cause
    #[arg(long, value_name = "N", default_value_t = limits::CRASH_LIMIT, help_heading = HOW)]
    #[arg(hide_short_help = true)]
    pub(crate) crash_limit: u32,

    /// Run stragglers a second time elsewhere: auto does so for builtin only
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = HOW)]
    pub(crate) speculate: Speculate,

    /// End an item (with --pipe: a block) that prints more [default: 1G] [env: WIDEMAP_MAX_OUTPUT]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = HOW)]
    pub(crate) max_output: Option<u64>,

    /// The form of the results
    #[arg(long, value_name = "FORM", default_value = "raw", help_heading = OUT)]
    pub(crate) format: Format,

    /// Write results as they come, not in the order of the items
    #[arg(long, help_heading = OUT)]
    pub(crate) unordered: bool,

    /// What the job is called in listings
    #[arg(long, value_name = "TEXT", help_heading = SHARED, hide_short_help = true)]
    #[arg(value_parser = parse_name)]
    pub(crate) name: Option<String>,

    /// Jobs of a higher priority come first [default: 0]
    #[arg(long, value_name = "N", help_heading = SHARED, hide_short_help = true)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) priority: Option<i32>,

    /// The job's share of the workers, beside others of its priority [default: 1]
    #[arg(long, value_name = "N", help_heading = SHARED, hide_short_help = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::WEIGHT_MAX)))]
    pub(crate) weight: Option<u32>,

    /// Submitted twice with the same key, it is one job: the second time its id is printed again
    #[arg(long, value_name = "KEY", help_heading = SHARED, hide_short_help = true)]
    #[arg(value_parser = parse_submit_key)]
    pub(crate) submit_key: Option<String>,

    /// Accepted without effect, as for GNU parallel: results keep the order anyway
    #[arg(short = 'k', long, hide = true)]
    pub(crate) keep_order: bool,

    /// Accepted without effect, as for GNU parallel: progress is shown anyway
    #[arg(long, hide = true)]
    pub(crate) bar: bool,

    /// Accepted without effect, as for GNU parallel: progress is shown anyway
    #[arg(long, hide = true)]
    pub(crate) eta: bool,
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => {
            Err("it is longer than nothing (leave it out for no limit)".to_owned())
        }
        other => other.map_err(|error| error.to_string()),
    }
}

fn parse_block(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(bytes) if bytes == 0 || bytes > limits::ITEM_BYTES_MAX as u64 => {
            Err("a block has from 1 byte to 1G".to_owned())
        }
        other => other.map_err(|error| error.to_string()),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_name(text: &str) -> Result<String, String> {
    match text.len() > limits::NAME_BYTES_MAX || text.chars().any(char::is_control) {
        true => Err(format!("a name has up to {} bytes on one line", limits::NAME_BYTES_MAX)),
        false => Ok(text.to_owned()),
    }
}

fn parse_submit_key(text: &str) -> Result<String, String> {
    match text.is_empty() || is_own_key(text) {
        true => Err("a key has at least one character, and does not begin with `~`".to_owned()),
        false => parse_name(text),
    }
}
