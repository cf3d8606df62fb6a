//! Commands as the real worker runs them: what they print, what they find around themselves, how
//! they fail, and that nothing of them is left.

use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use crate::support::{
    JOB, WorkerProcess, assign, children, children_of_spawner, eventually, exec, lives, pipe,
    shell, text,
};
use rustix::process::Signal;
use widemap_common::failure::FailureKind;
use widemap_common::ids::{AttemptId, ItemRange};
use widemap_common::spec::{Directory, JobSpec};
use widemap_proto::session::{Assign, Order, Part, RefusalCause, Report};

#[tokio::test]
async fn each_item_is_an_argument_and_a_failed_one_leaves_no_bytes() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    link.open_job(JobSpec { per_item: true, ..shell("echo \"$1\"; [ \"$1\" != b ] || exit 3") })
        .await;
    let (output, done) = link.run(1, b"a\nb\nc d\n").await;
    assert_eq!(text(&output), "a\nc d\n");
    assert_eq!(done.faults.len(), 1);
    let fault = &done.faults[0];
    assert_eq!((fault.index, fault.kind, fault.exit), (1, FailureKind::Error, Some(3)));
    assert_eq!((fault.message.as_str(), fault.output_bytes), ("exited with status 3", 0));
    let lengths: Vec<_> = widemap_common::varint::iter(&done.item_lengths).collect();
    assert_eq!(lengths, [2, 0, 4]);
    assert_eq!(widemap_common::varint::iter(&done.item_micros).count(), 3);
}

#[tokio::test]
async fn standard_error_is_told_by_item_and_only_its_end() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    link.open_job(shell("for i in $(seq $1); do echo line $i >&2; done")).await;
    let (_, done) = link.run(1, b"0\n2\n2000\n").await;
    assert_eq!(done.stderr.len(), 2);
    assert_eq!((done.stderr[0].index, text(&done.stderr[0].data)), (1, "line 1\nline 2\n"));
    assert!(done.stderr[1].cut && text(&done.stderr[1].data).ends_with("line 2000\n"));
}

#[tokio::test]
async fn signals_and_timeouts_are_told_apart() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    // The second item ignores TERM: it is killed after the grace.
    let script = "case $1 in die) kill -SEGV $$;; deaf) trap '' TERM; sleep 60 & wait; sleep 60;; *) sleep 60;; esac";
    let timeout = Some(Duration::from_millis(300));
    link.open_job(JobSpec { timeout, ..shell(script) }).await;
    let (_, done) = link.run(1, b"die\ndeaf\nslow\n").await;
    let told: Vec<_> = done.faults.iter().map(|f| (f.kind, f.message.as_str(), f.signal)).collect();
    let late = "took longer than 300ms";
    assert_eq!(
        told,
        [
            (FailureKind::Crash, "killed by signal 11 (SIGSEGV)", Some(11)),
            (FailureKind::Timeout, late, None),
            (FailureKind::Timeout, late, None),
        ]
    );
    eventually("everything of the attempt is gone", || {
        children_of_spawner(worker.pid()).is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_item_that_prints_without_end_is_stopped_and_the_others_are_not() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    let max_output = 3 << 20;
    link.open_job(JobSpec { max_output, ..shell("[ $1 = y ] && exec yes; echo $1") }).await;
    let (output, done) = link.run(1, b"a\ny\nb\n").await;
    assert_eq!(done.faults.len(), 1);
    let fault = &done.faults[0];
    assert_eq!(fault.message, format!("printed more than {max_output} bytes (--max-output)"));
    assert!(!fault.retryable);
    // What went out before it was known is named, to be left out.
    let left = fault.output_offset as usize..(fault.output_offset + fault.output_bytes) as usize;
    let mut kept = output.clone();
    kept.drain(left);
    assert_eq!(text(&kept), "a\nb\n");
}

#[tokio::test]
async fn a_long_output_arrives_whole() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    link.open_job(shell("seq $1")).await;
    let (output, done) = link.run(1, b"3000000\n").await;
    assert!(done.faults.is_empty());
    assert_eq!(output.len(), 22_888_896);
    assert!(output.ends_with(b"2999999\n3000000\n"));
}

