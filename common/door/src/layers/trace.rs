//! Tells of each call: what was called and by whom, how it ended, and how long it took.
//!
//! A call is told of once, when it is over: a stream with its last trailers. One that neither side
//! ended (the caller went away, the connection was cut) is told of as such.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{BoxError, Layer, Service};
use tracing::{Instrument as _, Span};
use widemap_cluster::Role;

use crate::peer::Peer;

/// Puts the telling around a service.
#[derive(Clone, Copy, Debug)]
pub struct TraceLayer;

/// Gives each call a span, and an event when it is over.
#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
}

/// The future of a call.
type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner }
    }
}

impl<S, B> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Answering {
        let mut call = Call::begin(&request);
        let span = call.span.clone();
        let answering = span.in_scope(|| self.inner.call(request));
        let told = async move {
            let response = answering.await.map_err(|error| call.fail(error.into()))?;
            if call.end_with(response.headers()) {
                return Ok(response);
            }
            Ok(response.map(|body| Body::new(TracedBody { body, call })))
        };
        Box::pin(told.instrument(span))
    }
}

/// A call that is told of when it is over.
struct Call {
    span: Span,
    began: Instant,
    told: bool,
}

impl Call {
    fn begin<B>(request: &Request<B>) -> Self {
        let peer = request.extensions().get::<Peer>();
        // As visible as the worst that is told in it.
        let span = tracing::warn_span!(
            "call",
            method = request.uri().path(),
            peer = peer.map(|peer| tracing::field::display(peer.address)),
            role = peer.and_then(|peer| peer.role).map(Role::name),
        );
        Self { span, began: Instant::now(), told: false }
    }

    /// Tells how the call ended if `headers` say so: those of a response without a body, or trailers.
    fn end_with(&mut self, headers: &HeaderMap) -> bool {
        let Some(status) = Status::from_header_map(headers) else { return false };
        self.end(&status);
        true
    }

    /// Tells of a failure that is no status yet, and hands it on.
    fn fail(&mut self, error: BoxError) -> BoxError {
        self.end(&Status::internal(error.to_string()));
        error
    }

    fn end(&mut self, status: &Status) {
        self.told = true;
        let (code, message, duration_us) = (status.code(), status.message(), self.duration_us());
        match code {
            // These are the server's own doing, not the caller's.
            Code::Internal | Code::Unknown | Code::DataLoss => {
                tracing::warn!(parent: &self.span, ?code, message, duration_us, "a call failed");
            }
            _ => tracing::debug!(parent: &self.span, ?code, message, duration_us, "a call ended"),
        }
    }

    fn duration_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.told {
            let duration_us = self.duration_us();
            tracing::debug!(parent: &self.span, duration_us, "a call was cut off");
        }
    }
}

/// The body of a response, whose trailers say how the call ended.
struct TracedBody {
    body: Body,
    call: Call,
}

impl http_body::Body for TracedBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.call.end_with(trailers);
                }
            }
            Poll::Ready(Some(Err(status))) => self.call.end(status),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, StreamBody};
    use tower::ServiceExt as _;
    use tower_test::mock;

    use super::*;
    use crate::layers::log::Log;

    /// The response to a call that the handler answers with `answer`.
    async fn call(answer: Response<Body>) -> Response<Body> {
        let (service, mut handler) = mock::pair::<Request<()>, Response<Body>>();
        let mut request = Request::builder().uri("/widemap.v1.Worker/Session").body(()).unwrap();
        let role = Some(Role::Coordinator);
        request.extensions_mut().insert(Peer { address: ([10, 0, 0, 1], 4_000).into(), role });
        let handling = async { handler.next_request().await.unwrap().1.send_response(answer) };
        let (response, ()) = tokio::join!(TraceLayer.layer(service).oneshot(request), handling);
        response.unwrap()
    }

    /// A response of one message, which ends with `status`.
    fn stream(status: Result<Status, Status>) -> Response<Body> {
        let last = status.map(|status| {
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers).unwrap();
            Frame::trailers(trailers)
        });
        let message = Ok(Frame::data(Bytes::from_static(b"message")));
        Response::new(Body::new(StreamBody::new(tokio_stream::iter([message, last]))))
    }

    #[track_caller]
    fn assert_told(log: &Log, expected: &[&str]) {
        let calls = log.calls();
        assert_eq!(calls.len(), 1, "{calls:?}");
        let whose = "method=\"/widemap.v1.Worker/Session\" peer=10.0.0.1:4000 role=\"coordinator\"";
        for part in [whose, "duration_us="].iter().chain(expected) {
            assert!(calls[0].contains(part), "{part}: {calls:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_of_at_once() {
        let log = Log::start();
        let response = call(Status::permission_denied("not you").into_http()).await;
        assert_told(&log, &["DEBUG", "a call ended", "code=PermissionDenied", "not you"]);
        drop(response);
        assert_eq!(log.calls().len(), 1);
    }

    #[tokio::test]
    async fn a_stream_is_told_of_when_it_ends_and_passes_unchanged() {
        let log = Log::start();
        let response = call(stream(Ok(Status::ok("")))).await;
        assert_eq!(log.calls(), Vec::<String>::new());
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "message");
        assert_told(&log, &["DEBUG", "a call ended", "code=Ok"]);
    }

    #[tokio::test]
    async fn an_internal_error_is_a_warning() {
        for broken in [
            Status::internal("broken").into_http(),
            stream(Ok(Status::internal("broken"))),
            stream(Err(Status::internal("broken"))),
        ] {
            let log = Log::start();
            // Where it fails in the middle, that is what is looked at.
            let _ = call(broken).await.into_body().collect().await;
            assert_told(&log, &["WARN", "a call failed", "code=Internal", "broken"]);
        }
    }

    #[tokio::test]
    async fn a_service_that_fails_is_a_warning() {
        let log = Log::start();
        let (service, mut handler) = mock::pair::<(), Response<Body>>();
        let handling = async { handler.next_request().await.unwrap().1.send_error("it broke") };
        let service = service.map_request(|request: Request<()>| request.into_body());
        let request = Request::builder().uri("/method").body(()).unwrap();
        let (failed, ()) = tokio::join!(TraceLayer.layer(service).oneshot(request), handling);
        assert_eq!(failed.unwrap_err().to_string(), "it broke");
        let calls = log.calls();
        assert_eq!(calls.len(), 1, "{calls:?}");
        assert!(calls[0].contains("WARN") && calls[0].contains("it broke"), "{calls:?}");
    }

    #[tokio::test]
    async fn what_is_cut_off_is_told_of_too() {
        let log = Log::start();
        let mut body = call(stream(Ok(Status::ok("")))).await.into_body();
        body.frame().await.unwrap().unwrap();
        drop(body);
        assert_told(&log, &["DEBUG", "a call was cut off"]);

        // And so is a call that its caller gives up before the answer.
        let log = Log::start();
        let (service, _handler) = mock::pair::<Request<()>, Response<Body>>();
        let mut given_up = Box::pin(TraceLayer.layer(service).oneshot(Request::new(())));
        assert!(
            std::future::poll_fn(|context| {
                Poll::Ready(given_up.as_mut().poll(context).is_pending())
            })
            .await
        );
        drop(given_up);
        let calls = log.calls();
        assert_eq!(calls.len(), 1, "{calls:?}");
        assert!(calls[0].contains("a call was cut off"), "{calls:?}");
    }
}
