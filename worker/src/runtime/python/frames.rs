//! What a slot and its interpreter say to each other, little endian. The interpreter's side is `host.py`.
//!
//! ```text
//! set-up    u32 bytes of JSON, u32 bytes of source; JSON; source
//! request   u32 items, u64 bytes; the items, framed as in the chunk
//! answer    u8 kind, u32 number, u64 bytes of what is told, u64 bytes of the body; what is told; body
//!   READY     the function is loaded
//!   UNUSABLE  it cannot be: body says why
//!   SAID      item `number` has printed the body
//!   DONE      the next `number` items are done. What is told: u64 microseconds, u32 faults, for each u32
//!             index, u8 kind, u32 bytes, message; then u32 lengths, u64 each, where the ends of lines do not
//!             tell them. Body: the results of the others
//! ```

/// The bytes of an answer's head.
pub(super) const ANSWER_BYTES: usize = 21;

/// The bytes of a request's head.
pub(super) const REQUEST_BYTES: usize = 12;

/// An answer's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) kind: AnswerKind,
    pub(super) number: u32,
    pub(super) told_bytes: u64,
    pub(super) body_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AnswerKind {
    Ready,
    Unusable,
    Said,
    Done,
}

/// What is told of items that are done.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Told {
    pub(super) micros: u64,
    pub(super) faults: Vec<ToldFault>,
    /// Nothing where the ends of lines tell them.
    pub(super) lengths: Vec<u64>,
}

#[derive(PartialEq, Eq, Debug)]
pub(super) struct ToldFault {
    pub(super) index: u32,
    pub(super) kind: FaultKind,
    pub(super) message: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FaultKind {
    /// The function has raised an exception, or what it returned cannot be written.
    Error,
    /// The item cannot be read.
    NotJson,
    /// The result is longer than it may be.
    TooMuch,
}

/// A head of items to be run.
pub(super) fn request(items: u32, bytes: usize) -> [u8; REQUEST_BYTES] {
    let mut head = [0; REQUEST_BYTES];
    head[..4].copy_from_slice(&items.to_le_bytes());
    head[4..].copy_from_slice(&(bytes as u64).to_le_bytes());
    head
}

impl Answer {
    /// Reads a head. Nothing if it is none.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let kind = match fields.u8()? {
            1 => AnswerKind::Ready,
            2 => AnswerKind::Unusable,
            3 => AnswerKind::Said,
            4 => AnswerKind::Done,
            _ => return None,
        };
        Some(Self {
            kind,
            number: fields.u32()?,
            told_bytes: fields.u64()?,
            body_bytes: fields.u64()?,
        })
    }
}

impl Told {
    /// Reads what is told. Nothing if it is not that.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let micros = fields.u64()?;
        let faults = (0..fields.u32()?).map(|_| fields.fault()).collect::<Option<_>>()?;
        let lengths = (0..fields.u32()?).map(|_| fields.u64()).collect::<Option<_>>()?;
        fields.0.is_empty().then_some(Self { micros, faults, lengths })
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn fault(&mut self) -> Option<ToldFault> {
        let index = self.u32()?;
        let kind = match self.u8()? {
            0 => FaultKind::Error,
            1 => FaultKind::NotJson,
            2 => FaultKind::TooMuch,
            _ => return None,
        };
        let length = self.u32()? as usize;
        let (message, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(ToldFault { index, kind, message: String::from_utf8_lossy(message).into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_what_is_told_are_read_as_the_interpreter_writes_them() {
        let mut head = vec![4];
        head.extend_from_slice(&7_u32.to_le_bytes());
        head.extend_from_slice(&30_u64.to_le_bytes());
        head.extend_from_slice(&9_u64.to_le_bytes());
        assert_eq!(head.len(), ANSWER_BYTES);
        let want = Answer { kind: AnswerKind::Done, number: 7, told_bytes: 30, body_bytes: 9 };
        assert_eq!(Answer::read(&head), Some(want));
        head[0] = 9;
        assert_eq!(Answer::read(&head), None);
        let mut told = 5_u64.to_le_bytes().to_vec();
        told.extend_from_slice(&1_u32.to_le_bytes());
        told.extend_from_slice(&[2, 0, 0, 0, 1, 2, 0, 0, 0, b'n', b'o']);
        told.extend_from_slice(&1_u32.to_le_bytes());
        told.extend_from_slice(&4_u64.to_le_bytes());
        let fault = ToldFault { index: 2, kind: FaultKind::NotJson, message: "no".into() };
        assert_eq!(
            Told::read(&told),
            Some(Told { micros: 5, faults: vec![fault], lengths: vec![4] })
        );
        assert_eq!(Told::read(&told[..told.len() - 1]), None);
        assert_eq!(request(3, 2)[..5], [3, 0, 0, 0, 2]);
    }
}
