//! `widemap map`: from what was typed to a plan, and from the outcome to an exit status.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use widemap_cluster::Role;
use widemap_cluster::config::Config;
use widemap_common::spec::Function;
use widemap_proto::jobs::Submission;

use super::argv::List;
use super::collect::{Done, Wanted};
use super::job::Typed;
use super::options::{JobArgs, MapArgs, RecordArgs};
use super::place::{self, Sources, Whereabouts};
use super::reader_watch::ReaderWatch;
use super::settings::Settings;
use super::theirs::Theirs;
use super::{complain, coordinator, dry_run, job, rerun};
use crate::data::{self, CommandShown, Recording};
use crate::driver::{self, Ending, JournalPlan, Outcome, Plan, Results};
use crate::embedded::Spawner;
use crate::error::MapError;
use crate::{exit, logging, say, summary};

/// What was typed, once all of it is decided.
enum Errand {
    /// Here, with workers of one's own.
    Own(Box<Plan>, Option<Spawner>),
    /// It is done.
    Nothing,
    /// By a coordinator.
    Theirs(Box<Theirs>),
}

/// Finds out of a map whether it is to be run.
type Check<'a> = dyn Fn(&Submission) -> Result<(), MapError> + 'a;

/// Runs `widemap map`.
pub(crate) fn run(args: MapArgs, words: &[OsString], lists: Vec<List>) -> ExitCode {
    let (quiet, frames) = (args.quiet, args.job.frames);
    let output = args.output.as_deref().filter(|path| has_places(&args.job) && !is_stdout(path));
    let rerun = match args.job.pipe {
        true => None,
        false => Some(rerun::command(words, &args.job.command, output)),
    };
    let begun = Instant::now();
    let done = errand(args, lists, &|_| Ok(())).and_then(|errand| {
        // Once it is gone, it wants none of what is still running.
        let _reader = frames.then(ReaderWatch::start).transpose().map_err(MapError::Start)?;
        do_errand(errand, begun)
    });
    let Done { outcome, took } = match done {
        Ok(Some(done)) => done,
        Ok(None) => return ExitCode::from(exit::OK),
        Err(error) => {
            complain(&error, error.hint());
            return ExitCode::from(error.status());
        }
    };
    // Whoever reads frames knows what has failed, and how to go on.
    let outcome = if frames { Outcome { advice: None, ..outcome } } else { outcome };
    say(&outcome, quiet, rerun.as_deref(), took.filter(|_| !frames));
    ExitCode::from(status(&outcome))
}

fn do_errand(errand: Errand, begun: Instant) -> Result<Option<Done>, MapError> {
    match errand {
        Errand::Nothing => Ok(None),
        Errand::Own(plan, spawner) => driver::run(*plan, spawner)
            .map(|outcome| Some(Done { outcome, took: Some(begun.elapsed()) })),
        Errand::Theirs(theirs) => super::block_on(theirs.run(begun)).map(Some),
    }
}

/// Runs a map that is a part of something else, if `check` finds that it is the right one; what it ends in.
///
/// # Errors
/// What kept it from starting, and what `check` says.
pub(super) fn run_checked(args: MapArgs, check: &Check<'_>) -> Result<u8, MapError> {
    let (quiet, begun) = (args.quiet, Instant::now());
    let outcome = match errand(args, Vec::new(), check)? {
        Errand::Nothing => return Ok(exit::OK),
        Errand::Own(plan, spawner) => driver::run(*plan, spawner)?,
        Errand::Theirs(theirs) => super::block_on(theirs.run(begun))?.outcome,
    };
    let told = Outcome { failures_file: None, ..outcome };
    say(&told, quiet, None, Some(begun.elapsed()));
    Ok(status(&told))
}

/// Whether each result has its place in an output.
fn has_places(job: &JobArgs) -> bool {
    !job.unordered && !job.tag && !job.pipe && job.wasm.is_none()
}

/// The last words on a map, or on a job that was collected. It is summed up if it has ended, and took so
/// long.
pub(super) fn say(outcome: &Outcome, quiet: bool, rerun: Option<&str>, took: Option<Duration>) {
    let hushed = quiet && outcome.counts.failed == 0;
    if let Some(error) = &outcome.error {
        complain(error, error.hint());
    }
    if let Some(advice) = &outcome.advice {
        say::line(&format!("widemap: {advice}"));
    }
    // Of an input that is refused there is nothing to sum up.
    let is_refused =
        matches!(&outcome.error, Some(MapError::Input(error)) if error.is_before_start());
    if hushed || is_refused || matches!(outcome.ending, Ending::ReaderGone) {
        return;
    }
    let Some(elapsed) = took else { return };
    let file = outcome.failures_file.as_deref();
    let rerun =
        file.and_then(|file| Some(rerun?.replacen(rerun::FAILURES, &rerun::quoted(file), 1)));
    let rerun = rerun.as_deref();
    for line in summary::lines(&outcome.counts, &outcome.failures, file, rerun, elapsed) {
        say::line(&line);
    }
}

