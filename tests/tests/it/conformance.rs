//! One semantics: the same cases for every runtime, and what each comes to. A function does what the first
//! word of its item says; what differs between runtimes is in the table.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use widemap_common::spec::Runtime;
use widemap_tests::{
    MapProcess, Run, WorkerProcess, eventually, example, memory_bytes, needs, processes_with, run,
    run_within, widemap, without_configuration,
};

/// The moods of a command, as a shell has them: `$x` is the item. One that prints before it goes wrong says
/// nothing to a filter, whose line it has answered.
fn shell(mark: &str, before: &str) -> String {
    format!(
        "case \"$x\" in \
        fail*) {before}; echo why >&2; exit 3;; \
        die*) {before}; kill -9 $$;; \
        hang*) exec sleep {mark};; \
        babble*) exec yes;; \
        nothing*) ;; \
        vast*) head -c 1073741823 /dev/zero | tr '\\000' a; echo;; \
        poison*) read -r _ _ _ worker _ < /proc/$PPID/stat; kill -9 $worker; sleep {mark};; \
        *) printf '%s\\n' \"$x\";; esac"
    )
}

const PYTHON: &str = "import os, sys, time\n\
    def moods(x):\n    \
        mood = x.split(' ')[0]\n    \
        if mood == 'fail': print('why', file=sys.stderr); raise ValueError('it fails')\n    \
        if mood == 'die': os.kill(os.getpid(), 9)\n    \
        if mood == 'hang': time.sleep(1000)\n    \
        if mood == 'babble': return 'y' * (4 << 20)\n    \
        if mood == 'nothing': return ''\n    \
        if mood == 'vast': return 'a' * ((1 << 30) - 1)\n    \
        if mood == 'poison': os.kill(int(open(f'/proc/{os.getppid()}/stat').read().split()[3]), 9); time.sleep(1000)\n    \
        return x\n\
    def same(x): return x\n";

