//! What must hold of the journal, in stories.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use widemap_common::ids::{Epoch, JobId};
use widemap_common::limits::{DRAFT_SYNC_BYTES, PART_BYTES_MAX};

use super::memory::{Fault, Memory};
use super::{PATIENCE, header, open, plain, range, read, settled, writer};
use crate::journal::{Disk, Entry, JobHeader, JournalError, Medium, Next, Shelf, check};

fn root() -> PathBuf {
    PathBuf::from("/journal")
}

fn accepted(first: u64, items: u32, text: &str) -> Entry {
    Entry::Accepted { range: range(first, items), payload: plain(text) }
}

fn failed(first: u64, record: &str, text: &str) -> Entry {
    Entry::Failed { range: range(first, 1), record: record.into(), payload: plain(text) }
}

#[test]
fn results_come_back_in_order_whatever_order_they_came_in_and_in_another_life() {
    let (medium, writer_of): (Arc<dyn Medium>, _) = (Arc::new(Memory::default()), writer);
    let (store, jobs) = open(medium.clone(), &root()).unwrap();
    assert_eq!((jobs.len(), store.epoch()), (0, Epoch(1)));
    let journal = writer_of(medium.clone());
    let mut draft = store.begin(header(), true, true).unwrap();
    draft.write(b"a\nb\n").unwrap();
    let mut job = draft.finish().unwrap();
    assert_eq!((job.id, job.input_bytes), (JobId(1), 4));
    job.write_with(&journal);
    for entry in
        [accepted(4, 2, "e f "), failed(3, "{d", ""), accepted(0, 2, "a b "), accepted(6, 1, "g ")]
    {
        journal.append(job.id, entry);
    }
    assert!(settled(&journal).is_none());
    // Item 2 is not there: nothing behind it is part of the output.
    assert_eq!(read(&job.shelf), ("a b ".to_owned(), vec![]));
    assert_eq!(job.shelf.final_ranges(), [range(0, 2), range(3, 4)]);
    journal.append(job.id, accepted(2, 1, "c "));
    journal.append(job.id, Entry::Paused(true));
    assert!(settled(&journal).is_none());
    let whole = ("a b c e f g ".to_owned(), vec![("{d".to_owned(), 6)]);
    assert_eq!(read(&job.shelf), whole);
    let mut rest = job.shelf.read_from(3, 0, 0);
    assert_eq!(rest.next().unwrap(), Next::Output(" ".into()));
    drop((journal, store));
    let (store, jobs) = open(medium.clone(), &root()).unwrap();
    assert_eq!(store.epoch(), Epoch(2));
    let job = jobs.into_iter().next().unwrap();
    assert_eq!((read(&job.shelf), job.shelf.is_paused()), (whole.clone(), true));
    assert_eq!(job.shelf.final_items(), (6, 1));
    assert_eq!((job.header, job.remarks), (header(), Vec::<String>::new()));
    drop(store);
    // The first life wrote one segment; the second goes on behind it.
    let (_store, mut jobs) = open(medium.clone(), &root()).unwrap();
    let journal = writer(medium);
    let job = &mut jobs[0];
    job.write_with(&journal);
    journal.append(job.id, accepted(7, 1, "h"));
    journal.append(job.id, Entry::Ended("over".into()));
    assert!(settled(&journal).is_none());
    assert_eq!(read(&job.shelf), (whole.0 + "h", whole.1));
    assert_eq!(job.shelf.ended(), Some("over".into()));
    assert_eq!(job.shelf.read_from(13, 1, 0).next().unwrap(), Next::End);
}

