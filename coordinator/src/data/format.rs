//! How results and failures are written: raw, or one JSON object a line (cli.md, "Out").

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use serde_json::value::RawValue;
use widemap_common::framing::{Framing, LINES};
use widemap_common::varint;

use super::frames;
use super::report::{FailureRecord, Results};

/// How results are written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Format {
    /// The bytes that were printed, nothing added; for a failed item nothing, or this line.
    Raw {
        /// `--fill`, without the separator that it ends in.
        fill: Option<Vec<u8>>,
    },
    /// One JSON object a line for each item, or each block.
    Json,
    /// One frame for each item.
    Frames,
    /// The same, and when it began: what a [`super::Recorder`] makes other things of, the line of a failed item
    /// among them.
    Records {
        /// As of [`Format::Raw`].
        fill: Option<Vec<u8>>,
    },
}

impl Format {
    /// Whether something is made of each result: a line of JSON, or a frame.
    #[must_use]
    pub fn is_made(&self) -> bool {
        !matches!(self, Self::Raw { .. })
    }

    /// Whether it says when items began.
    #[must_use]
    pub fn has_times(&self) -> bool {
        matches!(self, Self::Records { .. })
    }

    /// The line that stands for a failed item in raw output, without its end.
    #[must_use]
    pub fn fill(&self) -> Option<&[u8]> {
        match self {
            Self::Raw { fill } | Self::Records { fill } => fill.as_deref(),
            Self::Json | Self::Frames => None,
        }
    }
}

/// What the bytes of results are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// How items lie in the input.
    pub input: Framing,
    /// What a process printed, as it is; or one framed result for each item.
    pub results: ResultShape,
    /// Whether the unit is a block.
    pub is_block_wise: bool,
}

/// How results lie in the output of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResultShape {
    /// What a process printed: never touched.
    Printed,
    /// One result for each item, framed as the items are.
    Framed(Framing),
    /// One value of JSON for each item, a line each.
    Json,
}

/// What a line of JSON says, in its order. Bytes that are not UTF-8 are put in base64.
#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Vec<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args_base64: Option<Vec<String>>,
    status: &'static str,
    exit: Option<i32>,
    signal: Option<i32>,
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
    stderr: Cow<'a, str>,
    worker: Option<&'a str>,
    attempts: u32,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// Unix time in seconds. The last field of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<f64>,
}

/// The bytes that results are in raw output. `output` is theirs alone.
pub(super) fn raw_bytes(shape: Shape, results: &Results, output: &[u8]) -> u64 {
    let bytes = output.len() as u64;
    match shape.results {
        // There each ends in a separator, and has no length before it.
        ResultShape::Framed(Framing::LengthPrefixed | Framing::Columns) => {
            bytes.saturating_sub(3 * u64::from(results.range.items))
        }
        ResultShape::Framed(Framing::Separator(_)) | ResultShape::Printed | ResultShape::Json => {
            bytes
        }
    }
}

/// Appends what is made of each result. `output` is theirs alone, in order.
pub(super) fn push_results(
    out: &mut Vec<u8>,
    format: &Format,
    shape: Shape,
    results: &Results,
    output: &[u8],
) {
    match format {
        Format::Frames => frames::push_results(out, shape, results, output),
        _ => push_lines(out, shape, results, output),
    }
}

fn push_lines(out: &mut Vec<u8>, shape: Shape, results: &Results, output: &[u8]) {
    if shape.is_block_wise {
        let micros = varint::iter(&results.item_micros).next().unwrap_or(results.busy_us);
        let stderr = results.stderr.first().map_or(&[][..], |told| &told.data);
        let mut line = good_line(shape, results, 0, stderr, micros);
        line.items = Some(results.range.items);
        line.exit = line.exit.and(exits(results).next());
        line.started = started(results.ended_us, micros);
        (line.output, line.output_base64) = text_or_base64(output);
        return push_line(out, &line);
    }
    let mut lengths = varint::iter(&results.item_lengths);
    let mut micros = varint::iter(&results.item_micros);
    let mut exits = exits(results);
    let mut stderr = results.stderr.iter().peekable();
    // They ran one after the other.
    let mut left_us: u64 = varint::iter(&results.item_micros).sum();
    let average = results.busy_us / u64::from(results.range.items);
    let mut rest = output;
    for (index, item) in (0..).zip(shape.input.items(&results.input)) {
        let is_last = index + 1 == results.range.items;
        let length = match (lengths.next(), shape.results) {
            (Some(length), _) => usize::try_from(length).unwrap_or(usize::MAX),
            (None, ResultShape::Framed(framing)) => framing.offset_of(rest, 1),
            (None, ResultShape::Json) => LINES.offset_of(rest, 1),
            (None, ResultShape::Printed) if is_last => rest.len(),
            (None, ResultShape::Printed) => 0,
        };
        let (own, others) = rest.split_at(length.min(rest.len()));
        rest = others;
        let told = stderr.next_if(|told| told.index == index);
        let told = told.map_or(&[][..], |told| &told.data);
        let own_us = micros.next().unwrap_or(average);
        let mut line = good_line(shape, results, index, told, own_us);
        line.exit = line.exit.and(exits.next());
        line.started = started(results.ended_us, left_us);
        left_us = left_us.saturating_sub(own_us);
        line.name_item(shape.input, item);
        let own = without_framing(shape.results, own);
        line.value = value(shape.results, own);
        if line.value.is_none() {
            (line.output, line.output_base64) = text_or_base64(own);
        }
        push_line(out, &line);
    }
}

