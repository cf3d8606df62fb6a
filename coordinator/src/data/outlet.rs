//! Writes bytes to a file descriptor: small ones gathered, large ones as they are, and hashed on
//! the way where that is wanted.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use widemap_common::limits::SINK_BUFFER_BYTES;

/// Bytes from which on a copy into the buffer costs more than a write of their own.
const LARGE_BYTES: usize = 64 * 1024;

/// A file with a buffer before it.
pub(super) struct Outlet {
    file: File,
    buffer: Vec<u8>,
    hash: Option<Box<blake3::Hasher>>,
}

impl Outlet {
    pub(super) fn new(file: File, is_hashed: bool) -> Self {
        let hash = is_hashed.then(|| Box::new(blake3::Hasher::new()));
        Self { file, buffer: Vec::with_capacity(SINK_BUFFER_BYTES), hash }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        if bytes.len() >= LARGE_BYTES || self.buffer.len() + bytes.len() > SINK_BUFFER_BYTES {
            let mut slices = [IoSlice::new(&self.buffer), IoSlice::new(bytes)];
            write_all(&self.file, &mut slices)?;
            self.buffer.clear();
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        write_all(&self.file, &mut [IoSlice::new(&self.buffer)])?;
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The hash of all that was written, if it was wanted.
    pub(super) fn hash(&self) -> Option<blake3::Hash> {
        self.hash.as_ref().map(|hash| hash.finalize())
    }
}

fn write_all(mut file: &File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(bytes) => IoSlice::advance_slices(&mut slices, bytes),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Whoever shares the terminal or pipe with us may have made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::OUT)];
                // An error of poll is met again by the write that follows.
                let _ = poll(&mut fds, None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
