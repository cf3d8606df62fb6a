//! Maps through modules of WebAssembly, which are written here as text.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use widemap_tests::{MapProcess, Run, WorkerProcess, eventually, memory_bytes, run, widemap};

use crate::support::{numbers, places};

/// Reads into a buffer of 64 KiB at 1024, and prints from anywhere.
const STREAMS: &str = r#"
    (import "wasi_snapshot_preview1" "fd_read"
        (func $fd_read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write"
        (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff"
        (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get"
        (func $environ_sizes_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open"
        (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (func $read (param $fd i32) (result i32)
        (i32.store (i32.const 0) (i32.const 1024))
        (i32.store (i32.const 4) (i32.const 65536))
        (i32.store (i32.const 8) (i32.const 0))
        (drop (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
        (i32.load (i32.const 8)))
    (func $print (param $fd i32) (param $at i32) (param $length i32)
        (i32.store (i32.const 0) (local.get $at))
        (i32.store (i32.const 4) (local.get $length))
        (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
    (func $copy (param $from i32) (local $n i32)
        (loop $again
            (local.set $n (call $read (local.get $from)))
            (if (local.get $n) (then
                (call $print (i32.const 1) (i32.const 1024) (local.get $n))
                (br $again)))))"#;

/// Its input is its output.
const CAT: &str = r#"(func (export "_start") (call $copy (i32.const 0)))"#;

/// Does what the first letter of its block says, or prints the block.
const MOODS: &str = r#"
    (func $endless (loop $again (br $again)))
    (func $hungry (local $at i32)
        (loop $again
            (local.set $at (i32.shl (memory.grow (i32.const 16)) (i32.const 16)))
            (memory.fill (local.get $at) (i32.const 1) (i32.const 1048576))
            (br $again)))
    (func $careless (unreachable))
    (func $talkative (loop $again
        (call $print (i32.const 1) (i32.const 1024) (i32.const 4096)) (br $again)))
    (func $sleepy
        (i32.store (i32.const 136) (i32.const 0))
        (i32.store8 (i32.const 136) (i32.const 0))
        (i32.store (i32.const 144) (i32.const 1))
        (i64.store (i32.const 152) (i64.const 1000000000000))
        (drop (call $poll_oneoff (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 8))))
    (func $is (param $letter i32) (result i32)
        (i32.eq (i32.load8_u (i32.const 1024)) (local.get $letter)))
    (func (export "_start") (local $n i32)
        (local.set $n (call $read (i32.const 0)))
        (if (call $is (i32.const 101)) (then (call $endless)))
        (if (call $is (i32.const 104)) (then (call $hungry)))
        (if (call $is (i32.const 99)) (then (call $careless)))
        (if (call $is (i32.const 116)) (then (call $talkative)))
        (if (call $is (i32.const 115)) (then (call $sleepy)))
        (if (call $is (i32.const 120)) (then
            (call $print (i32.const 2) (i32.const 1024) (local.get $n))
            (call $proc_exit (i32.const 7))))
        (call $print (i32.const 1) (i32.const 1024) (local.get $n)))"#;

/// Prints how many variables it has, and what is in a file, or `-` if it may not be read, and `w` if one may be
/// written.
const CURIOUS: &str = r#"
    (data (i32.const 512) "data.txt")
    (data (i32.const 520) "-")
    (data (i32.const 521) "w")
    (func $open (param $flags i32) (param $rights i64) (result i32)
        (call $path_open (i32.const 3) (i32.const 0) (i32.const 512) (i32.const 8)
            (local.get $flags) (local.get $rights) (i64.const 0) (i32.const 0) (i32.const 16)))
    (func (export "_start")
        (drop (call $environ_sizes_get (i32.const 24) (i32.const 28)))
        (i32.store8 (i32.const 530) (i32.add (i32.load (i32.const 24)) (i32.const 48)))
        (call $print (i32.const 1) (i32.const 530) (i32.const 1))
        (if (call $open (i32.const 0) (i64.const 2))
            (then (call $print (i32.const 1) (i32.const 520) (i32.const 1)))
            (else (call $copy (i32.load (i32.const 16)))))
        (if (i32.eqz (call $open (i32.const 9) (i64.const 64)))
            (then (call $print (i32.const 1) (i32.const 521) (i32.const 1)))))"#;

/// A module in a directory of its own.
struct Module {
    directory: tempfile::TempDir,
}

impl Module {
    fn new(functions: &str) -> Self {
        Self::of(&format!("(module {STREAMS} {functions})"))
    }

    fn of(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("f.wasm"), wat::parse_str(text).unwrap()).unwrap();
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("f.wasm")
    }

    fn command(&self, options: &[&str]) -> std::process::Command {
        let path = self.path();
        let mut command = widemap(&[&["map", "--wasm", path.to_str().unwrap()], options].concat());
        command.current_dir(self.directory.path());
        command
    }

    fn map(&self, options: &[&str], items: &str) -> Run {
        run(self.command(options), items.as_bytes())
    }
}

/// The words of JSON results: the status, and the error.
fn outcomes(done: &Run) -> Vec<(String, String)> {
    let of = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let error = line["error"].as_str().unwrap_or_default();
        (line["status"].as_str().unwrap().to_owned(), error.to_owned())
    };
    done.text().lines().map(of).collect()
}

#[test]
fn blocks_go_through_a_module_wherever_it_runs() {
    let cat = Module::new(CAT);
    let (ann, ben) = (WorkerProcess::start("ann", 1), WorkerProcess::start("ben", 1));
    let items = numbers(1..=300_000);
    let two = places(&[&ann, &ben]);
    for options in [&[][..], &["--local", "3", "--block", "1000"], &two] {
        assert_eq!(cat.map(options, &items).exits(0).text(), items, "{options:?}");
    }
    // A block that is longer than what lies between a worker and the module, both ways.
    let options = [&two[..], &["--block", "64M"]].concat();
    assert_eq!(cat.map(&options, &numbers(1..=2_000_000)).exits(0).text(), numbers(1..=2_000_000));
    let done = cat.map(&["--format", "json", "--block", "2"], "a\nb\n").exits(0);
    let first: serde_json::Value =
        serde_json::from_str(done.text().lines().next().unwrap()).unwrap();
    assert_eq!((&first["output"], &first["exit"]), (&"a\n".into(), &0.into()));
    // Lists of the command line are lines, too.
    assert_eq!(run(cat.command(&[":::", "a b", "c"]), b"").exits(0).text(), "a b\nc\n");
    assert_eq!(cat.map(&[], "").exits(0).text(), "");
}

#[test]
fn a_status_of_a_module_counts_as_success_where_that_is_said() {
    let moods = Module::new(MOODS);
    let options = ["--format", "json", "--block", "2", "--retries", "0"];
    let said = [&options[..], &["--ok-exit", "0,7"]].concat();
    let done = moods.map(&said, "a\nx\n").exits(0);
    let lines: Vec<serde_json::Value> =
        done.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[1]["status"], &lines[1]["exit"]), (&"ok".into(), &7.into()));
    assert_eq!(
        moods.map(&["--block", "2", "--ok-exit", "0,7"], "a\nx\nb\n").exits(0).text(),
        "a\nb\n"
    );
    // And only where it is: 0 is not among these.
    let done = moods.map(&[&options[..], &["--ok-exit", "7"]].concat(), "a\nx\n").exits(1);
    assert_eq!(outcomes(&done)[0], ("error".to_owned(), "exited with status 0".to_owned()));
}

#[test]
fn a_block_that_fails_fails_alone_and_its_worker_is_as_it_was() {
    let moods = Module::new(MOODS);
    let ann = WorkerProcess::start("ann", 2);
    let at_ann = places(&[&ann]);
    let limits = ["--timeout", "2", "--max-output", "1M", "--memory", "128M", "--retries", "0"];
    let options = [&at_ann[..], &limits, &["--format", "json", "--block", "2"]].concat();
    // Compiled, and every slot has run something.
    let _ = moods.map(&options, "1\n2\n3\n4\n").exits(0);
    let before = memory_bytes(ann.pid());
    let done = moods.map(&options, "a\ne\nh\nb\nc\nt\nx\ns\nd\n").exits(1);
    let told = outcomes(&done);
    let shown = |status: &str, error: &str| (status.to_owned(), error.to_owned());
    let expected = [
        shown("ok", ""),
        shown("timeout", "took longer than 2s"),
        shown("error", "wanted more than 134217728 bytes of memory (--memory)"),
        shown("ok", ""),
        shown(
            "error",
            "trapped: wasm `unreachable` instruction executed, in `careless`, called by function 12",
        ),
        shown("error", "printed more than 1048576 bytes (--max-output)"),
        shown("error", "exited with status 7"),
        shown("timeout", "took longer than 2s"),
        shown("ok", ""),
    ];
    for (told, expected) in told.iter().zip(&expected) {
        assert_eq!(told.0, expected.0, "{told:?}");
        let is_so = match expected.1.split_once(", called by function") {
            Some((start, _)) => told.1.starts_with(start),
            None => told.1 == expected.1,
        };
        assert!(is_so, "{told:?} where {expected:?}");
    }
    assert_eq!(told.len(), expected.len());
    let seventh: serde_json::Value =
        serde_json::from_str(done.text().lines().nth(6).unwrap()).unwrap();
    assert_eq!((&seventh["exit"], &seventh["stderr"]), (&7.into(), &"x\n".into()));
    // What the hungry one had is given back.
    let more = || memory_bytes(ann.pid()).saturating_sub(before);
    eventually("the worker's memory is as it was", more, |bytes| *bytes < 32 << 20);
    let _ = moods.map(&options, "1\n2\n").exits(0);
}

#[test]
fn a_block_has_the_memory_and_the_processor_time_that_it_is_given() {
    let moods = Module::new(MOODS);
    let options = ["--block", "2", "--format", "json", "--retries", "0"];
    let limits = ["--memory", "4M", "--cpu-seconds", "1"];
    let told = outcomes(&moods.map(&[&options[..], &limits].concat(), "a\nh\ne\n").exits(1));
    assert_eq!(told[0].0, "ok");
    assert_eq!(told[1].1, "wanted more than 4194304 bytes of memory (--memory)");
    assert_eq!(told[2].0, "timeout");
    assert_eq!(told[2].1, "took more than 1 s of processor time (--cpu-seconds)");
}

#[test]
fn a_module_that_never_ends_is_cancelled_and_so_is_one_that_sleeps() {
    let moods = Module::new(MOODS);
    let ann = WorkerProcess::start("ann", 2);
    let options = [&places(&[&ann])[..], &["--block", "2"]].concat();
    let map = MapProcess::start(moods.command(&options), "e\ns\n");
    map.says("1 worker");
    std::thread::sleep(std::time::Duration::from_millis(300));
    map.signal(Signal::INT);
    let _ = map.finish().exits(130);
    // Its slots are free again.
    assert_eq!(moods.map(&options, "a\nb\n").exits(0).text(), "a\nb\n");
    let used = || widemap_tests::cpu_time(ann.pid());
    let before = used();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(used() - before < std::time::Duration::from_millis(250), "nothing runs on");
}

#[test]
fn a_module_has_only_what_it_is_given() {
    let curious = Module::new(CURIOUS);
    std::fs::write(curious.directory.path().join("data.txt"), "granted").unwrap();
    let ann = WorkerProcess::start("ann", 1);
    let at_ann = places(&[&ann]);
    for place in [&[][..], &at_ann] {
        let map = |options: &[&str]| curious.map(&[place, options].concat(), "x\n").exits(0);
        assert_eq!(map(&[]).text(), "0-");
        assert_eq!(map(&["--env", "A=1", "--env", "B=2"]).text(), "2-");
        assert_eq!(map(&["--file", "data.txt"]).text(), "0granted");
    }
    let text = std::fs::read_to_string(curious.directory.path().join("data.txt")).unwrap();
    assert_eq!(text, "granted");
}

#[test]
fn a_module_is_compiled_once_by_a_worker() {
    let cat = Module::new(CAT);
    let ann = WorkerProcess::start_with("ann", 2, &["--log", "debug"]);
    let at_ann = places(&[&ann]);
    // The second one by another name: it is the content that counts.
    let again = cat.directory.path().join("other.wasm");
    std::fs::copy(cat.path(), &again).unwrap();
    let _ = cat.map(&at_ann, "1\n").exits(0);
    let words = [&["map", "--wasm", again.to_str().unwrap()], &at_ann[..]].concat();
    let _ = run(widemap(&words), b"2\n").exits(0);
    let compiled = |said: &str| said.matches("compiled a module").count();
    assert_eq!(compiled(&ann.said()), 1, "{}", ann.said());
    let _ = Module::new(MOODS).map(&at_ann, "1\n").exits(0);
    assert_eq!(compiled(&ann.said()), 2, "{}", ann.said());
}

#[test]
fn what_is_no_command_is_refused_before_anything_runs() {
    let refused = |path: &Path, told: &str| {
        let done = run(widemap(&["map", "--wasm", path.to_str().unwrap()]), b"1\n2\n").exits(2);
        assert!(done.stderr.contains(told), "{told}: {}", done.stderr);
        assert_eq!(done.text(), "");
    };
    let without_start = Module::of("(module (memory (export \"memory\") 1))");
    refused(&without_start.path(), "it exports no function `_start`");
    let foreign = "(module (import \"env\" \"magic\" (func)) (func (export \"_start\")))";
    refused(&Module::of(foreign).path(), "env::magic");
    let text = without_start.directory.path().join("text.wat");
    std::fs::write(&text, "(module)").unwrap();
    refused(&text, "wat2wasm");
    let broken = without_start.directory.path().join("broken.wasm");
    std::fs::write(&broken, b"\0asm\x01\0\0\0\xff\xff").unwrap();
    refused(&broken, "broken.wasm` cannot be run on local");
    let done = without_start.map(&["--wd", "."], "1\n").exits(2);
    assert!(done.stderr.contains("--file"), "{}", done.stderr);
    let done = without_start.map(&["echo"], "1\n").exits(2);
    assert!(done.stderr.contains("--wasm"), "{}", done.stderr);
    // A worker that does not allow it is set aside, by name.
    let ann = WorkerProcess::start_with("ann", 1, &["--allow", "exec"]);
    let at_ann = places(&[&ann]);
    let done = Module::new(CAT).map(&[&at_ann[..], &["--wait-workers", "1"]].concat(), "1\n");
    assert!(done.stderr.contains("it does not allow wasm"), "{}", done.stderr);
}
