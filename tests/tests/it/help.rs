//! The help is part of the contract: a change of it is a change of a snapshot.

use widemap_tests::{binary, run, widemap};

fn help(arguments: &[&str]) -> String {
    let mut command = widemap(arguments);
    command.env("COLUMNS", "100");
    let text = run(command, b"").exits(0).text().to_owned();
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[test]
fn widemap_in_short() {
    insta::assert_snapshot!(help(&["-h"]));
}

#[test]
fn map_in_short() {
    let text = help(&["map", "-h"]);
    assert!(text.lines().count() <= 70, "it is more than a screen: {}", text.lines().count());
    insta::assert_snapshot!(text);
}

#[test]
fn map_whole() {
    insta::assert_snapshot!(help(&["map", "--help"]));
}

#[test]
fn workers_whole() {
    insta::assert_snapshot!(help(&["workers", "--help"]));
}

#[test]
fn doctor_whole() {
    insta::assert_snapshot!(help(&["doctor", "--help"]));
}

#[test]
fn worker_whole() {
    let mut command = std::process::Command::new(binary("widemap-worker"));
    command.arg("--help").env("COLUMNS", "100");
    let text = run(command, b"").exits(0).text().to_owned();
    insta::assert_snapshot!(text);
}
