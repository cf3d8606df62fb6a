//! Maps through a worker that somebody has made of the library: the whole example of the documentation.

use std::process::Command;

use widemap_tests::{Run, WorkerProcess, example, run, widemap, without_configuration};

/// The example as a worker.
fn worker(options: &[&str]) -> WorkerProcess {
    let mut command = Command::new(example("functions"));
    command.args(["--no-mdns", "--name", "mine", "--slots", "2"]).args(options);
    without_configuration(&mut command);
    WorkerProcess::spawn(command)
}

fn map(worker: &WorkerProcess, function: &str, items: &str) -> Run {
    let words = ["map", "--worker", worker.address(), "--format", "json", "--builtin", function];
    run(widemap(&words), items.as_bytes())
}

/// The output of each item, or its error.
fn told(done: &Run) -> Vec<String> {
    let line = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let what = if line["status"] == "ok" { &line["output"] } else { &line["error"] };
        what.as_str().unwrap().to_owned()
    };
    done.text().lines().map(line).collect()
}

#[test]
fn the_example_of_the_documentation_serves_functions_of_types() {
    let worker = worker(&[]);
    let done = map(&worker, "collatz", "1\n6\n27\n0\nx\n-1\n").exits(1);
    let expected = [
        "0",
        "8",
        "111",
        "0 never comes to 1",
        "`x` cannot be read: invalid digit found in string",
        "`-1` cannot be read: invalid digit found in string",
    ];
    assert_eq!(told(&done), expected);
    let done = map(&worker, "area", "{\"width\": 3, \"height\": 4}\n{\"width\": 3}\n").exits(1);
    let told_area = told(&done);
    assert_eq!(told_area[0], "{\"area\":12.0,\"is_square\":false}");
    assert!(told_area[1].contains("missing field `height`"), "{told_area:?}");
    let words = ["table", "tabel?"].map(str::to_owned);
    assert_eq!(told(&map(&worker, "spell", "table\ntabel\n").exits(0)), words);
    // What the stock worker has and does, it has and does.
    assert_eq!(told(&map(&worker, "square", "12\n").exits(0)), ["144"]);
    let words = ["map", "--worker", worker.address(), "echo"];
    assert_eq!(run(widemap(&words), b"a\n").exits(0).text(), "a\n");
    let done = map(&worker, "sqare", "12\n").exits(2);
    assert!(done.stderr.contains("it has: area, collatz, identity"), "{}", done.stderr);
}

#[test]
fn a_worker_of_ones_own_has_every_flag_of_the_stock_worker() {
    let help = |command: &mut Command| {
        let output = command.arg("--help").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // Each is called what its file is called.
        let lines = text.lines().filter(|line| !line.starts_with("Usage:"));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    let mine = help(&mut Command::new(example("functions")));
    let stock = help(&mut Command::new(widemap_tests::binary("widemap-worker")));
    assert!(mine.contains("--allow") && mine == stock, "{mine}");
    let worker = worker(&["--allow", "builtin", "--label", "kind=mine"]);
    let words = ["workers", "--worker", worker.address()];
    let listed = run(widemap(&words), b"").exits(0);
    assert!(listed.text().contains("kind=mine"), "{}", listed.text());
}
