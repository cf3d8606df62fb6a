//! What an attempt prints: gathered in one buffer, handed to the session in parts when it grows,
//! and held back when the session cannot send as fast as the attempt prints.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use rustix::buffer::SpareCapacity;
use widemap_common::ids::{AttemptId, JobId};
use widemap_common::limits::{ARENA_BYTES, ATTEMPT_OUTPUT_BYTES, PART_BYTES_MAX};

use super::control::SlotControl;
use super::{LaneId, Shared, SlotEvent};

/// What a buffer for output starts with.
const BUFFER_BYTES: usize = 64 * 1024;

/// The output of a running attempt that its session has and has not sent.
#[derive(Debug)]
pub(crate) struct Flow {
    unsent_bytes: AtomicU64,
    /// The slot waits for room.
    waiting: AtomicBool,
    control: Arc<SlotControl>,
}

impl Flow {
    /// The session has sent so many bytes.
    pub(crate) fn sent(&self, bytes: u64) {
        self.unsent_bytes.fetch_sub(bytes, Ordering::SeqCst);
        if self.waiting.swap(false, Ordering::SeqCst) {
            self.control.wake();
        }
    }

    /// The session will send so many bytes again.
    pub(crate) fn unsent(&self, bytes: u64) {
        self.unsent_bytes.fetch_add(bytes, Ordering::SeqCst);
    }
}

/// The buffers that a slot uses again for each attempt.
#[derive(Debug, Default)]
pub(crate) struct OutputBuffers {
    buffer: Vec<u8>,
    arena: BytesMut,
}

impl OutputBuffers {
    /// Small results share the arena, so that each costs no allocation; a large one takes its
    /// buffer with it.
    fn finish(&mut self, mut buffer: Vec<u8>) -> Bytes {
        if buffer.is_empty() {
            self.buffer = buffer;
            return Bytes::new();
        }
        if buffer.len() > ARENA_BYTES / 2 {
            return Bytes::from(buffer);
        }
        if self.arena.capacity() < buffer.len() {
            self.arena = BytesMut::with_capacity(ARENA_BYTES);
        }
        self.arena.extend_from_slice(&buffer);
        buffer.clear();
        self.buffer = buffer;
        self.arena.split().freeze()
    }
}

/// The output of one attempt, from its first byte on.
pub(crate) struct AttemptOutput<'a> {
    pub(crate) buffer: Vec<u8>,
    /// Parts before the buffer that may still be taken back.
    kept: Vec<Bytes>,
    kept_bytes: u64,
    /// What was handed to the session before those.
    handed_bytes: u64,
    flow: Option<Arc<Flow>>,
    attempt: AttemptId,
    lane: LaneId,
    shared: &'a Shared,
    control: &'a Arc<SlotControl>,
}

impl<'a> AttemptOutput<'a> {
    pub(crate) fn begin(
        buffers: &mut OutputBuffers,
        attempt: AttemptId,
        lane: LaneId,
        shared: &'a Shared,
        control: &'a Arc<SlotControl>,
    ) -> Self {
        let buffer = std::mem::take(&mut buffers.buffer);
        let (kept, kept_bytes, handed_bytes) = (Vec::new(), 0, 0);
        Self { buffer, kept, kept_bytes, handed_bytes, flow: None, attempt, lane, shared, control }
    }

    /// Tells the user of the job something.
    pub(crate) fn say(&self, job: JobId, text: String) {
        self.shared.tell(self.lane, SlotEvent::Said { job, text });
    }

    /// How many bytes there are so far.
    pub(crate) fn position(&self) -> u64 {
        self.handed_bytes + self.kept_bytes + self.buffer.len() as u64
    }

    /// Takes back what follows `position`, and returns how much of it cannot be taken back, since
    /// the session has it.
    pub(crate) fn truncate(&mut self, position: u64) -> u64 {
        if let Some(left) = position.checked_sub(self.handed_bytes + self.kept_bytes) {
            self.buffer.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            return 0;
        }
        self.buffer.clear();
        while let Some(part) = self.kept.last_mut() {
            let begins = self.handed_bytes + self.kept_bytes - part.len() as u64;
            let left = usize::try_from(position.saturating_sub(begins)).unwrap_or(usize::MAX);
            self.kept_bytes -= part.len().saturating_sub(left) as u64;
            part.truncate(left);
            if left > 0 {
                return 0;
            }
            self.kept.pop();
        }
        self.handed_bytes.saturating_sub(position)
    }

    /// What follows `position`, in pieces, as far as the session does not have it.
    pub(crate) fn since(&self, position: u64) -> impl Iterator<Item = &[u8]> {
        let pieces = self.kept.iter().map(AsRef::as_ref).chain([self.buffer.as_slice()]);
        let mut begins = self.handed_bytes;
        pieces.map(move |piece: &[u8]| {
            let skipped = usize::try_from(position.saturating_sub(begins)).unwrap_or(usize::MAX);
            begins += piece.len() as u64;
            &piece[skipped.min(piece.len())..]
        })
    }

