//! `--dry-run`: the commands, as a shell would read them, one a line, and nothing is run.

use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc;

use widemap_common::limits::PART_BYTES_MAX;
use widemap_common::spec::{Function, JobSpec};
use widemap_common::template::{Fill, Template};

use super::job::syntax;
use super::options::JobArgs;
use crate::data::{BlockRule, Input, Source};
use crate::error::MapError;

/// What is shown for each item.
enum Shown {
    /// A command.
    Words(Vec<Template>),
    /// A line for a shell.
    Line(Template),
    /// The same words, and the item.
    Call(Vec<Vec<u8>>),
}

/// Prints them.
///
/// # Errors
/// If the items cannot be read, or the commands not be written. That nobody reads them is none.
pub(super) fn run(args: &JobArgs, spec: &JobSpec, source: Source) -> Result<(), MapError> {
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = print(args, spec, source, &mut out).and_then(|()| out.flush().map_err(written));
    match printed {
        Err(MapError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

fn print(
    args: &JobArgs,
    spec: &JobSpec,
    source: Source,
    out: &mut impl Write,
) -> Result<(), MapError> {
    let syntax = syntax(args, spec.framing);
    let shown = match &spec.function {
        Function::Exec { .. } if args.shell => match args.command.first() {
            Some(line) => Shown::Line(Template::line(line.as_bytes(), syntax)),
            None => Shown::Line(Template::parse(syntax.item, syntax)),
        },
        Function::Exec { argv } => Shown::Words(argv.clone()),
        // One that is given its items has the same command for all.
        Function::Filter { argv } | Function::Pipe { argv } => {
            let argv: Vec<_> = argv.iter().map(|word| Template::literal(word)).collect();
            let fill = Fill { item: b"", columns: &[], sequence: 1, slot: 1 };
            return line(&Shown::Words(argv), &fill, out);
        }
        Function::Wasm(wasm) => {
            let call = Shown::Words(vec![Template::literal(&wasm.path)]);
            let fill = Fill { item: b"", columns: &[], sequence: 1, slot: 1 };
            return line(&call, &fill, out);
        }
        Function::Python(python) => {
            let name = [&python.path, &b":"[..], python.function.as_bytes()].concat();
            Shown::Call(vec![name])
        }
        Function::Builtin { name } => Shown::Call(vec![name.as_bytes().to_vec()]),
    };
    let (wake, woken) = mpsc::sync_channel(1);
    let notify = move || {
        // One that is full has the news already.
        let _ = wake.try_send(());
    };
    let mut input = Input::open(source, spec.framing, BlockRule::ItemWise, notify)?;
    let mut sequence = 0;
    while !input.is_exhausted() {
        if let Some(error) = input.take_error() {
            return Err(error.into());
        }
        input.poll();
        while let Some(chunk) = input.cut(u32::MAX, PART_BYTES_MAX as u64) {
            for item in spec.framing.items(&chunk.bytes) {
                sequence += 1;
                let columns: Vec<_> = spec.framing.columns(item).collect();
                let item = spec.framing.joined(item);
                let fill = Fill { item: &item, columns: &columns, sequence, slot: 1 };
                line(&shown, &fill, out)?;
            }
        }
        if !input.is_exhausted() && input.error().is_none() {
            // What arrives meanwhile is a message already.
            let _ = woken.recv();
        }
    }
    Ok(())
}

fn line(shown: &Shown, fill: &Fill<'_>, out: &mut impl Write) -> Result<(), MapError> {
    let mut text = Vec::new();
    match shown {
        Shown::Line(template) => template.fill_line(fill, &mut text),
        Shown::Words(argv) => {
            for (index, word) in argv.iter().enumerate() {
                if index > 0 {
                    text.push(b' ');
                }
                word.fill_quoted(fill, &mut text);
            }
        }
        Shown::Call(words) => {
            for word in words {
                Template::literal(word).fill_quoted(fill, &mut text);
                text.push(b' ');
            }
            let item = Template::literal(fill.item);
            item.fill_quoted(fill, &mut text);
        }
    }
    text.push(b'\n');
    out.write_all(&text).map_err(written)
}

fn written(error: io::Error) -> MapError {
    MapError::Print(error)
}
