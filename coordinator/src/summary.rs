//! The last word of a map on standard error: what was done, and what to do about what failed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use widemap_common::limits::SUMMARY_FAILURES;

use crate::data;

/// What a map did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Items that were read.
    pub(crate) read: u64,
    /// Items that succeeded.
    pub(crate) ok: u64,
    /// Items that failed for good.
    pub(crate) failed: u64,
    /// Runs beyond the first.
    pub(crate) retried: u64,
    /// Workers that ran anything or could have.
    pub(crate) workers: usize,
    /// Workers that died or were not heard of again.
    pub(crate) workers_lost: u64,
    /// Speculative attempts that came in first.
    pub(crate) speculative_wins: u64,
    /// Workers that were left out for a time, and how often.
    pub(crate) left_out: BTreeMap<String, u32>,
}

/// An item that failed, as the summary names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedFailure {
    /// Its number, from 1, and what it is, cut short; or which block.
    pub(crate) item: String,
    /// What happened.
    pub(crate) message: String,
}

/// A line of the failures file, as far as people are told of it.
#[derive(Deserialize)]
struct Failure {
    seq: u64,
    items: Option<u64>,
    item: Option<String>,
    item_base64: Option<String>,
    error: Option<String>,
}

impl NamedFailure {
    /// A line of the failures file, as the summary names it.
    pub(crate) fn of_record(record: &[u8]) -> Option<Self> {
        let failure: Failure = serde_json::from_slice(record).ok()?;
        let bytes = match (failure.item, failure.item_base64) {
            (Some(item), _) => Some(item.into_bytes()),
            (None, Some(text)) => STANDARD.decode(text).ok(),
            (None, None) => None,
        };
        let item = match (failure.items, bytes) {
            (Some(items), _) => {
                format!("block of items {} to {}", failure.seq, failure.seq + items - 1)
            }
            (None, Some(item)) => format!("item {} `{}`", failure.seq, data::item_shown(&item)),
            (None, None) => format!("item {}", failure.seq),
        };
        let message = data::message_shown(&failure.error.unwrap_or_default());
        Some(Self { item, message })
    }
}

/// The lines of the summary; the last one sums up.
pub(crate) fn lines(
    counts: &Counts,
    failures: &[NamedFailure],
    failures_file: Option<&Path>,
    rerun: Option<&str>,
    elapsed: Duration,
) -> Vec<String> {
    let mut lines = Vec::new();
    for failure in failures.iter().take(SUMMARY_FAILURES) {
        let NamedFailure { item, message } = failure;
        let mut told = message.lines();
        let what = told.next().unwrap_or_default();
        lines.push(format!("widemap: failed: {item}: {what}"));
        lines.extend(told.map(|line| format!("  {line}")));
        if item.ends_with("\\r`") {
            lines.push(
                "  hint: the item ends in a carriage return: is the list from Windows? (tr -d '\\r')".to_owned(),
            );
        }
    }
    let more = counts.failed.saturating_sub(SUMMARY_FAILURES as u64);
    if more > 0 {
        lines.push(format!("widemap: failed: and {more} more"));
    }
    if let Some(file) = failures_file.filter(|_| counts.failed > 0) {
        let file = file.display();
        match rerun {
            Some(rerun) => {
                lines.push(format!("widemap: all failures are in {file}; only those again:"));
                lines.push(format!("  {rerun}"));
            }
            None => lines.push(format!("widemap: all failures are in {file}")),
        }
    }
    for (name, times) in &counts.left_out {
        lines.push(format!(
            "widemap: worker {name} was left out {}: what it ran failed, what others ran did not \
             (look at its log, or map without it)",
            plural(u64::from(*times), "time")
        ));
    }
    let not_run = counts.read.saturating_sub(counts.ok + counts.failed);
    let mut sum = format!("widemap: {}, {} failed", plural(counts.read, "item"), counts.failed);
    if not_run > 0 {
        sum += &format!(", {not_run} not run");
    }
    sum += &format!(
        ", {} retried; {}, {} lost; {} speculative wins; {:.2} s",
        counts.retried,
        plural(counts.workers as u64, "worker"),
        counts.workers_lost,
        counts.speculative_wins,
        elapsed.as_secs_f64()
    );
    lines.push(sum);
    lines
}

/// A number of things.
pub(crate) fn plural(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_named_as_a_map_of_ones_own_does() {
        let named = |record: &str| {
            NamedFailure::of_record(record.as_bytes()).map(|named| (named.item, named.message))
        };
        let told = |item: &str, message: &str| Some((item.to_owned(), message.to_owned()));
        assert_eq!(
            named(
                r#"{"seq":3,"item":"a\rb","status":"error","error":"exited with status 1\nmore"}"#
            ),
            told("item 3 `a\\rb`", "exited with status 1")
        );
        assert_eq!(
            named(r#"{"seq":4,"item_base64":"/w==","error":"x"}"#),
            told("item 4 `\u{fffd}`", "x")
        );
        assert_eq!(
            named(r#"{"seq":11,"items":10,"error":"x"}"#),
            told("block of items 11 to 20", "x")
        );
        assert_eq!(named("not JSON"), None);
    }

    #[test]
    fn the_last_line_sums_up_and_failures_are_named_before_it() {
        let left_out = BTreeMap::from([("bob".to_owned(), 2)]);
        let counts =
            Counts { read: 10, ok: 8, failed: 1, workers: 2, left_out, ..Counts::default() };
        let failure =
            NamedFailure { item: "item 3 `x\\r`".into(), message: "exited with status 1".into() };
        let file = Path::new("f.jsonl");
        let lines =
            lines(&counts, &[failure], Some(file), Some("again"), Duration::from_millis(1500));
        assert_eq!(lines[0], "widemap: failed: item 3 `x\\r`: exited with status 1");
        assert!(lines[1].contains("carriage return"));
        assert_eq!(lines[2], "widemap: all failures are in f.jsonl; only those again:");
        assert!(lines[4].starts_with("widemap: worker bob was left out 2 times: "));
        assert_eq!(
            lines.last().unwrap(),
            "widemap: 10 items, 1 failed, 1 not run, 0 retried; 2 workers, 0 lost; 0 speculative wins; 1.50 s"
        );
    }
}
