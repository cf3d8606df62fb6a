//! Results in the order of the items, whatever the order of their coming, with little memory, a
//! full disk or a reader that has gone.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use widemap_common::failure::FailureKind;
use widemap_common::framing::{Framing, LINES, push_length_prefixed};
use widemap_common::ids::{AttemptId, ItemRange};
use widemap_common::limits::SINK_QUEUE_BYTES;

use super::{Bell, cases};
use crate::data::sink::Sink;
use crate::data::spill::Spill;
use crate::data::{
    FailureRecord, FailuresFile, Format, Merge, MergeConfig, ResultShape, Shape, SinkConfig,
    SinkError, SinkReport, SinkTarget, SpillError, StageError,
};

fn config(file: File) -> SinkConfig {
    SinkConfig {
        target: SinkTarget::file(file, "the test's file".into()),
        format: Format::Raw { fill: None },
        shape: Shape { input: LINES, results: ResultShape::Printed, is_block_wise: false },
        separator: b'\n',
        is_hashed: false,
        recorder: None,
        failures: None,
        function: "digest".into(),
    }
}

fn with_memory(memory_bytes_max: u64) -> MergeConfig {
    MergeConfig { memory_bytes_max, ..MergeConfig::default() }
}

/// A merge that writes to a file that can be read.
fn to_file(
    merge: MergeConfig,
    change: impl FnOnce(SinkConfig) -> SinkConfig,
) -> (Merge, Bell, File) {
    let (bell, file) = (Bell::default(), tempfile::tempfile().unwrap());
    let sink = change(config(file.try_clone().unwrap()));
    (Merge::start(merge, sink, bell.ringer()).unwrap(), bell, file)
}

fn end(merge: &mut Merge, bell: &Bell) -> Result<SinkReport, SinkError> {
    bell.until("the merge to be empty", || {
        merge.pump();
        (merge.is_empty() || merge.sink_has_failed()).then_some(())
    });
    merge.close();
    bell.until("the end of the sink", || merge.outcome())
}

fn written(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn failed(item: u64) -> Box<FailureRecord> {
    let text = Bytes::from(format!("item {item}"));
    let message = "no".to_owned();
    Box::new(FailureRecord::untold(ItemRange::new(item, 1), text, FailureKind::Lost, message))
}

fn whole(merge: &mut Merge, attempt: u64, range: ItemRange, output: Bytes) {
    let (attempt, bytes) = (AttemptId(attempt), output.len() as u64);
    merge.finish(attempt, output, bytes).unwrap();
    merge.accept(attempt, range, 0..bytes);
    merge.discard(attempt);
}

/// One attempt of a made-up job.
#[derive(Debug, Clone)]
struct Try {
    /// The output of each item; `None` where it failed.
    outputs: Vec<Option<Vec<u8>>>,
    /// How the output arrives: in parts of so many bytes, or whole.
    part_bytes: Option<usize>,
    order: u32,
}

fn any_try() -> impl Strategy<Value = Try> {
    let output = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..20),
        1 => prop::collection::vec(any::<u8>(), 3_000..9_000),
    ];
    let outputs = prop::collection::vec(prop::option::weighted(0.9, output), 1..6);
    let parts = prop::option::of(1_usize..5_000);
    (outputs, parts, any::<u32>()).prop_map(|(outputs, part_bytes, order)| Try {
        outputs,
        part_bytes,
        order,
    })
}

