//! Files that travel with a job: each is a name and a digest, and what is in it (an *artifact*) is sent
//! apart, once to each worker, whoever needs it.

use std::collections::BTreeMap;
use std::fmt;

use crate::limits::{JOB_FILES_MAX, JOB_FILES_NAMES_BYTES_MAX};

/// The BLAKE3 hash of what is in a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// A file that lies beside a job's function on each worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobFile {
    /// Where, below the directory in which the job's processes work: names with `/` between them.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: FileKind,
}

/// What a [`JobFile`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// What is in it.
        digest: Digest,
        /// How much that is.
        bytes: u64,
        /// Whether it may be run.
        executable: bool,
    },
}

/// The files of a job, in the order of their paths: each path stays below the directory, there is one
/// file to a path, and nothing lies below a regular file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JobFiles(Vec<JobFile>);

/// Why files cannot be those of a job.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FilesError {
    /// A path is empty, absolute, climbs out with `..`, or is none that a system takes.
    #[error("`{0}` is no path below a directory")]
    Path(String),
    /// Two files have one path, or one lies below a regular file.
    #[error("two files would lie at `{0}`")]
    Twice(String),
    /// One digest was given two lengths.
    #[error("`{0}` has the digest of a file that is longer or shorter")]
    Length(String),
    /// There are too many.
    #[error(
        "{files} files with names of {bytes} bytes together, and a job takes {JOB_FILES_MAX} with \
         {JOB_FILES_NAMES_BYTES_MAX}: pack them into an archive"
    )]
    TooMany {
        /// How many.
        files: usize,
        /// The bytes of all paths.
        bytes: usize,
    },
}

impl JobFiles {
    /// Puts files in order.
    ///
    /// # Errors
    /// If they cannot be those of a job.
    pub fn new(mut files: Vec<JobFile>) -> Result<Self, FilesError> {
        let bytes = files.iter().map(|file| file.path.len()).sum();
        if files.len() > JOB_FILES_MAX || bytes > JOB_FILES_NAMES_BYTES_MAX {
            return Err(FilesError::TooMany { files: files.len(), bytes });
        }
        let mut lengths = BTreeMap::new();
        for file in &files {
            if !is_below(&file.path) {
                return Err(FilesError::Path(file.shown()));
            }
            if let FileKind::Regular { digest, bytes, .. } = file.kind
                && *lengths.entry(digest).or_insert(bytes) != bytes
            {
                return Err(FilesError::Length(file.shown()));
            }
        }
        // A directory comes right before what lies in it.
        files.sort_by(|one, other| components(&one.path).cmp(components(&other.path)));
        for pair in files.windows(2) {
            let (one, other) = (&pair[0], &pair[1]);
            let is_directory = one.kind == FileKind::Directory;
            if one.path == other.path || !is_directory && is_inside(&other.path, &one.path) {
                return Err(FilesError::Twice(other.shown()));
            }
        }
        Ok(Self(files))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The files.
    pub fn iter(&self) -> std::slice::Iter<'_, JobFile> {
        self.0.iter()
    }

    /// What is in them: each digest once, with its length.
    #[must_use]
    pub fn artifacts(&self) -> BTreeMap<Digest, u64> {
        let regular = |file: &JobFile| match file.kind {
            FileKind::Regular { digest, bytes, .. } => Some((digest, bytes)),
            FileKind::Directory => None,
        };
        self.0.iter().filter_map(regular).collect()
    }
}

impl JobFile {
    /// Its path, for a person.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
}

fn is_below(path: &[u8]) -> bool {
    let is_name =
        |name: &[u8]| !name.is_empty() && name != b"." && name != b".." && !name.contains(&0);
    components(path).all(is_name)
}

fn is_inside(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regular(path: &str, content: u8) -> JobFile {
        let (digest, bytes) = (Digest([content; 32]), u64::from(content));
        let kind = FileKind::Regular { digest, bytes, executable: false };
        JobFile { path: path.into(), kind }
    }

    fn directory(path: &str) -> JobFile {
        JobFile { path: path.into(), kind: FileKind::Directory }
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it_and_contents_count_once() {
        let files = vec![regular("b/x", 1), regular("b-c", 2), directory("b"), regular("a", 1)];
        let files = JobFiles::new(files).unwrap();
        let paths: Vec<_> = files.iter().map(JobFile::shown).collect();
        assert_eq!(paths, ["a", "b", "b/x", "b-c"]);
        assert_eq!(
            files.artifacts().into_iter().collect::<Vec<_>>(),
            [(Digest([1; 32]), 1), (Digest([2; 32]), 2)]
        );
    }

    #[test]
    fn a_path_does_not_leave_the_directory() {
        for path in ["", "/etc/passwd", "..", "a/../../b", "a//b", "a/", "./a", "a\0b"] {
            let refused = JobFiles::new(vec![regular(path, 1)]);
            assert_eq!(refused, Err(FilesError::Path(path.to_owned())), "{path}");
        }
    }

    #[test]
    fn one_path_is_one_file_and_nothing_lies_in_a_regular_one() {
        let twice = JobFiles::new(vec![regular("a/b", 1), directory("a/b")]);
        assert_eq!(twice, Err(FilesError::Twice("a/b".to_owned())));
        let inside = JobFiles::new(vec![regular("a", 1), regular("a/b", 2)]);
        assert_eq!(inside, Err(FilesError::Twice("a/b".to_owned())));
        let unequal = FileKind::Regular { digest: Digest([1; 32]), bytes: 2, executable: false };
        let unequal = JobFile { path: b"b".to_vec(), kind: unequal };
        let unequal = JobFiles::new(vec![regular("a", 1), unequal]);
        assert_eq!(unequal, Err(FilesError::Length("b".to_owned())));
    }

    #[test]
    fn too_many_are_refused() {
        let files = (0..=JOB_FILES_MAX).map(|number| regular(&number.to_string(), 1)).collect();
        assert!(matches!(JobFiles::new(files), Err(FilesError::TooMany { .. })));
    }

    #[test]
    fn a_digest_is_shown_in_hexadecimal() {
        let mut digest = [0; 32];
        (digest[0], digest[31]) = (0xab, 1);
        assert_eq!(Digest(digest).to_string(), format!("ab{}01", "0".repeat(60)));
    }
}
