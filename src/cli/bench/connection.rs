//! Connections to the server, and the calls over them.
//!
//! These are h2's and not tonic's: a tonic channel adds layers, boxes and a task to each call, and a loader that is slower than
//! the server measures itself.

use std::{future::poll_fn, time::Duration};

use bytes::Bytes;
use h2::{
    RecvStream,
    client::{self, ResponseFuture, SendRequest},
};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tonic::Status;

use super::{
    failure::{Cause, Failure},
    target::{Socket, Target},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the server may send ahead, on a stream and on a connection: enough that no observer that keeps up makes it wait.
const WINDOW: u32 = 4 << 20;

/// A connection, for as many calls at once as one likes; clones share it.
#[derive(Clone)]
pub(super) struct Connection(SendRequest<Bytes>);

/// Opens a connection.
pub(super) async fn connect(target: &Target) -> Result<Connection, Failure> {
    let lost = |message| Failure { cause: Cause::ConnectionLost, message };
    let connecting = async {
        let (host, port) = match &target.socket {
            Socket::Tcp(host, port) => (&**host, *port),
            Socket::Unix(path) => {
                let socket = UnixStream::connect(path).await;
                return http2(socket.map_err(|error| lost(format!("cannot connect: {error}")))?).await;
            }
        };
        let socket = TcpStream::connect((host, port)).await;
        let socket = socket.map_err(|error| lost(format!("cannot connect: {error}")))?;
        socket.set_nodelay(true).map_err(|error| lost(error.to_string()))?;
        match &target.tls {
            None => http2(socket).await,
            Some((tls, name)) => {
                let stream = tls.connect(name.clone(), socket).await;
                http2(stream.map_err(|error| lost(format!("cannot agree on TLS: {error}")))?).await
            }
        }
    };
    timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(lost("connecting took too long".to_owned())))
}

async fn http2(stream: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<Connection, Failure> {
    let (send, connection) = client::Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(stream)
        .await?;
    tokio::task::spawn_local(async move {
        // Whoever uses the connection is told of its end too.
        let _ = connection.await;
    });
    Ok(Connection(send))
}

impl Connection {
    /// Makes a call, and gives its one answer.
    pub(super) async fn call(&mut self, head: Request<()>, message: Bytes) -> Result<Bytes, Failure> {
        let mut answer = self.open(head, message).await?;
        let mut body = answer.frames().await?;
        let mut frames = super::frames::Frames::default();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            frames.push(data);
        }
        check_trailers(body.trailers().await?)?;
        let message = frames.next()?.filter(|_| frames.is_empty());
        message.ok_or_else(|| Failure::malformed("the answer is not one message"))
    }

    /// Sends a request. Waits while the server lets no more calls be open at once.
    pub(super) async fn open(&mut self, head: Request<()>, message: Bytes) -> Result<Answer, Failure> {
        poll_fn(|context| self.0.poll_ready(context)).await?;
        let (response, mut stream) = self.0.send_request(head, false)?;
        stream.send_data(message, true)?;
        Ok(Answer { response, _request: stream })
    }
}

/// An answer that is to come.
pub(super) struct Answer {
    response: ResponseFuture,
    /// A request that is longer than the window is sent for as long as this is held.
    _request: h2::SendStream<Bytes>,
}

impl Answer {
    /// The frames of the answer, once it has begun.
    pub(super) async fn frames(&mut self) -> Result<RecvStream, Failure> {
        let response = (&mut self.response).await?;
        if response.status() != StatusCode::OK {
            return Err(Failure::malformed(&format!("the server answered HTTP {}", response.status())));
        }
        // A call that fails at once has its status here and no trailers.
        if response.headers().contains_key(Status::GRPC_STATUS) {
            check_status(response.headers())?;
            return Err(Failure::malformed("the answer is empty"));
        }
        Ok(response.into_body())
    }
}

/// Reads the status at the end of an answer.
pub(super) fn check_trailers(trailers: Option<HeaderMap>) -> Result<(), Failure> {
    check_status(&trailers.ok_or_else(|| Failure::malformed("the answer has no status"))?)
}

fn check_status(headers: &HeaderMap) -> Result<(), Failure> {
    if headers.get(Status::GRPC_STATUS).map(HeaderValue::as_bytes) == Some(b"0") {
        return Ok(());
    }
    Err(Status::from_header_map(headers).map_or_else(|| Failure::malformed("the answer has no status"), Failure::from))
}
