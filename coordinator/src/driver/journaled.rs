//! The journal of one map: the same that a service keeps of its jobs, but for the input, of which only
//! running hashes are kept.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;
use widemap_common::framing::Framing;
use widemap_common::ids::{CoordinatorId, Epoch};
use widemap_common::spec::{Directory, JobSpec, Limits};
use widemap_common::wall_clock;
use widemap_proto::jobs::{Blocks, Ended, Ending, How, JobCounts, Submission};

use super::one_shot::THE_JOB;
use super::plan::JournalPlan;
use crate::error::MapError;
use crate::journal::{Disk, Entry, JobHeader, JournalError, Shelf, Store, Writer};
use crate::say;

/// See the file's head.
pub(super) struct Journaled {
    pub(super) writer: Arc<Writer>,
    pub(super) shelf: Arc<Shelf>,
    pub(super) coordinator: CoordinatorId,
    pub(super) epoch: Epoch,
    /// Whether there was a map to go on with.
    pub(super) is_resumed: bool,
    pub(super) directory: PathBuf,
    started_ms: Option<u64>,
    /// Whether its end was written.
    is_over: bool,
    /// Keeps others out of the directory.
    _store: Arc<Store>,
}

impl Journaled {
    /// Begins a journal, or goes on with one.
    ///
    /// # Errors
    /// If there is one and it was not said to go on, it is of another map, or it cannot be read or written.
    pub(super) fn open(plan: JournalPlan, progressed: &Arc<Notify>) -> Result<Self, MapError> {
        let JournalPlan { directory, resume, submission } = plan;
        let wake = Arc::clone(progressed);
        let medium = Arc::new(Disk);
        let writer = Writer::start(
            medium.clone(),
            move || wake.notify_one(),
            |commit| {
                tracing::debug!(bytes = commit.bytes, took = ?commit.took, "made durable");
            },
        )?;
        let is_ordered = |header: &JobHeader| {
            Submission::from_bytes(header.submission.clone())
                .is_ok_and(|submission| !submission.output.unordered)
        };
        let (store, mut jobs) = Store::open(medium, &directory, is_ordered)?;
        let store = Arc::new(store);
        let mut job = match (jobs.pop(), jobs.is_empty()) {
            (None, _) => {
                let is_ordered = !submission.output.unordered;
                let header = JobHeader {
                    submission: submission.to_bytes(),
                    submit_key: None,
                    created_ms: wall_clock::unix_ms().unwrap_or_default(),
                };
                store.begin(header, is_ordered, false)?.finish()?
            }
            (Some(job), true) if job.id == THE_JOB && job.input.is_none() => {
                // One that ended before it read anything is as good as none.
                let is_begun = job.shelf.ended().is_some() || !job.shelf.inputs().is_empty();
                if is_begun && !resume {
                    return Err(MapError::JournalThere(directory));
                }
                check(&directory, job.header.submission.clone(), &submission)?;
                job
            }
            (Some(_), _) => return Err(MapError::JournalOfService(directory)),
        };
        for remark in &job.remarks {
            say::line(&format!("widemap: WARNING: {remark}"));
        }
        let is_over = job.shelf.ended().is_some();
        if !is_over {
            job.write_with(&writer);
        }
        Ok(Self {
            writer: Arc::new(writer),
            is_resumed: is_over || !job.shelf.inputs().is_empty(),
            shelf: job.shelf,
            coordinator: store.coordinator(),
            epoch: store.epoch(),
            directory,
            started_ms: wall_clock::unix_ms(),
            is_over,
            _store: store,
        })
    }

    /// Every item has its last word. Once.
    pub(super) fn end(&mut self, counts: JobCounts) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let ended_ms = wall_clock::unix_ms().unwrap_or_default();
        let ending = Ending { how: How::Complete, ended_ms };
        let ended = Ended { ending, counts, started_ms: self.started_ms };
        self.writer.append(THE_JOB, Entry::Ended(ended.to_bytes()));
    }
}

/// Whether a map is the one that was begun.
fn check(directory: &Path, before: Bytes, now: &Submission) -> Result<(), MapError> {
    let before = Submission::from_bytes(before).map_err(|error| JournalError::Version {
        path: directory.to_owned(),
        found: format!("of another build ({error})"),
        wanted: "what this build writes".to_owned(),
    })?;
    let changes = changes(&before, now);
    if changes.is_empty() {
        return Ok(());
    }
    Err(MapError::NotTheMap { directory: directory.to_owned(), changes })
}

