//! How much of an input was read, and the running hash of that: by it a map that goes on finds that its
//! input is the one that it began with.

use std::collections::VecDeque;

use super::block::Block;
use super::source::InputError;

/// The first bytes of an input.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Prefix {
    /// How many.
    pub bytes: u64,
    /// Whether the input ended there.
    pub is_whole: bool,
    /// Their blake3 hash.
    pub hash: [u8; 32],
}

/// Hashes an input as it is read. What a former life has read is held back, stretch by stretch, until it
/// is known to be the same, so that nothing runs of an input that has changed.
pub(super) struct Trail {
    name: String,
    hasher: blake3::Hasher,
    bytes: u64,
    is_whole: bool,
    /// What was read before, and not again yet.
    expected: VecDeque<Prefix>,
    /// Up to where it is known to be the same.
    checked_bytes: u64,
    /// The input ended there before.
    ended_before: bool,
    held_back: Vec<Block>,
    is_refused: bool,
}

impl Trail {
    /// The trail of an input that errors call `name`, which is to begin as it did before.
    pub(super) fn new(name: String, mut expected: Vec<Prefix>) -> Self {
        expected.sort_unstable();
        Self {
            name,
            hasher: blake3::Hasher::new(),
            bytes: 0,
            is_whole: false,
            expected: expected.into(),
            checked_bytes: 0,
            ended_before: false,
            held_back: Vec::new(),
            is_refused: false,
        }
    }

    /// Takes blocks in; gives back those that may be used.
    ///
    /// # Errors
    /// [`InputError::Changed`] if this is not the input that was read before.
    pub(super) fn pass(&mut self, blocks: Vec<Block>) -> Result<Vec<Block>, InputError> {
        if self.is_refused {
            return Ok(Vec::new());
        }
        for block in blocks {
            self.follow(&block.bytes)?;
            self.held_back.push(block);
        }
        Ok(self.release())
    }

    /// The input has ended; gives back what may be used now.
    ///
    /// # Errors
    /// [`InputError::Changed`] if it was longer before.
    pub(super) fn end(&mut self) -> Result<Vec<Block>, InputError> {
        // One that ended after nothing has a prefix of nothing.
        self.follow(&[])?;
        if let Some(longer) = self.expected.back() {
            let how =
                format!("it ends after {} bytes, and had at least {}", self.bytes, longer.bytes);
            return Err(self.refuse(how));
        }
        self.is_whole = true;
        Ok(self.release())
    }

    /// What was read so far.
    pub(super) fn prefix(&self) -> Prefix {
        let hash = *self.hasher.finalize().as_bytes();
        Prefix { bytes: self.bytes, hash, is_whole: self.is_whole }
    }

    /// Whether all that was read before is known to be the same.
    pub(super) fn is_checked(&self) -> bool {
        self.expected.is_empty() && !self.is_refused
    }

    fn follow(&mut self, mut bytes: &[u8]) -> Result<(), InputError> {
        while let Some(&next) = self.expected.front() {
            let missing = usize::try_from(next.bytes - self.bytes).unwrap_or(usize::MAX);
            if missing > bytes.len() {
                break;
            }
            let (stretch, rest) = bytes.split_at(missing);
            self.update(stretch);
            if next.hash != *self.hasher.finalize().as_bytes() {
                let (from, to) = (self.checked_bytes, next.bytes);
                return Err(self.refuse(format!("bytes {from} to {to} are not what they were")));
            }
            self.checked_bytes = next.bytes;
            self.ended_before |= next.is_whole;
            self.expected.pop_front();
            bytes = rest;
        }
        if self.ended_before && !bytes.is_empty() {
            let how = format!("it goes on after {} bytes, where it ended", self.checked_bytes);
            return Err(self.refuse(how));
        }
        self.update(bytes);
        Ok(())
    }

    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn refuse(&mut self, how: String) -> InputError {
        self.is_refused = true;
        self.held_back.clear();
        InputError::Changed { name: self.name.clone(), how }
    }

