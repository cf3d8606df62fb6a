//! What the sink's thread writes for each thing that it is handed, and the failures file beside it.

use super::failures_file::FailuresFile;
use super::format::{self, Format, ResultShape, Shape};
use super::outlet::Outlet;
use super::piece::{Emit, Piece};
use super::recorder::Recorder;
use super::report::{FailureRecord, Results};
use super::sink::{Again, SinkConfig, SinkError, SinkReport, mark};
use super::unframe::Unframe;
use widemap_common::framing::Framing;

/// Writes the output and the failures file.
pub(super) struct Renderer {
    outlet: Outlet,
    again: Option<Again>,
    name: String,
    format: Format,
    shape: Shape,
    separator: u8,
    /// For raw results with their lengths before them.
    unframe: Option<Unframe>,
    recorder: Option<Recorder>,
    failures: Option<FailuresFile>,
    failure_lines: u64,
    function: String,
    output_bytes: u64,
    /// What the results would be in raw output, so far.
    raw_bytes: u64,
    line: Vec<u8>,
}

impl Renderer {
    pub(super) fn new(config: SinkConfig) -> Self {
        let is_prefixed = config.shape.results == ResultShape::Framed(Framing::LengthPrefixed);
        Self {
            outlet: Outlet::new(config.target.file, config.is_hashed),
            again: config.target.again,
            name: config.target.name,
            unframe: is_prefixed.then(|| Unframe::new(config.separator)),
            format: config.format,
            shape: config.shape,
            separator: config.separator,
            recorder: config.recorder,
            failures: config.failures,
            failure_lines: 0,
            function: config.function,
            output_bytes: 0,
            raw_bytes: 0,
            line: Vec::new(),
        }
    }

    pub(super) fn emit(&mut self, emit: Emit) -> Result<(), SinkError> {
        match emit {
            Emit::Piece(piece) => self.write_piece(&piece),
            Emit::Small(bytes) => self.write_results(&bytes),
            Emit::Results(results, output) if self.format.is_made() => {
                self.render(&results, &output)
            }
            Emit::Results(_, output) => output.iter().try_for_each(|piece| self.write_piece(piece)),
            Emit::Failure(record) => self.write_failure(&record),
        }
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.outlet.is_flushed() && self.failures.as_ref().is_none_or(FailuresFile::is_flushed)
    }

    pub(super) fn flush(&mut self) -> Result<(), SinkError> {
        self.outlet.flush().map_err(|source| output_error(&self.name, source))?;
        self.failures.as_mut().map_or(Ok(()), FailuresFile::flush)
    }

    /// The output cannot be finished: what failed until then is kept nevertheless.
    pub(super) fn keep_failures(&mut self) {
        if let Some(failures) = &mut self.failures {
            // The error that is told is the first one.
            let _ = failures.finish(None);
        }
    }

    pub(super) fn finish(&mut self) -> Result<SinkReport, SinkError> {
        self.flush()?;
        if let Some(failures) = &mut self.failures {
            let has_lines = self.failure_lines > 0;
            let mark = if has_lines { mark(&mut self.again, self.output_bytes) } else { None };
            failures.finish(mark)?;
        }
        Ok(SinkReport {
            output_bytes: self.output_bytes,
            output_blake3: self.outlet.hash().map(|hash| hash.to_hex().to_string()),
            failures: self.failure_lines,
            failures_kept: self.failures.as_ref().is_some_and(FailuresFile::is_kept),
        })
    }

    pub(super) fn output_bytes(&self) -> u64 {
        self.output_bytes
    }

    fn write_piece(&mut self, piece: &Piece) -> Result<(), SinkError> {
        piece
            .read(|bytes| self.write_results(bytes).map_err(ReadOrWrite::Write))
            .map_err(Into::into)
    }

    /// Writes raw results.
    fn write_results(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let Some(mut unframe) = self.unframe.take() else {
            self.raw_bytes += bytes.len() as u64;
            return self.write(bytes);
        };
        let written = unframe.part(bytes, |bytes| {
            self.raw_bytes += bytes.len() as u64;
            self.write(bytes)
        });
        self.unframe = Some(unframe);
        written
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.outlet.write(bytes).map_err(|source| output_error(&self.name, source))?;
        self.output_bytes += bytes.len() as u64;
        Ok(())
    }

    fn render(&mut self, results: &Results, output: &[Piece]) -> Result<(), SinkError> {
        let mut joined = Vec::new();
        let output: &[u8] = match output {
            [] => &[],
            [Piece::Memory(bytes)] => bytes,
            pieces => {
                for piece in pieces {
                    let joined = piece.read(|bytes| {
                        joined.extend_from_slice(bytes);
                        Ok::<_, std::io::Error>(())
                    });
                    joined.map_err(|source| SinkError::Spill { source })?;
                }
                &joined
            }
        };
        self.raw_bytes += format::raw_bytes(self.shape, results, output);
        let mut line = std::mem::take(&mut self.line);
        format::push_results(&mut line, &self.format, self.shape, results, output);
        self.write_line(line)
    }

    fn write_failure(&mut self, record: &FailureRecord) -> Result<(), SinkError> {
        if let Some(failures) = &mut self.failures {
            let mut line = std::mem::take(&mut self.line);
            // What is made of records is not what they have, and its place is known.
            let is_made = self.recorder.as_ref().is_some_and(|recorder| !recorder.is_json());
            let offset = if is_made { self.output_bytes } else { self.raw_bytes };
            let function = &self.function;
            format::push_failures_file_line(&mut line, self.shape, record, offset, function);
            failures.write(&line)?;
            self.failure_lines += 1;
            line.clear();
            self.line = line;
        }
        let mut line = std::mem::take(&mut self.line);
        match &self.format {
            Format::Raw { fill: None } => {}
            Format::Raw { fill: Some(fill) } => {
                line.extend_from_slice(fill);
                line.push(self.separator);
                self.raw_bytes += line.len() as u64;
            }
            Format::Json | Format::Records { .. } | Format::Frames => {
                format::push_failure(&mut line, &self.format, self.shape, record);
            }
        }
        self.write_line(line)
    }

    /// Writes a line, and keeps its memory for the next one unless it was unusually long.
    fn write_line(&mut self, mut line: Vec<u8>) -> Result<(), SinkError> {
        const KEPT_BYTES_MAX: usize = 1024 * 1024;
        match self.recorder.take() {
            None => self.write(&line)?,
            Some(mut recorder) => {
                let fed = recorder.feed(&line, |bytes| self.write(bytes));
                self.recorder = Some(recorder);
                fed?;
            }
        }
        line.clear();
        line.shrink_to(KEPT_BYTES_MAX);
        self.line = line;
        Ok(())
    }
}

/// An error of the spill's file, or of the output.
enum ReadOrWrite {
    Read(std::io::Error),
    Write(SinkError),
}

impl From<std::io::Error> for ReadOrWrite {
    fn from(source: std::io::Error) -> Self {
        Self::Read(source)
    }
}

impl From<ReadOrWrite> for SinkError {
    fn from(error: ReadOrWrite) -> Self {
        match error {
            ReadOrWrite::Read(source) => Self::Spill { source },
            ReadOrWrite::Write(error) => error,
        }
    }
}

pub(super) fn output_error(name: &str, source: std::io::Error) -> SinkError {
    let name = name.to_owned();
    if source.kind() == std::io::ErrorKind::BrokenPipe {
        SinkError::Closed { name }
    } else {
        SinkError::Write { name, source }
    }
}
