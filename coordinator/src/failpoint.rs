//! Places at which a test lets the coordinator be killed: `WIDEMAP_FAILPOINT=NAME=N` kills the process, as
//! SIGKILL does, when it comes to the place of that name for the N-th time. Only builds with debug
//! assertions have them.

/// Every place, in the order in which a result comes by.
pub const NAMES: [&str; 10] = [
    "result.arrived",
    "result.accepted",
    "journal.taken",
    "journal.payload-written",
    "journal.payload-synced",
    "journal.facts-written",
    "journal.facts-synced",
    "journal.published",
    "result.settled",
    "result.emitted",
];

/// Every place by which a submission comes that runs while it comes.
pub const SUBMITTING: [&str; 4] =
    ["submission.begun", "submission.whole", "submission.durable", "submission.registered"];

/// The program has come to a place.
#[cfg(debug_assertions)]
pub(crate) fn hit(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    struct Planned {
        name: String,
        left: AtomicU64,
    }
    static PLANNED: OnceLock<Option<Planned>> = OnceLock::new();
    let planned = PLANNED.get_or_init(|| {
        let text = std::env::var("WIDEMAP_FAILPOINT").ok()?;
        let (name, hits) = text.split_once('=').unwrap_or((&text, "1"));
        let left = AtomicU64::new(hits.parse().ok()?);
        Some(Planned { name: name.to_owned(), left })
    });
    let Some(planned) = planned.as_ref().filter(|planned| planned.name == name) else { return };
    if planned.left.fetch_sub(1, Ordering::SeqCst) == 1 {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        // The signal may take a moment to arrive at this thread.
        loop {
            std::thread::park();
        }
    }
}

/// The program has come to a place.
#[cfg(not(debug_assertions))]
pub(crate) fn hit(_name: &str) {}
