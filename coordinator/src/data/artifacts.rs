//! What is in the files that a job brings along: where it lies on this machine, and how it is read to be
//! sent on. It is hashed once more as it is read, so that a file which was changed meanwhile is never taken
//! for the one that it was.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use widemap_common::artifact::Digest;
use widemap_proto::artifact::ArtifactPart;

/// Where each artifact of a job lies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Artifacts(BTreeMap<Digest, Artifact>);

/// An artifact on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Artifact {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) path: PathBuf,
}

/// Why an artifact cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArtifactError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is not what it was.
    #[error("{} was changed while it was in use", .0.display())]
    Changed(PathBuf),
}

/// Reads an artifact, part by part.
#[derive(Debug)]
pub(crate) struct ArtifactReader {
    artifact: Artifact,
    file: File,
    hasher: Box<blake3::Hasher>,
    at: u64,
    is_over: bool,
}

impl Artifacts {
    /// Takes in one more.
    pub(crate) fn insert(&mut self, artifact: Artifact) {
        self.0.insert(artifact.digest, artifact);
    }

    /// The artifact with this digest.
    pub(crate) fn get(&self, digest: Digest) -> Option<&Artifact> {
        self.0.get(&digest)
    }

    /// All digests.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        self.0.keys().copied().collect()
    }
}

impl FromIterator<Artifact> for Artifacts {
    fn from_iter<I: IntoIterator<Item = Artifact>>(artifacts: I) -> Self {
        Self(artifacts.into_iter().map(|artifact| (artifact.digest, artifact)).collect())
    }
}

/// Hashes a file: its digest and its length.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn digest_of(path: &Path) -> io::Result<(Digest, u64)> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok((Digest(hasher.finalize().into()), hasher.count()))
}

impl ArtifactReader {
    /// Begins to read. Waits for a disk.
    ///
    /// # Errors
    /// If there is no such file, or none that may be read.
    pub(crate) fn open(artifact: Artifact) -> Result<Self, ArtifactError> {
        let file = File::open(&artifact.path)
            .map_err(|source| ArtifactError::Read { path: artifact.path.clone(), source })?;
        Ok(Self { artifact, file, hasher: Box::default(), at: 0, is_over: false })
    }

    /// The next part, of `bytes_max` at the most; nothing after the last one. Waits for a disk.
    ///
    /// # Errors
    /// If it cannot be read, or is not what it was: that is known before the last part is handed out.
    pub(crate) fn next(&mut self, bytes_max: usize) -> Result<Option<ArtifactPart>, ArtifactError> {
        if self.is_over {
            return Ok(None);
        }
        let Artifact { digest, bytes: length, path } = &self.artifact;
        let left = usize::try_from(length - self.at).unwrap_or(usize::MAX);
        let mut data = vec![0; left.min(bytes_max)];
        self.file.read_exact(&mut data).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => ArtifactError::Changed(path.clone()),
            _ => ArtifactError::Read { path: path.clone(), source },
        })?;
        self.hasher.update(&data);
        let (digest, length, offset) = (*digest, *length, self.at);
        let part = ArtifactPart { digest, length, offset, data: Bytes::from(data) };
        self.at = part.end();
        self.is_over = part.is_last();
        if self.is_over && Digest(self.hasher.finalize().into()) != digest {
            return Err(ArtifactError::Changed(path.clone()));
        }
        Ok(Some(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(path: &Path) -> Artifact {
        let (digest, bytes) = digest_of(path).unwrap();
        Artifact { digest, bytes, path: path.to_owned() }
    }

    fn read(mut reader: ArtifactReader) -> Result<Vec<u8>, ArtifactError> {
        let mut all = Vec::new();
        while let Some(part) = reader.next(3)? {
            assert_eq!(part.offset, all.len() as u64);
            all.extend_from_slice(&part.data);
        }
        Ok(all)
    }

    #[test]
    fn a_file_comes_in_parts_and_an_empty_one_in_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for content in ["", "abc", "abcd"] {
            std::fs::write(&path, content).unwrap();
            let mut reader = ArtifactReader::open(artifact(&path)).unwrap();
            let first = reader.next(3).unwrap().unwrap();
            assert_eq!(first.is_last(), content.len() <= 3);
            let reader = ArtifactReader::open(artifact(&path)).unwrap();
            assert_eq!(read(reader).unwrap(), content.as_bytes());
        }
    }

    #[test]
    fn a_file_that_was_changed_is_not_sent_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for now in ["abcx", "ab", "abcdefg"] {
            std::fs::write(&path, "abcdef").unwrap();
            let before = artifact(&path);
            std::fs::write(&path, now).unwrap();
            let ended = read(ArtifactReader::open(before).unwrap());
            let is_longer = now.len() > 6;
            assert_eq!(is_longer, ended.is_ok(), "what is there of a longer one is what was there");
            if let Err(error) = ended {
                assert!(error.to_string().ends_with("file was changed while it was in use"));
            }
        }
    }
}