#[tokio::test]
async fn what_cannot_be_an_argument_is_said_and_not_tried_again() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    link.open_job(exec(&["echo"])).await;
    let mut input = b"a\0b\n".to_vec();
    input.extend(std::iter::repeat_n(b'x', 200_000));
    input.extend_from_slice(b"\nfine\n");
    let (output, done) = link.run(1, &input).await;
    assert_eq!(text(&output), "fine\n");
    assert!(done.faults.iter().all(|fault| !fault.retryable));
    assert!(done.faults[0].message.contains("NUL at byte 2"), "{}", done.faults[0].message);
    let long = &done.faults[1].message;
    assert!(long.contains("200000 bytes") && long.contains("131071"), "{long}");
}

#[tokio::test]
async fn a_command_finds_a_scrubbed_environment_and_a_directory_of_its_own() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
    command.args(["--slots", "1"]).env("SECRET", "x").env("ASKED", "mine");
    let worker = WorkerProcess::start_in(&mut command);
    let mut link = worker.link().await;
    let script = "echo ${SECRET-none} $ASKED $SET $WIDEMAP_ITEM $WIDEMAP_SEQ $WIDEMAP_SLOT; \
                  [ -n \"$OMP_NUM_THREADS\" ] && pwd; cat; touch left";
    let environment = vec![(b"ASKED".to_vec(), None), (b"SET".to_vec(), Some(b"set".to_vec()))];
    link.open_job(JobSpec { environment, ..shell(script) }).await;
    link.send(vec![assign(1, 41, b"i\n")]).await;
    let (output, _) = link.done(1).await;
    let (first, directory) = text(&output).trim_end().split_once('\n').expect("two lines");
    assert_eq!(first, "none mine set i 42 1");
    assert!(directory.contains("/widemap-") && directory.contains("/j1-"), "{directory}");
    assert!(std::path::Path::new(directory).is_dir());
    link.send(vec![Order::Accepted(vec![AttemptId(1)]), Order::CloseJob(JOB)]).await;
    let line = link
        .until(|report| match report {
            Report::Log(Some(JOB), line) => Some(line),
            _ => None,
        })
        .await;
    assert!(line.contains("1 file left in"), "{line}");
    assert!(!std::path::Path::new(directory).exists());
}

#[tokio::test]
async fn a_named_directory_is_used_or_refused() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().canonicalize().unwrap();
    let named = Directory::Path(path.as_os_str().as_bytes().to_vec());
    link.open_job(JobSpec { directory: named, ..shell("pwd") }).await;
    let (output, _) = link.run(1, b"x\n").await;
    assert_eq!(text(&output).trim_end(), path.to_str().unwrap());
    for (directory, cause) in [
        (Directory::Path(b"/no/such/place".to_vec()), RefusalCause::Directory),
        (Directory::Inherit, RefusalCause::NotAllowed),
    ] {
        let job = widemap_common::ids::JobId(2);
        let spec = Box::new(JobSpec { directory, ..shell("pwd") });
        link.send(vec![Order::OpenJob(job, spec)]).await;
        match link.next().await.unwrap() {
            Report::JobRefused(refused, refusal) => {
                assert_eq!((refused, refusal.cause), (job, cause));
            }
            other => panic!("not refused: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_child_that_keeps_the_pipe_is_read_for_a_while_and_then_ended() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    link.open_job(shell("(sleep 0.02; echo late; sleep 60) & echo early")).await;
    let (output, done) = link.run(1, b"x\n").await;
    assert_eq!(text(&output), "early\nlate\n");
    assert!(done.faults.is_empty());
    eventually("the child is gone", || children_of_spawner(worker.pid()).is_empty()).await;
}

#[tokio::test]
async fn a_block_streams_through_a_process_while_it_arrives() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    link.open_job(pipe(&["tr", "a-z", "A-Z"])).await;
    let block: Vec<u8> = b"some line of text\n".repeat(300_000);
    let parts: Vec<_> = block.chunks(1 << 20).map(bytes::Bytes::copy_from_slice).collect();
    let range = ItemRange::new(0, 300_000);
    let input_bytes = block.len() as u64;
    let first = Assign {
        attempt: AttemptId(1),
        job: JOB,
        range,
        input_offset: 0,
        input_bytes,
        input: parts[0].clone(),
    };
    link.send(vec![Order::Assign(first)]).await;
    let mut offset = parts[0].len() as u64;
    for data in &parts[1..] {
        let part = Part { attempt: AttemptId(1), offset, data: data.clone() };
        offset += data.len() as u64;
        link.send(vec![Order::Input(part)]).await;
    }
    let (output, done) = link.done(1).await;
    assert!(done.faults.is_empty());
    assert_eq!(output, block.to_ascii_uppercase());
}

#[tokio::test]
async fn a_process_need_not_read_its_block_and_a_failed_block_is_one_fault() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    link.open_job(pipe(&["sh", "-c", "read line; echo $line; [ $line = good ]"])).await;
    let block = |word: &str| format!("{word}\n{}", "x\n".repeat(200_000)).into_bytes();
    let (output, done) = link.run(1, &block("good")).await;
    assert_eq!((text(&output), done.faults.len()), ("good\n", 0));
    let (output, done) = link.run(2, &block("bad")).await;
    assert_eq!((text(&output), done.faults.len()), ("", 1));
    assert_eq!((done.faults[0].index, done.faults[0].exit), (0, Some(1)));
}

