//! What a member of the network says of itself when it announces itself, as the properties of an
//! mDNS TXT record.
//!
//! Anyone on the link can send such a record, so reading it is strict, total and bounded. It is a
//! hint all the same: only the handshake of a session proves anything.

use std::fmt;

use widemap_common::ids::Incarnation;
use widemap_common::limits::{ANNOUNCED_NAME_BYTES_MAX, ITEM_CHARS_SHOWN, SLOTS_MAX};

use crate::ClusterId;

/// What is announced of one life of a worker or coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// What people call it: at least one character, none of them a control character, and
    /// [`ANNOUNCED_NAME_BYTES_MAX`] bytes at the most.
    pub name: String,
    /// The version of the protocol that it speaks: major and minor.
    pub protocol: (u32, u32),
    /// Which life of it this is.
    pub incarnation: Incarnation,
    /// How many attempts it runs at a time; 0 for a coordinator.
    pub slots: u32,
    /// The cluster whose key it has, if it has one.
    pub cluster: Option<ClusterId>,
}

/// Why properties are no announcement, or an announcement cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A key that every announcement has is missing.
    #[error("the announcement has no `{0}`")]
    Missing(Key),
    /// A key is there more than once.
    #[error("the announcement has more than one `{0}`")]
    Twice(Key),
    /// A value is not what its key is for.
    #[error("`{key}` of the announcement is \"{value}\", not {}", .key.wanted())]
    Value {
        /// Which one.
        key: Key,
        /// The start of what is there instead, made fit for a terminal.
        value: String,
    },
}

/// The keys of an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// `v`: the version of the protocol.
    Protocol,
    /// `id`: the incarnation.
    Incarnation,
    /// `name`: what people call it.
    Name,
    /// `slots`: how many attempts it runs at a time.
    Slots,
    /// `cluster`: the fingerprint of the cluster's key.
    Cluster,
}

impl Key {
    const ALL: [Self; 5] =
        [Self::Protocol, Self::Incarnation, Self::Name, Self::Slots, Self::Cluster];

