//! Lists and items of great size: streamed, with memory that does not grow with them.

use std::io::Read;

use widemap_tests::{MapProcess, WorkerProcess, memory_peak_bytes, widemap};

use crate::support::{map, places};

const MIB: u64 = 1024 * 1024;

/// Scenario 32: ten million items of one byte each.
#[test]
fn ten_million_items_of_a_byte_need_bounded_memory() {
    let input = b"1\n".repeat(10_000_000);
    let arguments = ["map", "--local", "2", "--builtin", "identity"];
    let map = MapProcess::start(widemap(&arguments), input.clone());
    let (done, peak) = map.finish_measured();
    let done = done.exits(0);
    assert!(done.stdout == input);
    println!("{}: at most {} MiB", done.stderr.lines().last().unwrap(), peak / MIB);
    assert!(peak < 256 * MIB, "{} MiB", peak / MIB);
}

/// Scenario 33: one item of 100 MiB, through a function and through a pipe.
#[test]
fn one_item_of_a_hundred_mebibytes_comes_through() {
    let mut input = vec![b'x'; 100 << 20];
    input.push(b'\n');
    let ann = WorkerProcess::start("ann", 1);
    for function in [&["--builtin", "identity"][..], &["--pipe", "--", "cat"]] {
        let arguments = [&["map", "--worker", ann.address()], function].concat();
        let (done, peak) = MapProcess::start(widemap(&arguments), input.clone()).finish_measured();
        assert!(done.exits(0).stdout == input, "{function:?}");
        let worker = memory_peak_bytes(ann.pid()).unwrap();
        println!("{function:?}: {} and {} MiB", peak / MIB, worker / MIB);
        // A block of input is read whole: the item may be there a few times, and no more.
        assert!(peak < 512 * MIB && worker < 640 * MIB, "{} {}", peak / MIB, worker / MIB);
    }
}

/// Scenario 33: one item prints 1 GiB, which is streamed: neither side ever holds it.
#[test]
fn one_output_of_a_gibibyte_is_streamed() {
    let size = 1 << 30;
    let ann = WorkerProcess::start("ann", 1);
    let script = format!("head -c {size} /dev/zero; echo $1");
    let options = ["--max-output", "2G"];
    let command = map(&[&places(&[&ann]), &options], &["sh", "-c", &script, "sh"]);
    let mut map = MapProcess::start_unread(command, "end\n");
    let mut output = map.stdout();
    let mut block = vec![0; 1 << 20];
    let blocks = size / block.len();
    let (mut peak, mut worker) = (0, 0);
    for number in 0..blocks {
        if number == blocks - 8 {
            // What is left is more than a pipe holds, so both still live.
            peak = memory_peak_bytes(map.pid()).unwrap();
            worker = memory_peak_bytes(ann.pid()).unwrap();
        }
        output.read_exact(&mut block).unwrap();
        assert!(block.iter().all(|&byte| byte == 0));
    }
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "end\n");
    println!("{}", map.finish().exits(0).stderr.lines().last().unwrap());
    println!("1 GiB: {} MiB here, {} MiB on the worker", peak / MIB, worker / MIB);
    assert!(peak < 256 * MIB, "{} MiB", peak / MIB);
    assert!(worker < 192 * MIB, "{} MiB", worker / MIB);
}