/// Sends the attempt's output, then accepts it range by range.
fn play(merge: &mut Merge, attempt: AttemptId, first: u64, made: &Try) {
    let output: Vec<u8> = made.outputs.iter().flatten().flatten().copied().collect();
    let bytes = Bytes::from(output);
    let mut at = 0;
    while let Some(part) = made.part_bytes.filter(|part| at + part < bytes.len()) {
        // Each part comes twice, as after a reconnection.
        merge.stage(attempt, at as u64, &bytes.slice(at..at + part)).unwrap();
        merge.stage(attempt, 0, &bytes.slice(..at + part)).unwrap();
        at += part;
        assert_eq!(merge.staged_bytes(attempt), at as u64);
    }
    merge.finish(attempt, bytes.slice(at..), bytes.len() as u64).unwrap();
    let mut start = 0;
    for (item, output) in (first..).zip(&made.outputs) {
        match output {
            Some(output) => {
                let end = start + output.len() as u64;
                merge.accept(attempt, ItemRange::new(item, 1), start..end);
                start = end;
            }
            None => merge.fail(failed(item)),
        }
    }
    merge.discard(attempt);
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn the_output_is_in_order_whatever_the_order_of_acceptance(
        tries in prop::collection::vec(any_try(), 1..40),
        memory_bytes_max in prop_oneof![Just(1_u64), 500..20_000_u64, Just(1 << 30)],
        with_fill in any::<bool>(),
    ) {
        let fill = with_fill.then(|| b"FILL".to_vec());
        let format = Format::Raw { fill: fill.clone() };
        let (mut merge, bell, file) =
            to_file(with_memory(memory_bytes_max), |config| SinkConfig { format, ..config });
        let mut firsts = Vec::new();
        let mut next = 0;
        for made in &tries {
            firsts.push(next);
            next += made.outputs.len() as u64;
        }
        let mut order: Vec<usize> = (0..tries.len()).collect();
        order.sort_by_key(|&index| tries[index].order);
        for index in order {
            play(&mut merge, AttemptId(index as u64), firsts[index], &tries[index]);
            merge.pump();
        }
        end(&mut merge, &bell).unwrap();
        let mut said = Vec::new();
        for output in tries.iter().flat_map(|made| &made.outputs) {
            match (output, &fill) {
                (Some(output), _) => said.extend_from_slice(output),
                (None, Some(fill)) => said.extend([fill, b"\n".as_slice()].concat()),
                (None, None) => {}
            }
        }
        prop_assert!(written(file) == said, "the output is not in order");
        prop_assert_eq!(merge.next_item(), next);
        bell.until("everything to be freed", || (merge.level().memory_bytes == 0).then_some(()));
    }
}

#[test]
fn what_does_not_fit_memory_waits_on_disk_and_the_space_comes_back() {
    let (mut merge, bell, file) = to_file(with_memory(4 << 20), |config| config);
    let part = Bytes::from(vec![7; 1 << 20]);
    for item in (1..64).rev() {
        whole(&mut merge, item, ItemRange::new(item, 1), part.clone());
        bell.until("memory to be relieved", || {
            merge.pump();
            (!merge.level().is_full).then_some(())
        });
    }
    let level = merge.level();
    assert!(level.spilled_bytes > 56 << 20, "{level:?}");
    assert!(level.memory_bytes < 4 << 20, "{level:?}");
    whole(&mut merge, 0, ItemRange::new(0, 1), part);
    let report = end(&mut merge, &bell).unwrap();
    assert_eq!(report.output_bytes, 64 << 20);
    assert_eq!(file.metadata().unwrap().len(), 64 << 20);
    bell.until("the space to come back", || (merge.level().spilled_bytes == 0).then_some(()));
}

#[test]
fn a_full_disk_loses_nothing_and_is_told_once() {
    let bell = Bell::default();
    let ringer = Arc::new(bell.ringer());
    let file = tempfile::tempfile().unwrap();
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let spill = Spill::with_file(full, 1 << 30, ringer.clone());
    let sink = Sink::start(config(file.try_clone().unwrap()), ringer).unwrap();
    let mut merge = Merge::new(true, 1000, spill, sink);
    let mut said = Vec::new();
    for item in (1..50_u8).rev() {
        whole(&mut merge, item.into(), ItemRange::new(item.into(), 1), vec![item; 100].into());
    }
    let error = bell.until("the error", || merge.take_spill_error());
    assert!(matches!(error, SpillError::NoSpace { .. }), "{error}");
    assert!(merge.level().is_full && merge.take_spill_error().is_none());
    // The head is taken all the same, and everything follows it.
    whole(&mut merge, 0, ItemRange::new(0, 1), vec![0; 100].into());
    (0..50_u8).for_each(|item| said.extend([item; 100]));
    end(&mut merge, &bell).unwrap();
    assert_eq!(written(file), said);
}

