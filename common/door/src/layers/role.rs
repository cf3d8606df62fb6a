//! Who may call what: sessions and jobs are for those who have the key, health is for every member of
//! the cluster.
//!
//! The handshake has proved that the peer's certificate is of the cluster; what the certificate lets
//! it be has come with the connection, as its [`Peer`].

use std::future::ready;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::Status;
use tower::{Layer, Service};
use widemap_cluster::Role;

use crate::peer::Peer;
use crate::server::Host;

/// Where the methods of gRPC's health service are.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Puts the check around a service.
#[derive(Clone, Copy, Debug)]
pub struct RoleLayer {
    required: bool,
    host: Host,
}

/// Answers a call with PERMISSION_DENIED unless its peer's role allows it.
#[derive(Clone, Debug)]
pub struct RoleCheck<S> {
    inner: S,
    required: bool,
    host: Host,
}

impl RoleLayer {
    /// Looks at roles if they are `required`, which they are where there is a key. Without one nothing
    /// is known of any peer, and everything passes.
    #[must_use]
    pub fn required(required: bool, host: Host) -> Self {
        Self { required, host }
    }
}

impl<S> Layer<S> for RoleLayer {
    type Service = RoleCheck<S>;

    fn layer(&self, inner: S) -> RoleCheck<S> {
        RoleCheck { inner, required: self.required, host: self.host }
    }
}

impl<S, B, R> Service<Request<B>> for RoleCheck<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let peer = request.extensions().get::<Peer>();
        match refusal(self.host, peer, request.uri().path()) {
            Some(reason) if self.required => {
                Box::pin(ready(Ok(Status::permission_denied(reason).into_http())))
            }
            _ => Box::pin(self.inner.call(request)),
        }
    }
}

/// Why a peer may not call the method at `path`.
fn refusal(host: Host, peer: Option<&Peer>, path: &str) -> Option<String> {
    let shown = match peer.map(|peer| peer.role) {
        Some(Some(Role::Coordinator | Role::Service)) => return None,
        Some(Some(Role::Worker)) if path.starts_with(HEALTH) => return None,
        Some(Some(Role::Worker)) => "this certificate is a worker's",
        Some(None) => "this certificate is for no role",
        // The handshake asks for a certificate: a connection that came another way is not trusted.
        None => "this connection shows no certificate",
    };
    Some(format!("{shown}: {}", host.guests()))
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic::body::Body;
    use tower::ServiceExt as _;
    use tower_test::mock;

    use super::*;

    const SESSION: &str = "/widemap.v1.Worker/Session";
    const CHECK: &str = "/grpc.health.v1.Health/Check";

    fn peer(role: Option<Role>) -> Option<Peer> {
        Some(Peer { address: ([10, 0, 0, 1], 4_000).into(), role })
    }

    fn request(peer: Option<Peer>, path: &str) -> Request<()> {
        let mut request = Request::builder().uri(path).body(()).unwrap();
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        request
    }

    /// What the call is answered with, and whether the handler behind the layer was called.
    async fn call(required: bool, request: Request<()>) -> (Code, String, bool) {
        call_at(Host::Worker, required, request).await
    }

    async fn call_at(host: Host, required: bool, request: Request<()>) -> (Code, String, bool) {
        let (service, mut handler) = mock::pair::<Request<()>, Response<Body>>();
        let answering = RoleLayer::required(required, host).layer(service).oneshot(request);
        let handling = async {
            let Some((_, answer)) = handler.next_request().await else { return false };
            answer.send_response(Status::ok("").into_http());
            true
        };
        let (answer, handled) = tokio::join!(answering, handling);
        let status = Status::from_header_map(answer.unwrap().headers()).unwrap();
        (status.code(), status.message().to_owned(), handled)
    }

    #[tokio::test]
    async fn a_coordinator_may_call_everything() {
        for path in [SESSION, CHECK, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
            let (code, _, handled) = call(true, request(peer(Some(Role::Coordinator)), path)).await;
            assert_eq!((code, handled), (Code::Ok, true), "{path}");
        }
    }

    #[tokio::test]
    async fn a_worker_may_ask_for_health_only() {
        let (code, _, handled) = call(true, request(peer(Some(Role::Worker)), CHECK)).await;
        assert_eq!((code, handled), (Code::Ok, true));
        for path in [SESSION, "/grpc.health.v1.Healthy/Check", "/"] {
            let (code, message, handled) =
                call(true, request(peer(Some(Role::Worker)), path)).await;
            assert_eq!((code, handled), (Code::PermissionDenied, false), "{path}");
            assert_eq!(
                message,
                "this certificate is a worker's: only a coordinator may open a session"
            );
        }
    }

    #[tokio::test]
    async fn a_worker_gets_nothing_of_jobs() {
        for path in ["/widemap.v1.Jobs/List", "/widemap.v1.Jobs/Submit"] {
            let request = request(peer(Some(Role::Worker)), path);
            let (code, message, handled) = call_at(Host::Coordinator, true, request).await;
            assert_eq!((code, handled), (Code::PermissionDenied, false), "{path}");
            assert_eq!(
                message,
                "this certificate is a worker's: jobs are for those who have the key of the cluster"
            );
        }
    }

    #[tokio::test]
    async fn who_has_no_role_may_call_nothing() {
        for (peer, reason) in [
            (peer(None), "this certificate is for no role"),
            (None, "this connection shows no certificate"),
        ] {
            for path in [SESSION, CHECK] {
                let (code, message, handled) = call(true, request(peer, path)).await;
                assert_eq!((code, handled), (Code::PermissionDenied, false), "{peer:?} {path}");
                assert!(message.starts_with(reason), "{message}");
            }
        }
    }

    #[tokio::test]
    async fn everybody_may_call_everything_where_no_role_is_required() {
        for peer in [None, peer(None), peer(Some(Role::Worker)), peer(Some(Role::Coordinator))] {
            for path in [SESSION, CHECK] {
                let (code, _, handled) = call(false, request(peer, path)).await;
                assert_eq!((code, handled), (Code::Ok, true), "{peer:?} {path}");
            }
        }
    }
}
