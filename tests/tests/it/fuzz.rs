//! Bytes that anybody can send, or that a person writes, make nothing panic: announcements, the
//! configuration file, key files, and the session's messages. Each target runs for a moment;
//! `WIDEMAP_FUZZ_SECONDS` makes it longer, and `cargo bolero test` uses a fuzzer's coverage.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use widemap::journal_for_tests;
use widemap_cluster::bundle::WorkerBundle;
use widemap_cluster::config::Config;
use widemap_cluster::key::{self, ClusterKey};
use widemap_cluster::record::Announcement;
use widemap_common::artifact::{Digest, FileKind, JobFile, JobFiles};
use widemap_common::failure::{FailureKind, Fault};
use widemap_common::framing::LINES;
use widemap_common::ids::{AttemptId, CoordinatorId, Epoch, Incarnation, ItemRange, JobId};
use widemap_common::spec::{Directory, Function, JobSpec, Runtime};
use widemap_common::template::{Syntax, Template};
use widemap_proto::VERSION;
use widemap_proto::session::{
    Assign, CoordinatorHello, Credit, Done, HeldAttempt, HeldState, ItemStderr, LeftOut, Order,
    OutputGrant, Part, Progress, Refusal, RefusalCause, Report, WorkerHello,
};
use widemap_proto::wire::{FromWorker, ToWorker};

/// How long each target runs.
fn moment() -> Duration {
    let seconds = std::env::var("WIDEMAP_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    seconds.map_or(Duration::from_millis(300), Duration::from_secs)
}

/// A good message, changed at some places: what a fuzzer would take long to find by itself.
fn changed(good: &[u8], changes: &[(u16, u8)], cut: Option<u16>) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for &(place, value) in changes {
        let place = usize::from(place) % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(place) {
            *byte = value;
        }
    }
    if let Some(cut) = cut {
        bytes.truncate(usize::from(cut) % (bytes.len() + 1));
    }
    bytes
}

type Changes = (Vec<(u16, u8)>, Option<u16>);

#[test]
fn no_announcement_makes_a_listener_panic() {
    let names = ["v", "id", "name", "slots", "cluster", "x"];
    bolero::check!().with_test_time(moment()).with_type::<Vec<(u8, Vec<u8>)>>().for_each(|pairs| {
        let named = |(name, value): &(u8, Vec<u8>)| {
            (names[usize::from(*name) % names.len()], value.clone())
        };
        if let Ok(announcement) = Announcement::from_properties(pairs.iter().map(named)) {
            // What was read can be said again, and means the same.
            let properties = announcement.to_properties().expect("it came from properties");
            assert_eq!(Announcement::from_properties(properties), Ok(announcement));
        }
    });
}

#[test]
fn no_configuration_makes_a_start_panic() {
    let good = "key = 'k'\nworkers = ['ann', 'bob:9']\nlocal = 2\nmdns = true\nlog = 'debug'\n";
    bolero::check!().with_test_time(moment()).with_type::<Changes>().for_each(|(changes, cut)| {
        let text = changed(good.as_bytes(), changes, *cut);
        if let Err((line, problem)) = Config::parse(&String::from_utf8_lossy(&text)) {
            assert!(line >= 1 && !problem.is_empty());
        }
    });
}

#[test]
fn no_key_file_makes_a_start_panic_or_shows_what_it_holds() {
    let key = ClusterKey::generate().expect("the system has randomness");
    let good = format!("# ours\n{}\n", *key.to_text());
    bolero::check!().with_test_time(moment()).with_type::<Changes>().for_each(|(changes, cut)| {
        let text = String::from_utf8_lossy(&changed(good.as_bytes(), changes, *cut)).into_owned();
        if let Err((line, problem)) = key::parse(&text) {
            assert!(line >= 1 && !problem.contains(&good[22..40]));
        }
        let bundle = format!("widemap-worker-bundle-v1: {}\n{text}", key.cluster());
        let _ = WorkerBundle::parse(&bundle);
    });
}

#[test]
fn no_bytes_of_a_coordinator_make_a_worker_panic() {
    let good = ToWorker::from(orders()).encode_to_vec();
    assert_eq!(read_orders(&good), Some(orders()));
    bolero::check!().with_test_time(moment()).with_type::<Changes>().for_each(|(changes, cut)| {
        let _ = read_orders(&changed(&good, changes, *cut));
    });
}

#[test]
fn no_bytes_of_a_worker_make_a_coordinator_panic() {
    let good = FromWorker::from(reports()).encode_to_vec();
    assert_eq!(read_reports(&good), Some(reports()));
    bolero::check!().with_test_time(moment()).with_type::<Changes>().for_each(|(changes, cut)| {
        let _ = read_reports(&changed(&good, changes, *cut));
    });
}

fn read_orders(bytes: &[u8]) -> Option<Vec<Order>> {
    Vec::<Order>::try_from(ToWorker::decode(bytes).ok()?).ok()
}

fn read_reports(bytes: &[u8]) -> Option<Vec<Report>> {
    Vec::<Report>::try_from(FromWorker::decode(bytes).ok()?).ok()
}

