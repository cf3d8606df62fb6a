//! The main job: a list goes in, results come out in its order, whatever the cluster looks like.

use widemap_tests::{WorkerProcess, run, widemap};

fn numbers(count: usize) -> Vec<u8> {
    (1..=count).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

#[test]
fn items_run_on_this_machine_where_no_place_is_named() {
    let done = run(widemap(&["map", "--", "echo", "got", "{}"]), b"a\nb\nc").exits(0);
    assert_eq!(done.text(), "got a\ngot b\ngot c\n");
    assert!(done.stderr.starts_with("widemap: this machine only: "), "{}", done.stderr);
    assert!(done.stderr.lines().last().unwrap().starts_with("widemap: 3 items, 0 failed, "));
}

#[test]
fn two_workers_give_the_order_of_the_list() {
    let (ann, bob) = (WorkerProcess::start("ann", 1), WorkerProcess::start("bob", 2));
    let places = ["--worker", ann.address(), "--worker", bob.address()];
    let input = numbers(300);
    let echo = [&["map"], &places[..], &["--", "printf", "%s\n"]].concat();
    let done = run(widemap(&echo), &input).exits(0);
    assert_eq!(done.stdout, input);
    let first = done.stderr.lines().next().unwrap();
    assert!(first.contains("2 workers") && first.contains("3 slots"), "{first}");
}

#[test]
fn a_million_squares_are_right() {
    let done = run(widemap(&["map", "--builtin", "square"]), &numbers(1_000_000)).exits(0);
    let want: Vec<u8> =
        (1..=1_000_000_u64).flat_map(|n| format!("{}\n", n * n).into_bytes()).collect();
    assert!(done.stdout == want);
}

#[test]
fn one_item_a_chunk_gives_the_same_bytes() {
    let (ann, bob) = (WorkerProcess::start("ann", 1), WorkerProcess::start("bob", 1));
    let places = ["--worker", ann.address(), "--worker", bob.address()];
    let input = numbers(50_000);
    let identity = [&["map"], &places[..], &["--chunk", "1", "--builtin", "identity"]].concat();
    assert!(run(widemap(&identity), &input).exits(0).stdout == input);
}

#[test]
fn a_pipe_gets_blocks_whose_bounds_are_fixed_by_the_input_alone() {
    let input = numbers(200_000);
    let counts = |slots: &str, block: &str| {
        let map = ["map", "--local", slots, "--block", block, "--pipe", "--", "wc", "-c"];
        run(widemap(&map), &input).exits(0)
    };
    let (one, three) = (counts("1", "64K"), counts("3", "64K"));
    assert_eq!(one.text(), three.text());
    assert!(one.text().lines().count() > 10);
    let total: usize = one.text().lines().map(|n| n.trim().parse::<usize>().unwrap()).sum();
    assert_eq!(total, input.len());
}

#[test]
fn a_pipe_streams_a_file_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    let input = numbers(3_000_000);
    std::fs::write(&file, &input).unwrap();
    let worker = WorkerProcess::start("ann", 2);
    let path = file.to_str().unwrap();
    let map = ["map", "--worker", worker.address(), "-a", path, "--pipe", "--", "cat"];
    assert!(run(widemap(&map), b"").exits(0).stdout == input);
}

#[test]
fn empty_input_is_empty_output() {
    for map in [&["map", "echo"][..], &["map", "--builtin", "identity"], &["map", "--pipe", "wc"]] {
        let done = run(widemap(map), b"").exits(0);
        assert_eq!(done.text(), "", "{map:?}");
    }
}

#[test]
fn bytes_are_preserved() {
    let input = b"\xff\xfe\r\n\n  two  blanks \t\nno newline at the end";
    let done = run(widemap(&["map", "--builtin", "identity"]), input).exits(0);
    assert_eq!(done.stdout, [&input[..], b"\n"].concat());
    let done = run(widemap(&["map", "--", "printf", "<%s>"]), input).exits(0);
    let want = b"<\xff\xfe\r><><  two  blanks \t><no newline at the end>";
    assert_eq!(done.stdout, want);
    let nul = b"a\nb\0\0c";
    let done = run(widemap(&["map", "-0", "--builtin", "identity"]), nul).exits(0);
    assert_eq!(done.stdout, b"a\nb\0\0c\0");
}

#[test]
fn items_of_the_command_line_fill_placeholders() {
    let map = ["map", "echo", "{#}:{/.}:{//}", ":::", "d/a.txt", "-x", "two words", "line\nline"];
    let done = run(widemap(&map), b"").exits(0);
    assert_eq!(done.text(), "1:a:d\n2:-x:.\n3:two words:.\n4:line\nline:.\n");
}

#[test]
fn workers_of_a_file_join_while_a_job_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("workers");
    let ann = WorkerProcess::start("ann", 1);
    std::fs::write(&file, format!("{}\n", ann.address())).unwrap();
    let path = file.to_str().unwrap();
    let map = ["map", "--workers-file", path, "--format", "json", "--", "sh", "-c", "sleep 0.05"];
    let command = widemap(&map);
    let input = numbers(60);
    let bob = WorkerProcess::start("bob", 1);
    let joins = std::thread::scope(|scope| {
        let job = scope.spawn(|| run(command, &input));
        std::fs::write(&file, format!("{}\n{}\n", ann.address(), bob.address())).unwrap();
        job.join().unwrap()
    })
    .exits(0);
    assert!(joins.text().contains("\"worker\":\"bob\""), "{}", joins.stderr);
}

