//! Looks at everything that a journal keeps, as `widemap journal check` does: every fact, every byte of
//! results that a fact points to, and what is in files that jobs brought along. Nothing is changed.

use std::io;
use std::path::{Path, PathBuf};

use super::artifacts;
use super::extent::Extent;
use super::fact::Fact;
use super::medium::Medium;
use super::shelf::{FACTS, segment_path};
use super::store::{job_directories, read_facts, read_header, segments};

/// What was found in one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Its directory.
    pub(crate) directory: PathBuf,
    /// Items that are final.
    pub(crate) items: u64,
    /// Bytes of results and of files that were looked at.
    pub(crate) bytes: u64,
    /// Segments that were looked at.
    pub(crate) segments: usize,
    /// The end of the log that is no whole record: the next start cuts it off.
    pub(crate) torn: Option<String>,
    /// What is wrong: the file, the place, and how.
    pub(crate) problems: Vec<String>,
}

/// Looks at a journal, or at the directory of one job.
///
/// # Errors
/// If it is none.
pub(crate) fn check(medium: &dyn Medium, directory: &Path) -> io::Result<Vec<Finding>> {
    let jobs = job_directories(medium, directory)?;
    Ok(jobs.iter().map(|job| check_job(medium, job)).collect())
}

fn check_job(medium: &dyn Medium, directory: &Path) -> Finding {
    let mut finding = Finding {
        directory: directory.to_owned(),
        items: 0,
        bytes: 0,
        segments: 0,
        torn: None,
        problems: Vec::new(),
    };
    if let Err(error) = read_header(medium, directory) {
        finding.problems.push(error.to_string());
    }
    let mut extents = Vec::new();
    let path = directory.join(FACTS);
    let log = match medium.open(&path).and_then(|facts| facts.read_all()) {
        Ok(log) => log,
        Err(error) => {
            finding.problems.push(format!("{}: {error}", path.display()));
            return finding;
        }
    };
    let read = read_facts(&path, &log, |(fact, _)| {
        if let Fact::Final { items, extent, .. } = fact {
            finding.items += u64::from(items);
            extents.push(extent);
        }
    });
    match read {
        Ok(read) => finding.torn = read.torn.map(|why| format!("{}: {why}", path.display())),
        Err(error) => finding.problems.push(error.to_string()),
    }
    finding.segments = segments(medium, directory).map_or(0, |segments| segments.len());
    extents.sort_by_key(|extent| (extent.segment, extent.offset));
    for run in extents.chunk_by(|a, b| a.segment == b.segment) {
        check_segment(medium, directory, run, &mut finding);
    }
    let (bytes, problems) = artifacts::check(medium, directory);
    finding.bytes += bytes;
    finding.problems.extend(problems);
    finding
}

fn check_segment(medium: &dyn Medium, directory: &Path, run: &[Extent], finding: &mut Finding) {
    let path = segment_path(directory, run[0].segment);
    let file = match medium.open(&path) {
        Ok(file) => file,
        Err(error) => return finding.problems.push(format!("{}: {error}", path.display())),
    };
    for extent in run {
        let mut at = 0;
        while at < extent.length {
            match extent.read(&*file, at) {
                Ok(bytes) => at += bytes.len() as u64,
                Err(error) => {
                    finding.problems.push(format!("{}, {error}", path.display()));
                    break;
                }
            }
        }
        finding.bytes += at;
    }
}
