//! What a process that holds a key does against the programs that it starts: they run as its own
//! user more often than not, and would otherwise read the key out of its memory or an open file.

use std::io;

/// The number of the last of the standard streams.
const STANDARD_ERROR: i32 = 2;

/// Open files that are looked for where they cannot be listed.
const FILES_MAX: i32 = 4_096;

/// Closes the memory of this process to others of its user: they cannot trace it nor open its
/// `/proc/PID/{mem,environ,maps}`, and the system never writes it to a core dump.
///
/// A forked process is closed too; a program that it executes is an ordinary process again. Changing
/// the user of a process opens or closes it as the system is set up, so this is to be said once more
/// after that. Root is kept out by nothing. Where the system has no such thing, this does nothing.
///
/// # Errors
/// If the system refuses, which none is known to do.
pub fn close_memory() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}

/// Sees to it that no file that is open in this process, standard streams apart, is open in programs
/// that it starts from now on: what it was itself started with, sockets and locks of a service
/// manager say, is no business of theirs. Files that are opened later look after themselves.
pub fn close_files_on_exec() {
    let directory = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
    let numbers: Vec<i32> = match std::fs::read_dir(directory) {
        Ok(entries) => {
            let number = |entry: io::Result<std::fs::DirEntry>| {
                entry.ok()?.file_name().to_str()?.parse().ok()
            };
            entries.filter_map(number).filter(|number| *number > STANDARD_ERROR).collect()
        }
        // Where the open ones cannot be listed, all that can be are gone through.
        Err(_) => (STANDARD_ERROR + 1..FILES_MAX).collect(),
    };
    numbers.into_iter().for_each(close_on_exec);
}

#[allow(unsafe_code)]
fn close_on_exec(number: i32) {
    // SAFETY: the descriptor is borrowed for the two calls below alone, which neither close it nor
    // touch what it refers to; if it was closed meanwhile, they fail and change nothing.
    let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    if let Ok(flags) = rustix::io::fcntl_getfd(file) {
        let _ = rustix::io::fcntl_setfd(file, flags | rustix::io::FdFlags::CLOEXEC);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_closed_process_can_still_read_of_itself_and_starts_ordinary_ones() {
        use rustix::process::{DumpableBehavior, dumpable_behavior};
        close_memory().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() > 0);
        assert!(std::fs::read_dir("/proc/self/task").unwrap().count() > 0);
        assert!(std::env::current_exe().unwrap().is_absolute());
        // What belongs to root is closed: that of the program that was executed is not.
        let owner = std::process::Command::new("stat")
            .args(["--format=%u", "/proc/self/environ"])
            .output()
            .unwrap();
        let me = rustix::process::geteuid().as_raw().to_string();
        assert_eq!(String::from_utf8_lossy(&owner.stdout).trim(), me);
    }

    #[test]
    fn an_inherited_file_is_not_passed_on() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let flags = |file: &dyn std::os::fd::AsFd| rustix::io::fcntl_getfd(file.as_fd()).unwrap();
        assert!(flags(&read).is_empty());
        close_files_on_exec();
        assert_eq!(flags(&read), rustix::io::FdFlags::CLOEXEC);
        assert!(!flags(&rustix::stdio::stderr()).contains(rustix::io::FdFlags::CLOEXEC));
    }
}
