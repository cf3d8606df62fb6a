//! Filters as the real worker runs them: a line for a line, whatever the program does.

use std::time::Duration;

use widemap_common::failure::{FailureKind, Fault};
use widemap_common::spec::{Function, JobSpec};
use widemap_proto::session::{Order, Report};

use crate::support::{
    JOB, Link, WorkerProcess, assign, children, children_of_spawner, eventually, exec, lives, text,
};
use widemap_common::ids::AttemptId;

/// A filter of this program.
fn program(argv: &[&str]) -> JobSpec {
    let argv = argv.iter().map(|word| word.as_bytes().to_vec()).collect();
    JobSpec { function: Function::Filter { argv }, ..exec(&["true"]) }
}

/// A filter of this shell line.
fn filter(line: &str) -> JobSpec {
    program(&["sh", "-c", line])
}

fn lines(numbers: std::ops::RangeInclusive<u32>) -> String {
    numbers.map(|number| format!("{number}\n")).collect()
}

/// What a shell loop does with each line: prompt, as each `echo` is written at once.
fn loop_of(body: &str) -> JobSpec {
    filter(&format!("while read -r x; do {body}; done"))
}

/// A worker of one slot.
fn one_slot() -> WorkerProcess {
    WorkerProcess::start(&["--slots", "1"])
}

async fn process_of_slot(worker: &WorkerProcess) -> u32 {
    eventually("one process is there", || children_of_spawner(worker.pid()).len() == 1).await;
    children_of_spawner(worker.pid())[0]
}

fn told(faults: &[Fault]) -> Vec<(u32, FailureKind, bool)> {
    faults.iter().map(|fault| (fault.index, fault.kind, fault.unfit)).collect()
}

/// The lines for the user until an attempt has ended, and its output and faults.
async fn said(link: &mut Link, attempt: u64) -> (Vec<String>, String, Vec<Fault>) {
    let mut said = Vec::new();
    let done = link
        .until(|report| match report {
            Report::Log(Some(JOB), line) => {
                said.push(line);
                None
            }
            Report::Done(done) if done.attempt == AttemptId(attempt) => Some(done),
            _ => None,
        })
        .await;
    (said, text(&done.output).to_owned(), done.faults)
}

#[tokio::test]
async fn one_process_goes_on_from_chunk_to_chunk_and_ends_with_the_job() {
    let worker = one_slot();
    let mut link = worker.link().await;
    link.open_job(filter("echo $$ >&2; n=0; while read -r x; do n=$((n+1)); echo $n:$x; done"))
        .await;
    assert_eq!(text(&link.run(1, b"a\nb\n").await.0), "1:a\n2:b\n");
    let process = process_of_slot(&worker).await;
    assert_eq!(text(&link.run(2, b"c\n").await.0), "3:c\n");
    // The last item may have no end, and items may be empty.
    assert_eq!(text(&link.run(3, b"\n\nd").await.0), "4:\n5:\n6:d\n");
    assert_eq!(process_of_slot(&worker).await, process);
    link.send(vec![Order::CloseJob(JOB)]).await;
    eventually("it is gone with its job", || !lives(process)).await;
    // Another job has its own, and so has one that is cancelled.
    link.open_job(loop_of("sleep 60 & echo $x; wait")).await;
    link.send(vec![assign(4, 0, b"a\nb\n")]).await;
    link.running(4).await;
    let other = process_of_slot(&worker).await;
    link.send(vec![Order::Cancel(AttemptId(4))]).await;
    eventually("all of it is gone", || children_of_spawner(worker.pid()).is_empty()).await;
    assert!(!lives(other) && children(other).is_empty());
}

#[tokio::test]
async fn jobs_in_turn_on_one_slot_do_not_meet() {
    let worker = one_slot();
    let mut link = worker.link().await;
    link.open_job(loop_of("echo one $x")).await;
    let other = widemap_common::ids::JobId(2);
    link.send(vec![Order::OpenJob(other, Box::new(loop_of("echo two $x")))]).await;
    for attempt in 0..4 {
        link.send(vec![crate::support::assign_of(other, 2 * attempt + 1, attempt, b"a\n")]).await;
        assert_eq!(text(&link.done(2 * attempt + 1).await.0), "two a\n");
        assert_eq!(text(&link.run(2 * attempt + 2, b"b\n").await.0), "one b\n");
    }
    drop(link);
}

