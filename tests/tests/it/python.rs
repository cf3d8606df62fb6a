//! Maps through functions of Python files.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use widemap_tests::{MapProcess, Run, WorkerProcess, eventually, needs, run, widemap};

use crate::support::{numbers, places};

/// A Python file in a directory of its own.
struct File {
    directory: tempfile::TempDir,
}

impl File {
    /// Nothing where there is no Python: that is said.
    fn new(test: &str, source: &str) -> Option<Self> {
        if !needs(test, "python3") {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("f.py"), source).unwrap();
        Some(Self { directory })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("f.py")
    }

    fn map(&self, function: &str, options: &[&str], items: &str) -> Run {
        let named = format!("{}:{function}", self.path().display());
        run(widemap(&[&["map", "--python", &named], options].concat()), items.as_bytes())
    }
}

/// What a loop of Python prints for the items.
fn plain(file: &Path, items: &str) -> String {
    let program = "import sys, json\nsys.path.insert(0, sys.argv[1])\nimport f\n\
        for line in sys.stdin: print(json.dumps(f.f(json.loads(line)), separators=(',', ':')))";
    let mut command = Command::new("python3");
    command.args(["-c", program]).arg(file.parent().unwrap());
    String::from_utf8(run(command, items.as_bytes()).exits(0).stdout).unwrap()
}

#[test]
fn results_are_those_of_a_plain_loop_for_any_chunk() {
    let test = "results_are_those_of_a_plain_loop_for_any_chunk";
    let source = "def f(x): return [x, {'a': x}] if isinstance(x, (int, str)) else x\n";
    let Some(file) = File::new(test, source) else { return };
    let items = "1\n-7\n1.50\n123456789012345678901234567890\n\"grün\\u00e9\\n\"\n[1,[2,{\"a\":null}]]\n\
        {\"a\": [1, 2], \"b\": {}}\ntrue\nnull\nNaN\n-Infinity\n\"\"\n[]\n  3  \n\"a,b\"\n\"[\"\n1e5\n";
    let items = items.repeat(20);
    let alone = plain(&file.path(), &items);
    for options in [&[][..], &["--chunk", "1000"], &["--chunk", "7", "--local", "3"]] {
        assert_eq!(file.map("f", options, &items).exits(0).text(), alone, "{options:?}");
    }
    let items = numbers(1..=20_000);
    assert_eq!(file.map("f", &[], &items).exits(0).text(), plain(&file.path(), &items));
}

#[test]
fn items_that_would_be_json_together_are_none_alone() {
    let test = "items_that_would_be_json_together_are_none_alone";
    let Some(file) = File::new(test, "def f(x): return x\n") else { return };
    let items = "1\n[1\n2]\n3,4\n\"a\nb\"\n\n5\n";
    let options = ["--chunk", "100", "--format", "json", "--retries", "3"];
    let done = file.map("f", &options, items).exits(1);
    let text = done.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 8);
    for (index, line) in lines.iter().enumerate() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let is_good = [0, 7].contains(&index);
        assert_eq!(line["status"] == "ok", is_good, "{line}");
        assert_eq!(line["attempts"], 1, "{line}");
        if is_good {
            assert_eq!(line["value"].to_string(), line["item"].as_str().unwrap());
        } else {
            assert!(line["error"].as_str().unwrap().starts_with("the item is not JSON"), "{line}");
        }
    }
}

#[test]
fn text_comes_and_goes_as_it_is() {
    let test = "text_comes_and_goes_as_it_is";
    let source = "def f(x): return x[::-1]\ndef n(x): return len(x)\n";
    let Some(file) = File::new(test, source) else { return };
    let done = file.map("f", &["--text", "--chunk", "9"], "abc\n\ngr\u{fc}n\nx\r").exits(0);
    assert_eq!(done.text(), "cba\n\nn\u{fc}rg\n\rx\n");
    let named = format!("{}:f", file.path().display());
    let done = run(widemap(&["map", "--python", &named, "--text"]), b"a\xff\n").exits(0);
    assert_eq!(done.stdout, b"\xffa\n");
    let done = file.map("n", &["--text", "-0"], "a\nb\0\0").exits(0);
    assert_eq!(done.stdout, b"3\x000\0");
    let done = file.map("n", &["--text", ":::", "one", "three"], "").exits(0);
    assert_eq!(done.text(), "3\n5\n");
}

