//! A small HTTP server for `/metrics`, `/healthz` and `/readyz`. It knows nothing else, takes few
//! connections, and waits for nobody who does not speak.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use widemap_common::limits::{HTTP_CONNECTIONS_MAX, HTTP_HEAD_MS};

use super::Operations;
use super::host::Hosts;

/// What OpenMetrics is called.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The longest that the end waits for who is being answered.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// What is told, and who may ask.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) operations: Operations,
    pub(crate) hosts: Hosts,
}

/// Serves until `leave`.
pub(crate) async fn serve(listener: TcpListener, told: Told, leave: CancellationToken) {
    let (told, places) = (Arc::new(told), Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX)));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            () = leave.cancelled() => break,
            place = Arc::clone(&places).acquire_owned() => place.expect("nobody closes it"),
        };
        let accepted = tokio::select! {
            () = leave.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (told, leave) = (Arc::clone(&told), leave.clone());
                connections.spawn(async move {
                    connection(stream, told, leave).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("a request for metrics or health cannot be taken: {error}");
                // Out of descriptors, most likely: at once it would be so again.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    // Each of them ends by itself; one that does not is ended.
    let joined = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LEAVE_PATIENCE, joined).await;
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, told: Arc<Told>, leave: CancellationToken) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = told.answer(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HTTP_HEAD_MS))
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = leave.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection for metrics or health has ended: {error}");
    }
}

impl Told {
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        let host = request.uri().authority().map(http::uri::Authority::as_str).or(host);
        if !host.is_some_and(|host| self.hosts.know(host)) {
            let why =
                "this is not the host that was asked for: ask by an address, or by its own name";
            return plain(StatusCode::MISDIRECTED_REQUEST, why);
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD are answered");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        let Operations { health, metrics } = &self.operations;
        match request.uri().path() {
            "/metrics" => match metrics.text() {
                Ok(text) => answer(StatusCode::OK, METRICS_TYPE, text),
                Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "it cannot be written"),
            },
            "/healthz" => state(health.live()),
            "/readyz" => state(health.is_ready()),
            _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz"),
        }
    }
}

fn state(state: Result<&'static str, String>) -> Response<Full<Bytes>> {
    match state {
        Ok(text) => plain(StatusCode::OK, text),
        Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn answer(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn told() -> Told {
        Told { operations: Operations::new(), hosts: Hosts::of("127.0.0.1:9434") }
    }

    fn ask(told: &Told, method: &str, path: &str, host: Option<&str>) -> Response<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        told.answer(&request.body(()).unwrap())
    }

    #[test]
    fn who_asks_for_another_host_or_another_thing_is_refused() {
        let told = told();
        let status = |method, path, host| ask(&told, method, path, host).status().as_u16();
        let local = Some("localhost:9434");
        assert_eq!(status("GET", "/metrics", local), 200);
        assert_eq!(status("HEAD", "/healthz", Some("127.0.0.1")), 200);
        assert_eq!(status("GET", "/readyz", local), 503);
        assert_eq!(status("GET", "/", local), 404);
        assert_eq!(status("POST", "/metrics", local), 405);
        assert_eq!(status("GET", "/metrics", Some("evil.example")), 421);
        assert_eq!(status("GET", "/metrics", None), 421);
        assert_eq!(status("GET", "http://evil.example/metrics", local), 421);
    }

    #[tokio::test]
    async fn a_request_is_answered_and_the_end_waits_for_nobody_who_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let leave = CancellationToken::new();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, told(), leave.clone()));
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut asking = TcpStream::connect(address).await.unwrap();
        let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        asking.write_all(request).await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nstarting: the journal is being read\n"), "{answer}");
        leave.cancel();
        server.join_next().await.unwrap().unwrap();
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
}
