//! The standard streams of a module, between it and the slot that runs it, on one thread: it takes input that
//! is there and waits for more, and prints until there is no room.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::runtime::tail::Tail;

/// What is printed before the slot takes it.
const ROOM_BYTES: usize = 256 * 1024;

/// What goes to standard error at once: only its end is kept.
const STDERR_ROOM_BYTES: usize = 64 * 1024;

/// See the file's head.
#[derive(Clone)]
pub(super) struct Stdio(Arc<Mutex<State>>);

struct State {
    input: VecDeque<Bytes>,
    input_is_over: bool,
    /// Who waits for input.
    reader: Option<Waker>,
    output: Vec<u8>,
    printed_bytes: u64,
    max_output: u64,
    /// Who waits for room.
    writer: Option<Waker>,
    stderr: Tail,
}

impl Stdio {
    pub(super) fn new(max_output: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            input: VecDeque::new(),
            input_is_over: false,
            reader: None,
            output: Vec::new(),
            printed_bytes: 0,
            max_output,
            writer: None,
            stderr: Tail::default(),
        })))
    }

    pub(super) fn stdin(&self) -> Stdin {
        Stdin(self.clone())
    }

    pub(super) fn stdout(&self) -> Stdout {
        Stdout(self.clone())
    }

    pub(super) fn stderr(&self) -> Stderr {
        Stderr(self.clone())
    }

    /// Whether it waits for input that is not there.
    pub(super) fn is_starved(&self) -> bool {
        self.lock().reader.is_some()
    }

    /// Whether it waits for room.
    pub(super) fn is_held_back(&self) -> bool {
        self.lock().writer.is_some()
    }

    /// Whether there is none for it to take.
    pub(super) fn has_no_input(&self) -> bool {
        self.lock().input.is_empty()
    }

    /// More input.
    pub(super) fn feed(&self, part: Bytes) {
        let mut state = self.lock();
        state.input.push_back(part);
        wake(&mut state.reader);
    }

    /// There is no more input.
    pub(super) fn end_input(&self) {
        let mut state = self.lock();
        state.input_is_over = true;
        wake(&mut state.reader);
    }

    /// Takes what it has printed, to the end of `output`.
    pub(super) fn take_output(&self, output: &mut Vec<u8>) {
        let mut state = self.lock();
        if output.is_empty() {
            std::mem::swap(&mut state.output, output);
        } else {
            output.append(&mut state.output);
        }
        wake(&mut state.writer);
    }

    /// Takes what it has written on standard error.
    pub(super) fn take_stderr(&self, tail: &mut Tail) {
        std::mem::swap(&mut self.lock().stderr, tail);
    }

    /// Whether it has printed more than it may.
    pub(super) fn has_overflown(&self) -> bool {
        let state = self.lock();
        state.printed_bytes > state.max_output
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// Standard input.
pub(super) struct Stdin(Stdio);

/// Standard output.
pub(super) struct Stdout(Stdio);

/// Standard error.
pub(super) struct Stderr(Stdio);

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl IsTerminal for Stdout {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl IsTerminal for Stderr {
    fn is_terminal(&self) -> bool {
        false
    }
}

// Commands of preview 1 have the streams of preview 2 only.
impl StdinStream for Stdin {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(tokio::io::empty())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(Self(self.0.clone()))
    }
}

impl StdoutStream for Stdout {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Self(self.0.clone()))
    }
}

impl StdoutStream for Stderr {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Self(self.0.clone()))
    }
}

/// Forgets who waits when it waits no more, whatever it was that came first.
struct Waiting<'a>(&'a Stdio, fn(&mut State) -> &mut Option<Waker>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        (self.1)(&mut self.0.lock()).take();
    }
}

#[async_trait]
impl Pollable for Stdin {
    async fn ready(&mut self) {
        let _waiting = Waiting(&self.0, |state| &mut state.reader);
        poll_fn(|context| {
            let mut state = self.0.lock();
            if !state.input.is_empty() || state.input_is_over {
                return Poll::Ready(());
            }
            state.reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

#[async_trait]
impl InputStream for Stdin {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let mut state = self.0.lock();
        let Some(part) = state.input.front_mut() else {
            return if state.input_is_over { Err(StreamError::Closed) } else { Ok(Bytes::new()) };
        };
        let taken = part.split_to(size.min(part.len()));
        if part.is_empty() {
            state.input.pop_front();
        }
        Ok(taken)
    }
}

#[async_trait]
impl Pollable for Stdout {
    async fn ready(&mut self) {
        let _waiting = Waiting(&self.0, |state| &mut state.writer);
        poll_fn(|context| {
            let mut state = self.0.lock();
            if state.output.len() < ROOM_BYTES {
                return Poll::Ready(());
            }
            state.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

#[async_trait]
impl OutputStream for Stdout {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut state = self.0.lock();
        state.printed_bytes += bytes.len() as u64;
        if state.printed_bytes > state.max_output {
            return Err(StreamError::trap("more output than is allowed"));
        }
        state.output.extend_from_slice(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(ROOM_BYTES.saturating_sub(self.0.lock().output.len()))
    }
}

#[async_trait]
impl Pollable for Stderr {
    async fn ready(&mut self) {}
}

#[async_trait]
impl OutputStream for Stderr {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.lock().stderr.push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(STDERR_ROOM_BYTES)
    }
}
