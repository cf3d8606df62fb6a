//! Every command that the README prints is run, as it is printed, by a shell in an empty directory.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use widemap_tests::{
    Network, binary, needs, run, run_within, without_configuration, without_this_crate,
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// How each row of "How it survives" begins, and the test of it.
const SURVIVES: &[(&str, &str)] = &[
    ("a worker is killed", "a_killed_worker_changes_nothing_in_the_output"),
    ("a connection is cut for a few seconds", "a_cut_of_three_seconds_runs_nothing_again"),
    ("packets vanish without a word", "a_silent_cut_is_noticed"),
    ("a worker stands still", "a_worker_that_stood_still_past_its_lease_is_too_late"),
    ("connections are reset", "a_storm_of_resets_is_weathered_without_spinning"),
    ("a bad network", "loss_and_delay_do_not_show_in_the_output"),
    ("all workers are gone", "a_map_without_workers_waits_and_goes_on_when_one_returns"),
    ("a worker joins", "a_worker_that_joins_gets_work_at_once"),
    ("a worker is told to end", "a_worker_told_to_end_drains_and_nothing_is_lost"),
    ("an item kills the process", "of_a_thousand_items_four_deadly_ones_fail_alone"),
    ("an item kills the worker", "an_item_that_kills_its_workers_is_isolated"),
    ("everything fails on one worker", "a_worker_that_is_left_out_is_shown_and_spoils_few_items"),
    ("a worker is slow", "a_straggler_is_overtaken_and_its_processes_end"),
    ("a result arrives changed", "a_result_that_was_changed_on_the_way_is_refused_and_runs_again"),
    ("whoever reads the output is slow", "a_reader_that_stands_still_is_waited_for"),
    ("whoever reads the output has seen", "a_reader_that_has_seen_enough_ends_the_map_quietly"),
    ("the disk is full", "a_full_disk_under_waiting_results_only_slows_the_map"),
    ("Ctrl-C", "an_interrupt_ends_what_ignores_it_on_every_worker"),
    (
        "a coordinator that serves is killed",
        "a_coordinator_killed_at_any_step_goes_on_and_runs_nothing_again",
    ),
    ("the end of its log is torn", "a_flipped_bit_is_refused_and_its_file_and_place_are_named"),
    (
        "`widemap map` itself is killed",
        "a_worker_ends_the_items_of_a_killed_coordinator_when_its_lease_is_over",
    ),
    ("the same, with `--journal`", "a_map_killed_at_any_step_goes_on_and_runs_nothing_again"),
];

