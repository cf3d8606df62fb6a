//! A submission on its way in: its items go to the disk as they come, and it is a job only when all of
//! it is durable. One with the key of a job that there is is compared with that job instead.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use widemap_common::limits::{PART_BYTES_MAX, SUBMISSIONS_MAX};
use widemap_common::wall_clock;
use widemap_proto::artifact::ArtifactPart;
use widemap_proto::jobs::{JobStatus, Submission, Submitted};

use super::desk::{DeskError, DeskLimits};
use super::ledger::{Draft, Ledger, NewJob};
use super::registry::{JobEntry, Registry};
use super::request::Request;
use crate::data::Arriving;
use crate::failpoint;

/// One of a bounded number of places for submissions. Whoever drops it makes room.
pub(crate) struct Entrance(Place);

/// A submission on its way in. Whoever drops it gives it up.
pub(crate) struct Intake {
    counter: Arc<Counter>,
    place: Option<Place>,
    state: Option<State>,
    input_bytes: u64,
}

/// What happens to its items.
enum State {
    /// They become a job's.
    Fresh(Box<Fresh>),
    /// They are compared with those of the job that there is.
    Known(Arc<JobEntry>, File),
}

/// A job to be.
struct Fresh {
    draft: Box<dyn Draft>,
    submission: Submission,
    created_ms: u64,
    /// The job, once it runs while the rest of its items comes.
    begun: Option<Begun>,
}

/// A job that has begun. Whoever drops it before it is accepted gives it up.
struct Begun {
    counter: Arc<Counter>,
    entry: Arc<JobEntry>,
    arriving: Arc<Arriving>,
    is_accepted: bool,
}

/// Where submissions come in: what they all share.
pub(super) struct Counter {
    pub(super) registry: Arc<Registry>,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) limits: DeskLimits,
    open: AtomicUsize,
    open_bytes: AtomicU64,
    keys: Mutex<Keys>,
    released: Notify,
    begun: Notify,
}

/// The keys of submissions that are on their way in. The newest one of a key counts: a former one is
/// most often of a connection that broke and has not been noticed yet.
#[derive(Default)]
struct Keys {
    taken: HashMap<String, CancellationToken>,
    /// Those that have begun, by their early keys.
    early: HashMap<String, Arc<JobEntry>>,
}

/// One of a bounded number of submissions, with its key.
struct Place {
    counter: Arc<Counter>,
    key: Option<String>,
    overtaken: CancellationToken,
    bytes: u64,
}

impl Counter {
    pub(super) fn new(
        registry: Arc<Registry>,
        ledger: Arc<dyn Ledger>,
        requests: mpsc::Sender<Request>,
        limits: DeskLimits,
    ) -> Self {
        Self {
            registry,
            ledger,
            requests,
            limits,
            open: AtomicUsize::new(0),
            open_bytes: AtomicU64::new(0),
            keys: Mutex::default(),
            released: Notify::new(),
            begun: Notify::new(),
        }
    }

    /// Begins a submission.
    async fn begin(
        self: &Arc<Self>,
        mut place: Place,
        submission: Submission,
    ) -> Result<Intake, DeskError> {
        if let Some(key) = &submission.submit_key
            && let Some(known) = self.reserve(key, &mut place).await
        {
            return self.compare(known, &submission, place);
        }
        self.has_place()?;
        self.has_room(0)?;
        let created_ms = wall_clock::unix_ms().unwrap_or(0);
        let (counter, key) = (Arc::clone(self), submission.submit_key.clone());
        let bytes = submission.to_bytes();
        let draft = blocking(move || {
            counter.ledger.begin(bytes, key.as_deref(), created_ms).map_err(DeskError::Ledger)
        });
        let fresh = Fresh { draft: draft.await?, submission, created_ms, begun: None };
        let (counter, state) = (Arc::clone(self), Some(State::Fresh(Box::new(fresh))));
        Ok(Intake { counter, place: Some(place), state, input_bytes: 0 })
    }

