//! What a cluster is called: derived from its key, and no secret.

use std::fmt;
use std::str::FromStr;

/// The fingerprint of a cluster key: 16 hexadecimal digits in text. It tells nothing of the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub(crate) [u8; 8]);

/// A text is no cluster id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a cluster id has 16 hexadecimal digits")]
pub struct ClusterIdError;

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl FromStr for ClusterId {
    type Err = ClusterIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !digits {
            return Err(ClusterIdError);
        }
        let value = u64::from_str_radix(text, 16).map_err(|_| ClusterIdError)?;
        Ok(Self(value.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_can_be_read_back() {
        let id = ClusterId([0, 1, 2, 0xab, 0xff, 5, 6, 7]);
        assert_eq!(id.to_string(), "000102abff050607");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in
            ["", "000102abff05060", "000102abff0506071", "+00102abff050607", "g00102abff050607"]
        {
            assert_eq!(bad.parse::<ClusterId>(), Err(ClusterIdError), "{bad}");
        }
    }
}
