//! How items lie in a chunk's bytes. The coordinator counts and splits with it, a worker walks it.

use std::borrow::Cow;

use bytes::Bytes;

/// How one item is told from the next in a run of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// Each item ends in this byte; the last one's may be missing. Lines, or NUL under `-0`.
    Separator(u8),
    /// Each item is preceded by its length: 4 bytes, little endian. For items with any bytes in them.
    LengthPrefixed,
    /// The same, and each item is a list of columns, each of them preceded by its own length.
    Columns,
}

/// Items that end in a newline.
pub const LINES: Framing = Framing::Separator(b'\n');

/// The length of the prefix of [`Framing::LengthPrefixed`].
const PREFIX_BYTES: usize = 4;

impl Framing {
    /// The byte between items, if there is one.
    #[must_use]
    pub fn separator(self) -> Option<u8> {
        match self {
            Self::Separator(byte) => Some(byte),
            Self::LengthPrefixed | Self::Columns => None,
        }
    }

    /// The columns of an item of [`Framing::items`]: one, unless items are lists of them.
    pub fn columns(self, item: &[u8]) -> impl Iterator<Item = &[u8]> {
        let (whole, framed) = match self {
            Self::Separator(_) | Self::LengthPrefixed => (Some(item), &[][..]),
            Self::Columns => (None, item),
        };
        whole.into_iter().chain(Self::LengthPrefixed.items(framed))
    }

    /// An item as one text: its columns with a space between.
    #[must_use]
    pub fn joined(self, item: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Self::Separator(_) | Self::LengthPrefixed => Cow::Borrowed(item),
            Self::Columns => Cow::Owned(self.columns(item).collect::<Vec<_>>().join(&b' ')),
        }
    }

    /// The number of items in `bytes`; a last item without its end counts.
    #[must_use]
    pub fn count(self, bytes: &[u8]) -> u64 {
        match self {
            Self::Separator(separator) => {
                let ends = memchr::memchr_iter(separator, bytes).count() as u64;
                ends + u64::from(bytes.last().is_some_and(|&last| last != separator))
            }
            Self::LengthPrefixed | Self::Columns => self.items(bytes).count() as u64,
        }
    }

    /// Where item number `items` (from 0) begins in `bytes`: the length of what precedes it. The
    /// whole length if there are not that many.
    #[must_use]
    pub fn offset_of(self, bytes: &[u8], items: u64) -> usize {
        match self {
            Self::Separator(separator) => nth_end(separator, bytes, items),
            Self::LengthPrefixed | Self::Columns => {
                let mut walk = self.items(bytes);
                walk.by_ref().take(usize::try_from(items).unwrap_or(usize::MAX)).for_each(drop);
                walk.at
            }
        }
    }

    /// The bytes of the items `skip .. skip + items` of a chunk, shared, not copied.
    #[must_use]
    pub fn slice(self, bytes: &Bytes, skip: u64, items: u64) -> Bytes {
        let start = self.offset_of(bytes, skip);
        let length = self.offset_of(&bytes[start..], items);
        bytes.slice(start..start + length)
    }

    /// Walks the items, without their framing.
    #[must_use]
    pub fn items(self, bytes: &[u8]) -> Items<'_> {
        Items { framing: self, bytes, at: 0 }
    }
}

/// The length of the first `items` items of `bytes`, counted in windows so that many short items
/// cost what their bytes cost.
fn nth_end(separator: u8, bytes: &[u8], items: u64) -> usize {
    const WINDOW: usize = 4096;
    let mut left = items;
    if left == 0 {
        return 0;
    }
    let mut at = 0;
    // A window is skipped whole if it cannot hold the end that is looked for.
    while left > 64 && at + WINDOW <= bytes.len() {
        let ends = memchr::memchr_iter(separator, &bytes[at..at + WINDOW]).count() as u64;
        if ends >= left {
            break;
        }
        left -= ends;
        at += WINDOW;
    }
    for end in memchr::memchr_iter(separator, &bytes[at..]) {
        left -= 1;
        if left == 0 {
            return at + end + 1;
        }
    }
    bytes.len()
}

