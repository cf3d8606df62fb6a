//! `widemap repair`: runs what failed of a map once more, and puts the results into its output, in their places.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::Value;
use widemap_common::framing::Framing;
use widemap_proto::jobs::Submission;

use super::argv::List;
use super::options::{Format, RepairArgs};
use super::{complain, map};
use crate::data::{self, OutputFile};
use crate::error::MapError;
use crate::{exit, say};

/// What is read of a line of failures.
#[derive(Deserialize)]
struct Failure {
    seq: u64,
    offset: u64,
    function: String,
    output_bytes: Option<u64>,
    output_blake3: Option<String>,
}

/// What is read of a record.
#[derive(Deserialize)]
struct Outcome {
    seq: u64,
    status: String,
}

/// Runs `widemap repair`.
pub(crate) fn run(args: RepairArgs, lists: &[List]) -> ExitCode {
    match repair(args, lists) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            complain(&error, error.hint());
            ExitCode::from(error.status())
        }
    }
}

fn repair(args: RepairArgs, lists: &[List]) -> Result<u8, MapError> {
    let RepairArgs { failed: failures, whole: output, mut map } = args;
    let bad = |problem: String| MapError::Repair { output: output.clone(), problem };
    let is_json = map.job.format == Format::Json;
    let fill = map.job.fill.take();
    if let Some(list) = lists.first() {
        return Err(bad(format!(
            "{} is not for repair: the items are those that failed",
            list.sign
        )));
    }
    refuse(&map, &bad)?;
    let lines = read_lines(&failures)?;
    let failed = lines.iter().map(|line| parse(line, &failures)).collect::<Result<Vec<_>, _>>()?;
    if failed.is_empty() {
        say::line("widemap: nothing failed: there is nothing to repair");
        return Ok(exit::OK);
    }
    unchanged(&failed, &output, &bad)?;
    // What is run again leaves its results in records, beside the output.
    let directory = output.parent().filter(|path| !path.as_os_str().is_empty());
    let scratch = tempfile::Builder::new()
        .prefix(".widemap-repair-")
        .tempdir_in(directory.unwrap_or(Path::new(".")))
        .map_err(|error| bad(format!("cannot make a directory beside it: {error}")))?;
    let (records, again) = (scratch.path().join("records"), scratch.path().join("failures"));
    map.job.from_failures = Some(failures.clone());
    map.job.format = Format::Json;
    map.output = Some(records.clone());
    map.failures = Some(again.clone());
    let separator = map.job.delimiter.unwrap_or(if map.job.null { 0 } else { b'\n' });
    let same = |submission: &Submission| same_function(&failed, submission, separator, &output);
    let status = map::run_checked(map, &same)?;
    if status != exit::OK && status != exit::ITEMS_FAILED {
        return Ok(status);
    }
    let results = read_records(&records, failed.len())?;
    let still = read_lines(&again)?;
    let fill = fill.map(|fill| {
        let mut line = std::os::unix::ffi::OsStringExt::into_vec(fill);
        line.push(separator);
        line
    });
    let written = write(&Splice {
        output: &output,
        failed: &failed,
        results: &results,
        fill: fill.as_deref(),
        separator,
        is_json,
    });
    let (file, offsets) = written.map_err(|error| bad(error.to_string()))?;
    let place = file.path().to_owned();
    file.commit()?;
    rewrite(&failures, &lines, &failed, &still, &offsets, &place)?;
    let repaired = failed.len() - still.len();
    say::line(&format!(
        "widemap: {repaired} of {} repaired in {}{}",
        failed.len(),
        output.display(),
        match still.len() {
            0 => String::new(),
            left => format!("; {left} failed again: {}", failures.display()),
        }
    ));
    Ok(status)
}

