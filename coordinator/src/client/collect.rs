//! Collects the results of a job: waits while it runs, and goes on where it was when the connection
//! broke. Of a job whose items are still being sent they are collected, too, if those cannot be sent again:
//! of others another job may have to be made, and who knows what that will make of them.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tonic::Streaming;
use widemap_common::ids::JobId;
use widemap_common::limits::{BEGIN_MS, JOBS_CALL_MS};
use widemap_proto::WireError;
use widemap_proto::jobs::{Collecting, FailuresPart, Job, JobPart, Position};
use widemap_proto::wire;
use widemap_proto::wire::jobs_client::JobsClient;

use super::coordinator::{Connected, Coordinator, JobsError, Patience};

/// See the file's head.
pub(crate) struct Collector<'a> {
    coordinator: &'a Coordinator,
    of: Of,
    at: Position,
    /// Whether it is known whose results come by the stream.
    is_named: bool,
    /// The job that was made in place of the one whose results were told.
    replaced_by: Option<JobId>,
    stream: Option<(Connected, Streaming<wire::ResultsReply>)>,
    /// The begin of a failure that goes on in the next message.
    begun: Option<BytesMut>,
    /// What is to be said next.
    ahead: Option<Collected>,
    /// What is to be said once the job was handed in.
    held: Option<Collected>,
    was_there: bool,
    /// Whether the way was cut, and nobody has dialled since.
    is_cut: bool,
    patience: Patience,
    /// How long to wait before the coordinator is dialled again.
    pause: Option<Duration>,
}

/// Whose results.
enum Of {
    Job(JobId),
    Early(Early),
}

/// Of the job that is being handed in.
struct Early {
    /// With this early key; without one nothing is told of it before.
    key: Option<String>,
    /// Which that was when it was last asked.
    known: Option<JobId>,
}

/// What a collector has to say.
#[derive(Debug)]
pub(crate) enum Collected {
    /// The next bytes of the output.
    Output(Bytes),
    /// The next failures: lines of the failures file, without the newline.
    Failures(Vec<Bytes>),
    /// What items have written on their standard error: some lines each, without the last newline.
    Stderr(Vec<Bytes>),
    /// The job has ended, and this was all.
    Ended(Box<Job>),
    /// The coordinator was lost, and is dialled again: why.
    Lost(String),
    /// It is back.
    Back,
}

impl Of {
    /// Whether that is said only once the job was handed in.
    fn holds(&self, collected: &Collected) -> bool {
        let is_of_the_job = match collected {
            Collected::Ended(_) | Collected::Lost(_) | Collected::Back => true,
            Collected::Output(_) | Collected::Failures(_) | Collected::Stderr(_) => false,
        };
        is_of_the_job && matches!(self, Self::Early(_))
    }

    /// Whether nothing is said before.
    fn is_silent(&self) -> bool {
        matches!(self, Self::Early(Early { key: None, .. }))
    }
}

impl Coordinator {
    /// Begins to collect the results of a job.
    pub(crate) fn collect(&self, job: JobId) -> Collector<'_> {
        self.collector(Of::Job(job), None)
    }

    /// Begins to collect the results of a job that is being handed in, with an early key if they are wanted
    /// before it is. That it cannot be reached is no error before ([`Collector::accept`]).
    pub(crate) fn collect_early(&self, key: Option<String>) -> Collector<'_> {
        // A short job is there before there is something to be had early.
        let pause = Some(Duration::from_millis(BEGIN_MS));
        self.collector(Of::Early(Early { key, known: None }), pause)
    }

    fn collector(&self, of: Of, pause: Option<Duration>) -> Collector<'_> {
        Collector {
            coordinator: self,
            of,
            at: Position::default(),
            is_named: false,
            replaced_by: None,
            stream: None,
            begun: None,
            ahead: None,
            held: None,
            was_there: false,
            is_cut: false,
            patience: Patience::new(),
            pause,
        }
    }
}

