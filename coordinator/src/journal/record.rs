//! Records of a log: a length, a checksum, a sequence number, and what they carry. Each is written in one
//! piece and made durable before the next one, so a record that is not whole is the last one, or the file
//! was changed.
//!
//! ```text
//! length of the body (4 bytes) · crc32c of all that follows (4) · sequence (8) · body
//! ```

/// What comes before a body.
pub(super) const HEAD_BYTES: usize = 16;

/// No record is longer: what says so is damaged.
const BODY_BYTES_MAX: u32 = 1 << 30;

/// What is found at a place of a log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// A whole record: its body, and its whole length.
    Record(&'a [u8], usize),
    /// The end of the log.
    End,
    /// Something else, and why.
    Bad(String),
}

/// Appends a record.
pub(super) fn push(log: &mut Vec<u8>, sequence: u64, body: &[u8]) {
    let length = u32::try_from(body.len()).expect("a record is cut before it is so long");
    let sequence = sequence.to_le_bytes();
    log.extend_from_slice(&length.to_le_bytes());
    log.extend_from_slice(&checksum(sequence, body).to_le_bytes());
    log.extend_from_slice(&sequence);
    log.extend_from_slice(body);
}

/// Looks for the record of this number at the start of `log`.
pub(super) fn read(log: &[u8], sequence: u64) -> Found<'_> {
    if log.is_empty() {
        return Found::End;
    }
    match parse(log) {
        Ok((number, body, length)) if number == sequence => Found::Record(body, length),
        Ok((number, ..)) => Found::Bad(format!("record {number} is where {sequence} should be")),
        Err(problem) => Found::Bad(problem),
    }
}

/// Whether a whole record of a later number begins anywhere in `log`.
pub(super) fn has_later(log: &[u8], sequence: u64) -> bool {
    (0..log.len()).any(|at| {
        // Cheap looks first: most places are none.
        plausible(&log[at..], sequence) && parse(&log[at..]).is_ok()
    })
}

fn plausible(log: &[u8], sequence: u64) -> bool {
    /// As many records are not lost at once.
    const GAP_MAX: u64 = 1 << 32;
    let Some(head) = log.first_chunk::<HEAD_BYTES>() else { return false };
    let number = u64::from_le_bytes(head[8..].try_into().expect("eight bytes"));
    let length = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
    (sequence..sequence.saturating_add(GAP_MAX)).contains(&number)
        && length <= BODY_BYTES_MAX
        && log.len() - HEAD_BYTES >= length as usize
}

fn parse(log: &[u8]) -> Result<(u64, &[u8], usize), String> {
    let Some((head, rest)) = log.split_first_chunk::<HEAD_BYTES>() else {
        return Err(format!("{} bytes are no record", log.len()));
    };
    let length = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
    let told = u32::from_le_bytes(head[4..8].try_into().expect("four bytes"));
    let sequence: [u8; 8] = head[8..].try_into().expect("eight bytes");
    if length > BODY_BYTES_MAX || rest.len() < length as usize {
        return Err(format!("a record of {length} bytes does not end"));
    }
    let body = &rest[..length as usize];
    let made = checksum(sequence, body);
    if made != told {
        return Err(format!("a record's checksum is {made:08x}, and {told:08x} was written"));
    }
    Ok((u64::from_le_bytes(sequence), body, HEAD_BYTES + body.len()))
}

fn checksum(sequence: [u8; 8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&sequence), body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<u8> {
        let mut log = Vec::new();
        push(&mut log, 1, b"one");
        push(&mut log, 2, b"two and more");
        log
    }

    #[test]
    fn records_come_back_in_their_order() {
        let log = log();
        let Found::Record(body, length) = read(&log, 1) else { panic!("it is whole") };
        assert_eq!(body, b"one");
        assert_eq!(read(&log[length..], 2), Found::Record(b"two and more", log.len() - length));
        assert_eq!(read(&[], 3), Found::End);
        assert!(matches!(read(&log, 2), Found::Bad(_)));
    }

    #[test]
    fn any_bit_that_is_flipped_is_seen_and_whether_something_whole_follows() {
        let log = log();
        let first = HEAD_BYTES + 3;
        for bit in 0..log.len() * 8 {
            let mut bad = log.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            match read(&bad, 1) {
                Found::Bad(_) => assert!(has_later(&bad[1..], 2), "bit {bit}"),
                Found::Record(_, length) => {
                    assert!(bit / 8 >= first, "bit {bit}");
                    assert!(matches!(read(&bad[length..], 2), Found::Bad(_)), "bit {bit}");
                    assert!(!has_later(&bad[length + 1..], 3));
                }
                Found::End => panic!("bit {bit}"),
            }
        }
    }

    #[test]
    fn a_record_that_is_cut_short_is_seen_wherever_it_is_cut() {
        let log = log();
        for end in HEAD_BYTES + 4..log.len() {
            assert!(matches!(read(&log[HEAD_BYTES + 3..end], 2), Found::Bad(_)), "{end}");
        }
    }
}
