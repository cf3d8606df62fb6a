//! What a worker must know of a job: the same in a session and in a submission.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use bytes::Bytes;
use widemap_common::artifact::JobFiles;
use widemap_common::framing::Framing;
use widemap_common::ids::JobId;
use widemap_common::limits::{NICE_MAX, PYTHON_SOURCE_BYTES_MAX, SLOTS_MAX, WASM_MODULE_BYTES_MAX};
use widemap_common::spec::{Directory, Function, JobSpec, Limits, Python, Wasm};
use widemap_common::template::{ITEM, Syntax, Template};

use super::artifact::{digest_from_wire, digest_to_wire, files_from_wire, files_to_wire};
use super::{Result, WireError};
use crate::wire;

pub(super) fn job_to_wire(job: JobId, spec: JobSpec) -> wire::OpenJob {
    use wire::framing::Kind;
    use wire::open_job::{Directory as WireDirectory, Function as WireFunction};
    let bytes = Bytes::from;
    wire::OpenJob {
        job: job.0,
        function: Some(match spec.function {
            Function::Exec { argv } => WireFunction::Exec(wire::Exec {
                literals: (0..)
                    .zip(&argv)
                    .filter_map(|(index, arg)| (!arg.has_placeholder()).then_some(index))
                    .collect(),
                item: argv
                    .iter()
                    .map(Template::item)
                    .find(|item| *item != ITEM)
                    .map_or_else(Bytes::new, Bytes::copy_from_slice),
                argv: argv.iter().map(|arg| Bytes::copy_from_slice(arg.text())).collect(),
            }),
            Function::Pipe { argv } => {
                WireFunction::Pipe(wire::Pipe { argv: argv.into_iter().map(bytes).collect() })
            }
            Function::Filter { argv } => {
                WireFunction::Filter(wire::Filter { argv: argv.into_iter().map(bytes).collect() })
            }
            Function::Python(python) => WireFunction::Python(python_to_wire(*python)),
            Function::Wasm(wasm) => WireFunction::Wasm(wire::Wasm {
                path: wasm.path.into(),
                digest: digest_to_wire(wasm.module),
                bytes: wasm.bytes,
            }),
            Function::Builtin { name } => WireFunction::Builtin(wire::Builtin { name }),
        }),
        framing: Some(wire::Framing {
            kind: Some(match spec.framing {
                Framing::Separator(byte) => Kind::Separator(byte.into()),
                Framing::LengthPrefixed => Kind::LengthPrefixed(true),
                Framing::Columns => Kind::Columns(true),
            }),
        }),
        directory: match spec.directory {
            Directory::Private => None,
            Directory::Inherit => Some(WireDirectory::Inherit(true)),
            Directory::Path(path) => Some(WireDirectory::Path(path.into())),
        },
        environment: spec
            .environment
            .into_iter()
            .map(|(name, value)| wire::Variable { name: name.into(), value: value.map(bytes) })
            .collect(),
        timeout_us: spec
            .timeout
            .map_or(0, |t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX).max(1)),
        max_output: spec.max_output,
        per_item: spec.per_item,
        ok_exit: spec.ok_exit.into_iter().map(u32::from).collect(),
        files: files_to_wire(&spec.files),
        limits: (spec.limits != Limits::default()).then(|| wire::Limits {
            memory: spec.limits.memory.map_or(0, NonZeroU64::get),
            cpu_seconds: spec.limits.cpu_seconds.map_or(0, NonZeroU32::get),
            nice: spec.limits.nice.into(),
        }),
        slots_per_item: match spec.slots_per_item.get() {
            1 => 0,
            slots => slots,
        },
    }
}

