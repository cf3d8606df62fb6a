//! How many calls may be on their way in at a time: whoever floods a server with calls is turned
//! away at once, and nobody queues.
//!
//! A stream counts until its response begins, which for a session and for results is at once: how many
//! sessions there are is bounded elsewhere, by `SESSIONS_MAX`. One that is a job on its way in counts for
//! as long as it takes; there are `SUBMISSIONS_MAX` of them at the most.

use http::Response;
use tonic::Status;
use tonic::body::Body;
use tower::limit::{ConcurrencyLimit, GlobalConcurrencyLimitLayer};
use tower::load_shed::LoadShed;
use tower::load_shed::error::Overloaded;
use tower::util::MapResult;
use tower::{BoxError, Layer};

/// Answers calls beyond a number with RESOURCE_EXHAUSTED. The number is for all services that this
/// layer, or a clone of it, is put around, and so for all connections.
#[derive(Clone, Debug)]
pub struct LimitLayer {
    places: GlobalConcurrencyLimitLayer,
}

/// How a call is answered.
type Answer = Result<Response<Body>, BoxError>;

impl LimitLayer {
    /// Lets `calls_max` calls in at a time.
    pub fn new(calls_max: usize) -> Self {
        Self { places: GlobalConcurrencyLimitLayer::new(calls_max) }
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = MapResult<LoadShed<ConcurrencyLimit<S>>, fn(Answer) -> Answer>;

    fn layer(&self, inner: S) -> Self::Service {
        MapResult::new(LoadShed::new(self.places.layer(inner)), tell_overload)
    }
}

/// What found no place is an answer, so that the layers around see it as one.
fn tell_overload(answer: Answer) -> Answer {
    match answer {
        Err(error) if error.is::<Overloaded>() => {
            Ok(Status::resource_exhausted("too many calls at once: try again later").into_http())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use tokio_test::{assert_pending, assert_ready, task};
    use tonic::Code;
    use tower::ServiceExt as _;
    use tower_test::mock;

    use super::*;

    fn code(answer: Answer) -> Code {
        Status::from_header_map(answer.unwrap().headers()).unwrap().code()
    }

    #[tokio::test]
    async fn what_is_above_the_limit_is_answered_at_once() {
        let (service, mut handler) = mock::pair::<Request<()>, Response<Body>>();
        let layer = LimitLayer::new(2);
        // As two connections have them.
        let connections = [layer.layer(service.clone()), layer.layer(service)];
        let call = |connection: usize| connections[connection].clone().oneshot(Request::new(()));

        let (mut first, mut second) = (task::spawn(call(0)), task::spawn(call(1)));
        assert_pending!(first.poll());
        assert_pending!(second.poll());
        for connection in [0, 1] {
            let turned_away = assert_ready!(task::spawn(call(connection)).poll());
            assert_eq!(code(turned_away), Code::ResourceExhausted);
        }

        // The two that were in time have arrived, and nothing else.
        let (_, answer) = handler.next_request().await.unwrap();
        handler.next_request().await.unwrap().1.send_response(Status::ok("").into_http());
        assert_pending!(task::spawn(handler.next_request()).poll());
        assert_eq!(code(second.await), Code::Ok);

        // A response that begins makes room for one, whichever connection it comes over.
        let mut third = task::spawn(call(0));
        assert_pending!(third.poll());
        let turned_away = assert_ready!(task::spawn(call(1)).poll());
        assert_eq!(code(turned_away), Code::ResourceExhausted);
        handler.next_request().await.unwrap().1.send_response(Status::ok("").into_http());
        assert_eq!(code(third.await), Code::Ok);

        // So does a caller that went away.
        let mut fourth = task::spawn(call(1));
        assert_pending!(fourth.poll());
        drop(fourth);
        let mut fifth = task::spawn(call(1));
        assert_pending!(fifth.poll());

        answer.send_response(Status::ok("").into_http());
        assert_eq!(code(first.await), Code::Ok);
    }

    #[tokio::test]
    async fn another_failure_passes_as_it_is() {
        let (service, mut handler) = mock::pair::<Request<()>, Response<Body>>();
        handler.send_error("the service broke");
        let failed = LimitLayer::new(1).layer(service).oneshot(Request::new(())).await;
        assert!(!failed.unwrap_err().is::<Overloaded>());
    }
}
