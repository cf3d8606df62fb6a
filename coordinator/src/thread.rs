//! A thread that its owner joins: when it has said its last, or at the latest with the owner.

use std::thread::JoinHandle;

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Thread(Option<JoinHandle<()>>);

impl Thread {
    /// Starts one.
    ///
    /// # Errors
    /// If the system gives none.
    pub(crate) fn start(
        name: &str,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<Self, std::io::Error> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self(Some(thread)))
    }

    /// Joins one that has said its last. A panic of it goes on here.
    pub(crate) fn reap(&mut self) {
        if let Some(thread) = self.0.take()
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
    }

    /// Joins it where its owner is dropped.
    pub(crate) fn leave(&mut self) {
        if let Some(thread) = self.0.take() {
            // A panic of it has been printed; a drop must not panic again.
            let _ = thread.join();
        }
    }
}
