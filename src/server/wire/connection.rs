//! Serves a connection from the handshake to its end.

use std::{
    convert::Infallible,
    future::{pending, poll_fn, ready},
    io,
    net::IpAddr,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::Either};
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, watch},
    time::timeout,
};
use tokio_rustls::rustls;
use tonic::Status;
use tracing::{Instrument as _, Span};

use super::{
    activity::Activity,
    coalesce::coalesced,
    handshake::{self, Opened},
    socket::{Detached, Socket},
};
use crate::{
    server::{
        admission::{Gate, Peer, Withdrawn, tls},
        lifecycle::{self, Lifecycle},
        monitoring::ServerStats,
        standard::{HEALTH, Standard},
    },
    service::{Begun, CallTracer, Method, ResponseBody, Service, Shard},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How many bytes a peer may send before it must wait for the server to read: enough for a batch of thousands.
///
/// The server holds the bytes of a request until it is complete. So a connection can make the server hold at most the
/// maximum size of a request for each of its streams.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// A stream with this many unsent bytes is not polled for more. So a stuck observer holds at most this and two
/// messages.
const SEND_BUFFER: usize = 32 << 10;

const MAX_HEADER_LIST: u32 = 16 << 10;

/// The maximum number of streams that a peer has reset and the server has not processed yet. A peer that exceeds it is
/// disconnected (rapid reset, CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 64;

/// How long to wait at the end of a connection for the peer to close its side.
const LINGER: Duration = Duration::from_secs(2);

/// The limits of a connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionOptions {
    /// The maximum number of concurrent calls and streams.
    pub max_streams: u32,
    /// How long a peer may take for the TLS handshake and the HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// How long a connection may have no call and no stream before it is closed. Closing it may take up to as long
    /// again. Health watches do not count as streams.
    pub idle_timeout: Duration,
    /// The maximum age of a connection, varied at random by up to a tenth. A connection that reaches it accepts no new
    /// calls. Its calls in flight finish, and its event streams end once they are synced. `None` means no limit.
    pub max_age: Option<Duration>,
    /// How long a connection may be quiet before the server pings it.
    pub keepalive_interval: Duration,
    /// How long the answer to a ping may take before the connection is closed. This detects peers that have vanished.
    pub keepalive_timeout: Duration,
}

impl ConnectionOptions {
    setters!(const
        max_streams: u32,
        handshake_timeout: Duration,
        idle_timeout: Duration,
        max_age: Option<Duration>,
        keepalive_interval: Duration,
        keepalive_timeout: Duration,
    );
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            max_streams: 1024,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(15 * 60),
            max_age: Some(Duration::from_secs(30 * 60)),
            keepalive_interval: Duration::from_secs(60),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}

/// Answers the requests of one connection.
struct Handler {
    service: Service,
    standard: Arc<Standard>,
    gate: Option<Arc<Gate>>,
    tracer: Option<Arc<dyn CallTracer>>,
    peer: Peer,
    activity: Arc<Activity>,
    stats: Arc<Shard>,
}

/// A call or a stream that is open.
struct Open {
    handler: Arc<Handler>,
    is_probe: bool,
}

impl Open {
    /// Marks the stream as a health watch. Every client may open these, so they must not keep an otherwise idle
    /// connection open.
    fn mark_as_probe(&mut self) {
        self.is_probe = true;
        self.handler.activity.begin_probe();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let activity = &self.handler.activity;
        activity.end();
        if self.is_probe {
            activity.end_probe();
        }
    }
}

impl Handler {
    // Not an async fn, whose future would hold the request twice. The rare paths are boxed, so that the futures of all
    // calls and streams stay small.
    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> {
        self.activity.begin(self.peer.address);
        let open = Open { handler: self, is_probe: false };
        let handler = &*open.handler;
        let method = Method::of(request.uri().path());
        let mut call = method.map(|method| handler.stats.begin(method));
        if let Some(call) = &mut call {
            call.trace(handler.tracer.as_ref(), handler.peer.address, request.headers());
        }
        let admitted = handler.gate.as_ref().map_or(Ok(None), |gate| gate.admit(&handler.peer, method, &request));
        let log = call.as_ref().and_then(Begun::log).cloned();
        let is_unary = method.is_some_and(Method::is_unary);
        let answer = match (admitted, log) {
            (Ok(_), None) if is_unary => Either::Left(handler.service.clone().call_method(method, request)),
            (Ok(_), Some(log)) if is_unary => {
                Either::Right(handler.service.clone().call_method(method, request).instrument(log).boxed())
            }
            (Ok(withdrawn), log) => {
                let stream =
                    Self::stream(open, method, request, withdrawn, call).instrument(log.unwrap_or_else(Span::none));
                return Either::Right(stream.map(Ok).boxed());
            }
            (Err(refusal), _) => Either::Right(ready(ResponseBody::error(refusal)).boxed()),
        };
        Either::Left(answer.map(move |response| {
            open.handler.end(&mut call, &response);
            Ok(response)
        }))
    }

