//! Files that jobs bring along: asked for once, verified, in place before anything runs.

use bytes::Bytes;
use tokio_stream::iter;
use tonic::{Code, Status};
use widemap_common::artifact::{Digest, FileKind, JobFile, JobFiles};
use widemap_common::ids::JobId;
use widemap_common::spec::{Directory, JobSpec};
use widemap_proto::artifact::{ArtifactPart, ArtifactStored};
use widemap_proto::session::{Order, OutputGrant, RefusalCause, Report};
use widemap_proto::wire;
use widemap_proto::wire::worker_client::WorkerClient;

use crate::support::{
    JOB, Link, WorkerProcess, assign, eventually, hello, needs_root, shell, text,
};

const TOOL: &[u8] = b"#!/bin/sh\necho \"$(cat data/words) $1\"\n";
const WORDS: &[u8] = b"well met\n";

fn digest(content: &[u8]) -> Digest {
    Digest(blake3::hash(content).into())
}

fn regular(path: &str, content: &[u8], executable: bool) -> JobFile {
    let (digest, bytes) = (digest(content), content.len() as u64);
    JobFile { path: path.into(), kind: FileKind::Regular { digest, bytes, executable } }
}

/// A job that has a script and what the script reads.
fn with_files() -> JobSpec {
    let files = vec![regular("bin/tool", TOOL, true), regular("data/words", WORDS, false)];
    JobSpec { files: JobFiles::new(files).unwrap(), ..shell("bin/tool $1") }
}

/// A content in parts of three bytes.
fn parts(content: &'static [u8]) -> Vec<wire::ArtifactPart> {
    let part = |(index, data): (usize, &'static [u8])| ArtifactPart {
        digest: digest(content),
        length: content.len() as u64,
        offset: 3 * index as u64,
        data: Bytes::from_static(data),
    };
    content.chunks(3).enumerate().map(|chunk| part(chunk).into()).collect()
}

/// Sends parts, and tells how far each of them was stored.
async fn put(
    worker: &WorkerProcess,
    parts: Vec<wire::ArtifactPart>,
) -> Result<Vec<ArtifactStored>, Status> {
    let mut client = WorkerClient::new(worker.channel().await);
    let mut answers = client.put_artifacts(iter(parts)).await?.into_inner();
    let mut stored = Vec::new();
    while let Some(answer) = answers.message().await? {
        stored.push(answer.try_into().unwrap());
    }
    Ok(stored)
}

async fn needs(link: &mut Link) -> Vec<Digest> {
    link.until(|report| match report {
        Report::JobNeeds(JOB, digests) => Some(digests),
        _ => None,
    })
    .await
}

async fn ready(link: &mut Link, job: JobId) {
    link.until(|report| match report {
        Report::JobReady(ready) => {
            assert_eq!(ready, job);
            Some(())
        }
        Report::JobNeeds(..) => panic!("it has what it asks for: {report:?}"),
        _ => None,
    })
    .await;
}

async fn refused(link: &mut Link) -> (RefusalCause, String) {
    match link.next().await.unwrap() {
        Report::JobRefused(_, refusal) => (refusal.cause, refusal.message),
        other => panic!("not refused: {other:?}"),
    }
}

fn open(job: JobId, spec: JobSpec) -> Vec<Order> {
    let grant = OutputGrant { total: u64::MAX, urgent: None };
    vec![Order::OpenJob(job, Box::new(spec)), Order::OutputGrant(grant)]
}

#[tokio::test]
async fn files_are_asked_for_once_and_lie_beside_the_function() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    link.send(open(JOB, with_files())).await;
    let mut wanted = vec![digest(TOOL), digest(WORDS)];
    wanted.sort_unstable();
    assert_eq!(needs(&mut link).await, wanted);
    let stored = put(&worker, [parts(TOOL), parts(WORDS)].concat()).await.unwrap();
    assert_eq!(stored.last(), Some(&ArtifactStored { digest: digest(WORDS), end: 9 }));
    ready(&mut link, JOB).await;
    assert_eq!(text(&link.run(1, b"a\nb\n").await.0), "well met a\nwell met b\n");
    // Another job finds them there, and a job may change what is its own.
    let spoiling = JobSpec { function: shell("echo no > data/words").function, ..with_files() };
    link.send(open(JobId(2), spoiling)).await;
    ready(&mut link, JobId(2)).await;
    link.send(vec![crate::support::assign_of(JobId(2), 2, 0, b"a\n")]).await;
    let _ = link.done(2).await;
    assert_eq!(text(&link.run(3, b"c\n").await.0), "well met c\n");
    link.send(vec![Order::CloseJob(JOB), Order::CloseJob(JobId(2))]).await;
    link.send(open(JobId(3), with_files())).await;
    // Nothing was left but what the jobs had brought.
    ready(&mut link, JobId(3)).await;
}

#[tokio::test]
async fn who_is_cut_off_asks_again_and_nothing_half_counts() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    link.send(open(JOB, with_files())).await;
    let wanted = needs(&mut link).await;
    let half: Vec<_> = parts(TOOL).into_iter().take(4).collect();
    assert_eq!(put(&worker, half).await.unwrap().len(), 4);
    worker.cut();
    let mut link = Link::open(worker.channel().await, hello(1, 1)).await.unwrap();
    link.send(open(JOB, with_files())).await;
    assert_eq!(needs(&mut link).await, wanted);
    let _ = put(&worker, [parts(WORDS), parts(TOOL)].concat()).await.unwrap();
    ready(&mut link, JOB).await;
    assert_eq!(text(&link.run(1, b"a\n").await.0), "well met a\n");
}

