//! What a process says on standard error, to be asked for while it runs.

use std::io::Read;
use std::sync::{Arc, Mutex};

use crate::wait::eventually;

/// The ear of a thread that reads to the end of a pipe.
#[derive(Debug)]
pub(crate) struct Said(Arc<Mutex<String>>);

impl Said {
    /// Listens to a pipe; the thread ends with whoever writes there.
    pub(crate) fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let said = Arc::new(Mutex::new(String::new()));
        let hears = said.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]);
                hears.lock().expect("no holder of this lock panics").push_str(&text);
            }
        });
        Self(said)
    }

    /// What was said so far.
    pub(crate) fn so_far(&self) -> String {
        self.0.lock().expect("no holder of this lock panics").clone()
    }

    /// All that was said, once the process has ended: the thread may be a moment behind.
    pub(crate) fn to_the_end(&self) -> String {
        let hears = || Arc::strong_count(&self.0);
        eventually("standard error is read to its end", hears, |&count| count == 1);
        self.so_far()
    }
}
