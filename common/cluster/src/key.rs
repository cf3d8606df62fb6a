//! The cluster key: 32 random bytes in one file, from which everything that proves a member follows.
//!
//! A key file has one key a line; the first is this host's own, one more is trusted beside it while
//! keys are changed. Blank lines and what follows `#` are passed over.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::bundle::{self, WorkerBundle};
use crate::cluster_id::ClusterId;

/// What every key begins with in text: it names the form and its version.
const PREFIX: &str = "widemap-key-v1:";

/// A key file of the usual name.
const FILE_NAME: &str = "widemap/key";

/// A key file is short: what is longer is something else.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The own key, and one that is trusted while keys are changed.
const KEYS_MAX: usize = 2;

/// Permission bits that a secret file must not have: those of the group and of others.
const LOOSE: u32 = 0o077;

/// A secret that all members of a cluster share. Whoever has it is a member.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey(Zeroizing<[u8; 32]>);

/// The keys of a key file: this host's own first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRing {
    keys: Vec<ClusterKey>,
}

/// What a file named by `--key` holds.
#[derive(Clone, Debug)]
pub enum KeyFile {
    /// The key of the cluster.
    Keys(KeyRing),
    /// A worker's certificate, made from the key, from which the key cannot be had.
    Bundle(WorkerBundle),
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("cannot read the key file {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Nobody can tell whether there is one.
    #[error(
        "{path} may hold the key of a cluster, and this user cannot look there: {error}; name a key \
         file that this user can read (--key FILE), or say --insecure to use none"
    )]
    Hidden {
        /// Where it may be.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Others can read it.
    #[error(
        "the key file {path} can be read by others (mode {mode:04o}): chmod 600 {path}; \
         if they may have read it, make another key"
    )]
    Loose {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to somebody else, who can change it.
    #[error("the key file {path} belongs to another user (uid {owner}): chown it, or copy it")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// It holds something else.
    #[error("{path}, line {line}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong; never what stands there.
        problem: &'static str,
    },
    /// It holds a worker bundle that cannot be read.
    #[error("{path}: {error}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: bundle::BundleError,
    },
    /// The key itself stands where its file should be named.
    #[error(
        "a key stands where the path of its file belongs: others could read it there; write it to a \
         file of mode 600 and name that"
    )]
    NotAPath,
    /// A key is never overwritten.
    #[error(
        "{0} exists already, and a key is never overwritten: remove it first, or name another file"
    )]
    Exists(PathBuf),
    /// It cannot be written.
    #[error("cannot write {path}: {error}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// No place for it is known.
    #[error(
        "no place for a key file is known (neither XDG_CONFIG_HOME nor HOME is set): name a file"
    )]
    NoPlace,
}

impl ClusterKey {
    /// A new key, of the system's randomness.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; 32]);
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(bytes.as_mut_slice()).map_err(|_| KeyError::Random)?;
        Ok(Self(bytes))
    }

    /// The text form, a line without its end. It is the secret itself.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 64));
        text.push_str(PREFIX);
        for byte in self.0.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
        text
    }

    /// The key of a line.
    fn of_text(text: &str) -> Result<Self, &'static str> {
        let Some(digits) = text.strip_prefix(PREFIX) else {
            return Err("not a cluster key (`widemap key new` makes one)");
        };
        let mut bytes = Zeroizing::new([0; 32]);
        if digits.len() != 64 || !digits.is_ascii() {
            return Err("the key is not whole: it has 64 hexadecimal digits");
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else {
                return Err("the key is damaged: it has 64 hexadecimal digits");
            };
            *byte = u8::try_from(high * 16 + low).unwrap_or_default();
        }
        Ok(Self(bytes))
    }

    /// What the cluster of this key is called.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        let mut id = [0; 8];
        self.derive(b"widemap/v1/cluster-id", &mut id);
        ClusterId(id)
    }

    /// The seed of the certificate authority's Ed25519 key.
    pub(crate) fn authority_seed(&self) -> Zeroizing<[u8; 32]> {
        let mut seed = Zeroizing::new([0; 32]);
        self.derive(b"widemap/v1/ca", seed.as_mut_slice());
        seed
    }

    /// HKDF-SHA256 (RFC 5869) without a salt, with a label for each purpose.
    fn derive(&self, label: &[u8], output: &mut [u8]) {
        Hkdf::<Sha256>::new(None, self.0.as_slice())
            .expand(label, output)
            .expect("the output is shorter than 255 hashes");
    }
}

/// Shows nothing of the secret.
impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey({})", self.cluster())
    }
}

impl KeyRing {
    /// A ring of one key.
    #[must_use]
    pub fn of(key: ClusterKey) -> Self {
        Self { keys: vec![key] }
    }

