//! The journal over a disk of memory that tears, loses and refuses, and over a real one.

mod memory;
mod stories;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use widemap_common::ids::ItemRange;

use super::{
    Cursor, JobHeader, JournalError, KeptJob, Medium, Next, Payload, Shelf, Store, Writer,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Results as they are.
struct Plain(Vec<u8>);

impl Payload for Plain {
    fn write_to(&mut self, to: &mut dyn Write) -> io::Result<u64> {
        to.write_all(&self.0)?;
        Ok(self.0.len() as u64)
    }

    fn memory_bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

fn plain(text: &str) -> Box<dyn Payload> {
    Box::new(Plain(text.as_bytes().to_vec()))
}

fn range(first: u64, items: u32) -> ItemRange {
    ItemRange::new(first, items)
}

fn header() -> JobHeader {
    JobHeader { submission: Bytes::from_static(b"sort"), submit_key: None, created_ms: 5 }
}

fn open(
    medium: Arc<dyn Medium>,
    directory: &std::path::Path,
) -> Result<(Arc<Store>, Vec<KeptJob>), JournalError> {
    let (store, jobs) = Store::open(medium, directory, |_| true)?;
    Ok((Arc::new(store), jobs))
}

fn writer(medium: Arc<dyn Medium>) -> Writer {
    Writer::committing(medium, Duration::from_millis(1), || {}, |_| {}).unwrap()
}

/// Waits until everything that was handed over is durable, or nothing can be.
fn settled(writer: &Writer) -> Option<JournalError> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(error) = writer.take_error() {
            return Some(error);
        }
        if writer.is_idle() {
            return None;
        }
        assert!(std::time::Instant::now() < deadline, "the journal is never idle");
        std::thread::park_timeout(Duration::from_micros(100));
    }
}

/// All that can be read now: the output, and the failures with their places.
fn read(shelf: &Arc<Shelf>) -> (String, Vec<(String, u64)>) {
    let mut cursor: Cursor = shelf.read_from(0, 0, 0);
    let (mut output, mut failures) = (Vec::new(), Vec::new());
    loop {
        match cursor.next().unwrap() {
            Next::Output(bytes) => output.extend_from_slice(&bytes),
            Next::Failure(record, offset) => {
                failures.push((String::from_utf8(record.to_vec()).unwrap(), offset));
            }
            Next::Stderr(_) => {}
            Next::Wait | Next::End => return (String::from_utf8(output).unwrap(), failures),
        }
    }
}
