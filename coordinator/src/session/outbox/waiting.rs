//! What waits, and what of it goes next.

use std::collections::VecDeque;

use bytes::Bytes;
use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_common::time::Time;
use widemap_proto::session::{Assign, Order, OutputGrant, Part};

use super::super::pace::Pace;
use super::{SendBounds, StreamId};

/// About what an assignment takes in a message beside its input.
const ASSIGN_BYTES: u64 = 32;

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) control: VecDeque<Order>,
    /// Somebody asks for the round trip.
    pub(super) ping: bool,
    pub(super) accepted: Vec<AttemptId>,
    pub(super) output: OutputLevel,
    pub(super) demand: Option<u32>,
    pub(super) assigns: VecDeque<Outgoing>,
    pub(super) levels: Levels,
    pub(super) pace: Pace,
    pub(super) stream: StreamId,
    pub(super) open: bool,
    /// No new assignment goes out.
    pub(super) is_held_back: bool,
}

/// The output that may come, of which the worker is told as much as the network carries.
#[derive(Debug, Default)]
pub(super) struct OutputLevel {
    /// What can be stored.
    pub(super) grant: Option<OutputGrant>,
    /// It is new, and not told at all.
    pub(super) is_new: bool,
    pub(super) told_total: u64,
}

/// Payload of the stream that is attached.
#[derive(Debug, Default)]
pub(super) struct Levels {
    pub(super) granted_total: u64,
    pub(super) sent_total: u64,
}

#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) attempt: AttemptId,
    pub(super) job: JobId,
    pub(super) range: ItemRange,
    pub(super) input: Bytes,
    /// Where the input begins in the job's.
    pub(super) offset: u64,
    pub(super) progress: Sending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    Unsent,
    /// So many bytes of the input are on the way.
    Upto(usize),
}

impl Waiting {
    pub(super) fn new(stream: StreamId, pace: Pace) -> Self {
        Self {
            control: VecDeque::new(),
            ping: false,
            accepted: Vec::new(),
            output: OutputLevel::default(),
            demand: None,
            assigns: VecDeque::new(),
            levels: Levels::default(),
            pace,
            stream,
            open: false,
            is_held_back: false,
        }
    }

    pub(super) fn take_batch(&mut self, bounds: SendBounds, now: Time) -> Vec<Order> {
        let mut batch = Vec::new();
        if !self.open {
            return batch;
        }
        batch.extend(self.control.drain(..));
        let is_asked_for = std::mem::take(&mut self.ping);
        if is_asked_for || self.pace.wants_ping() {
            self.pace.pinged(now, is_asked_for);
            batch.push(Order::Ping(now.0));
        }
        batch.extend(self.demand.take().map(Order::Demand));
        batch.extend(self.output.next_grant(&self.pace).map(Order::OutputGrant));
        if !self.accepted.is_empty() {
            batch.push(Order::Accepted(std::mem::take(&mut self.accepted)));
        }
        let mut payload_bytes = 0;
        // A ping follows every step of the payload, with the next message.
        while payload_bytes < bounds.batch_bytes
            && batch.len() < bounds.batch_entries
            && !self.pace.wants_ping()
        {
            let Some((order, bytes)) = self.take_payload(bounds.part_bytes) else { break };
            payload_bytes += bytes;
            batch.push(order);
        }
        batch
    }

    /// The next part of the first assignment that is not wholly sent, if it is granted.
    fn take_payload(&mut self, part_bytes: usize) -> Option<(Order, usize)> {
        let room = usize::try_from(self.pace.room()).unwrap_or(usize::MAX);
        if room == 0 {
            return None;
        }
        let levels = &mut self.levels;
        let granted = usize::try_from(levels.granted_total.saturating_sub(levels.sent_total))
            .unwrap_or(usize::MAX);
        let is_held_back = self.is_held_back;
        let held_back = |out: &&mut Outgoing| is_held_back && out.progress == Sending::Unsent;
        let out = self.assigns.front_mut().filter(|out| !held_back(out))?;
        let from = match out.progress {
            Sending::Unsent => 0,
            Sending::Upto(bytes) => bytes,
        };
        let bytes = (out.input.len() - from).min(part_bytes).min(granted).min(room);
        if bytes == 0 && !out.input.is_empty() {
            return None;
        }
        let data = out.input.slice(from..from + bytes);
        let order = match out.progress {
            Sending::Unsent => Order::Assign(Assign {
                attempt: out.attempt,
                job: out.job,
                range: out.range,
                input_offset: out.offset,
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
        self.pace.sent(bytes as u64 + ASSIGN_BYTES);
        Some((order, bytes))
    }
}

impl OutputLevel {
    /// What the worker is told, if that is news.
    fn next_grant(&mut self, pace: &Pace) -> Option<OutputGrant> {
        let has_more = self.has_more(pace);
        let grant = self.grant.filter(|_| std::mem::take(&mut self.is_new) || has_more)?;
        self.told_total = self.told_total.max(grant.total.min(pace.grantable()));
        // What all output waits for is worth a queue.
        Some(OutputGrant { total: self.told_total, ..grant })
    }

    /// Whether so much more may come that it is worth an order, or all that can be stored: the worker
    /// may wait for the rest of it.
    pub(super) fn has_more(&self, pace: &Pace) -> bool {
        let stored = self.grant.map_or(0, |grant| grant.total);
        let total = stored.min(pace.grantable());
        let is_last = total == stored && total > self.told_total;
        is_last || total >= self.told_total + pace.grant_step()
    }
}
