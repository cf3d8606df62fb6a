//! `--register DIR`: a worker is listed while it takes work, and no longer.

use std::path::Path;
use std::process::Command;

use crate::support::{JOB, WorkerProcess, assign, eventually, fails, shell};
use rustix::process::Signal;
use widemap_common::ids::AttemptId;
use widemap_proto::session::{Order, Report};

/// The addresses that are listed, as a coordinator reads them.
fn listed(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let texts = entries.filter_map(|path| std::fs::read_to_string(path).ok());
    let lines: Vec<_> =
        texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    lines.into_iter().filter(|line| !line.starts_with('#')).collect()
}

#[tokio::test]
async fn a_worker_is_listed_until_it_drains() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let mut worker = WorkerProcess::start(&["--slots", "1", "--register", path]);
    assert_eq!(listed(directory.path()), [format!("127.0.0.1:{}", worker.port)]);
    let mut link = worker.link().await;
    link.open_job(shell("read line < /dev/null; while [ ! -e $1 ]; do sleep 0.01; done")).await;
    let go = directory.path().join("go");
    link.send(vec![assign(1, 0, format!("{}\n", go.display()).as_bytes())]).await;
    link.running(1).await;
    worker.signal(Signal::TERM);
    link.until(|report| matches!(report, Report::Draining(_)).then_some(())).await;
    // Something still runs there, and nobody new is sent.
    assert_eq!(listed(directory.path()), [""; 0]);
    std::fs::write(go, "").unwrap();
    link.done(1).await;
    link.send(vec![Order::Accepted(vec![AttemptId(1)]), Order::CloseJob(JOB)]).await;
    let status = tokio::task::spawn_blocking(move || worker.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn an_idle_worker_that_ends_is_not_listed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let mut worker = WorkerProcess::start(&["--idle-timeout", "50ms", "--register", path]);
    tokio::task::spawn_blocking(move || worker.wait()).await.unwrap();
    assert_eq!(listed(directory.path()), [""; 0]);
}

#[tokio::test]
async fn a_killed_worker_is_replaced_by_its_successor() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let files = || std::fs::read_dir(directory.path()).unwrap().count();
    let mut worker = WorkerProcess::start(&["--name", "ann", "--register", path]);
    let listen = format!("127.0.0.1:{}", worker.port);
    worker.signal(Signal::KILL);
    worker.wait();
    assert_eq!(files(), 1);
    let again = ["--name", "ann", "--listen", &listen, "--register", path];
    let _worker = WorkerProcess::start(&again);
    eventually("only the successor is listed", || listed(directory.path()) == [listen.clone()])
        .await;
    assert_eq!(files(), 1);
}

#[tokio::test]
async fn a_worker_that_listens_everywhere_names_an_address_that_others_can_dial() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
    command.args(["--listen", "0.0.0.0:0", "--insecure", "--slots", "1", "--register", path]);
    if if_addrs_are_only_loopback() {
        let (told, status) = fails(&mut command);
        assert!(told.contains("--listen ADDRESS:PORT"), "{told}");
        assert_eq!(status, Some(2));
        return;
    }
    let worker = WorkerProcess::start_in(&mut command);
    let listed = listed(directory.path());
    assert_eq!(listed.len(), 1, "{listed:?}");
    // An address, since a name need not lead here from elsewhere.
    let address: std::net::SocketAddr = listed[0].parse().unwrap();
    assert_eq!(address.port(), worker.port);
    assert!(!address.ip().is_loopback() && !address.ip().is_unspecified(), "{address}");
    assert!(std::net::TcpStream::connect(&listed[0]).is_ok(), "{listed:?} is where it listens");
}

#[tokio::test]
async fn a_worker_that_lists_a_loopback_address_warns() {
    let directory = tempfile::tempdir().unwrap();
    for (args, warns) in [
        (vec!["--register", directory.path().to_str().unwrap()], true),
        (vec!["--slots", "1"], false),
    ] {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
        command.args(args).stderr(log.reopen().unwrap());
        let worker = WorkerProcess::start_telling(&mut command);
        let told = std::fs::read_to_string(log.path()).unwrap();
        let want = format!("WARNING: --register: 127.0.0.1:{}", worker.port);
        assert_eq!(told.contains(&want), warns, "{told}");
    }
}

/// Whether this host has no address beyond itself, as in a network namespace.
fn if_addrs_are_only_loopback() -> bool {
    let routes = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    routes.connect("192.0.2.1:9").is_err()
}

#[test]
fn a_directory_that_cannot_be_written_is_told_before_anything_runs() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
    let (told, status) = fails(command.args(["--register", "/no/such/directory"]));
    assert!(told.contains("--register /no/such/directory: cannot write there"), "{told}");
    assert_eq!(status, Some(2));
}
