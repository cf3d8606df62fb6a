//! The steward: answers what the worker asks about files with the rights of the user that jobs run
//! as, where that is another user. It is a thread of the spawner, which has given up all others; a
//! second thread copies files and removes directories, so that a large one holds up nobody.
//!
//! A request is a kind and three fields, an answer a kind and one; each field has its length before
//! it.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::errno::Errno;

use super::run_as::Step;
use crate::files::{self, CommandError, Source};

/// The longest field: no path and no PATH is longer, since the system passes on none that is.
const FIELD_BYTES_MAX: usize = 256 * 1024;

/// The fields of a request.
const REQUEST_FIELDS: usize = 3;

const ENTER: u8 = 1;
const FIND: u8 = 2;
const MAKE: u8 = 3;
const REMOVE: u8 = 4;
const PLACE: u8 = 5;

/// What is placed: the third field of a request.
const DIRECTORY: &[u8] = b"directory";
const PLAIN: &[u8] = b"plain";
const EXECUTABLE: &[u8] = b"executable";

const YES: u8 = 0;
const ERRNO: u8 = 1;
const NOT_IN_PATH: u8 = 2;
const NO_FILE: u8 = 3;
const NOT_EXECUTABLE: u8 = 4;
const REFUSED: u8 = 5;

/// The worker's way to its steward.
#[derive(Debug)]
pub(crate) struct Steward {
    questions: Mutex<UnixStream>,
    removals: Mutex<UnixStream>,
}

/// The other ends of a [`Steward`].
#[derive(Debug)]
pub(super) struct StewardEnds {
    questions: UnixStream,
    removals: UnixStream,
}

/// What the spawner says before it serves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// It is of the user now.
    Ready,
    /// It could not become one, and ends.
    Refused(Step, Errno),
    /// It said nothing.
    Died,
}

/// Both sides.
pub(super) fn pair() -> io::Result<(Steward, StewardEnds)> {
    let (questions, their_questions) = UnixStream::pair()?;
    let (removals, their_removals) = UnixStream::pair()?;
    Ok((
        Steward { questions: Mutex::new(questions), removals: Mutex::new(removals) },
        StewardEnds { questions: their_questions, removals: their_removals },
    ))
}

impl Steward {
    /// Waits for what the spawner says first.
    pub(super) fn beginning(&self) -> Beginning {
        let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        match read_answer(&mut *questions) {
            Ok((YES, _)) => Beginning::Ready,
            Ok((REFUSED, told)) => match told.split_first() {
                Some((number, errno)) => match Step::from_number(*number) {
                    Some(step) => Beginning::Refused(step, Errno::from_raw(errno_in(errno))),
                    None => Beginning::Died,
                },
                None => Beginning::Died,
            },
            _ => Beginning::Died,
        }
    }

    pub(crate) fn enter(&self, directory: &Path) -> io::Result<()> {
        let request = [directory.as_os_str().as_bytes(), b"", b""];
        accepted(ask(&self.questions, ENTER, request)?).map(drop)
    }

    pub(crate) fn find(
        &self,
        command: &[u8],
        path: &OsStr,
        here: &Path,
    ) -> Result<PathBuf, CommandError> {
        let request = [command, path.as_bytes(), here.as_os_str().as_bytes()];
        let answer = ask(&self.questions, FIND, request);
        let (kind, told) = answer.map_err(|_| CommandError::NobodyLooks)?;
        let told = path_in(&told);
        match kind {
            YES => Ok(told),
            NOT_IN_PATH => Err(CommandError::NotInPath(told)),
            NO_FILE => Err(CommandError::NoFile(told)),
            NOT_EXECUTABLE => Err(CommandError::NotExecutable(told)),
            _ => Err(CommandError::NobodyLooks),
        }
    }

    pub(crate) fn make_private(&self, job: &str) -> io::Result<PathBuf> {
        let made = accepted(ask(&self.questions, MAKE, [job.as_bytes(), b"", b""])?)?;
        Ok(path_in(&made))
    }

