//! A connection that remembers what its bytes have shown to be wrong with it. HTTP/2 would only say
//! that a frame makes no sense, and under TLS 1.3 a client learns at its first read that its
//! certificate was refused.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::dial::{DialError, untrusted};

/// What a TLS alert begins with: a worker with a key answers plain text so.
const TLS_ALERT: u8 = 0x15;

/// See the file's head.
pub(super) struct Observed<S> {
    stream: S,
    host: String,
    fault: Arc<OnceLock<DialError>>,
    state: State,
}

enum State {
    /// Plain, and nothing was read yet.
    Plain,
    /// Encrypted, and nothing was read yet.
    Encrypted,
    /// It has begun as it should.
    Begun,
}

impl<S> Observed<S> {
    /// Watches a connection without TLS.
    pub(super) fn plain(stream: S, host: String, fault: Arc<OnceLock<DialError>>) -> Self {
        Self { stream, host, fault, state: State::Plain }
    }

    /// Watches a connection whose handshake is done on this side.
    pub(super) fn encrypted(stream: S, host: String, fault: Arc<OnceLock<DialError>>) -> Self {
        Self { stream, host, fault, state: State::Encrypted }
    }
}

impl<S: AsyncRead + Unpin> Observed<S> {
    /// A write that fails may hide what the other side has said before it hung up: that is read
    /// first. It may not have been heard of yet, but the end of it surely will be.
    fn after<T>(
        &mut self,
        context: &mut Context<'_>,
        done: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Poll::Ready(Err(error)) = &done else { return done };
        let hung_up =
            matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        if hung_up && !matches!(self.state, State::Begun) {
            let mut bytes = [0; 16];
            // It is read for what it shows alone: after a failed write nothing else is.
            let read = Pin::new(&mut *self).poll_read(context, &mut ReadBuf::new(&mut bytes));
            if read.is_pending() {
                return Poll::Pending;
            }
        }
        done
    }
}

impl<S> Observed<S> {
    fn note(&self, fault: DialError) {
        // The first fault is the cause of the others.
        let _ = self.fault.set(fault);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        match &read {
            Poll::Ready(Ok(())) => {
                if let Some(&first) = buffer.filled().get(before) {
                    let begun = std::mem::replace(&mut self.state, State::Begun);
                    if matches!(begun, State::Plain) && first == TLS_ALERT {
                        self.note(DialError::WantsKey { host: self.host.clone() });
                    }
                }
            }
            Poll::Ready(Err(error)) if matches!(self.state, State::Encrypted) => {
                let fault = untrusted(&self.host, error);
                if fault.mismatch().is_some() {
                    self.note(fault);
                }
            }
            _ => {}
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.after(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.after(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.after(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
