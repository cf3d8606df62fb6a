//! Results with their lengths before them, made lines again. A result may reach over any number of
//! parts: what was seen of it is kept from one part to the next.

/// Bytes of the length before each result.
const PREFIX_BYTES: usize = 4;

/// Where in the results a part ended.
pub(super) struct Unframe {
    /// What each result ends in when it is written.
    separator: u8,
    prefix: Vec<u8>,
    /// Bytes of the current result that are still to come, once its length is known.
    left: Option<usize>,
}

impl Unframe {
    pub(super) fn new(separator: u8) -> Self {
        Self { separator, prefix: Vec::with_capacity(PREFIX_BYTES), left: None }
    }

    /// Hands over to `each` what there is to write of the next part.
    pub(super) fn part<E>(
        &mut self,
        mut part: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let left = match self.left {
                Some(left) => left,
                None => {
                    let wanted = (PREFIX_BYTES - self.prefix.len()).min(part.len());
                    let (bytes, rest) = part.split_at(wanted);
                    self.prefix.extend_from_slice(bytes);
                    part = rest;
                    let Ok(prefix) = <[u8; PREFIX_BYTES]>::try_from(self.prefix.as_slice()) else {
                        return Ok(());
                    };
                    self.prefix.clear();
                    u32::from_le_bytes(prefix) as usize
                }
            };
            let (bytes, rest) = part.split_at(left.min(part.len()));
            if !bytes.is_empty() {
                each(bytes)?;
            }
            part = rest;
            if bytes.len() < left {
                self.left = Some(left - bytes.len());
                return Ok(());
            }
            self.left = None;
            each(&[self.separator])?;
        }
    }
}

#[cfg(test)]
mod tests {
    use widemap_common::framing::push_length_prefixed;

    use super::*;

    #[test]
    fn results_become_lines_however_they_are_split() {
        let mut framed = Vec::new();
        for result in [b"a\nb".as_slice(), b"", b"xyz"] {
            push_length_prefixed(&mut framed, result);
        }
        for part_bytes in 1..=framed.len() {
            let mut unframe = Unframe::new(b'\n');
            let mut out = Vec::new();
            for part in framed.chunks(part_bytes) {
                let each = |bytes: &[u8]| {
                    out.extend_from_slice(bytes);
                    Ok::<_, ()>(())
                };
                unframe.part(part, each).unwrap();
            }
            assert_eq!(out, b"a\nb\n\nxyz\n");
        }
    }
}