#[test]
fn standard_error_is_told_as_it_came_and_once_more_in_the_next_life() {
    let medium = Arc::new(Memory::default());
    let (store, _) = open(medium.clone(), &root()).unwrap();
    let journal = writer(medium.clone());
    let mut job = store.begin(header(), true, false).unwrap().finish().unwrap();
    job.write_with(&journal);
    // Between entries about items, which are sorted, and a failure, which lies in the same log.
    for entry in [
        Entry::Stderr("[3 c] one".into()),
        failed(2, "{c", ""),
        accepted(0, 2, "a b "),
        Entry::Stderr("[1 a] two\n[1 a] three".into()),
        Entry::Ended("over".into()),
    ] {
        journal.append(job.id, entry);
    }
    assert!(settled(&journal).is_none());
    let said = |shelf: &Arc<Shelf>, from| {
        let mut cursor = shelf.read_from(0, 0, from);
        let mut said = Vec::new();
        loop {
            match cursor.next().unwrap() {
                Next::Stderr(lines) => said.push(String::from_utf8(lines.to_vec()).unwrap()),
                Next::End => return said,
                _ => {}
            }
        }
    };
    let want = ["[3 c] one", "[1 a] two\n[1 a] three"];
    assert_eq!(
        (said(&job.shelf, 0), job.shelf.stderr_bytes()),
        (want.map(String::from).to_vec(), 30)
    );
    assert_eq!(read(&job.shelf), ("a b ".to_owned(), vec![("{c".to_owned(), 4)]));
    drop((journal, store));
    let (_store, jobs) = open(medium, &root()).unwrap();
    assert_eq!(said(&jobs[0].shelf, 0), want);
    assert_eq!(said(&jobs[0].shelf, 1), want[1..]);
    assert_eq!(read(&jobs[0].shelf), ("a b ".to_owned(), vec![("{c".to_owned(), 4)]));
}

#[test]
fn neighbours_that_come_together_are_one_fact() {
    let medium = Arc::new(Memory::default());
    let (store, _) = open(medium.clone(), &root()).unwrap();
    let journal = writer(medium.clone());
    let mut job = store.begin(header(), true, false).unwrap().finish().unwrap();
    job.write_with(&journal);
    // The first commit is at once; those that come meanwhile are together.
    journal.append(job.id, accepted(0, 1, "0"));
    for first in (1..10_000).rev() {
        journal.append(job.id, accepted(first, 1, "x"));
    }
    assert!(settled(&journal).is_none());
    assert_eq!(job.shelf.output_bytes(), 10_000);
    let facts = root().join("jobs/1/facts");
    assert!(medium.length(&facts) < 10_000, "{} bytes of facts", medium.length(&facts));
}

#[test]
fn a_long_result_is_read_in_parts_and_each_is_checked() {
    let medium = Arc::new(Memory::default());
    let (store, _) = open(medium.clone(), &root()).unwrap();
    let journal = writer(medium.clone());
    let mut job = store.begin(header(), true, false).unwrap().finish().unwrap();
    job.write_with(&journal);
    let long = "y".repeat(2 * PART_BYTES_MAX + 5);
    journal.append(job.id, accepted(0, 1, &long));
    assert!(settled(&journal).is_none());
    assert_eq!(read(&job.shelf).0, long);
    let segment = root().join("jobs/1/payload-000001");
    medium.flip(&segment, 8 * (PART_BYTES_MAX + 3));
    let mut cursor = job.shelf.read_from(0, 0, 0);
    let Next::Output(first) = cursor.next().unwrap() else { panic!("the first part is good") };
    assert_eq!(first.len(), PART_BYTES_MAX);
    let error = cursor.next().unwrap_err().to_string();
    assert!(error.contains("payload-000001, at byte 1048576: "), "{error}");
    let findings = check(&*medium, &root()).unwrap();
    assert_eq!((findings.len(), findings[0].problems.len()), (1, 1), "{findings:?}");
    assert!(findings[0].problems[0].contains("at byte 1048576"), "{findings:?}");
}