/// What differs of what decides about results, a line each. How items are sent, and which workers run
/// them, is not among it.
fn changes(before: &Submission, now: &Submission) -> Vec<String> {
    let mut changes = Vec::new();
    let mut compare = |what: &str, before: String, now: String, differ: bool| {
        if differ {
            changes.push(format!("  {what}: was {before}, and is {now}"));
        }
    };
    let (old, new) = (&before.spec, &now.spec);
    let shown = |submission: &Submission| format!("`{}`", submission.function_shown());
    compare("the function", shown(before), shown(now), old.function != new.function);
    let ends = |framing: Framing| match framing {
        Framing::Separator(0) => "in NUL".to_owned(),
        Framing::Separator(b'\n') => "in a newline".to_owned(),
        Framing::Separator(byte) => format!("in byte {byte}"),
        Framing::LengthPrefixed => "as a list does".to_owned(),
        Framing::Columns => "as lists of columns do".to_owned(),
    };
    let framing = (ends(old.framing), ends(new.framing));
    compare("how items end (-0, :::)", framing.0, framing.1, old.framing != new.framing);
    let blocks = |submission: &Submission| match submission.blocks {
        Blocks::ItemWise => "none".to_owned(),
        Blocks::Fixed(bytes) => format!("{bytes} bytes"),
        Blocks::Schedule => "growing".to_owned(),
    };
    compare("--block", blocks(before), blocks(now), before.blocks != now.blocks);
    let form = |submission: &Submission| match (submission.output.json, submission.output.frames) {
        (true, _) => "json",
        (_, true) => "frames",
        (false, false) => "raw",
    };
    let forms = (form(before), form(now));
    compare("--format", forms.0.to_owned(), forms.1.to_owned(), forms.0 != forms.1);
    let fill = |submission: &Submission| match &submission.output.fill {
        Some(fill) => format!("`{}`", String::from_utf8_lossy(fill)),
        None => "none".to_owned(),
    };
    let is_another = before.output.fill != now.output.fill;
    compare("--fill", fill(before), fill(now), is_another);
    let kept = |submission: &Submission| {
        if submission.output.is_of_records() { "asked for" } else { "not" }.to_owned()
    };
    let (was, is) = (kept(before), kept(now));
    let differ = was != is;
    compare("--tag, --joblog or --results", was, is, differ);
    let statuses = |spec: &JobSpec| match spec.ok_exit.as_slice() {
        [] => "0".to_owned(),
        some => some.iter().map(u8::to_string).collect::<Vec<_>>().join(","),
    };
    compare("--ok-exit", statuses(old), statuses(new), old.ok_exit != new.ok_exit);
    let order = |submission: &Submission| {
        if submission.output.unordered { "as they come" } else { "in order" }
    };
    let orders = (order(before), order(now));
    compare("--unordered", orders.0.to_owned(), orders.1.to_owned(), orders.0 != orders.1);
    let retries = (before.policy.retries, now.policy.retries);
    compare("--retries", retries.0.to_string(), retries.1.to_string(), retries.0 != retries.1);
    let limits = (before.policy.crash_limit, now.policy.crash_limit);
    compare("--crash-limit", limits.0.to_string(), limits.1.to_string(), limits.0 != limits.1);
    let timeout = |timeout: Option<std::time::Duration>| {
        timeout.map_or_else(|| "none".to_owned(), |timeout| format!("{timeout:?}"))
    };
    let timeouts = (timeout(old.timeout), timeout(new.timeout));
    compare("--timeout", timeouts.0, timeouts.1, old.timeout != new.timeout);
    let most = (old.max_output.to_string(), new.max_output.to_string());
    compare("--max-output", most.0, most.1, old.max_output != new.max_output);
    let memory = |limits: &Limits| limits.memory.map_or(0, NonZeroU64::get).to_string();
    let memories = (memory(&old.limits), memory(&new.limits));
    compare("--memory", memories.0, memories.1, old.limits.memory != new.limits.memory);
    let seconds = |limits: &Limits| limits.cpu_seconds.map_or(0, NonZeroU32::get).to_string();
    let times = (seconds(&old.limits), seconds(&new.limits));
    let differs = old.limits.cpu_seconds != new.limits.cpu_seconds;
    compare("--cpu-seconds", times.0, times.1, differs);
    let place = |directory: &Directory| match directory {
        Directory::Private => "a private directory".to_owned(),
        Directory::Inherit => "the worker's own".to_owned(),
        Directory::Path(path) => String::from_utf8_lossy(path).into_owned(),
    };
    let directories = (place(&old.directory), place(&new.directory));
    compare("--wd", directories.0, directories.1, old.directory != new.directory);
    if old.files != new.files {
        changes.push("  --file: other files, or other contents of them".to_owned());
    }
    if old.environment != new.environment {
        changes.push("  --env: other variables, or other values of them".to_owned());
    }
    changes
}
