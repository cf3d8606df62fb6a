//! What is measured of a service, in the text format of OpenMetrics, which Prometheus reads.
//!
//! The driver hands over what it counts anyway, a few times a second; the journal tells of each commit.
//! Counters begin at each start.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::driver::{Observed, Tally};
use crate::journal::Commit;

/// Every metric by its full name.
#[cfg(test)]
const NAMES: [&str; 17] = [
    "widemap_attempts_ended_total",
    "widemap_attempts_running",
    "widemap_build_info",
    "widemap_chunks_accepted_total",
    "widemap_chunks_in_flight",
    "widemap_items_retried_total",
    "widemap_items_total",
    "widemap_jobs",
    "widemap_jobs_ended_total",
    "widemap_journal_commit_seconds",
    "widemap_journal_queued_bytes",
    "widemap_journal_written_bytes_total",
    "widemap_results_buffered_bytes",
    "widemap_results_spilled_bytes",
    "widemap_slots",
    "widemap_slots_taken",
    "widemap_workers",
];

/// See the file's head.
pub(super) struct Metrics {
    registry: Registry,
    observed: Arc<Mutex<Observed>>,
    commits: Histogram,
    written_bytes: Counter,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("widemap");
        let observed = Arc::new(Mutex::new(Observed::default()));
        registry.register_collector(Box::new(Snapshot(Arc::clone(&observed))));
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs", build);
        // From half a millisecond to a quarter of a minute.
        let commits = Histogram::new(exponential_buckets(0.0005, 2.0, 15));
        let help =
            "How long the journal took to make results durable, from taking them to the last sync";
        registry.register_with_unit("journal_commit", help, Unit::Seconds, commits.clone());
        let written_bytes = Counter::default();
        let help = "Facts and results that the journal has written";
        registry.register_with_unit("journal_written", help, Unit::Bytes, written_bytes.clone());
        Self { registry, observed, commits, written_bytes }
    }

    pub(super) fn observe(&self, observed: &Observed) {
        observed.clone_into(&mut self.observed.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn committed(&self, commit: Commit) {
        self.commits.observe(commit.took.as_secs_f64());
        self.written_bytes.inc_by(commit.bytes);
    }

    /// All of it, as text.
    pub(super) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// What the driver said last.
#[derive(Debug)]
struct Snapshot(Arc<Mutex<Observed>>);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let observed = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Observed { tally, .. } = &observed;
        let Tally { items_ok, items_failed, items_retried, chunks_accepted, attempts, jobs } =
            tally;
        let e = &mut encoder;
        let items = [("ok", *items_ok), ("failed", *items_failed)];
        counters(e, "items", "Items with their last word", "outcome", &items)?;
        let retried = [("", *items_retried)];
        counters(e, "items_retried", "Runs of items beyond their first", "", &retried)?;
        let accepted = [("", *chunks_accepted)];
        counters(e, "chunks_accepted", "Runs of items whose results were accepted", "", &accepted)?;
        let attempts: Vec<_> = attempts.iter().map(|(state, &n)| (state.name(), n)).collect();
        counters(e, "attempts_ended", "Attempts by how they ended", "outcome", &attempts)?;
        let jobs: Vec<_> = jobs.iter().map(|(&how, &n)| (how, n)).collect();
        counters(e, "jobs_ended", "Jobs by how they ended", "outcome", &jobs)?;
        let states = [("queued", observed.jobs_queued), ("open", observed.jobs_open)];
        gauges(e, "jobs", "Jobs that have not ended", None, "state", &states)?;
        let chunks = [("", observed.chunks_in_flight)];
        gauges(e, "chunks_in_flight", "Chunks that are cut and not final", None, "", &chunks)?;
        let running = [("", observed.attempts)];
        gauges(e, "attempts_running", "Attempts that workers have", None, "", &running)?;
        let bytes = Some(&Unit::Bytes);
        let buffered = [("", observed.buffered_bytes)];
        let help = "Results in memory: on their way to the journal, or parts of longer ones";
        gauges(e, "results_buffered", help, bytes, "", &buffered)?;
        let spilled = [("", observed.spilled_bytes)];
        gauges(e, "results_spilled", "Parts of long results on disk", bytes, "", &spilled)?;
        let queued = [("", observed.journal_queued_bytes)];
        gauges(e, "journal_queued", "What waits for the journal's disk", bytes, "", &queued)?;
        let states = [("attached", observed.workers_attached), ("cut", observed.workers_cut)];
        gauges(e, "workers", "Workers that are known", None, "state", &states)?;
        gauges(e, "slots", "Slots of attached workers", None, "", &[("", observed.slots)])?;
        let taken = [("", observed.slots_taken)];
        gauges(e, "slots_taken", "Slots that run something", None, "", &taken)
    }
}

/// A counter for each value of a label; a single one without a label.
fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: &[(&str, u64)],
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for &(value, count) in values {
        let labels = Vec::from_iter((!label.is_empty()).then_some((label, value)));
        ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// The same for levels.
fn gauges<N: Copy + TryInto<i64>>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    label: &str,
    values: &[(&str, N)],
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    for &(value, level) in values {
        let labels = Vec::from_iter((!label.is_empty()).then_some((label, value)));
        let level = level.try_into().unwrap_or(i64::MAX);
        ConstGauge::new(level).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use widemap_proto::jobs::AttemptState;

    use super::*;

    #[test]
    fn what_was_observed_is_told_under_the_names_that_are_documented() {
        let metrics = Metrics::new();
        let tally = Tally {
            items_ok: 7,
            items_failed: 1,
            items_retried: 2,
            chunks_accepted: 3,
            attempts: BTreeMap::from([(AttemptState::Succeeded, 3), (AttemptState::Lost, 1)]),
            jobs: BTreeMap::from([("complete", 1)]),
        };
        let observed = Observed {
            tally,
            jobs_queued: 4,
            workers_cut: 2,
            journal_queued_bytes: 99,
            ..Observed::default()
        };
        metrics.observe(&observed);
        metrics.committed(Commit { bytes: 1_000, took: Duration::from_millis(3) });
        let text = metrics.text().unwrap();
        for line in [
            "widemap_items_total{outcome=\"ok\"} 7",
            "widemap_items_total{outcome=\"failed\"} 1",
            "widemap_items_retried_total 2",
            "widemap_attempts_ended_total{outcome=\"ok\"} 3",
            "widemap_attempts_ended_total{outcome=\"lost\"} 1",
            "widemap_jobs_ended_total{outcome=\"complete\"} 1",
            "widemap_jobs{state=\"queued\"} 4",
            "widemap_workers{state=\"cut\"} 2",
            "widemap_journal_queued_bytes 99",
            "widemap_journal_written_bytes_total 1000",
            "widemap_journal_commit_seconds_count 1",
            "widemap_journal_commit_seconds_bucket{le=\"0.004\"} 1",
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let mut names: Vec<_> = types
            .map(|line| {
                let (name, kind) = line.split_once(' ').unwrap();
                let suffix = match kind {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                format!("{name}{suffix}")
            })
            .collect();
        names.sort_unstable();
        assert_eq!(names, NAMES);
    }

    #[test]
    fn the_documentation_has_every_metric_and_no_other() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../ARCHITECTURE.md");
        let text = std::fs::read_to_string(path).unwrap();
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `widemap_"));
        let mut names: Vec<_> =
            rows.map(|row| format!("widemap_{}", row.split('`').next().unwrap())).collect();
        names.sort_unstable();
        assert_eq!(names, NAMES);
    }
}
