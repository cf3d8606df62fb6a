//! The output of one attempt on its way from a worker: it keeps to the worker's own, part by part, with
//! bounds that are met.

use std::collections::VecDeque;

use bytes::Bytes;
use widemap_common::ids::AttemptId;
use widemap_proto::session::{Done, Part, Report};

/// How much output a worker keeps, and in how small parts it sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutputBounds {
    /// What is kept of an attempt once it is sent, and what it may have unsent before it waits.
    pub(super) attempt_bytes: u64,
    /// What is kept of all attempts before no further one starts.
    pub(super) session_bytes: u64,
    /// A part is not cut smaller than this to fit what is granted.
    pub(super) part_bytes_min: u64,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    parts: VecDeque<Bytes>,
    /// Where the first kept part begins. Above 0 the output cannot be sent again.
    kept_from: u64,
    parts_end: u64,
    next: usize,
    sent_bytes: u64,
    done: Option<Box<Done>>,
    done_sent: bool,
}

impl Outgoing {
    pub(super) fn push(&mut self, data: Bytes) {
        self.parts_end += data.len() as u64;
        self.parts.push_back(data);
    }

    pub(super) fn finish(&mut self, done: Box<Done>) {
        self.done = Some(done);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.done.is_some()
    }

    pub(super) fn is_whole(&self) -> bool {
        self.kept_from == 0
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.next < self.parts.len() || (self.done.is_some() && !self.done_sent)
    }

    /// Bytes that the attempt has handed over and this stream has not carried.
    pub(super) fn unsent_bytes(&self) -> u64 {
        self.parts_end.saturating_sub(self.sent_bytes)
    }

    pub(super) fn kept_bytes(&self) -> u64 {
        let last = self.done.as_ref().map_or(0, |done| done.output.len());
        self.parts_end - self.kept_from + last as u64
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    pub(super) fn rewind(&mut self) {
        assert!(self.is_whole(), "what was dropped cannot be sent again");
        (self.next, self.sent_bytes, self.done_sent) = (0, 0, false);
    }

    /// The next report, if `granted` bytes allow one.
    pub(super) fn next_report(
        &mut self,
        attempt: AttemptId,
        granted: u64,
        bounds: OutputBounds,
    ) -> Option<Report> {
        let split_to = |data: &mut Bytes| {
            let at = usize::try_from(granted).unwrap_or(data.len());
            (granted >= bounds.part_bytes_min).then(|| data.split_to(at))
        };
        if self.next == self.parts.len() {
            let done = self.done.as_mut().filter(|_| !self.done_sent)?;
            let bytes = done.output.len() as u64;
            if bytes <= granted {
                self.done_sent = true;
                self.sent_bytes += bytes;
                return Some(Report::Done(done.clone()));
            }
            let head = split_to(&mut done.output)?;
            self.parts_end += head.len() as u64;
            self.parts.push_back(head);
        } else if self.parts[self.next].len() as u64 > granted {
            let head = split_to(&mut self.parts[self.next])?;
            self.parts.insert(self.next, head);
        }
        let data = self.parts[self.next].clone();
        let offset = self.sent_bytes;
        self.next += 1;
        self.sent_bytes += data.len() as u64;
        // A long output is not kept once it is sent: a cut then costs the attempt.
        if self.parts_end - self.kept_from > bounds.attempt_bytes {
            self.parts.drain(..self.next);
            self.next = 0;
            self.kept_from = self.sent_bytes;
        }
        Some(Report::Output(Part { attempt, offset, data }))
    }
}
