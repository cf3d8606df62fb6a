//! The failures file: one JSON line for each item that failed, in the order of the items.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::PathBuf;

use super::outlet::Outlet;
use super::output_file::OutputFile;
use super::sink::SinkError;

/// Where failed items are written.
pub struct FailuresFile {
    path: PathBuf,
    /// `None` until there is a failure, for a file that nobody asked for by name.
    outlet: Option<Outlet>,
    output: Option<OutputFile>,
    is_named: bool,
    is_kept: bool,
}

impl FailuresFile {
    /// Makes the file now, empty: it was named, and is there after each run.
    ///
    /// # Errors
    /// [`SinkError::Write`] if it can not be made.
    pub fn create(path: PathBuf) -> Result<Self, SinkError> {
        let mut failures = Self { is_named: true, ..Self::at_first_failure(path) };
        failures.open()?;
        Ok(failures)
    }

    /// Makes the file when there is something to write in it, with its directory.
    #[must_use]
    pub fn at_first_failure(path: PathBuf) -> Self {
        Self { path, outlet: None, output: None, is_named: false, is_kept: true }
    }

    /// Where failures go that nobody asked for by name: the user's state directory.
    #[must_use]
    pub fn usual_path() -> PathBuf {
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
        let home = || std::env::home_dir().map(|home| home.join(".local/state"));
        let directory = state.filter(|path| path.is_absolute()).or_else(home);
        let directory = directory.unwrap_or_else(std::env::temp_dir);
        let seconds = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        directory.join("widemap").join(format!("failures-{seconds}-{}.jsonl", std::process::id()))
    }

    pub(super) fn write(&mut self, line: &[u8]) -> Result<(), SinkError> {
        if !self.is_kept {
            return Ok(());
        }
        if self.outlet.is_none()
            && let Err(error) = self.open_with_directory()
        {
            // A file that nobody asked for is no reason to end a job.
            self.is_kept = false;
            return if self.is_named { Err(error) } else { Ok(()) };
        }
        let outlet = self.outlet.as_mut().expect("it was just opened");
        outlet.write(line).map_err(|source| error(&self.path, source))
    }

    /// Whether everything that was written is in the file.
    pub(super) fn is_kept(&self) -> bool {
        self.is_kept
    }

    fn open_with_directory(&mut self) -> Result<(), SinkError> {
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory).map_err(|source| self.error(source))?;
        }
        self.open()
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.outlet.as_ref().is_none_or(Outlet::is_flushed)
    }

    pub(super) fn flush(&mut self) -> Result<(), SinkError> {
        let Some(outlet) = &mut self.outlet else { return Ok(()) };
        outlet.flush().map_err(|source| error(&self.path, source))
    }

    /// Puts the file in its place: until then what was there before is untouched. With the length and the hash
    /// of the output, if those are known, a repair can tell that it is the one that the lines are of.
    pub(super) fn finish(&mut self, output: Option<(u64, String)>) -> Result<(), SinkError> {
        self.flush()?;
        self.outlet = None;
        if let Some((bytes, hash)) = output
            && let Some(lines) = self.output.as_ref().and_then(OutputFile::reopen)
        {
            let fields = format!(",\"output_bytes\":{bytes},\"output_blake3\":\"{hash}\"}}\n");
            let marked = self.marked(lines, fields.as_bytes()).map_err(|source| self.error(source));
            self.output = Some(marked?);
        }
        let placed = self.output.take().map_or(Ok(()), OutputFile::commit);
        placed.map_err(|error| self.error(std::io::Error::other(error)))
    }

    /// The same lines with more fields.
    fn marked(&self, lines: File, fields: &[u8]) -> io::Result<OutputFile> {
        let marked = OutputFile::create(&self.path).map_err(io::Error::other)?;
        let mut to = BufWriter::new(marked.file());
        let (mut lines, mut line) = (BufReader::new(lines), Vec::new());
        while lines.read_until(b'\n', &mut line)? > 0 {
            to.write_all(line.strip_suffix(b"}\n").unwrap_or(&line))?;
            to.write_all(fields)?;
            line.clear();
        }
        to.flush()?;
        drop(to);
        Ok(marked)
    }

    fn open(&mut self) -> Result<(), SinkError> {
        let output = OutputFile::create(&self.path);
        let output = output.map_err(|error| self.error(std::io::Error::other(error)))?;
        let file = output.file().try_clone().map_err(|source| self.error(source))?;
        self.outlet = Some(Outlet::new(file, false));
        self.output = Some(output);
        Ok(())
    }

    fn error(&self, source: std::io::Error) -> SinkError {
        error(&self.path, source)
    }
}

impl std::fmt::Debug for FailuresFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FailuresFile").field("path", &self.path).finish_non_exhaustive()
    }
}

fn error(path: &std::path::Path, source: std::io::Error) -> SinkError {
    SinkError::Write { name: path.display().to_string(), source }
}
