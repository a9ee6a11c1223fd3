//! A gRPC client that reads and writes HTTP/2 as bytes. It costs very little, so that the measurements show the server.
//!
//! To a server it looks like a good client: it sends everything that is ready in one write, and from the second call on
//! it sends header fields by their index. It checks that each call is answered with one message, without decoding
//! headers.

use std::{net::SocketAddr, ops::Range, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::pace::{self, Caller};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The length of gRPC's message prefix.
pub(crate) const PREFIX: usize = 5;
const HEAD: usize = 9;
const MAX_FRAME: usize = 16_384;
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// Returns the encoded message with gRPC's prefix.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// A connection for the calls of one method.
pub(crate) struct Wire {
    tcp: TcpStream,
    path: &'static str,
    calls: u32,
    unsent: Vec<u8>,
    read: Vec<u8>,
    /// How many of the read bytes have been consumed.
    taken: usize,
}

/// A frame from the server.
pub(crate) enum Frame {
    /// A part of an answer. [`Wire::payload`] returns the bytes of the range.
    Data(Range<usize>),
    /// The end of an answer.
    End,
    /// Any other frame.
    Other,
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr, path: &'static str) -> Self {
        let tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let mut unsent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        const INITIAL_WINDOW_SIZE: u8 = 4;
        let settings = [&[0, INITIAL_WINDOW_SIZE][..], &MAX_WINDOW.to_be_bytes()].concat();
        frame(&mut unsent, SETTINGS, 0, 0, &settings);
        frame(&mut unsent, WINDOW_UPDATE, 0, 0, &(MAX_WINDOW - 65_535).to_be_bytes());
        Self { tcp, path, calls: 0, unsent, read: Vec::with_capacity(128 << 10), taken: 0 }
    }

    /// Queues a call for the next [`send`](Self::send).
    pub(crate) fn call(&mut self, body: &[u8]) {
        let stream = 2 * self.calls + 1;
        let headers: Vec<u8> = if self.calls == 0 {
            // POST, http, and four fields that the server adds to its header table.
            let path = [&[0x44, self.path.len() as u8], self.path.as_bytes()].concat();
            [&[0x83, 0x86], &path[..], b"\x41\x09localhost\x5f\x10application/grpc\x40\x02te\x08trailers"].concat()
        } else {
            vec![0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe]
        };
        frame(&mut self.unsent, HEADERS, END_HEADERS, stream, &headers);
        let mut parts = body.chunks(MAX_FRAME).peekable();
        while let Some(part) = parts.next() {
            let flags = if parts.peek().is_none() { END_STREAM } else { 0 };
            frame(&mut self.unsent, DATA, flags, stream, part);
        }
        self.calls += 1;
    }

    /// Sends the queued calls.
    pub(crate) async fn send(&mut self) {
        self.tcp.write_all(&self.unsent).await.unwrap();
        self.unsent.clear();
    }

    /// Waits for the next frame. Acknowledges SETTINGS and PING.
    pub(crate) async fn next(&mut self) -> Frame {
        loop {
            if let Some((kind, flags, payload)) = self.take() {
                match kind {
                    DATA => return Frame::Data(payload),
                    HEADERS if flags & END_STREAM != 0 => return Frame::End,
                    SETTINGS | PING if flags & ACK == 0 => {
                        let payload = if kind == PING { self.read[payload].to_vec() } else { Vec::new() };
                        frame(&mut self.unsent, kind, ACK, 0, &payload);
                        self.send().await;
                    }
                    HEADERS | SETTINGS | PING | WINDOW_UPDATE => return Frame::Other,
                    _ => panic!("the server ended a stream or the connection with a frame of kind {kind}"),
                }
            } else {
                self.read.drain(..self.taken);
                self.taken = 0;
                assert!(self.tcp.read_buf(&mut self.read).await.unwrap() > 0, "the connection was closed");
            }
        }
    }

    /// Returns whether a complete frame has been read.
    fn is_ready(&self) -> bool {
        let rest = &self.read[self.taken..];
        rest.len() >= HEAD && rest.len() >= HEAD + len(rest)
    }

    fn take(&mut self) -> Option<(u8, u8, Range<usize>)> {
        if !self.is_ready() {
            return None;
        }
        let head = &self.read[self.taken..];
        let (kind, flags) = (head[3], head[4]);
        let begin = self.taken + HEAD;
        self.taken = begin + len(head);
        Some((kind, flags, begin..self.taken))
    }

    pub(crate) fn payload(&self, payload: Range<usize>) -> &[u8] {
        &self.read[payload]
    }

    /// Makes one call and waits for its answer.
    pub(crate) async fn answer(&mut self, body: &[u8]) {
        self.call(body);
        self.send().await;
        self.answered().await;
    }

    /// Makes one call and returns its answer.
    pub(crate) async fn ask<T: Message + Default>(&mut self, request: &impl Message) -> T {
        self.call(&framed(request));
        self.send().await;
        let mut answer = None;
        loop {
            match self.next().await {
                Frame::Data(data) => answer = Some(T::decode(&self.payload(data)[PREFIX..]).unwrap()),
                Frame::End => return answer.unwrap(),
                Frame::Other => {}
            }
        }
    }

    /// Waits for the answer to the oldest call in flight. The server must answer the calls one after the other.
    pub(crate) async fn answered(&mut self) {
        let mut messages = 0;
        loop {
            match self.next().await {
                Frame::Data(_) => messages += 1,
                Frame::End => break,
                Frame::Other => {}
            }
        }
        assert_eq!(messages, 1, "the call failed");
    }
}

