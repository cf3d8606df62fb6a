//! From what was typed of a job to what it is: the same for a map of one's own and for a job that is
//! submitted.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use widemap_common::artifact::JobFiles;
use widemap_common::framing::Framing;
use widemap_common::spec::{Directory, Function, JobSpec, Limits, Runtime};
use widemap_common::template::{ITEM, Syntax, Template};
use widemap_common::wall_clock;
use widemap_proto::jobs::{Blocks, OutputForm, Policy, Stops, Submission};

use super::argv::List;
use super::options::{JobArgs, Speculate};
use super::sources::{self, Items};
use super::{Format, files, python, wasm};
use crate::data::{Artifact, Artifacts, Source};
use crate::error::MapError;

/// A job as it was typed, and what it brings along.
pub(super) struct Typed {
    pub(super) submission: Submission,
    /// Its items.
    pub(super) source: Source,
    /// What is in its files.
    pub(super) artifacts: Artifacts,
    /// Whether its files lie here as they will lie on workers.
    pub(super) files_are_here: bool,
}

/// A job and its items, as they were typed.
///
/// # Errors
/// What makes no sense.
pub(super) fn submission(
    args: &JobArgs,
    lists: Vec<List>,
    max_output: u64,
    records: bool,
) -> Result<Typed, MapError> {
    let separator = args.delimiter.unwrap_or(if args.null { 0 } else { b'\n' });
    let Items { source, framing, columns } = sources::find(args, lists, separator)?;
    let (mut spec, module) = spec(args, framing, max_output)?;
    has_columns(&spec.function, columns)?;
    if let (false, Some(directory)) = (args.file.is_empty(), &args.wd) {
        let problem = format!(
            "files that are brought along go to a directory of the job's own: leave --wd out, or see to it \
             that they are in {} on each worker",
            directory.display()
        );
        return Err(flag("--file", problem));
    }
    if !args.file.is_empty() && args.builtin.is_some() {
        return Err(flag(
            "--file",
            "a function that is registered in the worker has no use for files",
        ));
    }
    if args.wasm.is_some() && args.wd.is_some() {
        let problem = "a module of WebAssembly runs in no directory; what it may read is brought along with --file";
        return Err(flag("--wd", problem));
    }
    if args.tag && args.format == Format::Json {
        return Err(flag("--tag", "JSON has the item in each line: leave it out"));
    }
    if args.fill.is_some() && args.format == Format::Json {
        return Err(flag("--fill", "JSON has a line for each item that failed: leave it out"));
    }
    let output = OutputForm {
        json: args.format == Format::Json,
        unordered: args.unordered,
        separator,
        fill: args.fill.as_ref().map(|text| text.as_bytes().to_vec()),
        tag: args.tag,
        records,
        frames: args.frames,
    };
    spec.per_item = output.json || output.is_of_records();
    // Last of all, as it may take a while.
    let mut brought = files::bring(&args.file)?;
    spec.files = brought.files;
    if let Some(module) = module {
        brought.artifacts.insert(module);
    }
    let submission = Submission {
        name: args.name.clone().unwrap_or_default(),
        submit_key: args.submit_key.clone(),
        blocks: blocks(args)?,
        policy: policy(args, spec.function.runtime()),
        spec,
        output,
        submitter: submitter(),
        submitted_ms: wall_clock::unix_ms().unwrap_or(0),
        begins_at_once: false,
        early_key: None,
    };
    let (artifacts, files_are_here) = (brought.artifacts, brought.are_here);
    Ok(Typed { submission, source, artifacts, files_are_here })
}

fn blocks(args: &JobArgs) -> Result<Blocks, MapError> {
    Ok(match (args.pipe || args.wasm.is_some(), args.block) {
        (false, _) => Blocks::ItemWise,
        (true, None) => Blocks::Schedule,
        (true, Some(0)) => return Err(flag("--block", "a block has at least one byte")),
        (true, Some(bytes)) => Blocks::Fixed(bytes),
    })
}

fn policy(args: &JobArgs, runtime: Runtime) -> Policy {
    Policy {
        require: args.require.iter().cloned().collect::<BTreeMap<_, _>>(),
        retries: args.retries,
        crash_limit: args.crash_limit,
        chunk_items: args.chunk,
        chunk_target: args.chunk_target,
        weight: args.weight.unwrap_or(1),
        priority: args.priority.unwrap_or(0),
        speculate: match args.speculate {
            Speculate::On => true,
            Speculate::Off => false,
            Speculate::Auto => matches!(runtime, Runtime::Builtin | Runtime::Wasm),
        },
        stops: Stops {
            halt: args.halt.and_then(|halt| halt.0),
            canary: args.canary.map_or(0, NonZeroU64::get),
        },
    }
}

/// Who types this, for people.
fn submitter() -> String {
    let user = std::env::var_os("USER").filter(|user| !user.is_empty());
    let user = user.map_or_else(
        || format!("uid {}", rustix::process::geteuid().as_raw()),
        |user| user.to_string_lossy().into_owned(),
    );
    format!("{user}@{}", rustix::system::uname().nodename().to_string_lossy())
}