    /// Answers a call whose response may be a stream.
    async fn stream(
        mut open: Open,
        method: Option<Method>,
        request: Request<Incoming>,
        withdrawn: Option<Withdrawn>,
        mut call: Option<Begun>,
    ) -> Response<ResponseBody> {
        let handler = Arc::clone(&open.handler);
        let is_of_health = request.uri().path().starts_with(HEALTH);
        let response = if method.is_some() {
            handler.service.clone().call_method(method, request).await
        } else {
            match handler.standard.call(request).await {
                Ok(response) => response.map(ResponseBody::from),
                Err(request) => handler.service.clone().call_method(method, *request).await,
            }
        };
        if response.headers().contains_key(Status::GRPC_STATUS) {
            handler.end(&mut call, &response);
            return response;
        }
        if is_of_health {
            open.mark_as_probe();
        }
        let activity = &handler.activity;
        response.map(|mut body| {
            let retires_by_itself = body.retire_at(activity.stream_retires());
            body.until(call, async move {
                let closes =
                    async { if retires_by_itself { pending().await } else { open.handler.activity.closes().await } };
                match withdrawn {
                    Some(withdrawn) => tokio::select! {
                        biased;
                        error = withdrawn => error,
                        error = closes => error,
                    },
                    None => closes.await,
                }
            })
        })
    }

    /// Counts a call that ends with its response.
    fn end(&self, call: &mut Option<Begun>, response: &Response<ResponseBody>) {
        self.stats.answered(response);
        if let Some(call) = call {
            call.ends_with(response.headers());
        }
    }
}

/// An accepted connection, with its permit from the limit on connections.
pub(crate) struct Connection {
    pub(crate) stream: Detached,
    pub(crate) address: IpAddr,
    pub(super) permit: OwnedSemaphorePermit,
}

/// The state that all connections share.
pub(crate) struct Connections {
    pub(crate) service: Service,
    pub(crate) standard: Arc<Standard>,
    pub(crate) gate: Option<Arc<Gate>>,
    pub(crate) tracer: Option<Arc<dyn CallTracer>>,
    pub(crate) options: ConnectionOptions,
    pub(crate) stats: Arc<ServerStats>,
    pub(crate) tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
}

impl Connections {
    /// Serves a connection until it ends, or until its last call ends during a drain.
    pub(crate) async fn serve(&self, connection: Connection, mut lifecycle: watch::Receiver<Lifecycle>) {
        let _permit = connection.permit;
        let _counted = self.stats.count_connection();
        let opened = tokio::select! {
            biased;
            opened = self.open(connection.stream) => opened,
            () = lifecycle::reached(&mut lifecycle, Lifecycle::Draining) => return,
        };
        let mut peer = Peer { address: connection.address, certificate: None };
        let result = match opened {
            Ok(Opened::Plain(opened)) => self.serve_http2(opened.stream, opened.already_read, peer, lifecycle).await,
            Ok(Opened::Tls(opened)) => {
                let shown = opened.stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                peer.certificate = shown.map(|certificate| tls::names(certificate).into());
                self.serve_http2(opened.stream, opened.already_read, peer, lifecycle).await
            }
            Err(error) => return tracing::debug!(%error, "handshake failed"),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection failed");
        }
    }

    async fn open(&self, stream: Detached) -> io::Result<Opened> {
        // A reload of the certificates affects only later connections.
        let tls = self.tls.as_ref().map(|tls| Arc::clone(&tls.borrow()));
        let opening = handshake::open(stream.attach()?, tls);
        timeout(self.options.handshake_timeout, opening).await?
    }

    async fn serve_http2<S>(
        &self,
        stream: S,
        already_read: Bytes,
        peer: Peer,
        mut lifecycle: watch::Receiver<Lifecycle>,
    ) -> Result<(), BoxError>
    where
        S: Socket + AsyncRead + AsyncWrite + Unpin,
    {
        let (stream, flusher) = coalesced(stream, already_read);
        let activity = Arc::new(Activity::new(&self.options, &self.stats));
        let handler = Arc::new(Handler {
            service: self.service.for_connection(),
            standard: Arc::clone(&self.standard),
            gate: self.gate.clone(),
            tracer: self.tracer.clone(),
            peer,
            activity: Arc::clone(&activity),
            stats: self.stats.calls.shard(),
        });
        let service = service_fn(move |request| Arc::clone(&handler).handle(request));
        let mut connection = pin!(self.http2().serve_connection(stream, service));
        let drain = lifecycle::reached(&mut lifecycle, Lifecycle::Draining);
        let mut ends = pin!(async {
            tokio::select! {
                () = drain => {}
                () = activity.is_over(self.options.idle_timeout) => {}
            }
        });
        let mut is_ending = false;
        let served = poll_fn(|context| {
            if !is_ending && ends.as_mut().poll(context).is_ready() {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
            if let Poll::Ready(result) = connection.as_mut().poll(context) {
                // If the connection ended without an error, its shutdown has flushed all bytes.
                return Poll::Ready(result.map_err(BoxError::from));
            }
            match flusher.poll_flush(context) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(BoxError::from(error))),
                _ => Poll::Pending,
            }
        })
        .await;
        if served.is_ok() {
            // The connection ends here, whether or not the peer has closed its side in time.
            let _ = timeout(LINGER, flusher.read_to_end()).await;
        }
        served
    }

    fn http2(&self) -> http2::Builder<TokioExecutor> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(self.options.keepalive_interval)
            .keep_alive_timeout(self.options.keepalive_timeout)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(self.options.max_streams)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            // Only HTTP caches need the date, and it would be in every response.
            .auto_date_header(false);
        builder
    }
}
