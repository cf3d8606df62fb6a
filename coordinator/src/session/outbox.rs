//! What waits to be sent to one worker. The driver puts orders in, the link takes batches out:
//! control first and always, payload as far as the worker has granted, and as the network carries it.
//!
//! It is bounded by what a worker may hold: attempts by its credit, everything else by one entry
//! for each attempt or one level.

mod waiting;

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::limits::{
    BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, PACE_WINDOW_BYTES, PART_BYTES_MAX,
};
use widemap_common::time::{Time, Timers};
use widemap_proto::session::{Order, OutputGrant};

use super::pace::{Pace, PaceBounds};
use waiting::{Levels, Outgoing, Sending, Waiting};

/// Orders for one worker. See the file's head.
#[derive(Debug)]
pub struct Outbox {
    bounds: SendBounds,
    waiting: Mutex<Waiting>,
    filled: Notify,
}

/// What goes into one message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendBounds {
    /// Bytes of one part of an input.
    pub part_bytes: usize,
    /// Bytes of payload from which on no more is put in.
    pub batch_bytes: usize,
    /// Orders from which on no payload is put in.
    pub batch_entries: usize,
    /// What of all messages, and of what they bring back, may be on the way.
    pub pace: PaceBounds,
}

impl SendBounds {
    /// The bounds of a session with these timers.
    pub(crate) fn new(timers: &Timers) -> Self {
        let patience = PaceBounds::patience(timers);
        Self {
            part_bytes: PART_BYTES_MAX,
            batch_bytes: BATCH_BYTES_MAX,
            batch_entries: BATCH_ENTRIES_MAX,
            pace: PaceBounds { window_bytes: PACE_WINDOW_BYTES, patience },
        }
    }
}

/// What became of an attempt whose sending was called off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recalled {
    /// The worker has heard nothing of it.
    Unsent,
    /// The worker knows of it.
    Sent,
}

/// One stream of a link: news of a former one come late.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StreamId(u64);

impl Outbox {
    /// An outbox whose messages are as large as that.
    #[must_use]
    pub fn new(bounds: SendBounds) -> Self {
        let waiting = Waiting::new(StreamId::default(), Pace::new(bounds.pace));
        Self { bounds, waiting: Mutex::new(waiting), filled: Notify::new() }
    }

    /// Puts in an order that is neither an assignment nor a level.
    pub fn order(&self, order: Order) {
        self.lock().control.push_back(order);
        self.filled.notify_one();
    }

    /// Asks for the round trip, with the next message.
    pub fn ping(&self) {
        self.lock().ping = true;
        self.filled.notify_one();
    }

    /// A ping that was sent at `stamp` is answered. Gives the round trip if it was asked for.
    pub fn ponged(&self, stamp: Time, now: Time) -> Option<Duration> {
        let round_trip = self.lock().pace.answered(stamp, now);
        self.filled.notify_one();
        round_trip
    }

    /// When the oldest ping was sent on this stream that is not answered.
    pub(crate) fn oldest_ping(&self) -> Option<Time> {
        self.lock().pace.oldest_ping()
    }

    /// So many bytes of output have come on this stream.
    pub fn output_received(&self, bytes: u64, now: Time) {
        let mut waiting = self.lock();
        waiting.pace.received(bytes, now);
        let has_more = waiting.output.has_more(&waiting.pace);
        drop(waiting);
        if has_more {
            self.filled.notify_one();
        }
    }

    /// Puts in an assignment with its whole input, which begins there in the job's; it is sent in parts.
    pub fn assign(
        &self,
        attempt: AttemptId,
        job: JobId,
        range: ItemRange,
        input: Bytes,
        offset: u64,
    ) {
        let outgoing = Outgoing { attempt, job, range, input, offset, progress: Sending::Unsent };
        self.lock().assigns.push_back(outgoing);
    }

    /// Holds new assignments back, or lets them go: what the worker has is not to be more than it can hold.
    pub fn hold_back(&self, is_held_back: bool) {
        let was = std::mem::replace(&mut self.lock().is_held_back, is_held_back);
        if was && !is_held_back {
            self.filled.notify_one();
        }
    }

    /// Tells the worker that it may forget a result.
    pub fn accepted(&self, attempt: AttemptId) {
        self.lock().accepted.push(attempt);
    }

    /// Sets the level of output that can be stored.
    pub fn output_grant(&self, grant: OutputGrant) {
        let mut waiting = self.lock();
        (waiting.output.grant, waiting.output.is_new) = (Some(grant), true);
        drop(waiting);
        self.filled.notify_one();
    }

    /// Sets the number of attempts that could be used.
    pub fn demand(&self, attempts: u32) {
        self.lock().demand = Some(attempts);
        self.filled.notify_one();
    }

