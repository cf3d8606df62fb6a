//! What a log of facts says. A record is all that became final together.

use bytes::{Buf, BufMut, Bytes};
use widemap_common::varint;

use super::extent::{Checksums, Extent};
use crate::data::Prefix;

/// One thing that is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    /// Items are final. `failure` is where, in the body of its record, the failure is described.
    Final { first: u64, items: u32, extent: Extent, failure: Option<Described> },
    /// So much of the input was read.
    Input(Prefix),
    /// Items have written this on their standard error: where, in the body of its record, it is.
    Stderr(Described),
    /// The job is paused, or goes on.
    Paused(bool),
    /// The job's last word.
    Ended(Bytes),
}

/// A place in the body of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) at: u32,
    pub(super) length: u32,
}

const FINAL: u8 = 1;
const FAILED: u8 = 2;
const PAUSED: u8 = 3;
const ENDED: u8 = 4;
const INPUT: u8 = 5;
const STDERR: u8 = 6;

/// Appends that items are final. Returns where the failure was put.
pub(super) fn push_final(
    body: &mut Vec<u8>,
    first: u64,
    items: u32,
    extent: &Extent,
    failure: Option<&[u8]>,
) -> Option<Described> {
    body.push(if failure.is_some() { FAILED } else { FINAL });
    let Extent { segment, offset, length, raw_bytes, .. } = *extent;
    let numbers = [first, items.into(), segment.into(), offset, length, raw_bytes];
    numbers.into_iter().for_each(|number| varint::push(body, number));
    extent.checksums.parts().iter().for_each(|&part| body.put_u32_le(part));
    failure.map(|failure| {
        varint::push(body, failure.len() as u64);
        let at = u32::try_from(body.len()).expect("a record is cut before it is so long");
        body.extend_from_slice(failure);
        Described { at, length: u32::try_from(failure.len()).expect("a failure is a line") }
    })
}

/// Appends what items have written on their standard error. Returns where it was put.
pub(super) fn push_stderr(body: &mut Vec<u8>, lines: &[u8]) -> Described {
    body.push(STDERR);
    varint::push(body, lines.len() as u64);
    let at = u32::try_from(body.len()).expect("a record is cut before it is so long");
    body.extend_from_slice(lines);
    Described { at, length: u32::try_from(lines.len()).expect("it is cut into pieces") }
}

/// Appends any other fact.
pub(super) fn push_other(body: &mut Vec<u8>, fact: &Fact) {
    match fact {
        Fact::Final { first, items, extent, .. } => {
            push_final(body, *first, *items, extent, None);
        }
        Fact::Input(Prefix { bytes, hash, is_whole }) => {
            body.push(INPUT);
            varint::push(body, *bytes);
            body.push(u8::from(*is_whole));
            body.extend_from_slice(hash);
        }
        Fact::Stderr(_) => {}
        Fact::Paused(paused) => body.extend_from_slice(&[PAUSED, u8::from(*paused)]),
        Fact::Ended(last) => {
            body.push(ENDED);
            varint::push(body, last.len() as u64);
            body.extend_from_slice(last);
        }
    }
}

/// The facts of a record's body.
///
/// # Errors
/// What is wrong with it: its checksum was right, so it is of another make.
pub(super) fn parse(body: &[u8], mut each: impl FnMut(Fact)) -> Result<(), &'static str> {
    let mut rest = body;
    while !rest.is_empty() {
        let fact = parse_one(body, &mut rest).ok_or("a fact in it is not understood")?;
        each(fact);
    }
    Ok(())
}

fn parse_one(body: &[u8], rest: &mut &[u8]) -> Option<Fact> {
    let kind = rest.get_u8();
    Some(match kind {
        FINAL | FAILED => {
            let first = number(rest)?;
            let items = u32::try_from(number(rest)?).ok().filter(|&items| items > 0)?;
            first.checked_add(items.into())?;
            let segment = u32::try_from(number(rest)?).ok()?;
            let (offset, length, raw_bytes) = (number(rest)?, number(rest)?, number(rest)?);
            offset.checked_add(length)?;
            let parts = Extent::parts_of(length);
            if parts > rest.len() / 4 {
                return None;
            }
            let parts: Vec<_> = (0..parts).map(|_| rest.get_u32_le()).collect();
            let checksums = Checksums::of(&parts);
            let extent = Extent { segment, offset, length, raw_bytes, checksums };
            let failure = if kind == FAILED {
                let length = number(rest)?;
                let at = u32::try_from(body.len() - rest.len()).ok()?;
                take(rest, length)?;
                Some(Described { at, length: u32::try_from(length).ok()? })
            } else {
                None
            };
            Fact::Final { first, items, extent, failure }
        }
        INPUT => {
            let bytes = number(rest)?;
            let is_whole = take(rest, 1)? != [0];
            let hash = take(rest, 32)?.try_into().ok()?;
            Fact::Input(Prefix { bytes, hash, is_whole })
        }
        STDERR => {
            let length = number(rest)?;
            let at = u32::try_from(body.len() - rest.len()).ok()?;
            take(rest, length)?;
            Fact::Stderr(Described { at, length: u32::try_from(length).ok()? })
        }
        PAUSED => Fact::Paused(take(rest, 1)? != [0]),
        ENDED => {
            let length = number(rest)?;
            Fact::Ended(Bytes::copy_from_slice(take(rest, length)?))
        }
        _ => return None,
    })
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let (number, length) = varint::read(rest)?;
    rest.advance(length);
    Some(number)
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let length = usize::try_from(length).ok().filter(|&length| length <= rest.len())?;
    let (taken, left) = rest.split_at(length);
    *rest = left;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_come_back_as_they_were() {
        let extent = |parts: &[u32], length| Extent {
            segment: 3,
            offset: 1 << 40,
            length,
            raw_bytes: 7,
            checksums: Checksums::of(parts),
        };
        let (small, large) = (extent(&[9], 8), extent(&[1, 2, 3], (2 << 20) + 1));
        let mut body = Vec::new();
        push_final(&mut body, 5, 2, &small, None);
        let failure = push_final(&mut body, 7, 1, &large, Some(b"{\"seq\":8"));
        let empty = extent(&[], 0);
        push_final(&mut body, 9, 1, &empty, None);
        let prefix = Prefix { bytes: 1 << 33, hash: [7; 32], is_whole: true };
        let stderr = push_stderr(&mut body, b"[8 x] no");
        let others =
            [Fact::Input(prefix), Fact::Paused(true), Fact::Ended(Bytes::from_static(b"over"))];
        others.iter().for_each(|fact| push_other(&mut body, fact));
        let mut facts = Vec::new();
        parse(&body, |fact| facts.push(fact)).unwrap();
        let mut want = vec![
            Fact::Final { first: 5, items: 2, extent: small, failure: None },
            Fact::Final { first: 7, items: 1, extent: large, failure },
            Fact::Final { first: 9, items: 1, extent: empty, failure: None },
        ];
        want.push(Fact::Stderr(stderr));
        assert_eq!(&body[stderr.at as usize..][..stderr.length as usize], b"[8 x] no");
        want.extend(others);
        assert_eq!(facts, want);
        let Described { at, length } = failure.unwrap();
        assert_eq!(&body[at as usize..][..length as usize], b"{\"seq\":8");
    }

    #[test]
    fn no_bytes_make_it_panic_or_read_on() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..100_000 {
            let body: Vec<u8> = (0..rng.usize(0..60)).map(|_| rng.u8(..)).collect();
            // Whether it is understood or not.
            let _ = parse(&body, drop);
        }
        assert!(parse(&[9], drop).is_err());
    }
}
