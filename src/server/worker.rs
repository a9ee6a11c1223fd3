//! The workers: threads that each serve connections on a runtime of their own.
//!
//! A runtime for each thread steals no work and wakes no other thread for a call. docs/benchmarks.md has what a call costs
//! beside tonic's server on tokio's multi-threaded runtime.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    net,
    num::NonZeroUsize,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    thread,
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    runtime,
    sync::{OwnedSemaphorePermit, mpsc, watch},
    task::JoinSet,
};

use super::{
    ServerError,
    coalesce::coalesced,
    inline::Inline,
    lifecycle::{self, Lifecycle},
    preface,
    standard::Standard,
};
use crate::service::{self, ResponseBody, Service};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How many connections may wait for a worker.
const INLET: usize = 64;

/// A connection is pinged when it was quiet for so long, and ended when the answer takes longer than the time-out: a peer
/// that vanished without a word is noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What a peer may send before it must wait for the server to read: a batch of thousands goes through at once. A request that
/// is read is held until it is whole, so what a connection can make the server hold is bounded by the streams it may have and
/// the bytes of a request.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// What a stream may have waiting to be sent: an observer that is stuck holds on to no more than this.
const SEND_BUFFER: usize = 32 << 10;

const MAX_HEADER_LIST: u32 = 16 << 10;

/// A peer that has more streams than this reset and not yet dealt with is cut off (rapid reset, CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 64;

/// Answers requests.
#[derive(Clone, Debug)]
pub(super) struct Handler {
    pub(super) service: Service,
    pub(super) standard: Arc<Standard>,
}

impl Handler {
    async fn handle(self, request: Request<Incoming>) -> Result<Response<ResponseBody>, Infallible> {
        if request.uri().path().starts_with(service::PATH) {
            return Ok(self.service.call(request).await);
        }
        // In a box, so that it does not make the future of every call as large as its own.
        Ok(match Box::pin(self.standard.call(request)).await {
            Ok(response) => response.map(ResponseBody::from),
            Err(request) => self.service.call(*request).await,
        })
    }
}

/// A connection, and its place among those that there may be.
pub(super) struct Connection {
    pub(super) stream: net::TcpStream,
    pub(super) place: OwnedSemaphorePermit,
}

/// All workers.
pub(super) struct Workers {
    inlets: Inlets,
    ended: mpsc::Receiver<Infallible>,
}

/// Where connections are given to workers.
#[derive(Clone)]
pub(super) struct Inlets(Vec<Inlet>);

#[derive(Clone)]
struct Inlet {
    connections: mpsc::Sender<Connection>,
    /// How many connections the worker has or was given.
    load: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `count` workers, the first on the current runtime and the others on threads of their own.
    pub(super) fn start(
        count: NonZeroUsize,
        max_streams: u32,
        handler: &Handler,
        lifecycle: &watch::Sender<Lifecycle>,
    ) -> Result<Self, ServerError> {
        let (end, ended) = mpsc::channel(1);
        let mut inlets = Vec::new();
        for index in 0..count.get() {
            let (connections, inlet) = mpsc::channel(INLET);
            let worker = Worker {
                inlet,
                load: Arc::default(),
                handler: handler.clone(),
                max_streams,
                lifecycle: lifecycle.subscribe(),
                _end: end.clone(),
            };
            inlets.push(Inlet { connections, load: Arc::clone(&worker.load) });
            if index == 0 {
                tokio::spawn(worker.run());
            } else {
                let runtime = runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(ServerError::Worker)?;
                thread::Builder::new()
                    .name(format!("worker-{index}"))
                    .spawn(move || runtime.block_on(worker.run()))
                    .map_err(ServerError::Worker)?;
            }
        }
        Ok(Self { inlets: Inlets(inlets), ended })
    }

    pub(super) fn inlets(&self) -> Inlets {
        self.inlets.clone()
    }

