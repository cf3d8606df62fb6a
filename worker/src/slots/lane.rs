//! One session's tasks: those that wait, in order, and what the slots tell of those that run.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use widemap_common::ids::AttemptId;
use widemap_proto::session::Progress;

use super::{InputMeter, LaneId, SlotEvent, Slots, Task, TaskInput};

/// Where a task stands in its lane: its number since the lane was opened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ticket(u64);

/// A session's end of its lane. Dropping it takes back what waits and cancels what runs.
pub(crate) struct Lane {
    slots: Arc<Slots>,
    id: LaneId,
    /// What the slots have taken; its notification also tells that there are events.
    pub(crate) meter: Arc<InputMeter>,
}

/// A lane as the slots see it.
pub(super) struct LaneState {
    queue: VecDeque<Option<Task>>,
    /// The ticket of the queue's front.
    front: u64,
    /// Tasks in the queue that have not been taken back.
    pub(super) queued: usize,
    pub(super) running: usize,
    /// The slots that those take.
    pub(super) taken: u32,
    /// The slots that the session may count on.
    pub(super) share: u32,
    /// Nothing but the urgent task may start.
    paused: bool,
    /// Nothing starts from then on: a worker that stood still for long wakes up with its queue full of
    /// what runs elsewhere by now.
    lease_end: Option<Instant>,
    urgent: Option<Ticket>,
    pub(super) closed: bool,
    events: Vec<SlotEvent>,
    meter: Arc<InputMeter>,
}

impl Lane {
    pub(super) fn open(slots: Arc<Slots>) -> Self {
        let meter = Arc::new(InputMeter::default());
        let lane = LaneState {
            queue: VecDeque::new(),
            front: 0,
            queued: 0,
            running: 0,
            taken: 0,
            share: 1,
            paused: false,
            lease_end: None,
            urgent: None,
            closed: false,
            events: Vec::new(),
            meter: meter.clone(),
        };
        let id = {
            let mut state = slots.shared.lock();
            let free = state.lanes.iter().position(Option::is_none);
            let index = free.unwrap_or_else(|| {
                state.lanes.push(None);
                state.lanes.len() - 1
            });
            state.lanes[index] = Some(lane);
            LaneId(index)
        };
        Self { slots, id, meter }
    }

    /// The ticket that the first of the next tasks gets; those after it follow.
    pub(crate) fn next_ticket(&self) -> Ticket {
        self.with(|lane| Ticket(lane.front + lane.queue.len() as u64))
    }

    /// Lets tasks wait for a slot, and empties `tasks`.
    pub(crate) fn push(&self, tasks: &mut Vec<Task>) {
        if tasks.is_empty() {
            return;
        }
        let shared = &self.slots.shared;
        let mut state = shared.lock();
        let added = tasks.len();
        let lane = state.lane(self.id).expect("an open lane has a state");
        lane.queued += added;
        lane.queue.extend(tasks.drain(..).map(Some));
        self.slots.start_threads(&mut state);
        let idle = state.idle;
        drop(state);
        for _ in 0..added.min(idle) {
            shared.work.notify_one();
        }
    }

    /// Takes a task back, unless it has started.
    pub(crate) fn take_back(&self, ticket: Ticket) -> Option<Task> {
        let mut state = self.slots.shared.lock();
        let task = state.lane(self.id)?.remove(ticket)?;
        // What waited behind one that takes several slots may have room.
        if task.slots() > 1 {
            self.slots.start_threads(&mut state);
            self.slots.shared.work.notify_all();
        }
        Some(task)
    }

    /// Moves what the slots told into `events`, which is empty.
    pub(crate) fn collect(&self, events: &mut Vec<SlotEvent>) {
        let mut state = self.slots.shared.lock();
        let lane = state.lane(self.id).expect("an open lane has a state");
        std::mem::swap(&mut lane.events, events);
        // Where a task of several slots has ended there may be room for more threads than one.
        if lane.queued > 0 {
            self.slots.start_threads(&mut state);
        }
    }

    /// Cancels an attempt if it runs.
    pub(crate) fn cancel(&self, attempt: AttemptId) {
        let state = self.slots.shared.lock();
        let runs = |running: &super::Running| running.attempt == attempt && running.lane == self.id;
        let slot = state.running.iter().position(|running| running.as_ref().is_some_and(runs));
        if let Some(slot) = slot {
            self.slots.shared.controls[slot].cancel();
        }
    }

    /// How far each running attempt is.
    pub(crate) fn progress(&self, into: &mut Vec<Progress>) {
        let state = self.slots.shared.lock();
        let now = Instant::now();
        for (running, control) in state.running.iter().zip(&self.slots.shared.controls) {
            let Some(running) = running.as_ref().filter(|running| running.lane == self.id) else {
                continue;
            };
            let running_for = now.saturating_duration_since(running.started);
            into.push(Progress {
                attempt: running.attempt,
                item: control.item.load(Ordering::Relaxed),
                running_us: u64::try_from(running_for.as_micros()).unwrap_or(u64::MAX),
                stalled: control.stalled.load(Ordering::Relaxed),
            });
        }
    }