#[test]
fn the_environment_names_workers_where_no_option_names_a_place() {
    let ann = WorkerProcess::start("ann", 1);
    let map = |options: &[&str]| {
        let mut map = widemap(&[&["map"], options, &["--", "echo"]].concat());
        map.env("WIDEMAP_WORKERS", ann.address());
        run(map, b"1\n").exits(0).stderr
    };
    assert!(map(&[]).contains("1 worker, 1 slot, from WIDEMAP_WORKERS"));
    assert!(map(&["--local", "2"]).contains("this machine only: 2 slots"));
}

#[test]
fn workers_are_listed_with_why_others_are_not_used() {
    let ann = WorkerProcess::start_with("ann", 3, &["--label", "gpu=1"]);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let workers = ["workers", "--worker", ann.address(), "--worker", &address];
    let table = run(widemap(&workers), b"").exits(0);
    let row = |name: &str| table.text().lines().find(|line| line.contains(name)).unwrap();
    assert!(row(ann.address()).contains("gpu=1") && row(ann.address()).ends_with("ready"));
    assert!(row(&address).contains("not used: connection refused"));
    let json = run(widemap(&[&workers[..], &["--format", "json"]].concat()), b"").exits(0);
    let first: serde_json::Value =
        serde_json::from_str(json.text().lines().next().unwrap()).unwrap();
    assert_eq!((&first["name"], &first["slots"]), (&"ann".into(), &3.into()));
}

#[test]
fn one_worker_under_two_addresses_is_one_worker() {
    let ann = WorkerProcess::start("ann", 1);
    let other = ann.address().replace("127.0.0.1", "localhost");
    let map = ["map", "--worker", ann.address(), "--worker", &other, "--", "echo"];
    let done = run(widemap(&map), b"1\n2\n3\n").exits(0);
    assert_eq!(done.text(), "1\n2\n3\n");
    assert!(done.stderr.contains("1 worker, 0 lost"), "{}", done.stderr);
}

#[test]
fn the_directory_and_the_environment_are_what_was_asked_for() {
    let ann = WorkerProcess::start("ann", 1);
    let dir = tempfile::tempdir().unwrap();
    let wd = dir.path().to_str().unwrap();
    let script = "pwd; echo $FROM_HERE $WIDEMAP_ITEM $WIDEMAP_SEQ $WIDEMAP_SLOT ${SECRET-unset}";
    let options = ["map", "--worker", ann.address(), "--wd", wd, "--env", "FROM_HERE=x"];
    let mut map = widemap(&[&options[..], &["--", "sh", "-c", script, "sh"]].concat());
    map.env("SECRET", "1");
    assert_eq!(run(map, b"it\n").exits(0).text(), format!("{wd}\nx it 1 1 unset\n"));
    let map = ["map", "--worker", ann.address(), "--", "sh", "-c", "touch left; pwd", "sh"];
    let done = run(widemap(&map), b"1\n").exits(0);
    assert!(done.stderr.contains("1 file"), "{}", done.stderr);
    assert!(!std::path::Path::new(done.text().trim()).exists());
}

#[test]
fn a_shell_line_gets_items_that_mean_nothing_to_it() {
    let items = b"a b\n$(echo no)\n'\"`;|\\\n";
    let done =
        run(widemap(&["map", "--shell", "printf '<%s>\\n' {} | tr a-z A-Z"]), items).exits(0);
    assert_eq!(done.text(), "<A B>\n<$(ECHO NO)>\n<'\"`;|\\>\n");
    let lines = b"echo one | cat\nexit 0\n";
    assert_eq!(run(widemap(&["map", "--shell"]), lines).exits(0).text(), "one\n");
}

#[test]
fn a_worker_that_leaves_the_file_gets_no_new_work() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("workers");
    let (ann, bob) = (WorkerProcess::start("ann", 1), WorkerProcess::start("bob", 1));
    std::fs::write(&file, format!("{}\n{}\n", ann.address(), bob.address())).unwrap();
    let log = dir.path().join("log").display().to_string();
    let script = format!("echo $WIDEMAP_SEQ >> {log}; sleep 0.05");
    let path = file.to_str().unwrap();
    let map = ["map", "--workers-file", path, "--format", "json", "--", "sh", "-c", &script, "sh"];
    let command = widemap(&map);
    let input = numbers(120);
    let done = std::thread::scope(|scope| {
        let job = scope.spawn(|| run(command, &input));
        let ran = || std::fs::read_to_string(&log).map_or(0, |text| text.lines().count());
        widemap_tests::eventually("some items have run", ran, |&count| count > 10);
        std::fs::write(&file, format!("{}\n", ann.address())).unwrap();
        job.join().unwrap()
    })
    .exits(0);
    let by = |name: &str| done.text().matches(&format!("\"worker\":\"{name}\"")).count();
    assert!(by("ann") > 2 * by("bob"), "ann {}, bob {}", by("ann"), by("bob"));
}

#[test]
fn a_chunk_that_is_not_full_yet_waits_for_the_rest() {
    let mut map = widemap_tests::exec_in_background(widemap(&[
        "map",
        "--local",
        "1",
        "--chunk",
        "100",
        "--builtin",
        "square",
    ]));
    let mut stdin = map.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"1\n2\n").unwrap();
    // The first two are read: the pipe is empty again.
    let left = || rustix::io::ioctl_fionread(&stdin).unwrap();
    widemap_tests::eventually("the first two are read", left, |&left| left == 0);
    std::io::Write::write_all(&mut stdin, b"3\n").unwrap();
    drop(stdin);
    assert_eq!(widemap_tests::bytes_of(map.stdout.take().unwrap()), b"1\n4\n9\n");
    assert_eq!(map.wait().unwrap().code(), Some(0));
}

#[test]
fn results_of_functions_end_in_what_items_end_in() {
    let map = ["map", "-0", "--builtin", "identity", ":::", "a", "b"];
    assert_eq!(run(widemap(&map), b"").exits(0).stdout, b"a\0b\0");
}