/// The first letter says it all.
const WASM: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (memory (export "memory") 2)
    (data (i32.const 512) "why\n")
    (func $read (result i32)
        (i32.store (i32.const 0) (i32.const 1024))
        (i32.store (i32.const 4) (i32.const 65536))
        (i32.store (i32.const 8) (i32.const 0))
        (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (i32.load (i32.const 8)))
    (func $print (param $fd i32) (param $at i32) (param $length i32)
        (i32.store (i32.const 0) (local.get $at))
        (i32.store (i32.const 4) (local.get $length))
        (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
    (func $is (param $letter i32) (result i32)
        (i32.eq (i32.load8_u (i32.const 1024)) (local.get $letter)))
    (func $vast (local $left i32)
        (memory.fill (i32.const 1024) (i32.const 97) (i32.const 65536))
        (local.set $left (i32.const 16384))
        (loop $again
            (local.set $left (i32.sub (local.get $left) (i32.const 1)))
            (if (i32.eqz (local.get $left)) (then (i32.store8 (i32.const 66559) (i32.const 10))))
            (call $print (i32.const 1) (i32.const 1024) (i32.const 65536))
            (br_if $again (local.get $left))))
    (func (export "_start") (local $n i32)
        (local.set $n (call $read))
        (if (call $is (i32.const 102)) (then ;; fail
            (call $print (i32.const 1) (i32.const 1024) (local.get $n))
            (call $print (i32.const 2) (i32.const 512) (i32.const 4))
            (call $proc_exit (i32.const 3))))
        (if (call $is (i32.const 100)) (then (unreachable))) ;; die
        (if (call $is (i32.const 104)) (then (loop $again (br $again)))) ;; hang
        (if (call $is (i32.const 98)) (then (loop $again ;; babble
            (call $print (i32.const 1) (i32.const 1024) (i32.const 4096)) (br $again))))
        (if (call $is (i32.const 110)) (then (return))) ;; nothing
        (if (call $is (i32.const 118)) (then (call $vast) (return))) ;; vast
        (loop $again
            (if (local.get $n) (then
                (call $print (i32.const 1) (i32.const 1024) (local.get $n))
                (local.set $n (call $read))
                (br $again))))))"#;

/// A runtime under test: its worker, and how it is asked for.
struct Bench {
    runtime: Runtime,
    worker: WorkerProcess,
    directory: tempfile::TempDir,
    /// What its long processes have in their command lines.
    mark: String,
}

impl Bench {
    /// Nothing where it cannot be run: that is said.
    fn new(test: &str, runtime: Runtime) -> Option<Self> {
        if runtime == Runtime::Python && !needs(test, "python3") {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("moods.py"), PYTHON).unwrap();
        let module = wat::parse_str(WASM).unwrap();
        std::fs::write(directory.path().join("moods.wasm"), module).unwrap();
        let place = directory.path().join("tmp");
        std::fs::create_dir(&place).unwrap();
        let worker = start(runtime, "ann", &place);
        static BENCHES: AtomicU32 = AtomicU32::new(0);
        let number = BENCHES.fetch_add(1, Ordering::Relaxed);
        let mark = format!("1000.{}{number:03}", std::process::id());
        Some(Self { runtime, worker, directory, mark })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What is run, by its mood.
    fn moods(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        let [printing, silent] = ["echo partial", ":"].map(|before| shell(&self.mark, before));
        match self.runtime {
            Runtime::Exec => words(&["--", "sh", "-c", &format!("x=$1; {printing}"), "sh"]),
            Runtime::Filter => {
                let body = format!("while IFS= read -r x; do {silent}; done");
                words(&["--chunk", "1", "--filter", "--", "sh", "-c", &body])
            }
            Runtime::Pipe => {
                let body = format!("IFS= read -r x; {printing}");
                words(&["--block", "1", "--pipe", "--", "sh", "-c", &body])
            }
            Runtime::Python => words(&["--text", "--python", &(path("moods.py") + ":moods")]),
            Runtime::Wasm => words(&["--block", "1", "--wasm", &path("moods.wasm")]),
            Runtime::Builtin => words(&["--builtin", "moods"]),
        }
    }

    /// What prints each item as it is.
    fn same(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        match self.runtime {
            Runtime::Exec => words(&["--", "printf", "%s\\n"]),
            Runtime::Filter => words(&["--filter", "--", "cat"]),
            Runtime::Pipe => words(&["--pipe", "--", "cat"]),
            Runtime::Python => words(&["--text", "--python", &(path("moods.py") + ":same")]),
            Runtime::Wasm => words(&["--wasm", &path("moods.wasm")]),
            Runtime::Builtin => words(&["--builtin", "identity"]),
        }
    }

    fn command(&self, options: &[&str], function: &[String]) -> Command {
        let mut words = vec!["map", "--worker", self.worker.address()];
        words.extend(options);
        words.extend(function.iter().map(String::as_str));
        widemap(&words)
    }

    fn map(&self, options: &[&str], function: &[String], items: &[u8]) -> Run {
        run(self.command(options, function), items)
    }

    /// Descriptors that the worker and its spawner have open.
    fn descriptors(&self) -> usize {
        let of = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        std::iter::once(self.worker.pid()).chain(children(self.worker.pid())).map(of).sum()
    }

    fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.worker.pid())).unwrap().count()
    }

    /// Nothing of a job is left: no process, no file, no descriptor, no memory to speak of.
    fn is_as_it_was(&self, before: &Before) {
        let runtime = self.runtime;
        let grandchildren =
            || children(self.worker.pid()).into_iter().flat_map(children).collect::<Vec<_>>();
        eventually(&format!("{runtime}: no process is left"), grandchildren, Vec::is_empty);
        let descriptors = || self.descriptors();
        let is_before = |&now: &usize| now <= before.descriptors;
        eventually(&format!("{runtime}: as many descriptors as before"), descriptors, is_before);
        let left = || files_below(&self.path("tmp"));
        eventually(&format!("{runtime}: no file of a job is left"), left, |left| {
            *left == before.files
        });
        let threads = || self.threads();
        eventually(&format!("{runtime}: no more threads"), threads, |&now| now <= before.threads);
        let more = || memory_bytes(self.worker.pid()).saturating_sub(before.memory);
        eventually(&format!("{runtime}: no more memory"), more, |more| *more < 48 << 20);
    }
}

/// A worker for the runtime, with its files in that directory.
fn start(runtime: Runtime, name: &str, place: &Path) -> WorkerProcess {
    let program = match runtime {
        Runtime::Builtin => example("moods"),
        _ => widemap_tests::binary("widemap-worker"),
    };
    let mut command = Command::new(program);
    command.args(["--no-mdns", "--name", name, "--slots", "2"]);
    // A backtrace of a panic reads the worker's debug information, and keeps it.
    command.env("TMPDIR", place).env("RUST_BACKTRACE", "0");
    without_configuration(&mut command);
    WorkerProcess::spawn(command)
}

