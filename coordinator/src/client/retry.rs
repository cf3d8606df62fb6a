//! Repeats a call while the other side is unavailable: a worker that restarts, a connection that broke.
//!
//! For idempotent unary calls only, as a call that failed on its way back was carried out.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{BoxError, Layer, Service, ServiceExt as _};
use widemap_common::backoff;
use widemap_common::limits::{CALL_KEPT_BYTES_MAX, CALL_RETRY_MS, CALL_RETRY_MS_MAX};

use super::deadline::Until;

/// Puts [`Retry`] around a service.
#[derive(Clone, Debug)]
pub(crate) struct RetryLayer {
    retries: u32,
    rng: Rng,
}

/// Makes a call again after UNAVAILABLE, with growing pauses that end before the call's deadline.
#[derive(Clone, Debug)]
pub(crate) struct Retry<S> {
    inner: S,
    retries: u32,
    rng: Rng,
}

/// The future of a call.
type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// How a call is answered.
type Answer = Result<Response<Body>, BoxError>;

impl RetryLayer {
    /// Repeats a call up to `retries` times, so that it is made once more than that at the most.
    pub(crate) fn new(retries: u32, rng: Rng) -> Self {
        Self { retries, rng }
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry { inner, retries: self.retries, rng: self.rng.clone() }
    }
}

impl<S> Service<Request<Body>> for Retry<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        // The one that is ready makes the call; its clone has yet to become so.
        let next = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, next);
        Box::pin(repeat(ready, request, self.retries, self.rng.fork()))
    }
}

/// Makes a call until it is answered, or no further try is allowed.
async fn repeat<S>(mut service: S, request: Request<Body>, retries: u32, mut rng: Rng) -> Answer
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Into<BoxError>,
{
    let (parts, body) = request.into_parts();
    let body = match Kept::read(body).await? {
        Kept::Whole(body) => body,
        Kept::TooLong(body) => {
            return service.call(Request::from_parts(parts, body)).await.map_err(Into::into);
        }
    };
    let until = parts.extensions.get().map(|Until(until)| *until);
    let mut retry = 0;
    loop {
        let request = Request::from_parts(parts.clone(), Body::new(Full::new(body.clone())));
        let answer = service.call(request).await.map_err(Into::into);
        if retry == retries || !is_unavailable(&answer) {
            return answer;
        }
        let base = Duration::from_millis(CALL_RETRY_MS);
        let longest = Duration::from_millis(CALL_RETRY_MS_MAX);
        let pause = backoff::pause(retry, base, longest, &mut rng);
        // What went wrong says more than that the time is up.
        if until.is_some_and(|until| Instant::now() + pause >= until) {
            return answer;
        }
        drop(answer);
        tracing::debug!(method = parts.uri.path(), retry, ?pause, "unavailable: trying again");
        tokio::time::sleep(pause).await;
        service.ready().await.map_err(Into::into)?;
        retry += 1;
    }
}

/// Whether the other side had no say, or said that it cannot answer now.
fn is_unavailable(answer: &Answer) -> bool {
    match answer {
        // A response that is a status alone.
        Ok(response) => Status::from_header_map(response.headers())
            .is_some_and(|status| status.code() == Code::Unavailable),
        Err(error) => match error.downcast_ref::<Status>() {
            Some(status) => status.code() == Code::Unavailable,
            // The channel itself fails where no response came.
            None => error.is::<tonic::transport::Error>(),
        },
    }
}

/// The body of a request.
enum Kept {
    /// In memory, to be sent as often as needed.
    Whole(Bytes),
    /// More than is kept: can be sent once.
    TooLong(Body),
}

