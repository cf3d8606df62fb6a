//! What every call passes before it reaches a service, from the outside in: it is told of, its peer's
//! role is looked at, and there must be room for it.

mod limit;
mod role;
mod trace;

use tower::layer::util::{Identity, Stack};

pub use limit::LimitLayer;
pub use role::RoleLayer;
pub use trace::TraceLayer;

/// All of them, the outermost last. What is refused is told of, and takes no room.
pub type Layers = Stack<LimitLayer, Stack<RoleLayer, Stack<TraceLayer, Identity>>>;

#[cfg(test)]
pub(crate) mod log {
    //! What this thread logs, for the tests to read. Every test that comes by [`TraceLayer`] needs it:
    //! where an event is first met without a listener, it is taken for one that nobody wants.
    //!
    //! [`TraceLayer`]: super::TraceLayer

    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::subscriber::DefaultGuard;

    /// The lines so far, until it is dropped.
    pub(crate) struct Log {
        lines: Lines,
        _guard: DefaultGuard,
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Log {
        pub(crate) fn start() -> Self {
            let lines = Lines::default();
            let writer = lines.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::DEBUG)
                .with_ansi(false)
                .without_time()
                .with_writer(move || writer.clone())
                .finish();
            Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
        }

        /// The lines of the calls: those of the libraries below are left out.
        pub(crate) fn calls(&self) -> Vec<String> {
            let bytes = self.lines.0.lock().unwrap().clone();
            let text = String::from_utf8(bytes).unwrap();
            text.lines().filter(|line| line.contains("call{")).map(str::to_owned).collect()
        }
    }

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use hyper_util::rt::TokioIo;
    use tokio::io::DuplexStream;
    use tokio::task::JoinSet;
    use tokio_stream::StreamExt as _;
    use tonic::transport::{Channel, Endpoint, Uri};
    use tonic::{Code, Status};
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use widemap_common::time::Timers;

    use super::log::Log;
    use crate::server::{Gate, Host};

    /// A server in memory, and a channel to it. Its connections say nothing of a peer.
    async fn serve(roles_required: bool, tasks: &mut JoinSet<()>) -> Channel {
        let gate = Gate { host: Host::Worker, roles_required, calls_max: 1 };
        let (_, health) = tonic_health::server::health_reporter();
        let router = gate.server(&Timers::default()).add_service(health);
        let (near, far) = tokio::io::duplex(64 * 1024);
        // It never ends, so that the server does not either.
        let incoming = tokio_stream::once(Ok::<_, io::Error>(far))
            .chain(tokio_stream::pending::<io::Result<DuplexStream>>());
        tasks.spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
        let mut near = Some(near);
        let connector = tower::service_fn(move |_: Uri| {
            let near = near.take().map(TokioIo::new);
            std::future::ready(near.ok_or_else(|| io::Error::other("it is dialled once")))
        });
        Endpoint::from_static("http://memory").connect_with_connector(connector).await.unwrap()
    }

    async fn check(channel: Channel) -> Result<(), Status> {
        HealthClient::new(channel).check(HealthCheckRequest::default()).await.map(drop)
    }

    #[tokio::test]
    async fn calls_pass_the_server_where_no_role_is_required() {
        let (log, mut tasks) = (Log::start(), JoinSet::new());
        check(serve(false, &mut tasks).await).await.unwrap();
        let calls = log.calls();
        assert_eq!(calls.len(), 1, "{calls:?}");
        assert!(calls[0].contains("method=\"/grpc.health.v1.Health/Check\""), "{calls:?}");
        assert!(calls[0].contains("code=Ok"), "{calls:?}");
    }

    #[tokio::test]
    async fn a_call_that_is_refused_is_told_of() {
        let (log, mut tasks) = (Log::start(), JoinSet::new());
        let refused = check(serve(true, &mut tasks).await).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let calls = log.calls();
        assert_eq!(calls.len(), 1, "{calls:?}");
        assert!(calls[0].contains("code=PermissionDenied"), "{calls:?}");
    }
}
