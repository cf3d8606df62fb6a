//! Every error says what happened, where, and what to do next.

use widemap_tests::{WorkerProcess, run, widemap};

fn fails(arguments: &[&str], status: i32, says: &[&str]) {
    let done = run(widemap(arguments), b"1\n2\n").exits(status);
    assert_eq!(done.text(), "", "{arguments:?} printed something");
    for text in says {
        assert!(done.stderr.contains(text), "{arguments:?} does not say `{text}`: {}", done.stderr);
    }
}

#[test]
fn usage() {
    fails(&[], 2, &["Usage: widemap"]);
    fails(&["map"], 2, &["no command", "hint: for example: seq 10"]);
    fails(&["map", "--wroker", "a", "x"], 2, &["--wroker", "--worker"]);
    fails(&["map", "--builtin", "square", "echo"], 2, &["beside --builtin"]);
    fails(&["map", "--chunk", "0", "echo"], 2, &["--chunk"]);
    fails(&["map", "--timeout", "soon", "echo"], 2, &["`soon` is not a duration", "250ms"]);
    fails(&["map", "--worker", "a:b", "echo"], 2, &["`a:b` is not HOST"]);
    fails(
        &["map", "--from-failures", "x", "echo", ":::", "b"],
        2,
        &["from `:::` and from `--from-failures`", "name one of them"],
    );
    fails(&["map", "--env", "WIDEMAP_TEST_NOT_SET", "echo"], 2, &["is not set here"]);
}

#[test]
fn a_command_that_does_not_exist_is_said_before_anything_runs() {
    fails(&["map", "--", "no-such-command-here"], 2, &["no-such-command-here", "not found"]);
    fails(&["map", "--", "echo hello | cat"], 2, &["for a shell line add --shell"]);
    fails(&["map", "cat {} | wc", ":::", "a"], 2, &["cat {} | wc", "for a shell line add --shell"]);
    fails(
        &["map", "-S", "ann", "cat"],
        2,
        &["-S is an option of GNU parallel (--sshlogin)", "--worker HOST"],
    );
    fails(&["submit", "--joblog", "l", "cat"], 2, &["--joblog is not said", "--keep-records"]);
    fails(
        &["submit", "--explain-every", "1s", "cat"],
        2,
        &["--explain-every is not said", "widemap results JOB --explain-every TIME"],
    );
    fails(
        &["map", "--shell", "cat <<'EOF'\n{}\nEOF\n", ":::", "a"],
        2,
        &["here-document whose end is quoted", "leave the quotes of its end away"],
    );
    fails(&["map", "--joblog", "l", "--resume", "cat"], 2, &["--joblog does not", "--journal DIR"]);
    fails(&["map", "--builtin", "cube"], 2, &["cube", "square"]);
}

#[test]
fn no_worker_reachable_names_each_address_and_why() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let map = ["map", "--worker", &address, "--wait-workers", "300ms", "echo"];
    fails(&map, 3, &["no worker could be used", &address, "connection refused", "--local N"]);
}

#[test]
fn something_else_on_the_port_is_named() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let map = ["map", "--worker", &address, "--wait-workers", "1s", "--timers", "connect_ms=200"];
    fails(&[&map[..], &["echo"]].concat(), 3, &[&address, "no "]);
}

#[test]
fn unreadable_input_and_unwritable_output() {
    fails(&["map", "-a", "/no/such/list", "echo"], 2, &["/no/such/list", "No such file"]);
    fails(&["map", "--output", "/no/such/dir/out", "echo"], 2, &["/no/such/dir"]);
    fails(&["map", "--failures", "/no/such/dir/f", "echo"], 2, &["/no/such/dir/f"]);
}

#[test]
fn an_item_too_long_for_a_command_fails_without_a_second_try() {
    let long = vec![b'x'; 200_000];
    let input = [&b"a\n"[..], &long, b"\nb\n"].concat();
    let done = run(widemap(&["map", "--", "echo"]), &input).exits(1);
    assert_eq!(done.text(), "a\nb\n");
    assert!(done.stderr.contains("200000 bytes"), "{}", done.stderr);
    assert!(done.stderr.contains("0 retried"), "{}", done.stderr);
}

#[test]
fn a_full_disk_under_the_output_is_an_error_that_keeps_the_old_file() {
    let done = run(widemap(&["map", "--output", "/dev/full", "--", "echo"]), b"1\n");
    assert_ne!(done.status, 0);
}

#[test]
fn a_command_missing_on_one_worker_sets_it_aside_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let tool = dir.path().join("only-here");
    std::fs::write(&tool, "#!/bin/sh\necho $1\n").unwrap();
    std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (ann, bob) = (WorkerProcess::start("ann", 1), WorkerProcess::start("bob", 1));
    // Both see the same disk, so one of them is told to allow functions only.
    let carl = WorkerProcess::start_with("carl", 1, &["--allow", "builtin"]);
    let places = ["--worker", ann.address(), "--worker", bob.address(), "--worker", carl.address()];
    let map = [&["map"], &places[..], &["--", tool.to_str().unwrap()]].concat();
    let done = run(widemap(&map), b"1\n2\n3\n").exits(0);
    assert_eq!(done.text(), "1\n2\n3\n");
    let only = ["map", "--worker", carl.address(), "--wait-workers", "1s", "echo"];
    fails(&only, 2, &["carl", "exec"]);
}

#[test]
fn no_file_is_read_and_overwritten_by_the_same_map() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    std::fs::write(&list, "1\n2\n").unwrap();
    let path = list.to_str().unwrap();
    fails(&["map", "-a", path, "--failures", path, "echo"], 2, &["-a and --failures"]);
    fails(&["map", "-a", path, "--receipt", path, "echo"], 2, &["-a and --receipt"]);
    assert_eq!(std::fs::read_to_string(&list).unwrap(), "1\n2\n");
    let failures = dir.path().join("failures");
    std::fs::write(&failures, "kept").unwrap();
    let named = failures.to_str().unwrap();
    fails(&["map", "--failures", named, "-a", "/no/such/list", "echo"], 2, &["/no/such/list"]);
    assert_eq!(std::fs::read_to_string(&failures).unwrap(), "kept");
}

#[test]
fn what_can_never_be_satisfied_here_is_not_waited_for() {
    fails(&["map", "--local", "1", "--require", "gpu=1", "echo"], 3, &["no label gpu=1"]);
    fails(&["map", "--receipt", "/no/such/dir/r", "echo"], 2, &["/no/such/dir"]);
    fails(&["map", "echo", "::::", "/no/such/list"], 2, &["cannot open /no/such/list"]);
    fails(&["map", "--shell", "echo", "x"], 2, &["one word"]);
}