/// How a worker was before.
struct Before {
    descriptors: usize,
    files: Vec<PathBuf>,
    threads: usize,
    memory: u64,
}

impl Before {
    /// After each slot has run something.
    fn of(bench: &Bench) -> Self {
        let items: String = (1..=200).map(|n| format!("well {n}\n")).collect();
        let _ = bench.map(&[], &bench.moods(), items.as_bytes()).exits(0);
        let settled = || children(bench.worker.pid()).into_iter().flat_map(children).count();
        eventually("nothing is kept for a job that is over", settled, |&left| left == 0);
        Self {
            descriptors: bench.descriptors(),
            files: files_below(&bench.path("tmp")),
            threads: bench.threads(),
            memory: memory_bytes(bench.worker.pid()),
        }
    }
}

fn children(pid: u32) -> Vec<u32> {
    let of = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children"));
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let text: String = threads.filter_map(|thread| of(thread).ok()).collect();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        // What travels to a worker is kept there for the next job.
        if entry.file_name() == "artifacts" {
            continue;
        }
        found.push(entry.path());
        found.extend(files_below(&entry.path()));
    }
    found.sort();
    found
}

/// What an item comes to: its status, exit status and signal, and what its error holds.
type Outcome = (&'static str, Option<i64>, Option<i64>, &'static str);

/// The table: what each mood comes to.
fn expected(runtime: Runtime, mood: &str) -> Outcome {
    use Runtime::{Builtin, Exec, Filter, Pipe, Python, Wasm};
    // What has no process of its own has no exit status.
    let exit = matches!(runtime, Exec | Pipe | Wasm).then_some(0);
    match (mood, runtime) {
        ("fail", Exec | Filter | Pipe | Wasm) => ("error", Some(3), None, "exited with status 3"),
        ("fail", Python | Builtin) => ("error", None, None, "it fails"),
        ("die", Exec | Filter | Pipe | Python) => ("crash", None, Some(9), "killed by signal 9"),
        ("die", Wasm) => ("error", None, None, "trapped: wasm `unreachable`"),
        ("die", Builtin) => ("error", None, None, "panicked: it dies"),
        ("hang", _) => ("timeout", None, None, "took longer than 2s"),
        // A filter answers each line with one line, and the first of many is the answer.
        ("babble", Filter) => ("error", None, None, ""),
        ("babble", _) => ("error", None, None, "--max-output"),
        ("nothing", Filter) => ("error", None, None, "printed nothing"),
        _ => ("ok", exit, None, ""),
    }
}

fn every_runtime(test: &str, check: impl Fn(&Bench)) {
    for runtime in Runtime::ALL {
        if let Some(bench) = Bench::new(test, runtime) {
            check(&bench);
        }
    }
}

