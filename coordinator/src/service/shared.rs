//! Which jobs have which artifacts: what is in files of jobs lies on the disk once, however many have it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use widemap_common::artifact::Digest;
use widemap_common::ids::JobId;

/// See the file's head.
#[derive(Default)]
pub(super) struct SharedArtifacts(HashMap<Digest, Shared>);

struct Shared {
    bytes: u64,
    jobs: BTreeSet<JobId>,
}

impl SharedArtifacts {
    /// A job is kept.
    pub(super) fn add(&mut self, job: JobId, artifacts: BTreeMap<Digest, u64>) {
        for (digest, bytes) in artifacts {
            let shared =
                self.0.entry(digest).or_insert_with(|| Shared { bytes, jobs: BTreeSet::new() });
            shared.jobs.insert(job);
        }
    }

    /// A job is removed.
    pub(super) fn remove(&mut self, job: JobId) {
        self.0.retain(|_, shared| {
            shared.jobs.remove(&job);
            !shared.jobs.is_empty()
        });
    }

    /// A job that has it.
    pub(super) fn holder(&self, digest: Digest) -> Option<JobId> {
        self.0.get(&digest)?.jobs.first().copied()
    }

    /// Bytes on disk of all of it.
    pub(super) fn bytes(&self) -> u64 {
        self.0.values().map(|shared| shared.bytes).sum()
    }

    /// Bytes on disk that go with a job.
    pub(super) fn bytes_of(&self, job: JobId) -> u64 {
        let is_its_own = |shared: &&Shared| shared.jobs.len() == 1 && shared.jobs.contains(&job);
        self.0.values().filter(is_its_own).map(|shared| shared.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifacts(contents: &[u8]) -> BTreeMap<Digest, u64> {
        contents.iter().map(|&content| (Digest([content; 32]), u64::from(content))).collect()
    }

    #[test]
    fn what_two_jobs_have_counts_once_and_goes_with_the_last() {
        let mut shared = SharedArtifacts::default();
        shared.add(JobId(1), artifacts(&[10, 20]));
        shared.add(JobId(2), artifacts(&[20, 30]));
        assert_eq!((shared.bytes(), shared.bytes_of(JobId(1))), (60, 10));
        assert_eq!(shared.holder(Digest([20; 32])), Some(JobId(1)));
        shared.remove(JobId(1));
        assert_eq!((shared.bytes(), shared.bytes_of(JobId(2))), (50, 50));
        assert_eq!(shared.holder(Digest([20; 32])), Some(JobId(2)));
        assert_eq!(shared.holder(Digest([10; 32])), None);
    }
}
