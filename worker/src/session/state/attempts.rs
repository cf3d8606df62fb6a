//! What becomes of one attempt: its input comes, it goes to a slot, it is taken back or ended.

use std::sync::Arc;

use widemap_common::ids::AttemptId;
use widemap_common::limits::{ATTEMPTS_HELD_MAX, ITEM_BYTES_MAX};
use widemap_proto::session::{Assign, OutputGrant, Part, Report};

use super::super::outbox::SendKey;
use super::super::outgoing::Outgoing;
use super::{Attempt, Session, Violation};
use crate::job::{Job, Runner};
use crate::slots::{InputStream, Task, TaskInput};

impl Session {
    pub(super) fn assign(&mut self, assign: Assign) -> Result<(), Violation> {
        let Assign { attempt: id, job, input_bytes, ref input, .. } = assign;
        self.input.received(input.len());
        if let Some(known) = self.attempts.get_mut(&id) {
            // Answered from what is held, never run twice.
            self.input.dropped(input.len());
            if known.outgoing.is_whole() && known.outgoing.is_finished() {
                known.outgoing.rewind();
                self.outbox.ready(known.key);
            }
            return Ok(());
        }
        if self.draining {
            self.input.dropped(input.len());
            self.outbox.push(Report::Revoked(id));
            return Ok(());
        }
        let Some(open) = self.jobs.get(&job) else { return Err(Violation::JobNotOpen(id, job)) };
        let gathered = !matches!(open.runner, Runner::Pipe(..));
        if gathered && input_bytes > ITEM_BYTES_MAX as u64 {
            return Err(Violation::InputTooLong(id, input_bytes));
        }
        if self.attempts.len() >= ATTEMPTS_HELD_MAX {
            return Err(Violation::TooManyAttempts);
        }
        let open = open.clone();
        self.queue(open, assign);
        Ok(())
    }

    fn queue(&mut self, job: Arc<Job>, assign: Assign) {
        let Assign { attempt: id, range, input_offset, input_bytes, input, .. } = assign;
        let first = *self.first_ticket.get_or_insert_with(|| self.lane.next_ticket());
        let received_bytes = input.len() as u64;
        let (input, stream) = if received_bytes == input_bytes {
            (TaskInput::Whole(input), None)
        } else {
            let stream = Arc::new(InputStream::new(input_bytes, self.lane.meter.clone()));
            stream.push(input);
            (TaskInput::Stream(stream.clone()), Some(stream))
        };
        let attempt = Attempt {
            key: SendKey { job: job.id, first_item: range.first, attempt: id },
            range,
            input_offset,
            input_bytes,
            received_bytes,
            input: stream,
            ticket: first.after(self.tasks.len()),
            outgoing: Outgoing::default(),
        };
        if self.outbox.urgent() == Some(id) {
            // The grant came ahead of its attempt.
            self.lane.set_urgent(Some(attempt.ticket));
        }
        self.attempts.insert(id, attempt);
        self.tasks.push(Task { attempt: id, job, range, input });
    }

    pub(super) fn start_tasks(&mut self) {
        self.first_ticket = None;
        self.lane.push(&mut self.tasks);
    }

    pub(super) fn input(&mut self, part: Part) -> Result<(), Violation> {
        let Part { attempt: id, offset, data } = part;
        self.input.received(data.len());
        let Some(attempt) = self.attempts.get_mut(&id) else {
            self.input.dropped(data.len());
            return Ok(());
        };
        let end = offset + data.len() as u64;
        let expected = attempt.received_bytes;
        match &attempt.input {
            Some(stream) if offset == expected && end <= attempt.input_bytes => {
                attempt.received_bytes = end;
                stream.push(data);
                Ok(())
            }
            // Sent again, and here already.
            _ if end <= expected => {
                self.input.dropped(data.len());
                Ok(())
            }
            _ => Err(Violation::InputGap { attempt: id, offset, expected }),
        }
    }

    pub(super) fn set_grant(&mut self, grant: OutputGrant) {
        self.start_tasks();
        let urgent = grant.urgent.and_then(|(attempt, _)| self.attempts.get(&attempt));
        self.lane.set_urgent(urgent.map(|attempt| attempt.ticket));
        self.outbox.set_grant(grant);
    }

    pub(super) fn revoke(&mut self, id: AttemptId) {
        self.start_tasks();
        let back = self.take_back(id);
        self.outbox.push(if back { Report::Revoked(id) } else { Report::TooLate(id) });
    }

    /// Takes an attempt back if it has not started.
    pub(super) fn take_back(&mut self, id: AttemptId) -> bool {
        let task = self.attempts.get(&id).and_then(|held| self.lane.take_back(held.ticket));
        let Some(task) = task else { return false };
        self.forget(id);
        match task.input {
            TaskInput::Whole(input) => self.input.dropped(input.len()),
            TaskInput::Stream(stream) => stream.close(),
        }
        true
    }

    /// Ends an attempt, however far it is, and forgets it. One that runs is told of once its slot is
    /// free.
    pub(super) fn cancel(&mut self, id: AttemptId) {
        let Some(held) = self.attempts.get(&id) else { return };
        if held.outgoing.is_finished() {
            self.forget(id);
            return;
        }
        self.start_tasks();
        if !self.take_back(id) {
            self.lane.cancel(id);
            self.forget(id);
            self.ending.insert(id);
        }
    }

    pub(super) fn forget(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempts.remove(&id) else { return };
        if attempt.outgoing.has_unsent() {
            self.outbox.forget(attempt.key);
        }
        self.kept_bytes = self.kept_bytes.saturating_sub(attempt.outgoing.kept_bytes());
    }
}
