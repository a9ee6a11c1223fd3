//! Text protocols that allow several requests in flight on a connection.

use std::{net::SocketAddr, ops::Range, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    super::{
        pace::{self, Caller},
        resp,
    },
    Mover, SHAPE,
};

/// The requests and answers of one kind of call.
pub(super) trait Protocol: Send + Sync + 'static {
    /// Returns what a new connection sends first.
    fn hello(&self, connection: usize) -> String;

    /// Returns the request of call number `n`.
    fn request(&self, connection: usize, n: u64) -> Vec<u8>;

    /// Removes the complete answers from `read`, and returns their number.
    fn take_answers(&self, read: &mut Vec<u8>) -> usize;
}

/// A connection of such a protocol.
pub(super) struct Pipeline<P> {
    protocol: Arc<P>,
    number: usize,
    stream: TcpStream,
    unsent: Vec<u8>,
    read: Vec<u8>,
}

impl<P: Protocol> Pipeline<P> {
    pub(super) async fn connect(address: SocketAddr, protocol: Arc<P>, number: usize) -> Self {
        let stream = resp::connect(address, &protocol.hello(number)).await;
        Self { protocol, number, stream, unsent: Vec::new(), read: Vec::new() }
    }
}

impl<P: Protocol> Caller for Pipeline<P> {
    fn call(&mut self, n: u64) {
        self.unsent.extend(self.protocol.request(self.number, n));
    }

    async fn send(&mut self) {
        self.stream.write_all(&self.unsent).await.unwrap();
        self.unsent.clear();
    }

    async fn answers(&mut self) -> usize {
        loop {
            assert!(self.stream.read_buf(&mut self.read).await.unwrap() > 0, "the connection was closed");
            let answers = self.protocol.take_answers(&mut self.read);
            if answers > 0 {
                return answers;
            }
        }
    }
}

impl<P: Protocol> Mover for Pipeline<P> {
    async fn make(&mut self, n: u64) {
        self.call(n);
        self.send().await;
        assert_eq!(self.answers().await, 1);
    }
}

/// Makes the calls with these numbers, over as many connections and with as many in flight as [`SHAPE`] says.
pub(super) async fn load(address: SocketAddr, protocol: impl Protocol, calls: Range<u64>) {
    let (connections, in_flight) = SHAPE;
    let protocol = Arc::new(protocol);
    let mut callers = Vec::new();
    for number in 0..connections {
        callers.push(Pipeline::connect(address, Arc::clone(&protocol), number).await);
    }
    pace::make(calls, callers, in_flight).await;
}