    /// Wakes the link after a series of [`Outbox::assign`] and [`Outbox::accepted`].
    pub fn flush(&self) {
        self.filled.notify_one();
    }

    /// Takes what is not sent of an attempt's input back.
    pub fn recall(&self, attempt: AttemptId) -> Recalled {
        let mut waiting = self.lock();
        let Some(at) = waiting.assigns.iter().position(|out| out.attempt == attempt) else {
            return Recalled::Sent;
        };
        match waiting.assigns.remove(at).map(|out| out.progress) {
            Some(Sending::Unsent) => Recalled::Unsent,
            _ => Recalled::Sent,
        }
    }

    /// Takes an attempt back of which the worker has heard nothing; whether that was so.
    pub fn recall_unsent(&self, attempt: AttemptId) -> bool {
        let mut waiting = self.lock();
        let unsent = |out: &Outgoing| out.attempt == attempt && out.progress == Sending::Unsent;
        let place = waiting.assigns.iter().position(unsent);
        place.and_then(|place| waiting.assigns.remove(place)).is_some()
    }

    /// Begins a new stream, on the link's side: levels count from nothing, and nothing is sent until
    /// the driver has heard of it.
    pub fn begin_stream(&self) -> StreamId {
        let mut waiting = self.lock();
        waiting.levels = Levels::default();
        waiting.pace = Pace::new(self.bounds.pace);
        waiting.open = false;
        waiting.stream.0 += 1;
        waiting.stream
    }

    /// Whether no other stream has begun since.
    pub fn is_present(&self, stream: StreamId) -> bool {
        self.lock().stream == stream
    }

    /// Opens the new stream, on the driver's side: orders meant for the former one are dropped.
    pub fn open_stream(&self) {
        let mut waiting = self.lock();
        let levels = std::mem::take(&mut waiting.levels);
        // Output that has come already counts, too.
        let pace = std::mem::replace(&mut waiting.pace, Pace::new(self.bounds.pace));
        let opened = Waiting::new(waiting.stream, pace);
        *waiting = Waiting { levels, open: true, ..opened };
        drop(waiting);
        self.filled.notify_one();
    }

    /// Sends the rest of an attempt's input, of which the worker holds the first `from` bytes.
    pub fn resume(
        &self,
        attempt: AttemptId,
        job: JobId,
        range: ItemRange,
        input: Bytes,
        from: u64,
    ) {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        if from < input.len() {
            let progress = Sending::Upto(from);
            // The worker knows where it begins.
            let offset = 0;
            let outgoing = Outgoing { attempt, job, range, input, offset, progress };
            self.lock().assigns.push_back(outgoing);
        }
    }

    /// Sets the total of input bytes that may be sent on this stream.
    pub fn input_granted(&self, total: u64) {
        let mut waiting = self.lock();
        waiting.levels.granted_total = waiting.levels.granted_total.max(total);
        drop(waiting);
        self.filled.notify_one();
    }

    /// What goes into the next message, which is sent now; nothing if there is nothing, or nothing of
    /// it is granted.
    pub fn take_batch(&self, now: Time) -> Vec<Order> {
        self.lock().take_batch(self.bounds, now)
    }