    /// Waits until every worker has ended: each does when the server drains and its connections are gone, or when the server
    /// has stopped or is gone.
    pub(super) async fn ended(&mut self) {
        // Nothing is ever sent; the channel closes with the last worker.
        while self.ended.recv().await.is_some() {}
    }
}

impl Inlets {
    /// Gives a connection to the worker that has the fewest.
    pub(super) async fn give(&self, connection: Connection) {
        let Some(inlet) = self.0.iter().min_by_key(|inlet| inlet.load.load(Ordering::Relaxed)) else { return };
        inlet.load.fetch_add(1, Ordering::Relaxed);
        if inlet.connections.send(connection).await.is_err() {
            tracing::debug!("a connection came when the server had stopped");
        }
    }
}

struct Worker {
    inlet: mpsc::Receiver<Connection>,
    load: Arc<AtomicUsize>,
    handler: Handler,
    max_streams: u32,
    lifecycle: watch::Receiver<Lifecycle>,
    _end: mpsc::Sender<Infallible>,
}

impl Worker {
    async fn run(mut self) {
        let mut stopped = self.lifecycle.clone();
        tokio::select! {
            () = lifecycle::reached(&mut stopped, Lifecycle::Stopped) => {}
            () = self.serve_all() => {}
        }
    }

    /// Serves what comes until the server drains, then what is left.
    async fn serve_all(&mut self) {
        let mut draining = self.lifecycle.clone();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                // Those who ended are taken out first, so that the set holds only who is there.
                biased;
                Some(_) = connections.join_next() => {}
                Some(connection) = self.inlet.recv() => {
                    connections.spawn(self.serve(connection));
                }
                () = lifecycle::reached(&mut draining, Lifecycle::Draining) => break,
            }
        }
        self.inlet.close();
        while let Some(connection) = self.inlet.recv().await {
            connections.spawn(self.serve(connection));
        }
        while connections.join_next().await.is_some() {}
    }

    fn serve(&self, Connection { stream, place }: Connection) -> impl Future<Output = ()> + Send + use<> {
        let load = Load(Arc::clone(&self.load));
        let handler = self.handler.clone();
        let max_streams = self.max_streams;
        let mut draining = self.lifecycle.clone();
        async move {
            let _held = (load, place);
            let stream = match TcpStream::from_std(stream) {
                Ok(stream) => stream,
                Err(error) => return tracing::warn!(%error, "a connection cannot be served"),
            };
            let speaks = tokio::select! {
                biased;
                speaks = preface::has_come(&stream) => speaks,
                () = lifecycle::reached(&mut draining, Lifecycle::Draining) => false,
            };
            if !speaks {
                return tracing::debug!("a connection ended before it said anything");
            }
            let (stream, flusher) = coalesced(TokioIo::new(stream));
            let service = service_fn(move |request| handler.clone().handle(request));
            let mut connection = pin!(http2(max_streams).serve_connection(stream, service));
            let mut drain = pin!(lifecycle::reached(&mut draining, Lifecycle::Draining));
            let mut is_draining = false;
            let result = poll_fn(|context| {
                if !is_draining && drain.as_mut().poll(context).is_ready() {
                    is_draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                if let Poll::Ready(result) = connection.as_mut().poll(context) {
                    // Its shutdown has flushed what there was, unless it failed.
                    return Poll::Ready(result.map_err(BoxError::from));
                }
                match flusher.poll_flush(context) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(BoxError::from(error))),
                    _ => Poll::Pending,
                }
            });
            if let Err(error) = result.await {
                tracing::debug!(%error, "a connection ended with an error");
            }
        }
    }
}

fn http2(max_streams: u32) -> http2::Builder<Inline> {
    let mut builder = http2::Builder::new(Inline);
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(max_streams)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        // The date is for caches, and a header of every answer.
        .auto_date_header(false);
    builder
}

/// Counts a connection until it ends.
struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