#[tokio::test]
async fn another_number_of_lines_never_shifts_a_neighbour() {
    let worker = one_slot();
    let mut link = worker.link().await;
    for (attempt, odd) in [1, 2, 50, 99, 100].into_iter().enumerate() {
        for (nth, answer) in ["echo $x; echo $x", ":", "echo; echo; echo"].iter().enumerate() {
            let body = format!("if test $x = {odd}; then {answer}; else echo $x; fi");
            link.open_job(JobSpec { per_item: true, ..loop_of(&body) }).await;
            let (output, done) =
                link.run((3 * attempt + nth + 1) as u64, lines(1..=100).as_bytes()).await;
            let want: String = (1..=100).filter(|n| *n != odd).map(|n| format!("{n}\n")).collect();
            assert_eq!(text(&output), want, "{odd} {answer}");
            assert_eq!(told(&done.faults), [(odd - 1, FailureKind::Error, true)]);
            assert!(!done.faults[0].retryable);
            let lengths: Vec<_> = widemap_common::varint::iter(&done.item_lengths).collect();
            assert_eq!((lengths.len(), lengths.iter().sum::<u64>()), (100, want.len() as u64));
            assert_eq!(lengths[odd as usize - 1], 0);
            link.send(vec![Order::CloseJob(JOB)]).await;
        }
    }
}

#[tokio::test]
async fn an_item_that_kills_or_stops_the_program_stands_alone() {
    let worker = one_slot();
    let mut link = worker.link().await;
    link.open_job(loop_of("case $x in 7) kill -9 $$;; 9) exit 3;; esac; echo $x")).await;
    let (output, done) = link.run(1, lines(1..=1_000).as_bytes()).await;
    let want: String =
        (1..=1_000).filter(|n| *n != 7 && *n != 9).map(|n| format!("{n}\n")).collect();
    assert_eq!(text(&output), want);
    assert_eq!(told(&done.faults), [(6, FailureKind::Crash, false), (8, FailureKind::Error, true)]);
    assert_eq!((done.faults[0].signal, done.faults[1].exit), (Some(9), Some(3)));
    link.send(vec![Order::CloseJob(JOB)]).await;
    // The same by a program that holds its lines back.
    link.open_job(program(&["perl", "-ne", "kill 9, $$ if /^500$/; print"])).await;
    let (output, done) = link.run(2, lines(1..=1_000).as_bytes()).await;
    let want: String = (1..=1_000).filter(|n| *n != 500).map(|n| format!("{n}\n")).collect();
    assert_eq!(text(&output), want);
    assert_eq!(told(&done.faults), [(499, FailureKind::Crash, false)]);
}

#[tokio::test]
async fn a_program_that_ends_by_itself_is_started_again_for_what_is_left() {
    let worker = one_slot();
    let mut link = worker.link().await;
    link.open_job(filter("for n in 1 2 3; do read -r x && echo $x || exit; done")).await;
    for attempt in 1..=10 {
        let (output, done) = link.run(attempt, b"a\n").await;
        assert_eq!((text(&output), done.faults.len()), ("a\n", 0), "{attempt} {done:?}");
    }
    let (output, done) = link.run(11, lines(1..=10).as_bytes()).await;
    assert_eq!((text(&output), done.faults.len()), (lines(1..=10).as_str(), 0));
}

#[tokio::test]
async fn a_program_that_does_not_end_with_its_input_is_not_waited_for() {
    let worker = one_slot();
    let mut link = worker.link().await;
    // It holds its lines back until its input is over, and then goes on for no reason.
    let line = "x=$(cat); printf '%s\\n' \"$x\"; sleep 60";
    let timeout = Some(Duration::from_secs(30));
    link.open_job(JobSpec { timeout, ..filter(line) }).await;
    for attempt in 1..=2 {
        let (output, done) = link.run(attempt, b"a\nb\n").await;
        assert_eq!((text(&output), done.faults.len()), ("a\nb\n", 0), "{done:?}");
    }
}

