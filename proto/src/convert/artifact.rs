//! Files of jobs and what is in them.

use bytes::Bytes;
use widemap_common::artifact::{Digest, FileKind, JobFile, JobFiles};
use widemap_common::limits::PART_BYTES_MAX;

use super::{Result, WireError};
use crate::artifact::{ArtifactPart, ArtifactStored};
use crate::wire;

pub(super) fn files_to_wire(files: &JobFiles) -> Vec<wire::JobFile> {
    use wire::job_file::Kind;
    let file = |file: &JobFile| wire::JobFile {
        path: Bytes::copy_from_slice(&file.path),
        kind: Some(match file.kind {
            FileKind::Directory => Kind::Directory(true),
            FileKind::Regular { digest, bytes, executable } => Kind::Regular(wire::RegularFile {
                digest: digest_to_wire(digest),
                bytes,
                executable,
            }),
        }),
    };
    files.iter().map(file).collect()
}

pub(super) fn files_from_wire(files: Vec<wire::JobFile>) -> Result<JobFiles> {
    use wire::job_file::Kind;
    let file = |file: wire::JobFile| {
        let kind = match file.kind.ok_or(WireError::UnknownKind)? {
            Kind::Directory(_) => FileKind::Directory,
            Kind::Regular(regular) => FileKind::Regular {
                digest: digest_from_wire(&regular.digest)?,
                bytes: regular.bytes,
                executable: regular.executable,
            },
        };
        Ok(JobFile { path: file.path.to_vec(), kind })
    };
    let files = files.into_iter().map(file).collect::<Result<_>>()?;
    JobFiles::new(files).map_err(|_| WireError::Field("OpenJob.files"))
}

pub(super) fn digest_to_wire(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(&digest.0)
}

pub(super) fn digest_from_wire(digest: &[u8]) -> Result<Digest> {
    digest.try_into().map(Digest).map_err(|_| WireError::Field("digest"))
}

pub(super) fn digests_from_wire(digests: &[Bytes]) -> Result<Vec<Digest>> {
    digests.iter().map(|digest| digest_from_wire(digest)).collect()
}

impl From<Vec<Digest>> for wire::Artifacts {
    fn from(digests: Vec<Digest>) -> Self {
        Self { digests: digests.into_iter().map(digest_to_wire).collect() }
    }
}

impl TryFrom<wire::Artifacts> for Vec<Digest> {
    type Error = WireError;
    fn try_from(artifacts: wire::Artifacts) -> Result<Self> {
        digests_from_wire(&artifacts.digests)
    }
}

impl From<ArtifactPart> for wire::ArtifactPart {
    fn from(part: ArtifactPart) -> Self {
        Self {
            digest: digest_to_wire(part.digest),
            length: part.length,
            offset: part.offset,
            crc32c: crc32c::crc32c(&part.data),
            data: part.data,
        }
    }
}

impl TryFrom<wire::ArtifactPart> for ArtifactPart {
    type Error = WireError;
    fn try_from(part: wire::ArtifactPart) -> Result<Self> {
        let digest = digest_from_wire(&part.digest)?;
        let end = part.offset.checked_add(part.data.len() as u64);
        let is_within = end.is_some_and(|end| end <= part.length);
        // A part of nothing would go on for ever.
        let moves = !part.data.is_empty() || part.length == 0;
        if part.data.len() > PART_BYTES_MAX || !is_within || !moves {
            return Err(WireError::Field("ArtifactPart"));
        }
        let (got, sent, offset) = (crc32c::crc32c(&part.data), part.crc32c, part.offset);
        if got != sent {
            return Err(WireError::Changed { of: "a file", offset, got, sent });
        }
        Ok(Self { digest, length: part.length, offset, data: part.data })
    }
}

impl From<ArtifactStored> for wire::ArtifactStored {
    fn from(stored: ArtifactStored) -> Self {
        Self { digest: digest_to_wire(stored.digest), end: stored.end }
    }
}

impl TryFrom<wire::ArtifactStored> for ArtifactStored {
    type Error = WireError;
    fn try_from(stored: wire::ArtifactStored) -> Result<Self> {
        Ok(Self { digest: digest_from_wire(&stored.digest)?, end: stored.end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(length: u64, offset: u64, data: &'static [u8]) -> wire::ArtifactPart {
        let data = Bytes::from_static(data);
        ArtifactPart { digest: Digest([3; 32]), length, offset, data }.into()
    }

    #[test]
    fn a_part_comes_back_and_one_that_cannot_be_is_refused() {
        for whole in [part(5, 2, b"abc"), part(0, 0, b"")] {
            assert_eq!(
                wire::ArtifactPart::from(ArtifactPart::try_from(whole.clone()).unwrap()),
                whole
            );
        }
        let short = wire::ArtifactPart { digest: Bytes::from_static(b"short"), ..part(5, 0, b"a") };
        for bad in [part(4, 2, b"abc"), part(5, 2, b""), part(5, u64::MAX, b"a"), short] {
            assert!(matches!(ArtifactPart::try_from(bad), Err(WireError::Field(_))));
        }
        let changed = wire::ArtifactPart { data: Bytes::from_static(b"abd"), ..part(5, 2, b"abc") };
        assert!(matches!(ArtifactPart::try_from(changed), Err(WireError::Changed { .. })));
    }

    #[test]
    fn files_that_leave_the_directory_are_refused() {
        let kind = Some(wire::job_file::Kind::Directory(true));
        let file = wire::JobFile { path: Bytes::from_static(b"../up"), kind };
        assert_eq!(files_from_wire(vec![file]), Err(WireError::Field("OpenJob.files")));
    }
}
