//! Observers of sessiond that check the events they receive, at little cost.

use std::{net::SocketAddr, time::Duration};

use prost::Message;
use sessiond::proto::{SubscribeRequest, SubscribeResponse, subscribe_request::Start, subscribe_response::Body};

use super::wire::{Frame, PREFIX, Wire, framed};

pub(crate) const PATH: &str = "/sessiond.v1.SessionService/Subscribe";

/// The response messages of a streaming call, on its own connection.
pub(crate) struct Stream {
    wire: Wire,
    bytes: Vec<u8>,
    taken: usize,
}

impl Stream {
    pub(crate) async fn open(address: SocketAddr, path: &'static str, request: &impl Message) -> Self {
        let mut wire = Wire::connect(address, path).await;
        wire.call(&framed(request));
        wire.send().await;
        Self { wire, bytes: Vec::new(), taken: 0 }
    }

    /// Returns the next message.
    pub(crate) async fn next<T: Message + Default>(&mut self) -> T {
        T::decode(self.message().await).unwrap()
    }

    async fn message(&mut self) -> &[u8] {
        loop {
            let rest = &self.bytes[self.taken..];
            if rest.len() >= PREFIX {
                let end = PREFIX + u32::from_be_bytes([rest[1], rest[2], rest[3], rest[4]]) as usize;
                if rest.len() >= end {
                    let begin = self.taken + PREFIX;
                    self.taken += end;
                    return &self.bytes[begin..self.taken];
                }
            }
            self.bytes.drain(..self.taken);
            self.taken = 0;
            match self.wire.next().await {
                Frame::Data(data) => self.bytes.extend_from_slice(self.wire.payload(data)),
                Frame::End => panic!("the stream has ended"),
                Frame::Other => {}
            }
        }
    }
}

/// An observer of sessiond.
pub(crate) struct Observer(Stream);

impl Observer {
    /// Subscribes, and waits for `subscribed`.
    pub(crate) async fn connect(address: SocketAddr, request: &SubscribeRequest) -> Self {
        let mut observer = Self(Stream::open(address, PATH, request).await);
        assert!(matches!(observer.next().await, Body::Subscribed(_)));
        observer
    }

    /// Returns the next message.
    pub(crate) async fn next(&mut self) -> Body {
        self.0.next::<SubscribeResponse>().await.body.unwrap()
    }

    /// Reads the events of the sessions `first` to `last`, and checks that each comes once and in order. Calls
    /// `progress` with the next expected id.
    pub(crate) async fn expect_in_order(&mut self, first: i64, last: i64, mut progress: impl FnMut(i64)) {
        let mut next = first;
        while next <= last {
            each_session(self.0.message().await, |session_id| {
                assert_eq!(session_id, next, "an event is missing, duplicated or out of order");
                next += 1;
            });
            progress(next);
        }
    }
}

/// Calls `seen` with the session of each event in a `SubscribeResponse`, without decoding the whole message.
fn each_session(message: &[u8], mut seen: impl FnMut(i64)) {
    let (mut rest, key) = (&message[1..], message[0]);
    assert_eq!(key, 0x0a, "the message has no events");
    let len = prost::encoding::decode_varint(&mut rest).unwrap() as usize;
    let mut events = &rest[..len];
    while let [0x0a, len, after @ ..] = events {
        // The fast path: a session that was created without an auth key.
        if let Some((event, after)) = events.split_first_chunk::<13>()
            && let [_, 11, 0x08, _, 0x11, id @ ..] = event
        {
            seen(i64::from_le_bytes(*id));
            events = after;
            continue;
        }
        let (mut event, after) = after.split_at(usize::from(*len));
        let mut session_id = 0;
        while let [key, value @ ..] = event {
            let len = match key {
                0x08 | 0x20 => 1,
                0x11 | 0x19 | 0x29 | 0x31 => 8,
                other => panic!("an event has an unknown field with the key {other:#x}"),
            };
            if *key == 0x11 {
                session_id = i64::from_le_bytes(value[..8].try_into().unwrap());
            }
            event = &value[len..];
        }
        seen(session_id);
        events = after;
    }
    // On a stream with placements, the place of the last event follows.
    assert!(matches!(events, [] | [0x12, ..]), "unknown field after the events, with the key {:#x}", events[0]);
}

/// Opens several streams on one connection, and waits for `subscribed` on each.
pub(crate) async fn subscribe_all(address: SocketAddr, requests: &[SubscribeRequest]) -> Wire {
    let mut wire = Wire::connect(address, PATH).await;
    requests.iter().for_each(|request| wire.call(&framed(request)));
    wire.send().await;
    let mut subscribed = 0;
    while subscribed < requests.len() {
        match wire.next().await {
            Frame::Data(_) => subscribed += 1,
            Frame::End => panic!("a stream has ended"),
            Frame::Other => {}
        }
    }
    wire
}

/// Returns a request for everything from now on, with rare heartbeats.
pub(crate) fn from_now() -> SubscribeRequest {
    let heartbeat = prost_types::Duration::try_from(Duration::from_secs(3600)).unwrap();
    SubscribeRequest { heartbeat: Some(heartbeat), ..SubscribeRequest::default() }
}

/// Returns the same request with placements.
pub(crate) fn placements_from_now() -> SubscribeRequest {
    SubscribeRequest { placements: true, ..from_now() }
}

/// Returns a request for a snapshot and everything after it.
pub(crate) fn from_snapshot() -> SubscribeRequest {
    SubscribeRequest { start: Some(Start::Snapshot(true)), ..from_now() }
}
