//! A host between the coordinator and a worker that passes on what both say, changed.

use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::{Endpoint, Server, Uri};
use tonic::{Request, Response, Status, Streaming};
use turmoil::net::{TcpListener, TcpStream};
use widemap_proto::wire::report::Kind;
use widemap_proto::wire::worker_client::WorkerClient;
use widemap_proto::wire::worker_server::{Worker, WorkerServer};
use widemap_proto::wire::{ArtifactPart, ArtifactStored, Done, FromWorker, ToWorker};

use super::cluster::{PORT, Witness, connections};

/// What becomes of the results that pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mischief {
    /// A bit of the first one is flipped.
    Flips,
    /// The first one says that it is longer than it is.
    Lengthens,
    /// Each of them is passed on twice.
    Doubles,
    /// None; but the first stream is refused, as by a worker of another release.
    RefusesOnce,
    /// None; but the answers to pings on the first stream are not passed on.
    Unanswering,
    /// None; but the first `streams` are ended as a server does that is about to go: no new calls,
    /// then the end of the connection.
    GoesAway { streams: u32 },
}

struct Middleman {
    upstream: &'static str,
    mischief: Mischief,
    done: Arc<AtomicU32>,
    witness: Arc<Witness>,
}

/// Passes on what goes to and from the worker at `upstream`.
pub(super) async fn serve(
    upstream: &'static str,
    mischief: Mischief,
    witness: Arc<Witness>,
) -> turmoil::Result {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    let done = Arc::new(AtomicU32::new(0));
    let mut left = match mischief {
        Mischief::GoesAway { streams } => streams,
        _ => 0,
    };
    loop {
        let (done_there, witness) = (Arc::clone(&done), Arc::clone(&witness));
        let service = Middleman { upstream, mischief, done: done_there, witness };
        let leaves = left > 0;
        let after = async |ms: u64| match leaves {
            true => tokio::time::sleep(Duration::from_millis(ms)).await,
            false => std::future::pending().await,
        };
        let ended = Arc::new(AtomicBool::new(false));
        let (incoming, accepting) = connections(&listener, Arc::clone(&ended));
        let serving = Server::builder()
            .add_service(WorkerServer::new(service))
            .serve_with_incoming_shutdown(incoming, after(200));
        tokio::select! {
            // After its goaway it waits for the stream to end, which it does not.
            served = serving => served?,
            () = accepting => {}
            () = after(300) => {}
        }
        ended.store(true, Ordering::SeqCst);
        left = left.saturating_sub(1);
    }
}

#[tonic::async_trait]
impl Worker for Middleman {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<FromWorker, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<ToWorker>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let streams_before = self.witness.streams.fetch_add(1, Ordering::SeqCst);
        if self.mischief == Mischief::RefusesOnce && streams_before == 0 {
            return Err(Status::failed_precondition("another release"));
        }
        let address = format!("{}:{PORT}", self.upstream);
        let connector = tower::service_fn(move |_: Uri| {
            let address = address.clone();
            async move { TcpStream::connect(address).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://upstream")
            .connect_with_connector(connector)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let orders = request.into_inner().map_while(Result::ok);
        let reports = WorkerClient::new(channel).session(orders).await?.into_inner();
        let (mischief, done) = (self.mischief, Arc::clone(&self.done));
        let mute = mischief == Mischief::Unanswering && streams_before == 0;
        let changed = reports.map(move |batch| {
            let mut batch = batch.map(|batch| change(batch, mischief, &done));
            if let (true, Ok(batch)) = (mute, &mut batch) {
                batch.reports.retain(|report| !matches!(report.kind, Some(Kind::Pong(_))));
            }
            batch
        });
        Ok(Response::new(Box::pin(changed)))
    }

    type PutArtifactsStream = Pin<Box<dyn Stream<Item = Result<ArtifactStored, Status>> + Send>>;

    async fn put_artifacts(
        &self,
        _: Request<Streaming<ArtifactPart>>,
    ) -> Result<Response<Self::PutArtifactsStream>, Status> {
        Err(Status::unimplemented("no job here has files"))
    }
}

fn change(batch: FromWorker, mischief: Mischief, results: &AtomicU32) -> FromWorker {
    let mut changed = FromWorker::default();
    for mut report in batch.reports {
        let mut copies = 1;
        if let Some(Kind::Done(done)) = &mut report.kind {
            let is_first = results.fetch_add(1, Ordering::SeqCst) == 0;
            match mischief {
                Mischief::Flips if is_first => flip(done),
                Mischief::Lengthens if is_first => done.output_bytes += 1,
                Mischief::Doubles => copies = 2,
                _ => {}
            }
        }
        changed.reports.extend(std::iter::repeat_n(report, copies));
    }
    changed
}

fn flip(done: &mut Done) {
    let mut output = done.output.to_vec();
    output[0] ^= 1;
    done.output = output.into();
}
