//! A job as a worker sees it: opened once, checked before the first item, shared by its attempts.

mod surroundings;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use widemap_common::framing::Framing;
use widemap_common::ids::JobId;
use widemap_common::spec::{Function as JobFunction, JobSpec, Limits, Python, Runtime};
use widemap_common::template::Template;
use widemap_proto::session::{Refusal, RefusalCause};

use crate::artifacts::{ArtifactCache, Claim};
use crate::environment::Environment;
use crate::files::{CommandError, Files, PrivateDirectory};
use crate::function::{Function, Registry};
use crate::runtime::{FilterManner, WASM_IS_BUILT, WasmJob, WasmModules};
use crate::spawner::RunAs;
use surroundings::Surroundings;

/// What of a worker decides whether a job can run there.
#[derive(Debug)]
pub(crate) struct Host {
    /// Its name, for a person.
    pub(crate) name: String,
    /// The runtimes that it allows.
    pub(crate) runtimes: Vec<Runtime>,
    pub(crate) registry: Registry,
    /// Whether it runs inside a coordinator, in the directory and environment of its user.
    pub(crate) embedded: bool,
    /// Who looks after the files of jobs; nobody if there are no commands.
    pub(crate) files: Option<Arc<Files>>,
    /// What is kept of files that jobs bring along, likewise.
    pub(crate) artifacts: Option<Arc<ArtifactCache>>,
    /// Whom commands run as, if that is another user than the worker's.
    pub(crate) run_as: Option<Arc<RunAs>>,
    /// What runs modules of WebAssembly.
    pub(crate) wasm: Arc<WasmModules>,
    /// A slot's share of the cores.
    pub(crate) threads_per_slot: usize,
}

/// An open job.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) runner: Runner,
    pub(crate) framing: Framing,
    pub(crate) timeout: Option<Duration>,
    pub(crate) max_output: u64,
    pub(crate) limits: Limits,
    /// The slots that an attempt takes while it runs.
    pub(crate) slots: u32,
    pub(crate) per_item: bool,
    /// The exit statuses that count as success; only 0 if it is empty.
    ok_exit: Vec<u8>,
    /// Nothing more of it is run: who keeps something for it lets go.
    closed: AtomicBool,
    /// The job's own directory, removed with the job.
    private: Option<PrivateDirectory>,
}

/// What runs the items of a job.
pub(crate) enum Runner {
    /// One process an item.
    Exec(Launch, Vec<Template>),
    /// A process that goes on from chunk to chunk.
    Filter(Launch, Vec<Vec<u8>>, FilterManner),
    /// An interpreter that goes on from chunk to chunk.
    Python(Box<PythonJob>),
    /// One process a block.
    Pipe(Launch, Vec<Vec<u8>>),
    /// A module of WebAssembly, an instance a block.
    Wasm(Box<WasmJob>),
    /// A registered function.
    Function(Arc<dyn Function>),
}

/// A function of a Python file, as this worker finds it.
#[derive(Debug)]
pub(crate) struct PythonJob {
    pub(crate) launch: Launch,
    pub(crate) python: Python,
    /// What the file is called there.
    pub(crate) path: PathBuf,
    /// Where modules are looked for first.
    pub(crate) search: Vec<PathBuf>,
    /// Whether it may write compiled modules beside them.
    pub(crate) keeps_bytecode: bool,
}

/// How the processes of a job are started.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: Program,
    /// Unset where processes work in the worker's own directory.
    pub(crate) directory: Option<PathBuf>,
    pub(crate) environment: Environment,
    /// What each process may take.
    pub(crate) limits: Limits,
    files: Arc<Files>,
}

/// The program of a job's processes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Found when the job was opened.
    Found(PathBuf),
    /// Another one for each item: found when the item runs.
    PerItem,
}

