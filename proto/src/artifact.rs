//! What is in files of jobs, on its way: from who submits to a coordinator, and from there to workers.

use bytes::Bytes;
use widemap_common::artifact::Digest;

/// A part of an artifact.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArtifactPart {
    /// Of which.
    pub digest: Digest,
    /// The length of all of it.
    pub length: u64,
    /// Where this part begins.
    pub offset: u64,
    /// At most [`widemap_common::limits::PART_BYTES_MAX`], and nothing only where all of it is nothing.
    pub data: Bytes,
}

impl ArtifactPart {
    /// Where it ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    /// Whether it is the last one.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.end() == self.length
    }
}

/// A part of an artifact is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArtifactStored {
    /// Of which.
    pub digest: Digest,
    /// Where the part has ended.
    pub end: u64,
}
