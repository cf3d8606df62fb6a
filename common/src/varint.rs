//! Packed lists of small numbers (LEB128, as protobuf packs them), read only where they are
//! wanted: a million item lengths cost nothing to a reader that does not look.

use bytes::{BufMut, Bytes};

/// Appends `value`.
pub fn push(list: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        // The low seven bits, with the mark that more follow.
        list.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    list.put_u8(value as u8);
}

/// Reads the first number of a list, and tells how many bytes it takes. `None` if it is malformed.
#[must_use]
pub fn read(list: &[u8]) -> Option<(u64, usize)> {
    let mut rest = Iter { rest: list };
    let value = rest.next()?;
    Some((value, list.len() - rest.rest.len()))
}

/// Reads a packed list from its start. Ends at the first malformed number.
#[must_use]
pub fn iter(list: &Bytes) -> Iter<'_> {
    Iter { rest: list }
}

/// The numbers of a packed list.
#[derive(Debug, Clone)]
pub struct Iter<'a> {
    rest: &'a [u8],
}

impl Iterator for Iter<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    #[test]
    fn numbers_come_back() {
        let numbers = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX];
        let mut list = BytesMut::new();
        numbers.iter().for_each(|&n| push(&mut list, n));
        assert!(iter(&list.freeze()).eq(numbers));
        assert_eq!(iter(&Bytes::from_static(&[0x80])).next(), None);
    }
}