    /// This host's own key.
    #[must_use]
    pub fn own(&self) -> &ClusterKey {
        &self.keys[0]
    }

    /// All keys, the own one first.
    #[must_use]
    pub fn all(&self) -> &[ClusterKey] {
        &self.keys
    }
}

/// Where a service manager has put a key for this service alone, where this user's is, and where the
/// host's is: the first that exists counts.
#[must_use]
pub fn usual_places() -> Vec<PathBuf> {
    let given = credentials().map(|directory| directory.join(CREDENTIAL));
    let own = user_directory().map(|directory| directory.join(FILE_NAME));
    let mut places: Vec<_> = given.into_iter().chain(own).collect();
    places.push(Path::new("/etc").join(FILE_NAME));
    places
}

/// What a service manager calls a key that it hands over.
const CREDENTIAL: &str = "widemap-key";

/// Where a service manager puts what it hands over (`LoadCredential=` of systemd).
fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Where a user's configuration is: `XDG_CONFIG_HOME`, or else `.config` in the home directory.
#[must_use]
pub(crate) fn user_directory() -> Option<PathBuf> {
    let absolute =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))
}

/// The key file at one of the usual places, if there is one.
///
/// # Errors
/// If there may be one that this user cannot look at: what would be done without a key is another
/// thing then.
pub fn usual_file() -> Result<Option<PathBuf>, KeyError> {
    first_of(usual_places())
}

fn first_of(places: Vec<PathBuf>) -> Result<Option<PathBuf>, KeyError> {
    for path in places {
        match is_there(&path) {
            Ok(true) => return Ok(Some(path)),
            Ok(false) => {}
            Err(error) => return Err(KeyError::Hidden { path, error }),
        }
    }
    Ok(None)
}

/// Whether there is a file; an error where this user cannot look.
pub(crate) fn is_there(path: &Path) -> io::Result<bool> {
    let of_user = || user_directory().is_some_and(|directory| path.starts_with(directory));
    match path.try_exists() {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        // A home that this user may not enter is another's, whatever HOME says.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && of_user() => Ok(false),
        found => found,
    }
}

/// Reads a key file or a worker bundle.
///
/// # Errors
/// If it cannot be read, if others can read it, or if it holds something else.
pub fn read(path: &Path) -> Result<KeyFile, KeyError> {
    refuse_secret(path)?;
    let text = read_secret(path)?;
    if bundle::is_bundle(&text) {
        let error = |error| KeyError::Bundle { path: path.to_owned(), error };
        return WorkerBundle::parse(&text).map(KeyFile::Bundle).map_err(error);
    }
    let malformed = |(line, problem)| KeyError::Malformed { path: path.to_owned(), line, problem };
    parse(&text).map(KeyFile::Keys).map_err(malformed)
}

/// What a key file or a PEM file holds is taken for a path sooner than one thinks, and must not be
/// shown in the error of it.
///
/// # Errors
/// If the path holds a secret.
pub(crate) fn refuse_secret(path: &Path) -> Result<(), KeyError> {
    let text = path.to_string_lossy();
    let marks = [PREFIX, bundle::PREFIX, "-----BEGIN", "\n"];
    match marks.iter().any(|mark| text.contains(mark)) {
        true => Err(KeyError::NotAPath),
        false => Ok(()),
    }
}

/// The keys in the text of a key file.
///
/// # Errors
/// The line, counted from 1, and what is wrong with it; never what stands there.
pub fn parse(text: &str) -> Result<KeyRing, (usize, &'static str)> {
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let key = ClusterKey::of_text(line).map_err(|problem| (index + 1, problem))?;
        if keys.contains(&key) {
            return Err((index + 1, "the same key as above"));
        }
        if keys.len() == KEYS_MAX {
            return Err((index + 1, "a third key: the own one and one more are trusted at a time"));
        }
        keys.push(key);
    }
    if keys.is_empty() {
        return Err((1, "no key stands there (`widemap key new` makes one)"));
    }
    Ok(KeyRing { keys })
}

/// Reads a file that nobody else may read.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    refuse_secret(path)?;
    let error = |error| KeyError::Read { path: path.to_owned(), error };
    let file = File::open(path).map_err(error)?;
    // What was opened is looked at, so that it cannot be exchanged in between.
    let metadata = file.metadata().map_err(error)?;
    if metadata.is_file() {
        let mode = metadata.mode() & 0o7777;
        // A service manager may let its service in by an access list, which shows as the group's mode; the
        // directory is closed to all others.
        let is_given = credentials().is_some_and(|directory| path.starts_with(directory));
        let loose = if is_given { LOOSE & !0o070 } else { LOOSE };
        if mode & loose != 0 {
            return Err(KeyError::Loose { path: path.to_owned(), mode });
        }
        let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
        if owner != user && owner != 0 {
            return Err(KeyError::Foreign { path: path.to_owned(), owner });
        }
    }
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(error)?;
    Ok(text)
}

