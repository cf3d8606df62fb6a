//! The jobs API as a gRPC server: what comes over the wire becomes calls of the [`Desk`]. Only those
//! who have the key of the cluster are served, or, without a key, whoever reaches the listener.

mod ask;
mod refusal;
mod results;
mod submit;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use widemap_cluster::Identity;
use widemap_common::limits::{CALLS_OPENING_MAX, SUBMISSIONS_MAX};
use widemap_common::time::Timers;
use widemap_door::{Door, Gate, Host};
use widemap_proto::wire;
use widemap_proto::wire::jobs_server::{Jobs, JobsServer};

use crate::service::Desk;

/// How long connections may take to close once the server has ended.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// Why the server ended in bad order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Its certificate cannot be used.
    #[error("cannot use the certificate: {0}")]
    Identity(#[source] io::Error),
    /// It ended by itself.
    #[error("the server of jobs ended: {0}")]
    Server(#[source] tonic::transport::Error),
}

/// Serves users who connect to `listener`, until `shutdown` is cancelled: then streams end with
/// UNAVAILABLE, so that those who collect come back to the next life of this coordinator.
///
/// # Errors
/// [`ApiError`] if it cannot go on.
pub(crate) async fn serve(
    desk: Desk,
    listener: TcpListener,
    identity: Option<Arc<Identity>>,
    timers: &Timers,
    shutdown: CancellationToken,
) -> Result<(), ApiError> {
    let roles_required = identity.is_some();
    let door = Door::new(Host::Coordinator, identity, timers).map_err(ApiError::Identity)?;
    // A submission counts until it is answered: they leave room for the others.
    let calls_max = CALLS_OPENING_MAX + SUBMISSIONS_MAX;
    let gate = Gate { host: Host::Coordinator, roles_required, calls_max };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<JobsServer<Service>>().await;
    let service = Service { desk, shutdown: shutdown.clone() };
    let router =
        gate.server(timers).add_service(JobsServer::new(service)).add_service(health_service);
    let (sender, connections) = mpsc::channel(1);
    let incoming = ReceiverStream::new(connections);
    let serving = router.serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    let mut serving = pin!(serving);
    tokio::select! {
        served = &mut serving => return served.map_err(ApiError::Server),
        // It ends when nobody takes connections any more.
        () = door.keep(listener, sender) => {}
        () = shutdown.cancelled() => {}
    }
    // A connection that does not close by itself is closed by the end of the process.
    let closed = tokio::time::timeout(CLOSE_PATIENCE, serving).await;
    closed.unwrap_or(Ok(())).map_err(ApiError::Server)
}

/// The calls, each carried out in the file of its group.
struct Service {
    desk: Desk,
    shutdown: CancellationToken,
}

/// An answer of one message.
type Answer<T> = Result<Response<T>, Status>;

/// A stream of answers, made only as fast as it is read.
type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Jobs for Service {
    type ResultsStream = Answers<wire::ResultsReply>;
    type WatchStream = Answers<wire::JobStatus>;

    async fn submit(
        &self,
        request: Request<Streaming<wire::SubmitRequest>>,
    ) -> Answer<wire::SubmitReply> {
        let submitted = submit::submit(&self.desk, request.into_inner(), &self.shutdown).await?;
        Ok(Response::new(submitted.into()))
    }

    async fn missing_artifacts(
        &self,
        request: Request<wire::Artifacts>,
    ) -> Answer<wire::Artifacts> {
        Ok(Response::new(ask::missing_artifacts(&self.desk, request.into_inner())?))
    }

    async fn results(&self, request: Request<wire::ResultsRequest>) -> Answer<Self::ResultsStream> {
        let shutdown = self.shutdown.clone();
        Ok(Response::new(results::results(&self.desk, &request.into_inner(), shutdown)?))
    }

    async fn watch(&self, request: Request<wire::JobName>) -> Answer<Self::WatchStream> {
        let shutdown = self.shutdown.clone();
        Ok(Response::new(results::watch(&self.desk, request.into_inner(), shutdown)?))
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Answer<wire::ListReply> {
        Ok(Response::new(ask::list(&self.desk, &request.into_inner())))
    }

    async fn status(&self, request: Request<wire::JobName>) -> Answer<wire::Job> {
        Ok(Response::new(ask::status(&self.desk, request.into_inner())?))
    }

    async fn cancel(&self, request: Request<wire::JobName>) -> Answer<wire::Job> {
        Ok(Response::new(ask::cancel(&self.desk, request.into_inner()).await?))
    }

    async fn pause(&self, request: Request<wire::JobName>) -> Answer<wire::Job> {
        Ok(Response::new(ask::pause(&self.desk, request.into_inner()).await?))
    }

    async fn unpause(&self, request: Request<wire::JobName>) -> Answer<wire::Job> {
        Ok(Response::new(ask::unpause(&self.desk, request.into_inner()).await?))
    }

    async fn explain(&self, request: Request<wire::ExplainRequest>) -> Answer<wire::Explanation> {
        Ok(Response::new(ask::explain(&self.desk, &request.into_inner()).await?))
    }

    async fn workers(&self, request: Request<wire::WorkersRequest>) -> Answer<wire::WorkersReply> {
        let wire::WorkersRequest {} = request.into_inner();
        Ok(Response::new(ask::workers(&self.desk).await?))
    }

    async fn prune(&self, request: Request<wire::PruneRequest>) -> Answer<wire::PruneReply> {
        Ok(Response::new(ask::prune(&self.desk, request.into_inner()).await?))
    }
}
