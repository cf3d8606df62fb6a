//! What is made of records, one JSON object for each item, on their way to the output: the raw output with the
//! item before each line (`--tag`), the log of all items (`--joblog`), and a directory with a file of output
//! for each (`--results`). Each is as GNU parallel has it.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;
use widemap_common::template::{Fill, Template};

use super::outlet::Outlet;

/// The longest name of a directory of `--results`: what is longer is cut, and told apart by its hash.
const NAME_BYTES_MAX: usize = 200;

/// The field that records have and `--format json` has not.
const STARTED: &[u8] = b",\"started\":";

/// What is made of records.
#[derive(Debug)]
pub struct Recording {
    /// The output is the records themselves.
    pub json: bool,
    /// Each line of raw output has its item before it.
    pub tag: bool,
    /// The line that stands for a failed item in raw output, without its end.
    pub fill: Option<Vec<u8>>,
    /// What a line of raw output ends in that is added to it.
    pub separator: u8,
    /// The log of all items.
    pub joblog: Option<PathBuf>,
    /// The directory of all outputs.
    pub results: Option<PathBuf>,
    /// What runs, for the log.
    pub command: CommandShown,
}

/// What runs, as the log shows it.
#[derive(Debug, Clone)]
pub enum CommandShown {
    /// A command for each item.
    PerItem(Vec<Template>),
    /// The same for all.
    Text(String),
}

/// Why something beside the output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct RecordError {
    path: PathBuf,
    source: io::Error,
}

/// See the file's head.
pub struct Recorder {
    recording: Recording,
    joblog: Option<Outlet>,
    /// A record that has begun.
    partial: Vec<u8>,
    raw: Vec<u8>,
    line: Vec<u8>,
}

/// What is read of a record.
#[derive(Deserialize)]
struct Record<'a> {
    seq: u64,
    items: Option<u32>,
    #[serde(borrow)]
    item: Option<Cow<'a, str>>,
    item_base64: Option<String>,
    #[serde(borrow)]
    args: Option<Vec<Cow<'a, str>>>,
    args_base64: Option<Vec<String>>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    exit: Option<i32>,
    signal: Option<i32>,
    #[serde(borrow)]
    output: Option<Cow<'a, str>>,
    output_base64: Option<String>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    stderr: Cow<'a, str>,
    #[serde(borrow)]
    worker: Option<Cow<'a, str>>,
    seconds: f64,
    started: Option<f64>,
}

impl Recorder {
    /// Makes the log and the directory: what cannot be written is found out before anything runs.
    ///
    /// # Errors
    /// What cannot be written.
    pub fn create(recording: Recording) -> Result<Self, RecordError> {
        let failed = |path: &Path, source| RecordError { path: path.to_owned(), source };
        let mut joblog = None;
        if let Some(path) = &recording.joblog {
            let file = File::create(path).map_err(|source| failed(path, source))?;
            let mut outlet = Outlet::new(file, false);
            let head: &[u8] =
                b"Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n";
            let written = outlet.write(head).and_then(|()| outlet.flush());
            written.map_err(|source| failed(path, source))?;
            joblog = Some(outlet);
        }
        if let Some(path) = &recording.results {
            fs::create_dir_all(path).map_err(|source| failed(path, source))?;
        }
        let (partial, raw, line) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { recording, joblog, partial, raw, line })
    }

    /// Whether the output is the records themselves.
    pub(super) fn is_json(&self) -> bool {
        self.recording.json
    }

    /// Takes the next bytes of records; `each` gets what is output of them.
    ///
    /// # Errors
    /// Those of `each`, and what cannot be written otherwise.
    pub(super) fn feed<E: From<RecordError>>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end + 1);
            bytes = rest;
            if self.partial.is_empty() {
                self.record(line, &mut each)?;
            } else {
                let mut partial = std::mem::take(&mut self.partial);
                partial.extend_from_slice(line);
                self.record(&partial, &mut each)?;
                partial.clear();
                self.partial = partial;
            }
        }
        self.partial.extend_from_slice(bytes);
        if let (Some(joblog), Some(path)) = (&mut self.joblog, &self.recording.joblog) {
            joblog.flush().map_err(|source| RecordError { path: path.clone(), source })?;
        }
        Ok(())
    }

    fn record<E: From<RecordError>>(
        &mut self,
        line: &[u8],
        each: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Recording { json, tag, .. } = self.recording;
        let record: Record<'_> = match serde_json::from_slice(line) {
            Ok(record) => record,
            // Of another make: it is passed on as it is.
            Err(_) => return each(line),
        };
        let output = record.output();
        self.note(&record, &output)?;
        if json {
            return match memchr::memmem::rfind(line, STARTED) {
                Some(at) => {
                    each(&line[..at])?;
                    each(b"}\n")
                }
                None => each(line),
            };
        }
        let mut raw = std::mem::take(&mut self.raw);
        raw.clear();
        let is_ok = record.status == "ok";
        // Without a process there is one result for each item, which ends as the items do.
        let is_framed = record.exit.is_none();
        let end = if record.value.is_some() { b'\n' } else { self.recording.separator };
        if is_ok {
            raw.extend_from_slice(&output);
            if is_framed {
                raw.push(end);
            }
        } else if let Some(fill) = &self.recording.fill {
            raw.extend_from_slice(fill);
            raw.push(self.recording.separator);
        }
        let written = match tag {
            false if raw.is_empty() => Ok(()),
            false => each(&raw),
            true => {
                let mut head = record.item();
                head.to_mut().push(b'\t');
                let mut tagged = Vec::with_capacity(raw.len() + head.len());
                for line in raw.split_inclusive(|&byte| byte == self.recording.separator) {
                    tagged.extend_from_slice(&head);
                    tagged.extend_from_slice(line);
                }
                each(&tagged)
            }
        };
        self.raw = raw;
        written
    }

    /// Writes what goes to the log and the directory.
    fn note(&mut self, record: &Record<'_>, output: &[u8]) -> Result<(), RecordError> {
        let Recording { joblog: path, results, command, .. } = &self.recording;
        if let (Some(joblog), Some(path)) = (&mut self.joblog, path) {
            self.line.clear();
            record.push_log_line(&mut self.line, command, output.len());
            let written = joblog.write(&self.line);
            written.map_err(|source| RecordError { path: path.clone(), source })?;
        }
        let Some(results) = results else { return Ok(()) };
        let mut directory = results.clone();
        for (number, column) in (1..).zip(record.columns()) {
            directory.push(format!("{number}"));
            directory.push(directory_name(&column));
        }
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            let written = File::create(&path).and_then(|mut file| file.write_all(bytes));
            written.map_err(|source| RecordError { path, source })
        };
        fs::create_dir_all(&directory)
            .map_err(|source| RecordError { path: directory.clone(), source })?;
        write("seq", record.seq.to_string().as_bytes())?;
        write("stdout", output)?;
        write("stderr", record.stderr.as_bytes())
    }
}