/// What it ends in.
pub(super) fn status(outcome: &Outcome) -> u8 {
    if let Some(error) = &outcome.error {
        return error.status();
    }
    match outcome.ending {
        Ending::ReaderGone => exit::OK,
        Ending::Signal(signal) => exit::by_signal(signal),
        Ending::Complete if outcome.counts.failed > 0 => exit::ITEMS_FAILED,
        Ending::Complete => exit::OK,
    }
}

/// Decides everything that can be decided before anything runs, and starts the spawner while the
/// process has one thread.
fn errand(args: MapArgs, lists: Vec<List>, check: &Check<'_>) -> Result<Errand, MapError> {
    let config = Config::find()?;
    logging::start(&args.log, &config)?;
    let settings = Settings::find(&args, &config)?;
    let Typed { submission, source, artifacts, files_are_here } =
        job::submission(&args.job, lists, settings.max_output, args.records.is_any())?;
    distinct(&args)?;
    check(&submission)?;
    if args.job.dry_run {
        dry_run::run(&args.job, &submission.spec, source)?;
        return Ok(Errand::Nothing);
    }
    let whereabouts = Whereabouts::find_or_coordinator(&args.place, &args.coordinator, &config)?;
    if let Some(named) = whereabouts.coordinator() {
        fits_a_coordinator(&args)?;
        let wanted = place::wanted(&args.place.trust, &config);
        let identity = place::identity(wanted.as_ref(), Role::Coordinator)?;
        let coordinator = coordinator::at(named, identity.as_deref(), args.place.timers)?;
        let wanted = wanted_results(args, &submission);
        return Ok(Errand::Theirs(Box::new(Theirs {
            coordinator,
            submission,
            source,
            artifacts,
            wanted,
        })));
    }
    needs_no_coordinator(&args.job)?;
    whereabouts.warn();
    let local = local_slots(&whereabouts, settings.jobs);
    enough_slots(submission.spec.slots_per_item.get(), &whereabouts, settings.jobs)?;
    let spawner = match local {
        Some(slots) => Some(Spawner::start(slots)?),
        None => None,
    };
    // The key is read after the spawner was forked: it is in no process that runs items.
    let Sources { sources, trust, exposed } = whereabouts.open()?;
    warn_of(&exposed);
    let journal = args.journal.map(|directory| JournalPlan {
        directory,
        resume: args.resume,
        submission: submission.clone(),
    });
    let recording = recording(&args.records, &submission);
    let plan = Plan {
        stops: submission.policy.stops,
        policy: driver::job_policy(&submission.spec, submission.policy.clone()),
        blocks: driver::block_rule(submission.blocks, submission.spec.function.runtime()),
        spec: submission.spec,
        source,
        sources,
        trust,
        local,
        slots_max: settings.jobs,
        wait: settings.wait_workers,
        timers: args.place.timers,
        results: Results {
            output: args.output.filter(|path| !is_stdout(path)),
            recording,
            form: submission.output,
            failures: args.failures,
            receipt: args.receipt,
        },
        quiet: args.quiet,
        progress: !args.quiet && !args.no_progress,
        explain_every: args.explain_every,
        artifacts,
        private: args.job.wd.is_none() && files_are_here,
        reorder_bytes_max: args.reorder_bytes_max,
        spill_bytes_max: args.spill_bytes_max,
        inflight_bytes_max: args.inflight_bytes_max,
        journal,
    };
    Ok(Errand::Own(Box::new(plan), spawner))
}

/// What was said of workers, which the coordinator has.
fn fits_a_coordinator(args: &MapArgs) -> Result<(), MapError> {
    let refused = |flag, why| Err(MapError::NotWithCoordinator { flag, why });
    if args.journal.is_some() {
        return refused("--journal", "it keeps one of every job");
    }
    match (args.jobs, args.wait_workers) {
        (Some(_), _) => refused("--jobs", "it decides itself how much of a worker it uses"),
        (_, Some(_)) => refused("--wait-workers", "a job waits for workers until it is cancelled"),
        (None, None) => Ok(()),
    }
}

