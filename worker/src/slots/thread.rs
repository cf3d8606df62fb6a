//! The thread of one slot: takes a task, runs it, hands in what became of it, and takes the next.

use std::sync::Arc;

use super::{Next, Shared, SlotControl, SlotEvent};
use crate::runtime::{self, Workbench};
use crate::spawner::SlotChannel;

/// Runs tasks until the worker ends.
pub(super) fn run(shared: &Shared, control: &Arc<SlotControl>, channel: Option<SlotChannel>) {
    // A panic here is a bug, and an attempt that vanishes would hang its job: the worker ends.
    let _ends_the_worker = EndOnPanic(shared);
    let slot = control.index as usize;
    let mut bench = Workbench::new(control.clone(), channel, shared.timers);
    let mut ended = None;
    loop {
        let (lane, task) = match shared.next(slot, ended.take(), bench.kept_job()) {
            Next::Task(lane, task) => (lane, task),
            Next::LetGo => {
                match bench.let_go() {
                    Ok(Some(lane)) => shared.nudge(lane),
                    Ok(None) => {}
                    Err(gone) => shared.fail(&gone.to_string()),
                }
                continue;
            }
            Next::End => break,
        };
        let attempt = task.attempt;
        if task.is_probe() {
            match runtime::probe(&mut bench, shared, lane, &task) {
                Ok(Some(result)) => {
                    shared.tell(lane, SlotEvent::Probed { job: task.job.id, result });
                }
                Ok(None) => {}
                Err(gone) => shared.fail(&gone.to_string()),
            }
            ended = Some((lane, SlotEvent::Ended { attempt, done: None }));
            continue;
        }
        let done = match runtime::run(&mut bench, shared, lane, task) {
            Ok(done) => done,
            Err(gone) => {
                shared.fail(&gone.to_string());
                None
            }
        };
        ended = Some((lane, SlotEvent::Ended { attempt, done }));
    }
    // A spawner that is gone has ended it, too.
    let _ = bench.let_go();
}

struct EndOnPanic<'a>(&'a Shared);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("a slot's thread panicked, which is a bug in widemap-worker");
        }
    }
}
