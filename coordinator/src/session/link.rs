//! The task behind one address: connect, greet, carry, and after a cut connect again.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use widemap_common::backoff;
use widemap_common::ids::{AttemptId, CoordinatorId, Epoch};
use widemap_common::limits::{REPORTS_BYTES_MAX, STREAM_QUEUE};
use widemap_common::time::{Time, Timers};
use widemap_proto::session::{CoordinatorHello, HeldAttempt, Order, Report, WorkerHello};
use widemap_proto::wire::worker_client::WorkerClient;
use widemap_proto::wire::{FromWorker, ToWorker};
use widemap_proto::{VERSION, WireError};

use super::dial::{Dial, DialError, Line, Trust, root_cause};
use super::outbox::{Outbox, SendBounds, StreamId};
use super::upload::{self, UploadError, Uploads};
use crate::data::{Artifact, ArtifactError};
use crate::driver::BUILD;

/// How long the end of a stream waits for the worker to hear of it.
pub(crate) const GOODBYE: Duration = Duration::from_millis(500);

/// A worker whose connection stands may be silent for so many times what keepalive takes: over a very slow
/// network one part of its output takes long to come.
const SILENCE_KEEPALIVES: u32 = 10;

/// Before a place is looked at again whose worker cannot be used.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// One address that the coordinator keeps a connection to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct LinkId(pub(crate) u32);

/// What a link tells the driver.
#[derive(Debug)]
pub(crate) struct LinkEvent {
    /// Which link.
    pub(crate) link: LinkId,
    /// What happened.
    pub(crate) news: LinkNews,
}

/// What happened to a link.
#[derive(Debug)]
pub(crate) enum LinkNews {
    /// A worker answered: a stream is attached.
    Attached {
        stream: StreamId,
        /// Where it was reached: of several addresses, or those of a name, the one.
        address: String,
        hello: Box<WorkerHello>,
        held: Vec<HeldAttempt>,
        round_trip: Duration,
    },
    /// What the worker reports.
    Reports(Vec<Report>),
    /// A ping came back.
    RoundTrip(Duration),
    /// A result arrived changed; the stream ends.
    Corrupt { attempt: AttemptId, reason: String },
    /// What is in a file of jobs cannot be read any more, and why.
    Unreadable { artifact: Artifact, error: ArtifactError },
    /// The stream broke, or the worker ended it in good order.
    Cut { reason: String, ended: bool },
    /// There is no connection, and why.
    Unreachable { error: DialError },
    /// The peer answers but is not to be used.
    Refused { reason: String },
}

/// What the driver keeps of a link.
#[derive(Debug)]
pub(crate) struct Link {
    /// What waits to be sent.
    pub(crate) outbox: Arc<Outbox>,
    /// What waits to be sent of the files of jobs.
    pub(crate) uploads: Arc<Uploads>,
    /// Sends what waits, ends the stream in good order (the worker forgets this coordinator) and with
    /// it the task.
    pub(crate) goodbye: CancellationToken,
    /// Ends the task at once: the worker is served through another link.
    pub(crate) stop: CancellationToken,
}

/// What every link of a coordinator begins with.
#[derive(Clone)]
pub(crate) struct Greeting {
    /// Who it is.
    pub(crate) hello: CoordinatorHello,
    /// How it proves itself, and whom it believes.
    pub(crate) trust: Trust,
    /// The timers of its sessions.
    pub(crate) timers: Timers,
}

impl Greeting {
    /// That of one who only looks: whoever it is, it is another one each time, and leaves nothing behind
    /// that anybody would wait for.
    pub(crate) fn of_visitor(trust: Trust, timers: Timers) -> Self {
        let hello = CoordinatorHello {
            version: VERSION,
            build: BUILD.to_owned(),
            coordinator: CoordinatorId(fastrand::u64(1..)),
            epoch: Epoch(1),
            linger_ms: 0,
        };
        Self { hello, trust, timers }
    }
}

/// Starts the task of a link among `tasks`.
pub(crate) fn spawn(
    tasks: &mut JoinSet<()>,
    id: LinkId,
    dial: Dial,
    greeting: Greeting,
    events: mpsc::Sender<LinkEvent>,
) -> Link {
    let Greeting { hello, trust, timers } = greeting;
    let outbox = Arc::new(Outbox::new(SendBounds::new(&timers)));
    let uploads = Arc::new(Uploads::default());
    let (goodbye, stop) = (CancellationToken::new(), CancellationToken::new());
    let link = Link {
        outbox: outbox.clone(),
        uploads: uploads.clone(),
        goodbye: goodbye.clone(),
        stop: stop.clone(),
    };
    let runner = Runner { id, dial, hello, trust, timers, events, outbox, uploads, goodbye };
    tasks.spawn(async move {
        tokio::select! {
            // One that is stopped dials nobody any more.
            biased;
            () = stop.cancelled() => {}
            () = runner.run() => {}
        }
    });
    link
}