    fn text(self) -> &'static str {
        match self {
            Self::Protocol => "v",
            Self::Incarnation => "id",
            Self::Name => "name",
            Self::Slots => "slots",
            Self::Cluster => "cluster",
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Self::Protocol => "two numbers with a dot between them",
            Self::Incarnation | Self::Cluster => "16 hexadecimal digits",
            Self::Name => "1 to 250 bytes of UTF-8 without control characters",
            Self::Slots => "a number of 4096 at the most",
        }
    }

    /// Keys are compared without regard to case, as DNS-SD has it.
    fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|key| name.eq_ignore_ascii_case(key.text().as_bytes()))
    }

    fn refuses(self, value: &[u8]) -> RecordError {
        let mut shown = value.escape_ascii().to_string();
        shown.truncate(ITEM_CHARS_SHOWN);
        RecordError::Value { key: self, value: shown }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Announcement {
    /// The properties that tell it.
    ///
    /// # Errors
    /// If its name or number of slots is out of bounds, so that nobody could read it.
    pub fn to_properties(&self) -> Result<Vec<(&'static str, String)>, RecordError> {
        read_name(self.name.as_bytes())?;
        let slots = self.slots.to_string();
        if self.slots > SLOTS_MAX {
            return Err(Key::Slots.refuses(slots.as_bytes()));
        }
        let (major, minor) = self.protocol;
        let mut properties = vec![
            (Key::Protocol.text(), format!("{major}.{minor}")),
            (Key::Incarnation.text(), format!("{:016x}", self.incarnation.0)),
            (Key::Name.text(), self.name.clone()),
            (Key::Slots.text(), slots),
        ];
        properties.extend(self.cluster.map(|cluster| (Key::Cluster.text(), cluster.to_string())));
        Ok(properties)
    }

    /// Reads it from the properties of a record. Unknown keys are ignored: a later version may say
    /// more.
    ///
    /// # Errors
    /// If a property is missing, there twice, or not what it should be.
    pub fn from_properties<K, V>(
        properties: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, RecordError>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        let mut read = Read::default();
        for (name, value) in properties {
            if let Some(key) = Key::named(name.as_ref()) {
                read.property(key, value.as_ref())?;
            }
        }
        Ok(Self {
            name: read.name.ok_or(RecordError::Missing(Key::Name))?,
            protocol: read.protocol.ok_or(RecordError::Missing(Key::Protocol))?,
            incarnation: read.incarnation.ok_or(RecordError::Missing(Key::Incarnation))?,
            slots: read.slots.ok_or(RecordError::Missing(Key::Slots))?,
            cluster: read.cluster,
        })
    }
}

/// What has been read so far.
#[derive(Default)]
struct Read {
    name: Option<String>,
    protocol: Option<(u32, u32)>,
    incarnation: Option<Incarnation>,
    slots: Option<u32>,
    cluster: Option<ClusterId>,
}

impl Read {
    fn property(&mut self, key: Key, value: &[u8]) -> Result<(), RecordError> {
        let again = match key {
            Key::Protocol => self.protocol.replace(read_protocol(value)?).is_some(),
            Key::Incarnation => self.incarnation.replace(read_incarnation(value)?).is_some(),
            Key::Name => self.name.replace(read_name(value)?).is_some(),
            Key::Slots => self.slots.replace(read_slots(value)?).is_some(),
            Key::Cluster => self.cluster.replace(read_cluster(value)?).is_some(),
        };
        if again { Err(RecordError::Twice(key)) } else { Ok(()) }
    }
}

fn read_protocol(value: &[u8]) -> Result<(u32, u32), RecordError> {
    let text = std::str::from_utf8(value).ok();
    let parts = text.and_then(|text| text.split_once('.'));
    let version = parts.and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
    version.ok_or_else(|| Key::Protocol.refuses(value))
}

fn read_incarnation(value: &[u8]) -> Result<Incarnation, RecordError> {
    let digits = value.len() == 16 && value.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    let number = text.and_then(|text| u64::from_str_radix(text, 16).ok());
    number.map(Incarnation).ok_or_else(|| Key::Incarnation.refuses(value))
}

fn read_name(value: &[u8]) -> Result<String, RecordError> {
    let is_sized = (1..=ANNOUNCED_NAME_BYTES_MAX).contains(&value.len());
    let text = std::str::from_utf8(value).ok().filter(|_| is_sized);
    let printable = text.filter(|text| !text.chars().any(char::is_control));
    printable.map(str::to_owned).ok_or_else(|| Key::Name.refuses(value))
}

fn read_slots(value: &[u8]) -> Result<u32, RecordError> {
    let slots = std::str::from_utf8(value).ok().and_then(number);
    slots.filter(|slots| *slots <= SLOTS_MAX).ok_or_else(|| Key::Slots.refuses(value))
}

fn read_cluster(value: &[u8]) -> Result<ClusterId, RecordError> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| Key::Cluster.refuses(value))
}