#[tokio::test]
async fn one_item_is_out_of_time_or_prints_too_much() {
    let worker = one_slot();
    let mut link = worker.link().await;
    let timeout = Some(Duration::from_millis(400));
    let body = "test $x != 5 || sleep 60; echo $x";
    link.open_job(JobSpec { timeout, ..loop_of(body) }).await;
    // Once it is known that its lines come at once.
    assert_eq!(text(&link.run(1, b"0\n").await.0), "0\n");
    let (output, done) = link.run(2, lines(1..=9).as_bytes()).await;
    assert_eq!(text(&output), "1\n2\n3\n4\n6\n7\n8\n9\n");
    assert_eq!(told(&done.faults), [(4, FailureKind::Timeout, false)]);
    assert_eq!(done.faults[0].message, "took longer than 400ms");
    link.send(vec![Order::CloseJob(JOB)]).await;
    let body = "if test $x = 5; then yes | tr -d '\\n'; else echo $x; fi";
    link.open_job(JobSpec { max_output: 3 << 20, ..loop_of(body) }).await;
    let (output, done) = link.run(3, lines(1..=9).as_bytes()).await;
    assert_eq!(text(&output), "1\n2\n3\n4\n6\n7\n8\n9\n");
    assert_eq!(done.faults.len(), 1);
    assert!(
        done.faults[0].message.contains("printed more than 3145728 bytes"),
        "{:?}",
        done.faults
    );
    eventually("nothing of it is left", || children_of_spawner(worker.pid()).len() <= 1).await;
}

#[tokio::test]
async fn a_program_that_holds_its_lines_back_is_told_of_once() {
    let worker = one_slot();
    let mut link = worker.link().await;
    link.open_job(program(&["sed", "s/^/x/"])).await;
    link.send(vec![assign(1, 0, b"1\n2\n")]).await;
    let (first, output, faults) = said(&mut link, 1).await;
    assert_eq!((output.as_str(), faults.len()), ("x1\nx2\n", 0));
    assert_eq!(first.len(), 1);
    assert!(first[0].starts_with("`sed` keeps back") && first[0].contains("`sed -u`"), "{first:?}");
    for attempt in 2..5 {
        link.send(vec![assign(attempt, 0, b"3\n4")]).await;
        let (again, output, _) = said(&mut link, attempt).await;
        assert_eq!((output.as_str(), again.len()), ("x3\nx4\n", 0));
    }
}

#[tokio::test]
async fn a_line_too_many_that_comes_late_is_told_and_never_counted() {
    let worker = one_slot();
    let mut link = worker.link().await;
    let directory = tempfile::tempdir().unwrap();
    let printed = directory.path().join("printed");
    let body = format!("echo $x; sleep 0.2; echo late; touch {}", printed.display());
    link.open_job(loop_of(&body)).await;
    assert_eq!(text(&link.run(1, b"a\n").await.0), "a\n");
    eventually("the late line is printed", || printed.exists()).await;
    link.send(vec![assign(2, 1, b"b\n")]).await;
    let (said, output, faults) = said(&mut link, 2).await;
    assert!(said.iter().any(|line| line.contains("too late to be counted")), "{said:?}");
    assert_eq!((output.as_str(), told(&faults)), ("", vec![(0, FailureKind::Error, true)]));
}

#[tokio::test]
async fn long_lines_and_items_that_end_in_nul_come_through() {
    let worker = one_slot();
    let mut link = worker.link().await;
    link.open_job(filter("cat")).await;
    let long = [vec![b'x'; 10 << 20], b"\nshort\n".to_vec()].concat();
    let (output, done) = link.run(1, b"a\n").await;
    assert_eq!((text(&output), done.faults.len()), ("a\n", 0));
    let assigned = widemap_proto::session::Assign {
        attempt: AttemptId(2),
        job: JOB,
        range: widemap_common::ids::ItemRange::new(1, 2),
        input_offset: 0,
        input_bytes: long.len() as u64,
        input: bytes::Bytes::new(),
    };
    link.send(vec![Order::Assign(assigned)]).await;
    for (index, part) in long.chunks(1 << 20).enumerate() {
        let (attempt, offset) = (AttemptId(2), (index << 20) as u64);
        let data = bytes::Bytes::copy_from_slice(part);
        link.send(vec![Order::Input(widemap_proto::session::Part { attempt, offset, data })]).await;
    }
    let (output, done) = link.done(2).await;
    assert!(output == long && done.faults.is_empty());
    link.send(vec![Order::CloseJob(JOB)]).await;
    let framing = widemap_common::framing::Framing::Separator(0);
    link.open_job(JobSpec { framing, ..filter("cat") }).await;
    let nul = widemap_proto::session::Assign {
        attempt: AttemptId(3),
        job: JOB,
        range: widemap_common::ids::ItemRange::new(0, 2),
        input_offset: 0,
        input_bytes: 5,
        input: bytes::Bytes::from_static(b"a\nb\0c"),
    };
    link.send(vec![Order::Assign(nul)]).await;
    assert_eq!(link.done(3).await.0, b"a\nb\0c\0");
}