/// Appends what stands for a failed item in the output.
pub(super) fn push_failure(
    out: &mut Vec<u8>,
    format: &Format,
    shape: Shape,
    record: &FailureRecord,
) {
    let mut line = failure_line(shape, record);
    if *format == Format::Frames {
        // Whoever reads it has the item.
        (line.item, line.item_base64, line.args) = (None, None, None);
        return frames::push_failure(out, record.range.first, |out| push_line(out, &line));
    }
    line.started = started(record.ended_us, record.micros);
    match shape.results {
        ResultShape::Json => line.value = Some(RawValue::NULL),
        _ => line.output = Some(""),
    }
    push_line(out, &line);
}

/// Appends a line of the failures file: `offset` is where the item's bytes would be in raw output.
pub(super) fn push_failures_file_line(
    out: &mut Vec<u8>,
    shape: Shape,
    record: &FailureRecord,
    offset: u64,
    function: &str,
) {
    let mut line = failure_line(shape, record);
    line.offset = Some(offset);
    line.function = Some(function);
    push_line(out, &line);
}

/// Appends what the journal keeps of a failed item: a line of the failures file without its end, which
/// says where the item's bytes would be in the output. That is known only when it is read.
pub(super) fn push_failure_record(
    out: &mut Vec<u8>,
    shape: Shape,
    record: &FailureRecord,
    function: &str,
) {
    let mut line = failure_line(shape, record);
    line.function = Some(function);
    push_line(out, &line);
    out.truncate(out.len() - "}\n".len());
}

/// The line of the failures file that a record of the journal stands for.
pub(crate) fn failures_file_line(record: &[u8], offset: u64) -> Vec<u8> {
    let mut line = record.to_vec();
    line.extend_from_slice(format!(",\"offset\":{offset}}}\n").as_bytes());
    line
}

fn good_line<'a>(
    shape: Shape,
    results: &'a Results,
    index: u32,
    stderr: &'a [u8],
    micros: u64,
) -> Line<'a> {
    Line {
        seq: results.range.first + u64::from(index) + 1,
        items: None,
        item: None,
        item_base64: None,
        args: None,
        args_base64: None,
        status: "ok",
        exit: (shape.results == ResultShape::Printed).then_some(0),
        signal: None,
        error: None,
        output: None,
        output_base64: None,
        value: None,
        stderr: String::from_utf8_lossy(stderr),
        worker: Some(&results.worker),
        attempts: results.runs,
        seconds: seconds(micros),
        offset: None,
        function: None,
        started: None,
    }
}

/// The exit status of each item.
fn exits(results: &Results) -> impl Iterator<Item = i32> {
    let told = varint::iter(&results.item_exits);
    told.map(|status| i32::try_from(status).unwrap_or_default()).chain(std::iter::repeat(0))
}

/// When an item began that ended then, or so long before: Unix time in seconds.
fn started(ended_us: Option<u64>, before_us: u64) -> Option<f64> {
    ended_us.map(|ended_us| seconds(ended_us.saturating_sub(before_us)))
}

fn failure_line(shape: Shape, record: &FailureRecord) -> Line<'_> {
    let mut line = Line {
        seq: record.range.first + 1,
        items: shape.is_block_wise.then_some(record.range.items),
        item: None,
        item_base64: None,
        args: None,
        args_base64: None,
        status: record.kind.name(),
        exit: record.exit,
        signal: record.signal,
        error: Some(&record.message),
        output: None,
        output_base64: None,
        value: None,
        stderr: String::from_utf8_lossy(&record.stderr),
        worker: record.worker.as_deref(),
        attempts: record.runs,
        seconds: seconds(record.micros),
        offset: None,
        function: None,
        started: None,
    };
    if !shape.is_block_wise {
        line.name_item(shape.input, &record.item);
    }
    line
}

impl<'a> Line<'a> {
    /// Which item it is about, and of what it is made.
    fn name_item(&mut self, framing: Framing, item: &'a [u8]) {
        match framing.joined(item) {
            Cow::Borrowed(item) => {
                let (text, base64) = text_or_base64(item);
                (self.item, self.item_base64) = (text.map(Cow::Borrowed), base64);
            }
            Cow::Owned(item) => match String::from_utf8(item) {
                Ok(text) => self.item = Some(Cow::Owned(text)),
                Err(error) => self.item_base64 = Some(BASE64.encode(error.as_bytes())),
            },
        }
        let columns: Vec<_> = framing.columns(item).collect();
        let texts = columns.iter().map(|column| std::str::from_utf8(column).ok());
        self.args = texts.collect();
        if self.args.is_none() && framing == Framing::Columns {
            self.args_base64 = Some(columns.iter().map(|column| BASE64.encode(column)).collect());
        }
    }
}

fn push_line(out: &mut Vec<u8>, line: &Line<'_>) {
    serde_json::to_writer(&mut *out, line).expect("strings and numbers always can be JSON");
    out.push(b'\n');
}

fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(BASE64.encode(bytes))),
    }
}

/// What a function of Python has returned. NaN and the infinities, which Python writes all the same, are no
/// JSON: then there is none.
fn value(shape: ResultShape, output: &[u8]) -> Option<&RawValue> {
    let text = (shape == ResultShape::Json).then(|| std::str::from_utf8(output).ok())??;
    serde_json::from_str(text).ok()
}

pub(super) fn without_framing(shape: ResultShape, output: &[u8]) -> &[u8] {
    match shape {
        ResultShape::Printed => output,
        // Only its end is taken off: a result may have the separator within it.
        ResultShape::Framed(Framing::Separator(separator)) => {
            output.strip_suffix(&[separator]).unwrap_or(output)
        }
        ResultShape::Json => output.strip_suffix(b"\n").unwrap_or(output),
        ResultShape::Framed(Framing::LengthPrefixed | Framing::Columns) => {
            Framing::LengthPrefixed.items(output).next().unwrap_or_default()
        }
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}
