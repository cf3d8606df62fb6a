//! A file that goes to the disk while it is still being written, so that little is left to wait for when
//! it must be durable.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use widemap_common::limits::DRAFT_SYNC_BYTES;

use super::medium::MediumFile;
use crate::thread::Thread;

/// See the file's head.
pub(super) struct LongFile {
    file: Arc<dyn MediumFile>,
    length: u64,
    /// What the syncer was told of.
    told: u64,
    syncer: Option<Syncer>,
}

/// A thread that makes durable what there is, as often as it is told to.
struct Syncer {
    tell: Option<SyncSender<()>>,
    thread: Thread,
    error: Arc<Mutex<Option<io::Error>>>,
}

impl LongFile {
    /// One with nothing in it.
    pub(super) fn new(file: Box<dyn MediumFile>) -> Self {
        Self { file: Arc::from(file), length: 0, told: 0, syncer: None }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Adds to it.
    ///
    /// # Errors
    /// If this, or what was written before, cannot be written: then the file is of no use.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        if self.length - self.told < DRAFT_SYNC_BYTES {
            return Ok(());
        }
        self.told = self.length;
        if self.syncer.is_none() {
            // Where the system gives no thread, all of it is waited for in the end.
            self.syncer = Syncer::start(Arc::clone(&self.file)).ok();
        }
        self.syncer.as_mut().map_or(Ok(()), Syncer::tell)
    }

    /// Makes all of it durable.
    ///
    /// # Errors
    /// If that is not certain.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if let Some(mut syncer) = self.syncer.take() {
            // The system tells of a page that it could not write once, to whoever asks first.
            syncer.finish()?;
        }
        self.file.sync()
    }
}

impl Syncer {
    fn start(file: Arc<dyn MediumFile>) -> io::Result<Self> {
        let (tell, told) = sync_channel(1);
        let error = Arc::new(Mutex::new(None));
        let place = Arc::clone(&error);
        let thread = Thread::start("widemap-draft", move || run(&*file, &told, &place))?;
        Ok(Self { tell: Some(tell), thread, error })
    }

    fn tell(&mut self) -> io::Result<()> {
        match self.tell.as_ref().map(|tell| tell.try_send(())) {
            // It will look at what there is when it has done what it is at.
            None | Some(Ok(()) | Err(TrySendError::Full(()))) => Ok(()),
            Some(Err(TrySendError::Disconnected(()))) => self.finish(),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.tell = None;
        self.thread.reap();
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.tell = None;
        self.thread.leave();
    }
}

fn run(file: &dyn MediumFile, told: &Receiver<()>, place: &Mutex<Option<io::Error>>) {
    while told.recv().is_ok() {
        if let Err(error) = file.sync() {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            return;
        }
    }
}
