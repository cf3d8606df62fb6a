//! `widemap map`: from what was typed to a plan, and from the outcome to an exit status.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use widemap_common::framing::Framing;
use widemap_common::limits::ITEM_BYTES_MAX;
use widemap_common::spec::{Directory, Function, JobSpec};
use widemap_common::template::Template;
use widemap_sched::event::JobPolicy;

use super::options::{MapArgs, Speculate};
use super::{Format, complain};
use crate::data::{BlockRule, Source};
use crate::driver::{self, Ending, Outcome, Plan, Results};
use crate::embedded::Spawner;
use crate::error::MapError;
use crate::{exit, logging, places, summary};

/// Runs `widemap map`.
pub(crate) fn run(args: MapArgs, lists: Vec<Vec<OsString>>) -> ExitCode {
    let quiet = args.quiet;
    let rerun = rerun(&args);
    let begun = Instant::now();
    let outcome = plan(args, lists).and_then(|(plan, spawner)| driver::run(plan, spawner));
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            complain(&error, error.hint());
            return ExitCode::from(error.status());
        }
    };
    say(&outcome, quiet, &rerun, begun);
    ExitCode::from(status(&outcome))
}

fn say(outcome: &Outcome, quiet: bool, rerun: &str, begun: Instant) {
    let hushed = quiet && outcome.counts.failed == 0;
    if let Some(error) = &outcome.error {
        complain(error, error.hint());
    }
    if let Some(advice) = &outcome.advice {
        eprintln!("widemap: {advice}");
    }
    if hushed || matches!(outcome.ending, Ending::ReaderGone) {
        return;
    }
    let file = outcome.failures_file.as_deref();
    let rerun = file.map_or_else(String::new, |file| rerun.replace("FAILURES", &quoted(file)));
    for line in summary::lines(&outcome.counts, &outcome.failures, file, &rerun, begun.elapsed()) {
        eprintln!("{line}");
    }
}

fn status(outcome: &Outcome) -> u8 {
    if let Some(error) = &outcome.error {
        return error.status();
    }
    match outcome.ending {
        Ending::ReaderGone => exit::OK,
        Ending::Signal(libc_int) if libc_int == rustix::process::Signal::INT.as_raw() => {
            exit::INTERRUPTED
        }
        Ending::Signal(_) => exit::TERMINATED,
        Ending::Complete if outcome.counts.failed > 0 => exit::ITEMS_FAILED,
        Ending::Complete => exit::OK,
    }
}

/// Decides everything that can be decided before anything runs, and starts the spawner while the
/// process has one thread.
fn plan(args: MapArgs, lists: Vec<Vec<OsString>>) -> Result<(Plan, Option<Spawner>), MapError> {
    logging::start(&args.log)?;
    let framing = Framing::Separator(if args.null { 0 } else { b'\n' });
    let (source, framing) = source(&args, lists, framing)?;
    let spec = spec(&args, framing)?;
    let (sources, local) = whereabouts(&args)?;
    let blocks = match (args.pipe, args.block) {
        (false, _) => BlockRule::ItemWise,
        (true, None) => BlockRule::Schedule,
        (true, Some(0)) => {
            return Err(flag("--block", "a block has at least one byte"));
        }
        (true, Some(bytes)) => BlockRule::Fixed(bytes),
    };
    let spawner = match local {
        Some(slots) => Some(Spawner::start(slots)?),
        None => None,
    };
    let plan = Plan {
        policy: policy(&args, &spec),
        spec,
        source,
        blocks,
        sources,
        local,
        slots_max: args.jobs,
        wait: args.wait_workers,
        timers: args.place.timers,
        results: Results {
            output: args.output,
            json: args.format == Format::Json,
            unordered: args.unordered,
            failures: args.failures,
            receipt: args.receipt,
        },
        quiet: args.quiet,
        progress: !args.quiet && !args.no_progress,
        private: args.wd.is_none(),
        reorder_bytes_max: args.reorder_bytes_max,
        spill_bytes_max: args.spill_bytes_max,
        inflight_bytes_max: args.inflight_bytes_max,
    };
    Ok((plan, spawner))
}

fn flag(flag: &'static str, problem: impl Into<String>) -> MapError {
    MapError::Flag { flag, problem: problem.into() }
}

/// Where the items come from. Items of the command line are length-prefixed: they may hold any byte.
fn source(
    args: &MapArgs,
    lists: Vec<Vec<OsString>>,
    framing: Framing,
) -> Result<(Source, Framing), MapError> {
    let named = [
        (args.input.is_some(), "-a"),
        (!lists.is_empty(), ":::"),
        (args.from_failures.is_some(), "--from-failures"),
    ];
    let mut named = named.iter().filter(|(is, _)| *is).map(|&(_, name)| name);
    if let (Some(one), Some(other)) = (named.next(), named.next()) {
        return Err(MapError::TwoSources(one, other));
    }
    if lists.len() > 1 {
        return Err(MapError::SeveralLists);
    }
    if let Some(list) = lists.into_iter().next() {
        return items(list.into_iter().map(OsString::into_vec).collect(), args.pipe, framing);
    }
    if let Some(path) = &args.from_failures {
        return items(super::again::items(path)?, args.pipe, framing);
    }
    match &args.input {
        Some(path) if path.as_os_str() != "-" => Ok((Source::File(path.clone()), framing)),
        None if std::io::stdin().is_terminal() => Err(MapError::NoItems),
        _ => Ok((Source::Stdin, framing)),
    }
}