impl Job {
    /// Checks that the job can run on `host` and makes what it needs. `claim` has what is in its files,
    /// if it has any.
    pub(crate) fn open(
        id: JobId,
        spec: JobSpec,
        host: &Host,
        claim: Option<&Claim>,
    ) -> Result<Self, Refusal> {
        allowed(spec.function.runtime(), host)?;
        let runtime = spec.function.runtime();
        if spec.framing == Framing::Columns && runtime != Runtime::Exec {
            let message =
                format!("items of several columns are for commands, not for `{runtime}` jobs");
            return Err(Refusal { cause: RefusalCause::NotAllowed, message });
        }
        let mut private = None;
        let JobSpec {
            function,
            framing,
            directory,
            environment,
            files,
            timeout,
            max_output,
            limits,
            slots_per_item,
            per_item,
            ok_exit,
        } = spec;
        let threads = host.threads_per_slot.saturating_mul(slots_per_item.get() as usize);
        let around =
            Surroundings { id, directory, environment, threads, limits, files, claim, host };
        let runner = match function {
            JobFunction::Builtin { .. } if limits != Limits::default() => {
                let message = "a function that is registered in the worker runs in the worker's process, and \
                               nothing limits its memory, processor time or urgency"
                    .to_owned();
                return Err(Refusal { cause: RefusalCause::NotAllowed, message });
            }
            JobFunction::Builtin { name } => Runner::Function(find_function(&name, host)?),
            JobFunction::Exec { argv } => {
                let name = argv.first().filter(|name| !name.has_placeholder());
                let launch = around.launch(name.map(Template::text), &mut private)?;
                Runner::Exec(launch, argv)
            }
            JobFunction::Filter { argv } => {
                if framing.separator().is_none() {
                    let message = "a filter has its items in lines, and these are not".to_owned();
                    return Err(Refusal { cause: RefusalCause::NotAllowed, message });
                }
                let name = Some(argv.first().map_or(b"".as_slice(), Vec::as_slice));
                let launch = around.launch(name, &mut private)?;
                Runner::Filter(launch, argv, FilterManner::default())
            }
            JobFunction::Python(python) => {
                let is_bytes = framing == Framing::LengthPrefixed && python.is_text;
                if framing.separator().is_none() && !is_bytes {
                    let message =
                        "a Python function has its items in lines, and these are not".to_owned();
                    return Err(Refusal { cause: RefusalCause::NotAllowed, message });
                }
                let mut launch = around.launch(Some(&python.interpreter), &mut private)?;
                // The interpreter goes on: it counts the time of each item itself.
                launch.limits.cpu_seconds = None;
                Runner::Python(Box::new(PythonJob::new(launch, *python)))
            }
            JobFunction::Wasm(wasm) => Runner::Wasm(Box::new(around.module(&wasm, &mut private)?)),
            JobFunction::Pipe { argv } => {
                let name = Some(argv.first().map_or(b"".as_slice(), Vec::as_slice));
                Runner::Pipe(around.launch(name, &mut private)?, argv)
            }
        };
        Ok(Self {
            id,
            runner,
            framing,
            timeout,
            max_output,
            limits,
            slots: slots_per_item.get(),
            per_item,
            ok_exit,
            closed: AtomicBool::new(false),
            private,
        })
    }

    /// Whether it must be tried before it is known that it can run here.
    pub(crate) fn needs_probe(&self) -> bool {
        matches!(self.runner, Runner::Python(_))
    }

    /// Whether an item that ended with this exit status has succeeded.
    pub(crate) fn is_ok(&self, status: i32) -> bool {
        match self.ok_exit.is_empty() {
            true => status == 0,
            false => u8::try_from(status).is_ok_and(|status| self.ok_exit.contains(&status)),
        }
    }

    /// Whether the exit status of each item is wanted, which may be another than 0 of one that succeeded.
    pub(crate) fn tells_exits(&self) -> bool {
        self.per_item && !self.ok_exit.is_empty()
    }

