//! Results: the same bytes each time, from any position, however often the connection breaks and however
//! slowly they are read.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use tonic::Code;
use widemap_proto::jobs::{How, Job, JobCounts, Position};
use widemap_proto::wire;
use widemap_proto::wire::jobs_client::JobsClient;

use super::{PATIENCE, Served, Wire, until};
use crate::client::{Collected, Collector, JobsError};

/// Everything that was collected.
#[derive(Default, Debug)]
pub(super) struct All {
    pub(super) output: Vec<u8>,
    pub(super) failures: Vec<Bytes>,
    pub(super) stderr: Vec<Bytes>,
    lost: u32,
    back: u32,
    pub(super) ended: Option<Job>,
}

impl All {
    /// Takes what comes until it is enough.
    pub(super) async fn take(
        &mut self,
        collector: &mut Collector<'_>,
        is_enough: impl Fn(&Self) -> bool,
    ) {
        while !is_enough(self) {
            let next = tokio::time::timeout(PATIENCE, collector.next()).await.expect("in time");
            match next.unwrap() {
                Collected::Output(data) => self.output.extend_from_slice(&data),
                Collected::Failures(records) => self.failures.extend(records),
                Collected::Stderr(pieces) => self.stderr.extend(pieces),
                Collected::Lost(_) => self.lost += 1,
                Collected::Back => self.back += 1,
                Collected::Ended(job) => self.ended = Some(*job),
            }
        }
    }

    async fn of(collector: &mut Collector<'_>) -> Self {
        let mut all = Self::default();
        all.take(collector, |all| all.ended.is_some()).await;
        all
    }
}

pub(super) fn counts(ok: u64, failed: u64) -> JobCounts {
    JobCounts { read: ok + failed, ok, failed, ..JobCounts::default() }
}

#[tokio::test]
async fn results_come_while_the_job_runs_and_are_the_same_each_time() {
    let served = Served::start().await;
    let job = served.submit(&["a", "b"]).await.job.id;
    let shelf = served.shelf(job);
    let user = served.user();
    let (mut collector, mut first) = (user.collect(job), All::default());
    shelf.push(b"one\n");
    first.take(&mut collector, |all| all.output == b"one\n").await;
    shelf.say("[2 b] hm");
    shelf.fail("{\"seq\":2}");
    shelf.push(b"three\n");
    first.take(&mut collector, |all| all.output.len() == 10 && all.failures.len() == 1).await;
    shelf.end(How::Complete, counts(2, 1));
    first.take(&mut collector, |all| all.ended.is_some()).await;
    let second = All::of(&mut user.collect(job)).await;
    for all in [first, second] {
        assert_eq!(all.output, b"one\nthree\n");
        assert_eq!(all.failures, ["{\"seq\":2}"]);
        assert_eq!(all.stderr, ["[2 b] hm"]);
        let status = all.ended.unwrap().status;
        assert_eq!(status.ending().unwrap().how, How::Complete);
        assert_eq!((status.counts, status.output_bytes), (counts(2, 1), 10));
    }
    served.end().await;
}

#[tokio::test]
async fn a_cut_loses_and_repeats_nothing() {
    let served = Served::start().await;
    let job = served.submit(&["a"]).await.job.id;
    let shelf = served.shelf(job);
    let wire = Wire::to(served.address).await;
    let user = wire.user();
    let (mut collector, mut all) = (user.collect(job), All::default());
    let mut expected = Vec::new();
    for round in 0..5_u32 {
        let part: Vec<u8> = (0..300_000_u32).map(|byte| (byte * (round + 1)) as u8).collect();
        shelf.push(&part);
        shelf.fail(format!("{{\"seq\":{round}}}"));
        shelf.say("hm");
        expected.extend_from_slice(&part);
        // In the middle of a part, or between two.
        let enough = expected.len() - 150_000 * (round as usize % 2);
        all.take(&mut collector, |all| all.output.len() >= enough).await;
        wire.cut();
    }
    shelf.end(How::Complete, counts(1, 5));
    all.take(&mut collector, |all| all.ended.is_some()).await;
    assert_eq!(all.output, expected);
    let seqs: Vec<_> = (0..5).map(|seq| format!("{{\"seq\":{seq}}}")).collect();
    assert_eq!(all.failures, seqs);
    assert_eq!(all.stderr.len(), 5);
    assert!(all.lost >= 1 && all.lost == all.back, "{} lost, {} back", all.lost, all.back);
    served.end().await;
}

