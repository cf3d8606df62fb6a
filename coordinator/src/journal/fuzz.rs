//! The log of facts as a fuzz target sees it: bytes in, facts out.

use std::path::Path;

use bytes::Bytes;

use super::extent::{Checksums, Extent};
use super::fact::{self, Fact};
use super::record;
use super::store::{FACTS_MAGIC, read_facts};
use crate::data::Prefix;

/// A log with records of every kind, as the writer's thread writes it.
#[must_use]
pub fn good_log() -> Vec<u8> {
    let mut log = FACTS_MAGIC.to_vec();
    for number in 0..6_u64 {
        let mut body = Vec::new();
        let prefix =
            Prefix { bytes: number << 20, is_whole: number == 5, hash: [number as u8; 32] };
        fact::push_other(&mut body, &Fact::Input(prefix));
        let checksums = Checksums::of(&[number as u32]);
        let extent =
            Extent { segment: 1, offset: number * 100, length: 100, raw_bytes: 100, checksums };
        fact::push_final(&mut body, number * 10, 9, &extent, None);
        fact::push_final(&mut body, number * 10 + 9, 1, &extent, Some(b"{\"seq\":1"));
        fact::push_other(&mut body, &Fact::Paused(number % 2 == 0));
        record::push(&mut log, number + 1, &body);
    }
    let mut body = Vec::new();
    fact::push_other(&mut body, &Fact::Ended(Bytes::from_static(b"over")));
    record::push(&mut log, 7, &body);
    log
}

/// The facts of a log, for comparison, and whether its end was not written whole.
///
/// # Errors
/// Why it is refused.
pub fn facts_of(log: &[u8]) -> Result<(Vec<String>, bool), String> {
    let mut facts = Vec::new();
    let read = read_facts(Path::new("facts"), log, |told| facts.push(format!("{told:?}")));
    read.map(|read| (facts, read.torn.is_some())).map_err(|error| error.to_string())
}
