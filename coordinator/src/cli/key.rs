//! `widemap key`: one file that makes hosts a cluster.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use widemap_cluster::config::{Config, ConfigError};
use widemap_cluster::key::{self, ClusterKey, KeyError, KeyFile, KeyRing};
use widemap_cluster::{IdentityError, MintError, bundle, harden};

use super::complain;
use super::options::KeyCommand;
use crate::{exit, say};

/// Why `widemap key` did nothing.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Mint(#[from] MintError),
    #[error(transparent)]
    WorkerOnly(#[from] IdentityError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("there is no key at the usual places: {}", shown(.0))]
    NoKey(Vec<PathBuf>),
}

/// Runs `widemap key`.
pub(crate) fn run(command: &KeyCommand) -> ExitCode {
    // Before there is a secret in memory; where the system refuses that, the key is made all the same.
    if let Err(error) = harden::close_memory() {
        say::line(&format!(
            "widemap: this program's memory is open to others of this user: {error}"
        ));
    }
    let done = match command {
        KeyCommand::New { file } => new(file.as_deref()),
        KeyCommand::Show { key } => show(key.as_deref()),
        KeyCommand::WorkerBundle { file, key } => worker_bundle(file, key.as_deref()),
    };
    match done {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            let hint = matches!(error, Error::NoKey(_))
                .then_some("`widemap key new` makes one; --key FILE names another place");
            complain(&error, hint);
            ExitCode::from(exit::USAGE)
        }
    }
}

fn new(file: Option<&Path>) -> Result<(), Error> {
    let key = ClusterKey::generate()?;
    if file.is_some_and(is_stdout) {
        say::result(&key.to_text());
        return Ok(());
    }
    let path = file.map_or_else(key::place_for_new, |path| Ok(path.to_owned()))?;
    let text =
        format!("# The key of Widemap cluster {}. Whoever has it is a member.\n", key.cluster());
    key::write_new(&path, &zeroize::Zeroizing::new(text + &key.to_text() + "\n"))?;
    say::line(&format!("widemap: the key of cluster {} is in {}", key.cluster(), path.display()));
    let usual = key::usual_places().contains(&path);
    let name_it = if usual { String::new() } else { format!(" with --key {}", path.display()) };
    let place = if usual { "to the same place on" } else { "to" };
    say::line(&format!(
        "  copy this one file {place} every host (scp -p), and start widemap-worker{name_it} there"
    ));
    Ok(())
}

fn show(key: Option<&Path>) -> Result<(), Error> {
    let path = named_or_usual(key)?;
    match key::read(&path)? {
        KeyFile::Keys(ring) => {
            for key in ring.all() {
                say::result(&key.cluster().to_string());
            }
            if ring.all().len() > 1 {
                say::line("widemap: the first is this host's own, the other is trusted beside it");
            }
        }
        KeyFile::Bundle(bundle) => {
            for cluster in bundle.clusters() {
                say::result(&cluster.to_string());
            }
            say::line("widemap: this is a worker bundle, not the key");
        }
    }
    Ok(())
}

fn worker_bundle(file: &Path, key: Option<&Path>) -> Result<(), Error> {
    let text = bundle::make(&ring(&named_or_usual(key)?)?)?;
    if is_stdout(file) {
        say::result(text.trim_end());
        return Ok(());
    }
    key::write_new(file, &text)?;
    say::line(&format!("widemap: a worker bundle is in {}", file.display()));
    say::line(
        "  on the worker's host: widemap-worker --key FILE; whoever has it can be a worker, and no more",
    );
    Ok(())
}

fn ring(path: &Path) -> Result<KeyRing, Error> {
    match key::read(path)? {
        KeyFile::Keys(ring) => Ok(ring),
        KeyFile::Bundle(_) => Err(IdentityError::WorkerOnly(path.to_owned()).into()),
    }
}

fn named_or_usual(key: Option<&Path>) -> Result<PathBuf, Error> {
    let named = key.map(Path::to_owned).or_else(|| widemap_cluster::Wanted::of_environment().key);
    let named =
        named.map_or_else(|| Config::find().map(|config| config.key), |key| Ok(Some(key)))?;
    let found = named.map_or_else(key::usual_file, |path| Ok(Some(path)))?;
    found.ok_or_else(|| Error::NoKey(key::usual_places()))
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

fn shown(places: &[PathBuf]) -> String {
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
}
