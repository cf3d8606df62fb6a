//! Where the results of a job go, and what is said of them in the end.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::Signal as SignalNumber;
use tokio::task::JoinHandle;
use widemap_common::ids::JobId;
use widemap_common::limits::SUMMARY_FAILURES;
use widemap_proto::jobs::{How, Job, WhatRuns};

use crate::cli::rerun::quoted;
use crate::client::{Collected, JobsError};
use crate::data::{
    self, Delivery, FailuresFile, ItemCounts, OutputFile, Recorder, Recording, SinkError,
    SinkReport, SinkTarget,
};
use crate::driver::{Ending, Outcome};
use crate::error::MapError;
use crate::progress::Progress;
use crate::summary::{Counts, NamedFailure};

/// Where results go.
#[derive(Debug, Default)]
pub(in crate::cli) struct Wanted {
    /// A file, or standard output.
    pub(in crate::cli) output: Option<PathBuf>,
    /// Where failures go; else to a file of their own, if there are any.
    pub(in crate::cli) failures: Option<PathBuf>,
    /// Where the receipt goes, and what is run.
    pub(in crate::cli) receipt: Option<(PathBuf, WhatRuns)>,
    /// What is made of records, if that is what comes.
    pub(in crate::cli) recording: Option<Recording>,
    /// Whether failed items have a place in the output, for a repair.
    pub(in crate::cli) has_places: bool,
    /// Say nothing but errors.
    pub(in crate::cli) quiet: bool,
    /// Show progress, if anybody sees it.
    pub(in crate::cli) progress: bool,
    /// How often to say what the job waits for.
    pub(in crate::cli) explain_every: Option<Duration>,
    /// What a command for the same coordinator must say besides.
    pub(in crate::cli) suffix: String,
}

/// What is written to, made before anything runs.
pub(in crate::cli) struct Outlets {
    output: Option<OutputFile>,
    receipt: Option<(OutputFile, WhatRuns)>,
    failures_file: PathBuf,
    /// None while it writes.
    delivery: Option<Delivery>,
    writing: Option<Writing>,
    has_written: bool,
    failures: Vec<NamedFailure>,
    progress: Arc<Progress>,
    explain_every: Option<Duration>,
    quiet: bool,
    suffix: String,
}

/// A write on a thread that may wait for it.
type Writing = JoinHandle<(Delivery, Result<(), SinkError>)>;

/// What came of collecting a job.
pub(in crate::cli) struct Done {
    pub(in crate::cli) outcome: Outcome,
    /// How long the job took; not known of one that has not ended, as its counts are not.
    pub(in crate::cli) took: Option<Duration>,
}

/// How collecting ended.
pub(in crate::cli) enum End {
    /// With the job.
    Job(Box<Job>),
    /// Nobody reads the output any more.
    ReaderGone,
    /// By a signal, which the job may have ended by.
    Signal(SignalNumber, Option<Box<Job>>),
    /// By what went wrong.
    Error(MapError),
}

/// What is written at once.
enum Written {
    Output(Bytes),
    Failures(Vec<Bytes>),
}

impl End {
    /// What it means that something cannot be written.
    pub(in crate::cli) fn of_output(error: MapError) -> Self {
        match error {
            MapError::Output(error) if error.is_closed() => Self::ReaderGone,
            error => Self::Error(error),
        }
    }
}

impl Outlets {
    /// Makes them: what cannot be written is found out now.
    ///
    /// # Errors
    /// What cannot be written.
    pub(in crate::cli) fn create(wanted: Wanted) -> Result<Self, MapError> {
        let output = wanted.output.as_deref().map(OutputFile::create).transpose()?;
        let receipt = wanted.receipt.map(|(path, what)| Ok((OutputFile::create(&path)?, what)));
        let receipt = receipt.transpose().map_err(MapError::Receipt)?;
        let failures_file = wanted.failures.clone().unwrap_or_else(FailuresFile::usual_path);
        let failures = match wanted.failures.is_some() {
            true => FailuresFile::create(failures_file.clone()).map_err(MapError::FailuresFile)?,
            false => FailuresFile::at_first_failure(failures_file.clone()),
        };
        let target = match &output {
            Some(output) => SinkTarget::output_file(output)?,
            None => SinkTarget::stdout()?,
        };
        let target = if wanted.has_places { target } else { target.without_places() };
        let recorder = wanted.recording.map(Recorder::create).transpose();
        let recorder = recorder.map_err(|error| MapError::Output(error.into()))?;
        let delivery = Some(Delivery::new(target, receipt.is_some(), recorder, failures));
        let progress = Progress::new(wanted.progress, output.is_none());
        Ok(Self {
            output,
            receipt,
            failures_file,
            delivery,
            writing: None,
            has_written: false,
            failures: Vec::new(),
            progress: Arc::new(progress),
            explain_every: wanted.explain_every,
            quiet: wanted.quiet,
            suffix: wanted.suffix,
        })
    }

