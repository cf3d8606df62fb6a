//! A job as a worker sees it: opened once, checked before the first item, shared by its attempts.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use widemap_common::framing::Framing;
use widemap_common::ids::JobId;
use widemap_common::spec::{Directory, Function as JobFunction, JobSpec, Runtime};
use widemap_common::template::Template;
use widemap_proto::session::{Refusal, RefusalCause};

use crate::environment::Environment;
use crate::files::{CommandError, Files, PrivateDirectory};
use crate::function::{Function, Registry};
use crate::spawner::RunAs;

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
    /// Whom commands run as, if that is another user than the worker's.
    pub(crate) run_as: Option<Arc<RunAs>>,
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
    pub(crate) per_item: bool,
    /// The job's own directory, removed with the job.
    private: Option<PrivateDirectory>,
}

/// What runs the items of a job.
pub(crate) enum Runner {
    /// One process an item.
    Exec(Launch, Vec<Template>),
    /// One process a block.
    Pipe(Launch, Vec<Vec<u8>>),
    /// A registered function.
    Function(Arc<dyn Function>),
}

/// How the processes of a job are started.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: Program,
    /// Unset where processes work in the worker's own directory.
    pub(crate) directory: Option<PathBuf>,
    pub(crate) environment: Environment,
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
    /// Checks that the job can run on `host` and makes what it needs.
    pub(crate) fn open(id: JobId, spec: JobSpec, host: &Host) -> Result<Self, Refusal> {
        let runtime = spec.function.runtime();
        if !host.runtimes.contains(&runtime) {
            let allowed: Vec<_> = host.runtimes.iter().map(|runtime| runtime.name()).collect();
            let message = format!(
                "{} does not run `{runtime}` jobs (it allows: {}; see widemap-worker --allow)",
                host.name,
                allowed.join(", ")
            );
            return Err(Refusal { cause: RefusalCause::NotAllowed, message });
        }
        let mut private = None;
        let runner = match spec.function {
            JobFunction::Builtin { name } => Runner::Function(find_function(&name, host)?),
            JobFunction::Exec { argv } => {
                let name = argv.first().filter(|name| !name.has_placeholder());
                let launch = Launch::new(
                    id,
                    name.map(Template::text),
                    &spec.directory,
                    &spec.environment,
                    host,
                    &mut private,
                )?;
                Runner::Exec(launch, argv)
            }
            JobFunction::Pipe { argv } => {
                let name = Some(argv.first().map_or(b"".as_slice(), Vec::as_slice));
                let launch =
                    Launch::new(id, name, &spec.directory, &spec.environment, host, &mut private)?;
                Runner::Pipe(launch, argv)
            }
        };
        Ok(Self {
            id,
            runner,
            framing: spec.framing,
            timeout: spec.timeout,
            max_output: spec.max_output,
            per_item: spec.per_item,
            private,
        })
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

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exec(launch, _) => f.debug_tuple("Exec").field(launch).finish(),
            Self::Pipe(launch, _) => f.debug_tuple("Pipe").field(launch).finish(),
            Self::Function(_) => f.write_str("Function"),
        }
    }
}

impl Launch {
    fn new(
        id: JobId,
        command: Option<&[u8]>,
        directory: &Directory,
        variables: &[(Vec<u8>, Option<Vec<u8>>)],
        host: &Host,
        private: &mut Option<PrivateDirectory>,
    ) -> Result<Self, Refusal> {
        let environment = match directory {
            Directory::Inherit => Environment::inherited(variables),
            Directory::Private | Directory::Path(_) => Environment::scrubbed(
                variables,
                std::env::vars_os(),
                host.run_as.as_deref(),
                host.threads_per_slot,
            ),
        };
        let files = host.files.clone().ok_or_else(|| Refusal {
            cause: RefusalCause::NotAllowed,
            message: format!("{} runs no commands", host.name),
        })?;
        let directory = open_directory(id, directory, host, &files, private)?;
        let mut launch = Self { program: Program::PerItem, directory, environment, files };
        if let Some(command) = command {
            let found = launch.find(command).map_err(|error| not_found(command, &error, host))?;
            launch.program = Program::Found(found);
        }
        Ok(launch)
    }