#[test]
fn a_changed_fact_is_refused_and_names_its_place() {
    let medium = Arc::new(Memory::default());
    let (store, _) = open(medium.clone(), &root()).unwrap();
    let journal = writer(medium.clone());
    let mut job = store.begin(header(), true, false).unwrap().finish().unwrap();
    job.write_with(&journal);
    for item in 0..3 {
        journal.append(job.id, accepted(item, 1, "x"));
        assert!(settled(&journal).is_none());
    }
    drop((journal, store));
    let facts = root().join("jobs/1/facts");
    let length = medium.length(&facts);
    let (mut refused, mut torn) = (0, 0);
    for bit in 0..length * 8 {
        medium.flip(&facts, bit);
        match open(medium.clone(), &root()) {
            Err(JournalError::Damaged { path, offset, .. }) => {
                assert_eq!(path, facts);
                assert!(offset as usize <= bit / 8, "bit {bit}: {offset}");
                refused += 1;
            }
            Err(JournalError::Version { .. }) => assert!(bit < 64, "bit {bit}"),
            Err(error) => panic!("bit {bit}: {error}"),
            Ok((store, jobs)) => {
                // In the last record, which may never have been whole: it is cut off, and told.
                assert_eq!((jobs[0].remarks.len(), jobs[0].shelf.final_items()), (1, (2, 0)));
                torn += 1;
                drop(store);
                // That changed the file for good.
                break;
            }
        }
        medium.flip(&facts, bit);
    }
    assert!(refused > 100 && torn == 1, "{refused} refused, {torn} torn");
}

#[test]
fn a_second_coordinator_is_refused_and_told_who_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open(Arc::new(Disk), directory.path()).unwrap();
    let error = open(Arc::new(Disk), directory.path()).err().expect("it is locked");
    let text = error.to_string();
    let holder = format!("by the widemap process {}", std::process::id());
    assert!(text.contains("is in use") && text.contains(&holder), "{text}");
    drop(store);
    assert!(open(Arc::new(Disk), directory.path()).is_ok());
}

#[test]
fn what_is_no_journal_of_this_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open(Arc::new(Disk), directory.path()).unwrap();
    drop(store.begin(header(), true, true).unwrap().finish().unwrap());
    drop(store);
    let job = directory.path().join("jobs/1");
    for (file, bytes) in
        [("facts", &b"WMFCT\0\0\x02"[..]), ("job", b"WMJOB\0\0\x02????"), ("facts", b"")]
    {
        let path = job.join(file);
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let error = open(Arc::new(Disk), directory.path()).err().expect("it is refused");
        assert!(matches!(&error, JournalError::Version { path: of, .. } if *of == path), "{error}");
        std::fs::write(&path, before).unwrap();
    }
    std::fs::write(directory.path().join("coordinator"), "something else\n").unwrap();
    let error = open(Arc::new(Disk), directory.path()).err().expect("it is refused");
    assert!(error.to_string().contains("`something else`"), "{error}");
}

#[test]
fn a_draft_that_is_not_finished_leaves_nothing_and_numbers_are_never_used_again() {
    let medium = Arc::new(Memory::default());
    let (store, _) = open(medium.clone(), &root()).unwrap();
    let mut draft = store.begin(header(), true, true).unwrap();
    draft.write(b"a\n").unwrap();
    drop(draft);
    // One whose coordinator is killed is found at the next start.
    std::mem::forget(store.begin(header(), true, true).unwrap());
    let job = store.begin(header(), true, true).unwrap().finish().unwrap();
    assert_eq!(job.id, JobId(1));
    store.remove(job.id).unwrap();
    let crashed = Arc::new(medium.after_a_crash(&mut fastrand::Rng::with_seed(7)));
    let (store, jobs) = open(crashed.clone(), &root()).unwrap();
    assert_eq!(jobs.len(), 0);
    assert!(!crashed.paths().iter().any(|path| path.to_string_lossy().contains(".new-")));
    assert_eq!(store.begin(header(), true, true).unwrap().finish().unwrap().id, JobId(2));
}

/// What a story of a crash has acknowledged.
struct Acknowledged {
    jobs: Vec<(JobId, u64)>,
}

