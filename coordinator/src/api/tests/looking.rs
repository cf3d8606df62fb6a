//! Jobs and workers as they are told of, and what the driver is asked.

use std::time::Duration;

use tonic::Code;
use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::limits::JOBS_LISTED_MAX;
use widemap_proto::jobs::{
    AttemptState, AttemptTold, Explanation, How, JobCounts, JobName, JobState, Prune, Pruned,
    WorkerTold, WorkerTraits,
};

use super::{Served, keyed, list};
use crate::client::{JobsError, is_own_key};
use crate::data::Artifacts;
use crate::service::{Request, RequestError};

/// Answers what users ask, until `calls` were made.
async fn driver(served: &mut Served, mut answer: impl FnMut(Request)) {
    while let Some(request) = served.requests.recv().await {
        answer(request);
    }
}

fn code(error: &JobsError) -> Code {
    match error {
        JobsError::Refused { code, .. } => *code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn jobs_are_listed_in_pages_and_found_by_id_and_key() {
    let served = Served::start().await;
    let user = served.user();
    let submitted = user.submit(keyed("k"), list(&["a"]), Artifacts::default()).await.unwrap();
    let entry = served.registry.get(submitted.job.id).unwrap();
    // Many more of it, under other numbers.
    for id in 2..=(JOBS_LISTED_MAX as u32 * 2 + 5) {
        served.registry.insert(std::sync::Arc::new(crate::service::JobEntry {
            id: JobId(id),
            submission: super::submission(),
            created_ms: 0,
            input: None,
            input_bytes: 0.into(),
            arriving: None,
            accepted_ms: 0.into(),
            shelf: entry.shelf.clone(),
            status: tokio::sync::watch::Sender::new(entry.status()),
        }));
    }
    let jobs = user.list().await.unwrap();
    let ids: Vec<_> = jobs.iter().map(|job| job.id.0).collect();
    assert_eq!(ids, (1..=(JOBS_LISTED_MAX as u32 * 2 + 5)).collect::<Vec<_>>());
    let by_key = user.status(JobName::SubmitKey("k".to_owned())).await.unwrap();
    assert_eq!(by_key, user.status(JobName::Id(JobId(1))).await.unwrap());
    assert_eq!(
        (by_key.function.as_str(), by_key.submitter.as_str()),
        ("--builtin identity", "ann@lab")
    );
    assert_eq!(by_key.status.state, JobState::Queued);
    let error = user.status(JobName::Id(JobId(9_999))).await.unwrap_err();
    assert_eq!(code(&error), Code::NotFound);
    assert_eq!(
        error.to_string(),
        "test: there is no job j9999 (`widemap jobs` lists those there are)"
    );
    served.end().await;
}

#[tokio::test]
async fn keys_of_our_own_making_are_told_apart() {
    let served = Served::start().await;
    let job = served.submit(&["a"]).await.job;
    assert!(is_own_key(job.submit_key.as_deref().unwrap()) && !is_own_key("nightly"));
    served.end().await;
}

#[tokio::test]
async fn what_is_asked_of_the_driver_is_answered_by_it() {
    let mut served = Served::start().await;
    let job = served.submit(&["a"]).await.job.id;
    let user = served.user();
    let explanation = Explanation {
        sentence: "j1 waits for more input.".to_owned(),
        attempts: vec![AttemptTold {
            attempt: AttemptId(7),
            range: ItemRange::new(3, 2),
            worker: "ann".to_owned(),
            assigned_ms: 99,
            ran: Duration::from_micros(1_500),
            state: AttemptState::Lost,
            remark: "x".repeat(5_000),
            speculative: true,
        }],
    };
    let worker = WorkerTold {
        address: "ann:7433".to_owned(),
        sources: vec!["--worker".to_owned()],
        state: "ready".to_owned(),
        worker: Some(WorkerTraits {
            name: "ann".to_owned(),
            build: "widemap-worker 1".to_owned(),
            slots: 4,
            runtimes: vec!["exec".to_owned()],
            labels: [("gpu".to_owned(), "yes".to_owned())].into(),
            round_trip: Some(Duration::from_micros(120)),
            left_out: None,
            running: 2,
            waiting: 1,
        }),
    };
    let shelf = served.shelf(job);
    let entry = served.registry.get(job).unwrap();
    let asking = async {
        assert_eq!(user.pause(job).await.unwrap().status.state, JobState::Paused);
        assert_eq!(user.unpause(job).await.unwrap().status.state, JobState::Running);
        let told = user.explain(job, Some(3)).await.unwrap();
        assert_eq!(told.sentence, explanation.sentence);
        assert_eq!(told.attempts[0].remark.chars().count(), 401);
        let told = AttemptTold {
            remark: explanation.attempts[0].remark.clone(),
            ..told.attempts[0].clone()
        };
        assert_eq!(told, explanation.attempts[0]);
        assert_eq!(user.workers().await.unwrap(), std::slice::from_ref(&worker));
        let not_ended = Prune { jobs: vec![job], ..Prune::default() };
        let error = user.prune(not_ended.clone()).await.unwrap_err();
        assert_eq!(code(&error), Code::FailedPrecondition);
        assert!(error.to_string().contains("j1 has not ended"), "{error}");
        let cancelled = user.cancel(job).await.unwrap();
        assert_eq!(cancelled.status.ending().unwrap().how, How::Cancelled);
        assert_eq!(user.prune(not_ended).await.unwrap().freed_bytes, 5);
        let error = user.cancel(job).await.unwrap_err();
        assert_eq!(code(&error), Code::FailedPrecondition);
        assert_eq!(error.to_string(), "test: j1 has ended already: it is cancelled");
    };
    let mut has_ended = false;
    let driving = driver(&mut served, |request| match request {
        Request::Begin { .. } | Request::Admit { .. } => {}
        Request::Cancel { job, reply } if has_ended => {
            let _ = reply.send(Err(RequestError::Ended { job, state: "cancelled" }));
        }
        Request::Cancel { reply, .. } => {
            has_ended = true;
            shelf.end(How::Cancelled, JobCounts::default());
            reply.send(Ok(())).unwrap();
        }
        Request::Pause { reply, .. } => {
            entry.status.send_modify(|status| status.state = JobState::Paused);
            reply.send(Ok(())).unwrap();
        }
        Request::Unpause { reply, .. } => {
            entry.status.send_modify(|status| status.state = JobState::Running);
            reply.send(Ok(())).unwrap();
        }
        Request::Explain { item, reply, .. } => {
            assert_eq!(item, Some(3));
            reply.send(Ok(explanation.clone())).unwrap();
        }
        Request::Workers { reply } => reply.send(Ok(vec![worker.clone()])).unwrap(),
        Request::Prune { prune, reply } => {
            reply.send(Ok(Pruned { jobs: prune.jobs, freed_bytes: 5 })).unwrap();
        }
    });
    tokio::select! {
        () = asking => {}
        () = driving => panic!("the desk is gone"),
    }
    served.end().await;
}
