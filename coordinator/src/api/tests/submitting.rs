//! A job is made once, of all of its items, or not at all.

#![allow(clippy::disallowed_methods, reason = "each handle is kept, and ends with its test")]

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::iter;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use widemap_common::limits::{BEGIN_BYTES, PART_BYTES_MAX};
use widemap_proto::jobs::{JobPart, Submission, Submitted, Submitting};
use widemap_proto::wire;
use widemap_proto::wire::jobs_client::JobsClient;

use super::{PATIENCE, Served, Wire, keyed, list, submission, until};
use crate::client::{JobsError, SubmitError};
use crate::data::Artifacts;
use crate::data::Source;
use crate::service::{DeskLimits, Request};

/// What a coordinator answers to these messages.
async fn raw(served: &Served, messages: Vec<wire::SubmitRequest>) -> tonic::Status {
    let mut client = JobsClient::connect(format!("http://{}", served.address)).await.unwrap();
    client.submit(iter(messages)).await.unwrap_err()
}

fn begin() -> wire::SubmitRequest {
    Submitting::Begin(Box::new(submission())).into()
}

fn items(offset: u64, data: &'static str) -> wire::SubmitRequest {
    Submitting::Items(JobPart { offset, data: data.into() }).into()
}

fn end(bytes: u64) -> wire::SubmitRequest {
    Submitting::End(bytes).into()
}

