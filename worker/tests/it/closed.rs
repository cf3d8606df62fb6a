//! What a job cannot get at: the worker's memory, its files, and what its variables say.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Link, WorkerProcess, shell, text};
use widemap_common::spec::JobSpec;

/// `nobody` on every system that has one of that number.
const NOBODY: u32 = 65_534;

/// What of a process must be closed to others of its user.
pub(crate) const CLOSED: [&str; 4] = ["environ", "mem", "maps", "fd/0"];

/// The binary where every user can reach it.
pub(crate) fn binary_for_all(directory: &Path) -> PathBuf {
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.join("widemap-worker");
    std::fs::copy(env!("CARGO_BIN_EXE_widemap-worker"), &copy).unwrap();
    copy
}

/// A command of somebody who is not root.
pub(crate) fn command_of_nobody(directory: &Path) -> Command {
    let mut command = Command::new(binary_for_all(directory));
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Checks that a job of `link` gets at nothing of these processes, and at all of its own.
pub(crate) async fn closed_to_jobs(link: &mut Link, processes: &[u32]) {
    // A redirection opens the file; in a shell of its own, which it ends where it fails.
    let script = "if (exec < /proc/$1) 2> /dev/null; then echo open; else echo closed; fi; \
                  (exec < /proc/$$/environ && exec < /proc/$$/maps) && stat -c %u /proc/$$/environ && id -u";
    link.open_job(shell(script)).await;
    let files = processes.iter().flat_map(|pid| CLOSED.map(|file| format!("{pid}/{file}\n")));
    let files: Vec<_> = files.collect();
    let (output, done) = link.run(1, files.concat().as_bytes()).await;
    let told: Vec<_> = text(&output).lines().collect();
    for (file, told) in files.iter().zip(told.chunks(3)) {
        assert_eq!(told[0], "closed", "{file}: {told:?}: {done:?}");
        // A job's own processes are ordinary ones, which only their user opens.
        assert!(told[1] == told[2] && told[2] != "0", "{told:?}");
    }
    assert_eq!(told.len(), files.len() * 3);
}

#[tokio::test]
async fn the_memory_of_the_worker_is_closed_to_jobs_of_its_own_user() {
    let directory = tempfile::tempdir().unwrap();
    let worker =
        WorkerProcess::start_in(command_of_nobody(directory.path()).args(["--slots", "1"]));
    let mut link = worker.link().await;
    closed_to_jobs(&mut link, &[worker.pid(), worker.spawner()]).await;
}

#[tokio::test]
async fn no_file_of_the_worker_is_open_in_a_job() {
    // One of whoever started it, left open by mistake, and its own: listener, connections, pipes.
    let binary = env!("CARGO_BIN_EXE_widemap-worker");
    let line = format!("exec 7< /etc/passwd; exec {binary} --slots 2 \"$@\"");
    let worker = WorkerProcess::start_in(Command::new("sh").args(["-c", &line, "sh"]));
    let mut link = worker.link().await;
    link.open_job(shell("exec ls -l /proc/self/fd")).await;
    let (output, _) = link.run(1, b"x\n").await;
    let files =
        text(&output).lines().filter_map(|line| line.split_once(" -> ")?.1.split(':').next());
    // The last is the directory that `ls` reads.
    let files: Vec<_> = files.collect();
    assert_eq!(files[..3], ["/dev/null", "pipe", "pipe"], "{}", text(&output));
    assert_eq!(files.len(), 4, "{}", text(&output));
    assert!(files[3].starts_with("/proc/"), "{}", text(&output));
}

#[tokio::test]
async fn what_the_worker_is_told_stays_with_it() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
    command.args(["--slots", "1"]).env("WIDEMAP_OTHER", "secret").env("WIDEMAP_LOG", "error");
    let worker = WorkerProcess::start_in(&mut command);
    let mut link = worker.link().await;
    let environment = vec![
        (b"WIDEMAP_OTHER".to_vec(), None),
        (b"WIDEMAP_LOG".to_vec(), Some(b"mine".to_vec())),
        (b"WIDEMAP_SEQ".to_vec(), Some(b"forged".to_vec())),
    ];
    link.open_job(JobSpec { environment, ..shell("env | grep ^WIDEMAP_ | sort") }).await;
    let (output, _) = link.run(1, b"x\n").await;
    let want = "WIDEMAP_ITEM=x\nWIDEMAP_LOG=mine\nWIDEMAP_SEQ=1\nWIDEMAP_SLOT=1\n";
    assert_eq!(text(&output), want);
}

#[tokio::test]
async fn a_job_has_no_part_in_the_terminal_and_the_session_of_the_worker() {
    let worker = WorkerProcess::start(&["--slots", "1"]);
    let mut link = worker.link().await;
    let script = "echo $$; cat /proc/$$/stat; if (exec < /dev/tty) 2> /dev/null; then echo open; \
                  else echo closed; fi";
    link.open_job(shell(script)).await;
    let (output, done) = link.run(1, b"x\n").await;
    let told: Vec<_> = text(&output).lines().collect();
    let [pid, stat, terminal] = told[..] else { panic!("{told:?}: {done:?}") };
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Behind the name: its state, its parent, its group, its session, its terminal.
    let spawner = worker.spawner().to_string();
    assert_eq!(fields[2], pid, "a group of its own, which a cancel ends: {stat}");
    assert_eq!(fields[3], spawner, "the session of what starts it: {stat}");
    assert_eq!((fields[4], terminal), ("0", "closed"), "{stat}");
}
