//! Observers of sessiond that read frames and check them, at as little cost as can be.

use std::{net::SocketAddr, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, client::SendRequest};
use prost::Message;
use sessiond::proto::{SubscribeRequest, SubscribeResponse, subscribe_request::Start, subscribe_response::Body};

use super::grpc;

/// One stream.
pub(crate) struct Observer {
    body: RecvStream,
    bytes: BytesMut,
    /// Keeps the connection.
    _send: SendRequest<Bytes>,
}

impl Observer {
    /// Subscribes on a connection, and returns when `subscribed` has come.
    pub(crate) async fn subscribe(send: &SendRequest<Bytes>, request: &SubscribeRequest) -> Self {
        let mut ready = send.clone().ready().await.unwrap();
        let path = "/sessiond.v1.SessionService/Subscribe";
        let (response, mut stream) = ready.send_request(grpc::request(path), false).unwrap();
        stream.send_data(grpc::framed(request), true).unwrap();
        let response = response.await.unwrap();
        let mut observer = Self { body: response.into_body(), bytes: BytesMut::new(), _send: send.clone() };
        assert!(matches!(observer.next().await, Body::Subscribed(_)));
        observer
    }

    /// Subscribes on a connection of its own.
    pub(crate) async fn connect(address: SocketAddr, request: &SubscribeRequest) -> Self {
        Self::subscribe(&grpc::connect(address).await, request).await
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Body {
        loop {
            if let Some(message) = self.take() {
                return SubscribeResponse::decode(message).unwrap().body.unwrap();
            }
            let data = self.body.data().await.unwrap().unwrap();
            self.body.flow_control().release_capacity(data.len()).unwrap();
            self.bytes.extend_from_slice(&data);
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let len = self.bytes.get(1..5)?.get_u32() as usize;
        if self.bytes.len() < 5 + len {
            return None;
        }
        self.bytes.advance(5);
        Some(self.bytes.split_to(len).freeze())
    }

    /// Reads events until the one of session `last`, and checks that each session comes once, in the order of their ids from
    /// `first` on. `progress` hears how far it has come.
    pub(crate) async fn expect_in_order(&mut self, first: i64, last: i64, mut progress: impl FnMut(i64)) {
        let mut next = first;
        while next <= last {
            match self.next().await {
                Body::Events(events) => {
                    for event in events.events {
                        assert_eq!(event.session_id, next, "an event is missing, doubled or out of order");
                        next += 1;
                    }
                    progress(next);
                }
                Body::Heartbeat(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Everything from now on, with few heartbeats.
pub(crate) fn from_now() -> SubscribeRequest {
    let heartbeat = prost_types::Duration::try_from(Duration::from_secs(3600)).unwrap();
    SubscribeRequest { heartbeat: Some(heartbeat), ..SubscribeRequest::default() }
}

/// A snapshot, then everything.
pub(crate) fn from_snapshot() -> SubscribeRequest {
    SubscribeRequest { start: Some(Start::Snapshot(true)), ..from_now() }
}
