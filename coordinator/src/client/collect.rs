//! Collects the results of a job: waits while it runs, and goes on where it was when the connection
//! broke. Of a job whose items are still being sent they are collected, too: if it has to be made anew, what
//! it makes then must begin with what was told already.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tonic::Streaming;
use widemap_common::ids::JobId;
use widemap_common::limits::{BEGIN_MS, JOBS_CALL_MS};
use widemap_proto::WireError;
use widemap_proto::jobs::{Collecting, FailuresPart, How, Job, JobPart, Position};
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
    /// crc32c of the output that was told of a job that may have to be made anew.
    told: u32,
    /// What is compared with that, after it was.
    check: Option<Check>,
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

/// Of the job that is being handed in with this early key.
struct Early {
    key: String,
    /// Which that was when it was last asked.
    known: Option<JobId>,
    tells: Tells,
}

/// What is told of a job that is still being handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tells {
    /// Everything: it cannot be made anew.
    All,
    /// All until the first failure: the output of another run can be compared with what was told, a failure
    /// cannot.
    Output,
    /// Nothing: no two runs have the same output.
    Nothing,
}

/// The begin of an output that was told before, of another run.
#[derive(Debug, Clone, Copy)]
struct Check {
    bytes: u64,
    read: u32,
    /// Whether more was told than can be compared.
    is_hopeless: bool,
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
        let Self::Early(early) = self else { return false };
        match collected {
            // What runs twice may say it twice.
            Collected::Output(_) | Collected::Stderr(_) => false,
            Collected::Failures(_) => early.tells != Tells::All,
            Collected::Ended(_) | Collected::Lost(_) | Collected::Back => true,
        }
    }

    /// Whether nothing is said before.
    fn is_silent(&self) -> bool {
        matches!(self, Self::Early(early) if early.tells == Tells::Nothing)
    }
}

impl Coordinator {
    /// Begins to collect the results of a job.
    pub(crate) fn collect(&self, job: JobId) -> Collector<'_> {
        self.collector(Of::Job(job), None)
    }

    /// Begins to collect the results of a job that is being handed in with an early key. That it cannot be
    /// reached is no error before it is known whether it was handed in ([`Collector::accept`]).
    pub(crate) fn collect_early(&self, key: String, tells: Tells) -> Collector<'_> {
        // A short job is there before there is something to be had early.
        let pause = Some(Duration::from_millis(BEGIN_MS));
        self.collector(Of::Early(Early { key, known: None, tells }), pause)
    }

    fn collector(&self, of: Of, pause: Option<Duration>) -> Collector<'_> {
        Collector {
            coordinator: self,
            of,
            at: Position::default(),
            is_named: false,
            told: 0,
            check: None,
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
            if let Some(Check { bytes, is_hopeless: true, .. }) = self.check {
                return Err(self.different(bytes));
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
                Err(error @ JobsError::Different { .. }) => return Err(error),
                Err(_) if matches!(self.of, Of::Early(_)) => {
                    // Whoever hands the job in is told what is wrong.
                    (self.stream, self.begun) = (None, None);
                    self.pause = Some(Duration::from_millis(BEGIN_MS));
                }
                Err(error) if !self.was_there => return Err(error),
                Err(error) => {
                    self.is_cut = self.stream.is_some();
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
        let is_same = matches!(&self.of, Of::Early(early) if early.known == Some(job));
        if !is_same {
            self.start_over();
        }
        if !is_same || !self.is_named {
            // Where it waits for a job with the early key, there will be none any more.
            (self.stream, self.begun) = (None, None);
        }
        self.of = Of::Job(job);
        self.ahead = self.held.take();
        // It was there a moment ago.
        (self.was_there, self.pause) = (true, None);
    }

    /// The results come from their begin on, of another run.
    fn start_over(&mut self) {
        // What is compared already is a part of what was told.
        let told = self.at.output_bytes.max(self.check.map_or(0, |check| check.bytes));
        let is_hopeless = self.check.is_some_and(|check| check.is_hopeless)
            || (self.at.failures > 0 && self.held.is_none());
        let check = Check { bytes: told, read: 0, is_hopeless };
        self.check = (told > 0 || is_hopeless).then_some(check);
        (self.at, self.held) = (Position::default(), None);
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
                    if let Of::Early(early) = &mut self.of
                        && early.known.replace(job).is_some_and(|known| known != job)
                    {
                        self.start_over();
                    }
                    Ok(None)
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
            Of::Early(Early { key, known, .. }) => {
                wire::ResultsRequest::early(key.clone(), *known, self.at)
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
                self.take_output(offset, data)
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
            Collecting::Ended(job) => match self.check {
                Some(check) if is_complete(&job) => Err(self.different(check.bytes)),
                _ => Ok(Some(Collected::Ended(job))),
            },
        }
    }

    /// Output that comes at a place of it: what was not told before.
    fn take_output(
        &mut self,
        offset: u64,
        mut data: Bytes,
    ) -> Result<Option<Collected>, JobsError> {
        if let Some(check) = &mut self.check {
            let left = usize::try_from(check.bytes - offset).unwrap_or(usize::MAX);
            let known = data.split_to(data.len().min(left));
            check.read = crc32c::crc32c_append(check.read, &known);
            if known.len() < left {
                return Ok(None);
            }
            let Check { bytes, read, .. } = *check;
            if read != self.told {
                return Err(self.different(bytes));
            }
            self.check = None;
        }
        if matches!(self.of, Of::Early(_)) {
            self.told = crc32c::crc32c_append(self.told, &data);
        }
        Ok((!data.is_empty()).then_some(Collected::Output(data)))
    }

    fn different(&self, bytes: u64) -> JobsError {
        JobsError::Different { coordinator: self.coordinator.name().to_owned(), bytes }
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

fn is_complete(job: &Job) -> bool {
    job.status.ending().is_some_and(|ending| ending.how == How::Complete)
}
