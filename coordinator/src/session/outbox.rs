//! What waits to be sent to one worker. The driver puts orders in, the link takes batches out:
//! control first and always, payload as far as the worker has granted.
//!
//! It is bounded by what a worker may hold: attempts by its credit, everything else by one entry
//! for each attempt or one level.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use tokio::sync::Notify;
use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, PART_BYTES_MAX};
use widemap_proto::session::{Assign, Order, OutputGrant, Part};

/// Orders for one worker. See the file's head.
#[derive(Debug, Default)]
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
}

impl Default for SendBounds {
    fn default() -> Self {
        Self {
            part_bytes: PART_BYTES_MAX,
            batch_bytes: BATCH_BYTES_MAX,
            batch_entries: BATCH_ENTRIES_MAX,
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

#[derive(Debug, Default)]
struct Waiting {
    control: VecDeque<Order>,
    accepted: Vec<AttemptId>,
    output_grant: Option<OutputGrant>,
    demand: Option<u32>,
    assigns: VecDeque<Outgoing>,
    levels: Levels,
    stream: StreamId,
    open: bool,
}

/// One stream of a link: news of a former one come late.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StreamId(u64);

/// Payload of the stream that is attached.
#[derive(Debug, Default)]
struct Levels {
    granted_total: u64,
    sent_total: u64,
}

#[derive(Debug)]
struct Outgoing {
    attempt: AttemptId,
    job: JobId,
    range: ItemRange,
    input: Bytes,
    progress: Sending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Unsent,
    /// So many bytes of the input are on the way.
    Upto(usize),
}

impl Outbox {
    /// An outbox whose messages are as large as that: how tests meet parts and full messages.
    #[must_use]
    pub fn with_bounds(bounds: SendBounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Puts in an order that is neither an assignment nor a level.
    pub fn order(&self, order: Order) {
        self.lock().control.push_back(order);
        self.filled.notify_one();
    }

    /// Puts in an assignment with its whole input; it is sent in parts.
    pub fn assign(&self, attempt: AttemptId, job: JobId, range: ItemRange, input: Bytes) {
        let outgoing = Outgoing { attempt, job, range, input, progress: Sending::Unsent };
        self.lock().assigns.push_back(outgoing);
    }

    /// Tells the worker that it may forget a result.
    pub fn accepted(&self, attempt: AttemptId) {
        self.lock().accepted.push(attempt);
    }

    /// Sets the level of output that can be stored.
    pub fn output_grant(&self, grant: OutputGrant) {
        self.lock().output_grant = Some(grant);
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
        let stream = waiting.stream;
        *waiting = Waiting { levels, stream, open: true, ..Waiting::default() };
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
            self.lock().assigns.push_back(Outgoing { attempt, job, range, input, progress });
        }
    }

    /// Sets the total of input bytes that may be sent on this stream.
    pub fn input_granted(&self, total: u64) {
        let mut waiting = self.lock();
        waiting.levels.granted_total = waiting.levels.granted_total.max(total);
        drop(waiting);
        self.filled.notify_one();
    }

    /// What goes into the next message; nothing if there is nothing, or nothing of it is granted.
    pub fn take_batch(&self) -> Vec<Order> {
        self.lock().take_batch(self.bounds)
    }

    /// The next batch, as soon as there is one.
    pub(crate) async fn batch(&self) -> Vec<Order> {
        loop {
            let batch = self.take_batch();
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

impl Waiting {
    fn take_batch(&mut self, bounds: SendBounds) -> Vec<Order> {
        let mut batch = Vec::new();
        if !self.open {
            return batch;
        }
        batch.extend(self.control.drain(..));
        batch.extend(self.demand.take().map(Order::Demand));
        batch.extend(self.output_grant.take().map(Order::OutputGrant));
        if !self.accepted.is_empty() {
            batch.push(Order::Accepted(std::mem::take(&mut self.accepted)));
        }
        let mut payload_bytes = 0;
        while payload_bytes < bounds.batch_bytes && batch.len() < bounds.batch_entries {
            let Some((order, bytes)) = self.take_payload(bounds.part_bytes) else { break };
            payload_bytes += bytes;
            batch.push(order);
        }
        batch
    }

    /// The next part of the first assignment that is not wholly sent, if it is granted.
    fn take_payload(&mut self, part_bytes: usize) -> Option<(Order, usize)> {
        let levels = &mut self.levels;
        let granted = usize::try_from(levels.granted_total.saturating_sub(levels.sent_total))
            .unwrap_or(usize::MAX);
        let out = self.assigns.front_mut()?;
        let from = match out.progress {
            Sending::Unsent => 0,
            Sending::Upto(bytes) => bytes,
        };
        let bytes = (out.input.len() - from).min(part_bytes).min(granted);
        if bytes == 0 && !out.input.is_empty() {
            return None;
        }
        let data = out.input.slice(from..from + bytes);
        let order = match out.progress {
            Sending::Unsent => Order::Assign(Assign {
                attempt: out.attempt,
                job: out.job,
                range: out.range,
                input_bytes: out.input.len() as u64,
                input: data,
            }),
            Sending::Upto(_) => {
                Order::Input(Part { attempt: out.attempt, offset: from as u64, data })
            }
        };
        out.progress = Sending::Upto(from + bytes);
        if from + bytes == out.input.len() {
            self.assigns.pop_front();
        }
        levels.sent_total += bytes as u64;
        Some((order, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> Outbox {
        let outbox = Outbox::default();
        outbox.open_stream();
        outbox
    }

    fn put(outbox: &Outbox, attempt: u64, bytes: usize) {
        let range = ItemRange::new(attempt, 1);
        outbox.assign(AttemptId(attempt), JobId(1), range, Bytes::from(vec![b'x'; bytes]));
    }

    #[test]
    fn input_goes_only_as_far_as_it_is_granted_and_control_goes_anyway() {
        let outbox = opened();
        put(&outbox, 1, 10);
        assert!(outbox.take_batch().is_empty());
        outbox.order(Order::Ping(7));
        assert_eq!(outbox.take_batch(), [Order::Ping(7)]);
        outbox.input_granted(4);
        assert!(matches!(&outbox.take_batch()[..], [Order::Assign(a)] if a.input.len() == 4));
        outbox.input_granted(100);
        assert!(
            matches!(&outbox.take_batch()[..], [Order::Input(p)] if p.offset == 4 && p.data.len() == 6)
        );
        assert!(outbox.take_batch().is_empty());
    }

    #[test]
    fn small_assignments_share_a_batch() {
        let outbox = opened();
        outbox.input_granted(1_000_000);
        (1..=100).for_each(|attempt| put(&outbox, attempt, 5));
        outbox.accepted(AttemptId(1));
        assert_eq!(outbox.take_batch().len(), 101);
    }

    #[test]
    fn what_is_recalled_before_it_is_sent_is_never_heard_of() {
        let outbox = opened();
        put(&outbox, 1, 10);
        put(&outbox, 2, 10);
        outbox.input_granted(4);
        outbox.take_batch();
        assert_eq!(outbox.recall(AttemptId(1)), Recalled::Sent);
        assert_eq!(outbox.recall(AttemptId(2)), Recalled::Unsent);
        outbox.input_granted(100);
        assert!(outbox.take_batch().is_empty());
    }

    #[test]
    fn an_empty_input_needs_no_grant() {
        let outbox = opened();
        put(&outbox, 1, 0);
        assert!(matches!(&outbox.take_batch()[..], [Order::Assign(a)] if a.input_bytes == 0));
    }

    #[test]
    fn a_new_stream_hears_only_what_was_said_after_it_opened() {
        let outbox = opened();
        outbox.input_granted(100);
        put(&outbox, 1, 10);
        outbox.begin_stream();
        outbox.input_granted(3);
        outbox.order(Order::Ping(1));
        assert!(outbox.take_batch().is_empty());
        outbox.open_stream();
        assert!(outbox.take_batch().is_empty());
        let input = Bytes::from_static(b"0123456789");
        outbox.resume(AttemptId(1), JobId(1), ItemRange::new(0, 1), input, 8);
        let batch = outbox.take_batch();
        assert!(matches!(&batch[..], [Order::Input(p)] if p.offset == 8 && p.data.len() == 2));
    }
}
