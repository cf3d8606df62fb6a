//! Hands a job in: its items are read as a map reads them, and sent in parts of at most 1 MiB.
//!
//! Each submission has a key, of the user or of our own making, so that one whose answer was lost can be
//! asked for, and sent again, without there being two jobs.

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream::{Stream, unfold};
use tokio::sync::Notify;
use tonic::Code;
use widemap_common::framing::Framing;
use widemap_common::limits::{CHUNK_ITEMS_MAX, PART_BYTES_MAX};
use widemap_proto::artifact::ArtifactPart;
use widemap_proto::jobs::{JobName, JobPart, Submission, Submitted, Submitting};
use widemap_proto::wire;
use widemap_proto::wire::jobs_client::JobsClient;

use super::coordinator::{Coordinator, JobsError, Patience};
use crate::data::{
    Artifact, ArtifactError, ArtifactReader, Artifacts, BlockRule, Input, InputError, Source,
};

/// What keys of our own making begin with.
const OWN_KEY: &str = "~";

/// Why a job could not be handed in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubmitError {
    /// The coordinator does not take it.
    #[error(transparent)]
    Jobs(#[from] JobsError),
    /// The items cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A file that the job brings along cannot be sent.
    #[error(transparent)]
    File(#[from] ArtifactError),
    /// The connection broke, and the items cannot be read once more.
    #[error(
        "{error}; the items came from a pipe and cannot be sent again: no job was made of them, though some of a \
         map's may have run"
    )]
    OnlyOnce {
        /// What went wrong.
        error: JobsError,
    },
}

/// Whether a key is one of our own making, which no person wants to see.
pub(crate) fn is_own_key(key: &str) -> bool {
    key.starts_with(OWN_KEY)
}

/// A key for a submission whose user gave none.
pub(crate) fn new_key() -> String {
    format!("{OWN_KEY}{:032x}", fastrand::u128(..))
}