fn len(head: &[u8]) -> usize {
    u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// Returns the frames that answer call number `call` of a connection. They are as long as sessiond's.
pub(crate) fn answer(call: u32, body: &[u8]) -> Vec<u8> {
    let stream = 2 * call + 1;
    let mut bytes = Vec::new();
    // `:status 200`, and two fields by their index in the client's header table: content-type and grpc-status.
    frame(&mut bytes, HEADERS, END_HEADERS, stream, &[0x88, 0xbf]);
    frame(&mut bytes, DATA, 0, stream, body);
    frame(&mut bytes, HEADERS, END_HEADERS | END_STREAM, stream, &[0xbe]);
    bytes
}

/// Makes `total` calls over `connections` connections, with `in_flight` calls in flight on each. `body(n)` returns the
/// body of call number `n`.
pub(crate) async fn load(
    address: SocketAddr,
    path: &'static str,
    total: u64,
    (connections, in_flight): (usize, usize),
    body: impl Fn(u64) -> Bytes + Send + Sync + 'static,
) {
    let body = Arc::new(body);
    let mut callers = Vec::new();
    for _ in 0..connections {
        callers.push(Calls { wire: Wire::connect(address, path).await, body: Arc::clone(&body), messages: 0 });
    }
    pace::make(0..total, callers, in_flight).await;
}

/// A connection that makes calls with the bodies that `body` returns.
struct Calls<F> {
    wire: Wire,
    body: Arc<F>,
    /// The messages of calls that have not ended.
    messages: u64,
}

impl<F: Fn(u64) -> Bytes + Send + Sync + 'static> Caller for Calls<F> {
    fn call(&mut self, n: u64) {
        self.wire.call(&(self.body)(n));
    }

    async fn send(&mut self) {
        self.wire.send().await;
    }

    async fn answers(&mut self) -> usize {
        let mut answered = 0;
        while answered == 0 || self.wire.is_ready() {
            match self.wire.next().await {
                Frame::Data(_) => self.messages += 1,
                Frame::End => {
                    assert!(self.messages > 0, "the call failed");
                    self.messages -= 1;
                    answered += 1;
                }
                Frame::Other => {}
            }
        }
        answered
    }
}
