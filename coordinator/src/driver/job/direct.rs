//! Results that go straight to the output: through the merge, which puts them in order.

use crate::data::{self, Merge, MergeConfig, SinkConfig};
use crate::error::MapError;

/// See the file's head.
pub(super) struct Direct {
    pub(super) merge: Merge,
    memory_bytes_max: u64,
    is_closed: bool,
}

/// What may wait for an earlier result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Store {
    pub(super) memory_bytes_max: u64,
    pub(super) spill_bytes_max: u64,
}

impl Direct {
    /// Starts to write. `notify` is called when [`Direct::poll`] has something to do.
    pub(super) fn start(
        sink: SinkConfig,
        is_ordered: bool,
        store: Store,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, MapError> {
        let config = MergeConfig {
            is_ordered,
            memory_bytes_max: store.memory_bytes_max,
            spill_bytes_max: store.spill_bytes_max,
            ..MergeConfig::default()
        };
        let merge = Merge::start(config, sink, notify)?;
        Ok(Self { merge, memory_bytes_max: store.memory_bytes_max, is_closed: false })
    }

    pub(super) fn memory_bytes_max(&self) -> u64 {
        self.memory_bytes_max
    }

    /// Moves the output on.
    pub(super) fn poll(&mut self) -> Option<Result<data::SinkReport, data::SinkError>> {
        self.merge.pump();
        if self.merge.sink_has_failed() {
            self.close();
        }
        self.merge.outcome()
    }

    /// Nothing more is accepted: lets the sink end once it has everything that is next. `stopped` says
    /// that items were not run, `has_lines` that a failed item has a line in the output.
    pub(super) fn finish(&mut self, stopped: bool, has_lines: bool) {
        self.merge.pump();
        if stopped && !self.merge.is_next_ready() {
            // What waits for an item that was not run is given up; what failed is still told.
            if !self.is_closed && !has_lines {
                self.merge.abandon();
            }
            self.close();
        } else if self.merge.is_empty() {
            self.close();
        }
    }

    fn close(&mut self) {
        if !std::mem::replace(&mut self.is_closed, true) {
            self.merge.close();
        }
    }
}
