//! Whether a process waits for input, as the kernel tells of it (proc(5), `/proc/PID/syscall`).

use rustix::process::Pid;

/// Whether it is known that a process is blocked in a read of its standard input, and that nothing else works
/// for it: it has no other thread and no child. What the system does not tell is not known.
#[cfg(target_os = "linux")]
pub(super) fn waits_for_input(pid: Pid) -> bool {
    let pid = pid.as_raw_nonzero();
    let tell = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let is_alone = || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        tasks == 1 && tell(&format!("task/{pid}/children")).is_some_and(|pids| pids.is_empty())
    };
    // Who has been alone and waits has started nobody since.
    is_alone() && tell("syscall").is_some_and(|call| reads_standard_input(&call))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn waits_for_input(_pid: Pid) -> bool {
    false
}

/// The number of the call that a process is blocked in, and its arguments; one that runs says so instead.
#[cfg(target_os = "linux")]
fn reads_standard_input(call: &str) -> bool {
    let mut words = call.split_ascii_whitespace();
    let is_read = words.next().and_then(|number| number.parse().ok()) == Some(libc::SYS_read);
    is_read && words.next() == Some("0x0")
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    /// Whether a program comes to wait for input within a second.
    fn comes_to_wait(program: &str, input: &str) -> bool {
        let mut child = Command::new("sh")
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.as_mut().unwrap().write_all(input.as_bytes()).unwrap();
        let give_up = Instant::now() + Duration::from_secs(1);
        let mut waits = false;
        while !waits && Instant::now() < give_up {
            waits = waits_for_input(Pid::from_child(&child));
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(child.stdin.take());
        child.kill().unwrap();
        child.wait().unwrap();
        waits
    }

    #[test]
    fn who_waits_for_input_is_known_and_who_does_anything_else_is_not_taken_for_it() {
        assert!(comes_to_wait("exec cat", "a\n"));
        assert!(comes_to_wait("exec tr a-z A-Z", "a\n"));
        assert!(!comes_to_wait("read line; exec sleep 3", "a\n"));
        assert!(!comes_to_wait("while :; do :; done", ""));
        // Somebody else works for it.
        assert!(!comes_to_wait("sleep 3 & exec cat", "a\n"));
        assert!(!comes_to_wait("cat | cat", "a\n"));
    }

    #[test]
    fn calls_are_told_from_each_other() {
        let read = libc::SYS_read;
        assert!(reads_standard_input(&format!("{read} 0x0 0x7f 0x1000 0x0 0x0 0x0 0x7ffd 0x7f\n")));
        assert!(!reads_standard_input(&format!(
            "{read} 0x3 0x7f 0x1000 0x0 0x0 0x0 0x7ffd 0x7f\n"
        )));
        for other in ["running\n", "-1 0x7ffd 0x7f\n", "", "9999 0x0\n"] {
            assert!(!reads_standard_input(other), "{other}");
        }
    }
}
