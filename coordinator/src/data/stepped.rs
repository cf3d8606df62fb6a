//! A merge without threads: its owner lets the sink and the spill work by hand, into files that lie in
//! memory. It is the same code in the same order each time, which is what a simulation needs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::format::{Format, Shape};
use super::merge::{Merge, MergeBounds};
use super::sink::{Sink, SinkConfig, SinkSteps, SinkTarget};
use super::spill::{Notify, Spill, SpillSteps};

/// See the file's head.
pub struct SteppedMerge {
    /// The merge itself, as the driver uses it.
    pub merge: Merge,
    sink: SinkSteps,
    spill: SpillSteps,
    output: File,
    output_bytes: u64,
    notified: Arc<AtomicBool>,
}

/// What a merge without threads is made with.
#[derive(Clone, Copy, Debug)]
pub struct SteppedConfig {
    /// What may wait in memory.
    pub memory_bytes_max: u64,
    /// What may wait on disk.
    pub spill_bytes_max: u64,
    /// The bounds inside.
    pub bounds: MergeBounds,
    /// What the bytes of results are.
    pub shape: Shape,
    /// Whether the disk takes nothing.
    pub is_disk_full: bool,
}

impl SteppedMerge {
    /// A merge that writes raw results into memory.
    ///
    /// # Errors
    /// If there can be no file in memory.
    pub fn new(config: SteppedConfig) -> io::Result<Self> {
        let SteppedConfig { memory_bytes_max, spill_bytes_max, bounds, shape, .. } = config;
        let notified = Arc::new(AtomicBool::new(false));
        let bell = Arc::clone(&notified);
        let notify: Notify = Arc::new(move || bell.store(true, Ordering::Relaxed));
        let disk = memory_file(config.is_disk_full)?;
        let (spill, spill_steps) =
            Spill::stepped(disk, spill_bytes_max, bounds.spill_queue_bytes, Arc::clone(&notify));
        let output = memory_file(false)?;
        let sink = SinkConfig {
            target: SinkTarget::file(output.try_clone()?, "memory".to_owned()),
            format: Format::Raw { fill: None },
            shape,
            separator: b'\n',
            is_hashed: false,
            recorder: None,
            failures: None,
            function: String::new(),
        };
        let (sink, sink_steps) = Sink::stepped(sink, bounds.sink_queue_bytes, notify);
        let mut merge = Merge::new(true, memory_bytes_max, spill, sink);
        merge.bounds = bounds;
        let (sink, spill) = (sink_steps, spill_steps);
        Ok(Self { merge, sink, spill, output, output_bytes: 0, notified })
    }

    /// Does the next thing that the sink's thread would do. Whether there was something.
    pub fn step_sink(&mut self) -> bool {
        self.sink.step()
    }

    /// Does the next thing that the spill's thread would do. Whether there was something.
    pub fn step_spill(&mut self) -> bool {
        self.spill.step()
    }

    /// Whether the driver would have been woken since the last time.
    pub fn take_notified(&mut self) -> bool {
        self.notified.swap(false, Ordering::Relaxed)
    }

    /// Appends what was written since the last time.
    ///
    /// # Errors
    /// If the file in memory cannot be read.
    pub fn read_output(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        let length = self.output.metadata()?.len();
        let new = usize::try_from(length - self.output_bytes).map_err(io::Error::other)?;
        let start = into.len();
        into.resize(start + new, 0);
        self.output.read_exact_at(&mut into[start..], self.output_bytes)?;
        self.output_bytes = length;
        Ok(())
    }
}

fn memory_file(is_full: bool) -> io::Result<File> {
    let file = memfd_create("widemap", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    if is_full {
        fcntl_add_seals(&file, SealFlags::GROW)?;
    }
    Ok(file.into())
}