/// What a worker is told but for its files, and the module of WebAssembly if it is one.
fn spec(
    args: &JobArgs,
    framing: Framing,
    max_output: u64,
) -> Result<(JobSpec, Option<Artifact>), MapError> {
    let mut module = None;
    let syntax = syntax(args, framing);
    let argv: Vec<Vec<u8>> = args.command.iter().map(|word| word.as_bytes().to_vec()).collect();
    let two = |flag| MapError::TwoFunctions {
        flag,
        command: args.command[0].to_string_lossy().into_owned(),
    };
    let function = match (&args.builtin, argv.is_empty()) {
        (None, true) if let Some(named) = &args.python.python => {
            python::function(&args.python, named, args.frames)?
        }
        (None, true) if let Some(path) = &args.wasm => {
            let (function, artifact) = wasm::function(path)?;
            module = Some(artifact);
            Function::Wasm(function)
        }
        (None, false) if args.python.python.is_some() => return Err(two("--python")),
        (None, false) if args.wasm.is_some() => return Err(two("--wasm")),
        (None, false) if args.shell && args.filter => {
            Function::Filter { argv: shell_program(argv)? }
        }
        (None, false) if args.shell && args.pipe => Function::Pipe { argv: shell_program(argv)? },
        (None, _) if args.shell => Function::Exec { argv: shell_line(&argv, syntax)? },
        (None, true) => return Err(MapError::NoFunction),
        (Some(_), false) => return Err(two("--builtin")),
        (Some(name), true) => Function::Builtin { name: name.clone() },
        (None, false) if args.filter => Function::Filter { argv },
        (None, false) if args.pipe => Function::Pipe { argv },
        (None, false) => {
            let argv = Template::command(&argv, syntax);
            not_a_line(args, &argv)?;
            Function::Exec { argv }
        }
    };
    let directory = match &args.wd {
        None => Directory::Private,
        Some(path) => Directory::Path(absolute(path)?.into_os_string().into_vec()),
    };
    let spec = JobSpec {
        function,
        framing,
        directory,
        environment: args.env.iter().map(variable).collect::<Result<_, _>>()?,
        files: JobFiles::default(),
        timeout: args.timeout,
        max_output,
        limits: Limits { memory: args.memory, cpu_seconds: args.cpu_seconds, nice: args.nice },
        slots_per_item: args.slots_per_item,
        per_item: false,
        ok_exit: args.ok_exit.clone(),
    };
    Ok((spec, module))
}

/// What is a placeholder.
pub(super) fn syntax(args: &JobArgs, framing: Framing) -> Syntax<'_> {
    Syntax {
        item: args.replace.as_ref().map_or(ITEM, |text| text.as_bytes()),
        columns: framing == Framing::Columns,
    }
}

/// Whether items have the columns that a command names.
fn has_columns(function: &Function, columns: Option<usize>) -> Result<(), MapError> {
    let (Function::Exec { argv }, Some(columns)) = (function, columns) else { return Ok(()) };
    let beyond = argv
        .iter()
        .flat_map(Template::columns)
        .find(|column| usize::try_from(column.unsigned_abs()).is_ok_and(|column| column > columns));
    match beyond {
        None => Ok(()),
        Some(column) => Err(MapError::NoColumn { column, columns }),
    }
}

/// A command that is another one for each item is looked for when it runs: a line that is meant for a shell is
/// told before.
fn not_a_line(args: &JobArgs, argv: &[Template]) -> Result<(), MapError> {
    let ([_], Some(program)) = (args.command.as_slice(), argv.first()) else { return Ok(()) };
    let is_line = program.text().iter().any(|byte| b" \t\n|<>;&".contains(byte));
    match is_line && program.has_placeholder() {
        true => Err(MapError::Line(String::from_utf8_lossy(program.text()).into_owned())),
        false => Ok(()),
    }
}

/// A shell line as a command: the shell takes what the placeholders stand for as its parameters, so
/// that no byte of an item means anything to it.
fn shell_line(argv: &[Vec<u8>], syntax: Syntax<'_>) -> Result<Vec<Template>, MapError> {
    let mut templates = vec![Template::literal(b"/bin/sh"), Template::literal(b"-c")];
    match argv {
        // Each item is a line.
        [] => templates.push(Template::parse(syntax.item, syntax)),
        [line] => {
            let line = Template::shell_line(line, syntax);
            let refused =
                |error| flag("--shell", format!("{error}: leave the quotes of its end away"));
            templates.extend(line.map_err(refused)?);
        }
        _ => return Err(flag("--shell", "the command line is one word: put it in quotes")),
    }
    Ok(templates)
}

/// A shell line that reads its items itself.
fn shell_program(argv: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, MapError> {
    let [line] = <[_; 1]>::try_from(argv)
        .map_err(|_| flag("--shell", "the command line is one word: put it in quotes"))?;
    Ok(vec![b"/bin/sh".to_vec(), b"-c".to_vec(), line])
}

fn absolute(path: &Path) -> Result<PathBuf, MapError> {
    let joined = std::env::current_dir().map(|here| match path.to_str() {
        Some(".") => here,
        _ => here.join(path),
    });
    joined.map_err(|error| flag("--wd", error.to_string()))
}

fn variable(text: &OsString) -> Result<(Vec<u8>, Option<Vec<u8>>), MapError> {
    let bytes = text.as_bytes();
    if let Some(equals) = bytes.iter().position(|&byte| byte == b'=') {
        if equals == 0 {
            return Err(flag("--env", format!("`{}` has no name", text.to_string_lossy())));
        }
        return Ok((bytes[..equals].to_vec(), Some(bytes[equals + 1..].to_vec())));
    }
    let value = std::env::var_os(text)
        .ok_or_else(|| flag("--env", format!("{} is not set here", text.to_string_lossy())))?;
    Ok((bytes.to_vec(), Some(value.into_vec())))
}

fn flag(flag: &'static str, problem: impl Into<String>) -> MapError {
    MapError::Flag { flag, problem: problem.into() }
}
