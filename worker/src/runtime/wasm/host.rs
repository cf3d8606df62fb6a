//! Looks after a module while it runs: brings its input, takes what it prints, and stops it when its time is
//! over or nobody wants its result.

use std::future::poll_fn;
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Interval;

use super::TICK;
use super::guest::Ended;
use super::stdio::Stdio;
use crate::runtime::process::Feed;
use crate::slots::{AttemptOutput, SlotControl, TaskInput};

/// See the file's head.
pub(super) struct Host<'a, 'b> {
    control: &'a Arc<SlotControl>,
    stdio: &'a Stdio,
    output: &'a mut AttemptOutput<'b>,
    feed: Option<Feed>,
    bounds: Bounds,
    cpu_began: Duration,
    tick: Interval,
}

/// When a module is stopped.
pub(super) struct Bounds {
    pub(super) deadline: Option<Instant>,
    pub(super) cpu_seconds: Option<NonZeroU32>,
}

impl<'a, 'b> Host<'a, 'b> {
    pub(super) fn new(
        control: &'a Arc<SlotControl>,
        stdio: &'a Stdio,
        output: &'a mut AttemptOutput<'b>,
        input: TaskInput,
        bounds: Bounds,
    ) -> Self {
        let (feed, tick) = (Some(Feed::new(input)), tokio::time::interval(TICK));
        Self { control, stdio, output, feed, bounds, cpu_began: cpu_time(), tick }
    }

    /// Sees the module to its end.
    pub(super) async fn see_through(&mut self, guest: impl Future<Output = Ended>) -> Ended {
        let mut guest = pin!(guest);
        poll_fn(|context| self.turn(guest.as_mut(), context)).await
    }

    fn turn(
        &mut self,
        guest: Pin<&mut impl Future<Output = Ended>>,
        context: &mut Context<'_>,
    ) -> Poll<Ended> {
        if self.control.is_cancelled() {
            return Poll::Ready(Ended::Cancelled);
        }
        if self.bounds.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Poll::Ready(Ended::TimedOut);
        }
        let limit = self.bounds.cpu_seconds.map(|limit| Duration::from_secs(limit.get().into()));
        if limit.is_some_and(|limit| cpu_time() >= self.cpu_began + limit) {
            return Poll::Ready(Ended::OutOfCpuTime);
        }
        self.bring_input();
        if let Poll::Ready(ended) = guest.poll(context) {
            self.stdio.take_output(&mut self.output.buffer);
            self.output.hand_over();
            return Poll::Ready(ended);
        }
        let is_full = self.output.is_full();
        if !is_full {
            self.stdio.take_output(&mut self.output.buffer);
            self.output.hand_over();
        }
        self.bring_input();
        if self.stdio.is_starved() || is_full && self.stdio.is_held_back() {
            let begun = Instant::now();
            self.control.wait(Some(begun + TICK));
            if let Some(deadline) = &mut self.bounds.deadline {
                // What the module waits for the network is not its own time.
                *deadline += begun.elapsed();
            }
            // Whatever else it waits for has its turn, too.
            context.waker().wake_by_ref();
        }
        while self.tick.poll_tick(context).is_ready() {}
        Poll::Pending
    }

    fn bring_input(&mut self) {
        let Some(feed) = self.feed.as_mut().filter(|_| self.stdio.has_no_input()) else { return };
        let more = feed.fill(self.control);
        feed.take_parts(|part| self.stdio.feed(part));
        if !more {
            self.stdio.end_input();
            self.feed = None;
        }
    }
}

/// The processor time of this thread, which a module has to itself while it runs.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}
