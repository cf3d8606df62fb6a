//! What ends a stream is told by what it means: a worker in this process plays the other side.

use std::pin::Pin;
use std::sync::Mutex;

use tokio::net::UnixStream;
use tokio_stream::Stream;
use tonic::{Request, Response};
use widemap_cluster::Distrust;
use widemap_common::ids::Incarnation;
use widemap_proto::wire::worker_server::{Worker, WorkerServer};
use widemap_proto::wire::{ArtifactPart, ArtifactStored};

use super::*;

/// Says what the test says.
struct Puppet(Mutex<Option<mpsc::Receiver<Result<FromWorker, Status>>>>);

#[tonic::async_trait]
impl Worker for Puppet {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<FromWorker, Status>> + Send>>;

    async fn session(
        &self,
        _: Request<Streaming<ToWorker>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let reports = self.0.lock().unwrap().take();
        let reports = reports.ok_or_else(|| Status::unavailable("broken"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(reports))))
    }

    type PutArtifactsStream = Pin<Box<dyn Stream<Item = Result<ArtifactStored, Status>> + Send>>;

    async fn put_artifacts(
        &self,
        _: Request<Streaming<ArtifactPart>>,
    ) -> Result<Response<Self::PutArtifactsStream>, Status> {
        Err(Status::unimplemented("no job here has files"))
    }
}

fn first_words() -> Vec<Report> {
    let hello = WorkerHello {
        version: VERSION,
        build: "test".to_owned(),
        name: "ann".to_owned(),
        incarnation: Incarnation(1),
        slots: 1,
        runtimes: Vec::new(),
        labels: std::collections::BTreeMap::new(),
        functions: Vec::new(),
        left_out: None,
        clock_ms: None,
    };
    vec![Report::Hello(Box::new(hello)), Report::Held(Vec::new())]
}

/// Carries one stream of a worker over a connection with this fault, until it breaks.
async fn carried(greets: bool, fault: Option<DialError>) -> StreamEnd {
    let (near, far) = UnixStream::pair().unwrap();
    let (says, reports) = mpsc::channel(2);
    let service = WorkerServer::new(Puppet(Mutex::new(greets.then_some(reports))));
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(far));
    let serving = tonic::transport::Server::builder().add_service(service);
    let mut tasks = JoinSet::new();
    tasks.spawn(serving.serve_with_incoming(incoming));
    let (events, mut news) = mpsc::channel(8);
    let greeting = Greeting::of_visitor(Trust::default(), Timers::default());
    let Greeting { hello, trust, timers } = greeting;
    let runner = Runner {
        id: LinkId(1),
        dial: Dial::embedded(near),
        hello,
        trust,
        timers,
        events,
        outbox: Arc::new(Outbox::new(SendBounds::new(&timers))),
        uploads: Arc::default(),
        goodbye: CancellationToken::new(),
    };
    let line = runner.dial.connect(&runner.trust, &runner.timers).await.unwrap();
    if let Some(fault) = fault {
        line.fault.set(fault).unwrap();
    }
    let (mut failures, mut attached) = (0, false);
    let hearing = async {
        if greets {
            says.send(Ok(first_words().into())).await.unwrap();
            let event = news.recv().await.unwrap();
            assert!(matches!(event.news, LinkNews::Attached { .. }), "{event:?}");
            says.send(Err(Status::unavailable("broken"))).await.unwrap();
        }
    };
    let carrying = runner.carry_over(line, &mut failures, &mut attached);
    let both = async { tokio::join!(carrying, hearing).0 };
    let end = tokio::time::timeout(Duration::from_secs(20), both).await.expect("it ends");
    assert_eq!(attached, greets);
    tasks.shutdown().await;
    end
}

fn fault() -> DialError {
    DialError::OtherKey { host: "ann".to_owned(), distrust: Distrust::RefusesUs }
}

#[tokio::test]
async fn a_fault_of_the_connection_cuts_a_worker_off_that_was_attached() {
    let StreamEnd::Cut(reason) = carried(true, Some(fault())).await else { panic!("no cut") };
    assert_eq!(reason, fault().to_string());
    let StreamEnd::Cut(reason) = carried(true, None).await else { panic!("no cut") };
    assert_eq!(reason, "broken");
}

#[tokio::test]
async fn a_fault_before_anybody_greeted_is_why_nobody_can_be_reached() {
    let StreamEnd::Fault(error) = carried(false, Some(fault())).await else { panic!("no fault") };
    assert_eq!(error, fault());
    let StreamEnd::Cut(reason) = carried(false, None).await else { panic!("no cut") };
    assert_eq!(reason, "broken");
}
