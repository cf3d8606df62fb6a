//! Jobs that run while their items are still coming. Only who hands them in knows of them before they are admitted; what is
//! given up instead leaves nothing behind.

use std::sync::Arc;

use tokio::sync::Notify;
use widemap_common::ids::JobId;
use widemap_common::limits::JOBS_OPEN_MAX;
use widemap_proto::jobs::{How, JobCounts, Pruned};

use super::{Removal, Service};
use crate::service::JobEntry;

/// A job whose items are still coming.
pub(super) struct Coming {
    entry: Arc<JobEntry>,
    /// Whether it was opened, or its end is on its way to the disk: else it waits to be admitted.
    is_begun: bool,
}

/// At most so many of them are open: those that are whole must not wait for those that are not.
const COMING_OPEN_MAX: usize = JOBS_OPEN_MAX / 2;

impl Service {
    /// Opens a job whose items are still coming, if that keeps nobody waiting.
    pub(super) fn begin(&mut self, entry: Arc<JobEntry>, progressed: &Arc<Notify>) {
        let open = self.coming.keys().filter(|id| self.running.contains_key(id)).count();
        let is_begun = self.queued.is_empty()
            && self.running.len() < JOBS_OPEN_MAX
            && open < COMING_OPEN_MAX
            && !entry.is_given_up();
        self.coming.insert(entry.id, Coming { entry: Arc::clone(&entry), is_begun });
        if is_begun {
            self.open_job(entry, progressed);
        }
    }

    /// The items of a job are all there, and it is one that is kept. Whether it was opened before.
    pub(super) fn has_come(&mut self, id: JobId) -> bool {
        self.coming.remove(&id).is_some_and(|coming| coming.is_begun)
    }

    /// Ends what was given up, and removes what has ended of it.
    pub(super) fn end_given_up(&mut self) {
        let given_up = self.coming.iter().filter(|(_, coming)| coming.entry.is_given_up());
        let given_up: Vec<_> = given_up.map(|(&id, _)| id).collect();
        for id in given_up {
            if self.running.contains_key(&id) {
                self.give_up(id, How::Cancelled);
                continue;
            }
            let Some(coming) = self.coming.get_mut(&id) else { continue };
            if coming.entry.has_ended() {
                // The journal's writer is done with its files.
                self.coming.remove(&id);
                self.discard(id);
            } else if !std::mem::replace(&mut coming.is_begun, true) {
                let entry = Arc::clone(&coming.entry);
                self.write_end(entry, None, How::Cancelled, JobCounts::default());
            }
        }
    }

    fn discard(&mut self, id: JobId) {
        tracing::info!(job = %id, "was given up before all of its items had come");
        let kept = Arc::clone(&self.kept);
        self.removals.spawn_blocking(move || {
            let failed = kept.discard(id).err().map(|error| error.to_string());
            Removal { pruned: Pruned::default(), failed, reply: None }
        });
    }
}
