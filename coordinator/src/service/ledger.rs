//! What the service needs of what is kept on disk, and no more: to hand a job in, and to read results.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use widemap_common::artifact::Digest;
use widemap_common::ids::JobId;
use widemap_proto::artifact::ArtifactPart;
use widemap_proto::jobs::Position;

/// Where jobs are kept. Its calls wait for a disk.
pub(crate) trait Ledger: Send + Sync {
    /// Begins a job. `submission` is opaque bytes; whoever drops the draft gives it up.
    ///
    /// # Errors
    /// [`LedgerError`] if nothing can be written.
    fn begin(
        &self,
        submission: Bytes,
        submit_key: Option<&str>,
        created_ms: u64,
    ) -> Result<Box<dyn Draft>, LedgerError>;

    /// Bytes on disk of all jobs.
    fn used_bytes(&self) -> u64;

    /// Whether some job has this in its files.
    fn has_artifact(&self, digest: Digest) -> bool;
}

/// A job that is being handed in.
pub(crate) trait Draft: Send {
    /// Adds to what is in its files. What is there already may come again.
    ///
    /// # Errors
    /// [`LedgerError`] if it is not of them, or cannot be written: then the draft is of no use any more.
    fn write_artifact(&mut self, part: &ArtifactPart) -> Result<(), LedgerError>;

    /// Adds to its input.
    ///
    /// # Errors
    /// [`LedgerError`] if it cannot be written: then the draft is of no use any more.
    fn write(&mut self, items: &[u8]) -> Result<(), LedgerError>;

    /// Makes a job of what is there, with its number, that may run while the rest of its input comes. It
    /// counts for nothing before [`Draft::finish`]. Once, when what is in its files is there.
    ///
    /// # Errors
    /// [`LedgerError`] if that cannot be done: then the draft is of no use any more.
    fn begin(&mut self) -> Result<NewJob, LedgerError>;

    /// Makes the job, durably; the same one, if it has begun.
    ///
    /// # Errors
    /// [`LedgerError`] if that is not certain.
    fn finish(self: Box<Self>) -> Result<NewJob, LedgerError>;
}

/// A job that was handed in, or has begun.
#[derive(Clone)]
pub(crate) struct NewJob {
    /// Its number.
    pub(crate) id: JobId,
    /// Its input.
    pub(crate) input: PathBuf,
    /// Where its results will be.
    pub(crate) shelf: Arc<dyn Shelf>,
}

/// What is durable of a job's results.
pub(crate) trait Shelf: Send + Sync {
    /// Bytes of the output that can be read.
    fn output_bytes(&self) -> u64;

    /// Failures that can be read.
    fn failures(&self) -> u64;

    /// Pieces of standard error that can be read.
    fn stderr_pieces(&self) -> u64;

    /// The job's last word, once there is nothing more to come.
    fn ended(&self) -> Option<Bytes>;

    /// Changes whenever there is more to be read, or the job has ended.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Reads from a position on, which has been reached.
    fn read_from(&self, position: Position) -> Box<dyn ShelfCursor>;
}

/// Reads results in their order.
pub(crate) trait ShelfCursor: Send {
    /// What comes next; waits for a disk, and for nothing else.
    ///
    /// # Errors
    /// If it cannot be read, or is not what was written: the error names the file and the place.
    fn next(&mut self) -> io::Result<Next>;
}

/// What comes next of the results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Output, at most [`PART_BYTES_MAX`](widemap_common::limits::PART_BYTES_MAX) of it.
    Output(Bytes),
    /// A failure: a line of the failures file, without the newline.
    Failure(Bytes),
    /// What items have written on their standard error: some lines.
    Stderr(Bytes),
    /// Nothing yet.
    Wait,
    /// Nothing more.
    End,
}

/// Why a job cannot be handed in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    /// What came of the job's files is not what was to come.
    #[error("{0}")]
    Artifact(String),
    /// Not all of what is in the job's files has come, nor is it here.
    #[error("not all of what is in the files of the job has come: submit it again")]
    MissingArtifacts,
    /// There is no room.
    #[error("there is no room on the disk of {path}: {source}")]
    Full {
        /// What was written to.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// What was written to.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}
