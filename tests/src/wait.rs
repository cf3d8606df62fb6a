//! Waiting for conditions, and saying when a test cannot run here.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Waits until `state` satisfies `holds`; panics with the last state once the bound is over.
///
/// # Panics
/// If it does not hold within 20 seconds.
pub fn eventually<S: Debug>(what: &str, state: impl FnMut() -> S, holds: impl Fn(&S) -> bool) -> S {
    eventually_within(Duration::from_secs(20), what, state, holds)
}

/// The same with a bound of its own, where the bound is what is tested.
///
/// # Panics
/// If it does not hold in time.
pub fn eventually_within<S: Debug>(
    bound: Duration,
    what: &str,
    mut state: impl FnMut() -> S,
    holds: impl Fn(&S) -> bool,
) -> S {
    let bound = Instant::now() + bound;
    loop {
        let now = state();
        if holds(&now) {
            return now;
        }
        assert!(Instant::now() < bound, "{what}: still {now:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Watches something for a while, during which it must hold all the time.
///
/// # Panics
/// With the state in which it does not hold.
pub fn always_for<S: Debug>(
    time: Duration,
    what: &str,
    mut state: impl FnMut() -> S,
    holds: impl Fn(&S) -> bool,
) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let now = state();
        assert!(holds(&now), "{what}: now {now:?}");
        std::thread::park_timeout(Duration::from_millis(20));
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
    found || unmet(test, program)
}

/// Whether the test may do what only root may; where not, as with [`needs`].
///
/// # Panics
/// If it may not, and must not be skipped.
#[must_use]
pub fn needs_root(test: &str) -> bool {
    rustix::process::geteuid().is_root() || unmet(test, "root")
}

/// Says that a test is skipped for want of something: `false`, for whoever asked for it.
///
/// # Panics
/// If it must not be skipped.
#[must_use]
pub fn unmet(test: &str, what: &str) -> bool {
    assert!(
        std::env::var_os("WIDEMAP_TEST_NO_SKIP").is_none(),
        "{test} needs {what}, and must not be skipped here"
    );
    println!("skipped: {test} needs {what}");
    false
}
