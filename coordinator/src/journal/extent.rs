//! Where rendered results lie in a segment: one piece for neighbours that became final together, checked
//! in parts, so that nobody gets a byte that was not looked at and nobody reads a GiB to look at one.

use std::io::{self, Write};

use widemap_common::limits::PART_BYTES_MAX;

use super::medium::MediumFile;

/// A piece of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) segment: u32,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// What the results are in raw output.
    pub(super) raw_bytes: u64,
    /// crc32c of each part of [`PART_BYTES_MAX`] bytes; the last one may be shorter.
    pub(super) checksums: Checksums,
}

/// Most pieces have one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Checksums {
    One(u32),
    Many(Box<[u32]>),
}

impl Checksums {
    pub(super) fn of(parts: &[u32]) -> Self {
        match parts {
            [one] => Self::One(*one),
            many => Self::Many(many.into()),
        }
    }

    pub(super) fn parts(&self) -> &[u32] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl Extent {
    /// How many parts a piece of that length has.
    pub(super) fn parts_of(length: u64) -> usize {
        usize::try_from(length.div_ceil(PART_BYTES_MAX as u64)).unwrap_or(usize::MAX)
    }

    /// The bytes from `at` on to the end of the part that they lie in, checked.
    ///
    /// # Errors
    /// If they cannot be read, or are not what was written: with the place in the segment.
    pub(super) fn read(&self, file: &dyn MediumFile, at: u64) -> io::Result<Vec<u8>> {
        let part = usize::try_from(at / PART_BYTES_MAX as u64).map_err(io::Error::other)?;
        let begin = part as u64 * PART_BYTES_MAX as u64;
        let length = (self.length - begin).min(PART_BYTES_MAX as u64) as usize;
        let place = self.offset + begin;
        let mut bytes = file.read_piece(length, place).map_err(|source| {
            io::Error::new(source.kind(), format!("at byte {place}: {source}"))
        })?;
        let (made, told) = (crc32c::crc32c(&bytes), self.checksums.parts()[part]);
        if made != told {
            let problem = format!(
                "at byte {place}: the {length} bytes there have the checksum {made:08x}, and \
                 {told:08x} was written"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        if length >= LET_GO_BYTES {
            // Most results are collected once, in their order.
            file.let_go(place, length as u64);
        }
        bytes.drain(..(at - begin) as usize);
        Ok(bytes)
    }
}

/// A segment that is being written.
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) file: Box<dyn MediumFile>,
    /// Where the next byte goes, and what is gathered for it.
    end: u64,
    gathered: Vec<u8>,
    parts: Vec<u32>,
    part: u32,
    part_bytes: usize,
}

/// Bytes that are gathered before they are written.
const GATHERED_BYTES: usize = 1024 * 1024;

/// What is so long is not kept in memory once it was read: for less the call is not worth it.
const LET_GO_BYTES: usize = 256 * 1024;

/// What is so long goes to the file as it is, uncopied.
const UNCOPIED_BYTES: usize = GATHERED_BYTES / 4;

impl Segment {
    pub(super) fn new(number: u32, file: Box<dyn MediumFile>) -> Self {
        let (end, gathered, parts) = (0, Vec::new(), Vec::new());
        Self { number, file, end, gathered, parts, part: 0, part_bytes: 0 }
    }

    /// Where the next piece begins.
    pub(super) fn end(&self) -> u64 {
        self.end + self.gathered.len() as u64
    }

    /// Ends a piece that began at `offset`.
    pub(super) fn extent(&mut self, offset: u64, raw_bytes: u64) -> Extent {
        if self.part_bytes > 0 {
            self.end_part();
        }
        let length = self.end() - offset;
        let checksums = Checksums::of(&self.parts);
        self.parts.clear();
        Extent { segment: self.number, offset, length, raw_bytes, checksums }
    }

    /// Writes what is gathered.
    pub(super) fn hand_over(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            self.file.write_at(&self.gathered, self.end)?;
            self.end += self.gathered.len() as u64;
            self.gathered.clear();
        }
        Ok(())
    }

    fn end_part(&mut self) {
        self.parts.push(self.part);
        (self.part, self.part_bytes) = (0, 0);
    }
}

impl Write for Segment {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = &bytes[..bytes.len().min(PART_BYTES_MAX - self.part_bytes)];
        self.part = crc32c::crc32c_append(self.part, taken);
        self.part_bytes += taken.len();
        if self.part_bytes == PART_BYTES_MAX {
            self.end_part();
        }
        if taken.len() >= UNCOPIED_BYTES {
            self.hand_over()?;
            self.file.write_at(taken, self.end)?;
            self.end += taken.len() as u64;
        } else {
            self.gathered.extend_from_slice(taken);
        }
        if self.gathered.len() >= GATHERED_BYTES {
            self.hand_over()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
