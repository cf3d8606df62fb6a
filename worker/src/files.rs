//! What a worker looks for, makes and removes in the file system for its jobs, with the rights of the
//! user that their processes have: its own, or by the steward those of `--run-as USER`. A worker that
//! is root must not touch the files of another user itself, who could put a link in their place.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Access;
use widemap_common::artifact::{FileKind, JobFile};
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
        Ok(PrivateDirectory { path, files: Some(self.clone()), placed: Vec::new() })
    }

    fn place(&self, source: Source<'_>, path: &Path) -> io::Result<()> {
        match self {
            Self::Own { .. } => place(source, path),
            Self::Steward(steward) => steward.place(source, path),
        }
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
    /// Files that the job has brought along.
    placed: Vec<PathBuf>,
}

/// What is put into a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source<'a> {
    /// A directory.
    Directory,
    /// A copy of a file: the job may write to it.
    Copy {
        /// Of which.
        from: &'a Path,
        /// Whether it may be run.
        executable: bool,
    },
}

impl PrivateDirectory {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a file of the job into it, which lies at `from`.
    ///
    /// # Errors
    /// If the system does not let us.
    pub(crate) fn place(
        &mut self,
        file: &JobFile,
        from: impl FnOnce() -> PathBuf,
    ) -> io::Result<()> {
        let Some(files) = &self.files else { return Ok(()) };
        let path = self.path.join(OsStr::from_bytes(&file.path));
        match file.kind {
            FileKind::Directory => files.place(Source::Directory, &path),
            FileKind::Regular { executable, .. } => {
                files.place(Source::Copy { from: &from(), executable }, &path)?;
                self.placed.push(path);
                Ok(())
            }
        }
    }

    /// Removes it, and tells how many files were left in it that the job had not brought along.
    ///
    /// # Errors
    /// If something of it stays.
    pub(crate) fn remove(mut self) -> io::Result<u64> {
        let Some(files) = self.files.take() else { return Ok(0) };
        let is_there = |path: &&PathBuf| path.symlink_metadata().is_ok_and(|meta| !meta.is_dir());
        let brought = self.placed.iter().filter(is_there).count() as u64;
        Ok(files.remove(&self.path)?.saturating_sub(brought))
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

/// Puts something at `path`, where nothing is, with the rights of this process.
pub(crate) fn place(source: Source<'_>, path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    let Source::Copy { from, executable } = source else { return builder.create(path) };
    if let Some(parent) = path.parent() {
        builder.create(parent)?;
    }
    let mode = if executable { 0o755 } else { 0o644 };
    let mut from = File::open(from)?;
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // Where the file system can, the two share what is in them.
    io::copy(&mut from, &mut copy).map(drop)
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
    use widemap_common::artifact::Digest;

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
    fn what_a_job_brings_along_is_its_own_copy_and_not_counted_as_left() {
        let parent = tempfile::tempdir().unwrap();
        let kept = parent.path().join("kept");
        std::fs::write(&kept, "tool").unwrap();
        std::fs::set_permissions(&kept, Permissions::from_mode(0o400)).unwrap();
        let files = Arc::new(Files::Own { parent: parent.path().join("sub") });
        let mut made = files.make_private(JobId(7)).unwrap();
        let regular = |path: &str, executable| JobFile {
            path: path.into(),
            kind: FileKind::Regular { digest: Digest([0; 32]), bytes: 4, executable },
        };
        let from = || kept.clone();
        made.place(&JobFile { path: b"empty".to_vec(), kind: FileKind::Directory }, from).unwrap();
        made.place(&regular("bin/tool", true), from).unwrap();
        made.place(&regular("data", false), from).unwrap();
        let path = made.path().to_owned();
        assert!(path.join("empty").is_dir());
        assert_eq!(path.join("bin/tool").metadata().unwrap().permissions().mode() & 0o700, 0o700);
        std::fs::write(path.join("data"), "changed").unwrap();
        std::fs::write(path.join("new"), "").unwrap();
        assert_eq!(std::fs::read(&kept).unwrap(), b"tool");
        let twice = made.place(&regular("data", false), from).unwrap_err();
        assert_eq!(twice.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(made.remove().unwrap(), 1);
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
