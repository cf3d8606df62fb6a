//! What a worker makes of the flags and variables of mDNS; that it is heard is tested with those who
//! listen.

use std::process::Command;

use crate::support::{TIMERS, WorkerProcess, eventually, shell};

fn worker(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
    command.args(["--slots", "1"]).args(args);
    command
}

#[test]
fn a_variable_for_all_workers_does_not_keep_one_from_no_mdns() {
    let mut command = worker(&["--no-mdns"]);
    let worker = WorkerProcess::start_in(command.env("WIDEMAP_MDNS_INTERFACE", "eth0"));
    assert_ne!(worker.port, 0);
}

#[tokio::test]
async fn a_worker_that_cannot_be_announced_comes_up_unless_a_flag_asks_for_that() {
    // No announcement has room for such a name.
    let name = "x".repeat(1_000);
    let args = ["--insecure", "--listen", "0.0.0.0:0", "--name", &name];
    let want = "cannot announce the worker by mDNS: ";
    let log = tempfile::NamedTempFile::new().unwrap();
    let told = || std::fs::read_to_string(log.path()).unwrap();
    let mut command = worker(&args);
    command.stderr(log.reopen().unwrap()).env("WIDEMAP_MDNS_INTERFACE", "lo");
    let goes_on = WorkerProcess::start_telling(&mut command);
    eventually("it warns", || told().contains(&format!("WARNING: {want}"))).await;
    let mut link = goes_on.link().await;
    link.open_job(shell("echo $1")).await;
    assert_eq!(link.run(1, b"a\n").await.0, b"a\n");

    let ended = worker(&args).args(["--mdns-interface", "lo", TIMERS]).output().unwrap();
    let told = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(3), "{told}");
    assert!(told.contains(&format!("widemap-worker: {want}")), "{told}");
}
