//! Thousands of jobs on one worker, one after the other: nothing of them is left.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use widemap_common::ids::{AttemptId, JobId};
use widemap_common::spec::{Function, JobSpec, Python};
use widemap_proto::session::{CoordinatorHello, Order, OutputGrant, Report};

use crate::support::{
    Link, WorkerProcess, assign_of, builtin, children_of_spawner, eventually, hello, needs, pipe,
    shell, text,
};

const JOBS: u32 = 10_000;

/// What has been used of a worker after so many jobs.
#[derive(Debug)]
struct Used {
    descriptors: usize,
    threads: usize,
    files: Vec<PathBuf>,
}

impl Used {
    fn of(worker: &WorkerProcess, directory: &Path) -> Self {
        let count = |pid: u32, what: &str| {
            std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count()
        };
        let both = [worker.pid(), worker.spawner()];
        let mut files: Vec<_> =
            std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        // The spawner's own directory is there from the first job on.
        files.extend(
            files
                .clone()
                .iter()
                .filter_map(|path| std::fs::read_dir(path).ok())
                .flat_map(|below| below.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()),
        );
        files.sort();
        Self {
            descriptors: both.iter().map(|&pid| count(pid, "fd")).sum(),
            threads: both.iter().map(|&pid| count(pid, "task")).sum(),
            files,
        }
    }

    /// Whether that much was in use before.
    fn is_within(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors
            && self.threads <= before.threads
            && self.files.iter().all(|file| before.files.contains(file))
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// A job of each kind in its turn; the slow ones seldom.
fn spec(number: u32) -> JobSpec {
    match number % 100 {
        1 => {
            let python = Python {
                path: b"f.py".to_vec(),
                source: Bytes::from_static(b"def f(x): open('left', 'w'); return x\n"),
                function: "f".to_owned(),
                initializer: None,
                recycle: None,
                is_text: true,
                interpreter: b"python3".to_vec(),
            };
            JobSpec { function: Function::Python(Box::new(python)), ..builtin("identity") }
        }
        2..=11 => {
            let argv = vec![b"cat".to_vec()];
            JobSpec { function: Function::Filter { argv }, ..builtin("identity") }
        }
        12..=21 => shell("echo left > file; echo $1"),
        22..=31 => pipe(&["cat"]),
        _ => builtin("identity"),
    }
}

async fn run(link: &mut Link, number: u32) {
    let (job, attempt) = (JobId(number), u64::from(number));
    link.send(vec![Order::OpenJob(job, Box::new(spec(number)))]).await;
    let ready = |report| match report {
        Report::JobReady(of) if of == job => Some(Ok(())),
        Report::JobRefused(of, refusal) if of == job => Some(Err(refusal)),
        _ => None,
    };
    link.until(ready).await.unwrap();
    link.send(vec![assign_of(job, attempt, 0, b"a\n")]).await;
    let (output, done) = link.done(attempt).await;
    assert_eq!((text(&output), &done.faults[..]), ("a\n", &[][..]), "job {number}");
    let over = vec![Order::Accepted(vec![AttemptId(attempt)]), Order::CloseJob(job)];
    link.send(over).await;
}

#[tokio::test]
async fn ten_thousand_jobs_leave_no_process_file_or_descriptor() {
    if !needs("ten_thousand_jobs_leave_no_process_file_or_descriptor", "python3") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
    command.args(["--slots", "2"]).env("TMPDIR", directory.path());
    let worker = WorkerProcess::start_in(command.stderr(std::process::Stdio::null()));
    // Nobody pings here: the lease is long.
    let greeting = CoordinatorHello { linger_ms: 600_000, ..hello(1, 1) };
    let mut link = Link::open(worker.channel().await, greeting).await.unwrap();
    link.send(vec![Order::OutputGrant(OutputGrant { total: u64::MAX, urgent: None })]).await;
    // Once over all kinds: by then every slot has its thread.
    for number in 1..=200 {
        run(&mut link, number).await;
    }
    eventually("nothing runs", || children_of_spawner(worker.pid()).is_empty()).await;
    let (before, resident_before) =
        (Used::of(&worker, directory.path()), resident_kib(worker.pid()));
    for number in 201..=JOBS {
        run(&mut link, number).await;
    }
    eventually("nothing runs", || children_of_spawner(worker.pid()).is_empty()).await;
    let mut after = Used::of(&worker, directory.path());
    let mut looks = 0;
    // Threads of the runtime's pool, of which either moment may see any number, end when they have
    // rested for ten seconds.
    while !after.is_within(&before) && looks < 600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        after = Used::of(&worker, directory.path());
        looks += 1;
    }
    assert!(after.is_within(&before), "after {JOBS} jobs: {after:?}, before: {before:?}");
    let more = resident_kib(worker.pid()).saturating_sub(resident_before);
    assert!(more < 16 * 1024, "{more} KiB more after {JOBS} jobs");
}