#[test]
fn every_mood_comes_to_the_same_in_every_runtime() {
    every_runtime("every_mood_comes_to_the_same_in_every_runtime", |bench| {
        let runtime = bench.runtime;
        let before = Before::of(bench);
        let moods = ["well", "fail", "well", "die", "hang", "babble", "nothing", "well"];
        let items: String = moods.iter().map(|mood| format!("{mood} x\n")).collect();
        let options = ["--format", "json", "--timeout", "2", "--max-output", "1M"];
        let done = bench.map(&options, &bench.moods(), items.as_bytes()).exits(1);
        let lines: Vec<Value> =
            done.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), moods.len(), "{runtime}: {}", done.text());
        for (index, (mood, line)) in moods.iter().zip(&lines).enumerate() {
            let (status, exit, signal, error) = expected(runtime, mood);
            assert_eq!(line["seq"], index + 1, "{runtime}: {line}");
            assert_eq!(line["status"], status, "{runtime}: {line}");
            assert_eq!(line["exit"].as_i64(), exit, "{runtime}: {line}");
            assert_eq!(line["signal"].as_i64(), signal, "{runtime}: {line}");
            assert_eq!(line["worker"], "ann", "{runtime}: {line}");
            let told = line["error"].as_str();
            assert_eq!(told.is_none(), status == "ok", "{runtime}: {line}");
            assert!(told.unwrap_or_default().contains(error), "{runtime}: {line}");
            let output = match (*mood, status) {
                (_, "ok") if *mood == "nothing" => "",
                (_, "ok") if matches!(runtime, Runtime::Exec | Runtime::Pipe | Runtime::Wasm) => {
                    "well x\n"
                }
                (_, "ok") => "well x",
                _ => "",
            };
            assert_eq!(line["output"].as_str().unwrap_or_default(), output, "{runtime}: {line}");
            // What cannot end otherwise is not run again: too much output never does.
            let attempts = line["attempts"].as_u64().unwrap();
            let is_permanent = *mood == "babble";
            let wanted = if status == "ok" || is_permanent { 1..=1 } else { 1..=2 };
            assert!(wanted.contains(&attempts), "{runtime}: {line}");
            if *mood == "fail" && runtime != Runtime::Builtin {
                assert!(line["stderr"].as_str().unwrap().contains("why"), "{runtime}: {line}");
                assert_eq!(attempts, 2, "{runtime}: {line}");
            }
        }
        assert_eq!(processes_with(&bench.mark), Vec::<String>::new(), "{runtime}");
        bench.is_as_it_was(&before);
        // A failed item leaves nothing in raw output.
        let items = "well 1\nfail 2\nwell 3\n";
        let done = bench.map(&["--retries", "0"], &bench.moods(), items.as_bytes()).exits(1);
        assert_eq!(done.text(), "well 1\nwell 3\n", "{runtime}");
    });
}

#[test]
fn bytes_come_back_as_they_went_in_every_runtime() {
    let cases: [(&str, &[u8]); 6] = [
        ("empty lines", b"\n\na\n\n"),
        ("CRLF", b"a\r\nb\r\n\r\n"),
        ("invalid UTF-8", b"\xff\xfe\n\xc3\nok\n"),
        ("blanks", b"  a  \n\tb\t\n"),
        ("no final newline", b"a\nb"),
        ("NUL", b"a\0b\nc\n"),
    ];
    every_runtime("bytes_come_back_as_they_went_in_every_runtime", |bench| {
        let runtime = bench.runtime;
        for (what, items) in cases {
            let done = bench.map(&[], &bench.same(), items);
            if runtime == Runtime::Exec && what == "NUL" {
                // No argument of a process can hold it: it is said, and the other item is run.
                let done = done.exits(1);
                assert_eq!(done.stdout, b"c\n");
                assert!(done.stderr.contains("NUL"), "{}", done.stderr);
                continue;
            }
            let mut expected = items.to_vec();
            // Whose results are lines ends each of them; what prints by itself prints what it prints.
            if !items.ends_with(b"\n") && !matches!(runtime, Runtime::Pipe | Runtime::Wasm) {
                expected.push(b'\n');
            }
            let done = done.exits(0);
            assert_eq!(done.stdout, expected, "{runtime}, {what}: {}", done.stderr);
        }
        assert_eq!(bench.map(&[], &bench.same(), b"").exits(0).stdout, b"", "{runtime}");
    });
}

#[test]
fn an_item_that_dies_or_fails_takes_no_sibling_along_in_any_runtime() {
    every_runtime("an_item_that_dies_or_fails_takes_no_sibling_along_in_any_runtime", |bench| {
        let runtime = bench.runtime;
        let item = |n: usize| match n {
            17 => "die 17\n".to_owned(),
            33 => "fail 33\n".to_owned(),
            _ => format!("well {n}\n"),
        };
        let items: String = (1..=60).map(item).collect();
        let chunk: &[&str] = match runtime {
            Runtime::Exec | Runtime::Python | Runtime::Builtin => &["--chunk", "60"],
            _ => &[],
        };
        let options = [chunk, &["--retries", "1"]].concat();
        let done = bench.map(&options, &bench.moods(), items.as_bytes()).exits(1);
        let kept = |line: &&str| line.starts_with("well");
        let expected: Vec<_> = items.lines().filter(kept).collect();
        assert_eq!(done.text().lines().collect::<Vec<_>>(), expected, "{runtime}");
        assert!(done.stderr.contains("60 items, 2 failed"), "{runtime}: {}", done.stderr);
    });
}

