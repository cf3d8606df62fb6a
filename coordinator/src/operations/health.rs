//! Whether a service lives, and whether it is of use.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use tokio::time::Instant;
use widemap_common::limits::HEALTH_PATIENCE_MS;

/// See the file's head.
#[derive(Debug)]
pub(super) struct Health {
    begun: Instant,
    /// When the driver was last heard of, in milliseconds since the beginning.
    beaten_ms: AtomicU64,
    stage: AtomicU8,
}

/// How far a service is.
const STARTING: u8 = 0;
const READY: u8 = 1;
const ENDING: u8 = 2;

impl Health {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), beaten_ms: AtomicU64::new(0), stage: AtomicU8::new(STARTING) }
    }

    /// The driver is alive.
    pub(super) fn beat(&self) {
        self.beaten_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    /// The driver gives out work, or has stopped to.
    pub(super) fn ready(&self, ready: bool) {
        self.beat();
        self.stage.store(if ready { READY } else { ENDING }, Ordering::Relaxed);
    }

    /// Whether it lives.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) fn live(&self) -> Result<&'static str, String> {
        match self.stage.load(Ordering::Relaxed) {
            STARTING => return Ok("starting: the journal is being read"),
            // What is on its way to the disk is waited for, however long that takes.
            ENDING => return Ok("ending"),
            _ => {}
        }
        let silent_ms = self.elapsed_ms().saturating_sub(self.beaten_ms.load(Ordering::Relaxed));
        match silent_ms >= HEALTH_PATIENCE_MS {
            true => Err(format!("the driver has not been heard of for {silent_ms} ms")),
            false => Ok("ok"),
        }
    }

    /// Whether it gives out work.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) fn is_ready(&self) -> Result<&'static str, String> {
        match self.stage.load(Ordering::Relaxed) {
            STARTING => Err("starting: the journal is being read".to_owned()),
            ENDING => Err("ending: workers keep what they run for the next start".to_owned()),
            _ => self.live(),
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_falls_silent_is_not_alive() {
        let health = Health::new();
        tokio::time::advance(Duration::from_millis(3 * HEALTH_PATIENCE_MS)).await;
        // A long journal is no sickness.
        assert!(health.live().is_ok() && health.is_ready().is_err());
        health.ready(true);
        assert!(health.live().is_ok() && health.is_ready().is_ok());
        tokio::time::advance(Duration::from_millis(HEALTH_PATIENCE_MS - 1)).await;
        assert!(health.live().is_ok() && health.is_ready().is_ok());
        tokio::time::advance(Duration::from_millis(1)).await;
        let why = health.live().unwrap_err();
        assert!(why.contains("has not been heard of for 10000 ms"), "{why}");
        assert!(health.is_ready().is_err());
        health.beat();
        assert!(health.is_ready().is_ok());
        health.ready(false);
        tokio::time::advance(Duration::from_millis(3 * HEALTH_PATIENCE_MS)).await;
        assert!(health.live().is_ok() && health.is_ready().unwrap_err().contains("ending"));
    }
}