    /// As [`Self::room`], for what may be taken back: what is before it stays where it is.
    pub(crate) fn room_after_kept(&mut self) -> SpareCapacity<'_, u8> {
        if self.buffer.len() >= PART_BYTES_MAX {
            let whole = std::mem::replace(&mut self.buffer, Vec::with_capacity(PART_BYTES_MAX));
            self.kept_bytes += whole.len() as u64;
            self.kept.push(Bytes::from(whole));
        }
        self.room()
    }

    /// Room to read into, at least some.
    pub(crate) fn room(&mut self) -> SpareCapacity<'_, u8> {
        if self.buffer.capacity() == self.buffer.len() {
            self.buffer.reserve_exact(growth(self.buffer.len()));
        }
        rustix::buffer::spare_capacity(&mut self.buffer)
    }

    /// Hands whole parts to the session.
    pub(crate) fn hand_over(&mut self) {
        self.hand_kept();
        if self.buffer.len() < PART_BYTES_MAX {
            return;
        }
        let next = Vec::with_capacity(PART_BYTES_MAX);
        let mut whole = Bytes::from(std::mem::replace(&mut self.buffer, next));
        while whole.len() >= PART_BYTES_MAX {
            self.hand_part(whole.split_to(PART_BYTES_MAX));
        }
        self.buffer.extend_from_slice(&whole);
    }

    /// Hands all of it to the session, so that what ends the attempt has room in its message.
    pub(crate) fn hand_all(&mut self) {
        self.hand_kept();
        let mut rest = Bytes::from(std::mem::take(&mut self.buffer));
        while !rest.is_empty() {
            self.hand_part(rest.split_to(rest.len().min(PART_BYTES_MAX)));
        }
    }

    fn hand_kept(&mut self) {
        self.kept_bytes = 0;
        for mut part in std::mem::take(&mut self.kept) {
            while !part.is_empty() {
                self.hand_part(part.split_to(part.len().min(PART_BYTES_MAX)));
            }
        }
    }

    fn hand_part(&mut self, data: Bytes) {
        let flow = self.flow.get_or_insert_with(|| {
            Arc::new(Flow {
                unsent_bytes: AtomicU64::new(0),
                waiting: AtomicBool::new(false),
                control: self.control.clone(),
            })
        });
        flow.unsent(data.len() as u64);
        self.handed_bytes += data.len() as u64;
        let event = SlotEvent::Output { attempt: self.attempt, data, flow: flow.clone() };
        self.shared.tell(self.lane, event);
    }

    /// Whether no more may be printed for now. The slot is woken when there is room again.
    pub(crate) fn is_full(&self) -> bool {
        let Some(flow) = &self.flow else { return false };
        let full = || {
            let unsent = flow.unsent_bytes.load(Ordering::SeqCst);
            unsent + self.buffer.len() as u64 >= ATTEMPT_OUTPUT_BYTES
        };
        // The second look closes the gap in which the session sends and sees nobody wait.
        let is_full = full() && {
            flow.waiting.store(true, Ordering::SeqCst);
            full()
        };
        self.control.stalled.store(is_full, Ordering::Relaxed);
        is_full
    }

    /// The last part, and the length of the whole.
    pub(crate) fn finish(mut self, buffers: &mut OutputBuffers) -> (Bytes, u64) {
        self.hand_over();
        let whole = self.position();
        (buffers.finish(self.buffer), whole)
    }
}

/// How much room a full buffer of that length gets: it reaches a part in three steps. What is longer is not
/// handed over yet, since it may be taken back, and grows by half.
fn growth(length: usize) -> usize {
    match (length * 4).clamp(BUFFER_BYTES, PART_BYTES_MAX).checked_sub(length) {
        Some(more @ 1..) => more,
        _ => length / 2,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use widemap_common::time::Timers;

    use super::*;
    use crate::slots::Slots;

    #[test]
    fn a_long_output_is_read_in_few_pieces() {
        let mut length = 0;
        let steps: Vec<_> = std::iter::repeat_with(|| {
            length += growth(length);
            length / 1024
        })
        .take(5)
        .collect();
        assert_eq!(steps, [64, 256, 1024, 1536, 2304]);
        assert_eq!(growth(PART_BYTES_MAX - 1), 1);
    }

    #[test]
    fn what_is_kept_is_shown_and_taken_back_across_parts() {
        let printed: Vec<u8> = (0_u32..3 << 20).map(|at| (at % 251) as u8).collect();
        let slots = Slots::new(1, Timers::default(), None).unwrap();
        let control = Arc::new(SlotControl::new(0).unwrap());
        let mut buffers = OutputBuffers::default();
        let mut output =
            AttemptOutput::begin(&mut buffers, AttemptId(1), LaneId(0), &slots.shared, &control);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&printed).unwrap();
        file.rewind().unwrap();
        while rustix::io::read(&file, output.room_after_kept()).unwrap() > 0 {}
        let since =
            |output: &AttemptOutput<'_>, from| output.since(from).collect::<Vec<_>>().concat();
        let part = PART_BYTES_MAX;
        assert_eq!(output.position(), printed.len() as u64);
        for from in [0, 1, part - 1, part, part + 1, 2 * part + 7, printed.len()] {
            assert!(since(&output, from as u64) == printed[from..], "from {from}");
        }
        for left in [2 * part + 9, 2 * part, part + 10] {
            assert_eq!(output.truncate(left as u64), 0);
            assert_eq!(output.position(), left as u64);
            assert!(since(&output, 0) == printed[..left], "{left} are left");
        }
        // The session has it from then on.
        output.hand_over();
        assert_eq!(output.position(), part as u64 + 10);
        assert_eq!(output.truncate(6), part as u64 + 4);
    }

    #[test]
    fn small_results_share_a_buffer() {
        let mut buffers = OutputBuffers::default();
        let first = buffers.finish(b"one\n".to_vec());
        let second = buffers.finish(b"two\n".to_vec());
        assert_eq!((first.as_ref(), second.as_ref()), (b"one\n".as_slice(), b"two\n".as_slice()));
        assert_eq!(first.as_ptr().wrapping_add(4), second.as_ptr());
    }
}
