//! The file of `--output`: it appears whole, or not at all. Until then everything is written to a
//! temporary file beside it, and a file that was there before stays as it is.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Why the output file can not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputFileError {
    /// Its directory does not exist.
    #[error("cannot write {}: there is no directory {}", path.display(), directory.display())]
    NoDirectory {
        /// The file.
        path: PathBuf,
        /// What is missing.
        directory: PathBuf,
    },
    /// It is a directory itself.
    #[error("cannot write {}: it is a directory", .0.display())]
    IsDirectory(PathBuf),
    /// It, or a file beside it, can not be made or written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was written, and could not be put in its place.
    #[error("cannot put the output in its place, {}: {source} (it is in {})", path.display(), partial.display())]
    Place {
        /// The file.
        path: PathBuf,
        /// Where the output is.
        partial: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OutputFileError {
    /// Whether the output could not even be begun.
    #[must_use]
    pub fn is_before_start(&self) -> bool {
        !matches!(self, Self::Place { .. })
    }
}

/// The file of `--output`.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    state: State,
}

#[derive(Debug)]
enum State {
    Partial(NamedTempFile),
    /// What is there is no regular file (a FIFO, `/dev/null`): it is written to as it is.
    Direct(File),
}

impl OutputFile {
    /// Makes the temporary file, and with that finds out before anything is run whether the output
    /// can be written.
    ///
    /// # Errors
    /// [`OutputFileError`], naming the file and the reason.
    pub fn create(path: &Path) -> Result<Self, OutputFileError> {
        let failed = |source| OutputFileError::Write { path: path.to_owned(), source };
        let mut mode = 0o666;
        // A link stays a link: what it points to is replaced.
        let path = match fs::canonicalize(path) {
            Ok(found) => found,
            Err(_) => path.to_owned(),
        };
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => return Err(OutputFileError::IsDirectory(path)),
            Ok(found) => {
                let file = OpenOptions::new().write(true).open(&path).map_err(failed)?;
                if !found.is_file() {
                    return Ok(Self { path, state: State::Direct(file) });
                }
                mode = found.permissions().mode() & 0o777;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let directory = directory_of(&path);
        if !directory.is_dir() {
            return Err(OutputFileError::NoDirectory { path, directory });
        }
        let temporary = tempfile::Builder::new()
            .prefix(&with_suffix(path.file_name().unwrap_or_default(), ".partial."))
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(&directory)
            .map_err(failed)?;
        Ok(Self { path, state: State::Partial(temporary) })
    }

    /// What was written so far, to be read; nothing of what is written to directly.
    #[must_use]
    pub fn reopen(&self) -> Option<File> {
        match &self.state {
            State::Partial(temporary) => temporary.reopen().ok(),
            State::Direct(_) => None,
        }
    }

    /// Writes all of a small file and puts it in its place.
    ///
    /// # Errors
    /// As [`OutputFile::commit`], and if it cannot be written.
    pub fn write_whole(self, bytes: &[u8]) -> Result<(), OutputFileError> {
        let failed = |source| OutputFileError::Write { path: self.path.clone(), source };
        io::Write::write_all(&mut self.file(), bytes).map_err(failed)?;
        self.commit()
    }

    /// Puts the output in its place, durably.
    ///
    /// # Errors
    /// [`OutputFileError::Place`]; the output is then where the error says.
    pub fn commit(self) -> Result<(), OutputFileError> {
        let Self { path, state: State::Partial(temporary) } = self else { return Ok(()) };
        if let Err(source) = temporary.as_file().sync_all() {
            let partial = keep(temporary, &path)?;
            return Err(OutputFileError::Place { path, partial, source });
        }
        if let Err(error) = temporary.persist(&path) {
            let source = error.error;
            let partial = keep(error.file, &path)?;
            return Err(OutputFileError::Place { path, partial, source });
        }
        let synced = File::open(directory_of(&path)).and_then(|directory| directory.sync_all());
        synced.map_err(|source| OutputFileError::Place { partial: path.clone(), path, source })
    }

    /// Keeps what there is as `FILE.partial`, and says where; `None` if it was written directly.
    ///
    /// # Errors
    /// If it can not be renamed.
    pub fn keep_partial(self) -> Result<Option<PathBuf>, OutputFileError> {
        match self.state {
            State::Partial(temporary) => keep(temporary, &self.path).map(Some),
            State::Direct(_) => Ok(None),
        }
    }

    /// The file that was asked for.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is written to until then.
    pub fn file(&self) -> &File {
        match &self.state {
            State::Partial(temporary) => temporary.as_file(),
            State::Direct(file) => file,
        }
    }
}

fn keep(temporary: NamedTempFile, path: &Path) -> Result<PathBuf, OutputFileError> {
    let partial = PathBuf::from(with_suffix(path.as_os_str(), ".partial"));
    match temporary.persist(&partial) {
        Ok(_) => Ok(partial),
        Err(error) => {
            // It keeps the name that it has: nothing that was finished is lost.
            let source = error.error;
            let path = path.to_owned();
            let kept = error.file.keep().map(|(_, kept)| kept);
            let partial = kept.unwrap_or_else(|error| error.file.path().to_owned());
            Err(OutputFileError::Place { path, partial, source })
        }
    }
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => PathBuf::from("/"),
    }
}

fn with_suffix(name: &std::ffi::OsStr, suffix: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(suffix);
    name
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_old_file_stays_until_the_new_one_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let output = OutputFile::create(&path).unwrap();
        output.file().write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        output.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_whole_is_kept_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let output = OutputFile::create(&path).unwrap();
        output.file().write_all(b"half").unwrap();
        let partial = output.keep_partial().unwrap().unwrap();
        assert_eq!(partial, directory.path().canonicalize().unwrap().join("out.partial"));
        assert_eq!(fs::read(partial).unwrap(), b"half");
        assert!(!path.exists());
    }

    #[test]
    fn what_can_not_be_written_is_told_up_front() {
        let directory = tempfile::tempdir().unwrap();
        let error = OutputFile::create(&directory.path().join("no/such/out")).unwrap_err();
        assert!(matches!(error, OutputFileError::NoDirectory { .. }), "{error}");
        let error = OutputFile::create(directory.path()).unwrap_err();
        assert!(matches!(error, OutputFileError::IsDirectory(_)), "{error}");
    }

    #[test]
    fn a_device_is_written_to_and_never_replaced() {
        let output = OutputFile::create(Path::new("/dev/null")).unwrap();
        output.file().write_all(b"x").unwrap();
        assert_eq!(output.keep_partial().unwrap(), None);
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
