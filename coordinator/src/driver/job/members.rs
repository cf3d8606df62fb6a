//! Which workers can run the job, and why others cannot.

use widemap_common::ids::WorkerId;
use widemap_proto::session::{Refusal, WorkerHello};

use super::{Job, Refused};

impl Job {
    /// A worker cannot run the job.
    pub(in crate::driver) fn refused(&mut self, worker: WorkerId, name: &str, refusal: &Refusal) {
        let message = format!("{name}: {}", refusal.message);
        self.refusals.insert(worker, Refused { message, unable: true });
    }

    /// Notes if a worker that has just appeared, of which so many slots may be used, does not fit the
    /// job at all.
    pub(in crate::driver) fn meet(
        &mut self,
        worker: WorkerId,
        hello: &WorkerHello,
        slots: u32,
    ) -> Option<String> {
        let wanted = self.policy.slots_per_item.get();
        let runtime = self.policy.runtime;
        let lacks = |(key, value): (&String, &String)| hello.labels.get(key) != Some(value);
        let missing = self.policy.require.iter().find(|&label| lacks(label));
        let (message, unable) = if !hello.runtimes.contains(&runtime) {
            let allowed: Vec<_> = hello.runtimes.iter().map(|runtime| runtime.name()).collect();
            let allowed = allowed.join(", ");
            (format!("it does not allow {runtime} (it allows: {allowed})"), true)
        } else if let Some((key, value)) = missing {
            (format!("it has no label {key}={value} (--require)"), false)
        } else if wanted > slots.max(1) {
            let message = format!(
                "each item takes {wanted} slots (--slots-per-item), and it lends no more than {slots}"
            );
            (message, false)
        } else {
            return None;
        };
        let named = format!("{}: {message}", hello.name);
        self.refusals.insert(worker, Refused { message: named, unable });
        Some(message)
    }

    /// Whether a worker cannot run the job.
    pub(in crate::driver) fn has_refused(&self, worker: WorkerId) -> bool {
        self.refusals.contains_key(&worker)
    }

    /// Some worker could run the job.
    pub(in crate::driver) fn was_ready(&mut self) {
        self.has_been_ready = true;
    }

    /// Whether some worker could run the job at some time.
    pub(in crate::driver) fn has_been_ready(&self) -> bool {
        self.has_been_ready
    }

    /// Whether a worker lacks what the function needs.
    pub(in crate::driver) fn is_unable(&self, worker: WorkerId) -> bool {
        self.refusals.get(&worker).is_some_and(|refused| refused.unable)
    }

    /// Why a worker cannot run the job.
    pub(in crate::driver) fn refusal_of(&self, worker: WorkerId) -> Option<&str> {
        self.refusals.get(&worker).map(|refused| refused.message.as_str())
    }

    /// Why workers cannot run the job, a line each.
    pub(in crate::driver) fn refusals(&self) -> Vec<String> {
        self.refusals.values().map(|refused| format!("  {}", refused.message)).collect()
    }
}
