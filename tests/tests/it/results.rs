//! The forms of results: JSON, files, failures, receipts.

use serde_json::Value;
use widemap_tests::{run, widemap};

const FLAKY: &str = "echo out; echo err >&2; test $1 != 2";

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn json_has_an_object_for_each_item_in_order() {
    let map = ["map", "--format", "json", "--retries", "0", "--", "sh", "-c", FLAKY, "sh"];
    let done = run(widemap(&map), b"1\n2\n\xff\n").exits(1);
    let objects = objects(done.text());
    assert_eq!(objects.len(), 3);
    assert_eq!(objects[0]["seq"], 1);
    assert_eq!(objects[0]["item"], "1");
    assert_eq!(objects[0]["status"], "ok");
    assert_eq!(objects[0]["exit"], 0);
    assert_eq!(objects[0]["output"], "out\n");
    assert_eq!(objects[0]["stderr"], "err\n");
    assert_eq!(objects[0]["attempts"], 1);
    assert_eq!(objects[1]["status"], "error");
    assert_eq!(objects[1]["exit"], 1);
    assert_eq!(objects[2]["item_base64"], "/w==");
}

#[test]
fn output_appears_whole_and_failures_are_listed_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (output, failures, receipt) = (path("out"), path("failures"), path("receipt"));
    let files = ["--output", &output, "--failures", &failures, "--receipt", &receipt];
    let map = [&["map", "--retries", "0"], &files[..], &["--", "sh", "-c", FLAKY, "sh"]].concat();
    let done = run(widemap(&map), b"1\n2\n3\n").exits(1);
    assert_eq!(done.text(), "");
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "out\nout\n");
    let failed = objects(&std::fs::read_to_string(&failures).unwrap());
    assert_eq!(failed.len(), 1);
    assert_eq!((&failed[0]["seq"], &failed[0]["item"]), (&Value::from(2), &Value::from("2")));
    assert_eq!(failed[0]["offset"], 4);
    assert!(failed[0].get("output").is_none());
    let receipt: Value = serde_json::from_slice(&std::fs::read(&receipt).unwrap()).unwrap();
    assert_eq!(receipt["items"]["read"], 3);
    assert_eq!(receipt["items"]["failed"], 1);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 3, "{left:?}");
    let repair = format!("  widemap repair {failures} {output} --retries 0 -- sh -c ");
    assert!(done.stderr.contains(&repair), "{}", done.stderr);
    let again = run(widemap(&["map", "--from-failures", &failures, "--", "echo", "{}"]), b"");
    assert_eq!(again.exits(0).text(), "2\n");
}

#[test]
fn failures_without_a_file_of_their_own_go_to_the_state_directory() {
    let dir = tempfile::tempdir().unwrap();
    let mut map = widemap(&["map", "--", "false"]);
    map.env("XDG_STATE_HOME", dir.path());
    let done = run(map, b"1\n").exits(1);
    let file = std::fs::read_dir(dir.path().join("widemap")).unwrap().next().unwrap().unwrap();
    assert!(done.stderr.contains(file.file_name().to_str().unwrap()), "{}", done.stderr);
}

#[test]
fn standard_error_of_items_is_shown_with_the_item() {
    let done = run(widemap(&["map", "--", "sh", "-c", "echo oops >&2", "sh"]), b"x y\n").exits(0);
    assert!(done.stderr.contains("[1 x y] oops"), "{}", done.stderr);
}

#[test]
fn a_time_out_ends_the_item_and_its_processes() {
    let map = ["map", "--timeout", "200ms", "--retries", "0", "--", "sh", "-c"];
    let map = [&map[..], &["test $1 = 1 || sleep 83.5; echo $1", "sh"]].concat();
    let done = run(widemap(&map), b"1\n2\n").exits(1);
    assert_eq!(done.text(), "1\n");
    assert!(done.stderr.contains("item 2 `2`: took longer than 200ms"), "{}", done.stderr);
}

#[test]
fn an_item_that_prints_without_end_is_capped() {
    let map = ["map", "--max-output", "1M", "--", "sh", "-c", "test $1 = 1 && yes; echo $1", "sh"];
    let done = run(widemap(&map), b"1\n2\n").exits(1);
    assert_eq!(done.text(), "2\n");
    assert!(done.stderr.contains("--max-output"), "{}", done.stderr);
}

#[test]
fn a_large_output_is_streamed_and_comes_whole() {
    let map =
        ["map", "--local", "2", "--", "sh", "-c", "head -c 30000000 /dev/zero; echo $1", "sh"];
    let done = run(widemap(&map), b"1\n2\n3\n").exits(0);
    let block = vec![0_u8; 30_000_000];
    let want = [&block[..], b"1\n", &block, b"2\n", &block, b"3\n"].concat();
    assert!(done.stdout == want);
}

#[test]
fn results_past_the_reorder_buffer_go_to_disk_and_come_in_order() {
    let script = "test $1 = 1 && sleep 1; head -c 100000 /dev/zero | tr '\\0' a; echo $1";
    let map = ["map", "--local", "4", "--reorder-bytes-max", "1M", "--", "sh", "-c", script, "sh"];
    let input: String = (1..=60).map(|n| format!("{n}\n")).collect();
    let done = run(widemap(&map), input.as_bytes()).exits(0);
    let ends: Vec<_> = done.text().lines().map(|line| line.trim_start_matches('a')).collect();
    assert_eq!(ends, (1..=60).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn nobody_listening_on_standard_error_loses_no_output() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let mut map = widemap(&["map", "--output", output.to_str().unwrap(), "--", "sh", "-c"]);
    map.args(["echo $1; echo oops >&2; exit $1", "sh", ":::", "0", "1"]);
    map.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    map.stderr(std::fs::File::options().write(true).open("/dev/full").unwrap());
    map.env("XDG_STATE_HOME", dir.path());
    assert_eq!(map.status().unwrap().code(), Some(1));
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "0\n");
}
