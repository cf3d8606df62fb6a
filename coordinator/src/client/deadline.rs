//! Bounds a call in time, on both sides: the other one is told, and this one does not count on it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tower::{BoxError, Layer, Service};

/// How gRPC tells the other side how long it has.
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// The most digits that gRPC allows there.
const DIGITS_MAX: usize = 8;

/// The units that gRPC allows there, in nanoseconds, the finest first.
const UNITS: [(char, u64); 6] = [
    ('n', 1),
    ('u', 1_000),
    ('m', 1_000_000),
    ('S', 1_000_000_000),
    ('M', 60 * 1_000_000_000),
    ('H', 3_600 * 1_000_000_000),
];

/// Puts [`Deadline`] around a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeadlineLayer {
    limit: Duration,
}

/// Ends a call with DEADLINE_EXCEEDED after so long, or sooner where the request says so.
#[derive(Clone, Debug)]
pub(crate) struct Deadline<S> {
    inner: S,
    limit: Duration,
}

/// When a request's call is over, as one of its extensions: for the layers within.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until(pub(crate) Instant);

/// The future of a call.
type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

impl DeadlineLayer {
    /// Gives each call `limit`, from when it is made until the last of its response is there.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner, limit: self.limit }
    }
}

impl<S> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answering {
        let limit = match asked_for(request.headers()) {
            Some(shorter) if shorter <= self.limit => shorter,
            _ => {
                request.headers_mut().insert(GRPC_TIMEOUT, header_value(self.limit));
                self.limit
            }
        };
        let until = Instant::now() + limit;
        request.extensions_mut().insert(Until(until));
        let answering = self.inner.call(request);
        let mut timer = Box::pin(tokio::time::sleep_until(until));
        Box::pin(async move {
            tokio::select! {
                // The channel looks at the header too, and would call it a cancellation.
                biased;
                () = timer.as_mut() => Err(exceeded(limit).into()),
                answer = answering => {
                    let response = answer.map_err(Into::into)?;
                    Ok(response.map(|body| Body::new(BoundedBody { body, timer, limit })))
                }
            }
        })
    }
}

fn exceeded(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("no answer within {limit:?}"))
}

/// The time that a request gives itself; none if it says nothing that gRPC knows.
fn asked_for(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let unit = text.chars().last()?;
    let (_, unit_ns) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let digits = &text[..text.len() - 1];
    if digits.len() > DIGITS_MAX || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    // Eight digits of hours are more nanoseconds than a u64 holds.
    Some(Duration::from_nanos_u128(digits.parse::<u128>().ok()? * u128::from(*unit_ns)))
}

/// A time as gRPC writes it, in the finest unit that has room for it. What does not fit is rounded up:
/// the other side does not give up before this one.
fn header_value(limit: Duration) -> HeaderValue {
    let count_max = 10_u128.pow(DIGITS_MAX as u32) - 1;
    let text = UNITS
        .iter()
        .map(|(unit, unit_ns)| (limit.as_nanos().div_ceil(u128::from(*unit_ns)), unit))
        .find(|(count, _)| *count <= count_max)
        .map_or_else(|| format!("{count_max}H"), |(count, unit)| format!("{count}{unit}"));
    text.try_into().expect("digits and a letter are a header's value")
}

/// The body of a response, which ends by the deadline as well.
struct BoundedBody {
    body: Body,
    timer: Pin<Box<Sleep>>,
    limit: Duration,
}