/// What a good record is in raw output.
///
/// # Errors
/// If it is no record.
pub fn raw_output(record: &str, separator: u8) -> Result<Vec<u8>, serde_json::Error> {
    let record: Record<'_> = serde_json::from_str(record)?;
    let mut raw = record.output().into_owned();
    if record.exit.is_none() {
        raw.push(if record.value.is_some() { b'\n' } else { separator });
    }
    Ok(raw)
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("recording", &self.recording).finish_non_exhaustive()
    }
}

impl Record<'_> {
    fn output(&self) -> Cow<'_, [u8]> {
        match (&self.output, &self.output_base64, self.value) {
            (Some(text), ..) => Cow::Borrowed(text.as_bytes()),
            (None, Some(text), _) => Cow::Owned(BASE64.decode(text).unwrap_or_default()),
            // What stands for a failed item is no value.
            (None, None, Some(value)) if self.status == "ok" => {
                Cow::Borrowed(value.get().as_bytes())
            }
            _ => Cow::Borrowed(&[]),
        }
    }

    fn item(&self) -> Cow<'_, [u8]> {
        match (&self.item, &self.item_base64) {
            (Some(text), _) => Cow::Borrowed(text.as_bytes()),
            (None, Some(text)) => Cow::Owned(BASE64.decode(text).unwrap_or_default()),
            (None, None) => Cow::Borrowed(&[]),
        }
    }

    fn columns(&self) -> Vec<Cow<'_, [u8]>> {
        match (&self.args, &self.args_base64) {
            (Some(args), _) => args.iter().map(|text| Cow::Borrowed(text.as_bytes())).collect(),
            (None, Some(args)) => args
                .iter()
                .map(|text| Cow::Owned(BASE64.decode(text).unwrap_or_default()))
                .collect(),
            (None, None) => vec![self.item()],
        }
    }

    fn push_log_line(&self, line: &mut Vec<u8>, command: &CommandShown, received: usize) {
        let host = self.worker.as_deref().unwrap_or(":");
        let started = self.started.unwrap_or_default();
        // One that was ended, or never ran, has no exit status.
        let exit = match (self.status.as_ref(), self.exit, self.signal) {
            (_, Some(exit), _) => exit,
            ("ok", ..) | (_, None, Some(_)) => 0,
            _ => -1,
        };
        let signal = self.signal.unwrap_or(0);
        let text = format!(
            "{}\t{host}\t{started:.3}\t{:10.3}\t0\t{received}\t{exit}\t{signal}\t",
            self.seq, self.seconds
        );
        line.extend_from_slice(text.as_bytes());
        let start = line.len();
        match command {
            CommandShown::Text(text) => line.extend_from_slice(text.as_bytes()),
            CommandShown::PerItem(argv) => {
                let (item, columns) = (self.item(), self.columns());
                let columns: Vec<_> = columns.iter().map(AsRef::as_ref).collect();
                let fill = Fill { item: &item, columns: &columns, sequence: self.seq, slot: 0 };
                for (index, argument) in argv.iter().enumerate() {
                    if index > 0 {
                        line.push(b' ');
                    }
                    argument.fill(&fill, line);
                }
            }
        }
        if let Some(items) = self.items {
            let block = format!(" (items {} to {})", self.seq, self.seq + u64::from(items) - 1);
            line.extend_from_slice(block.as_bytes());
        }
        // A log has one line for each.
        for byte in &mut line[start..] {
            if *byte == b'\n' {
                *byte = b' ';
            }
        }
        line.push(b'\n');
    }
}

