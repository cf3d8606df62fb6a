//! What a session has to say: small reports first, then output as far as it is granted, the lowest
//! range of items first.

use std::collections::{BTreeSet, HashMap, VecDeque};

use widemap_common::artifact::Digest;
use widemap_common::ids::{AttemptId, JobId};
use widemap_common::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, REPORTS_WAITING_MAX};
use widemap_proto::session::{Done, OutputGrant, Report};

use super::state::Attempt;

/// The order in which outputs are sent: the job's earlier items first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct SendKey {
    pub(super) job: JobId,
    pub(super) first_item: u64,
    pub(super) attempt: AttemptId,
}

/// Reports that wait for the stream.
#[derive(Debug)]
pub(super) struct Outbox {
    small: VecDeque<Report>,
    /// Attempts with output, or an end, that this stream has not carried.
    ready: BTreeSet<SendKey>,
    grant: OutputGrant,
    /// The output that this stream has carried.
    sent_bytes: u64,
    /// Nothing of what is ready is granted.
    blocked: bool,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            small: VecDeque::new(),
            ready: BTreeSet::new(),
            grant: OutputGrant { total: 0, urgent: None },
            sent_bytes: 0,
            blocked: false,
        }
    }
}

impl Outbox {
    /// Begins a stream: `greeting` goes before anything else. Lines for people are not lost.
    pub(super) fn begin(&mut self, greeting: impl IntoIterator<Item = Report>) {
        self.small.retain(|report| matches!(report, Report::Log(..)));
        let lines = std::mem::take(&mut self.small);
        let ready = BTreeSet::new();
        *self =
            Self { small: greeting.into_iter().chain(lines).collect(), ready, ..Self::default() };
    }

    pub(super) fn push(&mut self, report: Report) {
        self.small.push_back(report);
    }

    pub(super) fn extend(&mut self, reports: impl IntoIterator<Item = Report>) {
        self.small.extend(reports);
    }

    /// An attempt has something to send.
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

    /// Whether a batch would hold something.
    pub(super) fn has_some(&self) -> bool {
        !self.small.is_empty() || (!self.ready.is_empty() && !self.blocked)
    }

    /// Whether the coordinator reads so little that its orders should wait.
    pub(super) fn is_full(&self) -> bool {
        self.small.len() >= REPORTS_WAITING_MAX
    }

    /// What goes into the next message.
    pub(super) fn batch(&mut self, attempts: &mut HashMap<AttemptId, Attempt>) -> Vec<Report> {
        let waiting = self.small.len() + self.ready.len();
        let mut reports = Vec::with_capacity(waiting.min(BATCH_ENTRIES_MAX));
        let mut bytes = 0;
        while reports.len() < BATCH_ENTRIES_MAX && bytes < BATCH_BYTES_MAX {
            let small = self.small.pop_front();
            let Some(report) = small.or_else(|| self.next_output(attempts)) else { break };
            bytes += weight(&report);
            reports.push(report);
        }
        reports
    }

    /// The attempt that may go beyond what is granted.
    pub(super) fn urgent(&self) -> Option<AttemptId> {
        self.grant.urgent.map(|(attempt, _)| attempt)
    }

    fn next_output(&mut self, attempts: &mut HashMap<AttemptId, Attempt>) -> Option<Report> {
        if self.blocked {
            return None;
        }
        if let Some((attempt, _)) = self.grant.urgent
            && let Some(key) = attempts.get(&attempt).map(Attempt::key)
            && self.ready.contains(&key)
            && let Some(report) = self.send(key, attempts)
        {
            return Some(report);
        }
        let report = self.ready.first().copied().and_then(|key| self.send(key, attempts));
        self.blocked = report.is_none();
        report
    }

    /// The next report of one attempt, as far as it is granted.
    fn send(&mut self, key: SendKey, attempts: &mut HashMap<AttemptId, Attempt>) -> Option<Report> {
        let attempt = attempts.get_mut(&key.attempt).expect("what is ready is held");
        let mut granted = self.grant.total.saturating_sub(self.sent_bytes);
        if let Some((urgent, bytes)) = self.grant.urgent
            && urgent == key.attempt
        {
            granted = granted.max(bytes.saturating_sub(attempt.outgoing.sent_bytes()));
        }
        let before = attempt.outgoing.sent_bytes();
        let report = attempt.outgoing.next_report(key.attempt, granted)?;
        self.sent_bytes += attempt.outgoing.sent_bytes() - before;
        if !attempt.outgoing.has_unsent() {
            self.ready.remove(&key);
        }
        Some(report)
    }
}

/// About what a report takes in a message.
fn weight(report: &Report) -> usize {
    const SMALL: usize = 16;
    SMALL
        + match report {
            Report::Output(part) => part.data.len(),
            Report::Done(done) => weight_of_done(done),
            Report::Log(_, text) => text.len(),
            Report::JobRefused(_, refusal) => refusal.message.len(),
            Report::JobNeeds(_, digests) => digests.len() * size_of::<Digest>(),
            Report::Heartbeat(running) => running.len() * SMALL,
            Report::Held(held) => held.len() * SMALL,
            _ => 0,
        }
}

fn weight_of_done(done: &Done) -> usize {
    const FAULT: usize = 48;
    done.output.len()
        + done.item_lengths.len()
        + done.item_micros.len()
        + done.item_exits.len()
        + done.faults.iter().map(|fault| FAULT + fault.message.len()).sum::<usize>()
        + done.stderr.iter().map(|stderr| stderr.data.len()).sum::<usize>()
}
