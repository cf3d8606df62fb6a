//! Results that come finished from elsewhere, as from a coordinator that serves: written as they are, on
//! whatever thread may wait for it.

use super::failures_file::FailuresFile;
use super::outlet::Outlet;
use super::render::output_error;
use super::sink::{SinkError, SinkReport, SinkTarget};

/// Writes the output and the failures file.
pub struct Delivery {
    outlet: Outlet,
    name: String,
    failures: FailuresFile,
    failure_lines: u64,
    output_bytes: u64,
    line: Vec<u8>,
}

impl Delivery {
    /// Writes to `target`, which is hashed on the way if that `is_hashed`.
    #[must_use]
    pub fn new(target: SinkTarget, is_hashed: bool, failures: FailuresFile) -> Self {
        Self {
            outlet: Outlet::new(target.file, is_hashed),
            name: target.name,
            failures,
            failure_lines: 0,
            output_bytes: 0,
            line: Vec::new(),
        }
    }

    /// The next bytes of the output: they are seen when this returns.
    ///
    /// # Errors
    /// [`SinkError`] if they cannot be written, or nobody reads them any more.
    pub fn output(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.output_bytes += bytes.len() as u64;
        let written = self.outlet.write(bytes).and_then(|()| self.outlet.flush());
        written.map_err(|source| output_error(&self.name, source))
    }

    /// The next line of the failures file, without its newline.
    ///
    /// # Errors
    /// [`SinkError`] if the file was named and cannot be written.
    pub fn failure(&mut self, record: &[u8]) -> Result<(), SinkError> {
        self.failure_lines += 1;
        self.line.clear();
        self.line.extend_from_slice(record);
        self.line.push(b'\n');
        self.failures.write(&self.line)
    }

    /// Puts the failures file in its place, and says what was written.
    ///
    /// # Errors
    /// [`SinkError`] if that cannot be.
    pub fn finish(mut self) -> Result<SinkReport, SinkError> {
        self.failures.finish()?;
        Ok(SinkReport {
            output_bytes: self.output_bytes,
            output_blake3: self.outlet.hash().map(|hash| hash.to_hex().to_string()),
            failures: self.failure_lines,
            failures_kept: self.failures.is_kept(),
        })
    }
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("name", &self.name).finish_non_exhaustive()
    }
}
