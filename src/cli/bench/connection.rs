//! Connections to the server, and the calls over them.
//!
//! This uses h2 directly. A tonic channel adds layers, boxes and a task to each call, and a loader that is slower than
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

/// The flow-control window of a stream and of a connection, large enough that an observer that keeps up never makes the
/// server wait.
const WINDOW: u32 = 4 << 20;

/// A connection for any number of concurrent calls. Clones share it.
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
                http2(stream.map_err(|error| lost(format!("TLS handshake failed: {error}")))?).await
            }
        }
    };
    timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(lost("connecting timed out".to_owned())))
}

async fn http2(stream: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<Connection, Failure> {
    let (send, connection) = client::Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(stream)
        .await?;
    tokio::task::spawn_local(async move {
        // Users of the connection also get this error.
        let _ = connection.await;
    });
    Ok(Connection(send))
}

impl Connection {
    /// Makes a call and returns its one response message.
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

    /// Sends a request. Waits while the server's limit of concurrent streams is reached.
    pub(super) async fn open(&mut self, head: Request<()>, message: Bytes) -> Result<Answer, Failure> {
        poll_fn(|context| self.0.poll_ready(context)).await?;
        let (response, mut stream) = self.0.send_request(head, false)?;
        stream.send_data(message, true)?;
        Ok(Answer { response, _request: stream })
    }
}

/// A response that has not started yet.
pub(super) struct Answer {
    response: ResponseFuture,
    /// Sends the rest of a request that exceeds the window, for as long as it is held.
    _request: h2::SendStream<Bytes>,
}

impl Answer {
    /// Waits for the response to start, and returns its body.
    pub(super) async fn frames(&mut self) -> Result<RecvStream, Failure> {
        let response = (&mut self.response).await?;
        if response.status() != StatusCode::OK {
            return Err(Failure::malformed(&format!("the server answered HTTP {}", response.status())));
        }
        // A call that fails immediately has its status in the headers and no trailers.
        if response.headers().contains_key(Status::GRPC_STATUS) {
            check_status(response.headers())?;
            return Err(Failure::malformed("the answer is empty"));
        }
        Ok(response.into_body())
    }
}

/// Checks the status at the end of a response.
pub(super) fn check_trailers(trailers: Option<HeaderMap>) -> Result<(), Failure> {
    check_status(&trailers.ok_or_else(|| Failure::malformed("the answer has no status"))?)
}

fn check_status(headers: &HeaderMap) -> Result<(), Failure> {
    if headers.get(Status::GRPC_STATUS).map(HeaderValue::as_bytes) == Some(b"0") {
        return Ok(());
    }
    Err(Status::from_header_map(headers).map_or_else(|| Failure::malformed("the answer has no status"), Failure::from))
}
