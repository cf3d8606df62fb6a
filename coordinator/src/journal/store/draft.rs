//! A job on its way in.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use widemap_common::artifact::Digest;
use widemap_common::ids::JobId;
use widemap_proto::artifact::ArtifactPart;

use super::super::artifacts::DraftArtifacts;
use super::super::error::JournalError;
use super::super::files::JobFiles;
use super::super::job_file::JobHeader;
use super::super::long_file::LongFile;
use super::super::medium::write_whole;
use super::super::shelf::{FACTS, Shelf};
use super::{DRAFT, FACTS_MAGIC, INPUT, JOB, JOB_COMING, JOBS, KeptJob, Store};

/// A job that is being handed in. Dropped before it is finished it is as if it had never been.
pub(crate) struct Draft {
    store: Arc<Store>,
    directory: PathBuf,
    header: JobHeader,
    is_ordered: bool,
    artifacts: DraftArtifacts,
    input: Option<LongFile>,
    /// Its number, once it has one.
    id: Option<JobId>,
}

impl Store {
    /// Begins to take a job in. `has_input` says whether its items are kept with it.
    ///
    /// # Errors
    /// If nothing can be written.
    pub(crate) fn begin(
        self: &Arc<Self>,
        header: JobHeader,
        is_ordered: bool,
        has_input: bool,
    ) -> Result<Draft, JournalError> {
        let directory =
            self.directory.join(JOBS).join(format!("{DRAFT}{:016x}", fastrand::u64(..)));
        let made = self.medium.create_directory(&directory);
        made.map_err(|e| JournalError::io("make", &directory, e))?;
        let store = Arc::clone(self);
        let artifacts = DraftArtifacts::default();
        let mut draft =
            Draft { store, directory, header, is_ordered, artifacts, input: None, id: None };
        if has_input {
            let path = draft.directory.join(INPUT);
            let file = self.medium.create(&path).map_err(|e| JournalError::io("make", &path, e))?;
            draft.input = Some(LongFile::new(file));
        }
        Ok(draft)
    }
}

impl Draft {
    /// Says what is in the job's files; `known` says where some of it lies already, in another job's.
    ///
    /// # Errors
    /// If nothing can be written.
    pub(crate) fn need(
        &mut self,
        artifacts: BTreeMap<Digest, u64>,
        known: impl Fn(Digest) -> Option<PathBuf>,
    ) -> Result<(), JournalError> {
        let medium = &*self.store.medium;
        self.artifacts = DraftArtifacts::begin(medium, &self.directory, artifacts, known)?;
        Ok(())
    }

    /// Adds to what is in the job's files.
    ///
    /// # Errors
    /// If it is not of them, or cannot be written: then the draft is of no use.
    pub(crate) fn write_artifact(&mut self, part: &ArtifactPart) -> Result<(), JournalError> {
        self.artifacts.write(&*self.store.medium, &self.directory, part)
    }

    /// Adds to the input.
    ///
    /// # Errors
    /// If it cannot be written: then the draft is of no use.
    pub(crate) fn write(&mut self, items: &[u8]) -> Result<(), JournalError> {
        let path = self.directory.join(INPUT);
        let Some(input) = &mut self.input else { return Ok(()) };
        input.append(items).map_err(|e| JournalError::io("write", &path, e))
    }

    /// Makes a job of what is there, that may run while the rest of its input comes: it gets its number. It
    /// counts for nothing before [`Draft::accept`], and is gone with the next start. Once; whoever does not
    /// accept it removes it ([`Store::remove`]).
    ///
    /// # Errors
    /// If that cannot be done.
    pub(crate) fn begin(&mut self) -> Result<KeptJob, JournalError> {
        self.artifacts.finish(&*self.store.medium, &self.directory)?;
        let made = self.number(JOB_COMING);
        if let (Err(_), Some(id)) = (&made, self.id) {
            // Nobody else will: what is left of it all the same is removed at the next start.
            let _ = self.store.remove(id);
        }
        made
    }

    /// The input of a job that has begun is whole: makes it durable, and the job one that is kept. How long
    /// its input is.
    ///
    /// # Errors
    /// If that is not certain.
    pub(crate) fn accept(mut self) -> Result<u64, JournalError> {
        let input_bytes = self.sync_input()?;
        let (medium, directory) = (&*self.store.medium, &self.directory);
        let path = directory.join(JOB);
        medium
            .rename(&directory.join(JOB_COMING), &path)
            .and_then(|()| medium.sync_directory(directory))
            .map_err(|e| JournalError::io("make", &path, e))?;
        Ok(input_bytes)
    }

    /// Makes the job, durably, and gives it its number.
    ///
    /// # Errors
    /// If that is not certain.
    pub(crate) fn finish(mut self) -> Result<KeptJob, JournalError> {
        let input_bytes = self.sync_input()?;
        self.artifacts.finish(&*self.store.medium, &self.directory)?;
        let job = self.number(JOB)?;
        Ok(KeptJob { input_bytes, ..job })
    }

    fn sync_input(&mut self) -> Result<u64, JournalError> {
        let path = self.directory.join(INPUT);
        let Some(input) = &mut self.input else { return Ok(0) };
        input.sync().map_err(|e| JournalError::io("make durable", &path, e))?;
        Ok(input.length())
    }

    /// Writes what else there is of the job, and gives it its number.
    fn number(&mut self, job: &str) -> Result<KeptJob, JournalError> {
        let store = Arc::clone(&self.store);
        let medium = &*store.medium;
        let (path, facts_path) = (self.directory.join(job), self.directory.join(FACTS));
        write_whole(medium, &path, &self.header.to_bytes())
            .and_then(|()| write_whole(medium, &facts_path, FACTS_MAGIC))
            .map_err(|e| JournalError::io("write", &path, e))?;
        let jobs = store.directory.join(JOBS);
        let id = {
            let _one_at_a_time = store.numbering.lock().unwrap_or_else(PoisonError::into_inner);
            let id = JobId(store.next_job.fetch_add(1, Ordering::SeqCst));
            let directory = jobs.join(id.0.to_string());
            let renamed = medium.rename(&self.directory, &directory);
            renamed.map_err(|e| JournalError::io("make", &directory, e))?;
            (self.directory, self.id) = (directory, Some(id));
            let synced = medium.sync_directory(&jobs);
            synced.map_err(|e| JournalError::io("make durable", &jobs, e))?;
            id
        };
        let facts_path = self.directory.join(FACTS);
        let facts =
            medium.open(&facts_path).map_err(|e| JournalError::io("open", &facts_path, e))?;
        let input = self.input.is_some().then(|| self.directory.join(INPUT));
        let directory = self.directory.clone();
        let shelf = Arc::new(Shelf::new(store.medium.clone(), directory, self.is_ordered));
        let files = JobFiles {
            shelf: Arc::clone(&shelf),
            facts,
            facts_end: FACTS_MAGIC.len() as u64,
            sequence: 1,
            next_segment: 1,
            segment: None,
        };
        let (header, remarks, files) = (self.header.clone(), Vec::new(), Some(files));
        Ok(KeptJob { id, header, input, input_bytes: 0, shelf, remarks, files })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.id.is_none() {
            self.input = None;
            // What is left is removed at the next start.
            let _ = self.store.medium.remove_directory(&self.directory);
        }
    }
}