impl http_body::Body for BoundedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(exceeded(self.limit))));
        }
        Pin::new(&mut self.body).poll_frame(context)
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
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio_stream::StreamExt as _;
    use tonic::Code;
    use tower::ServiceExt as _;
    use tower_test::mock;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn request(timeout: Option<&str>) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        if let Some(timeout) = timeout {
            request.headers_mut().insert(GRPC_TIMEOUT, timeout.parse().unwrap());
        }
        request
    }

    /// How long a call takes that nobody answers, how it ends, and the header that arrives.
    async fn unanswered(timeout: Option<&str>) -> (Duration, Code, String) {
        let (service, mut handler) = mock::pair::<Request<Body>, Response<Body>>();
        let begun = Instant::now();
        let calling = DeadlineLayer::new(LIMIT).layer(service).oneshot(request(timeout));
        let (ended, arrived) = tokio::join!(calling, handler.next_request());
        let (arrived, _) = arrived.unwrap();
        let header = arrived.headers()[GRPC_TIMEOUT].to_str().unwrap().to_owned();
        (begun.elapsed(), Status::from_error(ended.unwrap_err()).code(), header)
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_by_its_deadline_and_the_other_side_is_told() {
        // Kept until the end: a handler that hangs up is an answer.
        for (timeout, limit, header) in [
            (None, LIMIT, "5000000u"),
            // A shorter one stays as it is, a longer one is shortened.
            (Some("2S"), Duration::from_secs(2), "2S"),
            (Some("5S"), LIMIT, "5S"),
            (Some("1H"), LIMIT, "5000000u"),
            // What gRPC does not know counts for nothing.
            (Some("1s"), LIMIT, "5000000u"),
            (Some("000000001S"), LIMIT, "5000000u"),
        ] {
            let (took, code, sent) = unanswered(timeout).await;
            assert_eq!((code, sent.as_str()), (Code::DeadlineExceeded, header), "{timeout:?}");
            // The timer counts in milliseconds.
            assert!(took >= limit && took <= limit + Duration::from_millis(1), "{timeout:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_time_passes() {
        let (service, mut handler) = mock::pair::<Request<Body>, Response<Body>>();
        let calling = DeadlineLayer::new(LIMIT).layer(service).oneshot(request(None));
        let handling = async {
            let (request, answer) = handler.next_request().await.unwrap();
            let until = request.extensions().get::<Until>().unwrap().0;
            assert_eq!(until - Instant::now(), LIMIT);
            tokio::time::sleep(LIMIT - Duration::from_millis(1)).await;
            answer.send_response(Response::new(Body::new("message".to_owned())));
        };
        let (answer, ()) = tokio::join!(calling, handling);
        let collected = answer.unwrap().into_body().collect().await.unwrap();
        assert_eq!(collected.to_bytes(), "message");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_in_time_passes() {
        let (service, mut handler) = mock::pair::<Request<Body>, Response<Body>>();
        let calling = DeadlineLayer::new(LIMIT).layer(service).oneshot(request(None));
        let handling = async { handler.next_request().await.unwrap().1.send_error("it broke") };
        let (answer, ()) = tokio::join!(calling, handling);
        assert_eq!(answer.unwrap_err().to_string(), "it broke");
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_begins_and_does_not_end_is_bounded_too() {
        let (service, mut handler) = mock::pair::<Request<Body>, Response<Body>>();
        let begun = Instant::now();
        let calling = DeadlineLayer::new(LIMIT).layer(service).oneshot(request(None));
        let first = Ok::<_, Status>(Frame::data(Bytes::from_static(b"first")));
        let stuck = StreamBody::new(tokio_stream::once(first).chain(tokio_stream::pending()));
        let handling = async {
            let (_, answer) = handler.next_request().await.unwrap();
            tokio::time::sleep(LIMIT / 2).await;
            answer.send_response(Response::new(Body::new(stuck)));
        };
        let (answer, ()) = tokio::join!(calling, handling);
        let mut body = answer.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        let ended = body.frame().await.unwrap().unwrap_err();
        assert_eq!(ended.code(), Code::DeadlineExceeded);
        assert!(begun.elapsed() <= LIMIT + Duration::from_millis(1));
    }

    #[test]
    fn a_time_is_written_with_eight_digits_at_the_most() {
        for (limit, text) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_001), "100001u"),
            (Duration::from_secs(60), "60000000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666667M"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(header_value(limit), text);
        }
        let headers = request(Some("99999999H"));
        let hours = Duration::from_secs(99_999_999 * 3_600);
        assert_eq!(asked_for(headers.headers()), Some(hours));
    }
}
