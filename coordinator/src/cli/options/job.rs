//! What a job is, on the command line: the same for a map of one's own and for a job that is submitted.

use std::ffi::{OsStr, OsString};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgGroup, Args, ValueEnum, ValueHint};
use widemap_common::limits;
use widemap_common::units::{parse_duration, parse_size};

use super::{FILES, Format, HOW, ITEMS, OUT, SHARED, Speculate, WHAT, WHERE};
use widemap_proto::jobs::Halt;

use crate::client::is_own_key;
use crate::data::ColumnSeparator;

/// What runs, over which items, and how.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("block-wise").args(["pipe", "wasm"]))]
pub(crate) struct JobArgs {
    /// What to run for each item; {} in it is the item, which is added at the end otherwise
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    #[arg(value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,

    /// Run a function of the worker: identity, square, sleep
    #[arg(long, value_name = "NAME", help_heading = WHAT)]
    pub(crate) builtin: Option<String>,

    /// COMMAND is a line for /bin/sh; without one each item is
    #[arg(long, help_heading = WHAT, conflicts_with_all = ["builtin", "python", "wasm"])]
    pub(crate) shell: bool,

    /// The command goes on, and answers each line with one line
    #[arg(long, help_heading = WHAT, conflicts_with_all = ["builtin", "pipe", "python", "wasm"])]
    pub(crate) filter: bool,

    /// Run the command once for each block of lines, as its input
    #[arg(long, help_heading = WHAT, conflicts_with_all = ["builtin", "python", "wasm"])]
    pub(crate) pipe: bool,

    #[command(flatten)]
    pub(crate) python: PythonArgs,

    /// Run a module of WebAssembly once for each block, in a sandbox
    ///
    /// A command of WASI preview 1 (wasm32-wasip1), with the block as its input. It has no files but those of
    /// --file, to read; no variables but those of --env; and no network.
    #[arg(long, value_name = "FILE.wasm", help_heading = WHAT)]
    #[arg(conflicts_with_all = ["builtin", "python"], value_hint = ValueHint::FilePath)]
    pub(crate) wasm: Option<PathBuf>,

    /// The size of a block, of --pipe and --wasm [default: grows from 64K to 8M]
    #[arg(long, value_name = "SIZE", value_parser = parse_block, help_heading = WHAT)]
    #[arg(requires = "block-wise", hide_short_help = true)]
    pub(crate) block: Option<u64>,

    /// Read items from FILE, a line each; - is standard input
    #[arg(short = 'a', long, value_name = "FILE", help_heading = ITEMS, alias = "arg-file")]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) input: Vec<PathBuf>,

    /// Items end in NUL, not in a newline, and so do the results of functions
    #[arg(short = '0', long, help_heading = ITEMS)]
    pub(crate) null: bool,

    /// They end in this byte instead: a character, \t, \0, \x1e
    #[arg(short = 'd', long, value_name = "BYTE", help_heading = ITEMS, value_parser = parse_byte)]
    #[arg(conflicts_with = "null")]
    pub(crate) delimiter: Option<u8>,

    /// Split items into columns, {1} {2}, at a character or expression
    #[arg(short = 'C', long, value_name = "SEP", help_heading = ITEMS)]
    #[arg(value_parser = ColumnSeparator::new)]
    pub(crate) colsep: Option<ColumnSeparator>,

    /// With --python: items come from standard input as bytes with their lengths before them (4 bytes, little
    /// endian), and what becomes of each is a frame on standard output, as `OutputForm` in jobs.proto has it
    #[arg(long, hide = true, requires = "python")]
    #[arg(conflicts_with_all = ["input", "null", "delimiter", "colsep", "from_failures", "format", "tag", "fill"])]
    pub(crate) frames: bool,

    /// With --colsep: at which ends of a column blanks are taken off [default: lr]
    #[arg(long, value_name = "ENDS", help_heading = ITEMS, requires = "colsep")]
    #[arg(hide_short_help = true)]
    pub(crate) trim: Option<Trim>,

    /// What stands for the item in COMMAND [default: {}]
    #[arg(short = 'I', long = "replace", value_name = "REPL", help_heading = ITEMS)]
    #[arg(value_parser = parse_replace)]
    #[arg(conflicts_with_all = ["builtin", "filter", "pipe", "python", "wasm"])]
    pub(crate) replace: Option<OsString>,

    /// Run in DIR on each worker [default: a private one; embedded workers: here]
    #[arg(long, value_name = "DIR", help_heading = FILES, alias = "workdir")]
    pub(crate) wd: Option<PathBuf>,

