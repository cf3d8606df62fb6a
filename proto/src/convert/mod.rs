//! Wire types to domain types and back. A message that does not fit is an error that names the
//! field: it comes from another build or from nobody of ours, and ends the session or the call.

mod artifact;
mod jobs;
mod spec;
mod told;
mod worker;

use widemap_common::ids::AttemptId;

/// Why a message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// An entry of a kind that this build does not know, or of none.
    #[error("a message of a kind that this build does not know: the peer is newer")]
    UnknownKind,
    /// A field that must be there is not, or has no meaning.
    #[error("the field `{0}` of a message is missing or has no meaning here")]
    Field(&'static str),
    /// A payload arrived changed.
    #[error("{attempt}: a part of payload arrived changed (crc32c {got:08x}, sent as {sent:08x})")]
    Checksum {
        /// Whose.
        attempt: AttemptId,
        /// As computed here.
        got: u32,
        /// As computed by the sender.
        sent: u32,
    },
    /// A part of payload is longer than the protocol allows.
    #[error("{attempt}: a part of {bytes} bytes is longer than the protocol allows")]
    PartTooLong {
        /// Whose.
        attempt: AttemptId,
        /// How long.
        bytes: usize,
    },
    /// A part of a job's payload arrived changed.
    #[error("a part of {of}, at {offset}, arrived changed (crc32c {got:08x}, sent as {sent:08x})")]
    Changed {
        /// Of which payload.
        of: &'static str,
        /// Where it begins.
        offset: u64,
        /// As computed here.
        got: u32,
        /// As computed by the sender.
        sent: u32,
    },
}

pub(crate) type Result<T> = std::result::Result<T, WireError>;

/// Names from a peer are shown to people: bounded, and without control characters.
pub(crate) fn shown(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
    }
    text.retain(|c| !c.is_control() || c == '\n' || c == '\t');
    text
}
