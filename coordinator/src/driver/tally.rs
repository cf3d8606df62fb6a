//! What has become of everything since the start, counted as it happens, for whoever measures.

use std::collections::BTreeMap;

use widemap_proto::jobs::AttemptState;

/// See the file's head. Nothing in it ever gets less.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Items that succeeded, and those that failed for good.
    pub(crate) items_ok: u64,
    /// Items that failed for good.
    pub(crate) items_failed: u64,
    /// Runs of items beyond their first.
    pub(crate) items_retried: u64,
    /// Runs of items whose results were accepted together.
    pub(crate) chunks_accepted: u64,
    /// Attempts by how they ended.
    pub(crate) attempts: BTreeMap<AttemptState, u64>,
    /// Jobs by how they ended.
    pub(crate) jobs: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// An attempt has ended.
    pub(super) fn attempt(&mut self, state: AttemptState) {
        *self.attempts.entry(state).or_default() += 1;
    }

    /// A job has ended.
    pub(super) fn job(&mut self, how: &'static str) {
        *self.jobs.entry(how).or_default() += 1;
    }
}