/// A decimal number as it is written here: without a sign or leading zeros.
fn number(text: &str) -> Option<u32> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let is_canonical = text == "0" || !text.starts_with('0');
    text.parse().ok().filter(|_| is_plain && is_canonical)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ann() -> Announcement {
        Announcement {
            name: "ann".to_owned(),
            protocol: (1, 0),
            incarnation: Incarnation(0xabc),
            slots: 8,
            cluster: Some("0011223344556677".parse().expect("it is one")),
        }
    }

    fn with(name: &str, value: &[u8]) -> Result<Announcement, RecordError> {
        let properties = ann().to_properties().expect("it can be told");
        let others = properties.into_iter().filter(|(key, _)| *key != name);
        let others = others.map(|(key, value)| (key.to_owned(), value.into_bytes()));
        Announcement::from_properties(others.chain([(name.to_owned(), value.to_owned())]))
    }

    #[test]
    fn it_is_told_in_short_properties() {
        let told = ann().to_properties().expect("it can be told");
        let told: Vec<String> = told.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let wanted = "v=1.0 id=0000000000000abc name=ann slots=8 cluster=0011223344556677";
        assert_eq!(told.join(" "), wanted);
    }

    #[test]
    fn a_key_may_be_in_capitals_and_an_unknown_one_is_ignored() {
        let told = ann().to_properties().expect("it can be told");
        let told = told.into_iter().map(|(key, value)| (key.to_uppercase(), value));
        let more = [("color".to_owned(), "\u{1b}[31m".to_owned())];
        assert_eq!(Announcement::from_properties(told.chain(more)), Ok(ann()));
    }

    #[test]
    fn a_malformed_value_is_refused_and_the_error_says_which() {
        let cases: [(&str, &[&[u8]]); 5] = [
            ("v", &[b"", b"1", b"1.", b"1.0.0", b"01.0", b"+1.0", b"1.4294967296", b"\xff"]),
            ("id", &[b"", b"abc", b"+000000000000abc", b"0000000000000abcd", b"zzzzzzzzzzzzzzzz"]),
            ("name", &[b"", b"a\x1b[31m", b"\xff", &[b'a'; ANNOUNCED_NAME_BYTES_MAX + 1]]),
            ("slots", &[b"", b"-1", b"08", b"4097", b"1e3"]),
            ("cluster", &[b"", b"001122334455667", b"00112233445566777"]),
        ];
        for (key, values) in cases {
            for value in values {
                let error = with(key, value).expect_err("it is malformed").to_string();
                assert!(error.starts_with(&format!("`{key}` of")), "{error}");
                assert!(!error.contains('\u{1b}') && error.len() < 200, "{error}");
            }
        }
    }

    #[test]
    fn what_is_missing_or_there_twice_is_named() {
        let empty: [(&str, &str); 0] = [];
        let error = Announcement::from_properties(empty).expect_err("there is nothing");
        assert_eq!(error.to_string(), "the announcement has no `name`");
        let told = ann().to_properties().expect("it can be told");
        let twice = told.clone().into_iter().chain(told);
        assert_eq!(Announcement::from_properties(twice), Err(RecordError::Twice(Key::Protocol)));
    }

    #[test]
    fn what_nobody_could_read_is_not_told() {
        let long = Announcement { name: "a".repeat(ANNOUNCED_NAME_BYTES_MAX + 1), ..ann() };
        let many = Announcement { slots: SLOTS_MAX + 1, ..ann() };
        assert!(long.to_properties().is_err() && many.to_properties().is_err());
    }

    #[test]
    fn the_bounds_in_messages_are_the_real_ones() {
        assert!(Key::Name.wanted().contains(&format!(" {ANNOUNCED_NAME_BYTES_MAX} ")));
        assert!(Key::Slots.wanted().contains(&format!(" {SLOTS_MAX} ")));
    }

    prop_compose! {
        fn announcement()(
            name in "[^\\p{Cc}]{1,60}",
            protocol in any::<(u32, u32)>(),
            incarnation in any::<u64>(),
            slots in 0..=SLOTS_MAX,
            cluster in proptest::option::of("[0-9a-f]{16}"),
        ) -> Announcement {
            let cluster = cluster.map(|text| text.parse().expect("it has 16 digits"));
            Announcement { name, protocol, incarnation: Incarnation(incarnation), slots, cluster }
        }
    }

    proptest! {
        #[test]
        fn what_is_told_is_read_back(announcement in announcement()) {
            let told = announcement.to_properties().expect("it is within bounds");
            for (key, value) in &told {
                prop_assert!(key.len() + 1 + value.len() <= 255, "a property of TXT");
            }
            prop_assert_eq!(Announcement::from_properties(told), Ok(announcement));
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            properties in proptest::collection::vec(
                (
                    prop_oneof![
                        "v|id|name|slots|cluster".prop_map(String::into_bytes),
                        any::<Vec<u8>>(),
                    ],
                    prop_oneof![
                        "[0-9.a-f]{0,20}".prop_map(String::into_bytes),
                        any::<Vec<u8>>(),
                    ],
                ),
                0..8,
            ),
        ) {
            if let Ok(read) = Announcement::from_properties(properties) {
                prop_assert!(read.to_properties().is_ok(), "what is read can be told");
            }
        }
    }
}
