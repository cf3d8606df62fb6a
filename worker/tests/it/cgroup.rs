//! Control groups: what an item started ends with it, wherever it went.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use widemap_common::ids::AttemptId;
use widemap_proto::session::{CoordinatorHello, Order, OutputGrant, Report};

use crate::support::{
    Link, WorkerProcess, assign, eventually, fails, hello, lives, needs_root, shell, text, unmet,
};

/// A group that was made for a test, and removed after it.
struct Group(PathBuf);

impl Group {
    /// Nothing, and a line that says so, where this system has no control groups or does not give them.
    fn new(test: &str) -> Option<Self> {
        if !needs_root(test) {
            return None;
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounted = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let point = mounted.map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()));
        let made = point.and_then(|point| {
            let path = point.join(format!("widemap-test-{}-{test}", std::process::id()));
            std::fs::create_dir(&path).ok()?;
            Some(Self(path))
        });
        let group = made.filter(|group| group.0.join("cgroup.kill").exists());
        if group.is_none() {
            unmet(test, "control groups that it may make");
        }
        group
    }

    fn worker(&self, options: &[&str]) -> WorkerProcess {
        let below = ["--slots", "2", "--cgroup", self.0.to_str().unwrap()];
        WorkerProcess::start(&[&below[..], options].concat())
    }

    /// What is below it.
    fn entries(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        for _ in 0..200 {
            for below in self.entries() {
                for slot in std::fs::read_dir(&below).into_iter().flatten().flatten() {
                    let _ = std::fs::remove_dir(slot.path());
                }
                let _ = std::fs::remove_dir(below);
            }
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// A link whose worker waits for no word of its coordinator.
async fn patient_link(worker: &WorkerProcess) -> Link {
    let greeting = CoordinatorHello { linger_ms: 600_000, ..hello(1, 1) };
    let link = Link::open(worker.channel().await, greeting).await.unwrap();
    link.send(vec![Order::OutputGrant(OutputGrant { total: u64::MAX, urgent: None })]).await;
    link
}

/// A process that leaves its group and session, is deaf, and writes who it is.
fn stray(file: &Path) -> String {
    let deaf = "trap \"\" TERM HUP; echo $$ >> $0; sleep 600; sleep 600";
    format!("setsid sh -c '{deaf}' {} > /dev/null 2>&1 &", file.display())
}

fn strays(file: &Path) -> Vec<u32> {
    let told = std::fs::read_to_string(file).unwrap_or_default();
    told.lines().filter_map(|line| line.parse().ok()).collect()
}

#[tokio::test]
async fn what_an_item_left_behind_ends_with_it() {
    let Some(group) = Group::new("what_an_item_left_behind_ends_with_it") else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("strays");
    let wait = format!("until [ -s {} ]; do sleep 0.01; done", file.display());
    let mut worker = group.worker(&["--drain-timeout", "100ms"]);
    let mut link = patient_link(&worker).await;
    link.open_job(shell(&format!("{} {wait}; echo $1", stray(&file)))).await;
    for attempt in 1..=3 {
        let _ = std::fs::remove_file(&file);
        let (output, done) = link.run(attempt, b"x\n").await;
        assert_eq!((text(&output), &done.faults[..]), ("x\n", &[][..]));
        let strays = strays(&file);
        assert_eq!(strays.len(), 1);
        eventually("the stray has ended", || !strays.iter().copied().any(lives)).await;
    }
    assert_eq!(group.entries().len(), 1);
    worker.signal(Signal::TERM);
    worker.wait();
    assert!(group.entries().is_empty(), "nothing is left of the worker");
}

#[tokio::test]
async fn a_cancelled_item_takes_along_what_has_left_its_session() {
    let test = "a_cancelled_item_takes_along_what_has_left_its_session";
    let Some(group) = Group::new(test) else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("strays");
    let mut worker = group.worker(&[]);
    let mut link = patient_link(&worker).await;
    link.open_job(shell(&format!("{} sleep 600", stray(&file)))).await;
    link.send(vec![assign(1, 0, b"x\n")]).await;
    eventually("the stray runs", || strays(&file).len() == 1).await;
    link.send(vec![Order::Cancel(AttemptId(1))]).await;
    link.until(|report| (report == Report::Cancelled(AttemptId(1))).then_some(())).await;
    eventually("the stray has ended", || !strays(&file).into_iter().any(lives)).await;
    // The spawner puts away what is left of a worker that had no time to.
    link.send(vec![assign(2, 0, b"y\n")]).await;
    eventually("another runs", || strays(&file).len() == 2).await;
    worker.signal(Signal::KILL);
    worker.wait();
    eventually("nothing runs", || !strays(&file).into_iter().any(lives)).await;
    eventually("nothing is left of the worker", || group.entries().is_empty()).await;
}

#[tokio::test]
async fn another_user_s_items_are_in_groups_too() {
    let Some(group) = Group::new("another_user_s_items_are_in_groups_too") else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("strays");
    std::fs::write(&file, "").unwrap();
    for path in [directory.path(), &file] {
        let mut open = Command::new("chmod");
        assert!(open.arg("0777").arg(path).status().unwrap().success());
    }
    let wait = format!("until [ -s {} ]; do sleep 0.01; done", file.display());
    let worker = group.worker(&["--run-as", "nobody"]);
    let mut link = patient_link(&worker).await;
    link.open_job(shell(&format!("{} {wait}; id -un", stray(&file)))).await;
    let (output, done) = link.run(1, b"x\n").await;
    assert_eq!((text(&output), &done.faults[..]), ("nobody\n", &[][..]));
    eventually("the stray has ended", || !strays(&file).into_iter().any(lives)).await;
}

/// As a service manager does it: the worker is started in a group that is marked as its own.
#[tokio::test]
async fn a_worker_in_a_delegated_group_divides_it_by_itself() {
    let test = "a_worker_in_a_delegated_group_divides_it_by_itself";
    let Some(group) = Group::new(test) else { return };
    let mark = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&group.0, "trusted.delegate", b"1", mark).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("strays");
    let wait = format!("until [ -s {} ]; do sleep 0.01; done", file.display());
    let enter = format!("echo 0 > {}/cgroup.procs && exec \"$@\"", group.0.display());
    let mut command = Command::new("sh");
    command.args(["-c", &enter, "sh", env!("CARGO_BIN_EXE_widemap-worker")]);
    command.args(["--no-mdns", "--listen", "127.0.0.1:0", "--slots", "2"]);
    let worker = WorkerProcess::start_in(&mut command);
    let mut link = patient_link(&worker).await;
    link.open_job(shell(&format!("{} {wait}; echo $1", stray(&file)))).await;
    let (output, done) = link.run(1, b"x\n").await;
    assert_eq!((text(&output), &done.faults[..]), ("x\n", &[][..]));
    eventually("the stray has ended", || !strays(&file).into_iter().any(lives)).await;
    let mut names: Vec<_> = group.entries();
    names.sort();
    let own = group.0.join(format!("widemap-{}", worker.pid()));
    assert_eq!(names, [own, group.0.join("widemap-main")]);
}

#[test]
fn what_is_no_control_group_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_widemap-worker"));
    let (said, status) = fails(worker.arg("--cgroup").arg(directory.path()));
    assert_eq!(status, Some(2), "{said}");
    let path = directory.path().display().to_string();
    assert!(said.contains(&path) && said.contains("--cgroup off"), "{said}");
}
