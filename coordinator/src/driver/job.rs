//! A job as the driver keeps it: its input, what is held of it, its results on their way, and what must
//! be said of it at the end.

mod deliverer;
mod direct;
mod ending;
mod fitness;
mod history;
mod input;
mod members;
mod open;
mod outlets;
mod results;
mod stops;
mod way;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use widemap_common::artifact::{Digest, JobFiles};
use widemap_common::ids::{AttemptId, ItemRange, JobId, WorkerId};
use widemap_common::spec::{Directory, JobSpec, Runtime};
use widemap_proto::jobs::{AttemptState, Submission};
use widemap_proto::session::{Done, Part};
use widemap_sched::event::JobPolicy;

use super::core::Attempt;
use crate::data::{
    self, Arriving, Artifact, Artifacts, HeldInput, Input, MergeLevel, Prefix, Report, Shape,
};
use crate::error::MapError;
use crate::journal::{Shelf, Ticket, Writer};
use crate::summary::{Counts, NamedFailure};
use deliverer::{Delivered, Deliverer};
use fitness::Fitness;
use history::History;
use outlets::Outlets;
use stops::Stops;
use way::Way;

pub(super) use ending::Lost;
pub(super) use history::Ended;
pub(super) use stops::Halting;

/// See the file's head.
pub(super) struct Job {
    spec: JobSpec,
    policy: JobPolicy,
    shape: Shape,
    private: bool,
    /// What is in its files.
    artifacts: Artifacts,
    /// Whether something is made of each result, JSON or a frame, which takes more of them.
    is_made: bool,
    /// Whether what items write on standard error is shown: JSON has it in its lines.
    says_stderr: bool,
    /// Whether whoever reads the results knows nothing of the numbers of items.
    is_framed: bool,
    /// Whether they say when items ran.
    has_times: bool,
    input: Input,
    held: HeldInput,
    inflight_bytes_max: u64,
    /// Cutting waits for held input to become final.
    gated: bool,
    /// Nothing more is cut: the job was given up.
    stopped: bool,
    /// When it is to stop before its end.
    stops: Stops,
    /// The scheduler knows how much input there is: a list is there before anything arrives.
    level_told: bool,
    way: Way,
    /// What a map of one's own writes, and what brings it there from its journal, if it has one.
    outlets: Option<Outlets>,
    deliverer: Option<Deliverer>,
    /// How much of the input the journal knows, now and of former lives.
    noted: Option<Prefix>,
    noted_before: u64,
    /// What is kept of the items' standard error, in bytes.
    stderr_bytes: u64,
    is_full: bool,
    /// The attempt whose end is being judged.
    judged: Option<Judged>,
    refusals: BTreeMap<WorkerId, Refused>,
    /// Whether its function is fit for its runtime, while that is in doubt.
    fitness: Fitness,
    has_been_ready: bool,
    counts: Counts,
    /// Items, or blocks, that failed for good.
    failed_units: u64,
    failures: Vec<NamedFailure>,
    history: History,
}

/// A job of a service, to be opened.
pub(super) struct KeptPlan {
    pub(super) id: JobId,
    pub(super) submission: Submission,
    /// Its items, and how far they are if they are still coming.
    pub(super) input: PathBuf,
    pub(super) arriving: Option<Arc<Arriving>>,
    /// What is in its files.
    pub(super) artifacts: Artifacts,
    pub(super) writer: Arc<Writer>,
    /// What is durable of it already.
    pub(super) shelf: Option<Arc<Shelf>>,
}

/// Why a worker is not used.
struct Refused {
    message: String,
    /// Whether it lacks what the function needs: if all do, the function is unusable.
    unable: bool,
}

/// The end of an attempt, until the scheduler has judged it.
struct Judged {
    attempt: AttemptId,
    told: Told,
}

enum Told {
    /// Every item succeeded, and nothing else is wanted of them: the usual case, and a cheap one.
    Plain { output_bytes: u64 },
    /// Whatever else.
    Full(Box<Report>),
}

impl Job {
    /// Why the input could not be read to its end, if so.
    pub(super) fn take_input_error(&mut self) -> Option<MapError> {
        self.input.take_error().map(MapError::from)
    }

    /// How the job is to be run.
    pub(super) fn policy(&self) -> &JobPolicy {
        &self.policy
    }

    /// What a worker is told: one in this process works where the caller does. A module of WebAssembly has
    /// its files and nothing else, wherever it runs.
    pub(super) fn spec_for(&self, embedded: bool) -> JobSpec {
        let mut spec = self.spec.clone();
        if embedded && self.private && spec.function.runtime() != Runtime::Wasm {
            spec.directory = Directory::Inherit;
            // They are there already.
            spec.files = JobFiles::default();
        }
        spec
    }

    /// What is in one of its files.
    pub(super) fn artifact(&self, digest: Digest) -> Option<&Artifact> {
        self.artifacts.get(digest)
    }

    /// Keeps a part of an attempt's output.
    pub(super) fn stage(&mut self, part: &Part) -> Result<(), data::StageError> {
        match &mut self.way {
            Way::Direct(direct) => direct.merge.stage(part.attempt, part.offset, &part.data),
            Way::Ledger(ledger) => ledger.stage(part.attempt, part.offset, &part.data),
        }
    }

    /// Forgets what is staged of an attempt.
    pub(super) fn discard(&mut self, attempt: AttemptId) {
        match &mut self.way {
            Way::Direct(direct) => direct.merge.discard(attempt),
            Way::Ledger(ledger) => drop(ledger.release(attempt)),
        }
        if self.judged.as_ref().is_some_and(|judged| judged.attempt == attempt) {
            self.judged = None;
        }
    }

