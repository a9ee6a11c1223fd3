//! The admin port: `/metrics`, `/live`, `/ready` and `/writable` over plain HTTP.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{metrics, server_stats::ServerStats};
use crate::{
    server::{
        lifecycle::{self, Lifecycle},
        opening::Opening,
        wire::PAUSE_WHEN_EXHAUSTED,
    },
    subject::SessionSubject,
};

/// The maximum number of connections. Probes and scrapers are few. A further connection closes the oldest one, so that
/// idle connections never keep a probe waiting.
const MAX_CONNECTIONS: usize = 64;

/// The maximum age of a connection, even if it is in use.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves the admin port.
#[derive(Clone)]
pub(crate) struct Admin {
    opening: Arc<Opening>,
    stats: Arc<ServerStats>,
    lifecycle: watch::Receiver<Lifecycle>,
}

impl Admin {
    pub(crate) fn new(opening: Arc<Opening>, stats: Arc<ServerStats>, lifecycle: watch::Receiver<Lifecycle>) -> Self {
        Self { opening, stats, lifecycle }
    }

    /// Serves until the server has stopped, then closes its connections.
    pub(crate) async fn run(self, listener: TcpListener) {
        let mut stopped = self.lifecycle.clone();
        let mut connections = JoinSet::new();
        let mut by_age = VecDeque::new();
        loop {
            tokio::select! {
                biased;
                () = lifecycle::reached(&mut stopped, Lifecycle::Stopped) => break,
                Some(_) = connections.join_next() => by_age.retain(|connection: &AbortHandle| !connection.is_finished()),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        if by_age.len() == MAX_CONNECTIONS && let Some(oldest) = by_age.pop_front() {
                            oldest.abort();
                        }
                        by_age.push_back(connections.spawn(self.clone().serve(TokioIo::new(stream))));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection on the admin port");
                        sleep(PAUSE_WHEN_EXHAUSTED).await;
                    }
                }
            }
        }
        connections.shutdown().await;
    }

    async fn serve(self, stream: TokioIo<tokio::net::TcpStream>) {
        let service = service_fn(move |request| self.clone().handle(request));
        let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(stream, service);
        // An error is the peer's fault: it did not speak HTTP, or closed the connection.
        let _ = timeout(CONNECTION_TIMEOUT, connection).await;
    }

    async fn handle(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD\n"));
        }
        Ok(match request.uri().path() {
            "/metrics" => {
                let subject = self.opening.subject().ok().map(|subject| &**subject);
                let mut response = text(StatusCode::OK, metrics::encode(subject, &self.stats).await);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
                response
            }
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" => match self.ready() {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
            },
            "/writable" => match self.writable() {
                Ok(()) => text(StatusCode::OK, "writable\n"),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
            },
            _ => text(StatusCode::NOT_FOUND, "not found: use /metrics, /live, /ready or /writable\n"),
        })
    }

    /// Returns the subject, or why the server does not serve it.
    fn serving(&self) -> Result<&Arc<SessionSubject>, String> {
        if *self.lifecycle.borrow() != Lifecycle::Serving {
            return Err("draining\n".to_owned());
        }
        self.opening.subject()
    }

    /// Succeeds if reads, streams and keep-alives work. The error says why they do not.
    fn ready(&self) -> Result<(), String> {
        if self.serving()?.is_following() { Ok(()) } else { Err("the storage is unreachable\n".to_owned()) }
    }

    /// Succeeds if the registry can be changed. The error says why it cannot.
    fn writable(&self) -> Result<(), String> {
        match self.serving()?.writability().refusal() {
            None => Ok(()),
            Some(refusal) => {
                let cause = refusal.cause;
                Err(format!("{}: {refusal}; to fix it, {}\n", cause.name(), cause.advice()))
            }
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn the_admin_port_is_live_but_not_ready_while_the_storage_is_being_opened() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_lifecycle, receiver) = watch::channel(Lifecycle::Serving);
        let _serves = JoinSet::from_iter([Admin::new(Arc::default(), ServerStats::new(0), receiver).run(listener)]);
        for (path, status, body) in [
            ("/live", "200", "live\n"),
            ("/ready", "503", "the storage is being opened\n"),
            ("/writable", "503", "the storage is being opened\n"),
            ("/metrics", "200", "# EOF\n"),
        ] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.ends_with(body), "{path}: {answer}");
        }
    }
}
