//! `--run-as USER`: nothing that a job does is root's, and all else is as it was.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::closed::{closed_to_jobs, command_of_nobody};
use crate::support::{
    JOB, WorkerProcess, assign, children_of_spawner, eventually, fails, lives, needs_root, shell,
    text,
};
use rustix::process::Signal;
use widemap_common::ids::{AttemptId, JobId};
use widemap_common::spec::{Directory, JobSpec};
use widemap_proto::session::{Order, RefusalCause, Report};

/// What `id` says of nobody.
fn id_of_nobody(flag: &str) -> String {
    let output = Command::new("id").args([flag, "nobody"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn of_nobody(args: &[&str]) -> WorkerProcess {
    let args: Vec<_> =
        ["--run-as", "nobody", "--name", "ann"].iter().chain(args).copied().collect();
    WorkerProcess::start(&args)
}

/// A file that only root may read, in a directory that everybody may enter.
fn secret() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "secret").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    (directory, file)
}

#[tokio::test]
async fn a_job_has_nothing_of_root() {
    if !needs_root("a_job_has_nothing_of_root") {
        return;
    }
    let (_directory, secret) = secret();
    // Where the worker itself works is no place for the user.
    let here = tempfile::tempdir().unwrap();
    std::fs::set_permissions(here.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
    command.args(["--slots", "1", "--run-as", "nobody"]).current_dir(here.path());
    let worker = WorkerProcess::start_in(&mut command);
    let mut link = worker.link().await;
    let script = "id -u; id -g; id -G; echo $USER $LOGNAME $HOME; grep -E '^(Cap|Uid|Gid)' /proc/self/status; \
                  stat -c '%U %a' .; touch left && pwd; cat $1 || echo no; (echo x > $1) || echo no";
    link.open_job(JobSpec { environment: vec![(b"HOME".to_vec(), None)], ..shell(script) }).await;
    let (output, done) = link.run(1, format!("{}\n", secret.display()).as_bytes()).await;
    let lines: Vec<_> = text(&output).lines().collect();
    assert_eq!(lines[..3], ["-u", "-g", "-G"].map(id_of_nobody), "{done:?}");
    assert!(lines[3].starts_with("nobody nobody /") && !lines[3].contains("/root"), "{lines:?}");
    let (uid, gid) = (id_of_nobody("-u"), id_of_nobody("-g"));
    for line in &lines[4..lines.len() - 4] {
        let (name, values) = line.split_once(':').unwrap();
        let want = match name {
            "Uid" => &uid,
            "Gid" => &gid,
            // What a process may never get is no right that it has.
            "CapBnd" => continue,
            _ => "0000000000000000",
        };
        assert!(values.split_whitespace().all(|value| value == want), "{line}");
    }
    let [owner, directory, read, written] = lines[lines.len() - 4..] else { panic!("{lines:?}") };
    assert_eq!([owner, read, written], ["nobody 700", "no", "no"]);
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret");
    assert!(Path::new(directory).is_dir());
    link.send(vec![Order::Accepted(vec![AttemptId(1)]), Order::CloseJob(JOB)]).await;
    let told = link
        .until(|report| match report {
            Report::Log(Some(JOB), line) => Some(line),
            _ => None,
        })
        .await;
    assert!(told.starts_with("1 file left in"), "{told}");
    assert!(!Path::new(directory).exists());
}

#[tokio::test]
async fn the_worker_is_closed_to_jobs_of_another_user() {
    if !needs_root("the_worker_is_closed_to_jobs_of_another_user") {
        return;
    }
    let worker = of_nobody(&["--slots", "1"]);
    let mut link = worker.link().await;
    closed_to_jobs(&mut link, &[worker.pid(), worker.spawner()]).await;
}

#[tokio::test]
async fn a_cancel_ends_the_whole_group_of_another_user() {
    if !needs_root("a_cancel_ends_the_whole_group_of_another_user") {
        return;
    }
    let worker = of_nobody(&["--slots", "1"]);
    let mut link = worker.link().await;
    let shared = tempfile::tempdir().unwrap();
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    link.open_job(shell("trap '' TERM; sleep 60 & echo $! $$ > $1; sleep 60; sleep 60")).await;
    let pids = shared.path().join("pids");
    link.send(vec![assign(1, 0, format!("{}\n", pids.display()).as_bytes())]).await;
    let started = || -> Vec<u32> {
        let text = std::fs::read_to_string(&pids).unwrap_or_default();
        text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    };
    eventually("both run", || started().len() == 2).await;
    link.send(vec![Order::Cancel(AttemptId(1))]).await;
    let cancelled = |report| matches!(report, Report::Cancelled(AttemptId(1))).then_some(());
    link.until(cancelled).await;
    eventually("none is left", || !started().into_iter().any(lives)).await;
    eventually("no zombie", || children_of_spawner(worker.pid()).is_empty()).await;
    // The slot goes on.
    link.send(vec![Order::CloseJob(JOB)]).await;
    link.send(vec![Order::OpenJob(JobId(2), Box::new(shell("echo $1")))]).await;
    assert!(matches!(link.next().await, Ok(Report::JobReady(JobId(2)))));
}

#[tokio::test]
async fn nothing_of_another_user_outlives_a_killed_worker() {
    if !needs_root("nothing_of_another_user_outlives_a_killed_worker") {
        return;
    }
    let mut worker = of_nobody(&["--slots", "1"]);
    let mut link = worker.link().await;
    let shared = tempfile::tempdir().unwrap();
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let out = shared.path().join("out");
    // One process in the group, one in a session of its own, and a directory that resists.
    let script = "trap '' TERM; mkdir -p a/b; chmod 500 a; pwd > $1; echo $$ >> $1; \
                  setsid sh -c 'echo $$ >> $0; sleep 60; sleep 60' $1 & sleep 60; sleep 60";
    link.open_job(shell(script)).await;
    link.send(vec![assign(1, 0, format!("{}\n", out.display()).as_bytes())]).await;
    let told = || std::fs::read_to_string(&out).unwrap_or_default();
    eventually("both run", || told().lines().count() == 3).await;
    let told = told();
    let (directory, pids) = told.split_once('\n').unwrap();
    let parent = Path::new(directory).parent().unwrap();
    assert!(parent.is_dir());
    let spawner = worker.spawner();
    worker.signal(Signal::KILL);
    worker.wait();
    let gone = || !pids.lines().map(|pid| pid.parse().unwrap()).any(lives) && !lives(spawner);
    eventually("all are gone", gone).await;
    assert!(!parent.exists(), "{}", parent.display());
}

#[tokio::test]
async fn a_directory_that_the_user_may_not_enter_is_refused() {
    if !needs_root("a_directory_that_the_user_may_not_enter_is_refused") {
        return;
    }
    let worker = of_nobody(&["--slots", "1"]);
    let mut link = worker.link().await;
    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let path = Directory::Path(closed.path().as_os_str().as_bytes().to_vec());
    let spec = JobSpec { directory: path.clone(), ..shell("pwd") };
    link.send(vec![Order::OpenJob(JobId(2), Box::new(spec.clone()))]).await;
    let refusal = match link.next().await.unwrap() {
        Report::JobRefused(JobId(2), refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(refusal.cause, RefusalCause::Directory);
    let want =
        format!("ann cannot work in {} as nobody: Permission denied", closed.path().display());
    assert!(refusal.message.starts_with(&want), "{}", refusal.message);
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    link.open_job(spec).await;
    let (output, _) = link.run(1, b"x\n").await;
    assert_eq!(text(&output).trim_end(), closed.path().to_str().unwrap());
}

#[tokio::test]
async fn a_command_that_the_user_may_not_run_is_refused() {
    if !needs_root("a_command_that_the_user_may_not_run_is_refused") {
        return;
    }
    let worker = of_nobody(&["--slots", "1"]);
    let mut link = worker.link().await;
    let (_directory, tool) = secret();
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o700)).unwrap();
    let spec = crate::support::exec(&[tool.to_str().unwrap()]);
    link.send(vec![Order::OpenJob(JOB, Box::new(spec))]).await;
    let Report::JobRefused(JOB, refusal) = link.next().await.unwrap() else {
        panic!("not refused");
    };
    assert_eq!(refusal.cause, RefusalCause::NotFound);
    assert!(refusal.message.contains("ann: not executable"), "{}", refusal.message);
    // The same where each item names its own.
    link.open_job(crate::support::exec(&["{}"])).await;
    let (_, done) = link.run(1, format!("true\n{}\n", tool.display()).as_bytes()).await;
    assert_eq!(done.faults.len(), 1, "{done:?}");
    let fault = &done.faults[0];
    assert!(fault.index == 1 && fault.message.contains("not executable"), "{fault:?}");
}

#[tokio::test]
async fn a_root_worker_warns_unless_jobs_are_anothers() {
    if !needs_root("a_root_worker_warns_unless_jobs_are_anothers") {
        return;
    }
    for (args, warns) in [(vec![], true), (vec!["--run-as", "nobody"], false)] {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
        command.args(args).stderr(Stdio::from(log.reopen().unwrap()));
        let _worker = WorkerProcess::start_telling(&mut command);
        let told = std::fs::read_to_string(log.path()).unwrap();
        let warned = told.lines().filter(|line| line.contains("runs as root, and so do jobs"));
        assert_eq!(warned.count(), usize::from(warns), "{told}");
    }
}

#[tokio::test]
async fn a_worker_may_be_of_the_user_already() {
    let directory = tempfile::tempdir().unwrap();
    let me = if rustix::process::geteuid().is_root() {
        "nobody".to_owned()
    } else {
        rustix::process::geteuid().as_raw().to_string()
    };
    let mut command = command_of_nobody(directory.path());
    let worker = WorkerProcess::start_in(command.args(["--slots", "1", "--run-as", &me]));
    let mut link = worker.link().await;
    link.open_job(shell("[ $USER = $(id -un) ] && echo $1")).await;
    assert_eq!(link.run(1, b"a\n").await.0, b"a\n");
}

#[test]
fn who_cannot_be_become_is_told_before_anything_runs() {
    let directory = tempfile::tempdir().unwrap();
    let mut stranger = Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
    stranger.args(["--run-as", "no-such-user"]);
    let mut not_root = command_of_nobody(directory.path());
    not_root.args(["--run-as", "daemon"]);
    let mut root = Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
    root.args(["--run-as", "root"]);
    for (command, want) in [
        (&mut stranger, "--run-as no-such-user: there is no such user on this host"),
        (&mut not_root, "--run-as daemon: only root can run jobs as another user, and this is "),
        (&mut root, "--run-as root: that user is root itself"),
    ] {
        let (told, status) = fails(command);
        assert!(told.contains(want), "{told}");
        assert_eq!(status, Some(2), "{told}");
    }
}

#[test]
fn a_temporary_directory_that_is_not_the_users_is_told_before_anything_runs() {
    if !needs_root("a_temporary_directory_that_is_not_the_users_is_told_before_anything_runs") {
        return;
    }
    let closed = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
    let (told, status) = fails(command.args(["--run-as", "nobody"]).env("TMPDIR", closed.path()));
    assert!(told.contains("that user may not make directories in"), "{told}");
    assert!(told.contains("TMPDIR=DIR"), "{told}");
    assert_eq!(status, Some(2));
}