/// Submits and writes until the end, or until the disk refuses; what was acknowledged until then.
fn live(medium: &Memory, rng: &mut fastrand::Rng, entries: u64) -> Acknowledged {
    let mut acknowledged = Acknowledged { jobs: Vec::new() };
    let shared: Arc<dyn Medium> = Arc::new(medium.clone());
    let Ok((store, jobs)) = open(shared.clone(), &root()) else { return acknowledged };
    let journal = writer(shared);
    let mut open_jobs: Vec<_> = jobs.into_iter().collect();
    for job in &mut open_jobs {
        job.write_with(&journal);
        acknowledged.jobs.push((job.id, job.shelf.next_item()));
    }
    while open_jobs.len() < 2 {
        let Ok(mut draft) = store.begin(header(), true, true) else { return acknowledged };
        if draft.write(b"items\n").is_err() {
            return acknowledged;
        }
        let Ok(mut job) = draft.finish() else { return acknowledged };
        job.write_with(&journal);
        acknowledged.jobs.push((job.id, 0));
        open_jobs.push(job);
    }
    let mut next: Vec<u64> = open_jobs.iter().map(|job| job.shelf.next_item()).collect();
    for _ in 0..entries {
        let index = rng.usize(0..open_jobs.len());
        let items = rng.u32(1..4);
        let text: String = (0..items).map(|i| format!("{};", next[index] + u64::from(i))).collect();
        journal.append(open_jobs[index].id, accepted(next[index], items, &text));
        next[index] += u64::from(items);
        if rng.u32(0..4) == 0 && settled(&journal).is_some() {
            break;
        }
    }
    // Its error may have been taken: then nothing more becomes durable.
    if !medium.has_failed() {
        settled(&journal);
    }
    for (job, (_, acknowledged)) in open_jobs.iter().zip(&mut acknowledged.jobs) {
        *acknowledged = job.shelf.next_item();
    }
    acknowledged
}

fn want(items: u64) -> String {
    (0..items).map(|item| format!("{item};")).collect()
}

/// Scenarios 21, 22, 26 and 27, on a disk that does what disks may do.
#[test]
fn what_was_acknowledged_survives_any_crash_and_any_refusal() {
    let seeds = std::env::var("WIDEMAP_JOURNAL_SEEDS").ok().and_then(|n| n.parse().ok());
    for seed in 0..seeds.unwrap_or(300) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut medium = Memory::default();
        let mut known: Vec<(JobId, u64)> = Vec::new();
        for life in 0..4 {
            if rng.u32(0..3) > 0 {
                let fault = if rng.bool() { Fault::Full } else { Fault::Broken };
                medium.fails_at(rng.u64(1..120), fault);
            }
            let acknowledged = live(&medium, &mut rng, 30);
            for (job, items) in acknowledged.jobs {
                match known.iter_mut().find(|(id, _)| *id == job) {
                    Some((_, before)) => {
                        assert!(*before <= items, "seed {seed}, life {life}: {job} has lost items");
                        *before = items;
                    }
                    None => known.push((job, items)),
                }
            }
            medium = medium.after_a_crash(&mut rng);
            let opened = open(Arc::new(medium.clone()), &root());
            let (store, jobs) = opened.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            for (job, items) in &known {
                let found = jobs.iter().find(|kept| kept.id == *job);
                let found =
                    found.unwrap_or_else(|| panic!("seed {seed}, life {life}: {job} is lost"));
                let there = found.shelf.next_item();
                assert!(there >= *items, "seed {seed}, life {life}: {job} has {there} of {items}");
                assert_eq!(read(&found.shelf).0, want(there), "seed {seed}, life {life}");
            }
            drop(store);
        }
    }
}

#[test]
fn nothing_counts_after_an_error_and_it_is_told_once() {
    let medium = Memory::default();
    let shared: Arc<dyn Medium> = Arc::new(medium.clone());
    let (store, _) = open(shared.clone(), &root()).unwrap();
    let journal = writer(shared);
    let mut job = store.begin(header(), true, false).unwrap().finish().unwrap();
    job.write_with(&journal);
    let good = journal.append(job.id, accepted(0, 1, "x"));
    assert!(settled(&journal).is_none());
    medium.fails_at(1, Fault::Full);
    let bad = journal.append(job.id, accepted(1, 1, "y"));
    let error = settled(&journal).expect("there is no room");
    assert!(error.is_full() && error.to_string().contains("is full"), "{error}");
    assert!(journal.take_error().is_none());
    let later = journal.append(job.id, accepted(2, 1, "z"));
    drop(journal);
    assert_eq!(read(&job.shelf).0, "x");
    assert!(good < bad && bad < later);
}