/// A list of items; a block has its items in lines, as a program expects them.
fn items(items: Vec<Vec<u8>>, pipe: bool, framing: Framing) -> Result<(Source, Framing), MapError> {
    if let Some(long) = items.iter().find(|item| item.len() > ITEM_BYTES_MAX) {
        return Err(flag(":::", format!("an item of {} bytes is too long", long.len())));
    }
    let framing = if pipe { framing } else { Framing::LengthPrefixed };
    Ok((Source::Items(items), framing))
}

fn spec(args: &MapArgs, framing: Framing) -> Result<JobSpec, MapError> {
    let argv: Vec<Vec<u8>> = args.command.iter().map(|word| word.as_bytes().to_vec()).collect();
    let function = match (&args.builtin, argv.is_empty()) {
        (None, true) => return Err(MapError::NoFunction),
        (Some(_), false) => {
            return Err(MapError::TwoFunctions(args.command[0].to_string_lossy().into_owned()));
        }
        (Some(name), true) => Function::Builtin { name: name.clone() },
        (None, false) if args.pipe => Function::Pipe { argv },
        (None, false) => Function::Exec { argv: Template::command(&argv) },
    };
    let directory = match &args.wd {
        None => Directory::Private,
        Some(path) => Directory::Path(absolute(path)?.into_os_string().into_vec()),
    };
    Ok(JobSpec {
        function,
        framing,
        directory,
        environment: args.env.iter().map(variable).collect::<Result<_, _>>()?,
        timeout: args.timeout,
        max_output: args.max_output,
        per_item: args.format == Format::Json,
    })
}

fn absolute(path: &Path) -> Result<PathBuf, MapError> {
    let joined = std::env::current_dir().map(|here| match path.to_str() {
        Some(".") => here,
        _ => here.join(path),
    });
    joined.map_err(|error| flag("--wd", error.to_string()))
}

fn variable(text: &OsString) -> Result<(Vec<u8>, Option<Vec<u8>>), MapError> {
    let bytes = text.as_bytes();
    if let Some(equals) = bytes.iter().position(|&byte| byte == b'=') {
        if equals == 0 {
            return Err(flag("--env", format!("`{}` has no name", text.to_string_lossy())));
        }
        return Ok((bytes[..equals].to_vec(), Some(bytes[equals + 1..].to_vec())));
    }
    let value = std::env::var_os(text)
        .ok_or_else(|| flag("--env", format!("{} is not set here", text.to_string_lossy())))?;
    Ok((bytes.to_vec(), Some(value.into_vec())))
}

fn policy(args: &MapArgs, spec: &JobSpec) -> JobPolicy {
    let runtime = spec.function.runtime();
    JobPolicy {
        runtime,
        require: args.require.iter().cloned().collect::<BTreeMap<_, _>>(),
        retries: args.retries,
        crash_limit: args.crash_limit,
        chunk_items: args.chunk,
        chunk_target: args.chunk_target,
        weight: 1,
        priority: 0,
        speculate: match args.speculate {
            Speculate::On => true,
            Speculate::Off => false,
            Speculate::Auto => runtime == widemap_common::spec::Runtime::Builtin,
        },
    }
}

/// The sources of workers, and the slots of this machine: all of its cores if nothing else is named.
fn whereabouts(args: &MapArgs) -> Result<(Vec<places::Source>, Option<u32>), MapError> {
    let sources = super::workers::sources(&args.place)?;
    let cores =
        || std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    let here = args.place.local.or_else(|| sources.is_empty().then(cores));
    let slots = here.map(|slots| match (args.place.local, args.jobs) {
        (None, Some(jobs)) => jobs,
        (_, Some(jobs)) => slots.min(jobs),
        (_, None) => slots,
    });
    Ok((sources, slots))
}

/// The command that runs only what failed again.
fn rerun(args: &MapArgs) -> String {
    let mut words = vec!["widemap map --from-failures FAILURES".to_owned()];
    let option = |name: &str, value: &str| format!("{name} {value}");
    words.extend(args.place.worker.iter().map(|worker| option("--worker", worker)));
    words.extend(args.place.workers_file.iter().map(|p| option("--workers-file", &quoted(p))));
    words.extend(args.place.local.map(|slots| format!("--local {slots}")));
    words.extend(args.timeout.map(|timeout| format!("--timeout {}ms", timeout.as_millis())));
    words.extend(args.builtin.as_ref().map(|name| option("--builtin", name)));
    words.extend(args.pipe.then(|| "--pipe".to_owned()));
    if !args.command.is_empty() {
        words.push("--".to_owned());
        words.extend(args.command.iter().map(|word| quoted(Path::new(word))));
    }
    words.join(" ")
}

/// A word as a shell reads it back.
fn quoted(word: &Path) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@%+,{}#".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
