//! What was read once, in its order, and will hardly be read again soon makes room in memory for what will.
//! Left to itself the system would keep gigabytes of inputs and results, and take pages for them from
//! everything else on the machine, each of which has to be had and cleared first.

use std::fs::File;

/// Reading lets go of so much at a time.
const STEP_BYTES: u64 = 4 * 1024 * 1024;

/// No system of ours has longer pages.
#[cfg(target_os = "linux")]
const PAGE_BYTES_MAX: u64 = 64 * 1024;

/// A file that is read from its begin to its end, once.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    let_go_bytes: u64,
}

impl Passed {
    /// So much of the file was read; `keep_bytes` of it may not be on the disk yet, or be wanted again soon.
    pub(crate) fn read_to(&mut self, file: &File, read_bytes: u64, keep_bytes: u64) {
        let end = read_bytes.saturating_sub(keep_bytes);
        if end >= self.let_go_bytes + STEP_BYTES {
            let_go(file, self.let_go_bytes, end - self.let_go_bytes);
            self.let_go_bytes = end;
        }
    }
}

/// Lets go of the pages of a piece of a file. Those that are not on the disk yet stay.
#[cfg(target_os = "linux")]
pub(crate) fn let_go(file: &File, offset: u64, length: u64) {
    use std::num::NonZeroU64;

    use rustix::fs::{Advice, fadvise};

    // From the begin of a page on: whoever read what is before has let the rest of it stay.
    let begin = offset - offset % PAGE_BYTES_MAX;
    let Some(length) = NonZeroU64::new(offset + length - begin) else { return };
    // Advice: where the system does not take it, it keeps what it likes.
    let _ = fadvise(file, begin, Some(length), Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn let_go(_: &File, _: u64, _: u64) {}