/// A restart with a million facts, and what they take in memory.
#[test]
fn a_million_facts_are_read_in_moments() {
    let directory = tempfile::tempdir().unwrap();
    let medium: Arc<dyn Medium> = Arc::new(Disk);
    let (store, _) = open(medium.clone(), directory.path()).unwrap();
    let journal = writer(medium.clone());
    let mut job = store.begin(header(), true, false).unwrap().finish().unwrap();
    job.write_with(&journal);
    // Every other item, so that none has a neighbour.
    const FACTS: u64 = 1_000_000;
    for index in 0..FACTS {
        while !journal.has_room() {
            std::thread::park_timeout(std::time::Duration::from_micros(50));
        }
        journal.append(job.id, accepted(2 * index, 1, "result\n"));
    }
    assert!(settled(&journal).is_none());
    drop((journal, store));
    let begun = std::time::Instant::now();
    let (_store, jobs) = open(medium, directory.path()).unwrap();
    println!("a million facts were read in {:.2?}", begun.elapsed());
    assert_eq!(jobs[0].shelf.final_items(), (FACTS, 0));
    assert_eq!(jobs[0].shelf.output_bytes(), 7);
}

#[test]
fn a_long_input_goes_to_the_disk_while_it_comes() {
    let medium = Memory::default();
    let (store, _) = open(Arc::new(medium.clone()), &root()).unwrap();
    let mut draft = store.begin(header(), true, true).unwrap();
    let part = vec![b'x'; DRAFT_SYNC_BYTES as usize];
    draft.write(&part).unwrap();
    let is_input = |path: &PathBuf| path.ends_with("input");
    let path = medium.paths().into_iter().find(is_input).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while medium.durable_length(&path) < part.len() {
        assert!(std::time::Instant::now() < deadline, "it waits for its end");
        std::thread::park_timeout(std::time::Duration::from_millis(1));
    }
    draft.write(b"\n").unwrap();
    assert_eq!(draft.finish().unwrap().input_bytes, DRAFT_SYNC_BYTES + 1);
    assert_eq!(medium.durable_length(&root().join("jobs/1/input")), part.len() + 1);
}

/// What the disk has lost meanwhile it tells once, and not to the one who asks in the end.
#[test]
fn what_was_lost_of_a_long_input_while_it_came_is_told_in_the_end() {
    let medium = Memory::default();
    let (store, _) = open(Arc::new(medium.clone()), &root()).unwrap();
    let mut draft = store.begin(header(), true, true).unwrap();
    // Behind the write itself.
    medium.fails_at(2, Fault::Lossy);
    draft.write(&vec![b'x'; DRAFT_SYNC_BYTES as usize]).unwrap();
    let error = draft.finish().err().expect("nobody knows what of it is durable");
    assert!(error.to_string().contains("the disk is broken"), "{error}");
    assert!(medium.paths().iter().all(|path| !path.starts_with(root().join("jobs"))));
}