#[tokio::test]
async fn a_failure_that_is_longer_than_a_message_arrives_whole() {
    let served = Served::start().await;
    let job = served.submit(&["a"]).await.job.id;
    let shelf = served.shelf(job);
    let long = Bytes::from(vec![b'x'; 5 * 1024 * 1024 + 17]);
    for record in [Bytes::from("first"), long.clone(), Bytes::from("last")] {
        shelf.fail(record);
    }
    shelf.end(How::Complete, counts(0, 3));
    let all = All::of(&mut served.user().collect(job)).await;
    assert_eq!(all.failures.len(), 3);
    assert!(all.failures[1] == long && all.failures[2] == "last");
    served.end().await;
}

#[tokio::test]
async fn one_who_does_not_read_costs_little_memory() {
    const OUTPUT_BYTES: usize = 64 * 1024 * 1024;
    let served = Served::start().await;
    let job = served.submit(&["a"]).await.job.id;
    let shelf = served.shelf(job);
    shelf.push(&vec![7; OUTPUT_BYTES]);
    shelf.end(How::Complete, counts(1, 0));
    let mut client = JobsClient::connect(format!("http://{}", served.address)).await.unwrap();
    let request = wire::ResultsRequest::from_position(job, Position::default());
    let mut stream = client.results(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    // What is read ahead of it stays what it is.
    let read = || shelf.read_bytes.load(Ordering::SeqCst);
    let mut before = 0;
    for _ in 0..1_000 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        before = read();
    }
    assert!(before <= 16 * 1024 * 1024, "{before} bytes were read for one who took a part");
    // And it is sent as it is taken.
    let mut bytes = 0;
    while let Some(message) = stream.message().await.unwrap() {
        match message.kind.unwrap() {
            wire::results_reply::Kind::Output(part) => bytes += part.data.len(),
            wire::results_reply::Kind::Ended(_) => assert_eq!(read(), OUTPUT_BYTES as u64),
            other => panic!("nothing failed, and nothing was said: {other:?}"),
        }
    }
    assert!(bytes > OUTPUT_BYTES - 2 * 1024 * 1024);
    served.end().await;
}

#[tokio::test]
async fn what_nobody_can_have_is_refused() {
    let served = Served::start().await;
    let job = served.submit(&["a"]).await.job.id;
    served.shelf(job).push(b"12345");
    let mut client = JobsClient::connect(format!("http://{}", served.address)).await.unwrap();
    let beyond = Position { output_bytes: 6, ..Position::default() };
    let refused = client.results(wire::ResultsRequest::from_position(job, beyond)).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    assert!(refused.message().contains("j1 has 5 bytes of output"), "{}", refused.message());
    served.end().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_told_with_its_place() {
    let served = Served::start().await;
    let job = served.submit(&["a"]).await.job.id;
    let why = "payload-000001, at byte 17: the checksum does not fit";
    *served.shelf(job).broken.lock().unwrap() = Some(why.to_owned());
    let user = served.user();
    let error = user.collect(job).next().await.unwrap_err();
    assert!(matches!(error, JobsError::Refused { code: Code::DataLoss, .. }), "{error:?}");
    assert!(error.to_string().ends_with(&format!("what is kept of j1 cannot be read: {why}")));
    served.end().await;
}

#[tokio::test]
async fn the_end_of_the_coordinator_is_no_end_of_the_results() {
    let served = Served::start().await;
    let job = served.submit(&["a"]).await.job.id;
    served.shelf(job).push(b"some");
    let user = served.user();
    let (mut collector, mut all) = (user.collect(job), All::default());
    all.take(&mut collector, |all| all.output == b"some").await;
    served.shutdown.cancel();
    all.take(&mut collector, |all| all.lost == 1).await;
    assert!(all.ended.is_none());
    served.end().await;
}

#[tokio::test]
async fn a_job_is_watched_until_its_end() {
    let served = Served::start().await;
    let job = served.submit(&["a"]).await.job.id;
    let entry = served.registry.get(job).unwrap();
    let mut client = JobsClient::connect(format!("http://{}", served.address)).await.unwrap();
    let name = wire::JobName { kind: Some(wire::job_name::Kind::Job(job.0)) };
    let mut stream = client.watch(name).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert!(matches!(first.state, Some(wire::job_status::State::Queued(_))));
    entry.status.send_modify(|status| status.counts.read = 5);
    assert_eq!(stream.message().await.unwrap().unwrap().counts.unwrap().read, 5);
    served.shelf(job).end(How::Cancelled, counts(0, 0));
    entry.status.send_modify(|_| {});
    let last = stream.message().await.unwrap().unwrap();
    assert!(matches!(last.state, Some(wire::job_status::State::Ended(_))));
    assert!(stream.message().await.unwrap().is_none());
    until("nobody watches", || entry.status.receiver_count() == 0).await;
    served.end().await;
}