fn blocks() -> Vec<String> {
    let readme = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let starts = readme.split("```sh\n").skip(1);
    starts.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// The README names ports as a person would; a test takes free ones.
fn with_free_ports(block: &str) -> String {
    let mut block = block.to_owned();
    for port in (7001..=7004).chain([7434, 7435, 9434]) {
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
    without_configuration(&mut shell);
    // What belongs to the user goes to the test's directory.
    shell.env_remove("XDG_CONFIG_HOME").env("XDG_STATE_HOME", directory).env("HOME", directory);
    shell
}

#[test]
fn every_command_works_as_it_is_printed() {
    let mut ran = 0;
    // What builds, what needs other hosts and what needs Docker have tests of their own.
    let elsewhere =
        |block: &String| ["cargo ", "ssh ", "docker "].iter().any(|word| block.contains(word));
    for block in blocks().iter().filter(|block| !elsewhere(block)) {
        // Programs that not every machine has; CI has them all.
        let tools = ["ppmmake ", "jq ", "git ", "python3 ", "curl ", "cc "];
        let mut tools = tools.iter().filter(|tool| block.contains(*tool));
        if !tools.all(|tool| needs("a block of the README", tool.trim())) {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let done = run(shell(block, dir.path()), b"");
        assert_eq!(done.status, 0, "{block}\n{}", done.stderr);
        ran += 1;
    }
    assert!(ran >= 15, "the README lost its commands");
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

/// `scp` and `ssh` are stood in for: the other host is a namespace, and its user's home a directory.
#[test]
fn several_hosts_are_a_cluster_in_four_commands() {
    let test = "several_hosts_are_a_cluster_in_four_commands";
    let Some(mut network) = Network::new(test) else { return };
    let (here, ann) = (network.host(), network.host());
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    let home = dir.path().join("ann-home");
    std::fs::create_dir(&bin).unwrap();
    std::fs::create_dir_all(home.join(".config")).unwrap();
    let mut there = Command::new("env");
    // The stand-in for the network's other end must not see what this shell sees.
    there.args(["-u", "XDG_CONFIG_HOME"]).arg(format!("HOME={}", home.display()));
    let there = ann.inside(&there);
    let words: Vec<_> = std::iter::once(there.get_program()).chain(there.get_args()).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let program = |name: &str, line: &str| {
        let path = bin.join(name);
        std::fs::write(&path, format!("#!/bin/sh\nset -e\n{line}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("ssh", &format!("test \"$1\" = -n; shift 2; exec {} \"$@\"", words.join(" ")));
    program("scp", &format!("exec cp -rp \"$2\" {}/\"${{3#*:}}\"", home.display()));
    let blocks = blocks();
    let block = blocks.iter().find(|block| block.contains("ssh ")).unwrap();
    assert_eq!(block.lines().count(), 4);
    let mut shell = shell(block, dir.path());
    let path = shell.get_envs().find(|(name, _)| *name == "PATH").unwrap().1.unwrap().to_owned();
    shell.env("PATH", format!("{}:{}", bin.display(), path.to_string_lossy()));
    let done = run(here.inside(&shell), b"").exits(0);
    let lines: Vec<_> = done.text().lines().filter(|line| line.starts_with("item ")).collect();
    let want: Vec<_> = (1..=100).map(|number| format!("item {number}")).collect();
    assert_eq!(lines, want, "{}", done.stderr);
    assert!(done.stderr.contains("1 worker, "), "{}", done.stderr);
    assert!(done.stderr.contains("from mDNS"), "{}", done.stderr);
}

#[test]
fn the_commands_that_build_work_from_a_checkout() {
    // A release build takes minutes: in CI it is made anyway.
    let test = "the commands that build";
    if std::env::var_os("WIDEMAP_TEST_NO_SKIP").is_none() || !needs(test, "cargo") {
        println!("skipped: the commands of the README that build are run in CI");
        return;
    }
    let in_checkout = |script: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", script]).current_dir(ROOT);
        without_this_crate(&mut shell);
        // A release build from nothing takes minutes.
        run_within(std::time::Duration::from_secs(20 * 60), shell, b"").exits(0)
    };
    let blocks = blocks();
    let block = |words: &str| blocks.iter().find(|block| block.contains(words)).unwrap();
    let done = in_checkout(block("cargo run"));
    assert_eq!(done.text(), "item 1\nitem 2\nitem 3\nitem 4\nitem 5\n");
    let found = format!("{}command -v widemap widemap-worker", block("cargo build"));
    let done = in_checkout(&found);
    let release = |name: &str| {
        format!("{}/target/release/{name}", Path::new(ROOT).canonicalize().unwrap().display())
    };
    assert_eq!(
        done.text().lines().collect::<Vec<_>>(),
        [release("widemap"), release("widemap-worker")]
    );
}

#[test]
fn the_test_command_is_what_ci_runs() {
    let ci = std::fs::read_to_string(Path::new(ROOT).join(".ci/run")).unwrap();
    let test = blocks().into_iter().find(|block| block.contains("cargo test")).unwrap();
    assert!(ci.lines().any(|line| line == test.trim()), "CI does not run `{}`", test.trim());
}

#[test]
fn every_fault_that_the_readme_names_has_a_test() {
    let readme = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let table = readme.split("## How it survives").nth(1).unwrap().split("| exit status").next();
    let rows: Vec<_> = table.unwrap().lines().filter(|line| line.starts_with("| ")).collect();
    // The first one is the head.
    let faults: Vec<_> = rows[1..].iter().map(|row| row.trim_start_matches("| ")).collect();
    assert_eq!(faults.len(), SURVIVES.len());
    let tests = tests_of_the_project();
    for (fault, (begins, test)) in faults.iter().zip(SURVIVES) {
        assert!(fault.starts_with(begins), "`{fault}` is the row of {test}");
        assert!(tests.contains(&format!("fn {test}()")), "there is no test {test}");
    }
}

/// The sources of the tests that fault rows may name.
fn tests_of_the_project() -> String {
    let folders = ["tests/tests/it", "coordinator/src/driver/tests"];
    let files = folders.iter().flat_map(|folder| {
        std::fs::read_dir(Path::new(ROOT).join(folder)).unwrap().map(|entry| entry.unwrap().path())
    });
    let sources = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    sources.map(|path| std::fs::read_to_string(path).unwrap()).collect()
}
