//! What travels from an attempt's result to the sink: bytes in memory or in the spill, and what is
//! rendered only when its turn has come.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::report::{FailureRecord, Results};
use super::spill::Extent;

/// A contiguous part of an attempt's output.
#[derive(Clone)]
pub(super) enum Piece {
    Memory(Bytes),
    /// Bytes of an extent, counted from its start.
    Spilled(Arc<Extent>, Range<u64>),
}

/// One thing for the sink to write.
pub(super) enum Emit {
    /// Output as it is.
    Piece(Piece),
    /// Small outputs that follow each other, joined.
    Small(Vec<u8>),
    /// The results of some items, to be rendered, with their output.
    Results(Box<Results>, Vec<Piece>),
    /// An item that failed for good.
    Failure(Box<FailureRecord>),
}

/// Outputs below this are joined: what one costs to keep apart is more than what it copies.
pub(super) const SMALL_BYTES: usize = 4 * 1024;

/// Up to where small outputs are joined.
pub(super) const JOINED_BYTES_MAX: usize = 64 * 1024;

/// What an entry costs beside its payload, roughly, so that a million empty ones are not free.
const OVERHEAD_BYTES: u64 = 64;

impl Piece {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Spilled(_, range) => range.end - range.start,
        }
    }

    /// Its bytes that lie in memory, and could be spilled.
    pub(super) fn resident_bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Spilled(..) => 0,
        }
    }

    pub(super) fn slice(&self, range: Range<u64>) -> Self {
        match self {
            Self::Memory(bytes) => {
                Self::Memory(bytes.slice(range.start as usize..range.end as usize))
            }
            Self::Spilled(extent, whole) => {
                let start = whole.start + range.start;
                Self::Spilled(Arc::clone(extent), start..start + (range.end - range.start))
            }
        }
    }

    /// Hands its bytes to `each`, in order, a part at a time.
    pub(super) fn read<E: From<io::Error>>(
        &self,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Self::Memory(bytes) => each(bytes),
            Self::Spilled(extent, range) => extent.read(range.clone(), each),
        }
    }
}

impl Emit {
    /// What it holds in memory, all told.
    pub(super) fn memory_bytes(&self) -> u64 {
        OVERHEAD_BYTES + self.payload_bytes()
    }

    /// What its bytes take in memory.
    pub(super) fn payload_bytes(&self) -> u64 {
        match self {
            Self::Piece(piece) => piece.resident_bytes(),
            Self::Small(bytes) => bytes.len() as u64,
            Self::Results(results, output) => {
                results.memory_bytes() + output.iter().map(Piece::resident_bytes).sum::<u64>()
            }
            Self::Failure(record) => record.memory_bytes(),
        }
    }

    /// Appends small output to small output. Gives it back if it must stay apart.
    pub(super) fn join(&mut self, next: Self) -> Option<Self> {
        match (self, next) {
            (Self::Small(joined), Self::Small(small))
                if joined.len() + small.len() <= JOINED_BYTES_MAX =>
            {
                joined.extend_from_slice(&small);
                None
            }
            (Self::Small(joined), Self::Piece(Piece::Memory(small)))
                if small.len() < SMALL_BYTES && joined.len() + small.len() <= JOINED_BYTES_MAX =>
            {
                joined.extend_from_slice(&small);
                None
            }
            (_, next) => Some(next),
        }
    }

    /// Copies a small output out of the message that it came in, which it would keep alive.
    pub(super) fn detached(self) -> Self {
        match self {
            Self::Piece(Piece::Memory(bytes)) if bytes.len() < SMALL_BYTES => {
                Self::Small(bytes.into())
            }
            other => other,
        }
    }

    /// Its pieces that could be spilled.
    pub(super) fn pieces_mut(&mut self) -> &mut [Piece] {
        if let Self::Small(bytes) = self {
            *self = Self::Piece(Piece::Memory(std::mem::take(bytes).into()));
        }
        match self {
            Self::Piece(piece) => std::slice::from_mut(piece),
            Self::Results(_, output) => output,
            Self::Small(_) | Self::Failure(_) => &mut [],
        }
    }
}

/// Bytes taken out of memory, and where what replaces them belongs.
pub(super) struct Batch<P> {
    places: Vec<(P, u64)>,
    payload: Vec<Bytes>,
    bytes: u64,
}

impl<P> Default for Batch<P> {
    fn default() -> Self {
        Self { places: Vec::new(), payload: Vec::new(), bytes: 0 }
    }
}

impl<P> Batch<P> {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes the bytes of a piece out, if they lie in memory.
    pub(super) fn take(&mut self, place: P, piece: &mut Piece) {
        if let Piece::Memory(bytes) = piece {
            let bytes = std::mem::take(bytes);
            if bytes.is_empty() {
                return;
            }
            self.places.push((place, bytes.len() as u64));
            self.bytes += bytes.len() as u64;
            self.payload.push(bytes);
        }
    }

    /// Puts the bytes to where `put` takes them, and tells for each place what is there now.
    pub(super) fn settle(
        self,
        put: impl FnOnce(Vec<Bytes>) -> Result<Arc<Extent>, Vec<Bytes>>,
        mut each: impl FnMut(P, Piece),
    ) -> bool {
        match put(self.payload) {
            Ok(extent) => {
                let mut start = 0;
                for (place, length) in self.places {
                    each(place, Piece::Spilled(Arc::clone(&extent), start..start + length));
                    start += length;
                }
                true
            }
            Err(payload) => {
                for ((place, _), bytes) in self.places.into_iter().zip(payload) {
                    each(place, Piece::Memory(bytes));
                }
                false
            }
        }
    }
}