    /// The file that is copied is one that the user may read.
    pub(crate) fn place(&self, source: Source<'_>, path: &Path) -> io::Result<()> {
        let (from, kind) = match source {
            Source::Directory => (b"".as_slice(), DIRECTORY),
            Source::Copy { from, executable: false } => (from.as_os_str().as_bytes(), PLAIN),
            Source::Copy { from, executable: true } => (from.as_os_str().as_bytes(), EXECUTABLE),
        };
        // A large one is to hold up nobody who looks for a command.
        let request = [path.as_os_str().as_bytes(), from, kind];
        accepted(ask(&self.removals, PLACE, request)?).map(drop)
    }

    pub(crate) fn remove(&self, directory: &Path) -> io::Result<u64> {
        let request = [directory.as_os_str().as_bytes(), b"", b""];
        let told = accepted(ask(&self.removals, REMOVE, request)?)?;
        let files = told.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(u64::from_le_bytes(files))
    }
}

impl StewardEnds {
    /// Says why the spawner cannot become of the user. Whoever does not hear it hears its end.
    pub(super) fn refuse(mut self, step: Step, errno: Errno) {
        let mut told = vec![step.number()];
        told.extend_from_slice(&(errno as i32).to_le_bytes());
        let _ = write_message(&mut self.questions, REFUSED, &[&told]);
    }

    /// Says that the spawner is ready, and answers from then on in threads of their own, which end
    /// when the worker has closed its ends. Private directories are made below `parent`.
    pub(super) fn serve(mut self, parent: &Path) -> io::Result<()> {
        write_message(&mut self.questions, YES, &[b""])?;
        let Self { questions, removals } = self;
        for (name, socket) in [("questions", questions), ("removals", removals)] {
            let parent = parent.to_owned();
            // They end with the process, which waits for none: a file system may hang.
            drop(
                thread::Builder::new()
                    .name(name.to_owned())
                    .spawn(move || answer_all(socket, &parent))?,
            );
        }
        Ok(())
    }
}

/// Answers until there is nobody to ask.
fn answer_all(mut socket: UnixStream, parent: &Path) {
    while let Ok((kind, fields)) = read_message::<REQUEST_FIELDS>(&mut socket) {
        let (kind, told) = answer(kind, &fields, parent);
        if write_message(&mut socket, kind, &[&told]).is_err() {
            return;
        }
    }
}

fn answer(kind: u8, fields: &[Vec<u8>; REQUEST_FIELDS], parent: &Path) -> (u8, Vec<u8>) {
    let [first, second, third] = fields;
    let path = path_in(first);
    let bytes = |path: PathBuf| path.into_os_string().into_encoded_bytes();
    let done = match kind {
        ENTER => files::enter(&path).map(|()| Vec::new()),
        FIND => match files::find(first, OsStr::from_bytes(second), &path_in(third)) {
            Ok(found) => Ok(bytes(found)),
            Err(CommandError::NotInPath(path)) => return (NOT_IN_PATH, bytes(path)),
            Err(CommandError::NoFile(path)) => return (NO_FILE, bytes(path)),
            Err(CommandError::NotExecutable(path)) => return (NOT_EXECUTABLE, bytes(path)),
            Err(CommandError::NobodyLooks) => Err(io::ErrorKind::Unsupported.into()),
        },
        MAKE => files::make_private(parent, &String::from_utf8_lossy(first)).map(bytes),
        PLACE => files::place(source_in(second, third), &path).map(|()| Vec::new()),
        REMOVE => files::remove(&path).map(|files| files.to_le_bytes().to_vec()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    };
    match done {
        Ok(told) => (YES, told),
        Err(error) => (ERRNO, errno_of(&error).to_le_bytes().to_vec()),
    }
}

fn source_in<'a>(from: &'a [u8], kind: &[u8]) -> Source<'a> {
    match kind {
        DIRECTORY => Source::Directory,
        _ => Source::Copy {
            from: Path::new(OsStr::from_bytes(from)),
            executable: kind == EXECUTABLE,
        },
    }
}

fn errno_of(error: &io::Error) -> i32 {
    let known = match error.kind() {
        io::ErrorKind::NotADirectory => Errno::ENOTDIR,
        _ => Errno::EIO,
    };
    error.raw_os_error().unwrap_or(known as i32)
}

fn errno_in(told: &[u8]) -> i32 {
    told.try_into().map_or(Errno::EIO as i32, i32::from_le_bytes)
}

