//! What JSON, the failures file and raw output look like, to the byte.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use widemap_common::failure::{FailureKind, Fault};
use widemap_common::framing::{Framing, LINES, push_length_prefixed};
use widemap_common::ids::{AttemptId, ItemRange};
use widemap_common::varint;
use widemap_proto::session::{Done, ItemStderr};

use crate::data::format::{Format, push_failure, push_failures_file_line, push_results};
use crate::data::{Report, ResultShape, Shape};

const PRINTED: Shape = Shape { input: LINES, results: ResultShape::Printed, is_block_wise: false };
const FRAMED: Shape = Shape { results: ResultShape::Framed(LINES), ..PRINTED };
const BLOCKS: Shape = Shape { is_block_wise: true, ..PRINTED };

fn packed(numbers: &[u64]) -> Bytes {
    let mut list = BytesMut::new();
    numbers.iter().for_each(|&number| varint::push(&mut list, number));
    list.freeze()
}

fn done(output: &'static [u8], lengths: &[u64]) -> Done {
    Done {
        attempt: AttemptId(1),
        output: Bytes::from_static(output),
        output_bytes: output.len() as u64,
        busy_us: 24_000,
        item_lengths: packed(lengths),
        item_micros: packed(&vec![12_000; lengths.len()]),
        item_exits: Bytes::new(),
        faults: Vec::new(),
        stderr: Vec::new(),
    }
}

fn fault(index: u32, output_offset: u64, output_bytes: u64) -> Fault {
    Fault {
        index,
        kind: FailureKind::Error,
        message: "exited with status 3".into(),
        exit: Some(3),
        signal: None,
        unfit: false,
        output_offset,
        output_bytes,
        retryable: true,
        micros: 7_000,
    }
}

fn json(shape: Shape, range: ItemRange, input: &'static [u8], done: &Done) -> String {
    let mut report = Report::new(range, Arc::from("ann"), done, None);
    let (within, results) = report.results(range, 1, Bytes::from_static(input)).unwrap();
    let mut out = Vec::new();
    push_results(
        &mut out,
        &Format::Json,
        shape,
        &results,
        &done.output[within.start as usize..within.end as usize],
    );
    String::from_utf8(out).unwrap()
}

#[test]
fn each_result_is_a_line_as_the_contract_shows_it() {
    let got = json(PRINTED, ItemRange::new(0, 2), b"a\n\"b\"\n", &done(b"out\nx", &[4, 1]));
    assert_eq!(
        got,
        concat!(
            r#"{"seq":1,"item":"a","args":["a"],"status":"ok","exit":0,"signal":null,"error":null,"#,
            r#""output":"out\n","stderr":"","worker":"ann","attempts":1,"seconds":0.012}"#,
            "\n",
            r#"{"seq":2,"item":"\"b\"","args":["\"b\""],"status":"ok","exit":0,"signal":null,"#,
            r#""error":null,"output":"x","stderr":"","worker":"ann","attempts":1,"seconds":0.012}"#,
            "\n",
        )
    );
}

#[test]
fn a_function_has_no_exit_status_and_its_result_no_separator() {
    for lengths in [&[2, 3][..], &[]] {
        let got = json(FRAMED, ItemRange::new(6, 2), b"3\n8\n", &done(b"9\n64\n", lengths));
        let lines: Vec<serde_json::Value> =
            got.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["output"], &lines[1]["output"]), (&"9".into(), &"64".into()));
        assert_eq!((lines[0]["seq"].as_u64(), lines[1]["seq"].as_u64()), (Some(7), Some(8)));
        assert!(lines[0]["exit"].is_null());
    }
}

