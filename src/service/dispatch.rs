//! Checks requests and passes them to tonic's generated services.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response, StatusCode, Uri, header::CONTENT_TYPE, request::Parts};
use http_body::Body;
use http_body_util::Full;
use tonic::codegen::Service as _;

use super::{Calls, ServiceOptions, deadline, message, method::Method, response::ResponseBody};
use crate::{
    proto::{lease_service_server::LeaseServiceServer, session_service_server::SessionServiceServer},
    service::ServiceError,
    subject::SessionSubject,
};

/// The gRPC services of a subject, for any HTTP/2 server.
///
/// Start the subject with [`WireEncoder`](super::WireEncoder). Streams send events exactly as the subject's encoder
/// encoded them, so with any other encoder clients receive wrong messages or none.
#[derive(Clone, Debug)]
pub struct Service {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    calls: Arc<Calls>,
    sessions: SessionServiceServer<Calls>,
    leases: LeaseServiceServer<Calls>,
    limits: Arc<message::Limits>,
}

impl Service {
    /// Returns the services of `subject`.
    #[must_use]
    pub fn new(subject: Arc<SessionSubject>, options: ServiceOptions) -> Self {
        let limits = message::Limits::new(options.max_message_bytes, options.max_pending_bytes);
        Self::of(Calls { subject, options }, Arc::new(limits))
    }

    fn of(calls: Calls, limits: Arc<message::Limits>) -> Self {
        let calls = Arc::new(calls);
        let sessions = SessionServiceServer::from_arc(Arc::clone(&calls));
        let leases = LeaseServiceServer::from_arc(Arc::clone(&calls));
        Self { shared: Arc::new(Shared { calls, sessions, leases, limits }) }
    }

    /// Copies the services for one connection. A call changes their reference counts several times, which is slow if
    /// other threads change the same counts.
    pub(crate) fn for_connection(&self) -> Self {
        Self::of(Calls::clone(&self.shared.calls), Arc::clone(&self.shared.limits))
    }

    /// Answers one gRPC request. Errors are gRPC responses, too.
    ///
    /// If the future is dropped, the call may have changed all, some or none of its sessions.
    pub fn call<B>(self, request: Request<B>) -> impl Future<Output = Response<ResponseBody>>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        let method = Method::of(request.uri().path());
        self.call_method(method, request)
    }

    /// Answers a request whose path has already been looked up.
    pub(crate) fn call_method<B>(
        self,
        method: Option<Method>,
        request: Request<B>,
    ) -> impl Future<Output = Response<ResponseBody>>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        let limit = self.shared.calls.options.call_timeout;
        let is_grpc = is_grpc(&request);
        let (Parts { uri, headers, .. }, body) = request.into_parts();
        // For unary calls, `within` reads the timeout once they have to wait.
        let client_timeout = if method == Some(Method::SUBSCRIBE) { deadline::grpc_timeout(&headers) } else { None };
        let answer = answer(self.shared, method.ok_or(uri), is_grpc, client_timeout, body);
        deadline::within(answer, headers, limit).map(|answer| answer.unwrap_or_else(ResponseBody::error))
    }
}

// The size of this future matters: it is moved several times on its way into a task, and a stream keeps it for its
// whole life.
#[expect(clippy::manual_async_fn, reason = "the future of an async fn holds twice what it was called with")]
fn answer<B>(
    shared: Arc<Shared>,
    method: Result<Method, Uri>,
    is_grpc: bool,
    client_timeout: Option<Duration>,
    body: B,
) -> impl Future<Output = Result<Response<ResponseBody>, ServiceError>>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    async move {
        if !is_grpc {
            return Ok(ResponseBody::http(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let method = method.map_err(|uri| ServiceError::UnknownMethod(uri.path().to_owned()))?;
        let message = message::read(body, &shared.limits).await?;
        // A new request without the client's headers: a call that waits must not keep them in memory.
        let mut request = Request::new(Full::new(message));
        *request.uri_mut() = method.uri();
        let answer = if method.is_about_leases() {
            shared.leases.clone().call(request)
        } else {
            shared.sessions.clone().call(request)
        };
        drop(shared);
        let Ok(response) = answer.await;
        let response = ResponseBody::of_generated(response);
        Ok(match client_timeout {
            None => response,
            // A client ends its stream itself at that time. This is for clients that have vanished.
            Some(client_timeout) => response.map(|body| {
                body.until(None, async move {
                    tokio::time::sleep(client_timeout).await;
                    ServiceError::DeadlineExceeded
                })
            }),
        })
    }
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    // Not application/grpc-web, whose framing differs, nor other message formats such as application/grpc+json.
    let rest = content_type.strip_prefix(b"application/grpc").map(|rest| rest.strip_prefix(b"+proto").unwrap_or(rest));
    request.method() == http::Method::POST && matches!(rest, Some([] | [b';' | b' ', ..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        service::WireEncoder,
        storage::memory::{MemoryOptions, MemoryStorage},
        subject::SubjectOptions,
    };

    #[tokio::test]
    async fn the_future_of_a_call_is_small() {
        let storage = Arc::new(MemoryStorage::new(MemoryOptions::default()));
        let subject = SessionSubject::start(storage, SubjectOptions::default(), WireEncoder).await.unwrap();
        let call =
            Service::new(Arc::new(subject), ServiceOptions::default()).call(Request::new(Full::<Bytes>::default()));
        println!("{} bytes", size_of_val(&call));
        assert!(size_of_val(&call) <= 640, "{} bytes", size_of_val(&call));
    }
}
