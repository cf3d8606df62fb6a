//! The options, as clap reads them, grouped as the help shows them.

mod job;
mod serve;
mod users;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};
use widemap_common::limits;
use widemap_common::time::Timers;
use widemap_common::units::{parse_duration, parse_size};

pub(crate) use job::{JobArgs, PythonArgs, Trim};
pub(crate) use serve::ServeArgs;
pub(crate) use users::{
    ExplainArgs, JobsArgs, JobsCommand, PruneArgs, ResultsArgs, StatusArgs, SubmitArgs, TouchArgs,
    UserArgs,
};

use crate::places;

const WHAT: &str = "What runs";
const ITEMS: &str = "Items";
const FILES: &str = "Files and environment";
const WHERE: &str = "Where";
const HOW: &str = "How";
const OUT: &str = "Output";
const SHARED: &str = "With a coordinator";

const EXAMPLES: &str = "\
Examples:
  seq 10 | widemap map -- echo {}                      one process an item, on this machine
  widemap map gzip -k {} ::: *.log                     items on the command line
  find . -name '*.jpg' -print0 | widemap map -0 --worker ann --worker bob -- identify {}
  widemap map -a access.log --pipe -- grep -c ' 500 '  blocks of lines through a filter
  seq 1000000 | widemap map --builtin square           a function of the worker

Results go to standard output in the order of the items, all else to standard error.
Exit status: 0 all succeeded, 1 some items failed, 2 nothing was run, 3 the cluster or the disk
failed, 130 and 143 interrupted.";

/// Options of `widemap map`.
#[derive(Debug, Args)]
#[command(override_usage = "widemap map [OPTIONS] [--] COMMAND [ARG]... [::: ITEM...]\n       \
                            widemap map [OPTIONS] --python|--wasm|--builtin X [::: ITEM...]")]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: widemap map --help")]
pub(crate) struct MapArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,

    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,

    /// At most N slots of each worker; of this machine, as many as it has cores [env: WIDEMAP_JOBS]
    #[arg(short = 'j', long = "jobs", value_name = "N", help_heading = WHERE)]
    #[arg(value_parser = parse_jobs, allow_hyphen_values = true)]
    pub(crate) jobs: Option<u32>,

    /// Wait so long for a first usable worker; `never` is without end [default: 60s]
    /// [env: WIDEMAP_WAIT_WORKERS]
    #[arg(long, value_name = "TIME", value_parser = parse_wait, help_heading = WHERE)]
    #[arg(hide_short_help = true)]
    pub(crate) wait_workers: Option<Wait>,

    /// Keep what is done in DIR, to go on with --resume
    #[arg(long, value_name = "DIR", help_heading = HOW)]
    pub(crate) journal: Option<PathBuf>,

    /// Go on with what is there; the output begins with the first item again
    #[arg(long, help_heading = HOW, requires = "journal")]
    pub(crate) resume: bool,

    /// Write the results to FILE, which appears whole or not at all
    #[arg(long, value_name = "FILE", help_heading = OUT)]
    pub(crate) output: Option<PathBuf>,

    /// Write what failed to FILE, a JSON object a line [default: a file that is named, if any did]
    #[arg(long, value_name = "FILE", help_heading = OUT)]
    pub(crate) failures: Option<PathBuf>,

    /// Write what was run, its counts and the hash of the output to FILE, as JSON
    #[arg(long, value_name = "FILE", help_heading = OUT)]
    #[arg(hide_short_help = true)]
    pub(crate) receipt: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) records: RecordArgs,

    /// Say so often which item the output waits for
    #[arg(long, value_name = "TIME", value_parser = parse_every, help_heading = HOW)]
    #[arg(hide_short_help = true)]
    pub(crate) explain_every: Option<Duration>,

    /// Say nothing but errors
    #[arg(short, long, help_heading = OUT)]
    pub(crate) quiet: bool,

    /// Show no progress on the terminal
    #[arg(long, help_heading = OUT)]
    pub(crate) no_progress: bool,

    /// Accepted results that wait in memory for an earlier one
    #[arg(long, value_name = "SIZE", value_parser = parse_size, hide = true)]
    #[arg(default_value_t = limits::REORDER_BYTES_MAX)]
    pub(crate) reorder_bytes_max: u64,

    /// Accepted results that wait on disk for an earlier one
    #[arg(long, value_name = "SIZE", value_parser = parse_size, hide = true)]
    #[arg(default_value_t = limits::SPILL_BYTES_MAX)]
    pub(crate) spill_bytes_max: u64,

    /// Input that is held for retries
    #[arg(long, value_name = "SIZE", value_parser = parse_size, hide = true)]
    #[arg(default_value_t = limits::INFLIGHT_BYTES_MAX)]
    pub(crate) inflight_bytes_max: u64,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// Options of `widemap repair`.