impl Coordinator {
    /// Hands a job in, with what is in its files. When this returns, the job is durable.
    ///
    /// # Errors
    /// [`SubmitError`]: then no job was made, as far as is known.
    pub(crate) async fn submit(
        &self,
        mut submission: Submission,
        source: Source,
        artifacts: Artifacts,
    ) -> Result<Submitted, SubmitError> {
        let key = submission.submit_key.get_or_insert_with(new_key).clone();
        let mut patience = Patience::new();
        let mut was_sent = false;
        loop {
            let connected = match self.connect().await {
                Ok(connected) => connected,
                // Who was never there is not waited for.
                Err(error) if !was_sent => return Err(error.into()),
                Err(error) => {
                    tokio::time::sleep(patience.pause(error)?).await;
                    continue;
                }
            };
            if was_sent && let Some(submitted) = self.submitted(&key).await? {
                return Ok(submitted);
            }
            if was_sent && !is_repeatable(&source) {
                let error = self.cut("the connection broke while the items were sent");
                return Err(SubmitError::OnlyOnce { error });
            }
            was_sent = true;
            let missing = match self.missing(&artifacts).await {
                Ok(missing) => missing,
                Err(error) => {
                    // Nothing of the items is sent yet.
                    was_sent = false;
                    tokio::time::sleep(patience.pause(error)?).await;
                    continue;
                }
            };
            let sending = Sending::open(&submission, &source, missing)?;
            let fault = sending.fault.clone();
            let answer =
                JobsClient::new(connected.channel.clone()).submit(sending.messages()).await;
            if let Some(error) = fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Err(error);
            }
            let error = match answer {
                Ok(reply) => return Ok(self.read(reply.into_inner().try_into())?),
                Err(status) => self.failed(&connected, &status),
            };
            if is_missing(&error, &artifacts) && is_repeatable(&source) {
                // They were there when they were asked for, and are gone with the job that had them.
                continue;
            }
            tokio::time::sleep(patience.pause(error)?).await;
        }
    }

    /// What the coordinator does not have of a job's files.
    async fn missing(&self, artifacts: &Artifacts) -> Result<VecDeque<Artifact>, JobsError> {
        let digests = artifacts.digests();
        if digests.is_empty() {
            return Ok(VecDeque::new());
        }
        let missing = self.missing_artifacts(digests).await?;
        Ok(missing.into_iter().filter_map(|digest| artifacts.get(digest).cloned()).collect())
    }

    /// The job of a key that was sent before, if it became one.
    async fn submitted(&self, key: &str) -> Result<Option<Submitted>, SubmitError> {
        match self.status(JobName::SubmitKey(key.to_owned())).await {
            Ok(job) => Ok(Some(Submitted { job, was_there: false })),
            Err(JobsError::Refused { code: Code::NotFound, .. }) => Ok(None),
            // The next try will tell.
            Err(error) if error.is_passing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a submission is refused for what was not sent of its files.
fn is_missing(error: &JobsError, artifacts: &Artifacts) -> bool {
    let refused = matches!(error, JobsError::Refused { code: Code::FailedPrecondition, .. });
    refused && !artifacts.digests().is_empty()
}

/// Whether items can be read from their beginning again.
pub(crate) fn is_repeatable(source: &Source) -> bool {
    match source {
        Source::Items(_) => true,
        Source::File(path) => std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file()),
        Source::Stdin => false,
        Source::Made(recipe) => recipe.is_repeatable(),
    }
}

/// A submission that is being sent.
struct Sending {
    submission: Option<Submission>,
    /// What is to be sent of the job's files, and what is being sent.
    artifacts: VecDeque<Artifact>,
    reader: Option<ArtifactReader>,
    input: Input,
    arrived: Arc<Notify>,
    /// What is left of a long item.
    rest: Bytes,
    sent_bytes: u64,
    /// Why what is to be sent could not be read to its end.
    fault: Fault,
    is_over: bool,
}

/// See [`Sending`].
type Fault = Arc<Mutex<Option<SubmitError>>>;

impl Sending {
    fn open(
        submission: &Submission,
        source: &Source,
        artifacts: VecDeque<Artifact>,
    ) -> Result<Self, InputError> {
        let framing: Framing = submission.spec.framing;
        let arrived = Arc::new(Notify::new());
        let bell = Arc::clone(&arrived);
        // However items become chunks there, here they only have to arrive.
        let rule = BlockRule::ItemWise;
        let input = Input::open(source.clone(), framing, rule, move || bell.notify_one())?;
        Ok(Self {
            submission: Some(submission.clone()),
            artifacts,
            reader: None,
            input,
            arrived,
            rest: Bytes::new(),
            sent_bytes: 0,
            fault: Fault::default(),
            is_over: false,
        })
    }

    /// The messages, made as they are sent.
    fn messages(self) -> impl Stream<Item = wire::SubmitRequest> {
        unfold(self, async |mut sending| {
            let message = sending.next().await?;
            Some((message.into(), sending))
        })
    }

    async fn next(&mut self) -> Option<Submitting> {
        if let Some(submission) = self.submission.take() {
            return Some(Submitting::Begin(Box::new(submission)));
        }
        match self.next_artifact().await {
            Ok(None) => {}
            Ok(Some(part)) => return Some(Submitting::Artifact(part)),
            Err(error) => return self.fail(error.into()),
        }
        while !self.is_over {
            if self.rest.is_empty() {
                self.input.poll();
                self.rest = self.cut();
            }
            if !self.rest.is_empty() {
                let data = self.rest.split_to(self.rest.len().min(PART_BYTES_MAX));
                let offset = self.sent_bytes;
                self.sent_bytes += data.len() as u64;
                return Some(Submitting::Items(JobPart { offset, data }));
            }
            if let Some(error) = self.input.take_error() {
                return self.fail(error.into());
            }
            if self.input.level().rest_bytes == Some(0) {
                self.is_over = true;
                return Some(Submitting::End(self.sent_bytes));
            }
            self.arrived.notified().await;
        }
        None
    }

    /// Ends what is sent: without its end nothing of it counts.
    fn fail(&mut self, error: SubmitError) -> Option<Submitting> {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        None
    }

    async fn next_artifact(&mut self) -> Result<Option<ArtifactPart>, ArtifactError> {
        loop {
            let (reader, artifact) = match (self.reader.take(), self.artifacts.is_empty()) {
                (Some(reader), _) => (Some(reader), None),
                (None, false) => (None, self.artifacts.pop_front()),
                (None, true) => return Ok(None),
            };
            let read = tokio::task::spawn_blocking(move || {
                let mut reader = match (reader, artifact) {
                    (Some(reader), _) => reader,
                    (None, Some(artifact)) => ArtifactReader::open(artifact)?,
                    (None, None) => return Ok(None),
                };
                let part = reader.next(PART_BYTES_MAX)?;
                Ok(part.map(|part| (part, reader)))
            });
            let read = read.await.unwrap_or_else(|error| resume_unwind(error.into_panic()))?;
            if let Some((part, reader)) = read {
                self.reader = Some(reader);
                return Ok(Some(part));
            }
        }
    }

    fn cut(&mut self) -> Bytes {
        let chunk = self.input.cut(CHUNK_ITEMS_MAX, PART_BYTES_MAX as u64);
        chunk.map_or_else(Bytes::new, |chunk| chunk.bytes)
    }
}
