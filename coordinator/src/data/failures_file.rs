//! The failures file: one JSON line for each item that failed, in the order of the items.

use std::fs::File;
use std::path::PathBuf;

use super::outlet::Outlet;
use super::sink::SinkError;

/// Where failed items are written.
pub struct FailuresFile {
    path: PathBuf,
    /// `None` until there is a failure, for a file that nobody asked for by name.
    outlet: Option<Outlet>,
}

impl FailuresFile {
    /// Makes the file now, empty: it was named, and is there after each run.
    ///
    /// # Errors
    /// [`SinkError::Write`] if it can not be made.
    pub fn create(path: PathBuf) -> Result<Self, SinkError> {
        let mut failures = Self::at_first_failure(path);
        failures.open()?;
        Ok(failures)
    }

    /// Makes the file when there is something to write in it, with its directory.
    #[must_use]
    pub fn at_first_failure(path: PathBuf) -> Self {
        Self { path, outlet: None }
    }

    pub(super) fn write(&mut self, line: &[u8]) -> Result<(), SinkError> {
        if self.outlet.is_none() {
            if let Some(directory) = self.path.parent() {
                std::fs::create_dir_all(directory).map_err(|source| self.error(source))?;
            }
            self.open()?;
        }
        let outlet = self.outlet.as_mut().expect("it was just opened");
        outlet.write(line).map_err(|source| error(&self.path, source))
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.outlet.as_ref().is_none_or(Outlet::is_flushed)
    }

    pub(super) fn flush(&mut self) -> Result<(), SinkError> {
        let Some(outlet) = &mut self.outlet else { return Ok(()) };
        outlet.flush().map_err(|source| error(&self.path, source))
    }

    fn open(&mut self) -> Result<(), SinkError> {
        let file = File::create(&self.path).map_err(|source| self.error(source))?;
        self.outlet = Some(Outlet::new(file, false));
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