    /// Takes a place, if there is one.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Entrance, DeskError> {
        let former = self.open.fetch_add(1, Ordering::Relaxed);
        let overtaken = CancellationToken::new();
        // Dropped, it counts down again.
        let place = Place { counter: Arc::clone(self), key: None, overtaken, bytes: 0 };
        match former < SUBMISSIONS_MAX {
            true => Ok(Entrance(place)),
            false => Err(DeskError::TooManySubmissions),
        }
    }

    /// Takes a key, from a former submission if it must be; or finds the job that has it.
    async fn reserve(&self, key: &str, place: &mut Place) -> Option<Arc<JobEntry>> {
        loop {
            let mut released = std::pin::pin!(self.released.notified());
            released.as_mut().enable();
            {
                let mut keys = self.keys();
                match keys.taken.get(key) {
                    Some(former) => former.cancel(),
                    // A job is registered before its key is released.
                    None => match self.registry.by_key(key) {
                        Some(known) => return Some(known),
                        None => {
                            keys.taken.insert(key.to_owned(), place.overtaken.clone());
                            place.key = Some(key.to_owned());
                            return None;
                        }
                    },
                }
            }
            released.await;
        }
    }

    /// The job that is being handed in with an early key, as soon as it has begun.
    pub(super) async fn begun_early(&self, early_key: &str) -> Arc<JobEntry> {
        loop {
            let mut begun = std::pin::pin!(self.begun.notified());
            begun.as_mut().enable();
            if let Some(entry) = self.keys().early.get(early_key) {
                return Arc::clone(entry);
            }
            begun.await;
        }
    }

    fn compare(
        self: &Arc<Self>,
        known: Arc<JobEntry>,
        submission: &Submission,
        place: Place,
    ) -> Result<Intake, DeskError> {
        if let Some(what) = known.submission.difference(submission) {
            return Err(differs(&known, what.to_owned()));
        }
        let opened = known.input.as_ref().map(File::open);
        let file = opened.unwrap_or_else(|| Err(io::Error::from(io::ErrorKind::NotFound)));
        let file = file.map_err(|source| DeskError::Unreadable { job: known.id, source })?;
        let (counter, state) = (Arc::clone(self), Some(State::Known(known, file)));
        Ok(Intake { counter, place: Some(place), state, input_bytes: 0 })
    }

    /// Whether one more job is within the limits.
    fn has_place(&self) -> Result<(), DeskError> {
        let (waiting, most) = (self.registry.waiting().jobs, self.limits.jobs_max);
        if waiting >= most { Err(DeskError::TooManyJobs { waiting, most }) } else { Ok(()) }
    }

    /// Whether so many more bytes are within the limits.
    fn has_room(&self, bytes: u64) -> Result<(), DeskError> {
        let coming = self.open_bytes.load(Ordering::Relaxed) + bytes;
        if let Some(most) = self.limits.input_bytes_max
            && self.registry.waiting().input_bytes + coming > most
        {
            return Err(DeskError::TooManyBytes { most });
        }
        match self.limits.disk_bytes_max {
            Some(most) if self.ledger.used_bytes() + coming > most => {
                Err(DeskError::DiskBudget { most })
            }
            _ => Ok(()),
        }
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entrance {
    /// Begins to take a job in.
    ///
    /// # Errors
    /// If it is beyond a limit, or its key is another job's.
    pub(crate) async fn begin(self, submission: Submission) -> Result<Intake, DeskError> {
        let counter = Arc::clone(&self.0.counter);
        counter.begin(self.0, submission).await
    }
}

impl Intake {
    /// Ends when another submission with the same key has come: this one is of no use any more.
    pub(crate) fn overtaken(&self) -> CancellationToken {
        self.place.as_ref().map_or_else(CancellationToken::new, |place| place.overtaken.clone())
    }

    /// Bytes of input so far.
    pub(crate) fn input_bytes(&self) -> u64 {
        self.input_bytes
    }

    /// Takes a part of what is in the job's files in; what the job that there is has already is nothing new.
    ///
    /// # Errors
    /// If it is too much, not of the job's files, or cannot be written. The submission is of no use then.
    pub(crate) async fn write_artifact(&mut self, part: ArtifactPart) -> Result<(), DeskError> {
        let (Some(state), Some(place)) = (self.state.take(), &mut self.place) else {
            return Err(DeskError::Stopping);
        };
        self.state = Some(match state {
            State::Fresh(mut fresh) => {
                let bytes = part.data.len() as u64;
                self.counter.has_room(bytes)?;
                place.add(bytes);
                blocking(move || {
                    fresh.draft.write_artifact(&part).map_err(DeskError::Ledger)?;
                    Ok(State::Fresh(fresh))
                })
                .await?
            }
            known @ State::Known(..) => known,
        });
        Ok(())
    }

    /// Takes the next items in.
    ///
    /// # Errors
    /// If they are too many, differ from those of the job that there is, or cannot be written. The
    /// submission is of no use then.
    pub(crate) async fn write(&mut self, items: Bytes) -> Result<(), DeskError> {
        let (Some(state), Some(place)) = (self.state.take(), &mut self.place) else {
            return Err(DeskError::Stopping);
        };
        let bytes = items.len() as u64;
        let at = self.input_bytes;
        let state = match state {
            State::Fresh(mut fresh) => {
                self.counter.has_room(bytes)?;
                place.add(bytes);
                blocking(move || {
                    fresh.draft.write(&items).map_err(DeskError::Ledger)?;
                    if let Some(begun) = &fresh.begun {
                        begun.arriving.grow(at + bytes);
                    }
                    Ok(State::Fresh(fresh))
                })
                .await?
            }
            State::Known(known, file) => {
                blocking(move || {
                    is_same(&known, &file, at, &items)?;
                    Ok(State::Known(known, file))
                })
                .await?
            }
        };
        self.state = Some(state);
        self.input_bytes += bytes;
        Ok(())
    }

    /// All items are in: makes the job of them, durably, and hands it to the driver. That is done even
    /// if nobody waits for it any more.
    ///
    /// # Errors
    /// If it is not certain that the job is durable, or it differs from the one that there is.
    pub(crate) async fn finish(mut self) -> Result<Submitted, DeskError> {
        let (Some(state), Some(place)) = (self.state.take(), self.place.take()) else {
            return Err(DeskError::Stopping);
        };
        let fresh = match state {
            State::Known(known, _) if known.input_bytes() != self.input_bytes => {
                let what = format!(
                    "its input ({} bytes, and these are {})",
                    known.input_bytes(),
                    self.input_bytes
                );
                return Err(differs(&known, what));
            }
            State::Known(known, _) => return Ok(Submitted { job: known.told(), was_there: true }),
            State::Fresh(fresh) => fresh,
        };
        let (counter, input_bytes) = (self.counter, self.input_bytes);
        blocking(move || {
            let Fresh { draft, submission, created_ms, mut begun } = *fresh;
            if let Some(begun) = &begun {
                // What runs need not wait for what follows.
                begun.arriving.finish();
            }
            failpoint::hit("submission.whole");
            let made = draft.finish().map_err(DeskError::Ledger)?;
            failpoint::hit("submission.durable");
            let entry = match &mut begun {
                Some(begun) => begun.accept(input_bytes),
                None => Arc::new(entry(made, submission, created_ms, input_bytes, None)),
            };
            counter.registry.insert(Arc::clone(&entry));
            failpoint::hit("submission.registered");
            if let Some(begun) = &begun {
                begun.arriving.accept();
            }
            // The key is released only now, so that the next one with it finds the job.
            drop(place);
            // Without a driver the job runs when the coordinator is started again: it is durable.
            let _ = counter.requests.blocking_send(Request::Admit { job: Arc::clone(&entry) });
            Ok(Submitted { job: entry.told(), was_there: false })
        })
        .await
    }

    /// Whether it may begin before it is whole, and has not: whoever hands it in wants that, and some
    /// of its items are there.
    pub(crate) fn may_begin(&self) -> bool {
        let Some(State::Fresh(fresh)) = &self.state else { return false };
        self.input_bytes > 0 && fresh.submission.begins_at_once && fresh.begun.is_none()
    }

    /// Lets it run while the rest of it comes.
    ///
    /// # Errors
    /// If that cannot be done. The submission is of no use then.
    pub(crate) async fn begin(&mut self) -> Result<(), DeskError> {
        let (counter, bytes) = (Arc::clone(&self.counter), self.input_bytes);
        self.state = match self.state.take() {
            Some(State::Fresh(mut fresh)) if fresh.begun.is_none() => Some(
                blocking(move || {
                    fresh.begin(&counter, bytes)?;
                    Ok(State::Fresh(fresh))
                })
                .await?,
            ),
            other => other,
        };
        Ok(())
    }
}

impl Fresh {
    fn begin(&mut self, counter: &Arc<Counter>, bytes: u64) -> Result<(), DeskError> {
        let made = self.draft.begin().map_err(DeskError::Ledger)?;
        let arriving = Arc::new(Arriving::default());
        arriving.grow(bytes);
        let of_job = Some(Arc::clone(&arriving));
        let entry = Arc::new(entry(made, self.submission.clone(), self.created_ms, 0, of_job));
        if let Some(key) = &entry.submission.early_key {
            let mut keys = counter.keys();
            // The last one to begin has it: those before it are of connections that broke.
            if keys.early.get(key).is_none_or(|other| other.id < entry.id) {
                keys.early.insert(key.clone(), Arc::clone(&entry));
            }
            drop(keys);
            counter.begun.notify_waiters();
        }
        let begun = Begun {
            counter: Arc::clone(counter),
            entry: Arc::clone(&entry),
            arriving,
            is_accepted: false,
        };
        self.begun = Some(begun);
        // Without a driver it is gone with the next start.
        let _ = counter.requests.blocking_send(Request::Begin { job: entry });
        failpoint::hit("submission.begun");
        Ok(())
    }
}

impl Begun {
    fn accept(&mut self, input_bytes: u64) -> Arc<JobEntry> {
        self.is_accepted = true;
        self.entry.input_bytes.store(input_bytes, Ordering::Release);
        self.entry.accepted_ms.store(wall_clock::unix_ms().unwrap_or(0), Ordering::Release);
        Arc::clone(&self.entry)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.is_accepted {
            self.arriving.give_up();
        }
        let Some(key) = &self.entry.submission.early_key else { return };
        let mut keys = self.counter.keys();
        if keys.early.get(key).is_some_and(|entry| Arc::ptr_eq(entry, &self.entry)) {
            keys.early.remove(key);
        }
    }
}

fn entry(
    made: NewJob,
    submission: Submission,
    created_ms: u64,
    input_bytes: u64,
    arriving: Option<Arc<Arriving>>,
) -> JobEntry {
    JobEntry {
        id: made.id,
        submission,
        created_ms,
        input: Some(made.input),
        input_bytes: AtomicU64::new(input_bytes),
        arriving,
        accepted_ms: AtomicU64::new(0),
        shelf: made.shelf,
        status: watch::Sender::new(JobStatus::queued()),
    }
}

impl Place {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.counter.open_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counter.open.fetch_sub(1, Ordering::Relaxed);
        self.counter.open_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Some(key) = self.key.take() {
            self.counter.keys().taken.remove(&key);
            self.counter.released.notify_waiters();
        }
    }
}

/// Compares items with those that lie at `at` of a job's input.
fn is_same(known: &JobEntry, mut file: &File, at: u64, items: &[u8]) -> Result<(), DeskError> {
    let mut kept = vec![0; items.len().min(PART_BYTES_MAX)];
    let mut place = at;
    for items in items.chunks(PART_BYTES_MAX) {
        let kept = &mut kept[..items.len()];
        match file.read_exact(kept) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let what = format!("its input, which ends at byte {}", known.input_bytes());
                return Err(differs(known, what));
            }
            Err(source) => return Err(DeskError::Unreadable { job: known.id, source }),
        }
        if let Some(index) = kept.iter().zip(items).position(|(kept, item)| kept != item) {
            let what = format!("its input, from byte {} on", place + index as u64);
            return Err(differs(known, what));
        }
        place += items.len() as u64;
    }
    Ok(())
}

fn differs(known: &JobEntry, what: String) -> DeskError {
    let key = known.submission.submit_key.clone().unwrap_or_default();
    DeskError::Differs { key, job: known.id, what }
}

/// Runs what waits for a disk where that keeps nobody else.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DeskError> + Send + 'static,
) -> Result<T, DeskError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(DeskError::Stopping),
    }
}
