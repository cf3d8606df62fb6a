//! Results of a job while its items are still being sent: for who sends them, and for nobody else.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};
use widemap_common::ids::JobId;
use widemap_proto::jobs::{How, JobPart, Submission, Submitting};
use widemap_proto::wire;
use widemap_proto::wire::jobs_client::JobsClient;

use super::collecting::{All, counts};
use super::{PATIENCE, Served, Wire, submission, until};
use crate::client::{Collector, JobsError};
use crate::service::fake::FakeShelf;
use crate::service::{JobEntry, Request};

/// What is not there after so long is not there.
const MOMENT: Duration = Duration::from_millis(300);

/// A submission that has begun and is still being sent.
struct Sending {
    sender: mpsc::Sender<wire::SubmitRequest>,
    answers: JoinSet<Result<Response<wire::SubmitReply>, Status>>,
    entry: Arc<JobEntry>,
    shelf: Arc<FakeShelf>,
}

impl Sending {
    async fn begin(served: &mut Served, early_key: &str) -> Self {
        let (sender, messages) = mpsc::channel(4);
        let mut client = JobsClient::connect(format!("http://{}", served.address)).await.unwrap();
        let mut answers = JoinSet::new();
        answers.spawn(async move { client.submit(ReceiverStream::new(messages)).await });
        let early_key = Some(early_key.to_owned());
        let eager = Submission { begins_at_once: true, early_key, ..submission() };
        sender.send(Submitting::Begin(Box::new(eager)).into()).await.unwrap();
        let items = JobPart { offset: 0, data: "a\n".into() };
        sender.send(Submitting::Items(items).into()).await.unwrap();
        let Some(Request::Begin { job: entry }) = served.requests.recv().await else {
            panic!("it does not begin")
        };
        let shelf = served.shelf(entry.id);
        Self { sender, answers, entry, shelf }
    }

    /// All of its items are there.
    async fn end(mut self, served: &mut Served) -> JobId {
        self.sender.send(Submitting::End(2).into()).await.unwrap();
        let answer = self.answers.join_next().await.unwrap().unwrap();
        answer.unwrap();
        assert!(matches!(served.requests.recv().await, Some(Request::Admit { .. })));
        self.entry.id
    }

    /// It breaks off.
    async fn break_off(self) {
        drop((self.sender, self.answers));
        until("it is given up", || self.entry.is_given_up()).await;
    }
}

/// That nothing is told for a while.
async fn is_silent(collector: &mut Collector<'_>) {
    let told = tokio::time::timeout(MOMENT, collector.next()).await;
    assert!(told.is_err(), "{told:?}");
}

#[tokio::test]
async fn who_sends_the_items_has_results_before_the_last_of_them() {
    let mut served = Served::start().await;
    let user = served.user();
    // Asked before there is anything, as most are.
    let mut collector = user.collect_early(Some("mine".to_owned()));
    is_silent(&mut collector).await;
    let sending = Sending::begin(&mut served, "mine").await;
    let (job, shelf) = (sending.entry.id, Arc::clone(&sending.shelf));
    let mut all = All::default();
    shelf.push(b"one\n");
    shelf.say("[2 b] hm");
    shelf.fail("{\"seq\":2}");
    let is_there = |all: &All| all.output == b"one\n" && all.failures.len() + all.stderr.len() == 2;
    all.take(&mut collector, is_there).await;
    // For nobody else, by whatever name.
    is_silent(&mut user.collect_early(Some("another".to_owned()))).await;
    assert!(matches!(user.collect(job).next().await, Err(JobsError::Refused { .. })));
    // It has ended, and may be gone with the next start all the same (that the other side does not say so
    // either is a test of the service).
    shelf.push(b"two\n");
    shelf.end(How::Complete, counts(2, 1));
    all.take(&mut collector, |all| all.output == b"one\ntwo\n").await;
    is_silent(&mut collector).await;
    assert_eq!(sending.end(&mut served).await, job);
    collector.accept(job);
    all.take(&mut collector, |all| all.ended.is_some()).await;
    assert_eq!((all.output.as_slice(), all.failures.len()), (b"one\ntwo\n".as_slice(), 1));
    served.end().await;
}

/// With the user's own key somebody else may have been faster: nothing is put together of two jobs.
#[tokio::test]
async fn another_job_in_its_place_is_told_of_and_not_mixed_with_it() {
    for was_told in [false, true] {
        let mut served = Served::start().await;
        let user = served.user();
        let mut collector = user.collect_early(Some("mine".to_owned()));
        let mut all = All::default();
        let sending = Sending::begin(&mut served, "mine").await;
        if was_told {
            sending.shelf.push(b"mine\n");
            all.take(&mut collector, |all| all.output == b"mine\n").await;
        } else {
            is_silent(&mut collector).await;
        }
        sending.break_off().await;
        let sending = Sending::begin(&mut served, "theirs").await;
        sending.shelf.push(b"theirs\n");
        sending.shelf.end(How::Complete, counts(1, 0));
        let job = sending.end(&mut served).await;
        collector.accept(job);
        if was_told {
            let told = tokio::time::timeout(PATIENCE, collector.next()).await.expect("in time");
            let error = told.unwrap_err();
            assert!(matches!(error, JobsError::Replaced { .. }), "{error:?}");
            assert!(error.to_string().contains("`widemap results j2`"), "{error}");
        } else {
            all.take(&mut collector, |all| all.ended.is_some()).await;
            assert_eq!(all.output, b"theirs\n");
        }
        served.end().await;
    }
}

/// Of what can be sent again another job may have to be made.
#[tokio::test]
async fn without_an_early_key_results_wait_until_the_job_is_one_that_is_kept() {
    let mut served = Served::start().await;
    let user = served.user();
    let (mut collector, mut all) = (user.collect_early(None), All::default());
    let sending = Sending::begin(&mut served, "").await;
    sending.shelf.push(b"one\n");
    sending.shelf.end(How::Complete, counts(1, 0));
    is_silent(&mut collector).await;
    let job = sending.end(&mut served).await;
    collector.accept(job);
    all.take(&mut collector, |all| all.ended.is_some()).await;
    assert_eq!(all.output, b"one\n");
    served.end().await;
}

#[tokio::test]
async fn a_cut_of_early_results_loses_and_repeats_nothing() {
    let mut served = Served::start().await;
    let wire = Wire::to(served.address).await;
    let user = wire.user();
    let (mut collector, mut all) = (user.collect_early(Some("mine".to_owned())), All::default());
    let sending = Sending::begin(&mut served, "mine").await;
    let (job, shelf) = (sending.entry.id, Arc::clone(&sending.shelf));
    for round in 1..=3 {
        shelf.push(b"line\n");
        shelf.fail("{\"seq\":1}");
        all.take(&mut collector, |all| all.failures.len() == round).await;
        wire.cut();
    }
    assert_eq!(sending.end(&mut served).await, job);
    // It asks again by the early key, which no job has any more.
    is_silent(&mut collector).await;
    collector.accept(job);
    shelf.push(b"last\n");
    shelf.end(How::Complete, counts(4, 3));
    all.take(&mut collector, |all| all.ended.is_some()).await;
    assert_eq!(
        (all.output.as_slice(), all.failures.len()),
        (b"line\nline\nline\nlast\n".as_slice(), 3)
    );
    served.end().await;
}
