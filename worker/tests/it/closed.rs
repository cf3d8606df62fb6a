//! What a job cannot get at: the worker's memory, its files, and what its variables say.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Link, WorkerProcess, children, needs, shell, text};
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

/// Starts something at a terminal of its own, whose session it leads; its standard output stays where
/// it was. Ends with it.
const AT_A_TERMINAL: &str = "
import os, pty, sys
output = os.dup(1)
child, terminal = pty.fork()
if child == 0:
    os.dup2(output, 1)
    os.execvp(sys.argv[1], sys.argv[1:])
os.close(output)
os.close(1)
try:
    while os.read(terminal, 4096):
        pass
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
";

/// Whether the terminal of its session can be opened by a process; its id, its group and its session.
const LOOKS: &str = "if (exec < /dev/tty) 2> /dev/null; then echo terminal; else echo none; fi; \
                     set -- $(sed 's/.*) //' /proc/$$/stat); echo $$ $3 $4";

fn session_of(process: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(3).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_job_has_a_session_of_its_own_and_not_the_terminal_of_the_worker() {
    if !needs("a_job_has_a_session_of_its_own_and_not_the_terminal_of_the_worker", "python3") {
        return;
    }
    let at_a_terminal = |words: &[&str]| {
        let mut command = Command::new("python3");
        command.args(["-c", AT_A_TERMINAL]).args(words);
        command
    };
    // Whoever is started there can: otherwise this test would show nothing.
    let seen = at_a_terminal(&["sh", "-c", LOOKS]).output().unwrap();
    assert!(text(&seen.stdout).starts_with("terminal"), "{seen:?}");

    let binary = env!("CARGO_BIN_EXE_widemap-worker");
    let worker = WorkerProcess::start_in(&mut at_a_terminal(&[binary, "--slots", "1"]));
    let mut link = worker.link().await;
    link.open_job(shell(LOOKS)).await;
    let (output, done) = link.run(1, b"1\n").await;
    let told: Vec<_> = text(&output).lines().collect();
    assert_eq!(told.len(), 2, "{told:?} {done:?}");
    assert_eq!(told[0], "none");
    // Python has started the worker, which leads the terminal's session, and that the spawner.
    let [leader] = children(worker.pid())[..] else { panic!("Python starts one process") };
    let [spawner] = children(leader)[..] else { panic!("a worker has one spawner") };
    let mut numbers = told[1].split(' ').map(|number| number.parse::<u32>().unwrap());
    let (process, group, session) =
        (numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap());
    assert_eq!((session, group), (spawner, process));
    assert_eq!(session_of(leader), leader);
}
