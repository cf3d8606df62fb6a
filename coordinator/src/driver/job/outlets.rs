//! The files that a map of one's own writes: the output, the receipt, the failures file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use widemap_common::spec::JobSpec;

use crate::data::{
    self, Delivery, FailuresFile, ItemCounts, OutputFile, Recorder, Shape, SinkConfig, SinkTarget,
};
use crate::driver::plan::{self, Ending, Results};
use crate::error::MapError;

/// See the file's head.
pub(super) struct Outlets {
    pub(super) results: Results,
    output: Option<OutputFile>,
    receipt: Option<OutputFile>,
    pub(super) failures_file: PathBuf,
    /// What came of the output, once it has ended.
    pub(super) delivered: Option<Result<data::SinkReport, data::SinkError>>,
}

/// Writes the same, but for results that come finished from the journal.
pub(super) fn delivery(sink: SinkConfig) -> Delivery {
    let failures =
        sink.failures.unwrap_or_else(|| FailuresFile::at_first_failure(FailuresFile::usual_path()));
    Delivery::new(sink.target, sink.is_hashed, sink.recorder, failures)
}

impl Outlets {
    /// Makes them, before anything else: what cannot be written is found out before anything runs.
    /// Beside them comes what writes the output.
    pub(super) fn create(
        mut results: Results,
        shape: Shape,
        function: String,
    ) -> Result<(Self, SinkConfig), MapError> {
        let output = results.output.as_deref().map(OutputFile::create).transpose()?;
        let receipt = results.receipt.as_deref().map(OutputFile::create).transpose();
        let receipt = receipt.map_err(MapError::Receipt)?;
        let failures_file = results.failures.clone().unwrap_or_else(FailuresFile::usual_path);
        let failures = match results.failures.is_some() {
            true => FailuresFile::create(failures_file.clone()).map_err(MapError::FailuresFile)?,
            false => FailuresFile::at_first_failure(failures_file.clone()),
        };
        let recorder = results.recording.take().map(Recorder::create).transpose();
        let recorder = recorder.map_err(|error| MapError::Output(error.into()))?;
        let target = match &output {
            Some(output) => SinkTarget::output_file(output)?,
            None => SinkTarget::stdout()?,
        };
        let has_places = !results.form.unordered && !results.form.tag;
        let sink = SinkConfig {
            target: if has_places { target } else { target.without_places() },
            format: plan::format(&results.form),
            shape,
            separator: results.form.separator,
            recorder,
            is_hashed: results.receipt.is_some(),
            // Whoever reads frames has those of failed items among them.
            failures: (!results.form.frames).then_some(failures),
            function,
        };
        Ok((Self { results, output, receipt, failures_file, delivered: None }, sink))
    }

    /// The output in its place if it is complete; else where what there is was kept.
    pub(super) fn place_output(&mut self, complete: bool) -> Result<Option<PathBuf>, MapError> {
        match self.output.take() {
            None => Ok(None),
            Some(output) if complete => Ok(output.commit().map(|()| None)?),
            Some(output) => Ok(output.keep_partial()?),
        }
    }

    pub(super) fn write_receipt(
        &mut self,
        spec: &JobSpec,
        items: ItemCounts,
        report: &data::SinkReport,
        elapsed: Duration,
    ) -> Result<(), MapError> {
        let Some(receipt) = self.receipt.take() else { return Ok(()) };
        let json = data::receipt_json(&data::what_runs(spec), items, report, elapsed.as_secs_f64());
        receipt.write_whole(json.as_bytes()).map_err(MapError::Receipt)
    }

    /// How to go on after a map that was stopped, of which the output has the first `done` items.
    pub(super) fn advice(
        &self,
        ending: Ending,
        partial: Option<PathBuf>,
        items: ItemCounts,
        done: u64,
    ) -> Option<String> {
        let kept = partial.map(|path| format!("what there is was kept as {}", path.display()));
        if items.not_run == 0 || ending == Ending::ReaderGone {
            return kept;
        }
        let rest = match (self.results.form.unordered, done) {
            (true, _) => {
                "to go on, run it again: the output does not tell what is missing".to_owned()
            }
            (false, 0) if !matches!(ending, Ending::Signal(_)) => return kept,
            (false, 0) => "to go on, run it again: nothing of the output was written".to_owned(),
            (false, done) => format!(
                "the output has the first {done} of {} items; to go on, map the items from number {} \
                 on and append the output",
                items.read,
                done + 1
            ),
        };
        Some(
            kept.map_or_else(
                || format!("stopped: {rest}"),
                |kept| format!("stopped: {kept}; {rest}"),
            ),
        )
    }
}

/// How to go on after a map that has a journal.
pub(super) fn journal_advice(
    journal: &Path,
    partial: Option<PathBuf>,
    is_over: bool,
) -> Option<String> {
    let kept = partial.map(|path| format!("what there is was kept as {}", path.display()));
    if is_over {
        return kept;
    }
    let rest = format!(
        "what is done is in the journal {}; to go on, run the same command with --resume: its output \
         begins with the first item again",
        journal.display()
    );
    Some(kept.map_or_else(|| format!("stopped: {rest}"), |kept| format!("stopped: {kept}; {rest}")))
}