#[test]
fn a_directory_that_takes_no_file_is_named() {
    let config = MergeConfig { spill_directory: "/no/such/place".into(), ..with_memory(100) };
    let (mut merge, bell, file) = to_file(config, |config| config);
    whole(&mut merge, 1, ItemRange::new(1, 1), vec![b'b'; 1000].into());
    let error = merge.take_spill_error().unwrap().to_string();
    assert!(
        error.starts_with("cannot make a file for waiting results in /no/such/place"),
        "{error}"
    );
    whole(&mut merge, 0, ItemRange::new(0, 1), vec![b'a'; 1000].into());
    end(&mut merge, &bell).unwrap();
    assert_eq!(written(file), [[b'a'; 1000], [b'b'; 1000]].concat());
}

#[test]
fn a_reader_that_goes_is_told_apart_from_a_disk_that_fails() {
    let bell = Bell::default();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let mut merge =
        Merge::start(with_memory(1 << 20), config(File::from(write)), bell.ringer()).unwrap();
    drop(read);
    whole(&mut merge, 0, ItemRange::new(0, 1), Bytes::from_static(b"nobody reads this"));
    assert!(matches!(end(&mut merge, &bell), Err(SinkError::Closed { .. })));

    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut merge = Merge::start(with_memory(1 << 20), config(full), bell.ringer()).unwrap();
    whole(&mut merge, 0, ItemRange::new(0, 1), Bytes::from_static(b"this does not fit"));
    let error = end(&mut merge, &bell).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot write the test's file: No space left on device (os error 28)"
    );
}

#[test]
fn a_slow_reader_holds_up_the_sink_and_not_the_driver() {
    let bell = Bell::default();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let mut merge =
        Merge::start(with_memory(1 << 20), config(File::from(write)), bell.ringer()).unwrap();
    let items = 3 * SINK_QUEUE_BYTES / (1 << 20);
    let part = Bytes::from(vec![1; 1 << 20]);
    (0..items).for_each(|item| whole(&mut merge, item, ItemRange::new(item, 1), part.clone()));
    assert!(!merge.is_empty(), "the sink took more than it may");
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        File::from(read).read_to_end(&mut bytes).unwrap();
        bytes.len() as u64
    });
    end(&mut merge, &bell).unwrap();
    drop(merge);
    assert_eq!(reader.join().unwrap(), items << 20);
}

#[test]
fn what_trickles_is_seen_at_once() {
    let (read, write) = rustix::pipe::pipe().unwrap();
    let mut merge = Merge::start(with_memory(1 << 20), config(File::from(write)), || ()).unwrap();
    let mut read = File::from(read);
    for item in 0..3 {
        whole(&mut merge, item, ItemRange::new(item, 1), Bytes::from_static(b"line\n"));
        merge.pump();
        let mut line = [0; 5];
        read.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"line\n");
    }
}

#[test]
fn without_order_results_go_out_as_they_are_accepted() {
    let config = MergeConfig { is_ordered: false, ..with_memory(1 << 20) };
    let (mut merge, bell, file) = to_file(config, |config| config);
    for (attempt, item) in [(0, 2), (1, 0), (2, 1)] {
        let output = Bytes::from(format!("{item}\n"));
        whole(&mut merge, attempt, ItemRange::new(item, 1), output);
    }
    end(&mut merge, &bell).unwrap();
    assert_eq!(written(file), b"2\n0\n1\n");
}