#[derive(Debug, Args)]
#[command(
    override_usage = "widemap repair FAILURES OUTPUT [OPTIONS] [--] COMMAND [ARG]...\n       \
                            widemap repair FAILURES OUTPUT [OPTIONS] --python|--builtin X"
)]
#[command(
    after_help = "The function, and how items end, are those of the map: the command as it was, without what \
                        names its items and its output."
)]
pub(crate) struct RepairArgs {
    /// What failed, as --failures wrote it; what fails again stays in it
    #[arg(value_name = "FAILURES", value_hint = ValueHint::FilePath)]
    pub(crate) failed: PathBuf,

    /// The output of the map, as it left it; it is replaced whole
    #[arg(value_name = "OUTPUT", value_hint = ValueHint::FilePath)]
    pub(crate) whole: PathBuf,

    #[command(flatten)]
    pub(crate) map: MapArgs,
}

/// What is written of each item beside the output.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RecordArgs {
    /// Write a line for each item to FILE: host, start, seconds, exit, command
    ///
    /// The columns are those of GNU parallel: Seq Host Starttime JobRuntime Send Receive Exitval Signal Command.
    #[arg(long, value_name = "FILE", help_heading = OUT, value_hint = ValueHint::FilePath)]
    pub(crate) joblog: Option<PathBuf>,

    /// Write the output of each item to a file below DIR, too: DIR/1/ITEM/stdout
    #[arg(long, value_name = "DIR", help_heading = OUT, value_hint = ValueHint::DirPath)]
    #[arg(value_parser = parse_directory)]
    pub(crate) results: Option<PathBuf>,
}

impl RecordArgs {
    /// Whether anything of it is wanted.
    pub(crate) fn is_any(&self) -> bool {
        self.joblog.is_some() || self.results.is_some()
    }
}

/// A coordinator that is to do it.
#[derive(Debug, Clone, Args)]
pub(crate) struct CoordinatorArgs {
    /// A coordinator that runs it [env: WIDEMAP_COORDINATOR]
    #[arg(long, value_name = "HOST[:7434]", help_heading = WHERE)]
    #[arg(value_parser = places::parse_coordinator)]
    pub(crate) coordinator: Option<String>,
}

impl CoordinatorArgs {
    /// What a command for the same coordinator must say besides.
    pub(super) fn suffix(&self) -> String {
        let named = self.coordinator.as_ref();
        named.map_or_else(String::new, |address| format!(" --coordinator {address}"))
    }
}

/// Where workers are, and whom this side trusts.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArgs {
    /// A worker; may be repeated [env: WIDEMAP_WORKERS]
    #[arg(long, value_name = "HOST[:7433]", help_heading = WHERE)]
    #[arg(value_delimiter = ',', value_parser = places::parse)]
    pub(crate) worker: Vec<String>,

    /// Workers from a file, an address a line, or a directory of such files; watched
    /// [env: WIDEMAP_WORKERS_FILE]
    #[arg(long, value_name = "FILE-or-DIR", help_heading = WHERE)]
    #[arg(hide_short_help = true)]
    pub(crate) workers_file: Vec<PathBuf>,

    /// Workers at all addresses of a DNS name, asked for again and again [env: WIDEMAP_DNS]
    #[arg(long, value_name = "NAME[:PORT]", help_heading = WHERE)]
    #[arg(value_delimiter = ',', value_parser = places::parse_name)]
    pub(crate) dns: Vec<(String, u16)>,

    /// Workers that announce themselves, beside those that are named
    #[arg(long, help_heading = WHERE, conflicts_with = "no_mdns")]
    #[arg(hide_short_help = true)]
    pub(crate) mdns: bool,

    /// Do not look for workers on the local network
    #[arg(long, help_heading = WHERE)]
    #[arg(hide_short_help = true)]
    pub(crate) no_mdns: bool,

    /// Look for them over this interface alone; may be repeated [env: WIDEMAP_MDNS_INTERFACE]
    #[arg(long, value_name = "NAME", help_heading = WHERE, value_delimiter = ',')]
    #[arg(conflicts_with = "no_mdns", hide_short_help = true)]
    pub(crate) mdns_interface: Vec<String>,

    /// N slots on this machine [env: WIDEMAP_LOCAL]
    #[arg(long, value_name = "N", help_heading = WHERE)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::SLOTS_MAX)))]
    pub(crate) local: Option<u32>,

    #[command(flatten)]
    pub(crate) trust: TrustArgs,

    /// Timers of the session, NAME=MS,...
    #[arg(long, value_name = "TIMERS", hide = true, default_value = "")]
    pub(crate) timers: Timers,
}

