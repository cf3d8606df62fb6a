//! Why the journal cannot go on.

use std::io;
use std::path::{Path, PathBuf};

/// See the file's head.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// Another coordinator has it.
    #[error(
        "{} is in use{}: two coordinators must not write to it; end the other one, or name another \
         directory", directory.display(), holder_shown(holder)
    )]
    Locked {
        /// The directory.
        directory: PathBuf,
        /// What the other one says of itself.
        holder: String,
    },
    /// A file is of another version, or no journal at all.
    #[error("{} is {found}, and this build reads {wanted}: use the release that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What is understood.
        wanted: String,
    },
    /// A file was changed.
    #[error(
        "{}, at byte {offset}: {problem}; what comes after it is whole, so this is no write that was \
         cut short: restore the file from a copy, or give the job up by moving its directory away",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// What came of the files of a job is not what was to come.
    #[error("of the files of the job, {0}")]
    Artifact(String),
    /// Not all of what is in the files of a job has come.
    #[error("not all of what is in the files of the job has come: submit it again")]
    MissingArtifacts,
    /// There is no room.
    #[error(
        "the disk of {} is full: nothing is lost that was acknowledged; make room and start again",
        path.display()
    )]
    Full {
        /// The file that was written to.
        path: PathBuf,
    },
    /// Something cannot be read, written or made durable.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The thread that writes could not be started.
    #[error("cannot start to write the journal: {0}")]
    Start(io::Error),
}

fn holder_shown(holder: &str) -> String {
    if holder.is_empty() { String::new() } else { format!(" by {holder}") }
}

impl JournalError {
    /// An error of a file system, with what was tried.
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::Io { what, path, source },
        }
    }

    /// Whether there is no room on the disk.
    #[cfg(test)]
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}
