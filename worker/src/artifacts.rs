//! What is in files of jobs, kept on this worker's disk by digest: sent once, shared by jobs, and when it
//! takes too much the longest unused goes first.
//!
//! A job that is being opened has a [`Claim`]: what it needs stays until the files are in place. Of what is
//! missing each artifact is asked for by one session only; when that one is cut off another one asks.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::FlockOperation;
use tempfile::NamedTempFile;
use tokio::sync::watch;
use widemap_common::artifact::Digest;

/// What directories of a worker whose jobs are another user's begin with.
const OWN_DIRECTORY: &str = "widemap-files-";

/// Held for as long as such a directory is in use.
const LOCK: &str = "lock";

/// See the file's head.
#[derive(Debug)]
pub(crate) struct ArtifactCache {
    place: Place,
    bytes_max: u64,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

/// Where artifacts lie.
#[derive(Debug)]
pub(crate) enum Place {
    /// In a directory that somebody else removes, made when it is needed.
    In(PathBuf),
    /// In a directory of the worker's own, where the user that jobs run as may read what it knows the
    /// digest of.
    Own { directory: PathBuf, _lock: File },
}

#[derive(Debug, Default)]
struct State {
    kept: HashMap<Digest, Kept>,
    kept_bytes: u64,
    wanted: HashMap<Digest, Wanted>,
    /// What [`Kept::used`] counts.
    clock: u64,
    askers: u64,
    /// Counts what may have to be asked for again, or never comes.
    setbacks: u64,
}

#[derive(Debug)]
struct Kept {
    bytes: u64,
    used: u64,
}

/// An artifact that jobs need which are being opened.
#[derive(Debug)]
struct Wanted {
    claims: usize,
    bytes: u64,
    asked_by: Option<AskerId>,
    /// Why it could not be stored.
    failure: Option<String>,
}

/// A session that asks for artifacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AskerId(u64);

/// The right of a job to what is in its files, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    cache: Arc<ArtifactCache>,
    artifacts: Vec<Digest>,
    /// So many of them are there, from the first on: a job may have thousands, and each that comes is
    /// looked at.
    there: Cell<usize>,
    /// [`State::setbacks`] when all that was missing had been asked for.
    asked: Cell<Option<u64>>,
}

/// How far a [`Claim`] is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// All of it is there.
    Ready,
    /// Some of it is on its way; these are to be asked for.
    Waits(Vec<Digest>),
    /// Some of it cannot be stored, and why.
    Failed(String),
}

/// Why a job's files cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "its files take {needed} bytes beside {taken} of other jobs that are being opened, and the worker \
     keeps {most} (widemap-worker --file-cache)"
)]
pub(crate) struct TooLarge {
    needed: u64,
    taken: u64,
    most: u64,
}

/// An artifact while it comes in.
#[derive(Debug)]
pub(crate) struct Receiving {
    cache: Arc<ArtifactCache>,
    digest: Digest,
    length: u64,
    at: u64,
    /// Nothing where nobody wants it any more, or it cannot be stored.
    file: Option<(NamedTempFile, Box<blake3::Hasher>)>,
}

/// Why an artifact that has come is not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("a part for byte {offset} of {digest} came where byte {expected} was due")]
    Gap { digest: Digest, offset: u64, expected: u64 },
    #[error("what came as {digest} is {found}")]
    Changed { digest: Digest, found: Digest },
}

impl Place {
    /// A directory of the worker's own below `parent`. What a former worker has left there goes.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn own(parent: &Path) -> io::Result<Self> {
        remove_left(parent);
        let name = format!("{OWN_DIRECTORY}{}-{:016x}", std::process::id(), fastrand::u64(..));
        let directory = parent.join(name);
        // It can be entered, and not be looked through.
        DirBuilder::new().mode(0o711).create(&directory)?;
        let lock = File::create(directory.join(LOCK))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self::Own { directory, _lock: lock })
    }

    fn directory(&self) -> &Path {
        match self {
            Self::In(directory) | Self::Own { directory, .. } => directory,
        }
    }

    fn make(&self) -> io::Result<()> {
        match self {
            Self::In(directory) => DirBuilder::new().mode(0o700).recursive(true).create(directory),
            Self::Own { .. } => Ok(()),
        }
    }

    /// Who may read an artifact: nobody writes it.
    fn mode(&self) -> u32 {
        match self {
            Self::In(_) => 0o400,
            Self::Own { .. } => 0o444,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // There is nobody to tell; the next worker removes what stays.
        let _ = fs::remove_dir_all(self.directory());
    }
}