#[test]
fn items_that_were_not_run_hold_nothing_up() {
    let (mut merge, bell, file) = to_file(with_memory(1 << 20), |config| config);
    whole(&mut merge, 0, ItemRange::new(9, 1), Bytes::from_static(b"nine\n"));
    merge.pump();
    assert!(!merge.is_empty());
    merge.skip(0, 9);
    end(&mut merge, &bell).unwrap();
    assert_eq!(written(file), b"nine\n");
}

#[test]
fn the_failures_file_says_where_the_output_lacks_an_item() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/failures.jsonl");
    let failures = Some(FailuresFile::at_first_failure(path.clone()));
    let (mut merge, bell, file) =
        to_file(with_memory(1 << 20), |config| SinkConfig { failures, is_hashed: true, ..config });
    merge.fail(failed(2));
    merge.fail(failed(0));
    whole(&mut merge, 0, ItemRange::new(1, 1), Bytes::from_static(b"12345\n"));
    let report = end(&mut merge, &bell).unwrap();
    let offsets: Vec<(u64, u64)> = std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| (line["seq"].as_u64().unwrap(), line["offset"].as_u64().unwrap()))
        .collect();
    assert_eq!(offsets, [(1, 0), (3, 6)]);
    let hash = blake3::hash(&written(file)).to_hex().to_string();
    let said =
        SinkReport { output_bytes: 6, output_blake3: Some(hash), failures: 2, failures_kept: true };
    assert_eq!(report, said);
}

#[test]
fn results_with_lengths_before_them_become_lines() {
    let framed = Framing::LengthPrefixed;
    let shape = Shape { input: framed, results: ResultShape::Framed(framed), is_block_wise: false };
    let (mut merge, bell, file) =
        to_file(with_memory(1 << 20), |config| SinkConfig { shape, ..config });
    for (attempt, result) in (0..).zip([b"a\nb".as_slice(), b"", b"c"]) {
        let mut output = Vec::new();
        push_length_prefixed(&mut output, result);
        whole(&mut merge, attempt, ItemRange::new(attempt, 1), output.into());
    }
    end(&mut merge, &bell).unwrap();
    assert_eq!(written(file), b"a\nb\n\nc\n");
}

#[test]
fn output_that_does_not_add_up_is_refused() {
    let (mut merge, _, _) = to_file(with_memory(1 << 20), |config| config);
    let attempt = AttemptId(5);
    let part = Bytes::from_static(b"abc");
    let error = merge.finish(attempt, part.clone(), 4).unwrap_err();
    assert_eq!(error, StageError::Length { attempt, have: 3, said: 4 });
    merge.discard(attempt);
    let error = merge.stage(attempt, 1, &part).unwrap_err();
    assert_eq!(error, StageError::Gap { attempt, offset: 1, have: 0 });
    merge.stage(attempt, 0, &part).unwrap();
    let error = merge.finish(attempt, part, 2).unwrap_err();
    assert_eq!(error, StageError::Length { attempt, have: 3, said: 2 });
    merge.discard(attempt);
    assert_eq!(merge.level().memory_bytes, 0);
}

#[test]
fn what_the_sink_frees_where_the_disk_takes_nothing_wakes_the_driver() {
    let config = crate::data::SteppedConfig {
        memory_bytes_max: 1_000,
        spill_bytes_max: 100_000,
        bounds: crate::data::MergeBounds::default(),
        shape: Shape { input: LINES, results: ResultShape::Printed, is_block_wise: false },
        is_disk_full: true,
    };
    let mut stepped = crate::data::SteppedMerge::new(config).unwrap();
    whole(&mut stepped.merge, 1, ItemRange::new(1, 1), Bytes::from(vec![b'x'; 5_000]));
    while stepped.step_spill() {}
    whole(&mut stepped.merge, 0, ItemRange::new(0, 1), Bytes::from_static(b"first"));
    stepped.merge.pump();
    assert!(stepped.merge.level().is_full, "it waits for the sink, in memory");
    stepped.take_notified();
    while stepped.step_sink() {}
    assert!(!stepped.merge.level().is_full && stepped.take_notified());
}
