//! What a worker looks for, makes and removes in the file system for its jobs, with the rights of the
//! user that their processes have: its own, or by the steward those of `--run-as USER`. A worker that
//! is root must not touch the files of another user itself, who could put a link in their place.

use std::ffi::OsStr;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Access;
use widemap_common::ids::JobId;

use crate::spawner::Steward;

/// Who looks after the files of jobs.
#[derive(Debug)]
pub(crate) enum Files {
    /// The worker itself, which is of the same user.
    Own {
        /// Where private directories are made.
        parent: PathBuf,
    },
    /// One of the user that jobs run as.
    Steward(Steward),
}

/// Why a command cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    /// It is nowhere in PATH.
    #[error("not found in PATH ({})", .0.display())]
    NotInPath(PathBuf),
    /// There is no such file.
    #[error("no such file ({})", .0.display())]
    NoFile(PathBuf),
    /// There is a file, but it may not be run.
    #[error("not executable ({})", .0.display())]
    NotExecutable(PathBuf),
    /// Nobody is left to ask.
    #[error("the process that looks for commands has died")]
    NobodyLooks,
}

impl Files {
    /// Whether processes may work in `directory`.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn enter(&self, directory: &Path) -> io::Result<()> {
        match self {
            Self::Own { .. } => enter(directory),
            Self::Steward(steward) => steward.enter(directory),
        }
    }

    /// The path of a command that is started in `here`: in `path`, as PATH is written, or from `here`
    /// if it has a slash.
    ///
    /// # Errors
    /// If there is none that may be run.
    pub(crate) fn find(
        &self,
        command: &[u8],
        path: &OsStr,
        here: &Path,
    ) -> Result<PathBuf, CommandError> {
        match self {
            Self::Own { .. } => find(command, path, here),
            Self::Steward(steward) => steward.find(command, path, here),
        }
    }

    /// Makes a directory that belongs to `job` alone.
    ///
    /// # Errors
    /// If the system does not let us.
    pub(crate) fn make_private(self: &Arc<Self>, job: JobId) -> io::Result<PrivateDirectory> {
        let path = match &**self {
            Self::Own { parent } => make_private(parent, &job.to_string()),
            Self::Steward(steward) => steward.make_private(&job.to_string()),
        }?;
        Ok(PrivateDirectory { path, files: Some(self.clone()) })
    }

    fn remove(&self, directory: &Path) -> io::Result<u64> {
        match self {
            Self::Own { .. } => remove(directory),
            Self::Steward(steward) => steward.remove(directory),
        }
    }
}

/// A job's own directory, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct PrivateDirectory {
    path: PathBuf,
    /// Nothing once it is removed.
    files: Option<Arc<Files>>,
}

impl PrivateDirectory {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, and tells how many files were left in it.
    ///
    /// # Errors
    /// If something of it stays.
    pub(crate) fn remove(mut self) -> io::Result<u64> {
        self.files.take().map_or(Ok(0), |files| files.remove(&self.path))
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        if let Some(files) = self.files.take() {
            // There is nobody to tell; what stays is removed at the worker's end.
            let _ = files.remove(&self.path);
        }
    }
}

/// [`Files::enter`] with the rights of this process.
pub(crate) fn enter(directory: &Path) -> io::Result<()> {
    if !directory.metadata()?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(rustix::fs::access(directory, Access::EXEC_OK)?)
}

/// [`Files::find`] with the rights of this process.
pub(crate) fn find(command: &[u8], path: &OsStr, here: &Path) -> Result<PathBuf, CommandError> {
    let command = Path::new(OsStr::from_bytes(command));
    if command.as_os_str().as_bytes().contains(&b'/') {
        return runnable(here.join(command));
    }
    let mut passed_over = None;
    if !command.as_os_str().is_empty() {
        for directory in std::env::split_paths(path) {
            match runnable(here.join(directory).join(command)) {
                Ok(found) => return Ok(found),
                Err(error @ CommandError::NotExecutable(_)) => passed_over = Some(error),
                Err(_) => {}
            }
        }
    }
    Err(passed_over.unwrap_or_else(|| CommandError::NotInPath(PathBuf::from(path))))
}

fn runnable(path: PathBuf) -> Result<PathBuf, CommandError> {
    match path.metadata() {
        Err(_) => Err(CommandError::NoFile(path)),
        Ok(meta) if !meta.is_file() => Err(CommandError::NotExecutable(path)),
        Ok(_) if rustix::fs::access(&path, Access::EXEC_OK).is_err() => {
            Err(CommandError::NotExecutable(path))
        }
        Ok(_) => Ok(path),
    }
}

/// [`Files::make_private`] with the rights of this process, below `parent`, which is made too.
pub(crate) fn make_private(parent: &Path, job: &str) -> io::Result<PathBuf> {
    // Nobody else looks in.
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder.recursive(true).create(parent)?;
    let path = parent.join(format!("{job}-{:016x}", fastrand::u64(..)));
    builder.recursive(false).create(&path)?;
    Ok(path)
}

/// Removes `directory` with the rights of this process, and tells how many files were in it.
pub(crate) fn remove(directory: &Path) -> io::Result<u64> {
    let files = count_files(directory);
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // Some tools leave directories that not even their owner may write in.
            open_up(directory);
            std::fs::remove_dir_all(directory)?;
        }
        removed => removed?,
    }
    Ok(files)
}

/// The files below `directory`; what cannot be read is not counted.
fn count_files(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => count_files(&entry.path()),
            _ => 1,
        })
        .sum()
}

/// Lets this user do everything in `directory` and below it, as far as it may say so.
fn open_up(directory: &Path) {
    let _ = std::fs::set_permissions(directory, Permissions::from_mode(0o700));
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_directory_is_its_owners_alone_and_goes_when_dropped() {
        let parent = tempfile::tempdir().unwrap();
        let files = Arc::new(Files::Own { parent: parent.path().join("sub") });
        let made = files.make_private(JobId(7)).unwrap();
        let path = made.path().to_owned();
        assert!(path.file_name().unwrap().to_str().unwrap().starts_with("j7-"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::create_dir(path.join("deep")).unwrap();
        std::fs::write(path.join("deep/file"), "").unwrap();
        std::fs::set_permissions(path.join("deep"), Permissions::from_mode(0o500)).unwrap();
        drop(made);
        assert!(!path.exists());
        assert_eq!(files.make_private(JobId(7)).unwrap().remove().unwrap(), 0);
    }

    #[test]
    fn only_a_directory_can_be_entered() {
        let parent = tempfile::tempdir().unwrap();
        assert!(enter(parent.path()).is_ok());
        let file = parent.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(enter(&file).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        assert_eq!(enter(&parent.path().join("no")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
