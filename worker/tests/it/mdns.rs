//! What a worker makes of the flags and variables of mDNS; that it is heard is tested with those who
//! listen.

use std::process::Command;

use crate::support::WorkerProcess;

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
