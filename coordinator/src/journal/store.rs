//! The directory of a journal: one coordinator at a time, its jobs, and the numbers that are never used
//! again.
//!
//! ```text
//! lock          held by the coordinator that runs
//! coordinator   who it is, over all of its lives, which life this is, and the next job's number
//! jobs/N/       a job: `job`, `input`, `files/DIGEST`, `facts`, `payload-000001` ...
//!               (`job-coming` instead of `job` while its input is still coming)
//! ```

mod draft;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use widemap_common::ids::{CoordinatorId, Epoch, JobId};

use super::error::JournalError;
use super::fact::{self, Fact};
use super::files::JobFiles;
use super::job_file::JobHeader;
use super::medium::{Medium, write_whole};
use super::record::{self, Found};
use super::shelf::{FACTS, Final, Shelf, segment_path};
use super::writer::Writer;

pub(crate) use draft::Draft;

/// See the file's head.
pub(crate) struct Store {
    medium: Arc<dyn Medium>,
    directory: PathBuf,
    coordinator: CoordinatorId,
    epoch: Epoch,
    next_job: AtomicU32,
    /// One job at a time gets its number, and one number at a time is noted.
    numbering: Mutex<()>,
    _lock: Box<dyn Send + Sync>,
}

/// A job that is kept.
pub(crate) struct KeptJob {
    /// Which.
    pub(crate) id: JobId,
    /// What was submitted.
    pub(crate) header: JobHeader,
    /// Its items, if they are kept with it.
    pub(crate) input: Option<PathBuf>,
    /// How long they are.
    pub(crate) input_bytes: u64,
    /// What is durable of it.
    pub(crate) shelf: Arc<Shelf>,
    /// What a person should know: what was cut off.
    pub(crate) remarks: Vec<String>,
    files: Option<JobFiles>,
}

/// What every log of facts begins with.
pub(super) const FACTS_MAGIC: &[u8; 8] = b"WMFCT\0\0\x01";

const INPUT: &str = "input";
const JOB: &str = "job";
/// What [`JOB`] is called while the job has begun and its input is still coming.
const JOB_COMING: &str = "job-coming";
const JOBS: &str = "jobs";
const COORDINATOR: &str = "coordinator";
/// What a job is called until it is whole.
const DRAFT: &str = ".new-";

impl Store {
    /// Opens a journal, or begins one, and reads what is known of its jobs. `is_ordered` says of a
    /// submission whether its results are put in the order of its items.
    ///
    /// # Errors
    /// If another coordinator has it, or it cannot be read as it was written.
    pub(crate) fn open(
        medium: Arc<dyn Medium>,
        directory: &Path,
        is_ordered: impl Fn(&JobHeader) -> bool,
    ) -> Result<(Self, Vec<KeptJob>), JournalError> {
        let jobs = directory.join(JOBS);
        medium.create_directory(&jobs).map_err(|e| JournalError::io("make", &jobs, e))?;
        let lock = lock(&*medium, directory)?;
        let (coordinator, epoch, next_job) = begin_life(&*medium, directory)?;
        let (mut kept, mut coming) = (Vec::new(), Vec::new());
        let mut next_job = next_job;
        for name in medium.list(&jobs).map_err(|e| JournalError::io("list", &jobs, e))? {
            let path = jobs.join(&name);
            if name.starts_with(DRAFT) {
                // Nobody was told that it is there.
                let removed = medium.remove_directory(&path);
                removed.map_err(|e| JournalError::io("remove", &path, e))?;
                continue;
            }
            let Some(id) = name.parse().ok().map(JobId) else { continue };
            next_job = next_job.max(id.0 + 1);
            if is_coming(&*medium, &path).map_err(|e| JournalError::io("list", &path, e))? {
                coming.push(id);
                continue;
            }
            kept.push(read_job(&medium, id, &path, &is_ordered)?);
        }
        kept.sort_by_key(|job: &KeptJob| job.id);
        let store = Self {
            medium,
            directory: directory.to_owned(),
            coordinator,
            epoch,
            next_job: AtomicU32::new(next_job),
            numbering: Mutex::new(()),
            _lock: lock,
        };
        store.write_life()?;
        // What was still coming when the last life ended was accepted from nobody.
        coming.into_iter().try_for_each(|job| store.remove(job))?;
        Ok((store, kept))
    }

    /// Which coordinator this is, over all of its lives.
    pub(crate) fn coordinator(&self) -> CoordinatorId {
        self.coordinator
    }

