//! A worker that is started again whenever it dies, as a service manager does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::process::{WorkerProcess, worker};

/// A worker that comes back on the same address.
#[derive(Debug)]
pub struct SupervisedWorker {
    address: String,
    deaths: Arc<AtomicU32>,
    ends: Arc<AtomicBool>,
    supervisor: Option<JoinHandle<()>>,
}

impl SupervisedWorker {
    /// Starts it, and whoever starts it again.
    #[must_use]
    pub fn start(name: &'static str, slots: u32) -> Self {
        let mut process = WorkerProcess::start(name, slots);
        let address = process.address().to_owned();
        let (deaths, ends) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, told, listen) = (deaths.clone(), ends.clone(), address.clone());
        let supervisor = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                if process.has_ended() {
                    counted.fetch_add(1, Ordering::Relaxed);
                    process = WorkerProcess::spawn(worker(name, slots, &["--listen", &listen]));
                }
                std::thread::park_timeout(Duration::from_millis(5));
            }
        });
        Self { address, deaths, ends, supervisor: Some(supervisor) }
    }

    /// Where it listens, in each of its lives.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How often it has died so far.
    #[must_use]
    pub fn deaths(&self) -> u32 {
        self.deaths.load(Ordering::Relaxed)
    }
}

impl Drop for SupervisedWorker {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(supervisor) = self.supervisor.take() {
            // A panic here would hide the one that may be under way.
            let _ = supervisor.join();
        }
    }
}
