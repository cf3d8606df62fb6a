//! Waiting for conditions, and saying when a test cannot run here.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Waits until `state` satisfies `holds`; panics with the last state once the bound is over.
///
/// # Panics
/// If it does not hold within 20 seconds.
pub fn eventually<S: Debug>(
    what: &str,
    mut state: impl FnMut() -> S,
    holds: impl Fn(&S) -> bool,
) -> S {
    let bound = Instant::now() + Duration::from_secs(20);
    loop {
        let now = state();
        if holds(&now) {
            return now;
        }
        assert!(Instant::now() < bound, "{what}: still {now:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Whether a program that a test needs is there. Where it is missing the test says so and is
/// skipped, except in CI, where `WIDEMAP_TEST_NO_SKIP` turns that into a failure.
///
/// # Panics
/// If it is missing and must not be.
#[must_use]
pub fn needs(test: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !found {
        assert!(
            std::env::var_os("WIDEMAP_TEST_NO_SKIP").is_none(),
            "{test} needs {program}, and must not be skipped here"
        );
        println!("skipped: {test} needs {program}");
    }
    found
}
