//! One coordinator's session: a task that owns the session's state, carries the stream while there
//! is one, and keeps what is held for as long as the coordinator may come back.

mod hub;
mod input;
mod lease;
mod opening;
mod outbox;
mod outgoing;
mod shares;
mod state;

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tonic::{Status, Streaming};
use widemap_common::ids::JobId;
use widemap_common::wall_clock;
use widemap_proto::session::{CoordinatorHello, Order, WorkerHello};
use widemap_proto::wire::{FromWorker, ToWorker};

pub(crate) use hub::Hub;

use crate::job::Job;
use lease::Lease;
use opening::Opened;
use shares::{ShareId, Shares};
use state::Session;

/// How long a stream that is ended with an error may take to carry it.
const STATUS_PATIENCE: Duration = Duration::from_secs(1);

/// How long the end of a stream waits for the directories of closed jobs to be removed.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(300);

/// How long the end of a session waits for killed processes to be gone.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What a coordinator's stream is made of, as the server hands it in.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) inbound: Streaming<ToWorker>,
    pub(crate) outbound: mpsc::Sender<Result<FromWorker, Status>>,
}

impl Stream {
    /// Ends the stream with an error.
    async fn end(self, status: Status) {
        let sent = self.outbound.send(Err(status));
        // A peer that does not read has no use for it.
        let _ = tokio::time::timeout(STATUS_PATIENCE, sent).await;
    }
}

/// A stream whose hello has been read.
#[derive(Debug)]
struct Attachment {
    hello: CoordinatorHello,
    /// What came in one message with the hello.
    orders: Vec<Order>,
    stream: Stream,
}

/// What a worker is doing as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lifecycle {
    Running,
    /// What runs may go on until `deadline`, and results may be accepted until `give_up`.
    Draining {
        deadline: Instant,
        give_up: Instant,
    },
}

/// How a stream came to its end.
enum StreamEnd {
    /// The coordinator may come back.
    Detached,
    /// It came back already.
    Replaced(Box<Attachment>),
    /// The session is over.
    Over,
}

/// The task of one session.
struct Actor {
    session: Session,
    greeting: WorkerHello,
    attachments: mpsc::Receiver<Attachment>,
    shares: Arc<Shares>,
    share: ShareId,
    shares_changed: watch::Receiver<()>,
    lifecycle: watch::Receiver<Lifecycle>,
    heartbeat: Duration,
    kill_grace: Duration,
    /// How long the coordinator may be away.
    lease: Lease,
    /// Whether a coordinator can come back at all.
    returns: bool,
    /// Files of jobs that are being put in place.
    openings: JoinSet<Opened>,
    /// Changes when what is in them has come, if there can be any.
    artifacts_changed: Option<watch::Receiver<u64>>,
    /// Directories of closed jobs that are being removed.
    cleanups: JoinSet<(JobId, Option<String>)>,
}

impl Actor {
    /// Lives as long as the session does.
    async fn run(mut self, first: Attachment) {
        let mut attachment = Some(Box::new(first));
        loop {
            let end = match attachment.take() {
                Some(attachment) => self.attached(*attachment).await,
                None => self.detached().await,
            };
            match end {
                StreamEnd::Replaced(next) => attachment = Some(next),
                StreamEnd::Detached if self.returns => {}
                StreamEnd::Detached | StreamEnd::Over => break,
            }
        }
        self.end().await;
    }

