//! The start of a connection: the TLS handshake if the server speaks TLS, then the HTTP/2 preface.

use std::{io, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, rustls, server::TlsStream};

use super::socket::Stream;

/// The first bytes of every HTTP/2 client (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first byte of every TLS client: the type of a handshake record (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// The HTTP/2 error code for a transport that does not meet the minimum security requirements (RFC 9113, section 7).
const INADEQUATE_SECURITY: u8 = 0xc;

/// How many bytes to read from a refused peer before closing, so that it receives the refusal. Closing a socket that
/// has unread bytes resets the connection, and data on its way to the peer may be lost.
const LINGER: u64 = 64 << 10;

/// A connection whose handshake is complete.
pub(super) enum Opened {
    Plain(Prefaced<Stream>),
    Tls(Prefaced<Box<TlsStream<Stream>>>),
}

/// A stream, and the bytes already read from it: the preface, or other bytes, which hyper refuses.
pub(super) struct Prefaced<S> {
    pub(crate) stream: S,
    pub(crate) already_read: Bytes,
}

/// Performs the TLS handshake if `tls` is set, and waits for the HTTP/2 preface.
///
/// This is not left to hyper: it waits for the preface forever, and keeps a connection without one even during a
/// shutdown.
///
/// # Errors
///
/// Fails if the peer disconnects, if the TLS handshake fails, or if the peer speaks TLS on a plaintext port or
/// plaintext on a TLS port.
pub(crate) async fn open(stream: Stream, tls: Option<Arc<rustls::ServerConfig>>) -> io::Result<Opened> {
    let Some(config) = tls else {
        let opened = preface(stream).await?;
        if opened.already_read.first() == Some(&TLS_HANDSHAKE) {
            return Err(refuse(opened.stream, "this port does not speak TLS: connect to http://").await);
        }
        return Ok(Opened::Plain(opened));
    };
    let mut first = [0];
    if stream.peek(&mut first).await? > 0 && first[0] != TLS_HANDSHAKE {
        return Err(refuse(stream, "this port speaks TLS: connect to https://").await);
    }
    match TlsAcceptor::from(config).accept(stream).into_fallible().await {
        Ok(stream) => Ok(Opened::Tls(preface(Box::new(stream)).await?)),
        Err((error, stream)) => {
            // rustls has sent the peer an alert with the reason.
            linger(stream).await;
            Err(error)
        }
    }
}

async fn preface<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<Prefaced<S>> {
    let mut already_read = BytesMut::with_capacity(PREFACE.len());
    while already_read.len() < PREFACE.len() && PREFACE.starts_with(&already_read) {
        let missing = PREFACE.len() - already_read.len();
        if stream.read_buf(&mut (&mut already_read).limit(missing)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Prefaced { stream, already_read: already_read.freeze() })
}

/// Sends `why` in an HTTP/2 GOAWAY to a client that speaks TLS on a plaintext port, or plaintext on a TLS port. A TLS
/// client sees from it that the port does not speak TLS.
async fn refuse(mut stream: Stream, why: &'static str) -> io::Error {
    let mut bytes = BytesMut::new();
    // A GOAWAY frame: length, type, no flags, stream 0; then the last processed stream (none), the error code and a
    // text. No SETTINGS frame comes first, although HTTP/2 requires one (RFC 9113, section 3.4): gRPC's C core would
    // take it for a successful connection, and reconnect without a pause. Without it, gRPC backs off and fails the
    // call.
    bytes.put_uint(8 + why.len() as u64, 3);
    bytes.put_slice(&[7, 0, 0, 0, 0, 0]);
    bytes.put_slice(&[0, 0, 0, 0, 0, 0, 0, INADEQUATE_SECURITY]);
    bytes.put_slice(why.as_bytes());
    if let Err(error) = stream.write_all(&bytes).await {
        return error;
    }
    linger(stream).await;
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Closes our side of the connection, then reads until the peer closes its side or has sent [`LINGER`] bytes.
async fn linger(mut stream: Stream) {
    // Errors are ignored: the connection ends either way.
    if stream.shutdown().await.is_ok() {
        let _ = tokio::io::copy(&mut stream.take(LINGER), &mut tokio::io::sink()).await;
    }
}