#[test]
fn a_cancel_leaves_nothing_behind_in_any_runtime() {
    every_runtime("a_cancel_leaves_nothing_behind_in_any_runtime", |bench| {
        let before = Before::of(bench);
        let map = MapProcess::start(bench.command(&[], &bench.moods()), "hang 1\nhang 2\nwell 3\n");
        map.says("1 worker");
        std::thread::sleep(Duration::from_millis(400));
        map.signal(Signal::INT);
        let _ = map.finish().exits(130);
        assert_eq!(processes_with(&bench.mark), Vec::<String>::new(), "{}", bench.runtime);
        bench.is_as_it_was(&before);
        let done = bench.map(&[], &bench.moods(), b"well again\n").exits(0);
        assert_eq!(done.text(), "well again\n", "{}", bench.runtime);
    });
}

#[test]
fn what_is_large_goes_through_every_runtime() {
    every_runtime("what_is_large_goes_through_every_runtime", |bench| {
        let runtime = bench.runtime;
        let before = Before::of(bench);
        // An item of 100 MiB: no argument of a process is so long, and that is said.
        let mut item = vec![b'a'; 100 << 20];
        item.push(b'\n');
        let bound = Duration::from_secs(120);
        let done = run_within(bound, bench.command(&["--retries", "0"], &bench.same()), &item);
        if runtime == Runtime::Exec {
            assert!(done.exits(1).stderr.contains("longer than the system passes on"));
        } else {
            assert!(done.exits(0).stdout == item, "{runtime}: all of it came back");
        }
        bench.is_as_it_was(&before);
    });
}

/// The bytes that a command prints, and those of them that are `a`.
fn counted(mut command: Command, input: &[u8]) -> (u64, u64) {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut map = command.spawn().unwrap();
    map.stdin.take().unwrap().write_all(input).unwrap();
    let (mut output, mut buffer) = (map.stdout.take().unwrap(), vec![0; 1 << 20]);
    let (mut all, mut letters) = (0, 0);
    loop {
        let read = output.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        all += read as u64;
        letters += memchr::memchr_iter(b'a', &buffer[..read]).count() as u64;
    }
    assert_eq!(map.wait().unwrap().code(), Some(0));
    (all, letters)
}

#[test]
fn an_output_of_a_gibibyte_comes_whole_from_every_runtime() {
    every_runtime("an_output_of_a_gibibyte_comes_whole_from_every_runtime", |bench| {
        let before = Before::of(bench);
        let gibibyte = 1 << 30;
        let map = bench.command(&["--max-output", "2G"], &bench.moods());
        let came = counted(map, b"vast\n");
        assert_eq!(came, (gibibyte, gibibyte - 1), "{}", bench.runtime);
        bench.is_as_it_was(&before);
    });
}

/// What kills the worker itself, and not only the process that it runs in, is found out, and costs four
/// workers of five. A module of WebAssembly has no way to do so.
#[test]
fn poison_is_found_out_in_every_runtime() {
    every_runtime("poison_is_found_out_in_every_runtime", |bench| {
        let runtime = bench.runtime;
        if runtime == Runtime::Wasm {
            return;
        }
        let others =
            ["ben", "cyn", "dan", "eve"].map(|name| start(runtime, name, &bench.path("tmp")));
        let item = |n: usize| if n == 7 { "poison 7\n".to_owned() } else { format!("well {n}\n") };
        let items: String = (1..=20).map(item).collect();
        let options = ["--retries", "0", "--format", "json"];
        let more = others.each_ref().map(|worker| ["--worker", worker.address()]).concat();
        let words = [&more[..], &options].concat();
        let done = bench.map(&words, &bench.moods(), items.as_bytes()).exits(1);
        let lines: Vec<Value> =
            done.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 20, "{runtime}: {}", done.stderr);
        for (index, line) in lines.iter().enumerate() {
            let status = if index == 6 { "crash" } else { "ok" };
            assert_eq!(line["status"], status, "{runtime}: {line}");
        }
        let told = lines[6]["error"].as_str().unwrap();
        assert!(told.contains("killed the worker that ran it, 4 times"), "{runtime}: {told}");
        let is_dead = |pid: u32| {
            // Whoever waits for it has not yet.
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|it| it.contains(") Z "))
        };
        let workers = others.iter().map(WorkerProcess::pid).chain([bench.worker.pid()]);
        let dead = workers.filter(|&pid| is_dead(pid)).count();
        assert_eq!(dead, 4, "{runtime}: workers that died");
    });
}
