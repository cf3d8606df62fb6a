//! `widemap jobs`, `status`, `results`, `cancel`, `pause`, `unpause` and `explain`: what users ask of a
//! coordinator that serves.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use widemap_cluster::config::Config;
use widemap_common::units::size_shown;
use widemap_common::wall_clock;
use widemap_proto::jobs::{AttemptTold, Explanation, How, Job, JobName, Prune, Pruned, WhatRuns};

use super::collect::{self, Collecting, Done, Outlets, Owner, Signals, Wanted};
use super::options::{
    ExplainArgs, JobsArgs, JobsCommand, ListFormat, PruneArgs, RecordArgs, ResultsArgs, StatusArgs,
    TouchArgs, UserArgs,
};
use super::{complain, coordinator, map, table};
use crate::client::{Coordinator, JobsError, is_own_key};
use crate::data::{CommandShown, Recording};
use crate::error::MapError;
use crate::{exit, logging, say};

/// Runs `widemap jobs`.
pub(crate) fn list(args: &JobsArgs) -> ExitCode {
    if let Some(JobsCommand::Prune(args)) = &args.command {
        return prune(args);
    }
    let listed = ask(&args.user, async |coordinator: &Coordinator| coordinator.list().await);
    told(listed, |jobs| match args.format {
        ListFormat::Json => jobs.iter().for_each(|job| say::result(&in_json(job).to_string())),
        ListFormat::Table => {
            let head = ["JOB", "NAME", "STATE", "ITEMS", "FAILED", "SUBMITTED", "BY", "RUNS"];
            table::print(head, jobs.iter().map(cells));
        }
    })
}

/// Runs `widemap status`.
pub(crate) fn status(args: &StatusArgs) -> ExitCode {
    let name = JobName::Id(args.job.job);
    let asked = ask(&args.user, async |coordinator: &Coordinator| coordinator.status(name).await);
    told(asked, |job| match args.format {
        ListFormat::Json => say::result(&in_json(&job).to_string()),
        ListFormat::Table => lines(&job).iter().for_each(|line| say::result(line)),
    })
}

/// Runs `widemap results`.
pub(crate) fn results(args: ResultsArgs) -> ExitCode {
    let (job, quiet) = (args.job.job, args.quiet);
    let collected = Config::find().map_err(MapError::from).and_then(|config| {
        logging::start(&args.user.log, &config)?;
        super::block_on(async {
            let mut signals = Signals::new()?;
            let coordinator = coordinator::find(&args.user, &config).await?;
            let status = coordinator.status(JobName::Id(job)).await.map_err(MapError::from)?;
            let outlets = Outlets::create(Wanted {
                output: args.output.filter(|path| !map::is_stdout(path)),
                failures: args.failures,
                receipt: receipt(args.receipt, &status)?,
                recording: recording(&args.records, &status)?,
                has_places: !status.output.unordered && !status.output.tag,
                quiet,
                progress: !quiet && !args.no_progress,
                explain_every: args.explain_every,
                suffix: args.user.coordinator.suffix(),
            })?;
            let owner = Owner::Results;
            let collector = coordinator.collect(job);
            let collecting = Collecting { job, collector, ahead: None, owner };
            Ok(collect::collect(&coordinator, collecting, outlets, &mut signals, None).await)
        })
    });
    match collected {
        Ok(Done { outcome, took }) => {
            map::say(&outcome, quiet, None, took);
            ExitCode::from(map::status(&outcome))
        }
        Err(error) => refused(&error),
    }
}

/// Where the receipt of a job goes, and what it says of what runs.
fn receipt(path: Option<PathBuf>, job: &Job) -> Result<Option<(PathBuf, WhatRuns)>, MapError> {
    let Some(path) = path else { return Ok(None) };
    match job.what_runs.clone() {
        Some(what) => Ok(Some((path, what))),
        None => Err(MapError::Flag {
            flag: "--receipt",
            problem: format!(
                "the coordinator of {} is older and does not tell what it runs",
                job.id
            ),
        }),
    }
}

/// What is made of the records of a job, if they were kept.
fn recording(args: &RecordArgs, job: &Job) -> Result<Option<Recording>, MapError> {
    let form = &job.output;
    if !form.is_of_records() {
        return match args.is_any() {
            true => Err(MapError::NoRecords(job.id)),
            false => Ok(None),
        };
    }
    Ok(Some(Recording {
        json: form.json,
        tag: form.tag,
        fill: form.fill.clone(),
        separator: form.separator,
        joblog: args.joblog.clone(),
        results: args.results.clone(),
        command: CommandShown::Text(job.function.clone()),
    }))
}

