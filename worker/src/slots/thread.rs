//! The thread of one slot: takes a task, runs it, hands in what became of it, and takes the next.

use std::sync::Arc;

use super::{Shared, SlotControl, SlotEvent};
use crate::runtime::{self, Workbench};
use crate::spawner::SlotChannel;

/// Runs tasks until the worker ends.
pub(super) fn run(shared: &Shared, control: &Arc<SlotControl>, channel: Option<SlotChannel>) {
    // A panic here is a bug, and an attempt that vanishes would hang its job: the worker ends.
    let _ends_the_worker = EndOnPanic(shared);
    let slot = control.index as usize;
    let mut bench = Workbench::new(control.clone(), channel, shared.timers);
    let mut ended = None;
    while let Some((lane, task)) = shared.next(slot, ended.take()) {
        let attempt = task.attempt;
        let done = match runtime::run(&mut bench, shared, lane, task) {
            Ok(done) => done,
            Err(gone) => {
                shared.fail(&gone.to_string());
                None
            }
        };
        ended = Some((lane, SlotEvent::Ended { attempt, done }));
    }
}

struct EndOnPanic<'a>(&'a Shared);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("a slot's thread panicked, which is a bug in widemap-worker");
        }
    }
}