/// What was said for a coordinator.
fn needs_no_coordinator(args: &JobArgs) -> Result<(), MapError> {
    let said = [
        (args.submit_key.is_some(), "--submit-key"),
        (args.priority.is_some(), "--priority"),
        (args.weight.is_some(), "--weight"),
        (args.name.is_some(), "--name"),
    ];
    let said = said.into_iter().find_map(|(is_said, flag)| is_said.then_some(flag));
    said.map_or(Ok(()), |flag| Err(MapError::OnlyWithCoordinator(flag)))
}

/// What is made of records, if that is what there is.
fn recording(args: &RecordArgs, submission: &Submission) -> Option<Recording> {
    let Submission { output, spec, .. } = submission;
    output.is_of_records().then(|| Recording {
        json: output.json,
        tag: output.tag,
        fill: output.fill.clone(),
        separator: output.separator,
        joblog: args.joblog.clone(),
        results: args.results.clone(),
        command: match &spec.function {
            Function::Exec { argv } => CommandShown::PerItem(argv.clone()),
            _ => CommandShown::Text(submission.function_shown()),
        },
    })
}

fn wanted_results(args: MapArgs, submission: &Submission) -> Wanted {
    Wanted {
        recording: recording(&args.records, submission),
        has_places: !submission.output.unordered && !submission.output.tag,
        output: args.output.filter(|path| !is_stdout(path)),
        failures: args.failures,
        receipt: args.receipt.map(|path| (path, data::what_runs(&submission.spec))),
        quiet: args.quiet,
        progress: !args.quiet && !args.no_progress,
        explain_every: args.explain_every,
        suffix: args.coordinator.suffix(),
    }
}

/// What is written to is neither read from nor written to twice.
fn distinct(args: &MapArgs) -> Result<(), MapError> {
    let inputs: Vec<_> = args.job.input.iter().cloned().map(Some).collect();
    let read = inputs.iter().map(|path| ("-a", path));
    let read = read.chain([("--from-failures", &args.job.from_failures)]);
    let written = [
        ("--output", &args.output),
        ("--failures", &args.failures),
        ("--receipt", &args.receipt),
        ("--joblog", &args.records.joblog),
    ];
    let identity =
        |path: &PathBuf| std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).ok();
    let named = |(name, path): &(&'static str, &Option<PathBuf>)| {
        let path = path.as_ref()?;
        // A device or a pipe is not overwritten.
        let special = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
        (!special && !is_stdout(path)).then_some((*name, identity(path)?))
    };
    let files: Vec<_> = read.chain(written).filter_map(|file| named(&file)).collect();
    for (index, (name, path)) in files.iter().enumerate() {
        if let Some((other, _)) = files[index + 1..].iter().find(|(_, other)| other == path) {
            return Err(MapError::SameFile(name, other));
        }
    }
    Ok(())
}

/// Whether a file of `--output` is standard output by another name.
pub(super) fn is_stdout(path: &Path) -> bool {
    ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name))
}

/// Finds out before anything runs that no worker will ever lend an item the slots that it takes.
fn enough_slots(wanted: u32, whereabouts: &Whereabouts, jobs: Option<u32>) -> Result<(), MapError> {
    let here = local_slots(whereabouts, jobs).filter(|_| whereabouts.is_here_only());
    let more = whereabouts.local().map_or("-j", |_| "--local");
    let problem = match (jobs, here) {
        (Some(jobs), _) if jobs < wanted => {
            format!("{wanted} slots are more than the {jobs} of -j, and nothing would run")
        }
        (_, Some(here)) if here < wanted => format!(
            "{wanted} slots are more than the {here} of this machine, and nothing would run: \
             {more} {wanted} lends more"
        ),
        _ => return Ok(()),
    };
    Err(MapError::Flag { flag: "--slots-per-item", problem })
}

/// The slots of this machine: all of its cores if nobody else is asked.
pub(super) fn local_slots(whereabouts: &Whereabouts, jobs: Option<u32>) -> Option<u32> {
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
pub(super) fn warn_of(exposed: &[String]) {
    if !exposed.is_empty() {
        say::line(&format!(
            "widemap: WARNING: no key: whoever is on the network can read and change what is sent to {} \
             and back (widemap key new makes one)",
            exposed.join(", ")
        ));
    }
}
