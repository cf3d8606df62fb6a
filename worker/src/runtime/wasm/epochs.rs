//! A thread that counts epochs while a module runs, and sleeps while none does.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use wasmtime::Engine;

use super::TICK;

/// See the file's head. Its thread is started with the first module, and joined when this is dropped.
pub(super) struct Epochs {
    engine: Engine,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    running: usize,
    ending: bool,
}

/// For as long as it lives epochs are counted.
pub(super) struct Ticking(Arc<Shared>);

impl Epochs {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine, shared: Arc::default(), thread: Mutex::default() }
    }

    /// A module begins to run.
    pub(super) fn tick(&self) -> io::Result<Ticking> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let (shared, engine) = (Arc::clone(&self.shared), self.engine.clone());
            let builder = std::thread::Builder::new().name("wasm-epochs".to_owned());
            *thread = Some(builder.spawn(move || shared.count(&engine))?);
        }
        drop(thread);
        self.shared.lock().running += 1;
        self.shared.changed.notify_one();
        Ok(Ticking(Arc::clone(&self.shared)))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, engine: &Engine) {
        let mut state = self.lock();
        while !state.ending {
            state = if state.running == 0 {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else {
                // One that begins meanwhile wakes this early, which is no harm.
                let waited = self.changed.wait_timeout(state, TICK);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
            engine.increment_epoch();
        }
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
    }
}

impl Drop for Epochs {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.changed.notify_one();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that counts epochs panicked");
        }
    }
}
