//! The files that a job brings along (`--file`): found and hashed before anything runs.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use walkdir::WalkDir;
use widemap_common::artifact::{FileKind, JobFile, JobFiles};

use crate::data::{Artifact, Artifacts, digest_of};
use crate::error::MapError;

/// What `--file` has named.
#[derive(Debug, Default)]
pub(super) struct Brought {
    /// What workers are told of them.
    pub(super) files: JobFiles,
    /// Where they lie.
    pub(super) artifacts: Artifacts,
    /// Whether all of them have the same path from here as they will have there: who works here needs no
    /// copies.
    pub(super) are_here: bool,
}

/// Looks at what was named: what lies below the present directory keeps its path, what lies elsewhere its
/// last name. Links are followed.
///
/// # Errors
/// What cannot be read or sent, by its name.
pub(super) fn bring(paths: &[PathBuf]) -> Result<Brought, MapError> {
    let (mut files, mut artifacts, mut are_here) = (Vec::new(), Artifacts::default(), true);
    for path in paths {
        let (top, is_here) = destination(path)?;
        are_here &= is_here;
        for entry in WalkDir::new(path).follow_links(true).sort_by_file_name() {
            let entry = entry.map_err(|error| unreachable(path, &error))?;
            let below = entry.path().strip_prefix(path).unwrap_or(Path::new(""));
            let at = if below.as_os_str().is_empty() { top.clone() } else { top.join(below) };
            let kind = entry.file_type();
            if kind.is_dir() && at.as_os_str().is_empty() {
                continue;
            }
            let kind = match (kind.is_dir(), kind.is_file()) {
                (true, _) => FileKind::Directory,
                (_, true) => regular(entry.path(), &mut artifacts)?,
                _ => return Err(failed(entry.path(), "neither a file nor a directory")),
            };
            let file = JobFile { path: at.as_os_str().as_bytes().to_vec(), kind };
            // Named twice, it is there once.
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    let files = JobFiles::new(files)
        .map_err(|error| MapError::Flag { flag: "--file", problem: error.to_string() })?;
    Ok(Brought { files, artifacts, are_here })
}

/// Where something goes, and whether that is where it is from here.
fn destination(path: &Path) -> Result<(PathBuf, bool), MapError> {
    let mut at = PathBuf::new();
    let mut is_below = true;
    for component in path.components() {
        match component {
            Component::Normal(name) => at.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => is_below = false,
        }
    }
    if is_below {
        return Ok((at, true));
    }
    let name = match path.file_name() {
        Some(name) => name.to_owned(),
        // `..` has a name of its own.
        None => {
            let real = path.canonicalize().map_err(|error| failed(path, error))?;
            let name = real.file_name().map(ToOwned::to_owned);
            name.ok_or_else(|| failed(path, "the root of the file system has no name"))?
        }
    };
    Ok((PathBuf::from(name), false))
}

fn regular(path: &Path, artifacts: &mut Artifacts) -> Result<FileKind, MapError> {
    let mode = path.metadata().map_err(|error| failed(path, error))?.permissions().mode();
    let (digest, bytes) = digest_of(path).map_err(|error| failed(path, error))?;
    // Read again later, whatever the present directory is then.
    let path = std::path::absolute(path).map_err(|error| failed(path, error))?;
    artifacts.insert(Artifact { digest, bytes, path });
    Ok(FileKind::Regular { digest, bytes, executable: mode & 0o111 != 0 })
}

fn unreachable(named: &Path, error: &walkdir::Error) -> MapError {
    let path = error.path().unwrap_or(named);
    match (error.io_error(), error.loop_ancestor()) {
        (_, Some(above)) => {
            failed(path, format!("a link to {}, in which it lies", above.display()))
        }
        (Some(error), None) => failed(path, error),
        (None, None) => failed(path, error),
    }
}

fn failed(path: &Path, why: impl std::fmt::Display) -> MapError {
    MapError::Flag { flag: "--file", problem: format!("{}: {why}", path.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_keeps_its_path_and_the_rest_its_name() {
        for (path, at, is_here) in [
            ("tool", "tool", true),
            ("./sub/./tool", "sub/tool", true),
            (".", "", true),
            ("../tool", "tool", false),
            ("sub/../tool", "tool", false),
            ("/usr/bin/env", "env", false),
        ] {
            assert_eq!(
                destination(Path::new(path)).unwrap(),
                (PathBuf::from(at), is_here),
                "{path}"
            );
        }
    }

    #[test]
    fn a_directory_comes_with_all_that_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        std::fs::create_dir_all(top.join("empty")).unwrap();
        std::fs::write(top.join("tool"), "run").unwrap();
        std::fs::set_permissions(top.join("tool"), PermissionsExt::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("tool", top.join("link")).unwrap();
        let brought = bring(&[top.clone(), top.join("tool"), top.join("tool")]).unwrap();
        assert!(!brought.are_here);
        let shown: Vec<_> = brought.files.iter().map(JobFile::shown).collect();
        assert_eq!(shown, ["tool", "top", "top/empty", "top/link", "top/tool"]);
        assert_eq!(brought.artifacts.digests().len(), 1);
        let executable = |file: &&JobFile| {
            matches!(file.kind, FileKind::Regular { executable: true, bytes: 3, .. })
        };
        assert_eq!(brought.files.iter().filter(executable).count(), 3);
    }

    #[test]
    fn what_cannot_be_brought_along_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let told = |path: &Path| bring(&[path.to_owned()]).unwrap_err().to_string();
        let missing = told(&directory.path().join("no"));
        assert!(missing.contains("/no: No such file"), "{missing}");
        let socket = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(told(&socket).contains("socket: neither a file nor a directory"));
        std::os::unix::fs::symlink(".", directory.path().join("loop")).unwrap();
        let endless = told(directory.path());
        assert!(endless.contains("loop: a link to"), "{endless}");
    }
}