    /// The path of a command: in PATH, or from the job's directory if it has a slash.
    pub(crate) fn find(&self, command: &[u8]) -> Result<PathBuf, CommandError> {
        let here = self.directory.clone().or_else(|| std::env::current_dir().ok());
        self.files.find(command, &self.environment.path(), &here.unwrap_or_default())
    }
}

fn not_found(command: &[u8], error: &CommandError, host: &Host) -> Refusal {
    let mut message =
        format!("`{}` cannot be run on {}: {error}", String::from_utf8_lossy(command), host.name);
    if command.iter().any(|byte| b" \t\n|;<>&".contains(byte)) {
        message.push_str("; for a shell line add --shell");
    }
    Refusal { cause: RefusalCause::NotFound, message }
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

/// Where the job's processes work. Nothing is the worker's own directory.
fn open_directory(
    id: JobId,
    directory: &Directory,
    host: &Host,
    files: &Arc<Files>,
    private: &mut Option<PrivateDirectory>,
) -> Result<Option<PathBuf>, Refusal> {
    match directory {
        Directory::Inherit if host.embedded => Ok(None),
        Directory::Inherit => Err(Refusal {
            cause: RefusalCause::NotAllowed,
            message: format!(
                "{} does not lend its own directory and environment: only embedded workers do",
                host.name
            ),
        }),
        Directory::Private => {
            let made = files.make_private(id).map_err(|error| Refusal {
                cause: RefusalCause::Directory,
                message: format!("{} cannot make a directory for the job: {error}", host.name),
            })?;
            let path = made.path().to_owned();
            *private = Some(made);
            Ok(Some(path))
        }
        Directory::Path(path) => {
            let path = PathBuf::from(OsStr::from_bytes(path));
            let Err(why) = files.enter(&path) else { return Ok(Some(path)) };
            // Root could, and wonders.
            let who = host.run_as.as_ref();
            let who = who.map_or_else(String::new, |user| format!(" as {}", user.name()));
            Err(Refusal {
                cause: RefusalCause::Directory,
                message: format!("{} cannot work in {}{who}: {why}", host.name, path.display()),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use widemap_common::framing::LINES;

    fn host() -> Host {
        Host {
            name: "ann".to_owned(),
            runtimes: Runtime::ALL.to_vec(),
            registry: Registry::stock(),
            embedded: false,
            files: Some(Arc::new(Files::Own { parent: std::env::temp_dir() })),
            run_as: None,
            threads_per_slot: 1,
        }
    }

    fn exec(argv: &[&str], directory: Directory) -> JobSpec {
        let argv: Vec<_> = argv.iter().map(|arg| arg.as_bytes().to_vec()).collect();
        spec(JobFunction::Exec { argv: Template::command(&argv) }, directory)
    }

    fn spec(function: JobFunction, directory: Directory) -> JobSpec {
        JobSpec {
            function,
            framing: LINES,
            directory,
            environment: Vec::new(),
            timeout: None,
            max_output: 1 << 30,
            per_item: false,
        }
    }

    fn refused(spec: JobSpec, host: &Host) -> Refusal {
        Job::open(JobId(3), spec, host).expect_err("the job is refused")
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
        assert!(Job::open(JobId(1), exec(&["./tool"], path), &host()).is_ok());
    }

    #[test]
    fn only_an_embedded_worker_lends_its_own_directory() {
        let refusal = refused(exec(&["true"], Directory::Inherit), &host());
        assert_eq!(refusal.cause, RefusalCause::NotAllowed);
        let embedded = Host { embedded: true, ..host() };
        assert!(Job::open(JobId(1), exec(&["true"], Directory::Inherit), &embedded).is_ok());
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
    fn files_left_in_a_private_directory_are_told() {
        let job = Job::open(JobId(3), exec(&["true"], Directory::Private), &host()).unwrap();
        let Runner::Exec(launch, _) = &job.runner else { panic!("it is exec") };
        let directory = launch.directory.clone().expect("it has a directory");
        std::fs::create_dir(directory.join("sub")).unwrap();
        std::fs::write(directory.join("sub/a"), "").unwrap();
        let told = job.close().expect("a file was left");
        assert!(told.starts_with("1 file left in"), "{told}");
        assert!(!directory.exists());
    }
}
