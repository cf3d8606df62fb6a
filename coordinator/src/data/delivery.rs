//! Results that come finished from elsewhere, as from a coordinator that serves: written as they are, on
//! whatever thread may wait for it.

use super::failures_file::FailuresFile;
use super::outlet::Outlet;
use super::recorder::Recorder;
use super::render::output_error;
use super::sink::{Again, SinkError, SinkReport, SinkTarget, mark};

/// Writes the output and the failures file.
pub struct Delivery {
    outlet: Outlet,
    again: Option<Again>,
    name: String,
    recorder: Option<Box<Recorder>>,
    failures: FailuresFile,
    failure_lines: u64,
    output_bytes: u64,
    line: Vec<u8>,
}

impl Delivery {
    /// Writes to `target`, which is hashed on the way if that `is_hashed`. What comes are records if there is a
    /// `recorder` to make the output of them.
    #[must_use]
    pub fn new(
        target: SinkTarget,
        is_hashed: bool,
        recorder: Option<Recorder>,
        failures: FailuresFile,
    ) -> Self {
        Self {
            outlet: Outlet::new(target.file, is_hashed),
            again: target.again,
            name: target.name,
            recorder: recorder.map(Box::new),
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
        match self.recorder.take() {
            None => self.write(bytes)?,
            Some(mut recorder) => {
                let fed = recorder.feed(bytes, |bytes| self.write(bytes));
                self.recorder = Some(recorder);
                fed?;
            }
        }
        self.outlet.flush().map_err(|source| output_error(&self.name, source))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.output_bytes += bytes.len() as u64;
        self.outlet.write(bytes).map_err(|source| output_error(&self.name, source))
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
        let has_lines = self.failure_lines > 0;
        let mark = if has_lines { mark(&mut self.again, self.output_bytes) } else { None };
        self.failures.finish(mark)?;
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
