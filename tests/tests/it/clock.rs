//! The wall clock: nothing that waits may look at it.

use std::path::{Path, PathBuf};

/// Where the wall clock is read, and what for: never for a timer.
const ALLOWED: [(&str, &str); 12] = [
    ("coordinator/src/driver/job/results.rs", "when items ran, for a log of them"),
    ("coordinator/src/data/failures_file.rs", "the name of a failures file that nobody named"),
    ("coordinator/src/driver/service/jobs.rs", "when a job began and ended, as it is shown"),
    ("coordinator/src/driver/service/answers.rs", "when an attempt was assigned, as it is shown"),
    (
        "coordinator/src/driver/journaled.rs",
        "when a map with a journal began and ended, as it is kept",
    ),
    ("coordinator/src/service/intake.rs", "when a job was submitted, as it is shown"),
    ("coordinator/src/service/kept.rs", "`--keep` counts from when a job ended, over restarts"),
    ("coordinator/src/cli/jobs.rs", "how long ago a job was submitted, as it is shown"),
    ("coordinator/src/cli/job.rs", "when a job is submitted, as it is shown"),
    ("common/src/wall_clock.rs", "where those that show it read it"),
    ("worker/src/session/mod.rs", "the hello tells it, for `widemap doctor`"),
    ("coordinator/src/doctor/clock.rs", "it is what is checked"),
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Scenario 28: a jump of the wall clock changes no timer, since none is made from it.
#[test]
fn no_timer_looks_at_the_wall_clock() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    for part in
        ["common/src", "proto/src", "coordinator/src", "coordinator/sched/src", "worker/src"]
    {
        sources(&root.join(part), &mut found);
    }
    assert!(found.len() > 50, "the sources are elsewhere: {found:?}");
    let reads_the_clock = |path: &&PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let clocks = [
            "SystemTime",
            "UNIX_EPOCH",
            "CLOCK_REALTIME",
            "ClockId::Realtime",
            "chrono::",
            "wall_clock",
        ];
        clocks.iter().any(|clock| text.contains(clock))
    };
    // It only declares the module.
    found.retain(|path| !path.ends_with("common/src/lib.rs"));
    let reads: Vec<_> = found.iter().filter(reads_the_clock).collect();
    for path in reads {
        let path = path.strip_prefix(root).unwrap().to_str().unwrap();
        let is_allowed = ALLOWED.iter().any(|(allowed, _)| *allowed == path);
        assert!(is_allowed, "{path} reads the wall clock: a timer needs `Instant`");
    }
}