impl Collector<'_> {
    /// What comes next. Nothing is lost if it is not awaited to its end.
    ///
    /// # Errors
    /// [`JobsError`] if the coordinator refuses, was never there, or was lost for too long.
    pub(crate) async fn next(&mut self) -> Result<Collected, JobsError> {
        loop {
            if let Some(ahead) = self.ahead.take() {
                return Ok(ahead);
            }
            if self.held.is_some() || self.of.is_silent() {
                return std::future::pending().await;
            }
            if let Some(job) = self.replaced_by {
                let coordinator = self.coordinator.name().to_owned();
                return Err(JobsError::Replaced { coordinator, job });
            }
            match self.step().await {
                Ok(None) => {}
                Ok(Some(collected)) if self.of.holds(&collected) => self.held = Some(collected),
                Ok(Some(collected)) => {
                    // An open port is no sign of life: something to say is.
                    if !self.patience.renew() {
                        return Ok(collected);
                    }
                    self.ahead = Some(collected);
                    return Ok(Collected::Back);
                }
                Err(_) if matches!(self.of, Of::Early(_)) => {
                    // Whoever hands the job in is told what is wrong.
                    (self.stream, self.begun) = (None, None);
                    self.pause = Some(Duration::from_millis(BEGIN_MS));
                }
                Err(error) if !self.was_there => return Err(error),
                Err(error) => {
                    // Only the first time: one that comes and goes is not waited for without end.
                    self.is_cut = self.stream.is_some() && !self.patience.is_waiting();
                    (self.stream, self.begun) = (None, None);
                    let (is_news, why) = (!self.patience.is_waiting(), error.to_string());
                    self.pause = Some(self.patience.pause(error)?);
                    if is_news {
                        return Ok(Collected::Lost(why));
                    }
                }
            }
        }
    }

    /// The job was handed in, and is this one.
    pub(crate) fn accept(&mut self, job: JobId) {
        let known = match &self.of {
            Of::Early(early) => early.known,
            Of::Job(job) => Some(*job),
        };
        if known != Some(job) || !self.is_named {
            // Where it waits for a job with the early key, there will be none any more.
            (self.stream, self.begun) = (None, None);
        }
        if known.is_some_and(|known| known != job) {
            // With a key of the user's, somebody else may have been faster.
            let was_told = self.at != Position::default();
            self.replaced_by = was_told.then_some(job);
        }
        self.of = Of::Job(job);
        self.ahead = self.held.take();
        // It was there a moment ago.
        (self.was_there, self.pause) = (true, None);
    }

    /// Dials, or reads one message.
    async fn step(&mut self) -> Result<Option<Collected>, JobsError> {
        let Some((connected, stream)) = &mut self.stream else {
            if let Some(pause) = self.pause {
                tokio::time::sleep(pause).await;
                self.pause = None;
            }
            if std::mem::take(&mut self.is_cut) {
                // A slow reader may have kept it from dialling before.
                self.patience.begin();
            }
            self.is_named = matches!(self.of, Of::Job(_));
            self.stream = Some(self.open().await?);
            self.was_there = true;
            return Ok(None);
        };
        match stream.message().await {
            Ok(Some(message)) => match self.coordinator.read(message.try_into())? {
                Collecting::OfJob(job) => {
                    self.is_named = true;
                    let known = match &mut self.of {
                        Of::Early(early) => *early.known.get_or_insert(job),
                        Of::Job(known) => *known,
                    };
                    // A key is of one job.
                    let other = WireError::Field("ResultsReply.of_job");
                    if known == job { Ok(None) } else { Err(self.coordinator.malformed(other)) }
                }
                collecting => self.take(collecting),
            },
            Ok(None) => Err(self.coordinator.cut("it broke the results off")),
            Err(status) => Err(self.coordinator.failed(connected, &status)),
        }
    }

    async fn open(&self) -> Result<(Connected, Streaming<wire::ResultsReply>), JobsError> {
        let connected = self.coordinator.connect().await?;
        let request = match &self.of {
            Of::Job(job) => wire::ResultsRequest::from_position(*job, self.at),
            Of::Early(Early { key, known }) => {
                wire::ResultsRequest::early(key.clone().unwrap_or_default(), *known, self.at)
            }
        };
        let limit = Duration::from_millis(JOBS_CALL_MS);
        let mut client = JobsClient::new(connected.channel.clone());
        let opened = match tokio::time::timeout(limit, client.results(request)).await {
            Ok(opened) => opened,
            Err(_) => return Err(self.coordinator.cut("it does not answer")),
        };
        match opened {
            Ok(stream) => Ok((connected, stream.into_inner())),
            Err(status) => Err(self.coordinator.failed(&connected, &status)),
        }
    }

    /// Takes what was sent, if it goes on where this is.
    fn take(&mut self, collecting: Collecting) -> Result<Option<Collected>, JobsError> {
        let out_of_place = |field| self.coordinator.malformed(WireError::Field(field));
        match collecting {
            Collecting::Output(JobPart { offset, data }) => {
                if offset != self.at.output_bytes {
                    return Err(out_of_place("ResultsPart.offset"));
                }
                self.at.output_bytes += data.len() as u64;
                Ok(Some(Collected::Output(data)))
            }
            Collecting::OfJob(_) => Err(out_of_place("ResultsReply.of_job")),
            Collecting::Failures(part) => {
                if part.first != self.at.failures {
                    return Err(out_of_place("Failures.first"));
                }
                Ok(self.take_failures(part))
            }
            Collecting::Stderr(part) => {
                if part.first != self.at.stderr {
                    return Err(out_of_place("Stderr.first"));
                }
                self.at.stderr += part.pieces.len() as u64;
                Ok(Some(Collected::Stderr(part.pieces)))
            }
            Collecting::Ended(job) => Ok(Some(Collected::Ended(job))),
        }
    }

    fn take_failures(&mut self, part: FailuresPart) -> Option<Collected> {
        let mut records = part.records;
        if let (Some(mut begun), Some(first)) = (self.begun.take(), records.first_mut()) {
            begun.extend_from_slice(first);
            *first = begun.freeze();
        }
        if part.is_unfinished {
            self.begun = records.pop().map(BytesMut::from);
        }
        self.at.failures += records.len() as u64;
        (!records.is_empty()).then_some(Collected::Failures(records))
    }
}
