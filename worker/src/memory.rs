//! Whether this host has memory for more work.

use sysinfo::System;
use widemap_common::units::size_shown;

/// Looks at the memory that is available, to the system and to the control group of this process, whichever is
/// less.
#[derive(Debug)]
pub(crate) struct MemoryWatch {
    system: System,
    least_bytes: u64,
    is_low: bool,
}

/// It has become low, or is enough again.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Change {
    /// Why the worker takes no work; nothing if it may again.
    pub(crate) why: Option<String>,
}

impl MemoryWatch {
    /// Work is taken while `least_bytes` are available: nothing asks for a default, and nothing looks for 0.
    pub(crate) fn new(least_bytes: Option<u64>) -> Option<Self> {
        let mut system = System::new().ok()?;
        system.refresh_memory();
        let total = memory(&system).0;
        let least_bytes = least_bytes.unwrap_or_else(|| LEAST_BYTES.min(total / 10));
        // Where the system tells nothing, nothing is known to be low.
        (least_bytes > 0 && total > 0).then_some(Self { system, least_bytes, is_low: false })
    }

    /// Looks.
    pub(crate) fn look(&mut self) -> Option<Change> {
        self.system.refresh_memory();
        self.judge(memory(&self.system).1)
    }

    fn judge(&mut self, available: u64) -> Option<Change> {
        // A quarter more, so that it does not go to and fro.
        let least = self.least_bytes + if self.is_low { self.least_bytes / 4 } else { 0 };
        let is_low = available < least;
        if is_low == std::mem::replace(&mut self.is_low, is_low) {
            return None;
        }
        let (available, least) = (size_shown(available), size_shown(self.least_bytes));
        let why =
            format!("{available} of memory are available, and it keeps {least} (--min-memory)");
        match is_low {
            true => tracing::warn!("no work is taken for now: {why}"),
            false => tracing::info!("there is memory again: work is taken"),
        }
        Some(Change { why: is_low.then_some(why) })
    }
}

/// Gives memory that was freed back to the system: the allocator of the C library keeps what it thinks it will
/// need again, which after a job of large items is much.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub(crate) fn give_back() {
    // SAFETY: it may be called at any time from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// See above: only that allocator can be asked.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}

/// What is kept where nothing else is said, if it is less than a tenth of all.
const LEAST_BYTES: u64 = 256 * 1024 * 1024;

/// Bytes in all, and bytes that are available.
fn memory(system: &System) -> (u64, u64) {
    let (total, available) = (system.total_memory(), system.available_memory());
    match system.cgroup_limits() {
        // Caches can be given back: only what processes hold counts.
        Some(limits) if limits.total_memory > 0 => {
            let of_group = limits.total_memory.saturating_sub(limits.rss);
            (total.min(limits.total_memory), available.min(of_group))
        }
        _ => (total, available),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_taken_again_when_there_is_clearly_enough() {
        let mut watch =
            MemoryWatch { system: System::new().unwrap(), least_bytes: 1000, is_low: false };
        assert_eq!(watch.judge(1000), None);
        let change = watch.judge(999).expect("it is low");
        assert!(change.why.is_some_and(|why| why.contains("--min-memory")));
        assert_eq!(watch.judge(0), None);
        assert_eq!(watch.judge(1249), None);
        assert_eq!(watch.judge(1250), Some(Change { why: None }));
        assert_eq!(watch.judge(1000), None);
    }

    #[test]
    fn this_host_has_some_memory_and_nothing_looks_for_none() {
        let mut watch = MemoryWatch::new(Some(1)).expect("the system tells");
        assert_eq!(watch.look(), None);
        assert!(MemoryWatch::new(Some(0)).is_none());
    }
}
