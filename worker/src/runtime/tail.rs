//! The end of what an item wrote on standard error.

use bytes::Bytes;
use widemap_common::limits::STDERR_TAIL_BYTES;

/// Keeps the last bytes of what is pushed.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // Moved only when twice as much is there, so that each byte is moved about once.
        if self.bytes.len() > 2 * STDERR_TAIL_BYTES {
            self.trim();
        }
    }

    /// What is kept, and whether there was more before it; empties the tail.
    pub(super) fn take(&mut self) -> (Bytes, bool) {
        if self.bytes.len() > STDERR_TAIL_BYTES {
            self.trim();
        }
        let taken = (Bytes::copy_from_slice(&self.bytes), self.cut);
        self.bytes.clear();
        self.cut = false;
        taken
    }

    fn trim(&mut self) {
        let surplus = self.bytes.len() - STDERR_TAIL_BYTES;
        self.bytes.drain(..surplus);
        self.cut = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept() {
        let mut tail = Tail::default();
        tail.push(b"short");
        assert_eq!(tail.take(), (Bytes::from_static(b"short"), false));
        for round in 0..100_u8 {
            tail.push(&[round; 1000]);
        }
        let (kept, cut) = tail.take();
        assert!(cut);
        assert_eq!(kept.len(), STDERR_TAIL_BYTES);
        assert_eq!((kept[0], kept[kept.len() - 1]), (95, 99));
        assert_eq!(tail.take(), (Bytes::new(), false));
    }
}
