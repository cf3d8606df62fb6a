//! Whole maps over loopback, two worker processes of one slot each: what a user waits for.

use std::process::{Command, Stdio};

use criterion::{Criterion, Throughput};
use widemap_tests::{WorkerProcess, widemap};

fn run(mut command: Command, input: &std::path::Path) {
    let input = std::fs::File::open(input).expect("it is there");
    command.stdin(input).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().expect("it starts").success());
}

fn main() {
    let quick = std::env::var_os("WIDEMAP_BENCH_QUICK").is_some();
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let directory = tempfile::tempdir().expect("a directory");
    let numbers = |count: u64| {
        let path = directory.path().join(count.to_string());
        let text: Vec<u8> = (1..=count).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        std::fs::write(&path, text).expect("it can be written");
        path
    };
    let (ann, bob) = (WorkerProcess::start("ann", 1), WorkerProcess::start("bob", 1));
    let places = ["--worker", ann.address(), "--worker", bob.address()];
    let map = |rest: &[&str]| widemap(&[&["map"], &places[..], rest].concat());

    let mut group = criterion.benchmark_group("over loopback");
    let many = if quick { 10_000 } else { 1_000_000 };
    let (list, few) = (numbers(many), numbers(1_000));
    group.throughput(Throughput::Elements(many));
    group.bench_function("items, sizes adapt", |bencher| {
        bencher.iter(|| run(map(&["--builtin", "identity"]), &list));
    });
    group.bench_function("items, one a chunk", |bencher| {
        bencher.iter(|| run(map(&["--chunk", "1", "--builtin", "identity"]), &list));
    });
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("commands", |bencher| {
        bencher.iter(|| run(map(&["--", "printf", "%s\n"]), &few));
    });
    let bytes = std::fs::metadata(&list).expect("it is there").len();
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function("blocks through cat", |bencher| {
        bencher.iter(|| run(map(&["--pipe", "--", "cat"]), &list));
    });
    group.finish();
    criterion.final_summary();
}