/// Writes a secret to a file of its own, readable by this user alone, never over another.
///
/// # Errors
/// If the file exists or cannot be written.
pub fn write_new(path: &Path, text: &str) -> Result<(), KeyError> {
    let failed = |error| KeyError::Write { path: path.to_owned(), error };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    }
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
        _ => failed(error),
    })?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|error| {
        // Half a key is worse than none; the error of writing is the one that matters.
        let _ = std::fs::remove_file(path);
        failed(error)
    })
}

/// Where a new key goes if no file is named: this user's usual place.
///
/// # Errors
/// If that is not known.
pub fn place_for_new() -> Result<PathBuf, KeyError> {
    user_directory().map(|directory| directory.join(FILE_NAME)).ok_or(KeyError::NoPlace)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn key(byte: u8) -> ClusterKey {
        ClusterKey(Zeroizing::new([byte; 32]))
    }

    #[test]
    fn a_key_can_be_written_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/key");
        let key = ClusterKey::generate().unwrap();
        write_new(&path, &format!("# ours\n{}\n", *key.to_text())).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let KeyFile::Keys(ring) = read(&path).unwrap() else { panic!("a bundle") };
        assert_eq!(ring.all(), [key]);
        assert!(matches!(write_new(&path, "x"), Err(KeyError::Exists(_))));
        assert!(matches!(read(&path.with_extension("none")), Err(KeyError::Read { .. })));
    }

    #[test]
    fn derived_values_depend_on_the_key_and_the_purpose_alone() {
        // Checked against another implementation of RFC 5869 (Python's hmac).
        assert_eq!(key(0).cluster().to_string(), CLUSTER_OF_ZEROS);
        assert_eq!(key(0).cluster(), key(0).cluster());
        assert_ne!(key(0).cluster(), key(1).cluster());
        assert_ne!(key(0).authority_seed()[..8], key(0).cluster().0);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        write_new(&path, &key(1).to_text()).unwrap();
        for (mode, refused) in
            [(0o644, true), (0o640, true), (0o604, true), (0o620, true), (0o400, false)]
        {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let read = read(&path);
            assert_eq!(matches!(read, Err(KeyError::Loose { .. })), refused, "{mode:o}: {read:?}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_looked_at_is_not_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("file"), "").unwrap();
        // Nobody can follow it, root neither.
        std::os::unix::fs::symlink(path("loop"), path("loop")).unwrap();
        let found = |names: &[&str]| first_of(names.iter().map(|name| path(name)).collect());
        assert_eq!(found(&["none/key", "file/key"]).unwrap(), None);
        assert_eq!(found(&["none/key", "file", "loop/key"]).unwrap(), Some(path("file")));
        let error = found(&["none/key", "loop/key", "file"]).unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, KeyError::Hidden { path: at, .. } if at == path("loop/key")));
        assert!(said.contains("cannot look there") && said.contains("--key FILE"), "{said}");
    }

    #[test]
    fn what_is_wrong_is_said_without_what_stands_there() {
        let (one, two, three) = (key(1).to_text(), key(2).to_text(), key(3).to_text());
        let both = format!("# new\n{}\n\n{} # old\n", *one, *two);
        assert_eq!(parse(&both).unwrap().all(), [key(1), key(2)]);
        let line = |text: &str| parse(text).unwrap_err().0;
        assert_eq!(line(""), 1);
        assert_eq!(line("# nothing\nsecret"), 2);
        assert_eq!(line(&one[..one.len() - 1]), 1);
        assert_eq!(line(&format!("{}\n{}", *one, *one)), 2);
        assert_eq!(line(&format!("{}\n{}\n{}", *one, *two, *three)), 3);
        assert_eq!(line(&format!("{PREFIX}{}", "ä".repeat(32))), 1);
        for text in [(*one).clone(), format!("# ours\n{}", *one), format!("/etc/{}", *one)] {
            let error = read(Path::new(&text)).unwrap_err();
            assert!(matches!(error, KeyError::NotAPath), "{error}");
            assert!(!error.to_string().contains("0101"));
        }
        assert!(!format!("{:?}", key(1)).contains("0101"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}") {
            let _ = parse(&text);
            let _ = parse(&format!("{PREFIX}{text}"));
        }
    }

    const CLUSTER_OF_ZEROS: &str = "08f52b88219cd604";
}
