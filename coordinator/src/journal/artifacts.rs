//! What is in the files of a job, kept with it: `files/DIGEST`, made durable before the job is. What another
//! job has already is not sent again and takes no more room: the two share it, and it goes with the last.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use widemap_common::artifact::Digest;
use widemap_proto::artifact::ArtifactPart;

use super::error::JournalError;
use super::long_file::LongFile;
use super::medium::Medium;

/// The directory in that of a job.
const FILES: &str = "files";

/// What a draft has, and still needs, of what is in its files.
#[derive(Default)]
pub(super) struct DraftArtifacts {
    needed: BTreeMap<Digest, u64>,
    there: BTreeSet<Digest>,
    coming: Option<Coming>,
}

struct Coming {
    digest: Digest,
    file: LongFile,
    hasher: blake3::Hasher,
}

/// Where an artifact of a job lies.
pub(crate) fn artifact_path(job: &Path, digest: Digest) -> PathBuf {
    job.join(FILES).join(digest.to_string())
}

impl DraftArtifacts {
    /// What a job in `directory` needs; some of it may lie elsewhere in the journal already.
    pub(super) fn begin(
        medium: &dyn Medium,
        directory: &Path,
        needed: BTreeMap<Digest, u64>,
        known: impl Fn(Digest) -> Option<PathBuf>,
    ) -> Result<Self, JournalError> {
        let mut there = BTreeSet::new();
        if !needed.is_empty() {
            let files = directory.join(FILES);
            let made = medium.create_directory(&files);
            made.map_err(|e| JournalError::io("make", &files, e))?;
        }
        for &digest in needed.keys() {
            let Some(from) = known(digest) else { continue };
            let to = artifact_path(directory, digest);
            match medium.link(&from, &to) {
                Ok(()) => drop(there.insert(digest)),
                // Its job was removed a moment ago.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(JournalError::io("make", &to, error)),
            }
        }
        Ok(Self { needed, there, coming: None })
    }

    /// Stores a part, each artifact from its first byte to its last.
    pub(super) fn write(
        &mut self,
        medium: &dyn Medium,
        directory: &Path,
        part: &ArtifactPart,
    ) -> Result<(), JournalError> {
        let digest = part.digest;
        if self.needed.get(&digest) != Some(&part.length) {
            return Err(JournalError::Artifact(format!("none has the content {digest}")));
        }
        if self.there.contains(&digest) {
            return Ok(());
        }
        let path = artifact_path(directory, digest);
        if part.offset == 0 && self.coming.is_none() {
            let file = medium.create(&path).map_err(|e| JournalError::io("make", &path, e))?;
            let file = LongFile::new(file);
            self.coming = Some(Coming { digest, file, hasher: blake3::Hasher::new() });
        }
        let Some(coming) = self
            .coming
            .as_mut()
            .filter(|coming| coming.digest == digest && coming.file.length() == part.offset)
        else {
            let offset = part.offset;
            return Err(JournalError::Artifact(format!(
                "byte {offset} of {digest} is out of place"
            )));
        };
        let written = coming.file.append(&part.data);
        written.map_err(|e| JournalError::io("write", &path, e))?;
        coming.hasher.update(&part.data);
        if part.is_last() {
            let found = Digest(coming.hasher.finalize().into());
            if found != digest {
                return Err(JournalError::Artifact(format!("what came as {digest} is {found}")));
            }
            coming.file.sync().map_err(|e| JournalError::io("make durable", &path, e))?;
            self.coming = None;
            self.there.insert(digest);
        }
        Ok(())
    }

    /// Makes sure that all of it is there, durably.
    pub(super) fn finish(&self, medium: &dyn Medium, directory: &Path) -> Result<(), JournalError> {
        if self.needed.keys().any(|digest| !self.there.contains(digest)) {
            return Err(JournalError::MissingArtifacts);
        }
        if self.needed.is_empty() {
            return Ok(());
        }
        let files = directory.join(FILES);
        medium.sync_directory(&files).map_err(|e| JournalError::io("make durable", &files, e))
    }
}

/// Looks at what is kept of a job's files. What is wrong with each, and the bytes that were looked at.
pub(super) fn check(medium: &dyn Medium, directory: &Path) -> (u64, Vec<String>) {
    let files = directory.join(FILES);
    let names = match medium.list(&files) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (0, Vec::new()),
        Err(error) => return (0, vec![format!("{}: {error}", files.display())]),
    };
    let (mut bytes, mut problems) = (0, Vec::new());
    for name in names {
        let path = files.join(&name);
        match hash(medium, &path) {
            Ok((digest, length)) => {
                bytes += length;
                if digest.to_string() != name {
                    problems.push(format!("{}: it is not what it was", path.display()));
                }
            }
            Err(error) => problems.push(format!("{}: {error}", path.display())),
        }
    }
    (bytes, problems)
}

fn hash(medium: &dyn Medium, path: &Path) -> io::Result<(Digest, u64)> {
    const READ_BYTES: usize = 1024 * 1024;
    let file = medium.open(path)?;
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; READ_BYTES]);
    loop {
        match file.read_at(&mut buffer, hasher.count())? {
            0 => return Ok((Digest(hasher.finalize().into()), hasher.count())),
            read => drop(hasher.update(&buffer[..read])),
        }
    }
}
