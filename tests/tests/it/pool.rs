//! The Python package: its own tests, run by an interpreter that has what they need, against the programs built here.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use widemap_tests::{binary, needs, run_within, unmet, without_configuration};

const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../python");
/// A bound for a file of tests, on a busy machine.
const BOUND: Duration = Duration::from_secs(420);

fn python(interpreter: &str) -> Command {
    let mut command = Command::new(interpreter);
    command.current_dir(PYTHON).env("PYTHONPATH", Path::new(PYTHON).join("src"));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    without_configuration(&mut command);
    command.env("WIDEMAP_BIN", binary("widemap"));
    command.env("WIDEMAP_WORKER_BIN", binary("widemap-worker"));
    command
}

/// The first interpreter that has some modules.
fn interpreter(test: &str, modules: &[&str]) -> Option<&'static str> {
    if !needs(test, "python3") {
        return None;
    }
    let imports = format!("import {}", modules.join(", "));
    let has = |interpreter: &&'static str| {
        let mut command = Command::new(interpreter);
        let output = command.args(["-c", &imports]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let found = ["python3", "/usr/bin/python3"].into_iter().find(has);
    if found.is_none() {
        let _ = unmet(test, &format!("a python3 with {}", modules.join(", ")));
    }
    found
}

/// Runs a file of tests, of which at least so many have to pass.
fn passes(test: &str, file: &str, modules: &[&str], least: usize) {
    let Some(interpreter) = interpreter(test, modules) else { return };
    let mut command = python(interpreter);
    command.args(["-W", "ignore::DeprecationWarning", "-m", "unittest", "discover"]);
    command.args(["--start-directory", "tests", "--pattern", file, "--verbose"]);
    let done = run_within(BOUND, command, b"");
    assert_eq!(done.status, 0, "{}{}", done.text(), done.stderr);
    let passed = done.stderr.lines().filter(|line| line.ends_with("... ok")).count();
    assert!(passed >= least, "{passed} of at least {least} have passed: {}", done.stderr);
}

#[test]
fn a_pool_does_what_a_user_of_multiprocessing_expects() {
    let test = "a_pool_does_what_a_user_of_multiprocessing_expects";
    passes(test, "test_pool.py", &["cloudpickle"], 30);
}

#[test]
fn an_executor_gives_futures_and_goes_on_after_a_crash() {
    let test = "an_executor_gives_futures_and_goes_on_after_a_crash";
    passes(test, "test_executor.py", &["cloudpickle"], 7);
}

#[test]
fn pythons_own_tests_of_pools_and_executors_pass() {
    let test = "pythons_own_tests_of_pools_and_executors_pass";
    let modules = ["cloudpickle", "test._test_multiprocessing", "test.test_concurrent_futures"];
    passes(test, "test_cpython.py", &modules, 60);
}

#[test]
fn ten_lines_print_the_same_list_wherever_they_run() {
    let test = "ten_lines_print_the_same_list_wherever_they_run";
    passes(test, "test_cluster.py", &["cloudpickle"], 6);
}

#[test]
fn joblib_and_a_grid_search_give_the_results_of_one_process() {
    let test = "joblib_and_a_grid_search_give_the_results_of_one_process";
    passes(test, "test_joblib.py", &["cloudpickle", "joblib", "sklearn"], 3);
}

#[test]
fn the_examples_of_the_documentation_are_true() {
    let test = "the_examples_of_the_documentation_are_true";
    passes(test, "test_docs.py", &["cloudpickle"], 2);
}
