//! What a session of a worker has to say: small reports first, then output as far as it is granted, the
//! lowest range of items first. It keeps to the worker's own outbox.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use widemap_common::ids::{AttemptId, JobId};
use widemap_proto::session::{OutputGrant, Report};

use super::held::Held;
use super::outgoing::OutputBounds;

/// The order in which outputs are sent: the job's earlier items first.
pub(super) type SendKey = (JobId, u64, AttemptId);

/// How a worker sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    pub(super) batch_bytes: usize,
    pub(super) batch_entries: usize,
    /// A chance in ten thousand that a result is sent twice.
    pub(super) twice_per_10k: u32,
    pub(super) output: OutputBounds,
}

/// See the file's head.
#[derive(Debug)]
pub(super) struct Reports {
    small: VecDeque<Report>,
    ready: BTreeSet<SendKey>,
    pub(super) grant: OutputGrant,
    sent_bytes: u64,
    /// Nothing of what is ready is granted.
    blocked: bool,
}

impl Reports {
    pub(super) fn new() -> Self {
        Self {
            small: VecDeque::new(),
            ready: BTreeSet::new(),
            grant: OutputGrant { total: 0, urgent: None },
            sent_bytes: 0,
            blocked: false,
        }
    }

    /// Begins a stream.
    pub(super) fn begin(&mut self, greeting: impl IntoIterator<Item = Report>) {
        *self = Self { small: greeting.into_iter().collect(), ..Self::new() };
    }

    pub(super) fn push(&mut self, report: Report) {
        self.small.push_back(report);
    }

    pub(super) fn ready(&mut self, key: SendKey) {
        self.blocked = false;
        self.ready.insert(key);
    }

    pub(super) fn forget(&mut self, key: SendKey) {
        self.ready.remove(&key);
        self.blocked = false;
    }

    pub(super) fn set_grant(&mut self, grant: OutputGrant) {
        self.grant = grant;
        self.blocked = false;
    }

    pub(super) fn has_some(&self) -> bool {
        !self.small.is_empty() || (!self.ready.is_empty() && !self.blocked)
    }

    /// Whether everything has been said, also what is not granted.
    pub(super) fn is_all_said(&self) -> bool {
        self.small.is_empty() && self.ready.is_empty()
    }

    /// What goes into the next message.
    pub(super) fn batch(
        &mut self,
        attempts: &mut BTreeMap<AttemptId, Held>,
        sending: Sending,
        rng: &mut fastrand::Rng,
    ) -> Vec<Report> {
        let (mut reports, mut bytes) = (Vec::new(), 0);
        while reports.len() < sending.batch_entries && bytes < sending.batch_bytes {
            let small = self.small.pop_front();
            let Some(report) = small.or_else(|| self.next_output(attempts, sending.output)) else {
                break;
            };
            bytes += match &report {
                Report::Output(part) => part.data.len(),
                Report::Done(done) => done.output.len(),
                _ => 0,
            };
            let twice =
                matches!(report, Report::Done(_)) && rng.u32(0..10_000) < sending.twice_per_10k;
            reports.extend(twice.then(|| report.clone()));
            reports.push(report);
        }
        reports
    }

    fn next_output(
        &mut self,
        attempts: &mut BTreeMap<AttemptId, Held>,
        bounds: OutputBounds,
    ) -> Option<Report> {
        if self.blocked {
            return None;
        }
        if let Some((attempt, _)) = self.grant.urgent
            && let Some(key) = attempts.get(&attempt).map(|held| held.key(attempt))
            && self.ready.contains(&key)
            && let Some(report) = self.send(key, attempts, bounds)
        {
            return Some(report);
        }
        let first = self.ready.first().copied();
        let report = first.and_then(|key| self.send(key, attempts, bounds));
        self.blocked = report.is_none();
        report
    }

    /// The next report of one attempt, as far as it is granted.
    fn send(
        &mut self,
        key: SendKey,
        attempts: &mut BTreeMap<AttemptId, Held>,
        bounds: OutputBounds,
    ) -> Option<Report> {
        let held = attempts.get_mut(&key.2).expect("what is ready is held");
        let before = held.outgoing.sent_bytes();
        let mut granted = self.grant.total.saturating_sub(self.sent_bytes);
        if let Some((urgent, bytes)) = self.grant.urgent
            && urgent == key.2
        {
            granted = granted.max(bytes.saturating_sub(before));
        }
        let report = held.outgoing.next_report(key.2, granted, bounds)?;
        self.sent_bytes += held.outgoing.sent_bytes() - before;
        if !held.outgoing.has_unsent() {
            self.ready.remove(&key);
        }
        Some(report)
    }
}
