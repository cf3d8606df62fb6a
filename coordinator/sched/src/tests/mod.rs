//! The scheduler alone, in stories.

mod adopting;
mod failing;
mod flowing;
mod random;
mod script;
mod sharing;
mod suspecting;
mod widths;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use widemap_common::spec::Runtime;

use crate::event::JobPolicy;

/// What jobs of tests are run with, unless a story says otherwise.
pub(crate) fn policy() -> JobPolicy {
    JobPolicy {
        runtime: Runtime::Builtin,
        require: BTreeMap::new(),
        retries: 1,
        crash_limit: 3,
        chunk_items: None,
        chunk_target: Duration::from_millis(20),
        weight: 1,
        priority: 0,
        slots_per_item: NonZeroU32::MIN,
        speculate: false,
    }
}

/// A policy with so many items in a chunk.
pub(crate) fn chunks_of(items: u32) -> JobPolicy {
    JobPolicy { chunk_items: Some(items), ..policy() }
}
