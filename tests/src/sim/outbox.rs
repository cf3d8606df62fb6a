//! What waits to be sent to one worker: control first, then payload in parts. It keeps to the
//! coordinator's own outbox, order by order.

use std::collections::VecDeque;

use bytes::Bytes;
use widemap_common::ids::{AttemptId, ItemRange, JobId};
use widemap_proto::session::{Assign, Order, OutputGrant, Part};

/// What became of an attempt whose sending was called off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Recalled {
    /// The worker has heard nothing of it.
    Unsent,
    /// The worker knows of it.
    Sent,
}

#[derive(Debug)]
struct Outgoing {
    attempt: AttemptId,
    job: JobId,
    range: ItemRange,
    input: Bytes,
    /// What is on the way; `None` while the worker has heard nothing of it.
    sent_bytes: Option<usize>,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    control: VecDeque<Order>,
    accepted: Vec<AttemptId>,
    output_grant: Option<OutputGrant>,
    assigns: VecDeque<Outgoing>,
    open: bool,
    /// Whether a batch is on the agenda already.
    pub(super) is_due: bool,
}

impl Outbox {
    pub(super) fn order(&mut self, order: Order) {
        self.control.push_back(order);
    }

    pub(super) fn accepted(&mut self, attempt: AttemptId) {
        self.accepted.push(attempt);
    }

    pub(super) fn output_grant(&mut self, grant: OutputGrant) {
        self.output_grant = Some(grant);
    }

    pub(super) fn assign(
        &mut self,
        attempt: AttemptId,
        job: JobId,
        range: ItemRange,
        input: Bytes,
    ) {
        self.assigns.push_back(Outgoing { attempt, job, range, input, sent_bytes: None });
    }

    /// Sends the rest of an input of which the worker holds the first `from` bytes.
    pub(super) fn resume(
        &mut self,
        attempt: AttemptId,
        job: JobId,
        range: ItemRange,
        input: Bytes,
        from: u64,
    ) {
        let from = usize::try_from(from).expect("an input fits the memory");
        if from < input.len() {
            let sent_bytes = Some(from);
            self.assigns.push_back(Outgoing { attempt, job, range, input, sent_bytes });
        }
    }

    /// Asks for an attempt back: what is not sent is simply not sent. What is half sent goes on,
    /// since the worker may have started it.
    pub(super) fn recall(&mut self, attempt: AttemptId) -> Recalled {
        let of = |out: &Outgoing| out.attempt == attempt && out.sent_bytes.is_none();
        match self.assigns.iter().position(of) {
            Some(at) => {
                self.assigns.remove(at);
                Recalled::Unsent
            }
            None => Recalled::Sent,
        }
    }

    /// Nobody wants the attempt any more: nothing more of it is sent.
    pub(super) fn drop_attempt(&mut self, attempt: AttemptId) -> Recalled {
        let recalled = self.recall(attempt);
        self.assigns.retain(|out| out.attempt != attempt);
        recalled
    }

    /// A stream is being opened: nothing is sent until the driver has heard of it.
    pub(super) fn begin_stream(&mut self) {
        self.open = false;
    }

    /// The driver has heard of the new stream: orders for the former one are dropped.
    pub(super) fn open_stream(&mut self) {
        *self = Self { open: true, is_due: self.is_due, ..Self::default() };
    }

    pub(super) fn has_some(&self) -> bool {
        let levels = self.output_grant.is_some() || !self.accepted.is_empty();
        self.open && (levels || !self.control.is_empty() || !self.assigns.is_empty())
    }

    /// The next batch, with at most so many bytes of payload, in parts of at most so many.
    pub(super) fn take_batch(&mut self, batch_bytes: usize, part_bytes: usize) -> Vec<Order> {
        let mut batch: Vec<_> = self.control.drain(..).collect();
        batch.extend(self.output_grant.take().map(Order::OutputGrant));
        if !self.accepted.is_empty() {
            batch.push(Order::Accepted(std::mem::take(&mut self.accepted)));
        }
        let mut bytes = 0;
        while bytes < batch_bytes {
            let Some(order) = self.take_payload(part_bytes) else { break };
            bytes += match &order {
                Order::Assign(assign) => assign.input.len(),
                Order::Input(part) => part.data.len(),
                _ => 0,
            };
            batch.push(order);
        }
        batch
    }

    fn take_payload(&mut self, part_bytes: usize) -> Option<Order> {
        let out = self.assigns.front_mut()?;
        let from = out.sent_bytes.unwrap_or(0);
        let to = out.input.len().min(from + part_bytes);
        let data = out.input.slice(from..to);
        let (attempt, input_bytes) = (out.attempt, out.input.len() as u64);
        let order = match out.sent_bytes {
            None => Order::Assign(Assign {
                attempt,
                job: out.job,
                range: out.range,
                input_bytes,
                input: data,
            }),
            Some(_) => Order::Input(Part { attempt, offset: from as u64, data }),
        };
        out.sent_bytes = Some(to);
        if to == out.input.len() {
            self.assigns.pop_front();
        }
        Some(order)
    }
}
