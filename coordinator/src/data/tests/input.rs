//! Reading, cutting and holding.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use widemap_common::framing::{Framing, LINES, push_length_prefixed};
use widemap_common::ids::ItemRange;
use widemap_common::limits::{BLOCK_BYTES_MIN, BLOCKS_PER_SIZE};

use super::{Bell, cases};
use crate::data::Arriving;
use crate::data::block::{BlockRule, Splitter};
use crate::data::{Chunk, HeldError, HeldInput, Input, InputError, Source};

const ANY: (u32, u64) = (1_000_000, 1 << 20);

fn file_of(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("items");
    std::fs::write(&path, bytes).unwrap();
    (directory, path)
}

fn fifo() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    (directory, path)
}

/// Everything that can be cut, each chunk as `cut` wants it.
fn cut_all(
    input: &mut Input,
    bell: &Bell,
    mut cut: impl FnMut(&mut Input) -> Option<Chunk>,
) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    bell.until("the end of the input", || {
        input.poll();
        while let Some(chunk) = cut(input) {
            chunks.push(chunk);
        }
        input.is_exhausted().then_some(())
    });
    chunks
}

fn open(source: Source, framing: Framing, rule: BlockRule) -> (Input, Bell) {
    let bell = Bell::default();
    let input = Input::open(source, framing, rule, bell.ringer()).unwrap();
    (input, bell)
}

/// Chunks are neighbours, and are what they say they are.
fn check(chunks: &[Chunk], framing: Framing, data: &[u8]) {
    let (mut item, mut offset) = (0, 0);
    for chunk in chunks {
        assert_eq!((chunk.range.first, chunk.offset), (item, offset));
        assert_eq!(framing.count(&chunk.bytes), u64::from(chunk.range.items));
        item += u64::from(chunk.range.items);
        offset += chunk.bytes.len() as u64;
    }
    let joined: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
    assert!(joined == data, "the chunks together are not the input");
    assert_eq!(item, framing.count(data));
}

/// The blocks of `data`, read in pieces of these sizes over and over.
fn blocks(data: &[u8], framing: Framing, rule: BlockRule, reads: &[usize]) -> Vec<(Bytes, u64)> {
    let mut splitter = Splitter::new(framing, rule, 1 << 20);
    let mut blocks = Vec::new();
    let mut rest = data;
    for &read in reads.iter().cycle() {
        let room = splitter.room();
        let (bytes, others) = rest.split_at(read.min(rest.len()).min(room.capacity() - room.len()));
        room.extend_from_slice(bytes);
        rest = others;
        blocks.extend(splitter.take_blocks().unwrap());
        if rest.is_empty() {
            break;
        }
    }
    blocks.extend(splitter.finish().unwrap());
    blocks.into_iter().map(|block| (block.bytes, block.items)).collect()
}

/// The rule as it is said: the shortest run of whole items that reaches the target.
fn blocks_as_said(data: &[u8], separator: u8, target: usize) -> Vec<Bytes> {
    let mut blocks = vec![Vec::new()];
    for item in data.split_inclusive(|&byte| byte == separator) {
        if blocks.last().unwrap().len() >= target {
            blocks.push(Vec::new());
        }
        blocks.last_mut().unwrap().extend_from_slice(item);
    }
    blocks.into_iter().filter(|block| !block.is_empty()).map(Bytes::from).collect()
}

fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => Just(b'a'), 2 => Just(b'\n'), 1 => Just(0), 1 => Just(b'\r'), 1 => any::<u8>()];
    prop::collection::vec(byte, 0..3_000)
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn a_file_is_cut_into_what_it_holds(
        data in any_text(), separator in prop_oneof![Just(b'\n'), Just(0)],
        bounds in prop::collection::vec((1_u32..400, 1_u64..2_000), 1..8),
    ) {
        let framing = Framing::Separator(separator);
        let (_directory, path) = file_of(&data);
        let (mut input, bell) = open(Source::File(path), framing, BlockRule::ItemWise);
        let mut bounds = bounds.iter().cycle();
        let chunks = cut_all(&mut input, &bell, |input| {
            let &(items_max, bytes_max) = bounds.next().unwrap();
            let chunk = input.cut(items_max, bytes_max)?;
            let is_small = chunk.bytes.len() as u64 <= bytes_max || chunk.range.items == 1;
            assert!(chunk.range.items <= items_max && is_small);
            Some(chunk)
        });
        check(&chunks, framing, &data);
        prop_assert_eq!(input.level().rest_bytes, Some(0));
    }

    #[test]
    fn a_pipe_gives_the_same_items_however_it_is_written(
        data in any_text(), writes in prop::collection::vec(1_usize..500, 1..6), exact in 1_u32..90,
    ) {
        let (_directory, path) = fifo();
        let (mut input, bell) = open(Source::File(path.clone()), LINES, BlockRule::ItemWise);
        let written = data.clone();
        let writer = std::thread::spawn(move || {
            let mut pipe = File::options().write(true).open(path).unwrap();
            let mut rest = written.as_slice();
            for &write in writes.iter().cycle() {
                let (bytes, others) = rest.split_at(write.min(rest.len()));
                pipe.write_all(bytes).unwrap();
                rest = others;
                if rest.is_empty() {
                    break;
                }
            }
        });
        let chunks = cut_all(&mut input, &bell, |input| input.cut_exact(exact));
        writer.join().unwrap();
        check(&chunks, LINES, &data);
        for chunk in chunks.iter().rev().skip(1) {
            prop_assert_eq!(chunk.range.items, exact);
        }
    }

    #[test]
    fn blocks_depend_on_the_bytes_alone(
        data in any_text(), target in 1_usize..400,
        reads in prop::collection::vec(1_usize..700, 1..6),
    ) {
        let rule = BlockRule::Fixed(target as u64);
        let got = blocks(&data, LINES, rule, &reads);
        let said = blocks_as_said(&data, b'\n', target);
        prop_assert_eq!(got.iter().map(|(bytes, _)| bytes.clone()).collect::<Vec<_>>(), said);
        for (bytes, items) in &got {
            prop_assert_eq!(LINES.count(bytes), *items);
        }
        prop_assert_eq!(got, blocks(&data, LINES, rule, &[usize::MAX]));
    }

    #[test]
    fn items_of_a_list_hold_any_bytes(
        items in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..60),
        bounds in (1_u32..20, 1_u64..300), target in 1_u64..200,
    ) {
        let mut data = Vec::new();
        items.iter().for_each(|item| push_length_prefixed(&mut data, item));
        let framing = Framing::LengthPrefixed;
        for rule in [BlockRule::ItemWise, BlockRule::Fixed(target)] {
            let (mut input, bell) = open(Source::Items(items.clone()), framing, rule);
            let chunks = cut_all(&mut input, &bell, |input| input.cut(bounds.0, bounds.1));
            check(&chunks, framing, &data);
        }
        let reads = [bounds.1 as usize];
        let split = blocks(&data, framing, BlockRule::Fixed(target), &reads);
        prop_assert_eq!(split, blocks(&data, framing, BlockRule::Fixed(target), &[usize::MAX]));
    }

    #[test]
    fn what_was_dropped_is_read_again(
        data in "([a-z]{0,9}\n){1,200}", items_max in 1_u32..30,
        asked in prop::collection::vec((any::<u32>(), any::<u32>()), 1..20),
    ) {
        let (_directory, path) = file_of(data.as_bytes());
        let (mut input, bell) = open(Source::File(path), LINES, BlockRule::ItemWise);
        let file = input.take_file().unwrap();
        let mut held = HeldInput::with_file(LINES, file).keeping(64);
        let chunks = cut_all(&mut input, &bell, |input| input.cut(items_max, ANY.1));
        for chunk in &chunks {
            held.hold(chunk.clone());
            held.sent(chunk.range);
        }
        prop_assert!(held.bytes() <= 64 + 30 * 10);
        let lines: Vec<&str> = data.split_inclusive('\n').collect();
        for (which, sub) in asked {
            let range = chunks[which as usize % chunks.len()].range;
            let skip = sub % range.items;
            let part = ItemRange::new(range.first + u64::from(skip), range.items - skip);
            let said = lines[part.first as usize..part.end() as usize].concat();
            prop_assert_eq!(held.slice(part).unwrap(), said.as_bytes());
            let item = held.item(part.first).unwrap();
            prop_assert_eq!(&item[..], lines[part.first as usize].trim_end().as_bytes());
        }
        for chunk in &chunks {
            for item in chunk.range.first..chunk.range.end() {
                held.release(ItemRange::new(item, 1));
            }
        }
        prop_assert!(held.is_empty() && held.bytes() == 0);
    }
}