#[test]
fn bytes_that_are_no_text_come_as_base64() {
    let got = json(PRINTED, ItemRange::new(0, 1), b"\xff\n", &done(b"\xfe", &[1]));
    assert!(got.contains(r#""seq":1,"item_base64":"/w==","status":"ok""#), "{got}");
    assert!(got.contains(r#""output_base64":"/g==","stderr""#), "{got}");
}

#[test]
fn a_block_is_one_line() {
    let got = json(BLOCKS, ItemRange::new(10, 3), b"a\nb\nc\n", &done(b"3\n", &[2]));
    assert_eq!(
        got,
        concat!(
            r#"{"seq":11,"items":3,"status":"ok","exit":0,"signal":null,"error":null,"#,
            r#""output":"3\n","stderr":"","worker":"ann","attempts":1,"seconds":0.012}"#,
            "\n",
        )
    );
}

#[test]
fn failures_say_what_happened_and_where_the_output_lacks_it() {
    let range = ItemRange::new(4, 3);
    let mut done = done(b"aXXb", &[1, 2, 1]);
    done.faults = vec![fault(1, 1, 2)];
    let stderr = |index, data: &'static [u8]| ItemStderr {
        index,
        data: Bytes::from_static(data),
        cut: false,
    };
    done.stderr = vec![stderr(1, b"oops"), stderr(2, b"fine")];
    let mut report = Report::new(range, Arc::from("bob"), &done, None);
    let record = report.failure(ItemRange::new(5, 1), 1, 2, Bytes::from_static(b"it"));
    let (mut in_output, mut in_file) = (Vec::new(), Vec::new());
    push_failure(&mut in_output, &Format::Json, PRINTED, &record);
    push_failures_file_line(&mut in_file, PRINTED, &record, 1, "abc");
    let common = concat!(
        r#"{"seq":6,"item":"it","args":["it"],"status":"error","exit":3,"signal":null,"#,
        r#""error":"exited with status 3","#,
    );
    let rest = r#""stderr":"oops","worker":"bob","attempts":2,"seconds":0.007"#;
    assert_eq!(
        String::from_utf8(in_output).unwrap(),
        format!("{common}\"output\":\"\",{rest}}}\n")
    );
    let place = r#""function":"abc","offset":1"#;
    assert_eq!(String::from_utf8(in_file).unwrap(), format!("{common}{rest},{place}}}\n"));
    let (within, results) =
        report.results(ItemRange::new(6, 1), 1, Bytes::from_static(b"c\n")).unwrap();
    assert_eq!((within, results.stderr[0].index), (3..4, 0));
}

#[test]
fn the_place_of_a_range_is_found_by_whatever_tells_it() {
    let range = ItemRange::new(0, 6);
    let places = |done: &Done, framed| {
        let mut report = Report::new(range, Arc::from("w"), done, framed);
        [(0, 2), (3, 1), (4, 2), (1, 1), (3, 3)]
            .map(|(first, items)| report.within(ItemRange::new(first, items)))
    };
    let mut done = done(b"a\nbb\nLLc\ndd\ne\n", &[]);
    // The item 2 failed, and left two bytes that are not output.
    done.faults = vec![fault(2, 5, 2)];
    // By its faults alone, only what lies between them can be told.
    assert_eq!(places(&done, None), [Some(0..5), None, None, None, Some(7..14)]);
    let all = [Some(0..5), Some(7..9), Some(9..14), Some(2..5), Some(7..14)];
    for of_the_failed in [0, 2] {
        done.item_lengths = packed(&[2, 3, of_the_failed, 2, 3, 2]);
        assert_eq!(places(&done, None), all);
    }
    done.item_lengths = Bytes::new();
    done.output = Bytes::from_static(b"a\nbb\nc\ndd\ne\n");
    done.output_bytes = 12;
    done.faults = vec![fault(2, 5, 0)];
    assert_eq!(
        places(&done, Some(LINES)),
        [Some(0..5), Some(5..7), Some(7..12), Some(2..5), Some(5..12)]
    );
    // A result with a separator within it: nothing can be counted.
    done.output = Bytes::from_static(b"a\nb\nb\nc\ndd\ne\n");
    done.output_bytes = 14;
    assert_eq!(places(&done, Some(LINES))[1], None);
}

#[test]
fn a_frame_has_its_length_its_number_and_what_came_of_the_item() {
    let framed = Shape {
        input: Framing::LengthPrefixed,
        results: ResultShape::Framed(Framing::LengthPrefixed),
        is_block_wise: false,
    };
    let mut output = Vec::new();
    for result in [b"a\n".as_slice(), b""] {
        push_length_prefixed(&mut output, result);
    }
    let done = done(Box::leak(output.into_boxed_slice()), &[6, 4]);
    let range = ItemRange::new(7, 2);
    let mut report = Report::new(range, Arc::from("ann"), &done, Some(Framing::LengthPrefixed));
    let (within, results) = report.results(range, 1, Bytes::new()).unwrap();
    let mut out = Vec::new();
    let own = &done.output[within.start as usize..within.end as usize];
    push_results(&mut out, &Format::Frames, framed, &results, own);
    let want = [b"\x0b\0\0\0\x07\0\0\0\0\0\0\0\0a\n".as_slice(), b"\x09\0\0\0\x08\0\0\0\0\0\0\0\0"];
    assert_eq!(out, want.concat());

    let mut done = done;
    done.faults = vec![fault(0, 0, 0)];
    let report = Report::new(range, Arc::from("ann"), &done, Some(Framing::LengthPrefixed));
    let record = report.failure(ItemRange::new(7, 1), 1, 1, Bytes::from_static(b"\xff secret"));
    let mut out = Vec::new();
    push_failure(&mut out, &Format::Frames, framed, &record);
    assert_eq!(out[..4], (out.len() as u32 - 4).to_le_bytes());
    assert_eq!(out[4..13], *b"\x07\0\0\0\0\0\0\0\x01");
    let told: serde_json::Value = serde_json::from_slice(&out[13..]).unwrap();
    assert_eq!((&told["status"], &told["seq"]), (&"error".into(), &8.into()));
    assert!(told.get("item").is_none() && told.get("item_base64").is_none(), "{told}");
}