/// One order of each kind.
fn orders() -> Vec<Order> {
    let part = Part { attempt: AttemptId(7), offset: 3, data: Bytes::from_static(b"rest") };
    let spec = JobSpec {
        function: Function::Exec {
            argv: Template::command(&[b"echo".to_vec()], Syntax::default()),
        },
        framing: LINES,
        directory: Directory::Private,
        environment: vec![(b"A".to_vec(), Some(b"1".to_vec())), (b"B".to_vec(), None)],
        files: JobFiles::new(vec![
            JobFile { path: b"sub".to_vec(), kind: FileKind::Directory },
            JobFile {
                path: b"sub/tool".to_vec(),
                kind: FileKind::Regular { digest: Digest([7; 32]), bytes: 3, executable: true },
            },
        ])
        .unwrap(),
        timeout: Some(Duration::from_secs(1)),
        max_output: 1 << 20,
        limits: widemap_common::spec::Limits::default(),
        slots_per_item: std::num::NonZeroU32::MIN,
        per_item: true,
        ok_exit: vec![0, 1],
    };
    vec![
        Order::Hello(CoordinatorHello {
            version: VERSION,
            build: "widemap".to_owned(),
            coordinator: CoordinatorId(1),
            epoch: Epoch(2),
            linger_ms: 3,
        }),
        Order::Demand(4),
        Order::OpenJob(JobId(1), Box::new(spec)),
        Order::Assign(Assign {
            attempt: AttemptId(7),
            job: JobId(1),
            range: ItemRange::new(5, 2),
            input_offset: 10,
            input_bytes: 7,
            input: Bytes::from_static(b"a\nb"),
        }),
        Order::Input(part),
        Order::Revoke(AttemptId(8)),
        Order::Cancel(AttemptId(9)),
        Order::Accepted(vec![AttemptId(7)]),
        Order::OutputGrant(OutputGrant { total: 100, urgent: Some((AttemptId(7), 50)) }),
        Order::Ping(11),
        Order::LeftOut(LeftOut { for_ms: 5, why: "because".to_owned() }),
        Order::CloseJob(JobId(1)),
        Order::Goodbye,
    ]
}

/// One report of each kind.
fn reports() -> Vec<Report> {
    let hello = WorkerHello {
        version: VERSION,
        build: "widemap-worker".to_owned(),
        name: "ann".to_owned(),
        incarnation: Incarnation(9),
        slots: 2,
        runtimes: Runtime::ALL.to_vec(),
        labels: BTreeMap::from([("gpu".to_owned(), "yes".to_owned())]),
        functions: vec!["square".to_owned()],
        left_out: Some(LeftOut { for_ms: 1, why: "it fails".to_owned() }),
        clock_ms: Some(5),
    };
    let held = HeldAttempt {
        attempt: AttemptId(7),
        job: JobId(1),
        range: ItemRange::new(4, 2),
        input_offset: 9,
        input_length: 12,
        state: HeldState::Running,
        input_bytes: 3,
    };
    let done = Done {
        attempt: AttemptId(7),
        output: Bytes::from_static(b"x\n"),
        output_bytes: 2,
        busy_us: 3,
        item_lengths: Bytes::from_static(&[2]),
        item_micros: Bytes::from_static(&[3]),
        item_exits: Bytes::from_static(&[1]),
        faults: vec![Fault {
            index: 1,
            kind: FailureKind::Error,
            message: "no".to_owned(),
            exit: Some(1),
            signal: None,
            unfit: false,
            output_offset: 1,
            output_bytes: 1,
            retryable: true,
            micros: 2,
        }],
        stderr: vec![ItemStderr { index: 0, data: Bytes::from_static(b"hm"), cut: false }],
    };
    let progress = Progress { attempt: AttemptId(7), item: 1, running_us: 5, stalled: true };
    let refusal = Refusal { cause: RefusalCause::NotFound, message: "no such".to_owned() };
    vec![
        Report::Hello(Box::new(hello)),
        Report::Held(vec![held]),
        Report::Credit(Credit { slots: 2, queue: 1 }),
        Report::JobReady(JobId(1)),
        Report::JobRefused(JobId(2), refusal),
        Report::Revoked(AttemptId(8)),
        Report::TooLate(AttemptId(9)),
        Report::Output(Part { attempt: AttemptId(7), offset: 0, data: Bytes::from_static(b"o") }),
        Report::Done(Box::new(done)),
        Report::Heartbeat(vec![progress]),
        Report::Log(Some(JobId(1)), "text".to_owned()),
        Report::Draining(5),
        Report::Pong(6),
        Report::InputGrant(7),
        Report::Cancelled(AttemptId(9)),
    ]
}

/// A log is read as it was written, up to a torn end, or refused: no bytes make a fact that was never
/// written.
#[test]
fn no_log_of_a_journal_makes_a_start_panic_or_tells_what_was_not_written() {
    let good = journal_for_tests::good_log();
    let (facts, is_torn) = journal_for_tests::facts_of(&good).expect("it is good");
    assert!(facts.len() == 25 && !is_torn, "{} facts", facts.len());
    bolero::check!().with_test_time(moment()).with_type::<Changes>().for_each(|(changes, cut)| {
        let log = changed(&good, changes, *cut);
        match journal_for_tests::facts_of(&log) {
            Ok((read, is_torn)) => {
                assert!(facts.starts_with(&read), "{read:?} was never written");
                assert!(is_torn || read == facts || log.len() < good.len(), "it ends too early");
            }
            Err(why) => assert!(why.contains("facts"), "{why}"),
        }
    });
    bolero::check!().with_test_time(moment()).for_each(|bytes: &[u8]| {
        // Whatever it is, it is told.
        let _ = journal_for_tests::facts_of(bytes);
        let with_magic = [&good[..8], bytes].concat();
        if let Ok((read, _)) = journal_for_tests::facts_of(&with_magic) {
            assert!(read.is_empty(), "{read:?} was never written");
        }
    });
}