struct Runner {
    id: LinkId,
    dial: Dial,
    hello: CoordinatorHello,
    trust: Trust,
    timers: Timers,
    events: mpsc::Sender<LinkEvent>,
    outbox: Arc<Outbox>,
    uploads: Arc<Uploads>,
    goodbye: CancellationToken,
}

/// Why a stream ended.
enum StreamEnd {
    /// It may be opened again.
    Cut(String),
    /// The connection has shown why nobody can be talked to there, for now.
    Fault(DialError),
    /// It must not be: another version, another protocol.
    Refused(String),
    /// The worker ended it in good order.
    Ended,
    /// This side ended it.
    Goodbye,
}

impl Runner {
    /// Dials again and again, until goodbye is said.
    async fn run(&self) {
        let mut rng = fastrand::Rng::new();
        let (mut failures, mut refusal) = (0, None);
        loop {
            let mut attached = false;
            let dialled = tokio::select! {
                dialled = self.dial.connect(&self.trust, &self.timers) => dialled,
                () = self.goodbye.cancelled() => return,
            };
            match dialled {
                Err(error) => {
                    self.tell(LinkNews::Unreachable { error }).await;
                }
                Ok(line) => match self.carry_over(line, &mut failures, &mut attached).await {
                    StreamEnd::Fault(error) => {
                        self.tell(LinkNews::Unreachable { error }).await;
                    }
                    StreamEnd::Refused(reason) if attached => {
                        return self.tell(LinkNews::Refused { reason }).await;
                    }
                    StreamEnd::Refused(reason) => {
                        // Whoever reads why may mend it: the place is looked at again, now and then.
                        if refusal.as_ref() != Some(&reason) {
                            self.tell(LinkNews::Refused { reason: reason.clone() }).await;
                        }
                        refusal = Some(reason);
                        tokio::select! {
                            () = tokio::time::sleep(REFUSED_PAUSE) => {}
                            () = self.goodbye.cancelled() => return,
                        }
                    }
                    StreamEnd::Cut(reason) => {
                        self.tell(LinkNews::Cut { reason, ended: false }).await;
                    }
                    StreamEnd::Ended => {
                        let reason = "the worker ended the stream".to_owned();
                        self.tell(LinkNews::Cut { reason, ended: true }).await;
                    }
                    StreamEnd::Goodbye => return,
                },
            }
            // The first attempt after a cut is made at once.
            if failures > 0 {
                let base = Duration::from_millis(self.timers.redial_ms);
                let longest = Duration::from_millis(self.timers.redial_max_ms);
                let pause = backoff::pause(failures - 1, base, longest, &mut rng);
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.goodbye.cancelled() => return,
                }
            }
            failures += 1;
        }
    }

    /// Carries one stream until it ends; a fault of the connection is the cause of whatever ended it.
    async fn carry_over(&self, line: Line, failures: &mut u32, attached: &mut bool) -> StreamEnd {
        let fault = line.fault.clone();
        let end = self.carry(line, failures, attached).await;
        match (end, fault.get()) {
            // A worker that was there is cut off, whatever the reason.
            (StreamEnd::Cut(_) | StreamEnd::Ended, Some(fault)) if *attached => {
                StreamEnd::Cut(fault.to_string())
            }
            (StreamEnd::Cut(_) | StreamEnd::Ended, Some(fault)) => StreamEnd::Fault(fault.clone()),
            (end, _) => end,
        }
    }

    /// Carries one stream until it ends.
    async fn carry(&self, line: Line, failures: &mut u32, attached: &mut bool) -> StreamEnd {
        let stream = self.outbox.begin_stream();
        self.uploads.clear();
        let (orders, queue) = mpsc::channel(STREAM_QUEUE);
        let begun = Instant::now();
        let greeting = vec![Order::Hello(self.hello.clone())];
        if orders.send(greeting.into()).await.is_err() {
            return StreamEnd::Cut("the stream ended at once".to_owned());
        }
        let mut client =
            WorkerClient::new(line.channel).max_decoding_message_size(REPORTS_BYTES_MAX);
        let uploading = client.clone();
        let limit = Duration::from_millis(self.timers.connect_ms);
        let opening = async {
            let mut reports = client.session(ReceiverStream::new(queue)).await?.into_inner();
            let greeting = greet(&mut reports).await?;
            Ok((reports, greeting))
        };
        let opened = tokio::select! {
            opened = tokio::time::timeout(limit, opening) => opened,
            () = self.goodbye.cancelled() => return StreamEnd::Goodbye,
        };
        let (mut reports, greeting) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(status)) => return ended(&status),
            Err(_) => {
                return StreamEnd::Cut(format!("connected, but no greeting within {limit:?}"));
            }
        };
        if greeting.hello.version.major != VERSION.major {
            return StreamEnd::Refused(format!(
                "it speaks protocol {}, this widemap {VERSION}: install the same release on both",
                greeting.hello.version
            ));
        }
        let round_trip = begun.elapsed();
        let (hello, held) = (greeting.hello, greeting.held);
        *attached = true;
        let address = line.address;
        self.tell(LinkNews::Attached { stream, address, hello, held, round_trip }).await;
        self.deliver(greeting.rest, begun).await;
        let end = tokio::select! {
            end = self.read(&mut reports, begun) => end,
            end = self.write(orders, begun) => end,
            end = self.ping(begun) => end,
            end = self.upload(uploading) => end,
        };
        // A stream that did not last is no success: two addresses of one worker would take it from
        // each other for as long as the driver has no time to see it.
        if begun.elapsed() >= Duration::from_millis(self.timers.redial_max_ms) {
            *failures = 0;
        }
        end
    }

    /// Sends batches as the stream takes them. After goodbye it sends what is left, says so, and gives
    /// the worker time to hear of it.
    async fn write(&self, orders: mpsc::Sender<ToWorker>, begun: Instant) -> StreamEnd {
        let closed = || StreamEnd::Cut("the stream was closed".to_owned());
        loop {
            let Ok(place) = orders.reserve().await else { return closed() };
            tokio::select! {
                biased;
                batch = self.outbox.batch(|| since(begun)) => {
                    place.send(batch.into());
                }
                () = self.goodbye.cancelled() => break,
            }
        }
        // Where the stream takes nothing more, the worker's lease ends by itself.
        let last = tokio::time::timeout(GOODBYE, orders.send(vec![Order::Goodbye].into())).await;
        drop(orders);
        if matches!(last, Ok(Ok(()))) {
            tokio::time::sleep(GOODBYE).await;
        }
        StreamEnd::Goodbye
    }

    /// Sends what is in files of jobs.
    async fn upload(&self, client: WorkerClient<Channel>) -> StreamEnd {
        loop {
            let bounds = SendBounds::new(&self.timers).pace;
            match upload::send(&self.uploads, client.clone(), bounds).await {
                UploadError::Unreadable(artifact, error) => {
                    self.tell(LinkNews::Unreadable { artifact, error }).await;
                }
                // On the next stream the worker asks again for what it does not have.
                UploadError::Refused(status) => return ended(&status),
            }
        }
    }

    /// Takes in what the worker says. Each ping is answered: a worker whose connection stands and that
    /// says nothing at all is stuck, and is treated as one that is cut off.
    async fn read(&self, reports: &mut Streaming<FromWorker>, begun: Instant) -> StreamEnd {
        let silence_ms = self.timers.keepalive_ms.saturating_add(self.timers.keepalive_timeout_ms);
        let silence = Duration::from_millis(silence_ms).saturating_mul(SILENCE_KEEPALIVES);
        loop {
            let message = async {
                match self.is_watched() {
                    true => tokio::time::timeout(silence, reports.message()).await.ok(),
                    false => Some(reports.message().await),
                }
            };
            let batch = match message.await {
                Some(Ok(Some(batch))) => batch,
                _ if self.goodbye.is_cancelled() => return StreamEnd::Goodbye,
                Some(Ok(None)) => return StreamEnd::Ended,
                Some(Err(status)) => return ended(&status),
                None => {
                    let reason = format!("connected, but not a word from it for {silence:?}");
                    return StreamEnd::Cut(reason);
                }
            };
            match Vec::<Report>::try_from(batch) {
                Ok(batch) => self.deliver(batch, begun).await,
                Err(error) => return self.misfit(error).await,
            }
        }
    }

    /// Keeps what is the link's own of a batch; the driver gets the rest.
    async fn deliver(&self, mut batch: Vec<Report>, begun: Instant) {
        let (mut stamp, mut output_bytes) = (None, 0);
        batch.retain(|report| match report {
            Report::InputGrant(total) => {
                self.outbox.input_granted(*total);
                false
            }
            Report::Pong(stamp_us) => {
                stamp = Some(Time(*stamp_us));
                false
            }
            Report::Output(part) => {
                output_bytes += part.data.len() as u64;
                true
            }
            Report::Done(done) => {
                output_bytes += done.output.len() as u64;
                true
            }
            _ => true,
        });
        if output_bytes > 0 {
            self.outbox.output_received(output_bytes, since(begun));
        }
        let answered = stamp.and_then(|stamp| self.outbox.ponged(stamp, since(begun)));
        if let Some(round_trip) = answered {
            self.tell(LinkNews::RoundTrip(round_trip)).await;
        }
        if !batch.is_empty() {
            self.tell(LinkNews::Reports(batch)).await;
        }
    }

    async fn misfit(&self, error: WireError) -> StreamEnd {
        if let WireError::Checksum { attempt, .. } = error {
            self.tell(LinkNews::Corrupt { attempt, reason: error.to_string() }).await;
            return StreamEnd::Cut(error.to_string());
        }
        StreamEnd::Refused(error.to_string())
    }

    /// Measures round trips and prolongs the lease: soon after the start, then at each heartbeat, and
    /// several times within a lease. A worker that answers none of them for a lease is cut off, whatever
    /// else it says: nobody knows whether it has ended what this side gives to others, and what it holds
    /// of the payload would be held for ever.
    async fn ping(&self, begun: Instant) -> StreamEnd {
        let lease = Duration::from_millis(self.timers.lease_ms);
        let longest_ms = self.timers.heartbeat_ms.min(self.timers.lease_ms / 8).max(1);
        let mut pause = Duration::from_millis(longest_ms.min(20));
        let mut overdue = None;
        loop {
            tokio::time::sleep(pause).await;
            let oldest = self.outbox.oldest_ping();
            let late = oldest.filter(|&sent| since(begun).since(sent) > lease);
            // A coordinator that was stopped itself has not read the answers that are there: it looks
            // once more.
            if self.is_watched() && late.is_some() && late == overdue {
                let reason = format!("connected, but it answers no ping for {lease:?}");
                return StreamEnd::Cut(reason);
            }
            overdue = late;
            self.outbox.ping();
            pause = (pause * 2).min(Duration::from_millis(longest_ms));
        }
    }

    /// Whether the worker may be stuck while this process is not: what lives in it stops and goes on
    /// with it.
    fn is_watched(&self) -> bool {
        matches!(self.dial, Dial::Addresses(_))
    }

    async fn tell(&self, news: LinkNews) {
        // If the driver is gone, nobody wants to know.
        let _ = self.events.send(LinkEvent { link: self.id, news }).await;
    }
}