    /// Nothing more of it is run.
    pub(crate) fn set_closed(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether nothing more of it is run.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether closing the job means work on a disk.
    pub(crate) fn has_directory(&self) -> bool {
        self.private.is_some()
    }

    /// Removes the job's directory. Returns what to tell the user if files were left in it.
    pub(crate) fn close(mut self) -> Option<String> {
        let private = self.private.take()?;
        let shown = private.path().display().to_string();
        match private.remove() {
            Err(error) => Some(format!("cannot remove {shown}: {error}")),
            Ok(0) => None,
            Ok(files) => {
                let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
                Some(format!(
                    "{files} left in the job's private directory {shown}, removed with it \
                     (--wd DIR keeps such files)"
                ))
            }
        }
    }
}

/// Whether a worker allows a runtime.
pub(crate) fn allowed(runtime: Runtime, host: &Host) -> Result<(), Refusal> {
    if host.runtimes.contains(&runtime) {
        return Ok(());
    }
    if runtime == Runtime::Wasm && !WASM_IS_BUILT {
        let message =
            format!("{} was built without WebAssembly (the cargo feature `wasm`)", host.name);
        return Err(Refusal { cause: RefusalCause::NotAllowed, message });
    }
    let allowed: Vec<_> = host.runtimes.iter().map(|runtime| runtime.name()).collect();
    let message = format!(
        "{} does not run `{runtime}` jobs (it allows: {}; see widemap-worker --allow)",
        host.name,
        allowed.join(", ")
    );
    Err(Refusal { cause: RefusalCause::NotAllowed, message })
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exec(launch, _) => f.debug_tuple("Exec").field(launch).finish(),
            Self::Filter(launch, ..) => f.debug_tuple("Filter").field(launch).finish(),
            Self::Pipe(launch, _) => f.debug_tuple("Pipe").field(launch).finish(),
            Self::Python(python) => f.debug_tuple("Python").field(python).finish(),
            Self::Wasm(wasm) => f.debug_tuple("Wasm").field(wasm).finish(),
            Self::Function(_) => f.write_str("Function"),
        }
    }
}

/// A worker that runs functions only.
pub(crate) fn no_commands(host: &Host) -> Refusal {
    let message = format!("{} runs no commands", host.name);
    Refusal { cause: RefusalCause::NotAllowed, message }
}

impl PythonJob {
    /// As `python3 FILE` does it, modules are looked for beside the file first, and where the job works.
    fn new(launch: Launch, python: Python) -> Self {
        let here = launch.directory.clone().or_else(|| std::env::current_dir().ok());
        let here = here.unwrap_or_default();
        let named = Path::new(OsStr::from_bytes(&python.path));
        let keeps_bytecode = launch.directory.is_none();
        let is_below =
            named.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let path = match named.file_name() {
            Some(name) if !keeps_bytecode && !is_below => here.join(name),
            _ => here.join(named),
        };
        let beside = path.parent().map(Path::to_owned);
        let mut search: Vec<_> = beside.into_iter().collect();
        if !search.contains(&here) {
            search.push(here);
        }
        Self { launch, python, path, search, keeps_bytecode }
    }
}

impl Launch {
    /// The path of a command: in PATH, or from the job's directory if it has a slash.
    pub(crate) fn find(&self, command: &[u8]) -> Result<PathBuf, CommandError> {
        let here = self.directory.clone().or_else(|| std::env::current_dir().ok());
        self.files.find(command, &self.environment.path(), &here.unwrap_or_default())
    }
}