/// Runs `widemap cancel`.
pub(crate) fn cancel(args: &TouchArgs) -> ExitCode {
    touch(args, async |coordinator, job| coordinator.cancel(job).await)
}

/// Runs `widemap pause`.
pub(crate) fn pause(args: &TouchArgs) -> ExitCode {
    touch(args, async |coordinator, job| coordinator.pause(job).await)
}

/// Runs `widemap unpause`.
pub(crate) fn unpause(args: &TouchArgs) -> ExitCode {
    touch(args, async |coordinator, job| coordinator.unpause(job).await)
}

/// Runs `widemap explain`.
pub(crate) fn explain(args: &ExplainArgs) -> ExitCode {
    let (job, item) = args.place;
    let asked =
        ask(&args.user, async |coordinator: &Coordinator| coordinator.explain(job, item).await);
    told(asked, |explanation| match args.format {
        ListFormat::Json => say::result(&explanation_in_json(&explanation).to_string()),
        ListFormat::Table => {
            say::result(&explanation.sentence);
            let head = ["ATTEMPT", "ITEMS", "WORKER", "STATE", "RAN", "REMARK"];
            table::print(head, explanation.attempts.iter().map(attempt_cells));
        }
    })
}

fn prune(args: &PruneArgs) -> ExitCode {
    let prune =
        Prune { jobs: args.jobs.clone(), ended_before: args.older_than.unwrap_or(Duration::ZERO) };
    let pruned = ask(&args.user, async |coordinator: &Coordinator| coordinator.prune(prune).await);
    told(pruned, |Pruned { jobs, freed_bytes }| {
        jobs.iter().for_each(|job| say::result(&job.to_string()));
        let count = crate::summary::plural(jobs.len() as u64, "job");
        say::line(&format!("widemap: {count} removed, {} freed", size_shown(freed_bytes)));
    })
}

fn touch(
    args: &TouchArgs,
    touch: impl AsyncFnOnce(&Coordinator, widemap_common::ids::JobId) -> Result<Job, JobsError>,
) -> ExitCode {
    let job = args.job.job;
    let touched = ask(&args.user, async |coordinator: &Coordinator| touch(coordinator, job).await);
    told(touched, |job| say::line(&format!("widemap: {} is {}", job.id, job.status.state.name())))
}

/// Asks the coordinator that is meant.
fn ask<T>(
    args: &UserArgs,
    asking: impl AsyncFnOnce(&Coordinator) -> Result<T, JobsError>,
) -> Result<T, MapError> {
    let config = Config::find()?;
    logging::start(&args.log, &config)?;
    super::block_on(async {
        let coordinator = coordinator::find(args, &config).await?;
        Ok(asking(&coordinator).await?)
    })
}

fn told<T>(answer: Result<T, MapError>, tell: impl FnOnce(T)) -> ExitCode {
    match answer {
        Ok(answer) => {
            tell(answer);
            ExitCode::from(exit::OK)
        }
        Err(error) => refused(&error),
    }
}

fn refused(error: &MapError) -> ExitCode {
    complain(error, error.hint());
    ExitCode::from(error.status())
}

fn cells(job: &Job) -> [String; 8] {
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    [
        job.id.to_string(),
        dash(&job.name),
        job.status.state.name().to_owned(),
        items(job),
        job.status.counts.failed.to_string(),
        ago(job.created_ms),
        dash(&job.submitter),
        job.function.clone(),
    ]
}

/// How many of its items have their last word, of how many.
fn items(job: &Job) -> String {
    let counts = &job.status.counts;
    let done = counts.ok + counts.failed;
    match counts.total {
        Some(total) => format!("{done}/{total}"),
        None => format!("{done}/{}+", counts.read),
    }
}

/// How long ago that was, by this host's clock, roughly.
fn ago(unix_ms: u64) -> String {
    let now_ms = wall_clock::unix_ms().unwrap_or(unix_ms);
    format!("{} ago", roughly(Duration::from_millis(now_ms.saturating_sub(unix_ms))))
}