/// Why a submission is refused.
fn refusal(error: SubmitError) -> (Code, String) {
    match error {
        SubmitError::Jobs(JobsError::Refused { code, message, .. }) => (code, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_job_is_durable_and_handed_over_when_it_is_answered() {
    let mut served = Served::start().await;
    let submitted = served.submit(&["a", "b"]).await;
    assert!(!submitted.was_there);
    assert_eq!(submitted.job.id.to_string(), "j1");
    assert_eq!((submitted.job.name.as_str(), submitted.job.input_bytes), ("night", 4));
    let Some(Request::Admit { job }) = served.requests.recv().await else { panic!("no job") };
    assert_eq!(std::fs::read(job.input.as_ref().unwrap()).unwrap(), b"a\nb\n");
    let expected = Submission { submit_key: job.submission.submit_key.clone(), ..submission() };
    assert_eq!(job.submission, expected);
    assert_eq!(served.submit(&[]).await.job.input_bytes, 0);
    served.end().await;
}

#[tokio::test]
async fn items_of_any_number_and_length_arrive_as_they_are() {
    let served = Served::start().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("list");
    let mut text = b"short\n".repeat(400_000);
    text.extend(vec![b'x'; 3 * 1024 * 1024]);
    text.extend_from_slice(b"\nlast, without an end");
    std::fs::write(&path, &text).unwrap();
    let submitted =
        served.user().submit(submission(), Source::File(path), Artifacts::default()).await.unwrap();
    let job = served.registry.get(submitted.job.id).unwrap();
    assert!(std::fs::read(job.input.as_ref().unwrap()).unwrap() == text);
    served.end().await;
}

#[tokio::test]
async fn what_is_broken_off_or_does_not_fit_makes_no_job() {
    let served = Served::start().await;
    let mut changed = items(0, "a\n");
    if let Some(wire::submit_request::Kind::Items(part)) = &mut changed.kind {
        part.crc32c ^= 1;
    }
    let long = items(0, "x".repeat(1024 * 1024 + 1).leak());
    let mut inherit = submission();
    inherit.spec.directory = widemap_common::spec::Directory::Inherit;
    for (messages, code, says) in [
        (vec![], Code::InvalidArgument, "begins with what is to be run"),
        (vec![items(0, "a\n")], Code::InvalidArgument, "begins with what is to be run"),
        (vec![begin(), begin()], Code::InvalidArgument, "begins once"),
        (vec![begin(), items(0, "a\n")], Code::Cancelled, "no job was made"),
        (vec![begin(), items(1, "a\n")], Code::InvalidArgument, "at 1 follows 0 bytes"),
        (vec![begin(), items(0, "a\n"), end(3)], Code::InvalidArgument, "said to be 3"),
        (vec![begin(), changed, end(2)], Code::Unavailable, "arrived changed"),
        (vec![begin(), long], Code::InvalidArgument, "`part`"),
        (
            vec![Submitting::Begin(Box::new(inherit)).into()],
            Code::InvalidArgument,
            "no directory here to be inherited",
        ),
        (vec![begin(), items(0, "too much\n")], Code::ResourceExhausted, "no room on the disk"),
    ] {
        let refused = raw(&served, messages).await;
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    assert!(served.registry.all().is_empty());
    until("no draft is left", || served.ledger.files() == 0).await;
    served.end().await;
}

#[tokio::test]
async fn a_key_makes_one_job() {
    let served = Served::start().await;
    let user = served.user();
    let first =
        user.submit(keyed("nightly"), list(&["a", "b"]), Artifacts::default()).await.unwrap();
    let again =
        user.submit(keyed("nightly"), list(&["a", "b"]), Artifacts::default()).await.unwrap();
    assert_eq!((again.job.id, again.was_there), (first.job.id, true));
    let by_another = Submission { submitter: "bob@lab".to_owned(), ..keyed("nightly") };
    assert!(
        user.submit(by_another, list(&["a", "b"]), Artifacts::default()).await.unwrap().was_there
    );
    let mut slower = keyed("nightly");
    slower.policy.retries = 9;
    for (submission, items, differs) in [
        (slower, ["a", "b"].as_slice(), "in its retries (--retries)"),
        (keyed("nightly"), &["a", "c"], "in its input, from byte 2 on"),
        (keyed("nightly"), &["a", "b", "c"], "in its input, which ends at byte 4"),
        (keyed("nightly"), &["a"], "in its input (4 bytes, and these are 2)"),
    ] {
        let (code, message) =
            refusal(user.submit(submission, list(items), Artifacts::default()).await.unwrap_err());
        assert_eq!(code, Code::AlreadyExists);
        assert!(message.contains(differs), "{differs}: {message}");
        assert!(message.contains("`nightly` is j1's"), "{message}");
    }
    assert_eq!(served.registry.all().len(), 1);
    let other =
        user.submit(keyed("weekly"), list(&["a", "b"]), Artifacts::default()).await.unwrap();
    assert!(!other.was_there && other.job.id != first.job.id);
    served.end().await;
}

#[tokio::test]
async fn of_two_with_one_key_the_newer_counts() {
    let served = Served::start().await;
    let mut client = JobsClient::connect(format!("http://{}", served.address)).await.unwrap();
    let (sender, messages) = tokio::sync::mpsc::channel(4);
    sender.send(Submitting::Begin(Box::new(keyed("k"))).into()).await.unwrap();
    sender.send(items(0, "a\n")).await.unwrap();
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    let stuck = async { client.submit(messages).await.unwrap_err() };
    let newer = async {
        until("the first one has begun", || served.ledger.files() == 1).await;
        served.user().submit(keyed("k"), list(&["b"]), Artifacts::default()).await.unwrap()
    };
    let (stuck, newer) = tokio::join!(stuck, newer);
    assert_eq!(stuck.code(), Code::Aborted);
    assert!(stuck.message().contains("with the key `k` has come"), "{}", stuck.message());
    let job = served.registry.get(newer.job.id).unwrap();
    assert_eq!(std::fs::read(job.input.as_ref().unwrap()).unwrap(), b"b\n");
    assert_eq!(served.ledger.files(), 1);
    drop(sender);
    served.end().await;
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_job() {
    let served = Served::start().await;
    let wire = Wire::to(served.address).await;
    served.ledger.gate.shut();
    let user = wire.user();
    let submitting = user.submit(submission(), list(&["a"]), Artifacts::default());
    let cutting = async {
        until("all items are there", || served.ledger.gate.waiting() == 1).await;
        // The answer has nowhere to go; the job is made all the same.
        wire.cut();
        served.ledger.gate.open();
        until("it is a job", || served.registry.all().len() == 1).await;
    };
    let (submitted, ()) = tokio::join!(submitting, cutting);
    let jobs = served.registry.all();
    assert_eq!(submitted.unwrap().job.id, jobs[0].id);
    assert_eq!(jobs.len(), 1);
    served.end().await;
}

#[tokio::test]
async fn items_that_can_be_read_once_are_not_sent_in_part() {
    let served = Served::start().await;
    let wire = Wire::to(served.address).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let writer = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    std::io::Write::write_all(&mut &writer, b"a\nb\n").unwrap();
    let user = wire.user();
    let submitting = user.submit(submission(), Source::File(path), Artifacts::default());
    let cutting = async {
        until("it has begun", || served.ledger.files() == 1).await;
        wire.cut();
    };
    let (submitted, ()) = tokio::join!(submitting, cutting);
    let error = submitted.unwrap_err();
    assert!(matches!(error, SubmitError::OnlyOnce { .. }), "{error:?}");
    assert!(served.registry.all().is_empty());
    until("no draft is left", || served.ledger.files() == 0).await;
    served.end().await;
}

#[tokio::test]
async fn limits_are_told_with_what_to_do() {
    let limits = DeskLimits { jobs_max: 2, input_bytes_max: Some(10), disk_bytes_max: Some(12) };
    let served = Served::with(limits).await;
    let user = served.user();
    let submit = async |items: &[&str]| {
        let submitted = user.submit(submission(), list(items), Artifacts::default()).await;
        submitted.map(|submitted| submitted.job.id).map_err(refusal)
    };
    let first = submit(&["1234567"]).await.unwrap();
    let (code, message) = submit(&["xx"]).await.unwrap_err();
    assert_eq!(code, Code::ResourceExhausted);
    assert!(message.contains("more than 10 bytes (--input-max"), "{message}");
    // What has ended is no burden but on the disk.
    served.shelf(first).end(widemap_proto::jobs::How::Complete, Default::default());
    let (_, message) = submit(&["12345"]).await.unwrap_err();
    assert!(message.contains("more than 12 bytes (its --disk-max)"), "{message}");
    assert!(message.contains("`widemap jobs prune`"), "{message}");
    submit(&["x"]).await.unwrap();
    submit(&[]).await.unwrap();
    let (_, message) = submit(&[]).await.unwrap_err();
    assert!(message.contains("2 jobs have not ended"), "{message}");
    served.end().await;
}

#[tokio::test]
async fn who_is_not_there_is_told_of_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let user = crate::client::Coordinator::on_loopback(address);
    let error = user.submit(submission(), list(&["a"]), Artifacts::default()).await.unwrap_err();
    assert!(matches!(error, SubmitError::Jobs(JobsError::Unreachable { .. })), "{error:?}");
}

/// Who wants it to begins while it comes: once there is much of it, or some of it for a while.
#[tokio::test]
async fn a_submission_begins_while_it_comes_if_that_is_wanted() {
    for (begins_at_once, bytes) in [(true, 6), (true, BEGIN_BYTES), (false, BEGIN_BYTES)] {
        let mut served = Served::start().await;
        let (sender, messages) = mpsc::channel(4);
        let mut client = JobsClient::connect(format!("http://{}", served.address)).await.unwrap();
        let eager = Submission { begins_at_once, ..submission() };
        sender.send(Submitting::Begin(Box::new(eager)).into()).await.unwrap();
        let answer =
            tokio::spawn(async move { client.submit(ReceiverStream::new(messages)).await });
        let line = Bytes::from(vec![b'\n'; PART_BYTES_MAX]);
        let mut offset = 0;
        while offset < bytes {
            let data = line.slice(..line.len().min((bytes - offset) as usize));
            let sent = data.len() as u64;
            sender.send(Submitting::Items(JobPart { offset, data }).into()).await.unwrap();
            offset += sent;
        }
        let begun = if begins_at_once {
            let begun = tokio::time::timeout(PATIENCE, served.requests.recv()).await;
            let Ok(Some(Request::Begin { job })) = begun else { panic!("it does not begin") };
            assert!(served.registry.get(job.id).is_none());
            Some(job)
        } else {
            None
        };
        sender.send(end(bytes)).await.unwrap();
        drop(sender);
        let submitted: Submitted = answer.await.unwrap().unwrap().into_inner().try_into().unwrap();
        assert_eq!((submitted.job.id.0, submitted.job.input_bytes), (1, bytes));
        let Some(Request::Admit { job }) = served.requests.recv().await else { panic!("no job") };
        assert!(begun.is_none_or(|begun| Arc::ptr_eq(&begun, &job)));
        assert!(!job.is_given_up() && served.registry.get(job.id).is_some());
        served.end().await;
    }
}

/// Broken off, it is given up, whatever it has begun.
#[tokio::test]
async fn a_submission_that_has_begun_and_breaks_off_is_given_up() {
    let mut served = Served::start().await;
    let (sender, messages) = mpsc::channel(4);
    let mut client = JobsClient::connect(format!("http://{}", served.address)).await.unwrap();
    let eager = Submission { begins_at_once: true, ..submission() };
    sender.send(Submitting::Begin(Box::new(eager)).into()).await.unwrap();
    sender.send(items(0, "a\n")).await.unwrap();
    let answer = tokio::spawn(async move { client.submit(ReceiverStream::new(messages)).await });
    let Some(Request::Begin { job }) = served.requests.recv().await else { panic!("no job") };
    assert!(!job.is_given_up());
    drop(sender);
    assert_eq!(answer.await.unwrap().unwrap_err().code(), Code::Cancelled);
    until("it is given up", || job.is_given_up()).await;
    assert!(served.registry.get(job.id).is_none());
    served.end().await;
}
