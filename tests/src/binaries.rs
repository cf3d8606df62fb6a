//! The binaries under test, built by the first test that asks: `CARGO_BIN_EXE_*` exists only in the
//! crates that own them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The path of `widemap` or `widemap-worker`, of the profile that this test was built in.
///
/// # Panics
/// If cargo cannot build it.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    directory().join(name)
}

/// The path of an example of the worker, likewise.
///
/// # Panics
/// If cargo cannot build it.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    directory().join("examples").join(name)
}

fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(build)
}

fn build() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    // target/PROFILE/deps/TEST
    let directory = test.parent().and_then(|deps| deps.parent()).expect("cargo's layout");
    let release = directory.file_name().is_some_and(|name| name == "release");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // With examples, which have what tests have: so nothing is built that tests have not built.
    cargo.args(["build", "--quiet", "--workspace", "--bins", "--examples"]);
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if let Some(target) = directory.parent() {
        cargo.arg("--target-dir").arg(target);
    }
    if release {
        cargo.arg("--release");
    }
    without_this_crate(&mut cargo);
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "build first: cargo build --workspace --bins");
    directory.to_owned()
}

/// Takes away what cargo says of this crate to its tests, for a command that builds: build scripts that look at it
/// (as ring's does) would run again, and with them all that depends on them.
pub fn without_this_crate(command: &mut Command) {
    let of_this_crate =
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"];
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if of_this_crate.iter().any(|prefix| told.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
}