    /// The slots that the session may count on, at least one.
    pub(crate) fn set_share(&self, slots: u32) {
        self.with(|lane| lane.share = slots.max(1));
    }

    /// Whether only the urgent task may start.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.with(|lane| lane.paused = paused);
        if !paused {
            self.slots.shared.work.notify_all();
        }
    }

    /// The task that starts before any other.
    pub(crate) fn set_urgent(&self, ticket: Option<Ticket>) {
        // A task that takes several slots may hold up others while slots are idle.
        let wakes = self.with(|lane| {
            lane.urgent = ticket;
            lane.paused || lane.next_slots().is_some()
        });
        if wakes {
            self.slots.shared.work.notify_all();
        }
    }

    /// When the right of its tasks to start ends; they may start at any time without it.
    pub(crate) fn set_lease_end(&self, lease_end: Option<Instant>) {
        let mut state = self.slots.shared.lock();
        let lane = state.lane(self.id).expect("an open lane has a state");
        lane.lease_end = lease_end;
        let wakes = lane.queued > 0 && state.idle > 0;
        drop(state);
        if wakes {
            self.slots.shared.work.notify_all();
        }
    }

    /// Slots that keep something for a job which is closed let go of it.
    pub(crate) fn rouse(&self) {
        // Under the lock, so that no slot goes to sleep between its look and this.
        drop(self.slots.shared.lock());
        self.slots.shared.work.notify_all();
    }

    fn with<T>(&self, what: impl FnOnce(&mut LaneState) -> T) -> T {
        what(self.slots.shared.lock().lane(self.id).expect("an open lane has a state"))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut state = self.slots.shared.lock();
        let mine = |running: &super::Running| running.lane == self.id;
        for (running, control) in state.running.iter().zip(&self.slots.shared.controls) {
            if running.as_ref().is_some_and(mine) {
                control.cancel();
            }
        }
        let lane = state.lane(self.id).expect("an open lane has a state");
        lane.closed = true;
        lane.queued = 0;
        let left = std::mem::take(&mut lane.queue);
        if lane.running == 0 {
            state.lanes[self.id.0] = None;
        }
        // A job's directory is removed with its last task: not under the lock.
        drop(state);
        drop(left);
    }
}

impl LaneState {
    /// Keeps an event for the session; whom to wake if it was the first.
    pub(super) fn push_event(&mut self, event: SlotEvent) -> Option<Arc<InputMeter>> {
        if self.closed {
            return None;
        }
        let first = self.events.is_empty();
        self.events.push(event);
        first.then(|| self.meter.clone())
    }

    pub(super) fn meter(&self) -> Arc<InputMeter> {
        self.meter.clone()
    }

    pub(super) fn has_next(&self) -> bool {
        let waits = if self.paused { self.urgent_waits() } else { self.queued > 0 };
        waits && self.lease_end.is_none_or(|end| Instant::now() < end)
    }

    /// The slots that the task takes which starts next.
    pub(super) fn next_slots(&self) -> Option<u32> {
        let task = match self.urgent.and_then(|ticket| self.position(ticket)) {
            Some(at) if self.urgent_waits() => self.queue.get(at)?.as_ref(),
            _ if self.paused => None,
            _ => self.queue.iter().flatten().next(),
        };
        task.map(Task::slots)
    }

    /// The slots that each of the tasks takes that wait, in order.
    pub(super) fn queued_slots(&self) -> impl Iterator<Item = u32> {
        self.queue.iter().flatten().map(Task::slots)
    }

    /// Takes the task that starts next.
    pub(super) fn next(&mut self) -> Option<Task> {
        let task = match self.urgent {
            Some(ticket) if self.urgent_waits() => self.remove(ticket)?,
            _ if self.paused => return None,
            _ => self.pop()?,
        };
        self.running += 1;
        if let TaskInput::Whole(input) = &task.input {
            self.meter.take(input.len());
        }
        Some(task)
    }

    fn pop(&mut self) -> Option<Task> {
        while let Some(entry) = self.queue.pop_front() {
            self.front += 1;
            if let Some(task) = entry {
                self.queued -= 1;
                return Some(task);
            }
        }
        None
    }

    fn urgent_waits(&self) -> bool {
        self.urgent.is_some_and(|ticket| {
            self.position(ticket).and_then(|at| self.queue.get(at)).is_some_and(Option::is_some)
        })
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Task> {
        let at = self.position(ticket)?;
        let task = self.queue.get_mut(at)?.take()?;
        self.queued -= 1;
        Some(task)
    }

    fn position(&self, ticket: Ticket) -> Option<usize> {
        usize::try_from(ticket.0.checked_sub(self.front)?).ok()
    }
}

impl Ticket {
    /// The ticket of the task that is pushed `count` after this one.
    pub(crate) fn after(self, count: usize) -> Self {
        Self(self.0 + count as u64)
    }
}
