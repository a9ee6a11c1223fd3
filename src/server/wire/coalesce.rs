//! A stream whose writes go out together.
//!
//! h2 writes each DATA frame of more than 256 bytes by a system call of its own, which costs more than the copy made here: the
//! frames that a connection has ready in one go leave in one write.

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
use parking_lot::Mutex;

/// What is held back at the most.
const LIMIT: usize = 64 << 10;

/// What is copied at once. More than 2112 bytes glibc copies by `rep movsb`, which takes much longer on AMD's Zen 3 and 4 when the
/// destination is not aligned, as behind the head of a frame: <https://sourceware.org/bugzilla/show_bug.cgi?id=30994>.
const COPIED_AT_ONCE: usize = 2 << 10;

thread_local! {
    /// Room for what is held back, which the connections of a thread lend each other: it is in the processor's caches, and those
    /// that are idle, most of them, have none. Only one whose peer takes no more keeps its own until it does.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The half that a connection reads and writes. It never flushes: whoever polls the connection does, by [`Flusher`].
pub(super) struct Coalesced<S>(Arc<Mutex<Inner<S>>>);

/// The half that writes what was held back.
pub(super) struct Flusher<S>(Arc<Mutex<Inner<S>>>);

struct Inner<S> {
    stream: S,
    /// What was read of the stream before, and is to be read again.
    said: Bytes,
    held: Vec<u8>,
    /// How much of it has been written.
    written: usize,
    /// Something was written since the stream was flushed: TLS holds bytes back too, when the socket takes no more.
    is_unflushed: bool,
}

/// Both halves of a stream, of which `said` was read already.
pub(super) fn coalesced<S>(stream: S, said: Bytes) -> (Coalesced<S>, Flusher<S>) {
    let inner = Inner { stream, said, held: Vec::new(), written: 0, is_unflushed: false };
    let inner = Arc::new(Mutex::new(inner));
    (Coalesced(Arc::clone(&inner)), Flusher(inner))
}

impl<S: Write + Unpin> Flusher<S> {
    /// Writes what was held back.
    pub(super) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_drain(context)
    }
}

impl<S: Read + Unpin> Flusher<S> {
    /// Reads what the peer still sends, until it has closed its side too, and forgets it.
    ///
    /// A socket that is closed resets the connection when something more comes, and what the peer has not read yet is
    /// lost.
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

impl<S: Write + Unpin> Inner<S> {
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
            let len = ready!(Pin::new(&mut self.stream).poll_write(context, &self.held[self.written..]))?;
            if len == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += len;
        }
        self.written = 0;
        self.held.clear();
        ROOM.set(mem::take(&mut self.held));
        Poll::Ready(Ok(()))
    }

    /// Makes room for some more; pending while the peer takes nothing.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.held.len() >= LIMIT {
            ready!(self.poll_write_held(context))?;
        }
        if self.held.is_empty() {
            self.held = ROOM.take();
        }
        Poll::Ready(Ok(LIMIT - self.held.len()))
    }

    fn hold(&mut self, bytes: &[u8]) {
        bytes.chunks(COPIED_AT_ONCE).for_each(|some| self.held.extend_from_slice(some));
    }
}

impl<S: Write + Unpin> Write for Coalesced<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.0.lock();
        let len = ready!(inner.poll_room(context))?.min(bytes.len());
        inner.hold(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.lock();
        let room = ready!(inner.poll_room(context))?;
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

impl<S: Read + Unpin> Read for Coalesced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        if !inner.said.is_empty() {
            let len = buffer.remaining().min(inner.said.len());
            buffer.put_slice(&inner.said.split_to(len));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut inner.stream).poll_read(context, buffer)
    }
}
