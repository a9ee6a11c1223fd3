//! A loader for unary gRPC calls on the `h2` crate: connections, each with so many calls in flight.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message;
use tokio::{net::TcpStream, task::JoinSet};

/// A message with gRPC's prefix.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// One connection. It ends when its last handle is dropped.
pub(crate) async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 24)
        .handshake(stream)
        .await
        .unwrap();
    tokio::spawn(async move { drop(connection.await) });
    send
}

pub(crate) fn request(path: &str) -> http::Request<()> {
    http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

/// Makes one call and gives the message of its response, without its prefix.
pub(crate) async fn call(send: &mut SendRequest<Bytes>, path: &str, body: Bytes) -> Bytes {
    let mut ready = send.clone().ready().await.unwrap();
    let (response, mut stream) = ready.send_request(request(path), false).unwrap();
    stream.send_data(body, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let mut bytes = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.unwrap();
    let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status")).map(|status| status.as_bytes());
    assert_eq!(status, Some(&b"0"[..]), "{path} failed: {trailers:?}");
    bytes.freeze().slice(5..)
}

/// Makes `total` calls over `connections`, each with `in_flight` at once; the body of call number n is `body(n)`.
pub(crate) async fn load(
    address: SocketAddr,
    path: &'static str,
    total: u64,
    (connections, in_flight): (usize, usize),
    body: impl Fn(u64) -> Bytes + Send + Sync + 'static,
) {
    let (next, body) = (Arc::new(AtomicU64::new(0)), Arc::new(body));
    let mut loops = JoinSet::new();
    for _ in 0..connections {
        let send = connect(address).await;
        for _ in 0..in_flight {
            let (mut send, next, body) = (send.clone(), Arc::clone(&next), Arc::clone(&body));
            loops.spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= total {
                        return;
                    }
                    call(&mut send, path, body(n)).await;
                }
            });
        }
    }
    while let Some(result) = loops.join_next().await {
        result.unwrap();
    }
}
