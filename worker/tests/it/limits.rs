//! What a worker allows, and what it holds out: runtimes, connections, open files, a directory for
//! each job.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::support::{JOB, WorkerProcess, assign, assign_of, builtin, exec, pipe, shell, text};
use widemap_common::ids::{AttemptId, JobId};
use widemap_proto::session::{Order, OutputGrant, RefusalCause, Report};

/// A worker that is started by a shell line, which sets limits before it.
fn started_by(line: &str) -> WorkerProcess {
    let binary = env!("CARGO_BIN_EXE_widemap-worker");
    let line = format!("{line} && exec {binary} --slots 1 \"$@\"");
    WorkerProcess::start_in(Command::new("sh").args(["-c", &line, "sh"]))
}

#[tokio::test]
async fn a_job_of_a_runtime_that_is_not_allowed_is_told_how_it_could_be() {
    let worker = WorkerProcess::start(&["--name", "ann", "--allow", "exec"]);
    let mut link = worker.link().await;
    assert_eq!(link.hello.runtimes.len(), 1);
    for (number, spec, runtime) in [(2, pipe(&["cat"]), "pipe"), (3, builtin("square"), "builtin")]
    {
        link.send(vec![Order::OpenJob(JobId(number), Box::new(spec))]).await;
        let Report::JobRefused(JobId(refused), refusal) = link.next().await.unwrap() else {
            panic!("not refused: {runtime}");
        };
        assert_eq!((refused, refusal.cause), (number, RefusalCause::NotAllowed));
        let message = &refusal.message;
        assert!(message.starts_with(&format!("ann does not run `{runtime}` jobs")), "{message}");
        assert!(message.contains("it allows: exec; see widemap-worker --allow"), "{message}");
    }
    link.open_job(exec(&["echo"])).await;
    assert_eq!(link.run(1, b"a\n").await.0, b"a\n");
}

#[tokio::test]
async fn each_job_has_a_directory_and_it_goes_with_the_job() {
    let worker = WorkerProcess::start(&["--slots", "2"]);
    let mut link = worker.link().await;
    let other = JobId(2);
    link.open_job(shell("pwd; stat -c %a .")).await;
    link.send(vec![Order::OpenJob(other, Box::new(shell("pwd; stat -c %a .")))]).await;
    assert!(matches!(link.next().await, Ok(Report::JobReady(JobId(2)))));
    link.send(vec![assign(1, 0, b"x\n"), assign_of(other, 2, 0, b"x\n")]).await;
    let mut directories = Vec::new();
    for _ in 0..2 {
        let done = link
            .until(|report| match report {
                Report::Done(done) => Some(done),
                _ => None,
            })
            .await;
        let (directory, mode) = text(&done.output).trim_end().split_once('\n').unwrap();
        assert_eq!(mode, "700");
        directories.push((done.attempt, directory.to_owned()));
    }
    directories.sort_by_key(|(attempt, _)| attempt.0);
    let [first, second] = [0, 1].map(|index: usize| Path::new(&directories[index].1).to_owned());
    assert_ne!(first, second);
    link.send(vec![Order::Accepted(vec![AttemptId(1)]), Order::CloseJob(JOB)]).await;
    crate::support::eventually("the first is gone", || !first.exists()).await;
    assert!(second.exists());
}

#[tokio::test]
async fn the_worker_has_all_files_and_a_job_the_ones_it_would_have_had() {
    let worker = started_by("ulimit -Sn 200 && ulimit -Hn 1024");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", worker.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().filter(|word| *word == "1024").count(), 2, "{files}");
    let mut link = worker.link().await;
    link.open_job(shell("ulimit -Sn; ulimit -Hn")).await;
    assert_eq!(text(&link.run(1, b"x\n").await.0), "200\n1024\n");
}

#[tokio::test]
async fn more_connections_than_a_worker_takes_do_it_no_harm() {
    // More than it has files for, and more than it takes.
    for (limit, connections) in [("ulimit -n 64", 150), ("true", 300)] {
        let worker = started_by(limit);
        let address = ("127.0.0.1", worker.port);
        let idle: Vec<_> = (0..connections).map(|_| TcpStream::connect(address).unwrap()).collect();
        drop(idle);
        let mut link = worker.link().await;
        link.open_job(shell("echo $1")).await;
        let grant = OutputGrant { total: u64::MAX, urgent: None };
        link.send(vec![Order::OutputGrant(grant)]).await;
        assert_eq!(link.run(1, b"a\n").await.0, b"a\n");
    }
}
