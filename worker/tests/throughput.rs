//! What workers carry, measured beside the raw client of these tests and, for commands, beside
//! `xargs`. Run by hand: `cargo test --release -p widemap-worker --test throughput -- --ignored
//! --nocapture --test-threads 1`.
#![allow(clippy::unwrap_used, reason = "it is a test")]

mod support;

use std::process::{Command, Stdio};
use std::time::Instant;

use bytes::Bytes;
use support::{JOB, Link, WorkerProcess, assign, builtin, exec, pipe};
use widemap_common::ids::{AttemptId, ItemRange};
use widemap_common::spec::JobSpec;
use widemap_proto::session::{Assign, Order, Part, Report};

/// Keeps `window` attempts on the link until `attempts` are done; returns the sum of their times.
async fn drive(
    link: &mut Link,
    attempts: u64,
    window: u64,
    mut make: impl FnMut(u64) -> Vec<Order>,
) -> u64 {
    let (mut sent, mut done, mut busy_us) = (0, 0, 0);
    let mut orders = Vec::new();
    while sent < window.min(attempts) {
        orders.extend(make(sent));
        sent += 1;
    }
    link.send(std::mem::take(&mut orders)).await;
    while done < attempts {
        let mut accepted = Vec::new();
        for report in link.batch().await {
            if let Report::Done(end) = report {
                assert!(end.faults.is_empty(), "{:?}", end.faults);
                busy_us += end.busy_us;
                accepted.push(end.attempt);
                done += 1;
                if sent < attempts {
                    orders.extend(make(sent));
                    sent += 1;
                }
            }
        }
        orders.push(Order::Accepted(accepted));
        link.send(std::mem::take(&mut orders)).await;
    }
    busy_us
}

async fn two_workers(spec: JobSpec) -> (Vec<WorkerProcess>, Vec<Link>) {
    let workers =
        vec![WorkerProcess::start(&["--slots", "1"]), WorkerProcess::start(&["--slots", "1"])];
    let mut links = Vec::new();
    for worker in &workers {
        let mut link = worker.link().await;
        link.open_job(spec.clone()).await;
        links.push(link);
    }
    (workers, links)
}

#[tokio::test]
#[ignore = "a measurement"]
async fn commands_beside_xargs() {
    let items = 5_000_u64;
    let lines: String = (0..items).map(|n| format!("{n}\n")).collect();
    for _ in 0..3 {
        let begun = Instant::now();
        let mut xargs = Command::new("xargs")
            .args(["-P2", "-n1", "/usr/bin/printf", "%s\\n"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut xargs.stdin.take().unwrap(), lines.as_bytes()).unwrap();
        xargs.wait().unwrap();
        let by_xargs = items as f64 / begun.elapsed().as_secs_f64();
        let (_workers, links) = two_workers(exec(&["/usr/bin/printf", "%s\\n"])).await;
        let begun = Instant::now();
        let [mut first, mut second] = <[Link; 2]>::try_from(links).ok().unwrap();
        let make = |n: u64| vec![assign(n, n, format!("{n}\n").as_bytes())];
        tokio::join!(
            drive(&mut first, items / 2, 20, make),
            drive(&mut second, items / 2, 20, make)
        );
        let ours = items as f64 / begun.elapsed().as_secs_f64();
        println!("commands: {ours:.0}/s, xargs {by_xargs:.0}/s: {:.2} times", ours / by_xargs);
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn attempts_of_one_item() {
    for (slots, window) in [(1, 500), (1, 2_000), (1, 2_000)] {
        let items = 500_000_u64;
        let (_workers, links) = two_workers(builtin("identity")).await;
        let [mut first, mut second] = <[Link; 2]>::try_from(links).ok().unwrap();
        let line = Bytes::from_static(b"item\n");
        let make = |n: u64| {
            vec![Order::Assign(Assign {
                attempt: AttemptId(n),
                job: JOB,
                range: ItemRange::new(n, 1),
                input_bytes: line.len() as u64,
                input: line.clone(),
            })]
        };
        let begun = Instant::now();
        tokio::join!(
            drive(&mut first, items, window, make),
            drive(&mut second, items, window, make)
        );
        let rate = 2.0 * items as f64 / begun.elapsed().as_secs_f64();
        println!("attempts of one item, {slots} slot, window {window}: {rate:.0}/s");
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn squares_in_chunks() {
    let worker = WorkerProcess::start(&["--slots", "1"]);
    let mut link = worker.link().await;
    link.open_job(builtin("square")).await;
    let make = |n: u64| {
        let chunk: String = (n * 10_000..(n + 1) * 10_000).map(|n| format!("{n}\n")).collect();
        vec![assign(n, n * 10_000, chunk.as_bytes())]
    };
    let busy_us = drive(&mut link, 100, 4, make).await;
    println!("a million squares: {busy_us} us in the function's loop");
}

#[tokio::test]
#[ignore = "a measurement"]
async fn blocks_through_tr() {
    let block = b"2026-01-01 some host: a line of a log file, not too short\n".repeat(90_000);
    let block = Bytes::from(block);
    for size in [1 << 20, 4 << 20] {
        let block = block.slice(..size);
        let blocks = (512 << 20) / size as u64;
        let (_workers, links) = two_workers(pipe(&["tr", "a-z", "A-Z"])).await;
        let [mut first, mut second] = <[Link; 2]>::try_from(links).ok().unwrap();
        let make = |n: u64| blocks_of(n, &block);
        let begun = Instant::now();
        tokio::join!(
            drive(&mut first, blocks / 2, 3, make),
            drive(&mut second, blocks / 2, 3, make)
        );
        let rate = 512.0 / begun.elapsed().as_secs_f64();
        println!("through tr in blocks of {} MiB: {rate:.0} MiB/s", size >> 20);
    }
}

fn blocks_of(n: u64, block: &Bytes) -> Vec<Order> {
    let attempt = AttemptId(n);
    let part = 1 << 20;
    let mut orders = vec![Order::Assign(Assign {
        attempt,
        job: JOB,
        range: ItemRange::new(n, 1),
        input_bytes: block.len() as u64,
        input: block.slice(..part),
    })];
    for offset in (part..block.len()).step_by(part) {
        let data = block.slice(offset..(offset + part).min(block.len()));
        orders.push(Order::Input(Part { attempt, offset: offset as u64, data }));
    }
    orders
}
