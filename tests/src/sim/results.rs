//! The results of a job on their way out: the coordinator's own merge, whose sink and spill work when
//! the simulation lets them.

use widemap::data::{Merge, MergeLevel, SteppedConfig, SteppedMerge};

/// See the file's head.
pub(super) struct Results {
    stepped: SteppedMerge,
    /// What has gone out.
    output: Vec<u8>,
    /// Things that the sink still writes while whoever reads the output does not.
    steps_left: Option<u32>,
    /// Whether a turn of the sink and the spill is on the agenda.
    pub(super) is_due: bool,
    is_closed: bool,
    is_delivered: bool,
}

impl Results {
    pub(super) fn new(config: SteppedConfig) -> Self {
        let stepped = SteppedMerge::new(config).expect("a file in memory can be made");
        let (output, steps_left) = (Vec::new(), None);
        let (is_due, is_closed, is_delivered) = (false, false, false);
        Self { stepped, output, steps_left, is_due, is_closed, is_delivered }
    }

    pub(super) fn merge(&mut self) -> &mut Merge {
        &mut self.stepped.merge
    }

    pub(super) fn level(&self) -> MergeLevel {
        self.stepped.merge.level()
    }

    /// The first item whose result was not handed to the sink.
    pub(super) fn next_item(&self) -> u64 {
        self.stepped.merge.next_item()
    }

    /// Lets the sink and the spill work off what they have. Whether the driver is woken by it.
    pub(super) fn work(&mut self) -> bool {
        while self.stepped.step_spill() {}
        let mut has_written = false;
        while self.steps_left != Some(0) && self.stepped.step_sink() {
            has_written = true;
            if let Some(left) = &mut self.steps_left {
                *left -= 1;
            }
        }
        if has_written {
            self.stepped.read_output(&mut self.output).expect("a file in memory can be read");
        }
        // What was written gives room in the spill.
        while self.stepped.step_spill() {}
        self.stepped.take_notified()
    }

    /// Whoever reads the output stops: the sink writes so many things more.
    pub(super) fn stall(&mut self, steps: u32) {
        self.steps_left = Some(steps);
    }

    /// Whoever reads the output goes on.
    pub(super) fn flow(&mut self) {
        self.steps_left = None;
    }

    /// Nothing more is accepted.
    pub(super) fn close(&mut self) {
        if !std::mem::replace(&mut self.is_closed, true) {
            self.stepped.merge.close();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether everything has been written.
    pub(super) fn poll_delivered(&mut self) -> bool {
        if let Some(outcome) = self.stepped.merge.outcome() {
            outcome.expect("a file in memory can be written");
            self.is_delivered = true;
        }
        self.is_delivered
    }

    pub(super) fn is_delivered(&self) -> bool {
        self.is_delivered
    }

    pub(super) fn output(&self) -> &[u8] {
        &self.output
    }
}