pub(super) fn job_from_wire(open: wire::OpenJob) -> Result<JobSpec> {
    use wire::framing::Kind;
    use wire::open_job::{Directory as WireDirectory, Function as WireFunction};
    let plain = |argv: Vec<Bytes>| match argv.is_empty() {
        true => Err(WireError::Field("argv")),
        false => Ok(argv.iter().map(|arg| arg.to_vec()).collect::<Vec<_>>()),
    };
    let files = files_from_wire(open.files)?;
    let framing = match open.framing.and_then(|framing| framing.kind) {
        Some(Kind::Separator(byte)) => {
            let byte = u8::try_from(byte).map_err(|_| WireError::Field("Framing.separator"))?;
            Framing::Separator(byte)
        }
        Some(Kind::LengthPrefixed(_)) => Framing::LengthPrefixed,
        Some(Kind::Columns(_)) => Framing::Columns,
        None => return Err(WireError::Field("OpenJob.framing")),
    };
    Ok(JobSpec {
        function: match open.function.ok_or(WireError::UnknownKind)? {
            WireFunction::Exec(exec) => Function::Exec { argv: exec_from_wire(&exec, framing)? },
            WireFunction::Pipe(pipe) => Function::Pipe { argv: plain(pipe.argv)? },
            WireFunction::Filter(filter) => Function::Filter { argv: plain(filter.argv)? },
            WireFunction::Python(python) => Function::Python(Box::new(python_from_wire(python)?)),
            WireFunction::Wasm(wasm) => Function::Wasm(wasm_from_wire(&wasm, &files)?),
            WireFunction::Builtin(builtin) => Function::Builtin { name: builtin.name },
        },
        framing,
        directory: match open.directory {
            None => Directory::Private,
            Some(WireDirectory::Inherit(_)) => Directory::Inherit,
            Some(WireDirectory::Path(path)) => Directory::Path(path.to_vec()),
        },
        environment: open
            .environment
            .into_iter()
            .map(|v| (v.name.to_vec(), v.value.map(|value| value.to_vec())))
            .collect(),
        files,
        timeout: (open.timeout_us > 0).then(|| Duration::from_micros(open.timeout_us)),
        max_output: open.max_output,
        limits: open.limits.map(limits_from_wire).transpose()?.unwrap_or_default(),
        slots_per_item: NonZeroU32::new(open.slots_per_item.max(1))
            .filter(|slots| slots.get() <= SLOTS_MAX)
            .ok_or(WireError::Field("OpenJob.slots_per_item"))?,
        per_item: open.per_item,
        ok_exit: open
            .ok_exit
            .into_iter()
            .map(|status| u8::try_from(status).map_err(|_| WireError::Field("OpenJob.ok_exit")))
            .collect::<Result<_>>()?,
    })
}

fn exec_from_wire(exec: &wire::Exec, framing: Framing) -> Result<Vec<Template>> {
    let item = if exec.item.is_empty() { ITEM } else { &exec.item };
    let syntax = Syntax { item, columns: framing == Framing::Columns };
    let mut literals = exec.literals.iter().peekable();
    let parse = |(index, argument): (u32, &Bytes)| match literals.next_if(|&&at| at == index) {
        Some(_) => Template::literal(argument),
        None => Template::parse(argument, syntax),
    };
    match exec.argv.is_empty() {
        true => Err(WireError::Field("argv")),
        false => Ok((0..).zip(&exec.argv).map(parse).collect()),
    }
}

fn limits_from_wire(limits: wire::Limits) -> Result<Limits> {
    let nice = u8::try_from(limits.nice).ok().filter(|&nice| nice <= NICE_MAX);
    Ok(Limits {
        memory: NonZeroU64::new(limits.memory),
        cpu_seconds: NonZeroU32::new(limits.cpu_seconds),
        nice: nice.ok_or(WireError::Field("Limits.nice"))?,
    })
}

fn python_to_wire(python: Python) -> wire::Python {
    let Python { path, source, function, initializer, recycle, is_text, interpreter } = python;
    wire::Python {
        path: path.into(),
        source,
        function,
        initializer,
        recycle: recycle.map_or(0, NonZeroU32::get),
        text: is_text,
        interpreter: interpreter.into(),
    }
}

fn wasm_from_wire(wasm: &wire::Wasm, files: &JobFiles) -> Result<Wasm> {
    let module = digest_from_wire(&wasm.digest)?;
    // The same content as one of the files has one length.
    let is_known = files.artifacts().get(&module).is_none_or(|&bytes| bytes == wasm.bytes);
    if wasm.bytes > WASM_MODULE_BYTES_MAX || !is_known {
        return Err(WireError::Field("Wasm.bytes"));
    }
    Ok(Wasm { path: wasm.path.to_vec(), module, bytes: wasm.bytes })
}

fn python_from_wire(python: wire::Python) -> Result<Python> {
    let wire::Python { path, source, function, initializer, recycle, text, interpreter } = python;
    if function.is_empty() || interpreter.is_empty() {
        return Err(WireError::Field("Python.function"));
    }
    if source.len() > PYTHON_SOURCE_BYTES_MAX {
        return Err(WireError::Field("Python.source"));
    }
    Ok(Python {
        path: path.to_vec(),
        source,
        function,
        initializer,
        recycle: NonZeroU32::new(recycle),
        is_text: text,
        interpreter: interpreter.to_vec(),
    })
}