fn find_function(name: &str, host: &Host) -> Result<Arc<dyn Function>, Refusal> {
    host.registry.get(name).ok_or_else(|| {
        let mut message = format!("{} has no function `{name}` (it has: ", host.name);
        for (index, known) in host.registry.names().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            let _ = write!(message, "{comma}{known}");
        }
        message.push(')');
        Refusal { cause: RefusalCause::NotFound, message }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use widemap_common::artifact::JobFiles;
    use widemap_common::framing::LINES;
    use widemap_common::spec::Directory;
    use widemap_common::template::Syntax;

    fn host() -> Host {
        Host {
            name: "ann".to_owned(),
            runtimes: Runtime::ALL.to_vec(),
            registry: Registry::stock(),
            embedded: false,
            files: Some(Arc::new(Files::Own { parent: std::env::temp_dir() })),
            artifacts: None,
            run_as: None,
            wasm: Arc::new(WasmModules::new()),
            threads_per_slot: 1,
        }
    }

    fn exec(argv: &[&str], directory: Directory) -> JobSpec {
        let argv: Vec<_> = argv.iter().map(|arg| arg.as_bytes().to_vec()).collect();
        spec(JobFunction::Exec { argv: Template::command(&argv, Syntax::default()) }, directory)
    }

    fn spec(function: JobFunction, directory: Directory) -> JobSpec {
        JobSpec {
            function,
            framing: LINES,
            directory,
            environment: Vec::new(),
            files: JobFiles::default(),
            timeout: None,
            max_output: 1 << 30,
            limits: widemap_common::spec::Limits::default(),
            slots_per_item: std::num::NonZeroU32::MIN,
            per_item: false,
            ok_exit: Vec::new(),
        }
    }

    fn refused(spec: JobSpec, host: &Host) -> Refusal {
        Job::open(JobId(3), spec, host, None).expect_err("the job is refused")
    }

    #[test]
    fn a_missing_command_is_named_with_the_worker_and_path() {
        let refusal = refused(exec(&["no-such-command"], Directory::Private), &host());
        assert_eq!(refusal.cause, RefusalCause::NotFound);
        assert!(
            refusal
                .message
                .starts_with("`no-such-command` cannot be run on ann: not found in PATH (/")
        );
        assert!(!refusal.message.contains("--shell"));
    }

    #[test]
    fn a_shell_line_is_told_of_the_flag() {
        let refusal = refused(exec(&["wc -l | sort"], Directory::Private), &host());
        assert!(refusal.message.ends_with("; for a shell line add --shell"), "{}", refusal.message);
    }

    #[test]
    fn a_command_with_a_slash_is_found_from_the_jobs_directory() {
        let directory = tempfile::tempdir().unwrap();
        let tool = directory.path().join("tool");
        std::fs::write(&tool, "#!/bin/sh\n").unwrap();
        let path = Directory::Path(directory.path().as_os_str().as_bytes().to_vec());
        let refusal = refused(exec(&["./tool"], path.clone()), &host());
        assert!(refusal.message.contains("not executable"), "{}", refusal.message);
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&tool, executable).unwrap();
        assert!(Job::open(JobId(1), exec(&["./tool"], path), &host(), None).is_ok());
    }

    #[test]
    fn only_an_embedded_worker_lends_its_own_directory() {
        let refusal = refused(exec(&["true"], Directory::Inherit), &host());
        assert_eq!(refusal.cause, RefusalCause::NotAllowed);
        let embedded = Host { embedded: true, ..host() };
        let inherits = exec(&["true"], Directory::Inherit);
        assert!(Job::open(JobId(1), inherits, &embedded, None).is_ok());
    }

    #[test]
    fn an_unknown_function_and_a_forbidden_runtime_say_what_there_is() {
        let cube = JobFunction::Builtin { name: "cube".to_owned() };
        let refusal = refused(spec(cube.clone(), Directory::Private), &host());
        assert_eq!(refusal.message, "ann has no function `cube` (it has: identity, sleep, square)");
        let host = Host { runtimes: vec![Runtime::Exec, Runtime::Pipe], ..host() };
        let refusal = refused(spec(cube, Directory::Private), &host);
        assert_eq!(refusal.cause, RefusalCause::NotAllowed);
        assert!(refusal.message.contains("it allows: exec, pipe"), "{}", refusal.message);
    }

    #[test]
    #[cfg(not(feature = "wasm"))]
    fn a_worker_without_web_assembly_says_so() {
        let wasm = widemap_common::spec::Wasm {
            path: b"f.wasm".to_vec(),
            module: widemap_common::artifact::Digest([1; 32]),
            bytes: 8,
        };
        let runtimes = vec![Runtime::Exec];
        let refusal = refused(
            spec(JobFunction::Wasm(wasm), Directory::Private),
            &Host { runtimes, ..host() },
        );
        let told = "ann was built without WebAssembly (the cargo feature `wasm`)";
        assert_eq!((refusal.cause, refusal.message.as_str()), (RefusalCause::NotAllowed, told));
    }

    #[test]
    fn files_left_in_a_private_directory_are_told() {
        let job = Job::open(JobId(3), exec(&["true"], Directory::Private), &host(), None).unwrap();
        let Runner::Exec(launch, _) = &job.runner else { panic!("it is exec") };
        let directory = launch.directory.clone().expect("it has a directory");
        std::fs::create_dir(directory.join("sub")).unwrap();
        std::fs::write(directory.join("sub/a"), "").unwrap();
        let told = job.close().expect("a file was left");
        assert!(told.starts_with("1 file left in"), "{told}");
        assert!(!directory.exists());
    }
}