#[tokio::test]
async fn what_another_coordinator_has_asked_for_comes_for_both() {
    let worker = WorkerProcess::start(&[]);
    let mut first = worker.link().await;
    first.send(open(JOB, with_files())).await;
    let wanted = needs(&mut first).await;
    let mut second = Link::open(worker.channel().await, hello(2, 1)).await.unwrap();
    second.send(open(JOB, with_files())).await;
    // The first gives its job up without having sent anything: now it is the second's to be asked.
    first.send(vec![Order::CloseJob(JOB)]).await;
    assert_eq!(needs(&mut second).await, wanted);
    let _ = put(&worker, [parts(WORDS), parts(TOOL)].concat()).await.unwrap();
    ready(&mut second, JOB).await;
}

#[tokio::test]
async fn what_is_not_what_it_is_called_is_refused() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    link.send(open(JOB, with_files())).await;
    let _ = needs(&mut link).await;
    let mut changed = parts(WORDS);
    let last = ArtifactPart {
        data: Bytes::from_static(b"et!"),
        ..ArtifactPart::try_from(changed.pop().unwrap()).unwrap()
    };
    changed.push(last.into());
    let status = put(&worker, changed).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss, "{status:?}");
    let gap = put(&worker, parts(WORDS).split_off(1)).await.unwrap_err();
    assert!(gap.message().contains("came where byte 0 was due"), "{gap:?}");
    let _ = put(&worker, [parts(WORDS), parts(TOOL)].concat()).await.unwrap();
    ready(&mut link, JOB).await;
}

#[tokio::test]
async fn a_job_whose_files_cannot_be_there_is_refused_before_anything_is_sent() {
    let worker = WorkerProcess::start(&["--file-cache", "20", "--name", "ann"]);
    let mut link = worker.link().await;
    link.send(open(JOB, with_files())).await;
    let (cause, message) = refused(&mut link).await;
    assert_eq!(cause, RefusalCause::Limit);
    let bytes = TOOL.len() + WORDS.len();
    let told = format!("ann cannot take the job: its files take {bytes} bytes");
    assert!(message.starts_with(&told), "{message}");
    let files = JobFiles::new(vec![regular("words", WORDS, false)]).unwrap();
    let elsewhere = Directory::Path(b"/tmp".to_vec());
    link.send(open(JOB, JobSpec { files: files.clone(), directory: elsewhere, ..shell("true") }))
        .await;
    let _ = needs(&mut link).await;
    let _ = put(&worker, parts(WORDS)).await.unwrap();
    let (cause, message) = refused(&mut link).await;
    assert_eq!(cause, RefusalCause::Directory, "{message}");
    // A command that is no file of the job is still missed before an item is.
    let missing = JobSpec { files, ..crate::support::exec(&["./wordz"]) };
    link.send(open(JOB, missing)).await;
    assert_eq!(refused(&mut link).await.0, RefusalCause::NotFound);
}

#[tokio::test]
async fn a_job_that_is_given_up_while_it_waits_leaves_nothing() {
    let worker = WorkerProcess::start(&[]);
    let mut link = worker.link().await;
    for number in 2..=300 {
        link.send(open(JobId(number), with_files())).await;
        link.send(vec![Order::CloseJob(JobId(number))]).await;
    }
    // Nobody wants it any more.
    let _ = put(&worker, [parts(WORDS), parts(TOOL)].concat()).await.unwrap();
    let parent = std::env::temp_dir();
    link.send(open(JOB, with_files())).await;
    let _ = needs(&mut link).await;
    let _ = put(&worker, [parts(WORDS), parts(TOOL)].concat()).await.unwrap();
    ready(&mut link, JOB).await;
    for number in 2..=300 {
        link.send(vec![
            Order::OpenJob(JobId(number), Box::new(with_files())),
            Order::CloseJob(JobId(number)),
        ])
        .await;
    }
    assert_eq!(text(&link.run(1, b"a\n").await.0), "well met a\n");
    link.send(vec![Order::CloseJob(JOB)]).await;
    let begins = format!("widemap-{}-", worker.pid());
    let of_worker = || {
        let entries = std::fs::read_dir(&parent).unwrap().flatten();
        entries
            .map(|entry| entry.path())
            .find(|path| path.file_name().unwrap().to_string_lossy().starts_with(&begins))
    };
    let directory = of_worker().unwrap();
    eventually("only what is kept is there", || {
        std::fs::read_dir(&directory).unwrap().count() == 1
    })
    .await;
    drop(link);
    drop(worker);
    eventually("nothing is left of a worker that was killed", || of_worker().is_none()).await;
}

#[tokio::test]
async fn files_of_a_job_of_another_user_are_that_users() {
    if !needs_root("files_of_a_job_of_another_user_are_that_users") {
        return;
    }
    let mut worker = WorkerProcess::start(&["--run-as", "nobody", "--slots", "1"]);
    let mut link = worker.link().await;
    let function = shell("bin/tool $1 && stat -c '%U %a' bin bin/tool data/words").function;
    link.send(open(JOB, JobSpec { function, ..with_files() })).await;
    let _ = needs(&mut link).await;
    let _ = put(&worker, [parts(WORDS), parts(TOOL)].concat()).await.unwrap();
    ready(&mut link, JOB).await;
    let (output, done) = link.run(1, b"a\n").await;
    let told: Vec<_> = text(&output).lines().collect();
    assert_eq!(told, ["well met a", "nobody 755", "nobody 755", "nobody 644"], "{done:?}");
    link.send(vec![assign(2, 1, b"b\n")]).await;
    assert!(text(&link.done(2).await.0).starts_with("well met b\n"));
    drop(link);
    worker.signal(rustix::process::Signal::TERM);
    assert!(worker.wait().success());
    // What the worker keeps is its own, not the user's: it removes that itself.
    let begins = format!("widemap-files-{}-", worker.pid());
    let left = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let left: Vec<_> = left
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&begins))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
