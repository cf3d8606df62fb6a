//! Artifacts come in: each part is stored before it is answered, so that no more is on the way than the
//! sender wants to be.

use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::try_unfold;
use tokio_stream::Stream;
use tonic::{Status, Streaming};
use widemap_proto::artifact::{ArtifactPart, ArtifactStored};
use widemap_proto::wire;

use crate::artifacts::{ArtifactCache, ReceiveError, Receiving};

/// The answers.
pub(crate) type Stored = Pin<Box<dyn Stream<Item = Result<wire::ArtifactStored, Status>> + Send>>;

struct State {
    cache: Arc<ArtifactCache>,
    parts: Streaming<wire::ArtifactPart>,
    /// The one that has begun.
    receiving: Option<Receiving>,
}

/// Stores what comes as `parts`. What is broken off is as if it had never begun.
pub(crate) fn receive(cache: Arc<ArtifactCache>, parts: Streaming<wire::ArtifactPart>) -> Stored {
    let state = State { cache, parts, receiving: None };
    Box::pin(try_unfold(state, async |mut state| {
        let stored = state.next().await?;
        Ok(stored.map(|stored| (stored.into(), state)))
    }))
}

impl State {
    async fn next(&mut self) -> Result<Option<ArtifactStored>, Status> {
        let Some(part) = self.parts.message().await? else { return Ok(None) };
        let part = ArtifactPart::try_from(part)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (digest, end) = (part.digest, part.end());
        let (cache, former) = (Arc::clone(&self.cache), self.receiving.take());
        // A disk may be slow, and there are sessions to be served.
        let stored = tokio::task::spawn_blocking(move || store(&cache, former, &part)).await;
        let stored = stored.unwrap_or_else(|error| resume_unwind(error.into_panic()));
        self.receiving = stored.map_err(|error| Status::data_loss(error.to_string()))?;
        Ok(Some(ArtifactStored { digest, end }))
    }
}

/// Stores a part. What is not whole yet comes back.
fn store(
    cache: &Arc<ArtifactCache>,
    former: Option<Receiving>,
    part: &ArtifactPart,
) -> Result<Option<Receiving>, ReceiveError> {
    let former = former.filter(|former| former.digest() == part.digest);
    let mut receiving = former.unwrap_or_else(|| cache.receive(part.digest, part.length));
    let is_whole = receiving.write(part.offset, &part.data)?;
    Ok((!is_whole).then_some(receiving))
}