    /// The same, of an attempt whose end was judged; when its worker may forget it, if not at once.
    pub(super) fn release(&mut self, attempt: AttemptId) -> Option<Ticket> {
        let ticket = match &mut self.way {
            Way::Direct(_) => None,
            Way::Ledger(ledger) => ledger.release(attempt),
        };
        self.discard(attempt);
        ticket
    }

    /// A worker is not used for a time.
    pub(super) fn left_out(&mut self, name: &str) {
        *self.counts.left_out.entry(name.to_owned()).or_default() += 1;
    }

    /// Items run again.
    pub(super) fn retried(&mut self, range: ItemRange) {
        self.counts.retried += u64::from(range.items);
    }

    /// How the attempt that is judged has ended.
    pub(super) fn verdict_on(&self, attempt: AttemptId) -> (AttemptState, String) {
        match &self.judged {
            Some(Judged { attempt: of, told: Told::Full(report) }) if *of == attempt => {
                match report.first_fault() {
                    Some(message) => (AttemptState::Failed, message.to_owned()),
                    None => (AttemptState::Succeeded, String::new()),
                }
            }
            _ => (AttemptState::Succeeded, String::new()),
        }
    }

    /// An attempt has ended.
    pub(super) fn note(&mut self, ended: Ended) {
        self.history.note(ended);
    }

    /// The last attempts that have ended, of one item or of all.
    pub(super) fn history(&self, item: Option<u64>) -> Vec<&Ended> {
        self.history.of(item)
    }

    /// Whether results can be stored, if that has changed.
    pub(super) fn poll_storage(&mut self) -> Option<bool> {
        let full = self.way.level().is_full;
        (full != std::mem::replace(&mut self.is_full, full)).then_some(full)
    }

    /// Bytes of results that wait in memory, and on disk.
    pub(super) fn kept_bytes(&self) -> (u64, u64) {
        let MergeLevel { memory_bytes, spilled_bytes, .. } = self.way.level();
        (memory_bytes, spilled_bytes)
    }

    /// Whether results are on their way to the disk, which makes room.
    pub(super) fn is_clearing(&self) -> bool {
        self.way.level().is_clearing
    }

    /// Whether nothing more can be stored but what the output waits for.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Moves the output on; says what is wrong with it.
    pub(super) fn poll_output(&mut self) -> Result<Option<data::SpillError>, MapError> {
        let delivered = match &mut self.way {
            Way::Direct(direct) => direct.poll(),
            Way::Ledger(_) => self.poll_deliverer(),
        };
        if let (Some(delivered), Some(outlets)) = (delivered, &mut self.outlets) {
            match delivered {
                Ok(report) => outlets.delivered = Some(Ok(report)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.way.take_spill_error())
    }

    fn poll_deliverer(&mut self) -> Option<Result<data::SinkReport, data::SinkError>> {
        let deliverer = self.deliverer.as_mut()?;
        deliverer.stir(self.input.is_checked());
        let outcome = deliverer.outcome()?;
        Some(outcome.map(|Delivered { report, failures }| {
            // Those of former lives too.
            self.failures = failures;
            report
        }))
    }

    /// The bound of what waits in memory.
    pub(super) fn kept_bytes_max(&self) -> u64 {
        match &self.way {
            Way::Direct(direct) => direct.memory_bytes_max(),
            Way::Ledger(ledger) => ledger.memory_bytes_max(),
        }
    }

    /// The first item that has no result yet, and what it is, for a person.
    pub(super) fn waited_for(&mut self) -> Option<(u64, String)> {
        let item = match &self.way {
            Way::Direct(direct) => direct.merge.next_item(),
            Way::Ledger(_) => return None,
        };
        if self.shape.is_block_wise {
            return Some((item, " and its block".to_owned()));
        }
        let whole = if self.held.holds(item) { self.held.item(item).ok() } else { None };
        let shown = whole.map(|whole| data::item_shown(&self.shape.input.joined(&whole)));
        Some((item, shown.map_or_else(String::new, |shown| format!(" `{shown}`"))))
    }

    /// The first item that the output waits for, if it must be stored before others.
    pub(super) fn next_item(&self) -> Option<u64> {
        match &self.way {
            Way::Direct(direct) => self.is_full.then(|| direct.merge.next_item()),
            // The journal takes results in any order, and has room again once the disk has.
            Way::Ledger(_) => None,
        }
    }
}

/// Whether the end of an attempt fits what is known of it.
///
/// # Errors
/// What does not.
pub(super) fn check(attempt: &Attempt, done: &Done) -> Result<(), &'static str> {
    if attempt.staged_bytes + done.output.len() as u64 != done.output_bytes {
        return Err("its output is not as long as it says");
    }
    let (mut next_index, mut at) = (0, 0);
    for fault in &done.faults {
        if fault.index < next_index || fault.index >= attempt.range.items {
            return Err("its failures name items that it did not have");
        }
        let end = fault.output_offset.checked_add(fault.output_bytes);
        match end {
            Some(end) if fault.output_offset >= at && end <= done.output_bytes => at = end,
            _ => return Err("its failures lie outside its output"),
        }
        next_index = fault.index + 1;
    }
    if done.stderr.iter().any(|stderr| stderr.index >= attempt.range.items) {
        return Err("it tells of items that it did not have");
    }
    Ok(())
}
