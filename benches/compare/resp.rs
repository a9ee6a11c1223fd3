//! The parts of Redis' and NATS' protocols that the comparison needs, read as raw bytes.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A subscriber's connection. It searches what it reads for payloads, and does not parse the protocol.
pub(crate) struct Subscriber {
    stream: TcpStream,
    bytes: Vec<u8>,
}

/// Returns payload number `n`: 16 digits in angle brackets, about as long as an event of sessiond on the wire.
pub(crate) fn payload(n: u64) -> String {
    format!("<{n:016}>")
}

pub(crate) const PAYLOAD: usize = 18;

pub(crate) async fn connect(address: SocketAddr, hello: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(hello.as_bytes()).await.unwrap();
    stream
}

impl Subscriber {
    /// Connects, sends `hello`, and waits for an answer that contains `answer`.
    pub(crate) async fn connect(address: SocketAddr, hello: &str, answer: &str) -> Self {
        let mut stream = connect(address, hello).await;
        let mut bytes = Vec::new();
        while !String::from_utf8_lossy(&bytes).contains(answer) {
            assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
        }
        bytes.clear();
        Self { stream, bytes }
    }

    /// Reads until `mark` has come `count` more times.
    pub(crate) async fn expect_marks(&mut self, mark: &[u8], count: u64) {
        let (mut found, mut read) = (0, 0);
        self.bytes.reserve(64 << 10);
        loop {
            while found < count
                && let Some(at) = self.bytes[read..].windows(mark.len()).position(|bytes| bytes == mark)
            {
                read += at + mark.len();
                found += 1;
            }
            self.bytes.drain(..std::mem::take(&mut read));
            if found == count {
                return;
            }
            assert!(self.stream.read_buf(&mut self.bytes).await.unwrap() > 0, "the connection was closed");
        }
    }

    /// Reads the payloads `first` to `last`, and checks that each comes once and in order. Calls `progress` with the
    /// next expected number.
    pub(crate) async fn expect_in_order(&mut self, first: u64, last: u64, mut progress: impl FnMut(u64)) {
        let mut next = first;
        self.bytes.reserve(64 << 10);
        while next <= last {
            assert!(self.stream.read_buf(&mut self.bytes).await.unwrap() > 0, "the connection was closed");
            let mut rest = &self.bytes[..];
            while let Some(start) = rest.iter().position(|byte| *byte == b'<') {
                let Some(digits) = rest.get(start + 1..start + PAYLOAD - 1) else { break };
                let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
                assert_eq!(number, next, "a message is missing, duplicated or out of order");
                next += 1;
                rest = &rest[start + PAYLOAD - 1..];
            }
            let read = self.bytes.len() - rest.len();
            self.bytes.drain(..read);
            progress(next);
        }
    }
}
