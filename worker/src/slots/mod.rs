//! The slots: a thread each, started when first needed. Each session has a lane of tasks; a free
//! slot takes the next task of the lane that has the fewest running for its share. A task that takes
//! several slots has one thread, waits until so many are free, and lets nothing overtake it.
//!
//! All that a slot and a session exchange for an attempt goes under one short lock, and the session
//! is woken only when nothing of its lane waited to be collected.

mod control;
mod input;
mod lane;
mod output;
mod thread;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::time::Timers;
use widemap_proto::session::Done;

pub(crate) use control::{SlotControl, timespec};
pub(crate) use input::{InputMeter, InputStream, Taken};
pub(crate) use lane::{Lane, Ticket};
pub(crate) use output::{AttemptOutput, Flow, OutputBuffers};

use crate::job::Job;
use crate::spawner::{SlotChannel, Spawner, SpawnerProcess};
use lane::LaneState;

/// How long the end of the worker waits for slots that are held up in a user's function.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// The position of a lane in the table of lanes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LaneId(usize);

/// An attempt to run.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) attempt: AttemptId,
    pub(crate) job: Arc<Job>,
    pub(crate) range: ItemRange,
    pub(crate) input: TaskInput,
}

impl Task {
    /// Finds out whether a job can run here: no attempt, and nothing of it is told to the coordinator as one.
    pub(crate) fn probe(job: Arc<Job>) -> Self {
        let attempt = Self::probe_id(job.id);
        let range = ItemRange::new(0, 1);
        Self { attempt, job, range, input: TaskInput::Whole(Bytes::new()) }
    }

    /// What a probe of a job is called: coordinators count attempts from the other end.
    pub(crate) fn probe_id(job: JobId) -> AttemptId {
        AttemptId(u64::MAX - u64::from(job.0))
    }

    /// The slots that it takes. A probe takes one.
    fn slots(&self) -> u32 {
        if self.is_probe() { 1 } else { self.job.slots }
    }

    /// Whether it is one.
    pub(crate) fn is_probe(&self) -> bool {
        self.attempt == Self::probe_id(self.job.id)
    }
}

/// Where an attempt's input is.
#[derive(Debug)]
pub(crate) enum TaskInput {
    /// All of it is here.
    Whole(Bytes),
    /// It comes in parts.
    Stream(Arc<InputStream>),
}

/// What a slot tells the session of an attempt.
#[derive(Debug)]
pub(crate) enum SlotEvent {
    /// A part of its output, which is not the last.
    Output { attempt: AttemptId, data: Bytes, flow: Arc<Flow> },
    /// It ended; without a result if it was cancelled.
    Ended { attempt: AttemptId, done: Option<Box<Done>> },
    /// Whether a job can run here, which was tried.
    Probed { job: JobId, result: Result<(), String> },
    /// Something that the user of a job should know.
    Said { job: JobId, text: String },
}

/// What a slot does next.
enum Next {
    /// Runs a task.
    Task(LaneId, Task),
    /// Lets go of what it keeps: the job is closed.
    LetGo,
    /// Ends.
    End,
}

/// A running attempt.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) attempt: AttemptId,
    pub(crate) started: Instant,
    lane: LaneId,
    slots: u32,
}

/// All slots of a worker.
pub(crate) struct Slots {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Waited for after the threads have ended and closed their channels to it.
    spawner: Option<SpawnerProcess>,
}

/// What the slots' threads and the sessions share.
pub(crate) struct Shared {
    state: Mutex<State>,
    work: Condvar,
    controls: Vec<Arc<SlotControl>>,
    pub(crate) timers: Timers,
    /// Why the worker cannot go on.
    fatal: OnceLock<String>,
    pub(crate) failed: CancellationToken,
}

struct State {
    lanes: Vec<Option<LaneState>>,
    running: Vec<Option<Running>>,
    /// The slots that are taken by what runs: more than there are by one task that needs more.
    taken: u32,
    /// Slots that wait for work.
    idle: usize,
    /// Slots whose thread has been started.
    started: usize,
    /// Channels of slots that have not been started.
    channels: Vec<SlotChannel>,
    ending: bool,
}

