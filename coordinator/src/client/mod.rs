//! Calls to others. Unary ones, to a worker or a coordinator, pass the same layers on their way to the
//! channel.
//!
//! The deadline is around the retries, so that it is one for all tries of a call. Streams do not come
//! this way: a deadline does not bound them, and whoever has one redials by itself.

mod collect;
mod coordinator;
mod deadline;
mod jobs;
mod retry;
mod submit;

use std::time::Duration;

use fastrand::Rng;
use http::{Request, Response};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::{BoxError, Service, ServiceBuilder};
use widemap_common::limits::{HEALTH_MS, HEALTH_RETRIES};
use widemap_proto::wire::worker_server;

pub(crate) use collect::{Collected, Collector};
pub(crate) use coordinator::{Coordinator, JobsError};
pub(crate) use submit::{SubmitError, is_own_key, is_repeatable, new_key};

use deadline::DeadlineLayer;
use retry::RetryLayer;

/// Makes idempotent unary calls by `channel`: each is answered within `deadline`, and repeated up to
/// `retries` times while the other side is unavailable.
pub(crate) fn unary<S>(
    channel: S,
    deadline: Duration,
    retries: u32,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = BoxError, Future: Send + 'static>
+ Clone
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
{
    ServiceBuilder::new()
        .layer(DeadlineLayer::new(deadline))
        .layer(RetryLayer::new(retries, Rng::new()))
        .service(channel)
}

/// Asks the worker behind `channel` whether it serves sessions.
///
/// # Errors
/// Why it does not, or why it cannot be asked.
pub(crate) async fn health(channel: Channel) -> Result<(), Status> {
    let channel = unary(channel, Duration::from_millis(HEALTH_MS), HEALTH_RETRIES);
    let request = HealthCheckRequest { service: worker_server::SERVICE_NAME.to_owned() };
    let response = HealthClient::new(channel).check(request).await?.into_inner();
    let status = response.status();
    if status == ServingStatus::Serving {
        return Ok(());
    }
    Err(Status::unavailable(format!("the worker says of itself: {}", status.as_str_name())))
}

/// Whether a request of `bytes`, more than one packet, reaches the worker behind `channel` and is
/// answered.
pub(crate) async fn carries(channel: Channel, bytes: usize) -> bool {
    let channel = unary(channel, Duration::from_millis(HEALTH_MS), HEALTH_RETRIES);
    // No service has this name, and to say so is an answer.
    let request = HealthCheckRequest { service: "?".repeat(bytes) };
    match HealthClient::new(channel).check(request).await {
        Ok(_) => true,
        Err(status) => {
            !matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable | Code::Cancelled)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use hyper_util::rt::TokioIo;
    use tokio::io::DuplexStream;
    use tokio::net::UnixStream;
    use tokio::task::JoinSet;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;
    use tonic::transport::{Endpoint, Server, Uri};
    use tower::ServiceExt as _;
    use tower_test::mock;
    use widemap_common::limits::DOCTOR_PAYLOAD_BYTES;
    use widemap_common::time::Timers;
    use widemap_worker::{Registry, Worker, WorkerConfig};

    use super::*;
    use crate::session::{Dial, Trust};

    const DEADLINE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn one_deadline_is_for_all_tries() {
        let (service, mut handler) = mock::pair::<Request<Body>, Response<Body>>();
        let begun = Instant::now();
        let calling = unary(service, DEADLINE, 100).oneshot(Request::new(Body::empty()));
        let handling = async {
            let mut tries = 0;
            while let Some((request, answer)) = handler.next_request().await {
                assert_eq!(request.headers()["grpc-timeout"], "1000000u");
                tokio::time::sleep(DEADLINE / 4).await;
                answer.send_response(Status::unavailable("").into_http());
                tries += 1;
            }
            tries
        };
        let (answer, tries) = tokio::join!(calling, handling);
        // Which of the two it is, the pauses decide.
        let code = match answer {
            Ok(response) => Status::from_header_map(response.headers()).unwrap().code(),
            Err(error) => Status::from_error(error).code(),
        };
        assert!(matches!(code, Code::Unavailable | Code::DeadlineExceeded), "{code:?}");
        assert!((2..=4).contains(&tries), "{tries} tries");
        assert!(begun.elapsed() <= DEADLINE + DEADLINE / 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_side_is_asked_once() {
        let (service, mut handler) = mock::pair::<Request<Body>, Response<Body>>();
        let begun = Instant::now();
        let calling = unary(service, DEADLINE, 100).oneshot(Request::new(Body::empty()));
        let handling = async {
            let asked = handler.next_request().await.unwrap();
            assert!(handler.next_request().await.is_none());
            asked
        };
        let (answer, _asked) = tokio::join!(calling, handling);
        assert_eq!(Status::from_error(answer.unwrap_err()).code(), Code::DeadlineExceeded);
        assert!(begun.elapsed() <= DEADLINE + Duration::from_millis(1));
    }

    /// A channel over memory to whoever has the other end.
    async fn channel(near: DuplexStream) -> Channel {
        let mut near = Some(near);
        let connector = tower::service_fn(move |_: Uri| {
            let near = near.take().map(TokioIo::new);
            std::future::ready(near.ok_or_else(|| io::Error::other("it is dialled once")))
        });
        let endpoint = Endpoint::from_static("http://memory");
        endpoint.connect_with_connector(connector).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn behind_a_channel_a_silent_side_is_one_that_exceeds_the_deadline() {
        let (near, _far) = tokio::io::duplex(64 * 1024);
        let begun = Instant::now();
        let refused = health(channel(near).await).await.unwrap_err();
        // The channel has a timer of its own, and would say that the call was cancelled.
        assert_eq!(refused.code(), Code::DeadlineExceeded);
        let late = begun.elapsed() - Duration::from_millis(HEALTH_MS);
        assert!(late < Duration::from_millis(10), "{late:?} late");
    }

    /// Makes one call to a worker of its own, which takes no further one.
    async fn to_a_worker<T>(call: impl AsyncFnOnce(Channel) -> T) -> T {
        let (near, far) = UnixStream::pair().unwrap();
        let worker = Worker::functions_only(WorkerConfig::default(), Registry::stock());
        let (mut tasks, end) = (JoinSet::new(), CancellationToken::new());
        let serving = worker.serve_stream(far, end.clone());
        tasks.spawn(async move { serving.await.unwrap() });
        let dialled = Dial::embedded(near).connect(&Trust::default(), &Timers::default()).await;
        let answer = call(dialled.map(|line| line.channel).expect("it is there")).await;
        end.cancel();
        tasks.join_next().await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn a_worker_says_that_it_is_well() {
        to_a_worker(health).await.unwrap();
    }

    #[tokio::test]
    async fn a_worker_answers_a_request_of_several_packets() {
        assert!(to_a_worker(async |channel| carries(channel, DOCTOR_PAYLOAD_BYTES).await).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_side_is_reached_by_nothing() {
        let (near, _far) = tokio::io::duplex(64 * 1024);
        assert!(!carries(channel(near).await, DOCTOR_PAYLOAD_BYTES).await);
    }

    #[tokio::test]
    async fn a_server_that_is_not_well_or_no_worker_is_told_apart() {
        let (reporter, service) = tonic_health::server::health_reporter();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let mut tasks = JoinSet::new();
        let serving = Server::builder()
            .add_service(service)
            .serve_with_incoming(tokio_stream::once(Ok::<_, io::Error>(far)));
        tasks.spawn(async move { serving.await.unwrap() });
        let channel = channel(near).await;

        assert_eq!(health(channel.clone()).await.unwrap_err().code(), Code::NotFound);
        let not_serving = tonic_health::ServingStatus::NotServing;
        reporter.set_service_status(worker_server::SERVICE_NAME, not_serving).await;
        let refused = health(channel).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert_eq!(refused.message(), "the worker says of itself: NOT_SERVING");
    }
}
