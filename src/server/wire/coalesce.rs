//! A stream that buffers writes and sends them together.
//!
//! h2 makes a system call for each DATA frame of more than 256 bytes, which costs more than the copy that is made here.
//! All frames that a connection has ready leave in one write.

use std::{
    cell::Cell,
    future::poll_fn,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{socket::Socket, turn::Turn};

/// The capacity of the buffer, in bytes.
const LIMIT: usize = 64 << 10;

/// So many bytes wait for the connection's turn before they are buffered or written. The answer to a single call is
/// smaller.
const LARGE: usize = 8 << 10;

/// How many bytes to copy at once. glibc copies more than 2112 bytes with `rep movsb`. On AMD's Zen 3 and 4 that is
/// much slower if the destination is unaligned, as it is after a frame header:
/// <https://sourceware.org/bugzilla/show_bug.cgi?id=30994>.
const COPIED_AT_ONCE: usize = 2 << 10;

thread_local! {
    /// The buffer that the connections of this thread share. It stays in the processor's caches, and idle connections,
    /// which are most of them, hold no buffer. A connection keeps the buffer only while its peer accepts no more data,
    /// or while it waits for its turn.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The half that the HTTP/2 connection reads and writes. It never flushes: the task that polls the connection does
/// that, through [`Flusher`].
pub(super) struct Coalesced<S>(Arc<Mutex<Inner<S>>>);

/// The half that writes the buffered bytes.
pub(super) struct Flusher<S>(Arc<Mutex<Inner<S>>>);

struct Inner<S> {
    stream: TokioIo<S>,
    /// Bytes that were already read from the stream, and are returned first.
    already_read: Bytes,
    held: Vec<u8>,
    /// How many of the buffered bytes have been written.
    written: usize,
    /// Whether bytes were written since the last flush. TLS also buffers, when the socket accepts no more.
    is_unflushed: bool,
    turn: Turn,
}

/// Splits a stream into both halves. `already_read` has the bytes that were read from it before.
pub(super) fn coalesced<S>(stream: S, already_read: Bytes) -> (Coalesced<S>, Flusher<S>) {
    let stream = TokioIo::new(stream);
    let inner =
        Inner { stream, already_read, held: Vec::new(), written: 0, is_unflushed: false, turn: Turn::default() };
    let inner = Arc::new(Mutex::new(inner));
    (Coalesced(Arc::clone(&inner)), Flusher(inner))
}

impl<S: Socket + AsyncWrite + Unpin> Flusher<S> {
    /// Writes the buffered bytes and flushes the stream.
    pub(super) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_drain(context)
    }
}

impl<S: AsyncRead + Unpin> Flusher<S> {
    /// Reads and discards what the peer still sends, until it closes its side.
    ///
    /// If more data arrives after a socket is closed, the connection is reset, and the peer loses what it has not read
    /// yet.
    pub(crate) async fn read_to_end(&self) {
        poll_fn(|context| {
            let mut bytes = [0; 1024];
            loop {
                let mut buffer = ReadBuf::new(&mut bytes);
                let read = ready!(Pin::new(&mut self.0.lock().stream).poll_read(context, buffer.unfilled()));
                if read.is_err() || buffer.filled().is_empty() {
                    return Poll::Ready(());
                }
            }
        })
        .await;
    }
}

impl<S: Socket + AsyncWrite + Unpin> Inner<S> {
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_held(context))?;
        if self.is_unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.is_unflushed = true;
        while self.written < self.held.len() {
            ready!(self.poll_turn(self.held.len() - self.written, context))?;
            let written = Pin::new(&mut self.stream).poll_write(context, &self.held[self.written..]);
            if written.is_pending() {
                self.turn.end();
            }
            let len = ready!(written)?;
            if len == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += len;
        }
        self.turn.end();
        self.written = 0;
        self.held.clear();
        ROOM.set(mem::take(&mut self.held));
        Poll::Ready(Ok(()))
    }

    /// Waits for the connection's turn to buffer or write so many bytes. It lasts until the buffer is written.
    fn poll_turn(&mut self, len: usize, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if len >= LARGE && !self.turn.is_taken() {
            // A full socket must not ask for a turn: it would get one after the other for nothing.
            ready!(self.stream.inner().poll_writable(context))?;
            ready!(self.turn.poll(context));
        }
        Poll::Ready(Ok(()))
    }

    /// Returns the free space in the buffer for so many bytes. Writes a full buffer first, and is pending while the peer
    /// accepts no data.
    fn poll_room(&mut self, len: usize, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.held.len() >= LIMIT {
            ready!(self.poll_write_held(context))?;
        }
        ready!(self.poll_turn(len, context))?;
        if self.held.is_empty() {
            self.held = ROOM.take();
        }
        Poll::Ready(Ok(LIMIT - self.held.len()))
    }

    fn hold(&mut self, bytes: &[u8]) {
        bytes.chunks(COPIED_AT_ONCE).for_each(|some| self.held.extend_from_slice(some));
    }
}

impl<S: Socket + AsyncWrite + Unpin> Write for Coalesced<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.0.lock();
        let len = ready!(inner.poll_room(bytes.len(), context))?.min(bytes.len());
        inner.hold(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.lock();
        let len = slices.iter().map(|slice| slice.len()).sum();
        let room = ready!(inner.poll_room(len, context))?;
        let mut left = room;
        for slice in slices {
            let len = left.min(slice.len());
            inner.hold(&slice[..len]);
            left -= len;
        }
        Poll::Ready(Ok(room - left))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        ready!(inner.poll_drain(context))?;
        Pin::new(&mut inner.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> Read for Coalesced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        if !inner.already_read.is_empty() {
            let len = buffer.remaining().min(inner.already_read.len());
            buffer.put_slice(&inner.already_read.split_to(len));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut inner.stream).poll_read(context, buffer)
    }
}
