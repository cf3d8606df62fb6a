//! Every command that the README prints is run, as it is printed, by a shell in an empty directory.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use widemap_tests::{binary, needs, run, run_within};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn blocks() -> Vec<String> {
    let readme = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let starts = readme.split("```sh\n").skip(1);
    starts.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// The README names ports as a person would; a test takes free ones.
fn with_free_ports(block: &str) -> String {
    let mut block = block.to_owned();
    for port in 7001..=7003 {
        if block.contains(&port.to_string()) {
            let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            block = block.replace(&port.to_string(), &free.to_string());
        }
    }
    block
}

/// A block as a shell runs it that ends what it started, also when a command fails.
fn shell(block: &str, directory: &Path) -> Command {
    let binaries = binary("widemap").parent().unwrap().display().to_string();
    let script =
        format!("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{}", with_free_ports(block));
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", &script]).current_dir(directory);
    shell.env("PATH", format!("{binaries}:{}", std::env::var("PATH").unwrap()));
    shell.env("XDG_STATE_HOME", directory);
    shell
}

#[test]
fn every_command_works_as_it_is_printed() {
    let mut ran = 0;
    for block in blocks().iter().filter(|block| !block.contains("cargo ")) {
        let dir = tempfile::tempdir().unwrap();
        let done = run(shell(block, dir.path()), b"");
        assert_eq!(done.status, 0, "{block}\n{}", done.stderr);
        ran += 1;
    }
    assert!(ran >= 9, "the README lost its commands");
}

#[test]
fn a_run_survives_a_killed_worker_as_the_readme_says() {
    let blocks = blocks();
    let block = blocks.iter().find(|block| block.contains("kill -9")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let done = run(shell(block, dir.path()), b"").exits(0);
    assert!(done.text().contains("all there, in order"), "{}", done.stderr);
    assert!(done.stderr.contains("1 lost"), "{}", done.stderr);
}

#[test]
fn the_first_command_works_from_a_checkout() {
    // A release build takes minutes: in CI it is made anyway.
    if std::env::var_os("WIDEMAP_TEST_NO_SKIP").is_none() || !needs("the first command", "cargo") {
        println!("skipped: the first command of the README is run in CI");
        return;
    }
    let blocks = blocks();
    let block = blocks.iter().find(|block| block.contains("cargo run")).unwrap();
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", block]).current_dir(ROOT);
    // A release build from nothing takes minutes.
    let bound = std::time::Duration::from_secs(20 * 60);
    let done = run_within(bound, shell, b"").exits(0);
    assert_eq!(done.text(), "item 1\nitem 2\nitem 3\nitem 4\nitem 5\n");
}

#[test]
fn the_test_command_is_what_ci_runs() {
    let ci = std::fs::read_to_string(Path::new(ROOT).join(".ci/run")).unwrap();
    let test = blocks().into_iter().find(|block| block.contains("cargo test")).unwrap();
    assert!(ci.lines().any(|line| line == test.trim()), "CI does not run `{}`", test.trim());
}
