//! How a connection begins: with TLS where the server speaks it, then with the preface of HTTP/2.

use std::{io, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, rustls, server::TlsStream};

use super::socket::Stream;

/// What every client of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What every client of TLS begins with: a record of a handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// HTTP/2's error for a connection that is not as secure as it must be, or more than it can be (RFC 9113, section 7).
const INADEQUATE_SECURITY: u8 = 0xc;

/// What is read of a peer that is turned away, so that it reads our last words: a socket that is closed with bytes unread
/// resets the connection, and what was sent may be lost.
const LINGER: u64 = 64 << 10;

/// A connection that has begun.
pub(super) enum Opened {
    Plain(Prefaced<Stream>),
    Tls(Prefaced<Box<TlsStream<Stream>>>),
}

/// A stream, and what was read of it: the preface, or what is none and hyper refuses.
pub(super) struct Prefaced<S> {
    pub(crate) stream: S,
    pub(crate) said: Bytes,
}

/// Waits until a peer has shaken hands, where `tls` is spoken, and has sent its preface.
///
/// hyper waits for a preface for ever, and does not let go of a connection without one when it is told to shut down.
///
/// # Errors
///
/// When the peer leaves, cannot agree on TLS, or is turned away because it takes this port for another kind.
pub(crate) async fn open(stream: Stream, tls: Option<Arc<rustls::ServerConfig>>) -> io::Result<Opened> {
    let Some(config) = tls else {
        let opened = preface(stream).await?;
        if opened.said.first() == Some(&TLS_HANDSHAKE) {
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
            // It has been told why, by an alert.
            linger(stream).await;
            Err(error)
        }
    }
}

async fn preface<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<Prefaced<S>> {
    let mut said = BytesMut::with_capacity(PREFACE.len());
    while said.len() < PREFACE.len() && PREFACE.starts_with(&said) {
        let missing = PREFACE.len() - said.len();
        if stream.read_buf(&mut (&mut said).limit(missing)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Prefaced { stream, said: said.freeze() })
}

/// Tells a client that took the port for another kind, in the words of HTTP/2. Clients of TLS read that no TLS is spoken.
async fn refuse(mut stream: Stream, why: &'static str) -> io::Error {
    let mut bytes = BytesMut::new();
    // GOAWAY: its length, its type, no flags, the connection; no stream was dealt with; the error, and words about it. No settings
    // come first, as they must where HTTP/2 is spoken (RFC 9113, section 3.4): gRPC's C core would take them for a connection
    // that is made, and make it again without a pause. Without them it waits longer each time, and fails the call.
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

async fn linger(mut stream: Stream) {
    // Whatever fails here: there is nobody left to tell.
    if stream.shutdown().await.is_ok() {
        let _ = tokio::io::copy(&mut stream.take(LINGER), &mut tokio::io::sink()).await;
    }
}