    /// Which life this is.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Removes a job for good.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(crate) fn remove(&self, job: JobId) -> Result<(), JournalError> {
        // Before its number could be found free again.
        self.write_life()?;
        let jobs = self.directory.join(JOBS);
        let path = jobs.join(job.0.to_string());
        // First it is no job any more, at once; then what was of it goes.
        let going = jobs.join(format!("{DRAFT}{:016x}", fastrand::u64(..)));
        let failed = |e| JournalError::io("remove", &path, e);
        self.medium.rename(&path, &going).map_err(failed)?;
        self.medium.sync_directory(&jobs).map_err(failed)?;
        self.medium.remove_directory(&going).map_err(failed)
    }

    fn write_life(&self) -> Result<(), JournalError> {
        let _one_at_a_time = self.numbering.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.directory.join(COORDINATOR);
        let text = format!(
            "widemap coordinator 1\nid {:016x}\nepoch {}\nnext-job {}\n",
            self.coordinator.0,
            self.epoch.0,
            self.next_job.load(Ordering::SeqCst),
        );
        write_whole(&*self.medium, &path, text.as_bytes())
            .map_err(|e| JournalError::io("write", &path, e))
    }
}

impl KeptJob {
    /// Lets the writer go on with the job. Once, before it has any entries.
    pub(crate) fn write_with(&mut self, writer: &Writer) {
        if let Some(files) = self.files.take() {
            writer.open(self.id, files);
        }
    }
}

fn lock(medium: &dyn Medium, directory: &Path) -> Result<Box<dyn Send + Sync>, JournalError> {
    let path = directory.join("lock");
    let pid = std::process::id();
    let holder = format!("the widemap process {pid}");
    medium.lock(&path, &holder).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            let holder = medium.open(&path).and_then(|file| file.read_all()).unwrap_or_default();
            let holder = String::from_utf8_lossy(&holder).into_owned();
            JournalError::Locked { directory: directory.to_owned(), holder }
        }
        _ => JournalError::io("lock", &path, error),
    })
}

/// Who the coordinator is, which life begins, and the next job's number.
fn begin_life(
    medium: &dyn Medium,
    directory: &Path,
) -> Result<(CoordinatorId, Epoch, u32), JournalError> {
    let path = directory.join(COORDINATOR);
    let bytes = match medium.open(&path).and_then(|file| file.read_all()) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((CoordinatorId(fastrand::u64(1..)), Epoch(1), 1));
        }
        Err(error) => return Err(JournalError::io("read", &path, error)),
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    parse_life(&text).ok_or_else(|| JournalError::Version {
        path,
        found: format!("`{}`", text.lines().next().unwrap_or_default()),
        wanted: "`widemap coordinator 1`".to_owned(),
    })
}

fn parse_life(text: &str) -> Option<(CoordinatorId, Epoch, u32)> {
    let mut lines = text.lines();
    lines.next().filter(|line| *line == "widemap coordinator 1")?;
    let id = u64::from_str_radix(lines.next()?.strip_prefix("id ")?, 16).ok()?;
    let epoch: u64 = lines.next()?.strip_prefix("epoch ")?.parse().ok()?;
    let next_job = lines.next()?.strip_prefix("next-job ")?.parse().ok()?;
    Some((CoordinatorId(id), Epoch(epoch + 1), next_job))
}