    /// Carries a stream.
    async fn attached(&mut self, attachment: Attachment) -> StreamEnd {
        let Attachment { hello, orders, mut stream } = attachment;
        self.lease.begin_stream(Instant::now(), Duration::from_millis(hello.linger_ms));
        self.session.lane.set_lease_end(self.lease_end().map(Instant::into_std));
        self.session.set_paused(self.shares.paused());
        self.session.set_credit(self.shares.credit(self.share));
        let left_out = self.shares.left_out();
        let clock_ms = wall_clock::unix_ms();
        self.session.attach(WorkerHello { left_out, clock_ms, ..self.greeting.clone() });
        if let Lifecycle::Draining { deadline, .. } = *self.lifecycle.borrow_and_update() {
            self.session.drain(millis_until(deadline));
        }
        if let Err(status) = self.take_orders(Ok(orders)) {
            stream.end(status).await;
            return StreamEnd::Detached;
        }
        let mut heartbeat = self.heartbeat_interval();
        let meter = self.session.lane.meter.clone();
        let (end, status) = loop {
            let has_reports = self.session.has_reports();
            if !has_reports && self.is_drained() {
                return StreamEnd::Over;
            }
            let give_up = self.drain_end();
            tokio::select! {
                message = stream.inbound.message(), if self.session.takes_orders() => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        // Without a goodbye the coordinator may come back.
                        Ok(None) | Err(_) => return StreamEnd::Detached,
                    };
                    let orders = Vec::<Order>::try_from(message)
                        .map_err(|error| Status::invalid_argument(error.to_string()));
                    if let Err(status) = self.take_orders(orders) {
                        break (StreamEnd::Detached, Some(status));
                    }
                    if self.session.is_over() {
                        self.say_goodbye(&stream).await;
                        return StreamEnd::Over;
                    }
                }
                place = stream.outbound.reserve(), if has_reports => {
                    let Ok(place) = place else { return StreamEnd::Detached };
                    place.send(Ok(self.session.batch().into()));
                }
                () = stream.outbound.closed(), if !has_reports => return StreamEnd::Detached,
                () = meter.notify.notified() => self.collect(),
                _ = heartbeat.tick() => self.session.heartbeat(),
                next = self.attachments.recv() => {
                    // The hub keeps its side for as long as the session lives, or ends with it.
                    let replaced = next.map(|next| StreamEnd::Replaced(Box::new(next)));
                    break (replaced.unwrap_or(StreamEnd::Over), None);
                }
                Ok(()) = self.shares_changed.changed() => {
                    self.session.set_paused(self.shares.paused());
                    self.session.set_credit(self.shares.credit(self.share));
                }
                Ok(()) = self.lifecycle.changed() => self.lifecycle_changed(),
                () = changed(&mut self.artifacts_changed) => self.artifacts_changed(),
                Some(opened) = self.openings.join_next() => self.opened(opened),
                Some(Ok((job, left))) = self.cleanups.join_next() => {
                    if let Some(text) = left {
                        self.session.log(job, text);
                    }
                }
                () = until(give_up) => {
                    if self.give_up_drain() {
                        return StreamEnd::Over;
                    }
                }
            }
        };
        if let Some(status) = status {
            stream.end(status).await;
        }
        end
    }

    /// The coordinator has no more use for the worker: it is told what closed jobs left, no more.
    async fn say_goodbye(&mut self, stream: &Stream) {
        let cleaned = async {
            loop {
                self.after_change();
                match self.cleanups.join_next().await {
                    Some(Ok((job, Some(text)))) => self.session.log(job, text),
                    Some(_) => {}
                    // A slot lets go of the job a moment after its last attempt.
                    None if self.session.is_closing() => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    None => break,
                }
            }
        };
        // What takes longer goes to this worker's own log.
        if tokio::time::timeout(GOODBYE_PATIENCE, cleaned).await.is_ok()
            && self.session.has_reports()
        {
            // A peer that does not read has no use for it.
            let _ = stream.outbound.try_send(Ok(self.session.batch().into()));
        }
    }

    /// Goes on without a stream, until the coordinator is back or its lease has ended.
    async fn detached(&mut self) -> StreamEnd {
        let lease_end = self.lease.end();
        let left = lease_end.saturating_duration_since(Instant::now());
        tracing::info!(lease = ?left, "a coordinator is cut off");
        let meter = self.session.lane.meter.clone();
        loop {
            if self.is_drained() {
                return StreamEnd::Over;
            }
            let give_up = self.drain_end();
            tokio::select! {
                next = self.attachments.recv() => {
                    // A worker that stood still finds both at once: what is over comes first.
                    let next = next.filter(|_| Instant::now() < lease_end);
                    return next.map_or(StreamEnd::Over, |next| StreamEnd::Replaced(Box::new(next)));
                }
                () = meter.notify.notified() => self.collect(),
                () = tokio::time::sleep_until(lease_end) => {
                    tracing::warn!("a coordinator's lease has ended: its attempts are cancelled");
                    return StreamEnd::Over;
                }
                Ok(()) = self.lifecycle.changed() => self.lifecycle_changed(),
                () = changed(&mut self.artifacts_changed) => self.artifacts_changed(),
                Some(opened) = self.openings.join_next() => self.opened(opened),
                Some(Ok((job, left))) = self.cleanups.join_next() => {
                    if let Some(text) = left {
                        self.session.log(job, text);
                    }
                }
                () = until(give_up) => {
                    if self.give_up_drain() {
                        return StreamEnd::Over;
                    }
                }
            }
        }
    }

    /// Ends the session: takes back what waits, cancels what runs and gives it the grace that it is
    /// due, and removes directories once nothing works in them any more.
    async fn end(mut self) {
        self.shares.leave(self.share);
        self.attachments.close();
        let Self { session, mut openings, mut cleanups, .. } = self;
        let mut jobs = session.into_jobs();
        // The lane went with the session: what ran is being ended, within the grace. A directory
        // that is held up longer goes with the attempt that holds it.
        let give_up = Instant::now() + self.kill_grace + END_PATIENCE;
        while !jobs.is_empty() && Instant::now() < give_up {
            let (over, left) = jobs.into_iter().partition(|job| Arc::strong_count(job) == 1);
            jobs = left;
            let over: Vec<Arc<Job>> = over;
            for job in over.into_iter().filter_map(Arc::into_inner) {
                spawn_cleanup(&mut cleanups, job);
            }
            if !jobs.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        while let Some(opened) = openings.join_next().await {
            if let Ok(Opened { result: Ok(job), .. }) = opened {
                spawn_cleanup(&mut cleanups, job);
            }
        }
        while let Some(cleaned) = cleanups.join_next().await {
            if let Ok((job, Some(text))) = cleaned {
                tracing::warn!(%job, "{text}");
            }
        }
    }

    fn take_orders(&mut self, orders: Result<Vec<Order>, Status>) -> Result<(), Status> {
        let handled = self.session.handle(orders?);
        if let Some(left_out) = self.session.take_left_out() {
            let for_time = Duration::from_millis(left_out.for_ms);
            tracing::warn!(?for_time, why = left_out.why, "a coordinator leaves this worker out");
            self.shares.set_left_out(self.share, left_out);
        }
        if let Some(stamp_us) = self.session.take_ping() {
            self.lease.heard(Instant::now(), stamp_us);
            self.session.lane.set_lease_end(self.lease_end().map(Instant::into_std));
        }
        if let Some(demand) = self.session.take_demand() {
            self.shares.set_demand(self.share, demand);
        }
        self.after_change();
        handled.map_err(|violation| Status::failed_precondition(violation.to_string()))
    }

    /// When nothing more may start, unless the coordinator is heard before. What lives in one process
    /// with its coordinator stops and goes on with it; and who asks for no lease runs nothing.
    fn lease_end(&self) -> Option<Instant> {
        let leases = self.returns && !self.lease.length().is_zero();
        leases.then(|| self.lease.end())
    }

    /// What is in files of jobs has come, or will not.
    fn artifacts_changed(&mut self) {
        self.session.artifacts_changed();
        self.after_change();
    }

    /// Files of a job were put in place.
    fn opened(&mut self, opened: Result<Opened, JoinError>) {
        let opened = opened.unwrap_or_else(|error| resume_unwind(error.into_panic()));
        if let Some(job) = self.session.opened(opened) {
            spawn_cleanup(&mut self.cleanups, job);
        }
        self.after_change();
    }

    fn collect(&mut self) {
        self.session.collect();
        self.after_change();
    }

    fn after_change(&mut self) {
        self.shares.set_busy(self.share, self.session.has_attempts());
        for job in self.session.closed_jobs() {
            spawn_cleanup(&mut self.cleanups, job);
        }
        for placement in self.session.take_placements() {
            self.openings.spawn_blocking(move || placement.carry_out());
        }
    }

    fn lifecycle_changed(&mut self) {
        let lifecycle = *self.lifecycle.borrow_and_update();
        if let Lifecycle::Draining { deadline, .. } = lifecycle {
            self.session.drain(millis_until(deadline));
            self.after_change();
        }
    }

    fn is_drained(&self) -> bool {
        let draining = *self.lifecycle.borrow() != Lifecycle::Running;
        draining && !self.session.has_attempts()
    }

    /// When a drain ends what still runs, and after that when it ends altogether.
    fn drain_end(&self) -> Option<Instant> {
        let Lifecycle::Draining { deadline, give_up } = *self.lifecycle.borrow() else {
            return None;
        };
        Some(if Instant::now() < deadline { deadline } else { give_up })
    }

    /// A drain has come to its deadline: first what runs is given up, then what is not accepted.
    /// Whether that was the end.
    fn give_up_drain(&mut self) -> bool {
        self.session.cancel_unfinished();
        self.after_change();
        match *self.lifecycle.borrow() {
            Lifecycle::Draining { give_up, .. } => Instant::now() >= give_up,
            Lifecycle::Running => false,
        }
    }

    fn heartbeat_interval(&self) -> Interval {
        let mut heartbeat = tokio::time::interval(self.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat
    }
}

/// Removing a directory is work on a disk: not on the thread that serves the streams.
fn spawn_cleanup(cleanups: &mut JoinSet<(JobId, Option<String>)>, job: Job) {
    if job.has_directory() {
        cleanups.spawn_blocking(move || (job.id, job.close()));
    }
}

/// Waits for a change; for ever, where there can be none.
async fn changed(receiver: &mut Option<watch::Receiver<u64>>) {
    if let Some(receiver) = receiver
        && receiver.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn millis_until(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
}
