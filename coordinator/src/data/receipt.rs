//! The receipt of a job: what was run, on how much, and what came of it, for `--receipt`.

use serde::Serialize;
use widemap_common::framing::Framing;
use widemap_common::spec::{Function, JobSpec};
use widemap_proto::jobs::WhatRuns;

use super::digest::function_digest;
use super::sink::SinkReport;

/// What became of the items.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ItemCounts {
    /// Items that were cut from the input.
    pub read: u64,
    /// Items that succeeded.
    pub ok: u64,
    /// Items that failed for good.
    pub failed: u64,
    /// Items that the job ended before.
    pub not_run: u64,
}

/// The numbers of a receipt do not add up: an error of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "internal error: {} items were read, but {} succeeded, {} failed and {} were not run",
    .0.read, .0.ok, .0.failed, .0.not_run
)]
pub struct Unbalanced(pub ItemCounts);

impl ItemCounts {
    /// Checks that every item that was read is accounted for.
    ///
    /// # Errors
    /// [`Unbalanced`] if not.
    pub fn check(self) -> Result<(), Unbalanced> {
        let sum = self.ok + self.failed + self.not_run;
        if self.read == sum { Ok(()) } else { Err(Unbalanced(self)) }
    }
}

#[derive(Serialize)]
struct Receipt<'a> {
    spec: Spec<'a>,
    items: ItemCounts,
    output_bytes: u64,
    output_blake3: Option<&'a str>,
    seconds: f64,
}

#[derive(Serialize)]
struct Spec<'a> {
    runtime: &'a str,
    argv: &'a [String],
    framing: &'a str,
    digest: &'a str,
}

/// What a job runs, as its receipt says it.
#[must_use]
pub fn what_runs(spec: &JobSpec) -> WhatRuns {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let argv = match &spec.function {
        Function::Exec { argv } => argv.iter().map(|argument| shown(argument.text())).collect(),
        Function::Filter { argv } | Function::Pipe { argv } => {
            argv.iter().map(|argument| shown(argument)).collect()
        }
        Function::Python(python) => vec![shown(&python.path), python.function.clone()],
        Function::Wasm(wasm) => vec![shown(&wasm.path)],
        Function::Builtin { name } => vec![name.clone()],
    };
    let framing = match spec.framing {
        Framing::Separator(separator) => format!("separator {separator}"),
        Framing::LengthPrefixed => "length".to_owned(),
        Framing::Columns => "columns".to_owned(),
    };
    let runtime = spec.function.runtime().name().to_owned();
    WhatRuns { runtime, argv, framing, digest: function_digest(spec) }
}

/// The receipt as JSON, with a newline at its end.
#[must_use]
pub fn receipt_json(what: &WhatRuns, items: ItemCounts, sink: &SinkReport, seconds: f64) -> String {
    let WhatRuns { runtime, argv, framing, digest } = what;
    let receipt = Receipt {
        spec: Spec { runtime, argv, framing, digest },
        items,
        output_bytes: sink.output_bytes,
        output_blake3: sink.output_blake3.as_deref(),
        seconds,
    };
    let mut json =
        serde_json::to_string_pretty(&receipt).expect("strings and numbers always can be JSON");
    json.push('\n');
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use widemap_common::artifact::JobFiles;

    #[test]
    fn a_receipt_says_what_was_run_and_what_came_of_it() {
        let spec = JobSpec {
            function: Function::Builtin { name: "square".into() },
            framing: widemap_common::framing::LINES,
            directory: widemap_common::spec::Directory::Private,
            environment: Vec::new(),
            files: JobFiles::default(),
            timeout: None,
            max_output: 1,
            limits: widemap_common::spec::Limits::default(),
            slots_per_item: std::num::NonZeroU32::MIN,
            per_item: false,
            ok_exit: Vec::new(),
        };
        let items = ItemCounts { read: 3, ok: 2, failed: 1, not_run: 0 };
        let sink = SinkReport {
            output_bytes: 9,
            output_blake3: Some("abc".into()),
            failures: 1,
            failures_kept: true,
        };
        let json = receipt_json(&what_runs(&spec), items, &sink, 1.5);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["spec"]["argv"][0], "square");
        assert_eq!(value["items"]["failed"], 1);
        assert_eq!(value["output_blake3"], "abc");
        assert_eq!(items.check(), Ok(()));
        assert!(ItemCounts { read: 4, ..items }.check().is_err());
    }
}