/// What cannot be repaired.
fn refuse(
    map: &super::options::MapArgs,
    bad: &impl Fn(String) -> MapError,
) -> Result<(), MapError> {
    let job = &map.job;
    let said = [
        (job.pipe, "--pipe", "a block has no place of its own items'"),
        (job.wasm.is_some(), "--wasm", "a block has no place of its own items'"),
        (job.unordered, "--unordered", "results have no place there"),
        (job.tag, "--tag", "results are not as they were printed"),
        (map.journal.is_some(), "--journal", "it goes on by itself: --resume"),
        (map.records.is_any(), "--joblog or --results", "they are of the map itself"),
        (!job.input.is_empty(), "-a", "the items are those that failed"),
        (job.from_failures.is_some(), "--from-failures", "the items are those that failed"),
        (map.output.is_some(), "--output", "the output is repaired where it lies"),
        (map.failures.is_some(), "--failures", "what fails again stays in the file that was named"),
        (
            map.job.dry_run,
            "--dry-run",
            "map --dry-run --from-failures FAILURES prints the commands",
        ),
    ];
    let said = said.into_iter().find(|(is, ..)| *is);
    said.map_or(Ok(()), |(_, flag, why)| Err(bad(format!("{flag} is not for repair: {why}"))))
}

fn read_lines(path: &Path) -> Result<Vec<String>, MapError> {
    let text = std::fs::read_to_string(path).map_err(|error| MapError::FromFailures {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn parse(line: &str, path: &Path) -> Result<Failure, MapError> {
    serde_json::from_str(line).map_err(|error| MapError::FromFailures {
        path: path.to_owned(),
        problem: format!("it is not what --failures wrote: {error}"),
    })
}

/// Whether the output is the one that the failures are of.
fn unchanged(
    failed: &[Failure],
    output: &Path,
    bad: &impl Fn(String) -> MapError,
) -> Result<(), MapError> {
    let first = &failed[0];
    let (Some(bytes), Some(hash)) = (first.output_bytes, &first.output_blake3) else {
        return Err(bad(
            "the failures do not say what it was, as where a map writes to a pipe, or with --tag or \
             --unordered: write with --output FILE, or > FILE"
                .to_owned(),
        ));
    };
    let told = file_hash(output).map_err(|error| bad(error.to_string()))?;
    if told != (bytes, hash.clone()) {
        return Err(bad(format!(
            "it is not as the map left it ({bytes} bytes then, {} now)",
            told.0
        )));
    }
    let ordered = failed.windows(2).all(|pair| {
        pair[0].seq < pair[1].seq && pair[0].offset <= pair[1].offset && pair[1].offset <= bytes
    });
    match ordered {
        true => Ok(()),
        false => Err(bad("the failures are not in the order of the items".to_owned())),
    }
}

/// How many bytes a file has, and their hash.
pub(super) fn file_hash(path: &Path) -> io::Result<(u64, String)> {
    let mut hash = blake3::Hasher::new();
    let bytes = io::copy(&mut File::open(path)?, &mut hash)?;
    Ok((bytes, hash.finalize().to_hex().to_string()))
}

/// Whether the function is the one that failed. How items lie in what is sent is another thing when they come
/// from a file of failures.
fn same_function(
    failed: &[Failure],
    submission: &Submission,
    separator: u8,
    output: &Path,
) -> Result<(), MapError> {
    let framings = [Framing::Separator(separator), Framing::LengthPrefixed, Framing::Columns];
    let digests = framings.map(|framing| {
        let mut spec = submission.spec.clone();
        spec.framing = framing;
        data::function_digest(&spec)
    });
    match failed.iter().all(|failure| digests.contains(&failure.function)) {
        true => Ok(()),
        false => Err(MapError::Repair {
            output: output.to_owned(),
            problem: "the function is another than the one that failed".to_owned(),
        }),
    }
}

/// What became of each item, by its place among those that failed.
fn read_records(path: &Path, items: usize) -> Result<Vec<String>, MapError> {
    let lines = read_lines(path)?;
    let mut records = vec![String::new(); items];
    for line in lines {
        let outcome: Outcome = serde_json::from_str(&line).map_err(|error| {
            MapError::FromFailures { path: path.to_owned(), problem: error.to_string() }
        })?;
        let index = usize::try_from(outcome.seq).ok().and_then(|seq| seq.checked_sub(1));
        if let Some(record) = index.and_then(|index| records.get_mut(index)) {
            *record = if outcome.status == "ok" { line } else { String::new() };
        }
    }
    Ok(records)
}

/// What goes where.
struct Splice<'a> {
    output: &'a Path,
    failed: &'a [Failure],
    /// The record of each, empty if it failed again.
    results: &'a [String],
    fill: Option<&'a [u8]>,
    separator: u8,
    is_json: bool,
}

/// Writes the output anew. Where each item's bytes are then.
fn write(splice: &Splice<'_>) -> io::Result<(OutputFile, Vec<u64>)> {
    let file = OutputFile::create(splice.output).map_err(io::Error::other)?;
    let mut to = BufWriter::new(file.file());
    let mut from = BufReader::new(File::open(splice.output)?);
    let offsets = match splice.is_json {
        true => write_json(splice, &mut from, &mut to)?,
        false => write_raw(splice, &mut from, &mut to)?,
    };
    to.flush()?;
    drop(to);
    Ok((file, offsets))
}

fn write_raw(
    splice: &Splice<'_>,
    from: &mut BufReader<File>,
    to: &mut impl Write,
) -> io::Result<Vec<u64>> {
    let (mut read, mut written) = (0, 0);
    let mut offsets = Vec::new();
    for (failure, record) in splice.failed.iter().zip(splice.results) {
        let good = failure.offset - read;
        written += io::copy(&mut from.by_ref().take(good), to)?;
        read = failure.offset;
        offsets.push(written);
        if let Some(fill) = splice.fill {
            let mut there = vec![0; fill.len()];
            from.read_exact(&mut there)?;
            if there != fill {
                return Err(io::Error::other(format!(
                    "--fill is another than it was: byte {} is of something else",
                    failure.offset
                )));
            }
            read += fill.len() as u64;
        }
        let bytes = match (record.is_empty(), splice.fill) {
            (false, _) => data::raw_output(record, splice.separator).map_err(io::Error::other)?,
            (true, Some(fill)) => fill.to_vec(),
            (true, None) => Vec::new(),
        };
        to.write_all(&bytes)?;
        written += bytes.len() as u64;
    }
    io::copy(from, to)?;
    Ok(offsets)
}

fn write_json(
    splice: &Splice<'_>,
    from: &mut BufReader<File>,
    to: &mut impl Write,
) -> io::Result<Vec<u64>> {
    let places: HashMap<u64, usize> =
        (0..).zip(splice.failed).map(|(index, failure)| (failure.seq, index)).collect();
    let mut line = String::new();
    while from.read_line(&mut line)? > 0 {
        let outcome: Outcome = serde_json::from_str(&line)?;
        let record = places.get(&outcome.seq).map(|&index| &splice.results[index]);
        match record.filter(|record| !record.is_empty()) {
            Some(record) => {
                // The number of the item is the first thing that a record says.
                let rest = record.split_once(',').map_or("}", |(_, rest)| rest);
                writeln!(to, "{{\"seq\":{},{rest}", outcome.seq)?;
            }
            None => to.write_all(line.as_bytes())?,
        }
        line.clear();
    }
    Ok(splice.failed.iter().map(|failure| failure.offset).collect())
}

/// Leaves in the file of failures what failed again, with where its bytes would be now.
fn rewrite(
    failures: &Path,
    lines: &[String],
    failed: &[Failure],
    still: &[String],
    offsets: &[u64],
    output: &Path,
) -> Result<(), MapError> {
    let bad = |error: String| MapError::FromFailures { path: failures.to_owned(), problem: error };
    let (bytes, hash) = file_hash(output).map_err(|error| bad(error.to_string()))?;
    let mut text = String::new();
    for line in still {
        let mut value: Value =
            serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
        let index = value["seq"].as_u64().and_then(|seq| usize::try_from(seq).ok()?.checked_sub(1));
        let Some(index) = index.filter(|&index| index < lines.len()) else { continue };
        value["seq"] = failed[index].seq.into();
        value["offset"] = offsets[index].into();
        value["function"] = failed[index].function.clone().into();
        value["output_bytes"] = bytes.into();
        value["output_blake3"] = hash.clone().into();
        text.push_str(&value.to_string());
        text.push('\n');
    }
    let file = OutputFile::create(failures).map_err(|error| bad(error.to_string()))?;
    file.file().write_all(text.as_bytes()).map_err(|error| bad(error.to_string()))?;
    file.commit().map_err(|error| bad(error.to_string()))
}
