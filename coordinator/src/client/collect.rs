//! Collects the results of a job: waits while it runs, and goes on where it was when the connection
//! broke.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tonic::Streaming;
use widemap_common::ids::JobId;
use widemap_common::limits::JOBS_CALL_MS;
use widemap_proto::WireError;
use widemap_proto::jobs::{Collecting, FailuresPart, Job, JobPart, Position};
use widemap_proto::wire;
use widemap_proto::wire::jobs_client::JobsClient;

use super::coordinator::{Connected, Coordinator, JobsError, Patience};

/// See the file's head.
pub(crate) struct Collector<'a> {
    coordinator: &'a Coordinator,
    job: JobId,
    at: Position,
    stream: Option<(Connected, Streaming<wire::ResultsReply>)>,
    /// The begin of a failure that goes on in the next message.
    begun: Option<BytesMut>,
    /// What is to be said next.
    ahead: Option<Collected>,
    was_there: bool,
    patience: Patience,
    /// How long to wait before the coordinator is dialled again.
    pause: Option<Duration>,
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

impl Coordinator {
    /// Begins to collect the results of a job.
    pub(crate) fn collect(&self, job: JobId) -> Collector<'_> {
        Collector {
            coordinator: self,
            job,
            at: Position::default(),
            stream: None,
            begun: None,
            ahead: None,
            was_there: false,
            patience: Patience::new(),
            pause: None,
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
            match self.step().await {
                Ok(None) => {}
                Ok(Some(collected)) => {
                    // An open port is no sign of life: something to say is.
                    if !self.patience.renew() {
                        return Ok(collected);
                    }
                    self.ahead = Some(collected);
                    return Ok(Collected::Back);
                }
                Err(error) if !self.was_there => return Err(error),
                Err(error) => {
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

    /// Dials, or reads one message.
    async fn step(&mut self) -> Result<Option<Collected>, JobsError> {
        let Some((connected, stream)) = &mut self.stream else {
            if let Some(pause) = self.pause {
                tokio::time::sleep(pause).await;
                self.pause = None;
            }
            self.stream = Some(self.open().await?);
            self.was_there = true;
            return Ok(None);
        };
        match stream.message().await {
            Ok(Some(message)) => {
                let collecting = self.coordinator.read(message.try_into())?;
                self.take(collecting)
            }
            Ok(None) => Err(self.coordinator.cut("it broke the results off")),
            Err(status) => Err(self.coordinator.failed(connected, &status)),
        }
    }

    async fn open(&self) -> Result<(Connected, Streaming<wire::ResultsReply>), JobsError> {
        let connected = self.coordinator.connect().await?;
        let request = wire::ResultsRequest::from_position(self.job, self.at);
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