    fn release(&mut self) -> Vec<Block> {
        if self.expected.is_empty() {
            return std::mem::take(&mut self.held_back);
        }
        let is_known =
            |block: &&Block| block.offset + block.bytes.len() as u64 <= self.checked_bytes;
        let known = self.held_back.iter().take_while(is_known).count();
        self.held_back.drain(..known).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    /// Blocks of a text that ends in a newline, cut after so many bytes each.
    fn blocks(text: &[u8], sizes: &[usize]) -> Vec<Block> {
        let (mut blocks, mut offset) = (Vec::new(), 0);
        for &size in sizes.iter().cycle() {
            let bytes = &text[offset..text.len().min(offset + size)];
            if bytes.is_empty() {
                return blocks;
            }
            let bytes = Bytes::copy_from_slice(bytes);
            let length = bytes.len();
            blocks.push(Block { items: 1, bytes, offset: offset as u64 });
            offset += length;
        }
        blocks
    }

    /// Reads a whole text; the prefix after each block.
    fn prefixes(text: &[u8], sizes: &[usize]) -> Vec<Prefix> {
        let mut trail = Trail::new("x".into(), Vec::new());
        let mut prefixes = Vec::new();
        for block in blocks(text, sizes) {
            assert_eq!(trail.pass(vec![block.clone()]).unwrap(), [block]);
            prefixes.push(trail.prefix());
        }
        assert_eq!(trail.end().unwrap(), []);
        prefixes.push(trail.prefix());
        prefixes
    }

    /// What may be used of a text that is read again.
    fn again(text: &[u8], sizes: &[usize], before: &[Prefix]) -> (Vec<u8>, Result<(), String>) {
        let mut trail = Trail::new("x".into(), before.to_vec());
        let mut used = Vec::new();
        let mut take = |blocks: Vec<Block>| {
            blocks.iter().for_each(|block| used.extend_from_slice(&block.bytes));
        };
        for block in blocks(text, sizes) {
            match trail.pass(vec![block]) {
                Ok(blocks) => take(blocks),
                Err(error) => return (used, Err(error.to_string())),
            }
        }
        match trail.end() {
            Ok(blocks) => take(blocks),
            Err(error) => return (used, Err(error.to_string())),
        }
        assert!(trail.is_checked());
        (used, Ok(()))
    }

    proptest! {
        #[test]
        fn the_same_input_passes_and_a_changed_one_is_used_no_further_than_it_is_the_same(
            text in prop::collection::vec(any::<u8>(), 1..400),
            (first, second) in (prop::collection::vec(1_usize..90, 1..5), prop::collection::vec(1_usize..90, 1..5)),
            kept in prop::collection::vec(any::<bool>(), 400), at in any::<prop::sample::Index>(),
        ) {
            let all = prefixes(&text, &first);
            // Not every one became durable.
            let known = all.iter().zip(&kept).filter(|&(_, &is_kept)| is_kept).map(|(prefix, _)| *prefix);
            let known: Vec<_> = known.collect();
            let (used, end) = again(&text, &second, &known);
            prop_assert_eq!((&used, end), (&text, Ok(())));

            let at = at.index(text.len());
            let mut changed = text.clone();
            changed[at] ^= 1;
            let (used, end) = again(&changed, &second, &known);
            let last = known.last().map_or(0, |prefix| prefix.bytes);
            prop_assert_eq!(end.is_err(), (at as u64) < last);
            if end.is_err() {
                prop_assert!(used.len() <= at, "{} bytes are used, and byte {at} has changed", used.len());
            }
        }
    }

    #[test]
    fn an_input_that_got_longer_or_shorter_is_refused() {
        let before = prefixes(b"a\nb\n", &[2]);
        let problem = |text: &[u8]| again(text, &[3], &before).1.unwrap_err();
        assert!(problem(b"a\nb\nc\n").contains("it goes on after 4 bytes, where it ended"));
        assert!(problem(b"a\n").contains("it ends after 2 bytes, and had at least 4"));
        assert!(problem(b"a\nx\n").contains("bytes 2 to 4 are not what they were"));
        // One that had not ended may go on.
        assert_eq!(again(b"a\nb\nc\n", &[3], &before[..2]).1, Ok(()));
        let nothing = prefixes(b"", &[1]);
        assert!(again(b"a\n", &[3], &nothing).1.unwrap_err().contains("it goes on after 0 bytes"));
        assert_eq!(again(b"", &[3], &nothing).1, Ok(()));
    }
}