impl Kept {
    async fn read(mut body: Body) -> Result<Self, Status> {
        let mut kept = BytesMut::new();
        while let Some(frame) = body.frame().await {
            // A request of gRPC has no trailers.
            let Ok(data) = frame?.into_data() else { continue };
            kept.extend_from_slice(&data);
            if kept.len() > CALL_KEPT_BYTES_MAX {
                let begin = tokio_stream::once(Ok(Frame::data(kept.freeze())));
                let whole = StreamBody::new(begin.chain(BodyStream::new(body)));
                return Ok(Self::TooLong(Body::new(whole)));
            }
        }
        Ok(Self::Whole(kept.freeze()))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use hyper_util::rt::TokioIo;
    use tokio::io::DuplexStream;
    use tonic::transport::{Endpoint, Uri};
    use tower_test::mock;

    use super::*;

    const RETRIES: u32 = 3;

    /// What a call came to: its answer, the bodies that arrived, and how long it took.
    struct Outcome {
        answer: Answer,
        arrived: Vec<Bytes>,
        took: Duration,
    }

    impl Outcome {
        fn code(self) -> Code {
            match self.answer {
                Ok(response) => Status::from_header_map(response.headers()).unwrap().code(),
                Err(error) => Status::from_error(error).code(),
            }
        }
    }

    fn request(body: impl Into<Bytes>) -> Request<Body> {
        let mut request = Request::new(Body::new(Full::new(body.into())));
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        request
    }

    /// Makes a call to a handler that has `answers` in this order.
    async fn call(request: Request<Body>, answers: Vec<Answer>) -> Outcome {
        let (service, mut handler) = mock::pair::<Request<Body>, Response<Body>>();
        let begun = Instant::now();
        let layer = RetryLayer::new(RETRIES, Rng::with_seed(1));
        let calling = layer.layer(service).oneshot(request);
        let handling = async {
            let mut answers = answers.into_iter();
            let mut arrived = Vec::new();
            // It ends with the last clone of the service.
            while let Some((request, answer)) = handler.next_request().await {
                assert_eq!(request.headers()["te"], "trailers");
                arrived.push(request.into_body().collect().await.unwrap().to_bytes());
                match answers.next().expect("no further try is allowed") {
                    Ok(response) => answer.send_response(response),
                    Err(error) => answer.send_error(error),
                }
            }
            assert_eq!(answers.len(), 0, "more tries are allowed");
            arrived
        };
        let (answer, arrived) = tokio::join!(calling, handling);
        Outcome { answer, arrived, took: begun.elapsed() }
    }

    fn answer(code: Code) -> Answer {
        Ok(Status::new(code, "").into_http())
    }

    fn failure(code: Code) -> Answer {
        Err(Status::new(code, "").into())
    }

    /// What a channel fails with that cannot connect.
    async fn transport_error() -> BoxError {
        let connector = tower::service_fn(|_: Uri| {
            let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
            std::future::ready(Err::<TokioIo<DuplexStream>, _>(refused))
        });
        let endpoint = Endpoint::from_static("http://nowhere");
        endpoint.connect_with_connector(connector).await.unwrap_err().into()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_not_asked_for_again() {
        for code in [Code::Ok, Code::Internal, Code::DeadlineExceeded, Code::ResourceExhausted] {
            for answer in [answer(code), failure(code)] {
                let outcome = call(request("question"), vec![answer]).await;
                assert_eq!((outcome.took, outcome.code()), (Duration::ZERO, code));
            }
        }
        // A response that begins well, and a failure that is not the channel's.
        let outcome = call(request("question"), vec![Ok(Response::default())]).await;
        assert!(outcome.answer.unwrap().headers().is_empty());
        let outcome = call(request("question"), vec![Err("it broke".into())]).await;
        assert_eq!(outcome.answer.unwrap_err().to_string(), "it broke");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_unavailable_is_asked_again_until_it_answers() {
        let answers = vec![
            answer(Code::Unavailable),
            Err(transport_error().await),
            failure(Code::Unavailable),
            answer(Code::Ok),
        ];
        let outcome = call(request("question"), answers).await;
        assert_eq!(outcome.arrived, ["question"; 4]);
        // At least half of each pause is waited: of 50, 100 and 200 ms.
        let (least, most) = (Duration::from_millis(175), Duration::from_millis(353));
        assert!(outcome.took >= least && outcome.took <= most, "{:?}", outcome.took);
        assert_eq!(outcome.code(), Code::Ok);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_try_counts() {
        let answers = (0..=RETRIES).map(|_| answer(Code::Unavailable)).collect();
        assert_eq!(call(request("question"), answers).await.code(), Code::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn no_try_is_made_past_the_deadline() {
        let mut request = request("question");
        let until = Instant::now() + Duration::from_millis(CALL_RETRY_MS + CALL_RETRY_MS / 2);
        request.extensions_mut().insert(Until(until));
        let answers = vec![answer(Code::Unavailable), answer(Code::Unavailable)];
        let outcome = call(request, answers).await;
        assert!(Instant::now() < until);
        assert_eq!(outcome.code(), Code::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_too_long_arrives_whole_and_once() {
        let longest = Bytes::from(vec![b'x'; CALL_KEPT_BYTES_MAX]);
        let answers = vec![answer(Code::Unavailable), answer(Code::Ok)];
        let outcome = call(request(longest.clone()), answers).await;
        assert_eq!(outcome.arrived, [longest.clone(), longest.clone()]);

        let frames = [longest.clone(), "y".into(), "z".into()];
        let frames = frames.map(|data| Ok::<_, Status>(Frame::data(data)));
        let mut longer = request("");
        *longer.body_mut() = Body::new(StreamBody::new(tokio_stream::iter(frames)));
        let outcome = call(longer, vec![answer(Code::Unavailable)]).await;
        assert_eq!(outcome.arrived, [[longest.as_ref(), b"yz"].concat()]);
        assert_eq!(outcome.code(), Code::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_breaks_is_not_sent() {
        let broken = tokio_stream::once(Err::<Frame<Bytes>, _>(Status::data_loss("")));
        let request = Request::new(Body::new(StreamBody::new(broken)));
        assert_eq!(call(request, vec![]).await.code(), Code::DataLoss);
    }
}
