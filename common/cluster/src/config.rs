//! `widemap.toml`: what a person would otherwise say with the same flags each time. Only where workers
//! are, identity, logging and limits can stand there.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::identity::Wanted;
use crate::key;

/// The file of the usual name.
const FILE_NAME: &str = "widemap/widemap.toml";

/// What is said on the command line each time.
const NEVER: [&str; 12] = [
    "insecure", "resume", "journal", "output", "failures", "receipt", "joblog", "results",
    "retries", "python", "builtin", "shell",
];

/// So many letters make another key of a word.
const FAR: usize = 2;

/// The configuration file, each value under the name of its flag.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Where it was read from; none if there is no file.
    #[serde(skip)]
    pub path: Option<PathBuf>,
    /// Where there may be a file that would count before it, and this user cannot look.
    #[serde(skip)]
    pub hidden: Option<PathBuf>,
    /// The key file.
    pub key: Option<PathBuf>,
    /// Certificates made elsewhere: the own one.
    pub tls_cert: Option<PathBuf>,
    /// Its private key.
    pub tls_key: Option<PathBuf>,
    /// The authority.
    pub tls_ca: Option<PathBuf>,
    /// Workers, `HOST[:PORT]` each.
    pub workers: Vec<String>,
    /// Files or directories that name workers.
    pub workers_file: Vec<PathBuf>,
    /// DNS names, `NAME[:PORT]` each.
    pub dns: Vec<String>,
    /// Whether workers are looked for, and announced, by mDNS.
    pub mdns: Option<bool>,
    /// The interfaces that mDNS uses.
    pub mdns_interface: Vec<String>,
    /// Slots on this machine.
    pub local: Option<u32>,
    /// A coordinator that serves, `HOST[:PORT]`.
    pub coordinator: Option<String>,
    /// How long to wait for a usable worker, as on the command line.
    pub wait_workers: Option<String>,
    /// At most so many slots of each worker.
    pub jobs: Option<u32>,
    /// The most that an item may print, as on the command line.
    pub max_output: Option<String>,
    /// What is logged.
    pub log: Option<String>,
    /// In which form.
    pub log_format: Option<String>,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is not TOML, or something in it has no meaning there.
    #[error("{path}, line {line}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

impl Config {
    /// This user's file, or else the host's; without either, nothing is configured.
    ///
    /// # Errors
    /// If the file is there and cannot be used.
    pub fn find() -> Result<Self, ConfigError> {
        Self::first_of(Self::usual_places())
    }

    fn first_of(places: Vec<PathBuf>) -> Result<Self, ConfigError> {
        let mut hidden = None;
        for path in places {
            match key::is_there(&path) {
                Ok(true) => return Ok(Self { hidden, ..Self::read(&path)? }),
                Ok(false) => {}
                Err(_) => hidden = hidden.or(Some(path)),
            }
        }
        Ok(Self { hidden, ..Self::default() })
    }

    /// Where this user's file is, and where the host's is: the first that exists counts.
    #[must_use]
    pub fn usual_places() -> Vec<PathBuf> {
        let mut places: Vec<_> =
            key::user_directory().map(|directory| directory.join(FILE_NAME)).into_iter().collect();
        places.push(Path::new("/etc").join(FILE_NAME));
        places
    }