    /// Pass on a variable: NAME from here, or NAME=VALUE; may be repeated
    #[arg(long, value_name = "NAME[=V]", help_heading = FILES, action = ArgAction::Append)]
    pub(crate) env: Vec<OsString>,

    /// Bring a file or a directory along to each worker; may be repeated
    #[arg(long, value_name = "PATH", help_heading = FILES, action = ArgAction::Append)]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) file: Vec<PathBuf>,

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

    /// What one sending should take; with --chunk, up to half of it is sent ahead
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = parse_duration)]
    #[arg(help_heading = HOW, hide_short_help = true)]
    pub(crate) chunk_target: Duration,

    /// More runs of an item that failed
    #[arg(long, value_name = "N", default_value_t = limits::RETRIES, help_heading = HOW)]
    pub(crate) retries: u32,

    /// Exit statuses that count as success: 0,1 [default: 0]
    #[arg(long, value_name = "LIST", value_parser = clap::value_parser!(u8), help_heading = HOW)]
    #[arg(value_delimiter = ',', conflicts_with_all = ["builtin", "filter", "python"])]
    pub(crate) ok_exit: Vec<u8>,

    /// Stop after failures: never, soon,fail=N, or now,fail=N
    ///
    /// With soon what runs goes on to its end, with now it is ended.
    #[arg(long, value_name = "WHEN", value_parser = parse_halt, help_heading = HOW)]
    pub(crate) halt: Option<HaltWhen>,

    /// Run the first N items (blocks) alone; any failure among them stops
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub(crate) canary: Option<NonZeroU64>,

    /// Print the commands, quoted, one a line, and run nothing
    #[arg(long, help_heading = HOW, alias = "dryrun")]
    pub(crate) dry_run: bool,

    /// End an item (with --pipe: a block) that takes longer
    #[arg(long, value_name = "TIME", value_parser = parse_timeout, help_heading = HOW)]
    pub(crate) timeout: Option<Duration>,

    /// Worker deaths that one item may cause before it counts as the cause
    #[arg(long, value_name = "N", default_value_t = limits::CRASH_LIMIT, help_heading = HOW)]
    #[arg(hide_short_help = true)]
    pub(crate) crash_limit: u32,

    /// Run stragglers a second time elsewhere: auto does so for --builtin and --wasm
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = HOW)]
    #[arg(hide_short_help = true)]
    pub(crate) speculate: Speculate,

    /// End an item (with --pipe: a block) that prints more [default: 1G] [env: WIDEMAP_MAX_OUTPUT]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = HOW)]
    #[arg(hide_short_help = true)]
    pub(crate) max_output: Option<u64>,

    /// Memory that each process of an item (with --wasm: a block) may take
    #[arg(long, value_name = "SIZE", value_parser = parse_memory, help_heading = HOW)]
    #[arg(conflicts_with = "builtin", hide_short_help = true)]
    pub(crate) memory: Option<NonZeroU64>,

    /// Seconds of processor time that each process of an item (with --pipe: a block) may take
    #[arg(long, value_name = "N", help_heading = HOW, hide_short_help = true)]
    #[arg(conflicts_with_all = ["builtin", "filter"])]
    pub(crate) cpu_seconds: Option<NonZeroU32>,

    /// Run items less urgently, as nice does: 0 to 19
    #[arg(long, value_name = "N", help_heading = HOW, hide_short_help = true)]
    #[arg(conflicts_with_all = ["builtin", "wasm"], default_value_t = 0, hide_default_value = true)]
    #[arg(value_parser = clap::value_parser!(u8).range(..=i64::from(limits::NICE_MAX)))]
    pub(crate) nice: u8,

    /// Slots that each item (with --pipe: each block) takes, for one that starts threads of its own
    #[arg(long, value_name = "N", help_heading = HOW, hide_short_help = true)]
    #[arg(default_value = "1", hide_default_value = true, value_parser = parse_slots_per_item)]
    pub(crate) slots_per_item: NonZeroU32,

    /// The form of the results
    #[arg(long, value_name = "FORM", default_value = "raw", help_heading = OUT)]
    pub(crate) format: Format,

    /// In place of the output of an item that failed, write the line TEXT
    #[arg(long, value_name = "TEXT", help_heading = OUT, allow_hyphen_values = true)]
    pub(crate) fill: Option<OsString>,

    /// Write the item and a tab before each line of its output
    #[arg(long, help_heading = OUT, conflicts_with = "block-wise")]
    pub(crate) tag: bool,

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