    /// Takes what was collected: writes it, or shows it.
    pub(in crate::cli) fn take(&mut self, collected: Collected) {
        match collected {
            Collected::Output(data) => self.write(Written::Output(data)),
            Collected::Failures(records) => self.write(Written::Failures(records)),
            Collected::Stderr(pieces) => pieces.iter().for_each(|lines| self.show(lines)),
            // They are of the job, and not of its results.
            Collected::Ended(_) | Collected::Lost(_) | Collected::Back => {}
        }
    }

    /// Writes where that keeps nobody else: a slow reader is waited for as long as it takes, and the
    /// connection lives on meanwhile. What is written before has been.
    fn write(&mut self, collected: Written) {
        self.has_written = true;
        if let Written::Failures(records) = &collected {
            self.note(records);
        }
        let Some(mut delivery) = self.delivery.take() else { return };
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let written = match collected {
                Written::Output(data) => delivery.output(&data),
                Written::Failures(records) => {
                    records.iter().try_for_each(|record| delivery.failure(record))
                }
            };
            (delivery, written)
        }));
    }

    /// Whether something is being written.
    pub(in crate::cli) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Waits until it is. Nothing is lost if that is not awaited to its end.
    pub(in crate::cli) async fn written(&mut self) -> Result<(), MapError> {
        let Some(writing) = &mut self.writing else { return Ok(()) };
        let written = writing.await;
        self.writing = None;
        match written {
            Ok((delivery, written)) => {
                self.delivery = Some(delivery);
                Ok(written?)
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => Err(MapError::Start(io::Error::other(error))),
        }
    }

    /// Whether something was written, or is.
    pub(in crate::cli) fn has_written(&self) -> bool {
        self.has_written
    }

    fn note(&mut self, records: &[Bytes]) {
        let missing = SUMMARY_FAILURES.saturating_sub(self.failures.len());
        self.failures.extend(
            records.iter().take(missing).filter_map(|record| NamedFailure::of_record(record)),
        );
    }

    /// What is shown of how far it is.
    pub(super) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// How often to say what the job waits for.
    pub(super) fn explain_every(&self) -> Option<Duration> {
        self.explain_every
    }

    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            self.progress.say(&format!("widemap: {text}"));
        }
    }

    /// Shows what items have written on their standard error.
    fn show(&self, lines: &[u8]) {
        self.progress.say(&String::from_utf8_lossy(lines));
    }

    /// Puts everything in its place, and says what came of it.
    pub(in crate::cli) fn close(
        mut self,
        end: End,
        job: Option<JobId>,
        elapsed: Option<Duration>,
    ) -> Done {
        self.progress.clear();
        let (ending, ended, mut error) = match end {
            End::Job(job) => (Ending::Complete, Some(job), None),
            End::ReaderGone => (Ending::ReaderGone, None, None),
            End::Signal(signal, job) => (Ending::Signal(signal.as_raw()), job, None),
            End::Error(error) => (Ending::Complete, None, Some(error)),
        };
        if let Some(ended) = &ended
            && ending == Ending::Complete
        {
            error = error.or_else(|| failed(ended));
        }
        let counts = ended.as_deref().map_or_else(Counts::default, counts);
        let report = self.delivery.take().map(Delivery::finish);
        let report = match report.transpose() {
            Ok(report) => report,
            Err(sink) => {
                error.get_or_insert(sink.into());
                None
            }
        };
        let took = ended.as_deref().map(|ended| elapsed.unwrap_or_else(|| ran(ended)));
        let is_whole = error.is_none() && ended.is_some() && ending == Ending::Complete;
        let placed = self.place(is_whole, &counts, report.as_ref(), took.unwrap_or_default());
        let left = match (job, ending, &error) {
            (None, Ending::ReaderGone, _) => None,
            (None, ..) if self.has_written => Some(
                "stopped before all items were sent: no job was made of them, as far as is known"
                    .to_owned(),
            ),
            (None, ..) => Some("stopped: no job was handed in".to_owned()),
            (_, Ending::ReaderGone, _) => None,
            (_, _, Some(error)) if is_refused(error) => None,
            _ if is_whole => None,
            (Some(job), ..) => Some(self.left(job, ended.as_deref())),
        };
        let advice = match placed {
            Ok(partial) => advice(partial, left),
            Err(failed) => {
                error.get_or_insert(failed);
                None
            }
        };
        let kept = report.is_some_and(|report| report.failures_kept && report.failures > 0);
        let outcome = Outcome {
            ending,
            failures_file: kept.then_some(self.failures_file),
            failures: self.failures,
            counts,
            advice,
            error,
        };
        Done { outcome, took }
    }

    /// The output in its place if it is whole, with its receipt; else where what there is was kept.
    fn place(
        &mut self,
        is_whole: bool,
        counts: &Counts,
        report: Option<&SinkReport>,
        took: Duration,
    ) -> Result<Option<PathBuf>, MapError> {
        let partial = match self.output.take() {
            Some(output) if is_whole => output.commit().map(|()| None)?,
            Some(output) => output.keep_partial()?,
            None => None,
        };
        if let (Some((receipt, what)), Some(report)) = (self.receipt.take(), report)
            && is_whole
        {
            let items = ItemCounts {
                read: counts.read,
                ok: counts.ok,
                failed: counts.failed,
                not_run: counts.read.saturating_sub(counts.ok + counts.failed),
            };
            let json = data::receipt_json(&what, items, report, took.as_secs_f64());
            receipt.write_whole(json.as_bytes()).map_err(MapError::Receipt)?;
        }
        Ok(partial)
    }

    /// Where the rest of the results is.
    fn left(&self, job: JobId, ended: Option<&Job>) -> String {
        let again = format!("widemap results {job}{}", self.suffix);
        match ended {
            None => format!("{job} goes on; to collect it: {again}"),
            Some(_) => format!("what was done of {job}: {again}"),
        }
    }
}

