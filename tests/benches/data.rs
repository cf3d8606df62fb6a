//! The data plane of the coordinator: cutting in MiB/s, and the reorder buffer with chunks of one
//! item, in order and out of it.

use std::fs::File;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use widemap::data::{
    BlockRule, Format, Input, Merge, MergeConfig, ResultShape, Shape, SinkConfig, SinkTarget,
    Source,
};
use widemap_common::framing::LINES;
use widemap_common::ids::{AttemptId, ItemRange};

/// A wake-up that can be waited for.
fn waker() -> (impl Fn() + Send + Sync + Clone, Receiver<()>) {
    let (wake, woken) = sync_channel(1);
    let wake = Arc::new(wake);
    // One pending wake-up is as good as many.
    let wake = move || {
        let _ = wake.try_send(());
    };
    (wake, woken)
}

fn cut_all(path: &std::path::Path, items_max: u32) -> u64 {
    let (wake, woken) = waker();
    let source = Source::File(path.to_owned());
    let mut input = Input::open(source, LINES, BlockRule::ItemWise, wake).expect("it opens");
    while !input.is_exhausted() {
        input.poll();
        while let Some(chunk) = input.cut(items_max, 1 << 20) {
            black_box(chunk);
        }
        if !input.is_exhausted() {
            woken.recv().expect("the reader lives");
        }
    }
    input.cut_items()
}

fn merge_all(chunks: u64, order: impl Iterator<Item = u64>) {
    let (wake, woken) = waker();
    let null = File::options().write(true).open("/dev/null").expect("it is there");
    let sink = SinkConfig {
        target: SinkTarget::file(null, "/dev/null".to_owned()),
        format: Format::Raw { fill: None },
        shape: Shape { input: LINES, results: ResultShape::Framed(LINES), is_block_wise: false },
        separator: b'\n',
        is_hashed: false,
        recorder: None,
        failures: None,
        function: String::new(),
    };
    let mut merge = Merge::start(MergeConfig::default(), sink, wake).expect("it starts");
    for (turn, item) in order.enumerate() {
        let attempt = AttemptId(item + 1);
        merge.finish(attempt, Bytes::from_static(b"1234567\n"), 8).expect("it fits");
        merge.accept(attempt, ItemRange::new(item, 1), 0..8);
        merge.discard(attempt);
        if turn % 256 == 255 {
            merge.pump();
        }
    }
    while !merge.is_empty() {
        merge.pump();
        if !merge.is_empty() {
            woken.recv().expect("the sink lives");
        }
    }
    merge.close();
    while merge.outcome().is_none() {
        woken.recv().expect("the sink lives");
    }
    assert_eq!(merge.next_item(), chunks);
}

fn main() {
    let quick = std::env::var_os("WIDEMAP_BENCH_QUICK").is_some();
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("numbers");
    let lines = if quick { 100_000 } else { 5_000_000 };
    let text: Vec<u8> = (0..lines).flat_map(|n| format!("{n:07}\n").into_bytes()).collect();
    std::fs::write(&path, &text).expect("it can be written");

    let mut group = criterion.benchmark_group("cutting");
    group.throughput(Throughput::Bytes(text.len() as u64));
    for items in [1, 1_000, 1_000_000] {
        group.bench_function(format!("chunks of {items} short lines"), |bencher| {
            bencher.iter(|| assert_eq!(cut_all(&path, items), lines));
        });
    }
    group.finish();

    let chunks = if quick { 10_000 } else { 500_000 };
    let mut group = criterion.benchmark_group("reorder buffer, chunks of one item");
    group.throughput(Throughput::Elements(chunks));
    group.bench_function("in order", |bencher| bencher.iter(|| merge_all(chunks, 0..chunks)));
    group.bench_function("pairs swapped", |bencher| {
        bencher.iter(|| merge_all(chunks, (0..chunks).map(|item| item ^ 1)));
    });
    group.bench_function("the first one last", |bencher| {
        bencher.iter(|| merge_all(chunks, (1..chunks).chain([0])));
    });
    group.finish();
    criterion.final_summary();
}
