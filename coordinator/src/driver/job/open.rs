//! Jobs are opened: one of one's own, with or without a journal, and one of a service.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Notify;
use widemap_common::limits::{INFLIGHT_BYTES_MAX, KEPT_INPUT_BYTES};
use widemap_common::spec::{Function, JobSpec};
use widemap_proto::jobs::Submission;

use super::deliverer::Deliverer;
use super::direct::{self, Direct};
use super::fitness::Fitness;
use super::history::History;
use super::outlets::{self, Outlets};
use super::stops::Stops;
use super::way::Way;
use super::{Job, KeptPlan};
use crate::data::{
    self, BlockRule, HeldInput, Input, Ledger, LedgerConfig, Rendering, ResultShape, Shape,
};
use crate::driver::journaled::Journaled;
use crate::driver::one_shot::THE_JOB;
use crate::driver::plan::{self, Plan};
use crate::error::MapError;
use crate::journal::Shelf;
use crate::summary::Counts;

impl Job {
    /// Opens the input and the output: what cannot be read or written is found out before anything
    /// runs.
    pub(in crate::driver) fn open(
        plan: Plan,
        journaled: Option<&Journaled>,
        progressed: &Arc<Notify>,
    ) -> Result<Self, MapError> {
        let wake = || {
            let progressed = Arc::clone(progressed);
            move || progressed.notify_one()
        };
        let Plan { spec, policy, results, blocks, .. } = plan;
        let shape = shape(&spec, blocks);
        let (format, is_ordered) = (plan::format(&results.form), !results.form.unordered);
        let (is_made, has_times) = (format.is_made(), format.has_times());
        let (says_stderr, is_framed) = (!results.form.json, results.form.frames);
        let function = data::function_digest(&spec);
        // The output is made before the input is opened: what cannot be written is found out first.
        let (outlets, sink) = Outlets::create(results, shape, function)?;
        let mut counts = Counts::default();
        let mut input = match journaled {
            None => Input::open(plan.source, spec.framing, blocks, wake())?,
            Some(Journaled { shelf, .. }) => {
                let before = shelf.inputs();
                let mut input =
                    Input::open_again(plan.source, spec.framing, blocks, before, wake())?;
                counts = leave_out(&mut input, shelf);
                input
            }
        };
        let held = match input.take_file() {
            Some(file) => HeldInput::with_file(spec.framing, file),
            None => HeldInput::new(spec.framing),
        };
        let (way, deliverer) = match journaled {
            None => {
                let store = direct::Store {
                    memory_bytes_max: plan.reorder_bytes_max,
                    spill_bytes_max: plan.spill_bytes_max,
                };
                let direct = Direct::start(sink, is_ordered, store, wake())?;
                (Way::Direct(Box::new(direct)), None)
            }
            Some(Journaled { writer, shelf, .. }) => {
                let config = LedgerConfig {
                    job: THE_JOB,
                    writer: Arc::clone(writer),
                    rendering: Rendering { format, shape, separator: sink.separator },
                    function: sink.function.clone(),
                    spill_directory: std::env::temp_dir(),
                };
                let delivery = outlets::delivery(sink);
                let deliverer = Deliverer::start(shelf, delivery, wake());
                let deliverer = deliverer.map_err(MapError::Start)?;
                (Way::Ledger(Box::new(Ledger::new(config, wake()))), Some(deliverer))
            }
        };
        let stops = Stops::new(plan.stops, counts.ok + counts.failed);
        let noted = journaled.and_then(|journaled| journaled.shelf.inputs().into_iter().max());
        Ok(Self {
            spec,
            policy,
            shape,
            private: plan.private,
            artifacts: plan.artifacts,
            is_made,
            says_stderr,
            is_framed,
            has_times,
            input,
            held,
            inflight_bytes_max: plan.inflight_bytes_max,
            gated: false,
            stopped: false,
            stops,
            level_told: false,
            way,
            outlets: Some(outlets),
            deliverer,
            noted,
            noted_before: noted.map_or(0, |noted| noted.bytes),
            stderr_bytes: 0,
            is_full: false,
            judged: None,
            refusals: BTreeMap::new(),
            fitness: Fitness::default(),
            has_been_ready: false,
            // Who goes on has seen what failed before.
            failed_units: 0,
            counts,
            failures: Vec::new(),
            history: History::default(),
        })
    }

    /// Opens a job of a service: its input is a file, its results go to the journal. What is final already
    /// is not run again.
    pub(in crate::driver) fn kept(
        plan: KeptPlan,
        progressed: &Arc<Notify>,
    ) -> Result<Self, MapError> {
        let wake = || {
            let progressed = Arc::clone(progressed);
            move || progressed.notify_one()
        };
        let Submission { spec, blocks, policy, output, .. } = plan.submission;
        let blocks = plan::block_rule(blocks, spec.function.runtime());
        let shape = shape(&spec, blocks);
        let (path, arriving) = (&plan.input, plan.arriving);
        let mut input = Input::open_kept(path, arriving, spec.framing, blocks, wake())?;
        let counts =
            plan.shelf.as_ref().map(|shelf| leave_out(&mut input, shelf)).unwrap_or_default();
        let held = match input.take_file() {
            Some(file) => HeldInput::with_file(spec.framing, file).keeping(KEPT_INPUT_BYTES),
            None => HeldInput::new(spec.framing),
        };
        let format = plan::format(&output);
        let (is_made, has_times) = (format.is_made(), format.has_times());
        let config = LedgerConfig {
            job: plan.id,
            writer: plan.writer,
            rendering: Rendering { format, shape, separator: output.separator },
            function: data::function_digest(&spec),
            spill_directory: std::env::temp_dir(),
        };
        let way = Way::Ledger(Box::new(Ledger::new(config, wake())));
        let stops = Stops::new(policy.stops, counts.ok + counts.failed);
        let policy = plan::job_policy(&spec, policy);
        Ok(Self {
            spec,
            policy,
            shape,
            // What others submit does not run in this process's own directory.
            artifacts: plan.artifacts,
            private: false,
            is_made,
            says_stderr: !output.json,
            is_framed: output.frames,
            has_times,
            input,
            held,
            inflight_bytes_max: INFLIGHT_BYTES_MAX,
            gated: false,
            stopped: false,
            stops,
            level_told: false,
            way,
            outlets: None,
            deliverer: None,
            noted: None,
            noted_before: u64::MAX,
            stderr_bytes: plan.shelf.as_ref().map_or(0, |shelf| shelf.stderr_bytes()),
            is_full: false,
            judged: None,
            refusals: BTreeMap::new(),
            fitness: Fitness::default(),
            has_been_ready: false,
            failed_units: counts.failed,
            counts,
            failures: Vec::new(),
            history: History::default(),
        })
    }
}

/// Leaves out what is final already; counts it.
fn leave_out(input: &mut Input, shelf: &Shelf) -> Counts {
    for range in shelf.final_ranges() {
        let is_new = input.exclude(range);
        debug_assert!(is_new, "{range} is final once");
    }
    let (ok, failed) = shelf.final_items();
    Counts { ok, failed, ..Counts::default() }
}

fn shape(spec: &JobSpec, blocks: BlockRule) -> Shape {
    let results = match &spec.function {
        Function::Python(python) if !python.is_text => ResultShape::Json,
        Function::Filter { .. } | Function::Python(_) | Function::Builtin { .. } => {
            ResultShape::Framed(spec.framing)
        }
        Function::Exec { .. } | Function::Pipe { .. } | Function::Wasm(_) => ResultShape::Printed,
    };
    Shape { input: spec.framing, results, is_block_wise: blocks.is_block_wise() }
}