    /// The next batch, as soon as there is one.
    pub(crate) async fn batch(&self, clock: impl Fn() -> Time) -> Vec<Order> {
        loop {
            let batch = self.take_batch(clock());
            if !batch.is_empty() {
                return batch;
            }
            self.filled.notified().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> Outbox {
        let outbox = Outbox::new(SendBounds::new(&Timers::default()));
        outbox.open_stream();
        outbox
    }

    fn take(outbox: &Outbox) -> Vec<Order> {
        outbox.take_batch(Time::ZERO)
    }

    fn put(outbox: &Outbox, attempt: u64, bytes: usize) {
        let range = ItemRange::new(attempt, 1);
        outbox.assign(AttemptId(attempt), JobId(1), range, Bytes::from(vec![b'x'; bytes]), 0);
    }

    #[test]
    fn input_goes_only_as_far_as_it_is_granted_and_control_goes_anyway() {
        let outbox = opened();
        put(&outbox, 1, 10);
        assert!(take(&outbox).is_empty());
        outbox.order(Order::Ping(7));
        assert_eq!(take(&outbox), [Order::Ping(7)]);
        outbox.input_granted(4);
        assert!(matches!(&take(&outbox)[..], [Order::Assign(a)] if a.input.len() == 4));
        outbox.input_granted(100);
        assert!(
            matches!(&take(&outbox)[..], [Order::Input(p)] if p.offset == 4 && p.data.len() == 6)
        );
        assert!(take(&outbox).is_empty());
    }

    #[test]
    fn small_assignments_share_a_batch() {
        let outbox = opened();
        outbox.input_granted(1_000_000);
        (1..=100).for_each(|attempt| put(&outbox, attempt, 5));
        outbox.accepted(AttemptId(1));
        assert_eq!(take(&outbox).len(), 101);
    }

    #[test]
    fn what_is_held_back_waits_and_what_was_begun_goes_on() {
        let outbox = opened();
        outbox.input_granted(4);
        put(&outbox, 1, 6);
        put(&outbox, 2, 6);
        assert!(matches!(&take(&outbox)[..], [Order::Assign(_)]));
        outbox.hold_back(true);
        outbox.input_granted(100);
        outbox.accepted(AttemptId(9));
        assert!(matches!(&take(&outbox)[..], [Order::Accepted(_), Order::Input(_)]));
        assert!(take(&outbox).is_empty());
        outbox.hold_back(false);
        assert!(matches!(&take(&outbox)[..], [Order::Assign(assign)] if assign.attempt.0 == 2));
    }

    #[test]
    fn what_is_recalled_before_it_is_sent_is_never_heard_of() {
        let outbox = opened();
        put(&outbox, 1, 10);
        put(&outbox, 2, 10);
        outbox.input_granted(4);
        take(&outbox);
        assert_eq!(outbox.recall(AttemptId(1)), Recalled::Sent);
        assert_eq!(outbox.recall(AttemptId(2)), Recalled::Unsent);
        outbox.input_granted(100);
        assert!(take(&outbox).is_empty());
    }

    #[test]
    fn an_empty_input_needs_no_grant() {
        let outbox = opened();
        put(&outbox, 1, 0);
        assert!(matches!(&take(&outbox)[..], [Order::Assign(a)] if a.input_bytes == 0));
    }

    #[test]
    fn a_new_stream_hears_only_what_was_said_after_it_opened() {
        let outbox = opened();
        outbox.input_granted(100);
        put(&outbox, 1, 10);
        outbox.begin_stream();
        outbox.input_granted(3);
        outbox.order(Order::Ping(1));
        assert!(take(&outbox).is_empty());
        outbox.open_stream();
        assert!(take(&outbox).is_empty());
        let input = Bytes::from_static(b"0123456789");
        outbox.resume(AttemptId(1), JobId(1), ItemRange::new(0, 1), input, 8);
        let batch = take(&outbox);
        assert!(matches!(&batch[..], [Order::Input(p)] if p.offset == 8 && p.data.len() == 2));
    }

    #[test]
    fn more_input_goes_only_when_that_before_has_arrived() {
        let outbox = opened();
        outbox.input_granted(u64::MAX);
        put(&outbox, 1, 1 << 20);
        let (mut sent, mut pings) = (0, 0);
        loop {
            let batch = take(&outbox);
            if batch.is_empty() {
                break;
            }
            for order in batch {
                match order {
                    Order::Assign(assign) => sent += assign.input.len() as u64,
                    Order::Input(part) => sent += part.data.len() as u64,
                    Order::Ping(_) => pings += 1,
                    other => panic!("nothing else was put in: {other:?}"),
                }
            }
        }
        assert_eq!((sent, pings), (PACE_WINDOW_BYTES, 8));
        // Control goes all the same.
        outbox.demand(1);
        assert_eq!(take(&outbox), [Order::Demand(1)]);
        outbox.ponged(Time::ZERO, Time::from_ms(1));
        assert!(matches!(take(&outbox)[..], [Order::Input(_)]));
    }

    #[test]
    fn output_is_granted_as_far_as_the_network_carries_it() {
        let outbox = opened();
        let urgent = Some((AttemptId(1), 7));
        let grant = |total| OutputGrant { total, urgent };
        outbox.output_grant(grant(u64::MAX));
        assert_eq!(take(&outbox), [Order::OutputGrant(grant(PACE_WINDOW_BYTES))]);
        outbox.output_received(1, Time::from_ms(100_000));
        assert!(take(&outbox).is_empty());
        outbox.output_received(PACE_WINDOW_BYTES - 1, Time::from_ms(200_000));
        assert_eq!(take(&outbox), [Order::OutputGrant(grant(2 * PACE_WINDOW_BYTES))]);
        // What can be stored is less: the rest of it is told, however little it is.
        outbox.output_grant(grant(2 * PACE_WINDOW_BYTES + 1));
        assert_eq!(take(&outbox), [Order::OutputGrant(grant(2 * PACE_WINDOW_BYTES))]);
        outbox.output_received(1, Time::from_ms(300_000));
        assert_eq!(take(&outbox), [Order::OutputGrant(grant(2 * PACE_WINDOW_BYTES + 1))]);
    }
}
