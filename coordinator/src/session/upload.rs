//! Sends a worker what is in files of jobs, on a call of its own beside the session, and never more at a
//! time than arrives within a moment: the session shares the connection.

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use widemap_common::limits::PART_BYTES_MAX;
use widemap_common::time::Time;
use widemap_proto::artifact::ArtifactPart;
use widemap_proto::wire;
use widemap_proto::wire::worker_client::WorkerClient;

use super::pace::{Pace, PaceBounds};
use crate::data::{Artifact, ArtifactError, ArtifactReader};

/// What is to be sent to one worker, on the present stream.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    waiting: Mutex<VecDeque<Artifact>>,
    filled: Notify,
}

/// Why sending has ended.
pub(super) enum UploadError {
    /// This side cannot read it any more.
    Unreadable(Artifact, ArtifactError),
    /// The worker did not take it: the stream is as good as cut.
    Refused(Status),
}

impl Uploads {
    /// Sends these as well. A worker asks for each once, so that there are never more than its jobs have.
    pub(crate) fn push(&self, artifacts: impl IntoIterator<Item = Artifact>) {
        self.lock().extend(artifacts);
        self.filled.notify_one();
    }

    /// A new stream begins: the worker asks again for what it needs.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    async fn next(&self) -> Artifact {
        loop {
            let next = self.lock().pop_front();
            match next {
                Some(artifact) => return artifact,
                None => self.filled.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Artifact>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends what is to be sent, until something is wrong.
pub(super) async fn send(
    uploads: &Uploads,
    mut client: WorkerClient<Channel>,
    bounds: PaceBounds,
) -> UploadError {
    loop {
        let first = uploads.next().await;
        if let Err(error) = send_some(uploads, &mut client, bounds, first).await {
            return error;
        }
    }
}

/// One call, for as long as there is something to be sent.
async fn send_some(
    uploads: &Uploads,
    client: &mut WorkerClient<Channel>,
    bounds: PaceBounds,
    first: Artifact,
) -> Result<(), UploadError> {
    let (parts, queue) = mpsc::channel(1);
    let answer = client.put_artifacts(ReceiverStream::new(queue)).await;
    let answers = answer.map_err(UploadError::Refused)?.into_inner();
    let (pace, sent) = (Pace::new(bounds), VecDeque::new());
    let mut call = Call { parts, answers, pace, begun: Instant::now(), sent };
    let mut next = Some(first);
    while let Some(artifact) = next {
        call.send(artifact).await?;
        next = uploads.lock().pop_front();
    }
    call.finish().await
}

struct Call {
    parts: mpsc::Sender<wire::ArtifactPart>,
    answers: Streaming<wire::ArtifactStored>,
    pace: Pace,
    begun: Instant,
    /// When those parts were sent that are not answered.
    sent: VecDeque<Time>,
}

impl Call {
    async fn send(&mut self, artifact: Artifact) -> Result<(), UploadError> {
        let opened = artifact.clone();
        let unreadable = |error| UploadError::Unreadable(artifact.clone(), error);
        let reader = blocking(move || ArtifactReader::open(opened)).await;
        let mut reader = reader.map_err(unreadable)?;
        loop {
            let room = self.room().await?;
            let read = blocking(move || (reader.next(room), reader)).await;
            let part = read.0.map_err(unreadable)?;
            reader = read.1;
            let Some(part) = part else { return Ok(()) };
            self.put(part).await?;
        }
    }

    /// How much may be sent now, waited for.
    async fn room(&mut self) -> Result<usize, UploadError> {
        loop {
            let room = usize::try_from(self.pace.room()).unwrap_or(usize::MAX);
            match room {
                0 => self.answer().await?,
                room => return Ok(room.min(PART_BYTES_MAX)),
            }
        }
    }

    async fn put(&mut self, part: ArtifactPart) -> Result<(), UploadError> {
        let bytes = part.data.len() as u64;
        if self.parts.send(part.into()).await.is_err() {
            // Why, its last answer says.
            return self.drain().await;
        }
        let now = self.now();
        self.pace.sent(bytes);
        self.pace.pinged(now, false);
        self.sent.push_back(now);
        Ok(())
    }

    async fn answer(&mut self) -> Result<(), UploadError> {
        match self.answers.message().await {
            Ok(Some(_)) => {
                let now = self.now();
                if let Some(stamp) = self.sent.pop_front() {
                    self.pace.answered(stamp, now);
                }
                Ok(())
            }
            Ok(None) => {
                Err(UploadError::Refused(Status::cancelled("it ended the call before its end")))
            }
            Err(status) => Err(UploadError::Refused(status)),
        }
    }

    /// Waits until the worker has stored all of it.
    async fn finish(mut self) -> Result<(), UploadError> {
        while !self.sent.is_empty() {
            self.answer().await?;
        }
        Ok(())
    }

    async fn drain(&mut self) -> Result<(), UploadError> {
        loop {
            self.answer().await?;
        }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.begun.elapsed()
    }
}

/// Runs what waits for a disk where that keeps nobody else.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => resume_unwind(error.into_panic()),
    }
}
