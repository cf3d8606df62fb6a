//! `widemap map`: from what was typed to a plan, and from the outcome to an exit status.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use widemap_cluster::config::Config;
use widemap_common::framing::Framing;
use widemap_common::limits::ITEM_BYTES_MAX;
use widemap_common::spec::{Directory, Function, JobSpec};
use widemap_common::template::Template;
use widemap_sched::event::JobPolicy;

use super::options::{MapArgs, Speculate};
use super::place::{Sources, Whereabouts};
use super::settings::Settings;
use super::{Format, complain, rerun};
use crate::data::{BlockRule, Source};
use crate::driver::{self, Ending, Outcome, Plan, Results};
use crate::embedded::Spawner;
use crate::error::MapError;
use crate::{exit, logging, say, summary};

/// Runs `widemap map`.
pub(crate) fn run(args: MapArgs, words: &[OsString], lists: Vec<Vec<OsString>>) -> ExitCode {
    let quiet = args.quiet;
    let rerun = if args.pipe { None } else { Some(rerun::command(words, &args.command)) };
    let begun = Instant::now();
    let outcome = plan(args, lists).and_then(|(plan, spawner)| driver::run(plan, spawner));
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            complain(&error, error.hint());
            return ExitCode::from(error.status());
        }
    };
    say(&outcome, quiet, rerun.as_deref(), begun);
    ExitCode::from(status(&outcome))
}

fn say(outcome: &Outcome, quiet: bool, rerun: Option<&str>, begun: Instant) {
    let hushed = quiet && outcome.counts.failed == 0;
    if let Some(error) = &outcome.error {
        complain(error, error.hint());
    }
    if let Some(advice) = &outcome.advice {
        say::line(&format!("widemap: {advice}"));
    }
    if hushed || matches!(outcome.ending, Ending::ReaderGone) {
        return;
    }
    let file = outcome.failures_file.as_deref();
    let rerun =
        file.and_then(|file| Some(rerun?.replacen(rerun::FAILURES, &rerun::quoted(file), 1)));
    let rerun = rerun.as_deref();
    for line in summary::lines(&outcome.counts, &outcome.failures, file, rerun, begun.elapsed()) {
        say::line(&line);
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
    let config = Config::find()?;
    logging::start(&args.log, &config)?;
    let settings = Settings::find(&args, &config)?;
    let framing = Framing::Separator(if args.null { 0 } else { b'\n' });
    let (source, framing) = source(&args, lists, framing)?;
    let spec = spec(&args, framing, settings.max_output)?;
    distinct(&args)?;
    let whereabouts = Whereabouts::find(&args.place, &config)?;
    let local = local_slots(&whereabouts, settings.jobs);
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
    // The key is read after the spawner was forked: it is in no process that runs items.
    let Sources { sources, trust, exposed } = whereabouts.open()?;
    warn_of(&exposed);
    let plan = Plan {
        policy: policy(&args, &spec),
        spec,
        source,
        blocks,
        sources,
        trust,
        local,
        slots_max: settings.jobs,
        wait: settings.wait_workers,
        timers: args.place.timers,
        results: Results {
            output: args.output.filter(|path| !is_stdout(path)),
            json: args.format == Format::Json,
            separator: if args.null { 0 } else { b'\n' },
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

fn spec(args: &MapArgs, framing: Framing, max_output: u64) -> Result<JobSpec, MapError> {
    let argv: Vec<Vec<u8>> = args.command.iter().map(|word| word.as_bytes().to_vec()).collect();
    let function = match (&args.builtin, argv.is_empty()) {
        (None, _) if args.shell => Function::Exec { argv: shell_line(&argv)? },
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
        max_output,
        per_item: args.format == Format::Json,
    })
}

/// A shell line as a command: the shell takes what the placeholders stand for as its parameters, so
/// that no byte of an item means anything to it.
fn shell_line(argv: &[Vec<u8>]) -> Result<Vec<Template>, MapError> {
    let line = match argv {
        [] => return Ok([b"/bin/sh".as_slice(), b"-c", b"{}"].map(Template::parse).to_vec()),
        [line] => line,
        _ => return Err(flag("--shell", "the command line is one word: put it in quotes")),
    };
    let (line, parameters) = Template::shell_line(line);
    let mut templates = vec![Template::literal(b"/bin/sh"), Template::literal(b"-c")];
    templates.extend([Template::literal(&line), Template::literal(b"sh")]);
    templates.extend(parameters);
    Ok(templates)
}

/// What is written to is neither read from nor written to twice.
fn distinct(args: &MapArgs) -> Result<(), MapError> {
    let read = [("-a", &args.input), ("--from-failures", &args.from_failures)];
    let written =
        [("--output", &args.output), ("--failures", &args.failures), ("--receipt", &args.receipt)];
    let identity =
        |path: &PathBuf| std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).ok();
    let named = |(name, path): &(&'static str, &Option<PathBuf>)| {
        let path = path.as_ref()?;
        // A device or a pipe is not overwritten.
        let special = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
        (!special && !is_stdout(path)).then_some((*name, identity(path)?))
    };
    let files: Vec<_> = read.iter().chain(&written).filter_map(named).collect();
    for (index, (name, path)) in files.iter().enumerate() {
        if let Some((other, _)) = files[index + 1..].iter().find(|(_, other)| other == path) {
            return Err(MapError::SameFile(name, other));
        }
    }
    Ok(())
}

/// Whether a file of `--output` is standard output by another name.
fn is_stdout(path: &Path) -> bool {
    ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name))
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

/// The slots of this machine: all of its cores if nobody else is asked.
fn local_slots(whereabouts: &Whereabouts, jobs: Option<u32>) -> Option<u32> {
    let cores =
        || std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    let named = whereabouts.local();
    let here = named.or_else(|| whereabouts.is_here_only().then(cores));
    here.map(|slots| match (named, jobs) {
        (None, Some(jobs)) => jobs,
        (_, Some(jobs)) => slots.min(jobs),
        (_, None) => slots,
    })
}

/// Says what it means to use others without a key.
fn warn_of(exposed: &[String]) {
    if !exposed.is_empty() {
        say::line(&format!(
            "widemap: WARNING: no key: whoever is on the network can read and change what is sent to {} \
             and back (widemap key new makes one)",
            exposed.join(", ")
        ));
    }
}