/// The items of a chunk, in order, without their framing. See [`Framing::items`].
#[derive(Debug, Clone)]
pub struct Items<'a> {
    framing: Framing,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Items<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        if rest.is_empty() {
            return None;
        }
        match self.framing {
            Framing::Separator(separator) => {
                let length = memchr::memchr(separator, rest).unwrap_or(rest.len());
                self.at += (length + 1).min(rest.len());
                Some(&rest[..length])
            }
            Framing::LengthPrefixed | Framing::Columns => {
                let (prefix, rest) = rest.split_at_checked(PREFIX_BYTES)?;
                let length = u32::from_le_bytes(prefix.try_into().ok()?) as usize;
                let item = rest.get(..length)?;
                self.at += PREFIX_BYTES + length;
                Some(item)
            }
        }
    }
}

/// Appends `item` with the framing that [`Framing::LengthPrefixed`] reads.
pub fn push_length_prefixed(bytes: &mut Vec<u8>, item: &[u8]) {
    let length = u32::try_from(item.len()).expect("an item is bounded far below 4 GiB");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(item);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_line_is_an_item_and_the_last_end_may_be_missing() {
        let items: Vec<_> = LINES.items(b"a\n\nbc").collect();
        assert_eq!(items, [b"a".as_slice(), b"", b"bc"]);
        assert_eq!(LINES.count(b"a\n\nbc"), 3);
        assert_eq!(LINES.count(b"a\n\nbc\n"), 3);
        assert_eq!(LINES.count(b""), 0);
        assert_eq!(LINES.count(b"\n"), 1);
    }

    #[test]
    fn length_prefixed_items_hold_any_bytes() {
        let mut bytes = Vec::new();
        push_length_prefixed(&mut bytes, b"a\nb");
        push_length_prefixed(&mut bytes, b"");
        let framing = Framing::LengthPrefixed;
        assert_eq!(framing.items(&bytes).collect::<Vec<_>>(), [b"a\nb".as_slice(), b""]);
        assert_eq!((framing.count(&bytes), framing.offset_of(&bytes, 1)), (2, 7));
    }

    #[test]
    fn items_of_several_columns_keep_them_apart() {
        let mut bytes = Vec::new();
        for columns in [vec![b"a".as_slice(), b"", b"c d"], vec![b"x".as_slice()], vec![]] {
            let mut item = Vec::new();
            columns.iter().for_each(|column| push_length_prefixed(&mut item, column));
            push_length_prefixed(&mut bytes, &item);
        }
        let items: Vec<_> = Framing::Columns.items(&bytes).collect();
        let columns: Vec<Vec<_>> =
            items.iter().map(|item| Framing::Columns.columns(item).collect()).collect();
        assert_eq!(columns, [vec![b"a".as_slice(), b"", b"c d"], vec![b"x".as_slice()], vec![]]);
        assert_eq!(Framing::Columns.joined(items[0]).as_ref(), b"a  c d");
        assert_eq!(LINES.columns(b"a b").collect::<Vec<_>>(), [b"a b".as_slice()]);
    }

    proptest! {
        #[test]
        fn slices_are_what_a_split_gives(text in "[ab\n]{0,9000}", skip in 0_u64..3000, items in 0_u64..3000) {
            let bytes = Bytes::from(text.clone().into_bytes());
            let pieces: Vec<&str> = text.split_inclusive('\n').collect();
            prop_assert_eq!(LINES.count(&bytes), pieces.len() as u64);
            let want: String = pieces.iter().skip(skip as usize).take(items as usize).copied().collect();
            let got = LINES.slice(&bytes, skip, items);
            prop_assert_eq!(got.as_ref(), want.as_bytes());
            prop_assert_eq!(LINES.items(&bytes).count(), pieces.len());
        }
    }
}