/// A function of a Python file.
#[derive(Debug, Args)]
pub(crate) struct PythonArgs {
    /// Call a function of a Python file; items and results are JSON
    #[arg(long, value_name = "FILE.py:FUNCTION", help_heading = WHAT, conflicts_with = "builtin")]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) python: Option<OsString>,

    /// With --python: items are strings, and results that are strings are printed as they are
    #[arg(long, help_heading = WHAT, requires = "python", hide_short_help = true)]
    pub(crate) text: bool,

    /// With --python: a function of the file to call once in each interpreter
    #[arg(long, value_name = "FUNCTION", help_heading = WHAT, requires = "python")]
    #[arg(hide_short_help = true)]
    pub(crate) initializer: Option<String>,

    /// With --python: a new interpreter after N items
    #[arg(long, value_name = "N", help_heading = WHAT, requires = "python")]
    #[arg(hide_short_help = true)]
    pub(crate) recycle: Option<NonZeroU32>,

    /// With --python: the interpreter, 3.9 or later [default: python3]
    #[arg(long, value_name = "PATH", help_heading = WHAT, requires = "python")]
    #[arg(value_hint = ValueHint::CommandName, hide_short_help = true)]
    pub(crate) python_bin: Option<OsString>,
}

/// At which ends of a column blanks are taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Trim {
    /// At none
    N,
    /// On the left
    L,
    /// On the right
    R,
    /// At both
    Lr,
    /// At both
    Rl,
}

/// A byte, as it is or as C writes it.
fn parse_byte(text: &str) -> Result<u8, String> {
    let bad = || {
        format!(
            "`{text}` is not one byte: a character as it is, or one of \\t \\n \\r \\0 \\\\ \\xHH \
             (several characters, as in --colsep, separate columns)"
        )
    };
    match text.as_bytes() {
        [byte] => Ok(*byte),
        [b'\\', rest @ ..] => match rest {
            b"t" => Ok(b'\t'),
            b"n" => Ok(b'\n'),
            b"r" => Ok(b'\r'),
            b"v" => Ok(0x0b),
            b"f" => Ok(0x0c),
            b"a" => Ok(0x07),
            b"0" => Ok(0),
            b"\\" => Ok(b'\\'),
            [b'x', hex @ ..] if hex.len() == 2 => {
                let hex = std::str::from_utf8(hex).map_err(|_| bad())?;
                u8::from_str_radix(hex, 16).map_err(|_| bad())
            }
            _ => Err(bad()),
        },
        _ => Err(bad()),
    }
}

fn parse_replace(text: &str) -> Result<OsString, String> {
    match text.is_empty() {
        true => Err("what stands for the item has at least one character".to_owned()),
        false => Ok(OsStr::new(text).to_owned()),
    }
}

/// `--halt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HaltWhen(pub(crate) Option<Halt>);

/// As GNU parallel has it, as far as it is about failures.
fn parse_halt(text: &str) -> Result<HaltWhen, String> {
    let (now, fail) = match text {
        "never" | "0" => return Ok(HaltWhen(None)),
        "1" => return Ok(HaltWhen(Some(Halt { failures: 1, now: false }))),
        "2" => return Ok(HaltWhen(Some(Halt { failures: 1, now: true }))),
        _ => text.split_once(',').unwrap_or((text, "")),
    };
    let now = match now {
        "now" => Some(true),
        "soon" => Some(false),
        _ => None,
    };
    let number = fail.strip_prefix("fail=").and_then(|number| number.parse().ok());
    match (now, number.filter(|&number: &u64| number > 0)) {
        (Some(now), Some(failures)) => Ok(HaltWhen(Some(Halt { failures, now }))),
        _ if fail.starts_with("success=") || fail.starts_with("done=") => {
            Err("a map has a result for each item: it stops after failures only (soon,fail=1)"
                .to_owned())
        }
        _ if fail.ends_with('%') => {
            Err("a list has no end yet when it begins: say how many may fail (soon,fail=10)"
                .to_owned())
        }
        _ => Err("it is never, soon,fail=N or now,fail=N".to_owned()),
    }
}

fn parse_memory(text: &str) -> Result<NonZeroU64, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    NonZeroU64::new(bytes).ok_or_else(|| "it is more than nothing".to_owned())
}

fn parse_slots_per_item(text: &str) -> Result<NonZeroU32, String> {
    let slots = text.parse().ok().filter(|slots: &NonZeroU32| slots.get() <= limits::SLOTS_MAX);
    slots.ok_or_else(|| format!("it is a number from 1 to {}", limits::SLOTS_MAX))
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
