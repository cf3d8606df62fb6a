//! What whoever runs a service wants to know of it: health, metrics, and what the service manager is told.
//! The driver says how it goes through [`Operations`], which only notes it; an HTTP server tells.

mod health;
mod host;
mod http;
mod metrics;
mod notify;

use std::sync::Arc;

pub(crate) use host::Hosts;
pub(crate) use http::{Told, serve};

use crate::driver::{Observed, Pulse};
use crate::journal::Commit;
use health::Health;
use metrics::Metrics;
use notify::Manager;

/// What is known of a service, shared with whoever tells it.
#[derive(Debug, Clone)]
pub(crate) struct Operations {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl Operations {
    /// Of a service that starts.
    pub(crate) fn new() -> Self {
        Self { health: Arc::new(Health::new()), metrics: Arc::new(Metrics::new()) }
    }

    /// What the journal is to tell of each commit.
    pub(crate) fn meter(&self) -> impl Fn(Commit) + Send + Sync + 'static {
        let metrics = Arc::clone(&self.metrics);
        move |commit| {
            tracing::debug!(bytes = commit.bytes, took = ?commit.took, "made durable");
            metrics.committed(commit);
        }
    }

    /// What the driver is to tell how it goes.
    pub(crate) fn pulse(&self) -> Box<dyn Pulse> {
        Box::new(Beating { operations: self.clone(), manager: Manager::find() })
    }
}

/// Notes what the driver says, and passes on what a service manager wants to hear.
struct Beating {
    operations: Operations,
    manager: Manager,
}

impl Pulse for Beating {
    fn beat(&mut self) {
        self.operations.health.beat();
        self.manager.beat();
    }

    fn ready(&mut self, ready: bool) {
        self.operations.health.ready(ready);
        self.manager.ready(ready);
    }

    fn observe(&mut self, observed: &Observed) {
        self.manager.status(observed);
        self.operations.metrics.observe(observed);
    }
}