/// A column as the name of a directory.
fn directory_name(column: &[u8]) -> PathBuf {
    let mut name = Vec::new();
    for &byte in column {
        match byte {
            b'\\' => name.extend_from_slice(b"\\\\"),
            b'/' => name.extend_from_slice(b"\\_"),
            b'\t' => name.extend_from_slice(b"\\t"),
            0 => name.extend_from_slice(b"\\0"),
            byte => name.push(byte),
        }
    }
    match name.as_slice() {
        // These would be other directories. A single backslash begins no name of another column.
        b"" | b"." | b".." => name.insert(0, b'\\'),
        long if long.len() > NAME_BYTES_MAX => {
            name.truncate(NAME_BYTES_MAX);
            let hash = blake3::hash(column).to_hex();
            name.extend_from_slice(b"\\~");
            name.extend_from_slice(&hash.as_bytes()[..16]);
        }
        _ => {}
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use widemap_common::template::Syntax;

    const OK: &str = concat!(
        r#"{"seq":1,"item":"a/b","args":["a/b"],"status":"ok","exit":0,"signal":null,"error":null,"#,
        r#""output":"x\ny","stderr":"e\n","worker":"ann","attempts":1,"seconds":0.5,"started":12.25}"#,
        "\n"
    );
    const FAILED: &str = concat!(
        r#"{"seq":2,"item":"..","args":[".."],"status":"error","exit":3,"signal":null,"error":"no","#,
        r#""output":"","stderr":"","worker":"ann","attempts":2,"seconds":1.0,"started":13.0}"#,
        "\n"
    );
    const VALUE: &str = concat!(
        r#"{"seq":3,"item":"[1, 2]","args":["[1, 2]"],"status":"ok","exit":null,"signal":null,"error":null,"#,
        r#""value":{"a":",\"started\":"},"stderr":"","worker":"bob","attempts":1,"seconds":0.0,"started":14.0}"#,
        "\n"
    );

    fn recording() -> Recording {
        let command =
            CommandShown::PerItem(Template::command(&[b"cat".to_vec()], Syntax::default()));
        Recording {
            json: false,
            tag: false,
            fill: None,
            separator: b'\n',
            joblog: None,
            results: None,
            command,
        }
    }

    /// What is output of all three records, which come in parts.
    fn output(recording: Recording) -> String {
        let mut recorder = Recorder::create(recording).unwrap();
        let mut out = Vec::new();
        let records = [OK, FAILED, VALUE].concat();
        for part in records.as_bytes().chunks(7) {
            let each = |bytes: &[u8]| {
                out.extend_from_slice(bytes);
                Ok::<_, RecordError>(())
            };
            recorder.feed(part, each).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn raw_output_comes_of_records_as_it_was() {
        assert_eq!(output(recording()), "x\ny{\"a\":\",\\\"started\\\":\"}\n");
        let filled = Recording { fill: Some(b"-".to_vec()), ..recording() };
        assert_eq!(output(filled), "x\ny-\n{\"a\":\",\\\"started\\\":\"}\n");
        let tagged = Recording { tag: true, fill: Some(b"-".to_vec()), ..recording() };
        let want = "a/b\tx\na/b\ty..\t-\n[1, 2]\t{\"a\":\",\\\"started\\\":\"}\n";
        assert_eq!(output(tagged), want);
        let json = output(Recording { json: true, ..recording() });
        let want = [OK, FAILED, VALUE].concat();
        let want = want.replace(",\"started\":12.25", "").replace(",\"started\":13.0}", "}");
        assert_eq!(json, want.replace(",\"started\":14.0}", "}"));
    }

    #[test]
    fn the_log_and_the_directory_are_as_those_of_gnu_parallel() {
        let directory = tempfile::tempdir().unwrap();
        let (log, results) = (directory.path().join("log"), directory.path().join("out"));
        let recording =
            Recording { joblog: Some(log.clone()), results: Some(results.clone()), ..recording() };
        output(recording);
        let log = fs::read_to_string(log).unwrap();
        let want = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n\
                    1\tann\t12.250\t     0.500\t0\t3\t0\t0\tcat a/b\n\
                    2\tann\t13.000\t     1.000\t0\t0\t3\t0\tcat ..\n\
                    3\tbob\t14.000\t     0.000\t0\t21\t0\t0\tcat [1, 2]\n";
        assert_eq!(log, want);
        let read = |name: &str| fs::read_to_string(results.join(name)).unwrap();
        assert_eq!(read("1/a\\_b/stdout"), "x\ny");
        assert_eq!((read("1/a\\_b/stderr"), read("1/a\\_b/seq")), ("e\n".into(), "1".into()));
        assert_eq!(read("1/\\../stdout"), "");
        assert_eq!(directory_name(&[b'x'; 300]).as_os_str().len(), NAME_BYTES_MAX + 18);
    }
}
