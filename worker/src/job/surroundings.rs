//! What the processes of a job find around them: directory, environment, files. All of it is made or found
//! before the first item.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use widemap_common::artifact::{FileKind, JobFiles};
use widemap_common::ids::JobId;
use widemap_common::spec::{Directory, Limits, Wasm};
use widemap_proto::session::{Refusal, RefusalCause};

use super::{Host, Launch, Program, no_commands};
use crate::artifacts::Claim;
use crate::environment::Environment;
use crate::files::{CommandError, Files, PrivateDirectory};
use crate::runtime::WasmJob;

/// What the processes of a job find around them, and where.
pub(super) struct Surroundings<'a> {
    pub(super) id: JobId,
    pub(super) directory: Directory,
    pub(super) environment: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// How many threads libraries are told to start.
    pub(super) threads: usize,
    pub(super) limits: Limits,
    pub(super) files: JobFiles,
    pub(super) claim: Option<&'a Claim>,
    pub(super) host: &'a Host,
}

impl Surroundings<'_> {
    /// How commands are started; `command` is the one, unless it is another for each item.
    pub(super) fn launch(
        &self,
        command: Option<&[u8]>,
        private: &mut Option<PrivateDirectory>,
    ) -> Result<Launch, Refusal> {
        let host = self.host;
        let environment = match self.directory {
            Directory::Inherit => Environment::inherited(&self.environment),
            Directory::Private | Directory::Path(_) => Environment::scrubbed(
                &self.environment,
                std::env::vars_os(),
                host.run_as.as_deref(),
                self.threads,
            ),
        };
        let files = host.files.clone().ok_or_else(|| no_commands(host))?;
        let directory = self.open_directory(&files, private)?;
        let mut launch = Launch {
            program: Program::PerItem,
            directory,
            environment,
            limits: self.limits,
            files,
        };
        if let Some(command) = command {
            let found = launch.find(command).map_err(|error| not_found(command, &error, host))?;
            launch.program = Program::Found(found);
        }
        Ok(launch)
    }

    /// A module of WebAssembly, which has nothing of the worker's.
    pub(super) fn module(
        &self,
        wasm: &Wasm,
        private: &mut Option<PrivateDirectory>,
    ) -> Result<WasmJob, Refusal> {
        let host = self.host;
        let refused = |cause, why: String| {
            let shown = String::from_utf8_lossy(&wasm.path);
            Refusal { cause, message: format!("`{shown}` cannot be run on {}: {why}", host.name) }
        };
        let Some(claim) = self.claim else { return Err(no_commands(host)) };
        let mut environment = Vec::new();
        for (name, value) in &self.environment {
            let value = match value {
                Some(value) => Some(OsString::from_vec(value.clone())),
                None => std::env::var_os(OsStr::from_bytes(name)),
            };
            let Some(value) = value else { continue };
            let pair = (String::from_utf8(name.clone()), value.into_string());
            let (Ok(name), Ok(value)) = pair else {
                let why = format!(
                    "the variable {} is not UTF-8, as a module has its variables",
                    String::from_utf8_lossy(name)
                );
                return Err(refused(RefusalCause::NotAllowed, why));
            };
            environment.push((name, value));
        }
        let directory = match &host.files {
            Some(files) if !self.files.is_empty() => self.open_directory(files, private)?,
            _ => None,
        };
        let path = claim.path(wasm.module);
        WasmJob::open(&host.wasm, wasm, &path, environment, directory)
            .map_err(|why| refused(RefusalCause::NotFound, why))
    }

    /// Where the job's processes work. Nothing is the worker's own directory.
    fn open_directory(
        &self,
        files: &Arc<Files>,
        private: &mut Option<PrivateDirectory>,
    ) -> Result<Option<PathBuf>, Refusal> {
        let host = self.host;
        match &self.directory {
            Directory::Private => {
                let made = files.make_private(self.id).map_err(|error| Refusal {
                    cause: RefusalCause::Directory,
                    message: format!("{} cannot make a directory for the job: {error}", host.name),
                })?;
                let path = made.path().to_owned();
                self.place_files(private.insert(made))?;
                Ok(Some(path))
            }
            Directory::Inherit | Directory::Path(_) if !self.files.is_empty() => Err(Refusal {
                cause: RefusalCause::Directory,
                message: "files of a job go to a private directory, and it has another".to_owned(),
            }),
            Directory::Inherit if host.embedded => Ok(None),
            Directory::Inherit => Err(Refusal {
                cause: RefusalCause::NotAllowed,
                message: format!(
                    "{} does not lend its own directory and environment: only embedded workers do",
                    host.name
                ),
            }),
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

    /// Puts the job's files into its directory.
    fn place_files(&self, private: &mut PrivateDirectory) -> Result<(), Refusal> {
        for file in self.files.iter() {
            let from = || match (file.kind, self.claim) {
                (FileKind::Regular { digest, .. }, Some(claim)) => claim.path(digest),
                _ => PathBuf::new(),
            };
            private.place(file, from).map_err(|error| Refusal {
                cause: RefusalCause::Directory,
                message: format!(
                    "{} cannot put {} of the job in place: {error}",
                    self.host.name,
                    file.shown()
                ),
            })?;
        }
        Ok(())
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