/// The clock of a stream.
fn since(begun: Instant) -> Time {
    Time::ZERO + begun.elapsed()
}

struct Welcome {
    hello: Box<WorkerHello>,
    held: Vec<HeldAttempt>,
    rest: Vec<Report>,
}

/// Reads the hello and what is held, which open every stream.
async fn greet(reports: &mut Streaming<FromWorker>) -> Result<Welcome, Status> {
    let (mut hello, mut held, mut rest) = (None, None, Vec::new());
    loop {
        let batch = reports.message().await?;
        let batch = batch.ok_or_else(|| Status::unavailable("the stream ended at once"))?;
        let batch = Vec::<Report>::try_from(batch)
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        for report in batch {
            match report {
                Report::Hello(greeting) if hello.is_none() => hello = Some(greeting),
                Report::Held(attempts) if held.is_none() => held = Some(attempts),
                _ if hello.is_none() => {
                    return Err(Status::failed_precondition("it did not say hello"));
                }
                report => rest.push(report),
            }
        }
        (hello, held) = match (hello, held) {
            (Some(hello), Some(held)) => return Ok(Welcome { hello, held, rest }),
            partial => partial,
        };
    }
}

fn ended(status: &Status) -> StreamEnd {
    match status.code() {
        Code::FailedPrecondition | Code::Unimplemented | Code::PermissionDenied => {
            StreamEnd::Refused(status.message().to_owned())
        }
        _ => StreamEnd::Cut(match (std::error::Error::source(status), status.message()) {
            // What tonic says of it tells less than what has happened.
            (Some(cause), _) => root_cause(cause),
            (None, "") => status.code().to_string(),
            (None, message) => message.to_owned(),
        }),
    }
}