fn path_in(told: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(told))
}

/// Asks, one question at a time.
fn ask(
    socket: &Mutex<UnixStream>,
    kind: u8,
    fields: [&[u8]; REQUEST_FIELDS],
) -> io::Result<(u8, Vec<u8>)> {
    if fields.iter().any(|field| field.len() > FIELD_BYTES_MAX) {
        return Err(Errno::ENAMETOOLONG.into());
    }
    // Half a question can only be left by a panic in between, of which there is none.
    let mut socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
    write_message(&mut *socket, kind, &fields)?;
    read_answer(&mut *socket)
}

fn accepted((kind, told): (u8, Vec<u8>)) -> io::Result<Vec<u8>> {
    match kind {
        YES => Ok(told),
        _ => Err(io::Error::from_raw_os_error(errno_in(&told))),
    }
}

fn read_answer(socket: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let (kind, [told]) = read_message(socket)?;
    Ok((kind, told))
}

fn write_message(socket: &mut impl Write, kind: u8, fields: &[&[u8]]) -> io::Result<()> {
    let mut message = vec![kind];
    for field in fields {
        let length = u32::try_from(field.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        message.extend_from_slice(&length.to_le_bytes());
        message.extend_from_slice(field);
    }
    socket.write_all(&message)
}

fn read_message<const N: usize>(socket: &mut impl Read) -> io::Result<(u8, [Vec<u8>; N])> {
    let mut kind = [0];
    socket.read_exact(&mut kind)?;
    let mut fields = [const { Vec::new() }; N];
    for field in &mut fields {
        let mut length = [0; 4];
        socket.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > FIELD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        field.resize(length, 0);
        socket.read_exact(field)?;
    }
    Ok((kind[0], fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A steward that has the rights of the test.
    fn steward(parent: &Path) -> Steward {
        let (steward, ends) = pair().unwrap();
        ends.serve(parent).unwrap();
        assert_eq!(steward.beginning(), Beginning::Ready);
        steward
    }

    #[test]
    fn a_steward_does_what_the_worker_would() {
        let parent = tempfile::tempdir().unwrap();
        let steward = steward(&parent.path().join("jobs"));
        let made = steward.make_private("j1").unwrap();
        assert!(made.starts_with(parent.path()) && made.is_dir());
        assert!(steward.enter(&made).is_ok());
        let file = made.join("file");
        std::fs::write(&file, "").unwrap();
        let error = steward.enter(&file).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
        for (command, path) in
            [("sh", "/bin"), ("none", "/bin:/usr/bin"), ("./file", ""), ("./no", "")]
        {
            let path = OsStr::new(path);
            let here = files::find(command.as_bytes(), path, &made);
            assert_eq!(steward.find(command.as_bytes(), path, &made), here, "{command}");
        }
        let copy = Source::Copy { from: &file, executable: true };
        steward.place(Source::Directory, &made.join("sub")).unwrap();
        steward.place(copy, &made.join("sub/tool")).unwrap();
        assert!(steward.find(b"./sub/tool", OsStr::new(""), &made).is_ok());
        let there = steward.place(copy, &made.join("sub/tool")).unwrap_err();
        assert_eq!(there.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(steward.remove(&made).unwrap(), 2);
        assert!(!made.exists());
        assert_eq!(steward.remove(&made).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_refusal_and_a_death_are_told_apart() {
        let (steward, ends) = pair().unwrap();
        ends.refuse(Step::Groups, Errno::EPERM);
        assert_eq!(steward.beginning(), Beginning::Refused(Step::Groups, Errno::EPERM));
        let (steward, ends) = pair().unwrap();
        drop(ends);
        assert_eq!(steward.beginning(), Beginning::Died);
        assert_eq!(steward.enter(Path::new("/")).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let found = steward.find(b"sh", OsStr::new("/bin"), Path::new("/"));
        assert_eq!(found, Err(CommandError::NobodyLooks));
    }

    #[test]
    fn what_is_too_long_is_not_asked() {
        let (steward, _ends) = pair().unwrap();
        let long = PathBuf::from("x".repeat(FIELD_BYTES_MAX + 1));
        assert!(steward.enter(&long).is_err());
    }
}