#[test]
fn an_empty_input_ends_at_once() {
    let (mut input, bell) =
        open(Source::File(Path::new("/dev/null").into()), LINES, BlockRule::Schedule);
    assert!(cut_all(&mut input, &bell, |input| input.cut(ANY.0, ANY.1)).is_empty());
    assert!(input.error().is_none());
    let (mut input, _) = open(Source::Items(Vec::new()), LINES, BlockRule::ItemWise);
    assert!(input.is_exhausted() && input.cut(1, 1).is_none());
}

#[test]
fn the_default_schedule_starts_small_and_grows() {
    let data = b"12345678\n".repeat(300_000);
    let bytes: Vec<usize> =
        blocks(&data, LINES, BlockRule::Schedule, &[60_000]).iter().map(|b| b.0.len()).collect();
    let reaches =
        |bytes: usize, target: u64| (target as usize..target as usize + 9).contains(&bytes);
    let small = BLOCKS_PER_SIZE as usize;
    assert!(bytes[..small].iter().all(|&bytes| reaches(bytes, BLOCK_BYTES_MIN)), "{bytes:?}");
    assert!(reaches(bytes[small], 2 * BLOCK_BYTES_MIN), "{bytes:?}");
}

#[test]
fn a_large_file_needs_no_more_than_its_blocks() {
    let data = b"a line of the log\n".repeat(400_000);
    let (_directory, path) = file_of(&data);
    for rule in [BlockRule::ItemWise, BlockRule::Schedule, BlockRule::Fixed(3_000_000)] {
        let (mut input, bell) = open(Source::File(path.clone()), LINES, rule);
        let chunks = cut_all(&mut input, &bell, |input| input.cut(ANY.0, ANY.1));
        check(&chunks, LINES, &data);
    }
}

#[test]
fn what_trickles_in_is_there_before_the_next() {
    let (_directory, path) = fifo();
    let (mut input, bell) = open(Source::File(path.clone()), LINES, BlockRule::ItemWise);
    let mut pipe = File::options().write(true).open(path).unwrap();
    for line in ["one\n", "two\n", "three\n"] {
        pipe.write_all(line.as_bytes()).unwrap();
        let chunk = bell.until("the line", || {
            input.poll();
            input.cut(1, 1)
        });
        assert_eq!(chunk.bytes, line);
        assert_eq!(input.level().rest_bytes, None);
    }
}

#[test]
fn an_input_that_is_given_up_ends_its_thread() {
    let (_directory, path) = fifo();
    let (input, _) = open(Source::File(path.clone()), LINES, BlockRule::ItemWise);
    let _writer = File::options().write(true).open(path).unwrap();
    drop(input);
    let (_directory, path) = file_of(&b"x\n".repeat(10_000_000));
    drop(open(Source::File(path), LINES, BlockRule::ItemWise));
}

#[test]
fn an_item_that_is_too_long_is_told_after_those_before_it() {
    let mut splitter = Splitter::new(LINES, BlockRule::ItemWise, 10);
    splitter.room().extend_from_slice(b"a\nb\n0123456789x");
    let error = splitter.take_blocks().unwrap_err();
    assert!(matches!(error, InputError::ItemTooLong { item: 3, .. }), "{error}");
}

#[test]
fn what_can_not_be_read_says_what_and_why() {
    let open = |source| Input::open(source, LINES, BlockRule::ItemWise, || ());
    let error = open(Source::File("/no/such/file".into())).err().unwrap();
    assert_eq!(
        error.to_string(),
        "cannot open /no/such/file: No such file or directory (os error 2)"
    );
    let error = open(Source::File("/".into())).err().unwrap();
    assert!(matches!(error, InputError::Directory(_)), "{error}");
    let error = open(Source::Items(vec![b"a\nb".to_vec()])).err().unwrap();
    assert!(matches!(error, InputError::SeparatorInItem { item: 1, separator: b'\n' }), "{error}");
}