fn roughly(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// What `widemap status` says for people.
fn lines(job: &Job) -> Vec<String> {
    let status = &job.status;
    let counts = &status.counts;
    let mut lines = vec![match job.name.as_str() {
        "" => format!("{}: {}", job.id, status.state.name()),
        name => format!("{} ({name}): {}", job.id, status.state.name()),
    }];
    if let Some(why) = message(job) {
        lines.extend(why.lines().map(|line| format!("  {line}")));
    }
    if let Some(waits_for) = &status.waits_for {
        lines.push(format!("  {waits_for}"));
    }
    lines.push(format!("runs       {}", job.function));
    lines.push(format!("submitted  {} by {}", ago(job.created_ms), job.submitter));
    lines.push(format!("priority   {}, weight {}", job.priority, job.weight));
    lines.push(format!(
        "items      {} done, {} failed, {} retried",
        items(job),
        counts.failed,
        counts.retried
    ));
    lines.push(format!(
        "attempts   {}, {} speculative wins",
        counts.attempts, counts.speculative_wins
    ));
    lines.push(format!("workers    {}, {} lost", counts.workers, counts.workers_lost));
    lines.push(format!(
        "bytes      {} of items, {} of results so far",
        size_shown(job.input_bytes),
        size_shown(status.output_bytes)
    ));
    lines
}

/// Why a job ended that did not run to its end.
fn message(job: &Job) -> Option<&str> {
    match &job.status.ending()?.how {
        How::Complete | How::Cancelled => None,
        How::Unusable(why) | How::Failed(why) | How::Halted(why) => Some(why),
    }
}

/// What `--format json` says: the fields are part of the command line's contract.
fn in_json(job: &Job) -> Value {
    let status = &job.status;
    let counts = &status.counts;
    let none = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    json!({
        "job": job.id.0,
        "id": job.id.to_string(),
        "name": none(&job.name),
        "submitter": none(&job.submitter),
        "submit_key": job.submit_key.as_deref().filter(|key| !is_own_key(key)),
        "function": job.function,
        "priority": job.priority,
        "weight": job.weight,
        "state": status.state.name(),
        "message": message(job),
        "waits_for": status.waits_for,
        "created_ms": job.created_ms,
        "started_ms": status.started_ms,
        "ended_ms": status.ending().map(|ending| ending.ended_ms),
        "items": {
            "read": counts.read,
            "total": counts.total,
            "ok": counts.ok,
            "failed": counts.failed,
        },
        "retried": counts.retried,
        "attempts": counts.attempts,
        "speculative_wins": counts.speculative_wins,
        "workers": counts.workers,
        "workers_lost": counts.workers_lost,
        "input_bytes": job.input_bytes,
        "output_bytes": status.output_bytes,
        "format": match (job.output.json, job.output.frames) {
            (true, _) => "json",
            (_, true) => "frames",
            (false, false) => "raw",
        },
        "unordered": job.output.unordered,
    })
}

fn attempt_cells(told: &AttemptTold) -> [String; 6] {
    let state = told.state.name();
    [
        told.attempt.to_string(),
        format!("{} to {}", told.range.first + 1, told.range.end()),
        told.worker.clone(),
        if told.speculative { format!("{state} (speculative)") } else { state.to_owned() },
        format!("{:.3} s", told.ran.as_secs_f64()),
        told.remark.lines().next().unwrap_or_default().to_owned(),
    ]
}

fn explanation_in_json(explanation: &Explanation) -> Value {
    let attempt = |told: &AttemptTold| {
        json!({
            "attempt": told.attempt.0,
            "seq": told.range.first + 1,
            "items": told.range.items,
            "worker": told.worker,
            "assigned_ms": told.assigned_ms,
            "seconds": told.ran.as_secs_f64(),
            "state": told.state.name(),
            "speculative": told.speculative,
            "remark": told.remark,
        })
    };
    json!({
        "explanation": explanation.sentence,
        "attempts": explanation.attempts.iter().map(attempt).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_shown_in_a_unit_that_fits() {
        for (seconds, shown) in
            [(0, "0s"), (119, "119s"), (600, "10m"), (7_200, "2h"), (172_800, "2d")]
        {
            assert_eq!(roughly(Duration::from_secs(seconds)), shown);
        }
        for (bytes, shown) in [(0, "0 bytes"), (1_023, "1023 bytes"), (1_536, "1.5 KiB")] {
            assert_eq!(size_shown(bytes), shown);
        }
        assert_eq!(size_shown(u64::MAX), "16777216.0 TiB");
    }
}
