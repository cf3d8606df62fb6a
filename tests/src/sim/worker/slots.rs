//! Which attempts have the slots of a worker, and that nothing is held beyond its bounds.

use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::time::Time;

use super::Session;
use crate::sim::held::{Held, Stage};
use crate::sim::outgoing::OutputBounds;

impl Session {
    /// Lets what waits start, as far as there are slots: the head before all others, and nothing else
    /// while much output is kept. Gives what runs and has all of its input since now.
    pub(in crate::sim) fn start(&mut self, now: Time) -> Vec<(AttemptId, JobId, ItemRange)> {
        self.paused = self.kept_bytes() > self.output.session_bytes;
        while let Some(id) = self.next_to_start()
            && self.fits(self.attempts[&id].job)
        {
            self.lane.retain(|&waiting| waiting != id);
            let held = self.attempts.get_mut(&id).expect("what waits is held");
            held.stage = Stage::Running { since: now, run: None };
            self.running.insert(id);
        }
        let waits = |id: &&AttemptId| {
            let held = &self.attempts[*id];
            let new = matches!(held.stage, Stage::Running { run: None, .. });
            new && held.received_bytes == held.input_bytes
        };
        let started = self.running.iter().filter(waits);
        started.map(|&id| (id, self.attempts[&id].job, self.attempts[&id].range)).collect()
    }

    /// The slots that are taken by what runs, and by what takes its time to end.
    fn occupied(&self) -> u32 {
        let running = self.running.iter().map(|id| self.attempts[id].job);
        let ending = self.ending.values().map(|(job, _)| *job);
        running.chain(ending).map(|job| self.slots_per_item[&job]).sum()
    }

    /// Whether an attempt of the job may run beside those: one that needs more than there is, alone.
    fn fits(&self, job: JobId) -> bool {
        let (slots, occupied) = (self.credit.slots, self.occupied());
        slots > 0 && (occupied == 0 || occupied + self.slots_per_item[&job] <= slots)
    }

    fn next_to_start(&self) -> Option<AttemptId> {
        let urgent = self.reports.grant.urgent.map(|(attempt, _)| attempt);
        match urgent.filter(|urgent| self.lane.contains(urgent)) {
            Some(urgent) => Some(urgent),
            None if self.paused => None,
            None => self.lane.front().copied(),
        }
    }

    /// Asserts that what is held is within its bounds, but for what one more thing may add.
    pub(in crate::sim) fn check_bounds(&self, output: OutputBounds, slots: u32) {
        let longest = |held: &Held| match &held.stage {
            Stage::Running { run: Some(running), .. } => running.run.output.len() as u64,
            _ => 0,
        };
        for (id, held) in &self.attempts {
            let unsent = held.outgoing.unsent_bytes();
            let most = output.attempt_bytes + longest(held);
            let runs = matches!(held.stage, Stage::Running { .. });
            assert!(!runs || unsent <= most, "{id} has printed {unsent} bytes ahead");
        }
        let occupied = self.occupied();
        assert!(occupied <= slots, "{occupied} of {slots} slots are taken");
    }
}