fn read_job(
    medium: &Arc<dyn Medium>,
    id: JobId,
    directory: &Path,
    is_ordered: &impl Fn(&JobHeader) -> bool,
) -> Result<KeptJob, JournalError> {
    let header = read_header(&**medium, directory)?;
    let is_ordered = is_ordered(&header);
    let shelf = Arc::new(Shelf::new(Arc::clone(medium), directory.to_owned(), is_ordered));
    let path = directory.join(FACTS);
    let facts = medium.open(&path).map_err(|e| JournalError::io("open", &path, e))?;
    let log = facts.read_all().map_err(|e| JournalError::io("read", &path, e))?;
    let read = read_facts(&path, &log, |fact| apply(&shelf, fact))?;
    let mut remarks = Vec::new();
    if let Some(problem) = read.torn {
        facts.cut(read.end).map_err(|e| JournalError::io("cut off", &path, e))?;
        facts.sync().map_err(|e| JournalError::io("make durable", &path, e))?;
        remarks.push(format!(
            "{}: the last {} bytes were not written to their end ({problem}), and were cut off: what \
             they told was acknowledged to nobody, and runs again",
            path.display(),
            log.len() as u64 - read.end
        ));
    }
    let input = directory.join(INPUT);
    let (input, input_bytes) = match medium.open(&input).and_then(|file| file.length()) {
        Ok(bytes) => (Some(input), bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (None, 0),
        Err(error) => return Err(JournalError::io("open", &input, error)),
    };
    // What a former life wrote behind its last fact is in nobody's way.
    let names = medium.list(directory).map_err(|e| JournalError::io("list", directory, e))?;
    let numbers = names.iter().filter_map(|name| name.strip_prefix("payload-")?.parse().ok());
    let next_segment = numbers.max().map_or(1, |last: u32| last + 1);
    let files = JobFiles {
        shelf: Arc::clone(&shelf),
        facts,
        facts_end: read.end,
        sequence: read.sequence,
        next_segment,
        segment: None,
    };
    Ok(KeptJob { id, header, input, input_bytes, shelf, remarks, files: Some(files) })
}

/// Whether a job has begun, and its input was still coming.
fn is_coming(medium: &dyn Medium, directory: &Path) -> io::Result<bool> {
    let names = medium.list(directory)?;
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    Ok(has(JOB_COMING) && !has(JOB))
}

pub(super) fn read_header(
    medium: &dyn Medium,
    directory: &Path,
) -> Result<JobHeader, JournalError> {
    let path = directory.join(JOB);
    let bytes = medium.open(&path).and_then(|file| file.read_all());
    let bytes = bytes.map_err(|e| JournalError::io("read", &path, e))?;
    JobHeader::parse(&bytes).map_err(|found| JournalError::Version {
        path,
        found,
        wanted: JobHeader::WANTED.to_owned(),
    })
}

/// What was read of a log.
pub(super) struct Read {
    /// Where its last whole record ends, and the number of the next one.
    pub(super) end: u64,
    pub(super) sequence: u64,
    /// What is wrong with what comes after it, if something does.
    pub(super) torn: Option<String>,
}

/// A fact, and where the body of its record begins in the log.
pub(super) type Told = (Fact, u64);

/// Reads a whole log.
///
/// # Errors
/// If it is of another version, or something whole lies behind something damaged.
pub(super) fn read_facts(
    path: &Path,
    log: &[u8],
    mut each: impl FnMut(Told),
) -> Result<Read, JournalError> {
    let Some(records) = log.strip_prefix(FACTS_MAGIC) else {
        return Err(JournalError::Version {
            path: path.to_owned(),
            found: "no log of facts, or of another version".to_owned(),
            wanted: "version 1".to_owned(),
        });
    };
    let (mut at, mut sequence) = (0, 1);
    loop {
        let offset = (FACTS_MAGIC.len() + at) as u64;
        let damaged = |problem| JournalError::Damaged { path: path.to_owned(), offset, problem };
        match record::read(&records[at..], sequence) {
            Found::End => return Ok(Read { end: offset, sequence, torn: None }),
            Found::Record(body, length) => {
                let begin = offset + record::HEAD_BYTES as u64;
                fact::parse(body, |fact| each((fact, begin)))
                    .map_err(|problem| damaged(problem.to_owned()))?;
                at += length;
                sequence += 1;
            }
            Found::Bad(problem) if record::has_later(&records[at + 1..], sequence) => {
                return Err(damaged(problem));
            }
            Found::Bad(problem) => return Ok(Read { end: offset, sequence, torn: Some(problem) }),
        }
    }
}

fn apply(shelf: &Shelf, (fact, begin): Told) {
    match fact {
        Fact::Final { first, items, extent, failure } => {
            let failure =
                failure.map(|described| (begin + u64::from(described.at), described.length));
            shelf.put(first, Final { items, extent, failure });
        }
        Fact::Stderr(described) => {
            shelf.add_stderr(begin + u64::from(described.at), described.length);
        }
        Fact::Input(prefix) => shelf.add_input(prefix),
        Fact::Paused(paused) => shelf.set_paused(paused),
        Fact::Ended(last) => shelf.end(last),
    }
}

/// The segments of a job.
pub(super) fn segments(medium: &dyn Medium, directory: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let names = medium.list(directory)?;
    let number = |name: &String| name.strip_prefix("payload-")?.parse().ok();
    Ok(names.iter().filter_map(number).map(|n| (n, segment_path(directory, n))).collect())
}

/// The directories of jobs: of a journal, or the one of a job itself.
pub(super) fn job_directories(medium: &dyn Medium, directory: &Path) -> io::Result<Vec<PathBuf>> {
    let names = medium.list(directory)?;
    if names.iter().any(|name| name == JOB) {
        return Ok(vec![directory.to_owned()]);
    }
    let jobs = directory.join(JOBS);
    let mut numbers: Vec<u32> =
        medium.list(&jobs)?.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    let mut directories = Vec::new();
    for number in numbers {
        let directory = jobs.join(number.to_string());
        match is_coming(medium, &directory) {
            Ok(false) => directories.push(directory),
            Ok(true) => {}
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(directories)
}
