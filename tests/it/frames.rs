//! Raw HTTP/2 frames, for requests that no library would send.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::fake::soon;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Returns the start of a connection: the preface and empty settings.
pub(crate) fn start() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// Encodes the headers of a gRPC call with HPACK, without its dynamic table.
pub(crate) fn headers(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("the text is short")], text.as_bytes()].concat();
    // :method POST, :scheme http, then literal values for :path, :authority and content-type.
    [&[0x83, 0x86, 0x04][..], &text(path), &[0x01], &text("sessiond"), &[0x0f, 0x10], &text("application/grpc")]
        .concat()
}

/// Connects and sends the bytes. Returns how many bytes the server sent before it closed the connection.
pub(crate) async fn closed_after(addr: SocketAddr, bytes: &[u8]) -> usize {
    let (mut reads, mut writes) = soon(TcpStream::connect(addr)).await.unwrap().into_split();
    let bytes = bytes.to_vec();
    // The server may close the connection before it has read everything.
    let writer = tokio::spawn(async move {
        let _ = writes.write_all(&bytes).await;
        writes
    });
    let (mut received, mut buffer) = (0, [0; 4096]);
    soon(async {
        // The server may end the connection with a reset.
        while let Ok(count @ 1..) = reads.read(&mut buffer).await {
            received += count;
        }
    })
    .await;
    drop(soon(writer).await);
    received
}
