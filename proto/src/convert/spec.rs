//! What a worker must know of a job: the same in a session and in a submission.

use std::time::Duration;

use bytes::Bytes;
use widemap_common::framing::Framing;
use widemap_common::ids::JobId;
use widemap_common::spec::{Directory, Function, JobSpec};
use widemap_common::template::Template;

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
                argv: argv.iter().map(|arg| Bytes::copy_from_slice(arg.text())).collect(),
            }),
            Function::Pipe { argv } => {
                WireFunction::Pipe(wire::Pipe { argv: argv.into_iter().map(bytes).collect() })
            }
            Function::Builtin { name } => WireFunction::Builtin(wire::Builtin { name }),
        }),
        framing: Some(wire::Framing {
            kind: Some(match spec.framing {
                Framing::Separator(byte) => Kind::Separator(byte.into()),
                Framing::LengthPrefixed => Kind::LengthPrefixed(true),
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
    }
}

pub(super) fn job_from_wire(open: wire::OpenJob) -> Result<JobSpec> {
    use wire::framing::Kind;
    use wire::open_job::{Directory as WireDirectory, Function as WireFunction};
    let plain = |argv: Vec<Bytes>| match argv.is_empty() {
        true => Err(WireError::Field("argv")),
        false => Ok(argv.iter().map(|arg| arg.to_vec()).collect::<Vec<_>>()),
    };
    Ok(JobSpec {
        function: match open.function.ok_or(WireError::UnknownKind)? {
            WireFunction::Exec(exec) => Function::Exec {
                argv: plain(exec.argv)?.iter().map(|arg| Template::parse(arg)).collect(),
            },
            WireFunction::Pipe(pipe) => Function::Pipe { argv: plain(pipe.argv)? },
            WireFunction::Builtin(builtin) => Function::Builtin { name: builtin.name },
        },
        framing: match open.framing.and_then(|framing| framing.kind) {
            Some(Kind::Separator(byte)) => {
                let byte = u8::try_from(byte).map_err(|_| WireError::Field("Framing.separator"))?;
                Framing::Separator(byte)
            }
            Some(Kind::LengthPrefixed(_)) => Framing::LengthPrefixed,
            None => return Err(WireError::Field("OpenJob.framing")),
        },
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
        timeout: (open.timeout_us > 0).then(|| Duration::from_micros(open.timeout_us)),
        max_output: open.max_output,
        per_item: open.per_item,
    })
}