/// Whom this side trusts, and how it proves itself.
#[derive(Debug, Clone, Args)]
pub(crate) struct TrustArgs {
    /// The cluster's key [default: ~/.config/widemap/key, /etc/widemap/key] [env: WIDEMAP_KEY]
    #[arg(long, value_name = "FILE", help_heading = WHERE, conflicts_with = "insecure")]
    pub(crate) key: Option<PathBuf>,

    /// Certificates made elsewhere: this side's own, in PEM form
    #[arg(long, value_name = "FILE", help_heading = WHERE, conflicts_with = "insecure")]
    #[arg(hide_short_help = true)]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Its private key
    #[arg(long, value_name = "FILE", help_heading = WHERE, hide_short_help = true)]
    pub(crate) tls_key: Option<PathBuf>,

    /// The authority that certifies workers
    #[arg(long, value_name = "FILE", help_heading = WHERE, hide_short_help = true)]
    pub(crate) tls_ca: Option<PathBuf>,

    /// No key: others on the network can read and change everything
    #[arg(long, help_heading = WHERE)]
    pub(crate) insecure: bool,
}

/// What is logged, and how; and what holds of all that can be configured.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Say what holds of flags, variables and widemap.toml, and where it was said; do nothing else
    #[arg(long, hide_short_help = true)]
    pub(crate) print_config: bool,

    /// What to log: error, warn, info, debug, trace, or a filter [default: warn; serve: info]
    #[arg(long, value_name = "LEVEL", env = "WIDEMAP_LOG")]
    #[arg(hide_short_help = true, hide_env_values = true)]
    pub(crate) log: Option<String>,

    /// The form of the log on standard error [default: text]
    #[arg(long, value_name = "FORM", env = "WIDEMAP_LOG_FORMAT")]
    #[arg(hide_short_help = true, hide_env_values = true)]
    pub(crate) log_format: Option<LogFormat>,
}

/// Options of `widemap workers`.
#[derive(Debug, Args)]
pub(crate) struct WorkersArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,

    /// How long to wait for answers
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_duration)]
    pub(crate) wait: Duration,

    /// The form of the list
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub(crate) format: ListFormat,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// Options of `widemap doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// The form of the report
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub(crate) format: ListFormat,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// What `widemap key` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key, in FILE or the usual place; `-` prints it
    New {
        /// Where to write it; never over another [default: ~/.config/widemap/key]
        file: Option<PathBuf>,
    },
    /// Print what the cluster of a key is called; that is no secret
    Show {
        /// The key file [default: the usual place]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Make what lets a worker serve and do nothing else, for hosts that must not have the key
    WorkerBundle {
        /// Where to write it; never over another; `-` prints it
        file: PathBuf,
        /// The key file [default: the usual place]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
}

/// How long to wait for workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// So long.
    For(Duration),
    /// Without end.
    Forever,
}

/// The form of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The bytes that were printed, nothing added
    Raw,
    /// One JSON object a line, for each item
    Json,
}

/// The form of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// For programs, an object a line
    Json,
}

/// When stragglers are run a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Speculate {
    /// For functions without side effects: builtin
    Auto,
    /// Always
    On,
    /// Never
    Off,
}

fn parse_directory(text: &str) -> Result<PathBuf, String> {
    let is_table = [".csv", ".tsv", ".json", ".sql"].iter().any(|end| text.ends_with(end));
    match text.contains('{') || is_table {
        true => Err("it is a directory (--format json makes one table of all results)".to_owned()),
        false => Ok(PathBuf::from(text)),
    }
}

fn parse_jobs(text: &str) -> Result<u32, String> {
    // `+2` would be a number, too.
    let jobs = text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let jobs = jobs.filter(|jobs| (1..=limits::SLOTS_MAX).contains(jobs));
    jobs.ok_or_else(|| match text {
        "0" => "as many as there are slots is what it is without -j".to_owned(),
        _ => format!(
            "it is a number of slots from 1 to {}; how many a worker has is said there (widemap-worker \
             --slots N)",
            limits::SLOTS_MAX
        ),
    })
}

fn parse_every(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("it is longer than nothing".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}

pub(super) fn parse_wait(text: &str) -> Result<Wait, widemap_common::units::UnitError> {
    match text {
        "never" => Ok(Wait::Forever),
        _ => parse_duration(text).map(Wait::For),
    }
}