impl Slots {
    /// Slots that have no thread yet. Without a spawner they cannot run commands.
    pub(crate) fn new(slots: u32, timers: Timers, spawner: Option<Spawner>) -> io::Result<Self> {
        let controls: Vec<_> =
            (0..slots).map(|i| SlotControl::new(i).map(Arc::new)).collect::<io::Result<_>>()?;
        let (channels, process) = match spawner {
            Some(spawner) => {
                let (channels, process) = spawner.into_parts();
                (channels, Some(process))
            }
            None => (Vec::new(), None),
        };
        let state = State {
            lanes: Vec::new(),
            running: controls.iter().map(|_| None).collect(),
            taken: 0,
            idle: 0,
            started: 0,
            channels,
            ending: false,
        };
        let shared = Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            controls,
            timers,
            fatal: OnceLock::new(),
            failed: CancellationToken::new(),
        };
        let threads = Mutex::new(Vec::new());
        Ok(Self { shared: Arc::new(shared), threads, spawner: process })
    }

    /// A lane for a session.
    pub(crate) fn lane(self: &Arc<Self>) -> Lane {
        Lane::open(self.clone())
    }

    /// Resolves when the worker cannot go on; [`Slots::fatal`] says why.
    pub(crate) async fn failed(&self) {
        self.shared.failed.cancelled().await;
    }

    /// Why the worker cannot go on.
    pub(crate) fn fatal(&self) -> String {
        self.shared.fatal.get().cloned().unwrap_or_default()
    }

    /// Starts a thread for each task that has none to run it, and slots to run in.
    fn start_threads(&self, state: &mut State) {
        if state.started == self.shared.controls.len() {
            return;
        }
        let wanted = state.wanted_threads();
        while state.started < wanted {
            let control = self.shared.controls[state.started].clone();
            let channel = state.channels.pop();
            let shared = self.shared.clone();
            let name = format!("slot-{}", control.index + 1);
            let start = std::thread::Builder::new().name(name);
            match start.spawn(move || thread::run(&shared, &control, channel)) {
                Ok(handle) => {
                    state.started += 1;
                    self.threads.lock().expect("no holder of this lock panics").push(handle);
                }
                // Those that run take the work; with none the worker is of no use.
                Err(_) if state.started > 0 => return,
                Err(error) => return self.shared.fail(&format!("cannot start a thread: {error}")),
            }
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        for control in &self.shared.controls {
            control.end();
        }
        self.shared.work.notify_all();
        let give_up = Instant::now() + END_PATIENCE;
        let threads = std::mem::take(&mut *self.threads.lock().expect("no holder panics"));
        let mut all_ended = true;
        for thread in threads {
            while !thread.is_finished() && Instant::now() < give_up {
                std::thread::sleep(Duration::from_millis(1));
            }
            if !thread.is_finished() {
                // What a user's function holds up ends with the process, and the spawner then.
                all_ended = false;
            } else if thread.join().is_err() {
                tracing::error!("a slot's thread panicked");
            }
        }
        self.shared.lock().channels.clear();
        if all_ended && let Some(spawner) = self.spawner.take() {
            spawner.wait();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// The worker cannot go on.
    pub(crate) fn fail(&self, reason: &str) {
        let _ = self.fatal.set(reason.to_owned());
        self.failed.cancel();
    }

    /// Tells a lane's session of something.
    pub(crate) fn tell(&self, lane: LaneId, event: SlotEvent) {
        let notify = {
            let mut state = self.lock();
            let Some(lane) = state.lane(lane) else { return };
            lane.push_event(event)
        };
        if let Some(meter) = notify {
            meter.notify.notify_one();
        }
    }

    /// Wakes a lane's session, which waits for a slot to let go of a job.
    fn nudge(&self, lane: LaneId) {
        let meter = self.lock().lane(lane).map(|lane| lane.meter());
        if let Some(meter) = meter {
            meter.notify.notify_one();
        }
    }

    /// Hands in the event that ended a slot's task, if it had one, and takes the next one; waits
    /// for it if there is none, unless the slot has to let go of what it keeps for a job.
    fn next(&self, slot: usize, ended: Option<(LaneId, SlotEvent)>, kept: Option<&Job>) -> Next {
        let mut state = self.lock();
        let notify = match ended {
            Some((lane, event)) => {
                // What took several slots may make room for several others.
                if state.slots_of(slot) > 1 {
                    self.work.notify_all();
                }
                state.end(slot, lane, event)
            }
            None => None,
        };
        let mut next = state.take(slot, &self.controls[slot]);
        if let Some(meter) = notify {
            drop(state);
            meter.notify.notify_one();
            if let Some((lane, task)) = next {
                return Next::Task(lane, task);
            }
            state = self.lock();
        }
        loop {
            if let Some((lane, task)) = next {
                return Next::Task(lane, task);
            }
            if state.ending {
                return Next::End;
            }
            if kept.is_some_and(Job::is_closed) {
                return Next::LetGo;
            }
            next = state.take(slot, &self.controls[slot]);
            if next.is_some() {
                continue;
            }
            state.idle += 1;
            state = self.work.wait(state).expect("no holder of this lock panics");
            state.idle -= 1;
        }
    }
}

impl State {
    fn lane(&mut self, lane: LaneId) -> Option<&mut LaneState> {
        self.lanes.get_mut(lane.0)?.as_mut()
    }

    /// Threads for what runs and for what could run beside it.
    fn wanted_threads(&self) -> usize {
        let running = self.running.iter().flatten().count();
        let queued = self.lanes.iter().flatten().flat_map(LaneState::queued_slots);
        let mut taken = self.taken;
        let starts = queued.take_while(|&slots| {
            let fits = self.fits(taken, slots);
            taken = taken.saturating_add(slots);
            fits
        });
        running + starts.count()
    }

    /// Whether a task of so many slots runs beside those that take `taken`. One that needs more than
    /// there are runs alone.
    fn fits(&self, taken: u32, slots: u32) -> bool {
        taken == 0 || u64::from(taken) + u64::from(slots) <= self.running.len() as u64
    }

    /// The slots that the task of a thread takes.
    fn slots_of(&self, slot: usize) -> u32 {
        self.running[slot].as_ref().map_or(0, |running| running.slots)
    }

    /// A slot's task has ended. Returns whom to wake.
    fn end(&mut self, slot: usize, id: LaneId, event: SlotEvent) -> Option<Arc<InputMeter>> {
        let slots = self.slots_of(slot);
        self.running[slot] = None;
        self.taken -= slots;
        let lane = self.lane(id)?;
        lane.running -= 1;
        lane.taken -= slots;
        let notify = lane.push_event(event);
        if lane.closed && lane.running == 0 {
            self.lanes[id.0] = None;
        }
        notify
    }

    /// The next task of the lane that has the fewest running for its share.
    fn take(&mut self, slot: usize, control: &SlotControl) -> Option<(LaneId, Task)> {
        let load = |lane: &LaneState| (u64::from(lane.taken) + 1) * 1_000 / u64::from(lane.share);
        let best = self
            .lanes
            .iter()
            .enumerate()
            .filter_map(|(index, lane)| Some((index, lane.as_ref()?)))
            .filter(|(_, lane)| lane.has_next())
            .min_by_key(|(_, lane)| load(lane))?
            .0;
        let slots = self.lanes[best].as_ref()?.next_slots()?;
        if !self.fits(self.taken, slots) {
            return None;
        }
        let lane = self.lanes[best].as_mut()?;
        let task = lane.next()?;
        lane.taken += slots;
        control.reset();
        let (attempt, lane, started) = (task.attempt, LaneId(best), Instant::now());
        self.running[slot] = Some(Running { attempt, started, lane, slots });
        self.taken += slots;
        Some((LaneId(best), task))
    }
}
