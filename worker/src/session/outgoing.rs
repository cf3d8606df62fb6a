//! The output of one attempt on its way to the coordinator: kept until it is accepted, so that it
//! can be sent again from its first byte.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use widemap_common::ids::AttemptId;
use widemap_common::limits::{ATTEMPT_OUTPUT_BYTES, PART_BYTES_MIN};
use widemap_proto::session::{Done, Part, Report};

use crate::slots::Flow;

/// The output of an attempt, and how much of it the present stream has carried.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// What is kept of the parts.
    parts: VecDeque<Bytes>,
    /// Where the first kept part begins. Above 0 the output cannot be sent again.
    kept_from: u64,
    /// Where the last part ends.
    parts_end: u64,
    /// The part that is sent next.
    next: usize,
    sent_bytes: u64,
    /// The end, with the last bytes of the output.
    done: Option<Box<Done>>,
    done_sent: bool,
    flow: Option<Arc<Flow>>,
}

impl Outgoing {
    /// A part that the slot has handed over.
    pub(super) fn push(&mut self, data: Bytes, flow: Arc<Flow>) {
        self.parts_end += data.len() as u64;
        self.parts.push_back(data);
        self.flow = Some(flow);
    }

    /// The attempt has ended.
    pub(super) fn finish(&mut self, done: Box<Done>) {
        self.done = Some(done);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.done.is_some()
    }

    /// Whether the whole output so far could be sent again.
    pub(super) fn is_whole(&self) -> bool {
        self.kept_from == 0
    }

    /// Whether there is something that this stream has not carried.
    pub(super) fn has_unsent(&self) -> bool {
        self.next < self.parts.len() || (self.done.is_some() && !self.done_sent)
    }

    /// The bytes that are kept.
    pub(super) fn kept_bytes(&self) -> u64 {
        let last = self.done.as_ref().map_or(0, |done| done.output.len());
        self.parts_end - self.kept_from + last as u64
    }

    /// How many bytes this stream has carried.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Begins again from the first byte, for another stream.
    pub(super) fn rewind(&mut self) {
        debug_assert!(self.is_whole(), "what was dropped cannot be sent again");
        if let Some(flow) = &self.flow {
            flow.unsent(self.sent_bytes.min(self.parts_end));
        }
        self.next = 0;
        self.sent_bytes = 0;
        self.done_sent = false;
    }

    /// The next report, if `granted` bytes allow one.
    pub(super) fn next_report(&mut self, attempt: AttemptId, granted: u64) -> Option<Report> {
        if self.next == self.parts.len() {
            let done = self.done.as_mut().filter(|_| !self.done_sent)?;
            let bytes = done.output.len() as u64;
            if bytes <= granted {
                self.done_sent = true;
                self.sent_bytes += bytes;
                return Some(Report::Done(done.clone()));
            }
            let head = split_to(&mut done.output, granted)?;
            self.parts_end += head.len() as u64;
            self.parts.push_back(head);
        } else if self.parts[self.next].len() as u64 > granted {
            let head = split_to(&mut self.parts[self.next], granted)?;
            self.parts.insert(self.next, head);
        }
        let data = self.parts[self.next].clone();
        let (offset, bytes) = (self.sent_bytes, data.len() as u64);
        self.next += 1;
        self.sent_bytes += bytes;
        if let Some(flow) = &self.flow {
            flow.sent(bytes);
        }
        self.drop_what_is_too_much();
        Some(Report::Output(Part { attempt, offset, data }))
    }

    /// A long output is not kept once it is sent: a cut then costs the attempt.
    fn drop_what_is_too_much(&mut self) {
        if self.parts_end - self.kept_from > ATTEMPT_OUTPUT_BYTES {
            self.parts.drain(..self.next);
            self.next = 0;
            self.kept_from = self.sent_bytes;
        }
    }
}

/// The part of `data` that is granted, unless it is too small to be worth a message.
fn split_to(data: &mut Bytes, granted: u64) -> Option<Bytes> {
    (granted >= PART_BYTES_MIN)
        .then(|| data.split_to(usize::try_from(granted).unwrap_or(data.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTEMPT: AttemptId = AttemptId(1);

    fn done(output: Bytes) -> Box<Done> {
        Box::new(Done {
            attempt: ATTEMPT,
            output_bytes: output.len() as u64,
            output,
            busy_us: 0,
            item_lengths: Bytes::new(),
            item_micros: Bytes::new(),
            item_exits: Bytes::new(),
            faults: Vec::new(),
            stderr: Vec::new(),
        })
    }

    fn sent(outgoing: &mut Outgoing, granted: u64) -> Vec<u8> {
        let mut whole = Vec::new();
        while let Some(report) = outgoing.next_report(ATTEMPT, granted) {
            match report {
                Report::Output(part) => {
                    assert_eq!(part.offset, whole.len() as u64);
                    whole.extend_from_slice(&part.data);
                }
                Report::Done(done) => whole.extend_from_slice(&done.output),
                other => panic!("not payload: {other:?}"),
            }
        }
        whole
    }

    #[test]
    fn a_result_is_cut_to_what_is_granted_and_sent_again_whole() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let mut outgoing = Outgoing::default();
        outgoing.finish(done(Bytes::from(bytes.clone())));
        assert!(outgoing.next_report(ATTEMPT, PART_BYTES_MIN - 1).is_none());
        assert_eq!(sent(&mut outgoing, PART_BYTES_MIN), bytes);
        assert!(!outgoing.has_unsent());
        outgoing.rewind();
        assert!(outgoing.has_unsent());
        assert_eq!(sent(&mut outgoing, u64::MAX), bytes);
    }
}
