//! What was submitted, as the file `job` keeps it: written once, before the job counts as submitted.

use bytes::{BufMut, Bytes};

const MAGIC: &[u8; 8] = b"WMJOB\0\0\x01";

/// What is known of a job before any of it ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobHeader {
    /// What was submitted: opaque here.
    pub(crate) submission: Bytes,
    /// The submitter's own name for it.
    pub(crate) submit_key: Option<String>,
    /// When: Unix time in milliseconds.
    pub(crate) created_ms: u64,
}

impl JobHeader {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u64_le(self.created_ms);
        let key = self.submit_key.as_deref();
        body.put_u32_le(key.map_or(u32::MAX, |key| u32::try_from(key.len()).unwrap_or(0)));
        body.extend_from_slice(key.unwrap_or_default().as_bytes());
        body.extend_from_slice(&self.submission);
        let mut bytes = MAGIC.to_vec();
        bytes.put_u32_le(crc32c::crc32c(&body));
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Some((magic, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(format!("only {} bytes long", bytes.len()));
        };
        if magic[..5] != MAGIC[..5] {
            return Err("no description of a job".to_owned());
        }
        if magic != MAGIC {
            return Err(format!("of version {}", magic[7]));
        }
        let damaged = || "damaged".to_owned();
        let (crc, body) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(damaged());
        }
        let (created, rest) = body.split_first_chunk::<8>().ok_or_else(damaged)?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
        let created_ms = u64::from_le_bytes(*created);
        let (submit_key, submission) = match u32::from_le_bytes(*length) {
            u32::MAX => (None, rest),
            length => {
                let (key, rest) = rest.split_at_checked(length as usize).ok_or_else(damaged)?;
                let key = String::from_utf8(key.to_vec()).map_err(|_| damaged())?;
                (Some(key), rest)
            }
        };
        Ok(Self { submission: Bytes::copy_from_slice(submission), submit_key, created_ms })
    }

    /// What files of this build begin with, for a person.
    pub(super) const WANTED: &str = "a job's description of version 1";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_a_changed_one_does_not() {
        for submit_key in [None, Some(String::new()), Some("nightly".to_owned())] {
            let submission = Bytes::from_static(b"anything");
            let header = JobHeader { submission, submit_key, created_ms: 12 };
            let bytes = header.to_bytes();
            assert_eq!(JobHeader::parse(&bytes), Ok(header));
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                assert!(JobHeader::parse(&bad).is_err(), "{at}");
                assert!(JobHeader::parse(&bytes[..at]).is_err(), "{at}");
            }
        }
    }
}