/// Removes directories of workers that were killed.
fn remove_left(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(OWN_DIRECTORY);
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_ours || !is_directory {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // Somebody else's cannot be removed, and is not this worker's to be.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl ArtifactCache {
    /// A cache of so many bytes at the most.
    pub(crate) fn new(place: Place, bytes_max: u64) -> Self {
        let (state, changes) = (Mutex::default(), watch::Sender::new(0));
        Self { place, bytes_max, state, changes }
    }

    /// One more session.
    pub(crate) fn new_asker(&self) -> AskerId {
        let mut state = self.lock();
        state.askers += 1;
        AskerId(state.askers)
    }

    /// What a session has asked for will not come: others may ask.
    pub(crate) fn forget(&self, asker: AskerId) {
        let mut state = self.lock();
        let mut changed = false;
        for wanted in state.wanted.values_mut().filter(|wanted| wanted.asked_by == Some(asker)) {
            wanted.asked_by = None;
            changed = true;
        }
        state.setbacks += u64::from(changed);
        drop(state);
        if changed {
            self.tell();
        }
    }

    /// Changes whenever something has come, or will not.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Claims what a job brings along.
    ///
    /// # Errors
    /// If that is more than is ever kept.
    pub(crate) fn claim(
        self: &Arc<Self>,
        artifacts: BTreeMap<Digest, u64>,
    ) -> Result<Claim, TooLarge> {
        let mut state = self.lock();
        let is_new = |digest: &Digest| !state.wanted.contains_key(digest);
        let needed =
            artifacts.iter().filter(|(digest, _)| is_new(digest)).map(|(_, bytes)| bytes).sum();
        let taken: u64 = state.wanted.values().map(|wanted| wanted.bytes).sum();
        let most = self.bytes_max;
        if taken.checked_add(needed).is_none_or(|bytes| bytes > most) {
            return Err(TooLarge { needed, taken, most });
        }
        for (&digest, &bytes) in &artifacts {
            let new = || Wanted { claims: 0, bytes, asked_by: None, failure: None };
            state.wanted.entry(digest).or_insert_with(new).claims += 1;
        }
        drop(state);
        let artifacts = artifacts.into_keys().collect();
        Ok(Claim {
            cache: Arc::clone(self),
            artifacts,
            there: Cell::new(0),
            asked: Cell::new(None),
        })
    }

    /// An artifact begins to come in.
    pub(crate) fn receive(self: &Arc<Self>, digest: Digest, length: u64) -> Receiving {
        let cache = Arc::clone(self);
        let mut receiving = Receiving { cache, digest, length, at: 0, file: None };
        let is_due = {
            let state = self.lock();
            let wanted = state.wanted.get(&digest).is_some_and(|wanted| wanted.bytes == length);
            wanted && !state.kept.contains_key(&digest)
        };
        if is_due {
            let made = self.place.make();
            match made.and_then(|()| NamedTempFile::new_in(self.place.directory())) {
                Ok(file) => receiving.file = Some((file, Box::default())),
                Err(error) => self.fail(digest, &error),
            }
        }
        receiving
    }

    /// An artifact cannot be stored: who waits for it is told.
    fn fail(&self, digest: Digest, error: &io::Error) {
        let mut state = self.lock();
        state.setbacks += 1;
        if let Some(wanted) = state.wanted.get_mut(&digest) {
            let directory = self.place.directory().display();
            wanted.failure = Some(format!("its files cannot be kept in {directory}: {error}"));
        }
        drop(state);
        self.tell();
    }

    fn put(&self, digest: Digest, bytes: u64) {
        let mut state = self.lock();
        state.clock += 1;
        let used = state.clock;
        if state.kept.insert(digest, Kept { bytes, used }).is_none() {
            state.kept_bytes += bytes;
        }
        self.make_room(&mut state);
        drop(state);
        self.tell();
    }

    /// Removes what nobody has needed for longest, until the rest is not too much.
    fn make_room(&self, state: &mut State) {
        while state.kept_bytes > self.bytes_max {
            let idle = state.kept.iter().filter(|(digest, _)| !state.wanted.contains_key(digest));
            let Some((&digest, _)) = idle.min_by_key(|(_, kept)| kept.used) else { return };
            state.kept_bytes -= state.kept.remove(&digest).map_or(0, |kept| kept.bytes);
            // One that is not there any more is as good as removed.
            let _ = fs::remove_file(self.path(digest));
        }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.place.directory().join(digest.to_string())
    }

    fn tell(&self) {
        self.changes.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// How far it is. What it waits for and nobody has asked for is `asker`'s to ask for, from now on.
    pub(crate) fn progress(&self, asker: AskerId) -> Progress {
        let mut state = self.cache.lock();
        let State { kept, wanted, setbacks, .. } = &mut *state;
        // What is there stays for as long as it is claimed.
        let left = &self.artifacts[self.there.get()..];
        let there = left.iter().take_while(|digest| kept.contains_key(digest)).count();
        self.there.set(self.there.get() + there);
        let left = &left[there..];
        if left.is_empty() {
            return Progress::Ready;
        }
        let mut ask = Vec::new();
        if self.asked.replace(Some(*setbacks)) == Some(*setbacks) {
            return Progress::Waits(ask);
        }
        for digest in left.iter().filter(|digest| !kept.contains_key(digest)) {
            let Some(wanted) = wanted.get_mut(digest) else { continue };
            if let Some(failure) = &wanted.failure {
                return Progress::Failed(failure.clone());
            }
            if wanted.asked_by.is_none() {
                wanted.asked_by = Some(asker);
                ask.push(*digest);
            }
        }
        Progress::Waits(ask)
    }

    /// Where an artifact lies, once it is there.
    pub(crate) fn path(&self, digest: Digest) -> PathBuf {
        self.cache.path(digest)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        let State { kept, wanted, clock, .. } = &mut *state;
        *clock += 1;
        for digest in &self.artifacts {
            if let Some(kept) = kept.get_mut(digest) {
                kept.used = *clock;
            }
            if let Some(entry) = wanted.get_mut(digest) {
                entry.claims -= 1;
                if entry.claims == 0 {
                    wanted.remove(digest);
                }
            }
        }
        self.cache.make_room(&mut state);
    }
}

impl Receiving {
    /// Which it is.
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// Stores a part; keeps the artifact if it was the last. Whether it was.
    ///
    /// # Errors
    /// If it is out of place, or all of it is not what it was said to be. That a disk is full is told to
    /// the jobs which wait for it, not here: the sender can do nothing about it.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<bool, ReceiveError> {
        let (digest, expected) = (self.digest, self.at);
        if offset != expected {
            return Err(ReceiveError::Gap { digest, offset, expected });
        }
        self.at += data.len() as u64;
        if let Some((file, hasher)) = &mut self.file {
            hasher.update(data);
            if let Err(error) = file.write_all(data) {
                self.file = None;
                self.cache.fail(digest, &error);
            }
        }
        let is_whole = self.at == self.length;
        if let Some((file, hasher)) = self.file.take_if(|_| is_whole) {
            self.keep(file, &hasher)?;
        }
        Ok(is_whole)
    }

    fn keep(&self, file: NamedTempFile, hasher: &blake3::Hasher) -> Result<(), ReceiveError> {
        let (digest, found) = (self.digest, Digest(hasher.finalize().into()));
        if found != digest {
            return Err(ReceiveError::Changed { digest, found });
        }
        let mode = Permissions::from_mode(self.cache.place.mode());
        let kept = file.as_file().set_permissions(mode);
        let kept = kept.and_then(|()| Ok(file.persist(self.cache.path(digest))?));
        match kept {
            Ok(_) => self.cache.put(digest, self.length),
            Err(error) => self.cache.fail(digest, &error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn digest(content: &[u8]) -> Digest {
        Digest(blake3::hash(content).into())
    }

    fn artifacts(contents: &[&[u8]]) -> BTreeMap<Digest, u64> {
        contents.iter().map(|content| (digest(content), content.len() as u64)).collect()
    }

    fn cache(bytes_max: u64) -> (tempfile::TempDir, Arc<ArtifactCache>) {
        let parent = tempfile::tempdir().unwrap();
        let place = Place::In(parent.path().join("artifacts"));
        (parent, Arc::new(ArtifactCache::new(place, bytes_max)))
    }

    fn send(cache: &Arc<ArtifactCache>, content: &[u8]) -> Result<bool, ReceiveError> {
        let mut receiving = cache.receive(digest(content), content.len() as u64);
        let (first, last) = content.split_at(content.len() / 2);
        if !first.is_empty() {
            assert!(!receiving.write(0, first)?);
        }
        receiving.write(first.len() as u64, last)
    }

    #[test]
    fn what_is_missing_is_asked_for_once_and_kept_for_the_next_job() {
        let (_parent, cache) = cache(100);
        let (one, other) = (cache.new_asker(), cache.new_asker());
        let first = cache.claim(artifacts(&[b"aaaa", b""])).unwrap();
        let second = cache.claim(artifacts(&[b"aaaa"])).unwrap();
        let mut asked = vec![digest(b"aaaa"), digest(b"")];
        asked.sort_unstable();
        assert_eq!(first.progress(one), Progress::Waits(asked));
        assert_eq!(second.progress(other), Progress::Waits(Vec::new()));
        // The one that has asked is cut off: the other asks.
        cache.forget(one);
        assert_eq!(second.progress(other), Progress::Waits(vec![digest(b"aaaa")]));
        assert_eq!(send(&cache, b"aaaa"), Ok(true));
        assert_eq!(send(&cache, b""), Ok(true));
        assert_eq!(
            (first.progress(one), second.progress(other)),
            (Progress::Ready, Progress::Ready)
        );
        assert_eq!(fs::read(first.path(digest(b"aaaa"))).unwrap(), b"aaaa");
        drop((first, second));
        let third = cache.claim(artifacts(&[b"aaaa"])).unwrap();
        assert_eq!(third.progress(other), Progress::Ready);
    }

    #[test]
    fn the_longest_unused_goes_first_and_never_what_is_claimed() {
        let (_parent, cache) = cache(10);
        let asker = cache.new_asker();
        for content in [b"aaaa", b"bbbb"] {
            let claim = cache.claim(artifacts(&[content])).unwrap();
            assert_eq!(send(&cache, content), Ok(true));
            assert_eq!(claim.progress(asker), Progress::Ready);
        }
        drop(cache.claim(artifacts(&[b"aaaa"])).unwrap());
        let held = cache.claim(artifacts(&[b"cccc"])).unwrap();
        assert_eq!(send(&cache, b"cccc"), Ok(true));
        let (gone, there) = (held.path(digest(b"bbbb")), held.path(digest(b"aaaa")));
        assert!(!gone.exists() && there.exists());
        // What is claimed counts against whoever comes.
        let refused = cache.claim(artifacts(&[b"ddddddd"])).unwrap_err();
        assert_eq!(refused, TooLarge { needed: 7, taken: 4, most: 10 });
        assert!(refused.to_string().contains("--file-cache"), "{refused}");
    }

    #[test]
    fn what_is_changed_out_of_place_or_unwanted_is_not_kept() {
        let (_parent, cache) = cache(100);
        let asker = cache.new_asker();
        let claim = cache.claim(artifacts(&[b"aaaa"])).unwrap();
        let mut receiving = cache.receive(digest(b"aaaa"), 4);
        let changed = receiving.write(0, b"aaab").unwrap_err();
        assert!(matches!(changed, ReceiveError::Changed { .. }));
        let mut receiving = cache.receive(digest(b"aaaa"), 4);
        let gap = receiving.write(1, b"aaa").unwrap_err();
        assert!(matches!(gap, ReceiveError::Gap { expected: 0, .. }));
        assert_eq!(send(&cache, b"nobody wants it"), Ok(true));
        assert!(!claim.path(digest(b"nobody wants it")).exists());
        assert_eq!(claim.progress(asker), Progress::Waits(vec![digest(b"aaaa")]));
    }

    #[test]
    fn a_disk_that_takes_nothing_is_told_to_who_waits() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("file"), "").unwrap();
        let place = Place::In(parent.path().join("file/artifacts"));
        let cache = Arc::new(ArtifactCache::new(place, 100));
        let claim = cache.claim(artifacts(&[b"aaaa"])).unwrap();
        assert_eq!(send(&cache, b"aaaa"), Ok(true));
        let Progress::Failed(why) = claim.progress(cache.new_asker()) else { panic!("it fails") };
        assert!(why.starts_with("its files cannot be kept in"), "{why}");
    }

    #[test]
    fn a_directory_that_a_killed_worker_left_goes_and_one_in_use_stays() {
        let parent = tempfile::tempdir().unwrap();
        let used = Place::own(parent.path()).unwrap();
        let left = parent.path().join(format!("{OWN_DIRECTORY}1-2"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        let another = Place::own(parent.path()).unwrap();
        assert!(!left.exists() && used.directory().exists());
        let directory = another.directory().to_owned();
        assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o711);
        drop(another);
        assert!(!directory.exists());
    }
}
