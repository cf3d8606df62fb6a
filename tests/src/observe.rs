//! What can be seen of a process from outside: its memory, its time, who else is there.

use std::time::Duration;

/// The most memory that a process has had so far (VmHWM).
/// Nothing if it has ended.
///
/// # Panics
/// If the kernel tells it in another form.
#[must_use]
pub fn memory_peak_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let number = line.trim().strip_suffix(" kB").expect("in kB");
    Some(number.parse::<u64>().expect("a number") * 1024)
}

/// The processor time that a process has used so far.
///
/// # Panics
/// If it is gone.
#[must_use]
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    // After the name, which may hold anything: state is the first field, utime and stime the 12th.
    let (_, fields) = stat.rsplit_once(") ").expect("the name is in parentheses");
    let ticks: u64 =
        fields.split(' ').skip(11).take(2).map(|n| n.parse::<u64>().expect("a number")).sum();
    // Linux tells it in hundredths of a second, whatever its own clock does.
    Duration::from_millis(ticks * 10)
}

/// Processes of commands whose line holds this text; not those of widemap itself.
///
/// # Panics
/// If there is no `/proc`.
#[must_use]
pub fn processes_with(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("Linux has it").flatten() {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(text) && !line.contains("widemap") {
            found.push(line);
        }
    }
    found
}

/// The memory that a process has now (VmRSS).
///
/// # Panics
/// If it is gone.
#[must_use]
pub fn memory_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    let number = line.trim().strip_suffix(" kB").expect("in kB");
    number.parse::<u64>().expect("a number") * 1024
}
