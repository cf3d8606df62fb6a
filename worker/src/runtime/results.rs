//! What became of the items of an attempt, bounded whatever they print.

use bytes::BytesMut;
use widemap_common::failure::{FailureKind, Fault};
use widemap_common::limits::{ATTEMPT_MESSAGE_BYTES, MESSAGE_BYTES_MAX, STDERR_ATTEMPT_BYTES};
use widemap_common::varint;
use widemap_proto::session::ItemStderr;

use super::tail::Tail;

/// What a fault takes beside its message, at the most.
const FAULT_BYTES: usize = 64;

/// The results of the items so far.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub(super) lengths: BytesMut,
    pub(super) micros: BytesMut,
    pub(super) exits: BytesMut,
    pub(super) faults: Vec<Fault>,
    pub(super) stderr: Vec<ItemStderr>,
    message_bytes: usize,
    stderr_bytes: usize,
}

/// An item's failure, before it is known where in the attempt it lies.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    pub(super) message: String,
    pub(super) exit: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) retryable: bool,
    pub(super) unfit: bool,
}

impl Failure {
    pub(super) fn error(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            kind: FailureKind::Error,
            message,
            exit: None,
            signal: None,
            retryable: true,
            unfit: false,
        }
    }

    /// Another run could not end otherwise.
    pub(super) fn permanent(mut self) -> Self {
        self.retryable = false;
        self
    }

    pub(super) fn timeout(limit: Option<std::time::Duration>) -> Self {
        let message = format!("took longer than {:?}", limit.unwrap_or_default());
        Self { kind: FailureKind::Timeout, ..Self::error(message) }
    }

    pub(super) fn cpu_time(limit: std::num::NonZeroU32) -> Self {
        let message = format!("took more than {limit} s of processor time (--cpu-seconds)");
        Self { kind: FailureKind::Timeout, ..Self::error(message) }
    }

    pub(super) fn too_much_output(limit: u64) -> Self {
        Self::error(format!("printed more than {limit} bytes (--max-output)")).permanent()
    }
}

impl Results {
    /// An item ended, with so many bytes in the output.
    pub(super) fn item(&mut self, bytes: u64, micros: u64) {
        varint::push(&mut self.lengths, bytes);
        varint::push(&mut self.micros, micros);
    }

    /// The exit status of the item that has ended last.
    pub(super) fn exit(&mut self, status: i32) {
        varint::push(&mut self.exits, u64::try_from(status).unwrap_or_default());
    }

    /// An item failed. `left` bytes from `offset` on are its and cannot be taken back.
    pub(super) fn fault(
        &mut self,
        index: u32,
        failure: Failure,
        offset: u64,
        left: u64,
        micros: u64,
    ) {
        let mut message = failure.message;
        if message.len() > MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        }
        if self.message_bytes > ATTEMPT_MESSAGE_BYTES {
            message.clear();
        }
        self.message_bytes += message.len();
        self.faults.push(Fault {
            index,
            kind: failure.kind,
            message,
            exit: failure.exit,
            signal: failure.signal,
            output_offset: offset,
            output_bytes: left,
            retryable: failure.retryable,
            unfit: failure.unfit,
            micros,
        });
    }

    /// Takes what an item wrote on standard error.
    pub(super) fn stderr(&mut self, index: u32, tail: &mut Tail) {
        let (data, cut) = tail.take();
        if data.is_empty() || self.stderr_bytes + data.len() > STDERR_ATTEMPT_BYTES {
            return;
        }
        self.stderr_bytes += data.len();
        self.stderr.push(ItemStderr { index, data, cut });
    }

    /// What all of it takes in a message, about.
    pub(super) fn bytes(&self) -> usize {
        let faults = self.message_bytes + self.faults.len() * FAULT_BYTES;
        self.lengths.len() + self.micros.len() + self.exits.len() + faults + self.stderr_bytes
    }
}