/// A job that has begun runs like any other, and counts for nothing before it is accepted.
#[test]
fn a_job_that_has_begun_is_there_once_it_is_accepted_and_gone_with_its_life_before() {
    for is_accepted in [true, false] {
        let medium = Memory::default();
        let (store, _) = open(Arc::new(medium.clone()), &root()).unwrap();
        let journal = writer(Arc::new(medium.clone()));
        let mut draft = store.begin(header(), true, true).unwrap();
        draft.write(b"a\nb\n").unwrap();
        let mut job = draft.begin().unwrap();
        assert_eq!((job.id, job.input.clone()), (JobId(1), Some(root().join("jobs/1/input"))));
        job.write_with(&journal);
        journal.append(job.id, accepted(0, 1, "A "));
        assert!(settled(&journal).is_none());
        assert_eq!(read(&job.shelf).0, "A ");
        // What comes behind goes where the rest is.
        draft.write(b"c\n").unwrap();
        let another = store.begin(header(), true, true).unwrap().finish().unwrap();
        assert_eq!(another.id, JobId(2));
        if is_accepted {
            assert_eq!(draft.accept().unwrap(), 6);
            assert_eq!(medium.durable_length(&root().join("jobs/1/input")), 6);
        } else {
            // What is coming is of no concern to who looks whether all is well.
            let looked_at: Vec<_> = check(&medium, &root())
                .unwrap()
                .into_iter()
                .map(|finding| finding.directory)
                .collect();
            assert_eq!(looked_at, [root().join("jobs/2")]);
            drop(draft);
            assert!(medium.paths().contains(&root().join("jobs/1/input")), "it is in use");
        }
        journal.append(job.id, accepted(1, 1, "B "));
        assert!(settled(&journal).is_none());
        drop((journal, store));
        let crashed = medium.after_a_crash(&mut fastrand::Rng::with_seed(3));
        let (store, jobs) = open(Arc::new(crashed.clone()), &root()).unwrap();
        let ids: Vec<_> = jobs.iter().map(|job| job.id.0).collect();
        if is_accepted {
            assert_eq!(ids, [1, 2]);
            assert_eq!((jobs[0].input_bytes, read(&jobs[0].shelf).0), (6, "A B ".to_owned()));
        } else {
            assert_eq!(ids, [2]);
            assert!(crashed.paths().iter().all(|path| !path.starts_with(root().join("jobs/1"))));
        }
        // A number is never given twice: a worker may still have something of the first.
        assert_eq!(store.begin(header(), true, false).unwrap().finish().unwrap().id, JobId(3));
    }
}

/// Wherever the disk fails between a job's begin and its acceptance, it is whole or it is not there.
#[test]
fn a_disk_that_fails_while_a_job_is_accepted_leaves_all_of_it_or_nothing() {
    let mut seen = [0, 0];
    for call in 1.. {
        let medium = Memory::default();
        let (store, _) = open(Arc::new(medium.clone()), &root()).unwrap();
        let mut draft = store.begin(header(), true, true).unwrap();
        medium.fails_at(call, Fault::Broken);
        let made = draft
            .write(b"a\n")
            .and_then(|()| draft.begin().map(drop))
            .and_then(|()| draft.write(b"b\n"))
            .and_then(|()| draft.accept());
        let has_failed = medium.has_failed();
        assert_eq!(made.is_err(), has_failed);
        drop(store);
        let crashed = medium.after_a_crash(&mut fastrand::Rng::with_seed(call));
        let (store, jobs) = open(Arc::new(crashed.clone()), &root()).unwrap();
        for job in &jobs {
            assert_eq!((job.id, job.input_bytes), (JobId(1), 4));
        }
        seen[jobs.len()] += 1;
        assert!(has_failed || jobs.len() == 1, "what was accepted is kept");
        let next = store.begin(header(), true, false).unwrap().finish().unwrap();
        let was_numbered = made.is_ok() || next.id == JobId(2);
        assert!(next.id <= JobId(2) && (was_numbered || jobs.is_empty()));
        if !has_failed {
            break;
        }
    }
    // Failures before it counts, and the last one, after which all was well.
    assert!(seen[0] >= 8 && seen[1] >= 1, "{seen:?}");
}

#[test]
fn headers_differ_by_their_key() {
    let with = JobHeader { submit_key: Some("nightly".to_owned()), ..header() };
    let medium = Arc::new(Memory::default());
    let (store, _) = open(medium.clone(), Path::new("/journal")).unwrap();
    drop(store.begin(with.clone(), true, false).unwrap().finish().unwrap());
    drop(store);
    let (_, jobs) = open(medium, Path::new("/journal")).unwrap();
    assert_eq!((jobs[0].header.clone(), jobs[0].input.clone()), (with, None));
}