#[test]
fn a_read_error_is_told_after_the_items_before_it() {
    // Reading the memory of this process at its start fails: nothing is mapped there.
    let (mut input, bell) = open(Source::File("/proc/self/mem".into()), LINES, BlockRule::ItemWise);
    assert!(cut_all(&mut input, &bell, |input| input.cut(ANY.0, ANY.1)).is_empty());
    let error = input.error().unwrap().to_string();
    assert!(error.starts_with("cannot read /proc/self/mem from byte 0 on"), "{error}");
}

#[test]
fn a_file_that_changed_is_not_read_again() {
    let (_directory, path) = file_of(&b"12345678\n".repeat(100));
    let (mut input, bell) = open(Source::File(path.clone()), LINES, BlockRule::ItemWise);
    let mut held = HeldInput::with_file(LINES, input.take_file().unwrap()).keeping(8);
    for chunk in cut_all(&mut input, &bell, |input| input.cut(10, ANY.1)) {
        let range = chunk.range;
        held.hold(chunk);
        held.sent(range);
    }
    std::fs::write(&path, b"other\n").unwrap();
    let error = held.slice(ItemRange::new(0, 10)).unwrap_err();
    assert!(matches!(error, HeldError::Changed { first: 1, last: 10, .. }), "{error}");
}

/// A file that is still being written is read as it grows, to the end that is told.
#[test]
fn a_file_that_grows_is_read_as_it_grows() {
    let (_directory, path) = file_of(b"a\nb\nc");
    let arriving = Arc::new(Arriving::default());
    let bell = Bell::default();
    let of_job = Some(Arc::clone(&arriving));
    let mut input =
        Input::open_kept(&path, of_job, LINES, BlockRule::ItemWise, bell.ringer()).unwrap();
    assert_eq!(input.level().rest_bytes, None);
    arriving.grow(5);
    bell.until("what is there", || {
        input.poll();
        (input.level().ready_items == 2).then_some(())
    });
    assert_eq!(input.cut(ANY.0, ANY.1).unwrap().bytes, "a\nb\n");
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"c\nd\n").unwrap();
    assert!(!input.is_exhausted());
    arriving.grow(9);
    arriving.finish();
    assert!(input.level().rest_bytes.is_some(), "it is known how much is to come");
    let chunks = cut_all(&mut input, &bell, |input| input.cut(ANY.0, ANY.1));
    let bytes: Vec<_> = chunks.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
    assert_eq!((bytes.as_slice(), input.cut_items()), (&b"cc\nd\n"[..], 4));
    // It changes while it is read, and that is no fault.
    let mut held = HeldInput::with_file(LINES, input.take_file().unwrap()).keeping(0);
    let (range, want) = (chunks[0].range, chunks[0].bytes.clone());
    held.hold(chunks[0].clone());
    held.sent(range);
    assert_eq!((held.bytes(), held.slice(range).unwrap()), (0, want));
}

/// Nobody waits for what is given up, nor for what nobody wants.
#[test]
fn a_file_that_is_given_up_or_not_wanted_keeps_no_thread() {
    for gives_up in [true, false] {
        let (_directory, path) = file_of(b"a\nb");
        let arriving = Arc::new(Arriving::default());
        let bell = Bell::default();
        let of_job = Some(Arc::clone(&arriving));
        let mut input =
            Input::open_kept(&path, of_job, LINES, BlockRule::ItemWise, bell.ringer()).unwrap();
        arriving.grow(3);
        bell.until("the first item", || {
            input.poll();
            (input.level().ready_items == 1).then_some(())
        });
        if gives_up {
            arriving.give_up();
            // Its thread says that it is over, and nothing of an end.
            bell.until("its thread has gone", || {
                input.poll();
                (Arc::strong_count(&arriving) <= 3).then_some(())
            });
            assert!(input.cut(ANY.0, ANY.1).is_some() && !input.is_exhausted());
        }
        // Joins the thread.
        drop(input);
        assert_eq!(Arc::strong_count(&arriving), 1);
    }
}