#[tokio::test]
async fn no_zombie_stays_and_a_cancel_ends_the_whole_group() {
    let worker = WorkerProcess::start(&["--slots", "2"]);
    let mut link = worker.link().await;
    link.open_job(shell("sleep 60 & sleep 60")).await;
    link.send(vec![assign(1, 0, b"x\n"), assign(2, 1, b"y\n")]).await;
    eventually("both run", || children_of_spawner(worker.pid()).len() == 2).await;
    link.send([1, 2, 3].map(|attempt| Order::Cancel(AttemptId(attempt))).to_vec()).await;
    // What is not known is over at once, what runs once its slot is free.
    assert_eq!(link.next().await.unwrap(), Report::Cancelled(AttemptId(3)));
    for _ in 0..2 {
        assert!(matches!(link.next().await, Ok(Report::Cancelled(AttemptId(1 | 2)))));
    }
    eventually("none runs", || children_of_spawner(worker.pid()).is_empty()).await;
    link.send(vec![Order::CloseJob(JOB)]).await;
    let spec = Box::new(exec(&["echo"]));
    link.send(vec![Order::OpenJob(widemap_common::ids::JobId(2), spec)]).await;
    assert!(matches!(link.next().await, Ok(Report::JobReady(_))));
}

#[tokio::test]
async fn nothing_outlives_a_killed_worker() {
    let mut worker = WorkerProcess::start(&["--slots", "2"]);
    let mut link = worker.link().await;
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    // One process in the group, one in a session of its own, both deaf to TERM.
    let script = format!(
        "trap '' TERM; pwd > {0}.directory; echo $$ >> {0}; setsid sh -c 'trap \"\" TERM; echo $$ >> {0}; sleep 60; sleep 60' & \
         sleep 60; sleep 60",
        pids.display()
    );
    link.open_job(shell(&script)).await;
    link.send(vec![assign(1, 0, b"x\n"), assign(2, 1, b"y\n")]).await;
    let started = || -> Vec<u32> {
        let text = std::fs::read_to_string(&pids).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    eventually("four processes run", || started().len() == 4).await;
    let spawner = children(worker.pid());
    worker.signal(Signal::KILL);
    worker.wait();
    eventually("all are gone", || !started().into_iter().any(lives)).await;
    eventually("the spawner too", || !spawner.iter().copied().any(lives)).await;
    let private = std::fs::read_to_string(directory.path().join("pids.directory")).unwrap();
    assert!(private.contains("/widemap-"), "{private}");
    assert!(!std::path::Path::new(private.trim_end()).exists(), "{private}");
}

#[tokio::test]
async fn a_command_that_is_not_there_is_refused_before_any_item() {
    let worker = WorkerProcess::start(&["--name", "ann"]);
    let mut link = worker.link().await;
    link.send(vec![Order::OpenJob(JOB, Box::new(exec(&["sort | uniq"])))]).await;
    match link.next().await.unwrap() {
        Report::JobRefused(JOB, refusal) => {
            assert_eq!(refusal.cause, RefusalCause::NotFound);
            assert!(refusal.message.contains("ann") && refusal.message.contains("--shell"));
        }
        other => panic!("not refused: {other:?}"),
    }
}
