//! The end of everything that the spawner started, when the worker is gone: also of processes that
//! left their group or session.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};

/// How long the spawner tries to end what cannot be ended: a process that hangs in the kernel.
const GIVE_UP: Duration = Duration::from_secs(5);

/// The pause between two looks at what is left.
const PAUSE: Duration = Duration::from_millis(2);

/// Kills every child of this process until there is none. An orphan of a killed child becomes a
/// child of this process, which is its subreaper, and its turn comes with the next look.
pub(super) fn end_all() {
    let give_up = Instant::now() + GIVE_UP;
    loop {
        for child in children() {
            // It may have ended by itself meanwhile.
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        if reap_all() || Instant::now() > give_up {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Reaps what has ended; whether there is no child left.
fn reap_all() -> bool {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

/// The children of this process. Where there is no `/proc`, there is no subreaper either, and the
/// groups were killed before.
fn children() -> Vec<Pid> {
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid: &i32| parent_of(pid) == Some(me))
        .filter_map(Pid::from_raw)
        .collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    parent_in_stat(&stat)
}

/// The second field after the name, which stands in parentheses and may hold any bytes.
fn parent_in_stat(stat: &[u8]) -> Option<i32> {
    let name_end = memchr::memrchr(b')', stat)?;
    let rest = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent_in_stat(b"42 (a) b) (c) S 7 42 42 0"), Some(7));
        assert_eq!(parent_in_stat(b"42 (sh) Z 1 1"), Some(1));
        assert_eq!(parent_in_stat(b""), None);
    }
}