/// How to go on.
fn advice(partial: Option<PathBuf>, left: Option<String>) -> Option<String> {
    let kept = partial.map(|path| format!("what there is was kept as {}", quoted(&path)));
    match (kept, left) {
        (Some(kept), Some(left)) => Some(format!("{kept}; {left}")),
        (kept, left) => kept.or(left),
    }
}

/// Whether the coordinator has no such results, or the error says where they are.
fn is_refused(error: &MapError) -> bool {
    matches!(error, MapError::Jobs(JobsError::Refused { .. } | JobsError::Replaced { .. }))
}

/// What the end of a job means to whoever waits for it, if not that all of it was run.
fn failed(job: &Job) -> Option<MapError> {
    let id = job.id;
    match &job.status.ending()?.how {
        How::Complete => None,
        How::Cancelled => Some(MapError::Cancelled(id)),
        How::Unusable(why) => Some(MapError::JobUnusable { job: id, why: why.clone() }),
        How::Halted(why) => Some(MapError::JobHalted { job: id, why: why.clone() }),
        How::Failed(why) => Some(MapError::JobFailed { job: id, why: why.clone() }),
    }
}

fn counts(job: &Job) -> Counts {
    let counts = &job.status.counts;
    Counts {
        read: counts.read,
        ok: counts.ok,
        failed: counts.failed,
        retried: counts.retried,
        workers: usize::try_from(counts.workers).unwrap_or(usize::MAX),
        workers_lost: counts.workers_lost,
        speculative_wins: counts.speculative_wins,
        ..Counts::default()
    }
}

/// From when it ran first to its end.
fn ran(job: &Job) -> Duration {
    let ended_ms = job.status.ending().map_or(0, |ending| ending.ended_ms);
    let began_ms = job.status.started_ms.unwrap_or(job.created_ms);
    Duration::from_millis(ended_ms.saturating_sub(began_ms))
}
