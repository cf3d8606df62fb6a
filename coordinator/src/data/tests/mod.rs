//! The data plane as the driver uses it: what goes in comes out, in order, whatever happens between.

mod format;
mod input;
mod merge;

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use proptest::prelude::ProptestConfig;

/// So many cases. A failing one is printed, not kept in a file of its own: it may be a megabyte.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// What `notify` wakes, as the driver's loop would be.
#[derive(Clone, Default)]
struct Bell(Arc<(Mutex<u64>, Condvar)>);

impl Bell {
    fn ringer(&self) -> impl Fn() + Send + Sync + 'static {
        let bell = self.clone();
        move || {
            *bell.0.0.lock().unwrap() += 1;
            bell.0.1.notify_all();
        }
    }

    /// Turns the loop until `turn` has an answer; it is asked again after each ring.
    fn until<T>(&self, what: &str, mut turn: impl FnMut() -> Option<T>) -> T {
        loop {
            let rings = *self.0.0.lock().unwrap();
            if let Some(answer) = turn() {
                return answer;
            }
            let bound = Duration::from_secs(20);
            let (lock, condvar) = &*self.0;
            let (_guard, waited) = condvar
                .wait_timeout_while(lock.lock().unwrap(), bound, |now| *now == rings)
                .unwrap();
            assert!(!waited.timed_out(), "nobody rang while waiting for {what}");
        }
    }
}