    /// Reads one file.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        let malformed =
            |(line, problem)| ConfigError::Malformed { path: path.to_owned(), line, problem };
        let mut config = Self::parse(&text).map_err(malformed)?;
        let directory = path.parent().unwrap_or(Path::new("."));
        for path in config.paths() {
            // A path means the same wherever the program is started.
            *path = directory.join(&*path);
        }
        config.path = Some(path.to_owned());
        Ok(config)
    }

    /// The configuration of a text.
    ///
    /// # Errors
    /// The line, counted from 1, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| {
                1 + text.as_bytes()[..span.start.min(text.len())]
                    .iter()
                    .filter(|&&b| b == b'\n')
                    .count()
            });
            (line, unknown(error.message()).unwrap_or_else(|| error.message().to_owned()))
        })
    }

    /// What it says of identity.
    #[must_use]
    pub fn identity(&self) -> Wanted {
        Wanted {
            key: self.key.clone(),
            certificate: self.tls_cert.clone(),
            private_key: self.tls_key.clone(),
            authority: self.tls_ca.clone(),
        }
    }

    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let files = [&mut self.key, &mut self.tls_cert, &mut self.tls_key, &mut self.tls_ca];
        files.into_iter().flatten().chain(&mut self.workers_file)
    }
}

/// What to say of a key that is none, if that is what is wrong.
fn unknown(message: &str) -> Option<String> {
    let mut names = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let given = names.next()?;
    if NEVER.contains(&given) {
        return Some(format!("`{given}` is never configured: say it each time"));
    }
    let known: Vec<_> = names.collect();
    let near = |name: &&str| strsim::damerau_levenshtein(&given.replace('_', "-"), name);
    let nearest = known.iter().copied().min_by_key(near).filter(|name| near(name) <= FAR);
    Some(match nearest {
        Some(nearest) => format!("unknown key `{given}` (did you mean `{nearest}`?)"),
        None => format!("unknown key `{given}` (there are: {})", known.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_the_name_of_its_flag() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("widemap.toml");
        let text = "key = 'key'\nworkers = ['ann', 'bob:99']\nworkers-file = ['/shared/hosts']\n\
                    dns = ['workers.lab']\nmdns = false\nmdns-interface = ['eth1']\nlocal = 2\n\
                    coordinator = 'carol'\n\
                    wait-workers = 'never'\njobs = 3\nmax-output = '1M'\nlog = 'debug'\n\
                    log-format = 'json'\ntls-cert = 'c'\ntls-key = '/k'\ntls-ca = 'a'\n";
        std::fs::write(&path, text).unwrap();
        let config = Config::read(&path).unwrap();
        assert_eq!(config.key, Some(directory.path().join("key")));
        assert_eq!(config.tls_key, Some("/k".into()));
        assert_eq!(config.workers, ["ann", "bob:99"]);
        assert_eq!(config.mdns, Some(false));
        assert_eq!(config.coordinator.as_deref(), Some("carol"));
        assert_eq!(config.path, Some(path));
    }

    #[test]
    fn a_file_that_may_be_there_and_cannot_be_looked_at_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::os::unix::fs::symlink(path("loop"), path("loop")).unwrap();
        std::fs::write(path("file"), "local = 2\n").unwrap();
        let find = |names: &[&str]| Config::first_of(names.iter().map(|name| path(name)).collect());
        let config = find(&["loop/widemap.toml", "file"]).unwrap();
        assert_eq!((config.local, config.hidden), (Some(2), Some(path("loop/widemap.toml"))));
        assert_eq!(find(&["file", "loop/widemap.toml"]).unwrap().hidden, None);
        assert_eq!(find(&["none"]).unwrap(), Config::default());
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for (text, line, problem) in [
            ("a", 1, ""),
            ("log = 'x'\nworker = 'ann'", 2, "unknown key `worker` (did you mean `workers`?)"),
            ("wait_workers = '1s'", 1, "did you mean `wait-workers`?"),
            ("colour = 'red'", 1, "unknown key `colour` (there are: key, tls-cert"),
            ("retries = 3", 1, "`retries` is never configured"),
            ("\n\ninsecure = true", 3, "`insecure` is never configured"),
            ("local = 'two'", 1, "invalid type"),
            ("key = 'a'\nkey = 'b'", 2, "duplicate key"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert_eq!(error.0, line, "{text}: {error:?}");
            assert!(error.1.contains(problem), "{text}: {error:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(\\PC|\n){0,200}") {
            let _ = Config::parse(&text);
        }
    }
}
