//! All sessions of a worker: greets new streams, brings each to its coordinator's session, and ends
//! the worker in good order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use widemap_common::ids::{CoordinatorId, Epoch};
use widemap_common::limits::{DRAIN_ACCEPT_MS, EPOCHS_REMEMBERED, SESSIONS_MAX};
use widemap_common::time::Timers;
use widemap_proto::VERSION;
use widemap_proto::session::{CoordinatorHello, Order, WorkerHello};

use super::lease::Lease;
use super::shares::Shares;
use super::state::Session;
use super::{Actor, Attachment, Lifecycle, Stream, until};
use crate::job::Host;
use crate::memory::{self, MemoryWatch};
use crate::slots::Slots;

/// Streams of one coordinator that wait to replace each other.
const ATTACHMENTS_WAITING: usize = 2;

/// How often it is looked whether there is memory for more work, and whether some can be given back.
const MEMORY_LOOKED_AT: Duration = Duration::from_secs(1);

/// What a coordinator is told that comes too late.
const DRAINING: &str = "this worker is draining";

/// Why the hub ended in bad order.
#[derive(Debug, thiserror::Error)]
#[error("a session's task panicked, which is a bug in widemap-worker: {0}")]
pub(crate) struct HubError(#[source] JoinError);

/// What the hub must know of its worker.
pub(crate) struct Hub {
    pub(crate) slots: Arc<Slots>,
    pub(crate) host: Arc<Host>,
    pub(crate) greeting: WorkerHello,
    pub(crate) timers: Timers,
    pub(crate) drain_timeout: Duration,
    /// The worker ends after so long without an attempt.
    pub(crate) idle_timeout: Option<Duration>,
    /// Whether a coordinator that is cut off can come back.
    pub(crate) returns: bool,
    /// Looks whether there is memory for more work; nothing where nobody does.
    pub(crate) memory: Option<MemoryWatch>,
}

/// A task of the hub has ended.
enum TaskEnd {
    /// A stream's hello was read.
    Greeted(Box<Attachment>),
    /// A stream ended before its hello.
    NoHello,
    /// The session of this number ended.
    Session(CoordinatorId, u64),
}

struct Entry {
    /// Counted over all sessions: one that takes its time to end must not take its successor along.
    number: u64,
    attachments: mpsc::Sender<Attachment>,
}

/// The hub while it runs.
struct Running {
    hub: Hub,
    sessions: BTreeMap<CoordinatorId, Entry>,
    sessions_begun: u64,
    /// The last epoch of coordinators that have been here, the oldest first.
    epochs: VecDeque<(CoordinatorId, Epoch)>,
    tasks: JoinSet<TaskEnd>,
    shares: Arc<Shares>,
    lifecycle: watch::Sender<Lifecycle>,
}

impl Hub {
    /// Serves streams until the worker has drained: after `shutdown`, or when it was idle for long.
    pub(crate) async fn run(
        mut self,
        mut streams: mpsc::Receiver<Stream>,
        shutdown: CancellationToken,
    ) -> Result<(), HubError> {
        let shares = Arc::new(Shares::new(self.greeting.slots));
        let mut changes = shares.subscribe();
        let mut watch = self.memory.take();
        let mut looks = tokio::time::interval(MEMORY_LOOKED_AT);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut idle_end = self.idle_timeout.map(|timeout| Instant::now() + timeout);
        let mut running = Running {
            hub: self,
            sessions: BTreeMap::new(),
            sessions_begun: 0,
            epochs: VecDeque::new(),
            tasks: JoinSet::new(),
            shares,
            lifecycle: watch::channel(Lifecycle::Running).0,
        };
        loop {
            let draining = running.is_draining();
            if draining && running.tasks.is_empty() {
                return Ok(());
            }
            tokio::select! {
                Some(stream) = streams.recv() => running.greet(stream),
                Some(ended) = running.tasks.join_next() => running.task_ended(ended).await?,
                _ = looks.tick() => {
                    if running.shares.take_rest() {
                        memory::give_back();
                    }
                    if let Some(change) = watch.as_mut().and_then(MemoryWatch::look) {
                        running.shares.pause(change.why);
                    }
                }
                () = shutdown.cancelled(), if !draining => running.drain(),
                () = until(idle_end), if !draining => {
                    tracing::info!("nothing to do for long: the worker ends");
                    running.drain();
                }
                Ok(()) = changes.changed(), if running.hub.idle_timeout.is_some() => {
                    idle_end = running.idle_end(idle_end);
                }
            }
        }
    }
}

impl Running {
    fn is_draining(&self) -> bool {
        *self.lifecycle.borrow() != Lifecycle::Running
    }

    fn drain(&self) {
        let deadline = Instant::now() + self.hub.drain_timeout;
        tracing::info!(timeout = ?self.hub.drain_timeout, "draining");
        // Who grants no time for what runs does not wait for its results either.
        let accept = Duration::from_millis(DRAIN_ACCEPT_MS).min(self.hub.drain_timeout);
        let give_up = deadline + accept;
        self.lifecycle.send_replace(Lifecycle::Draining { deadline, give_up });
    }

    /// When the worker has been idle for long enough, if it is idle now.
    fn idle_end(&self, present: Option<Instant>) -> Option<Instant> {
        if self.shares.is_busy() {
            return None;
        }
        present.or_else(|| Some(Instant::now() + self.hub.idle_timeout?))
    }

    /// Reads a stream's hello.
    fn greet(&mut self, mut stream: Stream) {
        if self.tasks.len() >= 2 * SESSIONS_MAX {
            self.refuse(stream, Status::resource_exhausted("too many streams at once"));
            return;
        }
        let patience = Duration::from_millis(self.hub.timers.connect_ms);
        self.tasks.spawn(async move {
            match tokio::time::timeout(patience, read_hello(&mut stream)).await {
                Ok(Ok((hello, orders))) => {
                    TaskEnd::Greeted(Box::new(Attachment { hello, orders, stream }))
                }
                Ok(Err(status)) => {
                    stream.end(status).await;
                    TaskEnd::NoHello
                }
                Err(_) => {
                    let text = format!("no hello within {patience:?}");
                    stream.end(Status::deadline_exceeded(text)).await;
                    TaskEnd::NoHello
                }
            }
        });
    }

    async fn task_ended(&mut self, ended: Result<TaskEnd, JoinError>) -> Result<(), HubError> {
        match ended.map_err(HubError)? {
            TaskEnd::Greeted(attachment) => match self.check(&attachment.hello) {
                Ok(()) => self.attach(*attachment),
                Err(status) => {
                    tracing::warn!(coordinator = %attachment.hello.build, "{}", status.message());
                    self.refuse(attachment.stream, status);
                }
            },
            TaskEnd::NoHello => {}
            TaskEnd::Session(coordinator, number) => {
                if self.sessions.get(&coordinator).is_some_and(|entry| entry.number == number) {
                    self.sessions.remove(&coordinator);
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, stream: Stream, status: Status) {
        self.tasks.spawn(async move {
            stream.end(status).await;
            TaskEnd::NoHello
        });
    }

    fn check(&self, hello: &CoordinatorHello) -> Result<(), Status> {
        if hello.version.major != VERSION.major {
            return Err(Status::failed_precondition(format!(
                "this worker speaks protocol {VERSION}, the coordinator {}: install the same \
                 release of widemap on both",
                hello.version
            )));
        }
        let last = self.epochs.iter().find(|(coordinator, _)| *coordinator == hello.coordinator);
        if let Some((_, last)) = last.filter(|(_, last)| hello.epoch < *last) {
            return Err(Status::failed_precondition(format!(
                "epoch {} of coordinator {} is over: {last} has been here",
                hello.epoch, hello.coordinator
            )));
        }
        let known = self.sessions.contains_key(&hello.coordinator);
        if !known && self.is_draining() {
            return Err(Status::unavailable(DRAINING));
        }
        if !known && self.sessions.len() >= SESSIONS_MAX {
            return Err(Status::resource_exhausted(format!(
                "this worker serves {SESSIONS_MAX} coordinators, which is its limit"
            )));
        }
        Ok(())
    }

    /// Brings a stream to its session, which begins with it if there is none.
    fn attach(&mut self, attachment: Attachment) {
        let CoordinatorHello { coordinator, epoch, .. } = attachment.hello;
        self.remember(coordinator, epoch);
        let mut attachment = attachment;
        // A later epoch takes over what the former has left.
        if let Some(entry) = self.sessions.get(&coordinator) {
            match entry.attachments.try_send(attachment) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(refused)) => {
                    let status = Status::resource_exhausted("too many streams of one coordinator");
                    return self.refuse(refused.stream, status);
                }
                Err(mpsc::error::TrySendError::Closed(refused)) if self.is_draining() => {
                    return self.refuse(refused.stream, Status::unavailable(DRAINING));
                }
                // The session has just ended: another one begins.
                Err(mpsc::error::TrySendError::Closed(back)) => attachment = back,
            }
        }
        tracing::info!(%coordinator, %epoch, build = %attachment.hello.build, "a coordinator");
        let (sender, attachments) = mpsc::channel(ATTACHMENTS_WAITING);
        self.sessions_begun += 1;
        let number = self.sessions_begun;
        self.sessions.insert(coordinator, Entry { number, attachments: sender });
        let actor = self.actor(attachments);
        self.tasks.spawn(async move {
            actor.run(attachment).await;
            TaskEnd::Session(coordinator, number)
        });
    }

    fn actor(&self, attachments: mpsc::Receiver<Attachment>) -> Actor {
        let timers = &self.hub.timers;
        let session = Session::new(self.hub.slots.lane(), self.hub.host.clone());
        Actor {
            artifacts_changed: session.opening.changes(),
            openings: JoinSet::new(),
            session,
            greeting: self.hub.greeting.clone(),
            attachments,
            share: self.shares.join(),
            shares_changed: self.shares.subscribe(),
            shares: self.shares.clone(),
            lifecycle: self.lifecycle.subscribe(),
            heartbeat: Duration::from_millis(timers.heartbeat_ms.max(1)),
            kill_grace: Duration::from_millis(timers.kill_grace_ms),
            lease: Lease::new(Duration::from_millis(timers.lease_margin_ms), Instant::now()),
            returns: self.hub.returns,
            cleanups: JoinSet::new(),
        }
    }

    fn remember(&mut self, coordinator: CoordinatorId, epoch: Epoch) {
        self.epochs.retain(|(known, _)| *known != coordinator);
        if self.epochs.len() >= EPOCHS_REMEMBERED {
            self.epochs.pop_front();
        }
        self.epochs.push_back((coordinator, epoch));
    }
}

/// The hello, and the orders that came in one message with it.
async fn read_hello(stream: &mut Stream) -> Result<(CoordinatorHello, Vec<Order>), Status> {
    let message = stream.inbound.message().await?;
    let message = message.ok_or_else(|| Status::invalid_argument("the stream has no hello"))?;
    let mut orders = Vec::<Order>::try_from(message)
        .map_err(|error| Status::invalid_argument(error.to_string()))?
        .into_iter();
    match orders.next() {
        Some(Order::Hello(hello)) => Ok((hello, orders.collect())),
        _ => Err(Status::invalid_argument("the first order of a stream must be a hello")),
    }
}