#[test]
fn an_exception_is_told_with_its_traceback_and_its_item_and_the_others_are_kept() {
    let test = "an_exception_is_told_with_its_traceback_and_its_item_and_the_others_are_kept";
    let source = "def g(x): return 1 / (x - 5)\n\ndef f(x):\n    print('at', x)\n    if x == 8: return {1}\n    \
        return g(x) and x\n";
    let Some(file) = File::new(test, source) else { return };
    let done = file.map("f", &["--chunk", "100", "--retries", "0"], &numbers(1..=9)).exits(1);
    assert_eq!(done.text(), "1\n2\n3\n4\n6\n7\n9\n");
    for part in
        ["item 5 `5`", "f.py\", line 1, in g", "ZeroDivisionError", "[3 3] at 3", "set is not JSON"]
    {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
    assert!(!done.stderr.contains("<widemap>"), "{}", done.stderr);
}

#[test]
fn what_cannot_be_loaded_ends_the_map_before_anything_runs() {
    let test = "what_cannot_be_loaded_ends_the_map_before_anything_runs";
    let ran = tempfile::tempdir().unwrap();
    let mark = ran.path().join("ran");
    let source = format!("def square(x): open({mark:?}, 'a').close(); return x * x\nn = 3\n");
    let Some(file) = File::new(test, &source) else { return };
    let ann = WorkerProcess::start("ann", 2);
    for places in [places(&[&ann]), vec![]] {
        let told = |function: &str, options: &[&str]| {
            let refused =
                file.map(function, &[options, &places].concat(), &numbers(1..=9)).exits(2);
            assert!(refused.stdout.is_empty());
            refused.stderr
        };
        let text = told("sqare", &[]);
        assert!(text.contains("has no function `sqare` (it has: square)"), "{text}");
        let text = told("n", &[]);
        assert!(text.contains("is no function: it is of type int"), "{text}");
        let text = told("square", &["--initializer", "prepare"]);
        assert!(text.contains("has no function `prepare`"), "{text}");
        let text = told("square", &["--python-bin", "python9"]);
        assert!(text.contains("`python9` cannot be run on"), "{text}");
    }
    std::fs::write(file.path(), "import no_such_module\ndef square(x): return x\n").unwrap();
    let refused = file.map("square", &[], "1\n").exits(2);
    assert!(refused.stderr.contains("line 1: ModuleNotFoundError"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--file"), "{}", refused.stderr);
    std::fs::write(file.path(), "def square(x) return x\n").unwrap();
    let refused = file.map("square", &[], "1\n").exits(2);
    assert!(refused.stderr.contains("line 1: SyntaxError"), "{}", refused.stderr);
    std::fs::write(file.path(), "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
        .unwrap();
    let refused = file.map("square", &[], "1\n").exits(2);
    assert!(refused.stderr.contains("killed by signal 11"), "{}", refused.stderr);
    std::fs::remove_file(file.path()).unwrap();
    let refused = file.map("square", &[], "1\n").exits(2);
    assert!(refused.stderr.contains("f.py: No such file"), "{}", refused.stderr);
    let refused = run(widemap(&["map", "--python", "f.py"]), b"").exits(2);
    assert!(refused.stderr.contains("f.py:FUNCTION"), "{}", refused.stderr);
    assert!(!mark.exists(), "nothing ran");
}

#[test]
fn items_that_are_no_json_end_the_map_and_name_text() {
    let test = "items_that_are_no_json_end_the_map_and_name_text";
    let Some(file) = File::new(test, "def f(x): return x\n") else { return };
    let refused = file.map("f", &["--local", "1"], &"plain words\n".repeat(1_000)).exits(2);
    assert!(refused.stderr.contains("item 1 cannot be read"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--text gives the function each item"), "{}", refused.stderr);
    // One that comes later fails alone.
    let done = file.map("f", &["--chunk", "1", "--local", "1"], "1\n2\nword\n3\n").exits(1);
    assert_eq!(done.text(), "1\n2\n3\n");
}

#[test]
fn an_interpreter_that_dies_takes_one_item_with_it() {
    let test = "an_interpreter_that_dies_takes_one_item_with_it";
    let source = "import os, signal, sys\ndef f(x):\n    if x == 30: os.kill(os.getpid(), signal.SIGSEGV)\n    \
        if x == 40: os.fork() or __import__('time').sleep(60); os._exit(3)\n    if x == 50: sys.exit('enough')\n    return x\n";
    let Some(file) = File::new(test, source) else { return };
    let (ann, ben) = (WorkerProcess::start("ann", 1), WorkerProcess::start("ben", 2));
    let options = [&places(&[&ann, &ben])[..], &["--chunk", "100", "--format", "json"]].concat();
    let done = file.map("f", &options, &numbers(1..=200)).exits(1);
    let text = done.text();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 200);
    for (index, line) in lines.iter().enumerate() {
        let want = match index + 1 {
            30 | 40 => "crash",
            50 => "error",
            _ => "ok",
        };
        assert_eq!(line["status"], want, "{line}");
    }
    assert_eq!((&lines[29]["signal"], &lines[39]["exit"]), (&11.into(), &3.into()));
    assert!(lines[49]["error"].as_str().unwrap().ends_with("SystemExit: enough"), "{}", lines[49]);
}

#[test]
fn an_item_is_not_blamed_for_an_interpreter_that_died_before_it() {
    let test = "an_item_is_not_blamed_for_an_interpreter_that_died_before_it";
    let source = "import os, threading\ndef f(x):\n    if x == 1: threading.Timer(0.2, os._exit, [9]).start()\n    \
        return x\n";
    let Some(file) = File::new(test, source) else { return };
    let binaries = widemap_tests::binary("widemap");
    let line = format!(
        "(echo 1; sleep 1; echo 2) | {} map --local 1 --retries 0 --python {}:f",
        binaries.display(),
        file.path().display()
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]);
    widemap_tests::without_configuration(&mut shell);
    assert_eq!(run(shell, b"").exits(0).text(), "1\n2\n");
}

#[test]
fn one_item_that_takes_too_long_is_interrupted_alone() {
    let test = "one_item_that_takes_too_long_is_interrupted_alone";
    let source = "import time\ndef f(x):\n    while x == 30: pass\n    return x\n";
    let Some(file) = File::new(test, source) else { return };
    let options = ["--chunk", "100", "--timeout", "500ms", "--retries", "0"];
    let done = file.map("f", &options, &numbers(1..=100)).exits(1);
    let want: String = (1..=100).filter(|n| *n != 30).map(|n| format!("{n}\n")).collect();
    assert_eq!(done.text(), want);
    assert!(done.stderr.contains("item 30 `30`: took longer than 500ms"), "{}", done.stderr);
}

#[test]
fn async_functions_are_awaited_and_generators_become_arrays() {
    let test = "async_functions_are_awaited_and_generators_become_arrays";
    let source = "import asyncio\nasync def a(x):\n    await asyncio.sleep(0)\n    return x + 1\n\
        def g(x):\n    yield from range(x)\n\
        async def ag(x):\n    for n in range(x):\n        await asyncio.sleep(0)\n        yield n\n\
        class K:\n    @staticmethod\n    def m(x): return -x\n";
    let Some(file) = File::new(test, source) else { return };
    assert_eq!(file.map("a", &[], "1\n2\n").exits(0).text(), "2\n3\n");
    assert_eq!(file.map("g", &[], "0\n2\n").exits(0).text(), "[]\n[0,1]\n");
    assert_eq!(file.map("ag", &[], "1\n3\n").exits(0).text(), "[0]\n[0,1,2]\n");
    assert_eq!(file.map("K.m", &[], "1\n3\n").exits(0).text(), "-1\n-3\n");
}

#[test]
fn an_interpreter_is_prepared_once_and_replaced_after_so_many_items() {
    let test = "an_interpreter_is_prepared_once_and_replaced_after_so_many_items";
    let source = "import os\nN = None\ndef prepare():\n    global N\n    N = 0\n\
        def f(x):\n    global N\n    N += 1\n    return [os.getpid(), N]\n";
    let Some(file) = File::new(test, source) else { return };
    let options = ["--initializer", "prepare", "--recycle", "7", "--local", "1", "--chunk", "10"];
    let done = file.map("f", &options, &numbers(1..=30)).exits(0);
    let text = done.text();
    let calls: Vec<(u32, u32)> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(calls.iter().all(|(_, nth)| (1..=7).contains(nth)), "{text}");
    let nths: Vec<_> = calls.iter().map(|(_, nth)| *nth).collect();
    let want: Vec<_> = (0..30).map(|n| n % 7 + 1).collect();
    assert_eq!(nths, want);
    let mut pids: Vec<_> = calls.iter().map(|(pid, _)| *pid).collect();
    pids.dedup();
    assert_eq!(pids.len(), 5);
}

#[test]
fn what_is_printed_by_any_means_never_reaches_the_results() {
    let test = "what_is_printed_by_any_means_never_reaches_the_results";
    let source = "import os, subprocess, sys\nprint('loading')\ndef f(x):\n    print('one', x)\n    \
        os.write(1, b'two\\n')\n    subprocess.run(['echo', 'three'])\n    sys.stdout.buffer.write(b'four\\n')\n    \
        if os.fork() == 0: print('five'); sys.exit(0)\n    os.wait()\n    return input() if x == 2 else x\n";
    let Some(file) = File::new(test, source) else { return };
    let done = file.map("f", &["--chunk", "9", "--retries", "0"], "1\n2\n3\n").exits(1);
    assert_eq!(done.text(), "1\n3\n");
    for part in
        ["[1 1] one 1", "[3 3] one 3", "two", "three", "four", "five", "loading", "EOFError"]
    {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
}

#[test]
fn a_long_result_is_streamed_and_one_beyond_the_limit_fails_alone() {
    let test = "a_long_result_is_streamed_and_one_beyond_the_limit_fails_alone";
    let Some(file) = File::new(test, "def f(x): return 'x' * x\n") else { return };
    let options = ["--text", "--chunk", "3", "--max-output", "50M"];
    let file_n = "def f(x): return 'x' * int(x)\n";
    std::fs::write(file.path(), file_n).unwrap();
    let done = file.map("f", &options, "3\n40000000\n60000000\n2\n").exits(1);
    assert_eq!(done.stdout.len(), 4 + 40_000_001 + 3);
    assert!(done.stderr.contains("item 3 `60000000`: returned more than"), "{}", done.stderr);
}

#[test]
fn a_function_travels_to_workers_elsewhere_with_its_modules() {
    let test = "a_function_travels_to_workers_elsewhere_with_its_modules";
    let source = "import helper\ndef f(x): return helper.twice(x)\n";
    let Some(file) = File::new(test, source) else { return };
    let helper = file.directory.path().join("helper.py");
    std::fs::write(&helper, "def twice(x): return 2 * x\n").unwrap();
    let ann = WorkerProcess::start("ann", 2);
    let mut options = places(&[&ann]);
    options.extend(["--file", helper.to_str().unwrap()]);
    let done = file.map("f", &options, &numbers(1..=100)).exits(0);
    let want: String = (1..=100).map(|n| format!("{}\n", 2 * n)).collect();
    assert_eq!(done.text(), want);
    // What compiled modules would have left there is nobody's business.
    assert!(!done.stderr.contains("left in"), "{}", done.stderr);
    // Without it the worker is set aside by name; embedded workers find it beside the file.
    let refused = file.map("f", &places(&[&ann]), "1\n").exits(2);
    assert!(
        refused.stderr.contains("ann: ") && refused.stderr.contains("No module named 'helper'")
    );
    assert_eq!(file.map("f", &[], "4\n").exits(0).text(), "8\n");
}

#[test]
fn a_coordinator_keeps_the_function_with_the_job_and_fails_the_job_that_cannot_run() {
    let test = "a_coordinator_keeps_the_function_with_the_job_and_fails_the_job_that_cannot_run";
    let Some(file) = File::new(test, "def f(x): return 2 * x\n") else { return };
    let ann = WorkerProcess::start("ann", 2);
    let data = tempfile::tempdir().unwrap();
    let mut serve =
        widemap(&["serve", "--listen", "127.0.0.1:0", "--no-mdns", "--worker", ann.address()]);
    serve.arg("--data").arg(data.path());
    let service = WorkerProcess::spawn(serve);
    let at = ["--coordinator", service.address()];
    assert_eq!(file.map("f", &at, &numbers(1..=3)).exits(0).text(), "2\n4\n6\n");
    let refused = file.map("g", &at, &numbers(1..=3)).exits(2);
    assert!(refused.stderr.contains("has no function `g` (it has: f)"), "{}", refused.stderr);
    let refused = file.map("f", &at, "word\nword\n").exits(2);
    assert!(refused.stderr.contains(" cannot be read, and none"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--text"), "{}", refused.stderr);
    // What was submitted runs as it was.
    let named = format!("{}:f", file.path().display());
    let submit = widemap(&[&["submit"], &at[..], &["--python", &named]].concat());
    let job = run(submit, numbers(1..=3).as_bytes()).exits(0).text().trim().to_owned();
    std::fs::remove_file(file.path()).unwrap();
    let results = widemap(&[&["results", &job], &at[..]].concat());
    assert_eq!(run(results, b"").exits(0).text(), "2\n4\n6\n");
}

#[test]
fn no_interpreter_is_left_of_a_map_that_ends_however_it_ends() {
    let test = "no_interpreter_is_left_of_a_map_that_ends_however_it_ends";
    let source = "import os, sys, time\nsys.stderr.write('%d is here\\n' % os.getpid())\n\
        def f(x):\n    open(os.environ['PIDS'], 'a').write('%d\\n' % os.getpid())\n    \
        time.sleep(x)\n    return x\n";
    let Some(file) = File::new(test, source) else { return };
    let pids_file = file.directory.path().join("pids");
    let pids = || -> Vec<String> {
        let text = std::fs::read_to_string(&pids_file).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    };
    let left = || -> Vec<String> {
        pids().into_iter().filter(|pid| Path::new("/proc").join(pid).exists()).collect()
    };
    let named = format!("{}:f", file.path().display());
    let variable = format!("PIDS={}", pids_file.display());
    for signal in [None, Some(Signal::INT), Some(Signal::KILL)] {
        let _ = std::fs::remove_file(&pids_file);
        let mut ann = WorkerProcess::start("ann", 2);
        let words = ["map", "--python", &named, "--env", &variable, "--chunk", "1"];
        let command = widemap(&[&words[..], &places(&[&ann])].concat());
        let seconds = if signal.is_none() { "0" } else { "60" };
        let map = MapProcess::start(command, format!("{seconds}\n").repeat(9));
        eventually("interpreters are there", || pids().len(), |&count| count >= 2);
        match signal {
            None => drop(map.finish().exits(0)),
            Some(Signal::KILL) => {
                ann.kill();
                drop(map);
            }
            Some(signal) => {
                map.signal(signal);
                drop(map.finish().exits(130));
            }
        }
        eventually("none of them is left", left, Vec::is_empty);
    }
}
