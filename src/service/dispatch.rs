//! From the path of a request to the call it makes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Method, Request, Response, StatusCode, Uri, header::CONTENT_TYPE, request::Parts};
use http_body::Body;
use prost::Message;

use super::{
    Calls, ServiceOptions, Shared, convert, deadline, message, response::ResponseBody, stats::METHODS,
    subscribe::ObserverBody,
};
use crate::{
    proto::SubscribeRequest,
    service::ServiceError,
    subject::{SessionSubject, Start},
};

/// The prefix of the paths of all services of the package `sessiond.v1`.
pub(crate) const PATH: &str = "/sessiond.v1.";

/// The same without the slash.
const PACKAGE: &str = "sessiond.v1.";

/// Whether a call to this path is answered with one message.
pub(crate) fn is_unary(path: &str) -> bool {
    path.strip_prefix(PATH).is_some_and(|method| method != "SessionService/Subscribe")
}

/// The services of the package `sessiond.v1` over a subject, for any HTTP/2 server.
///
/// The subject must have been started with [`WireEncoder`](super::WireEncoder): the events of a stream are sent as they were
/// encoded there.
///
/// They are dispatched by hand, and not by tonic's generated servers behind its router: see docs/benchmarks.md for what
/// a call costs beside it.
#[derive(Clone, Debug)]
pub struct Service {
    calls: Calls,
}

impl Service {
    /// The services over `subject`.
    #[must_use]
    pub fn new(subject: Arc<SessionSubject>, options: ServiceOptions) -> Self {
        let limits = message::Limits::new(options.max_message_bytes, options.max_pending_bytes);
        Self { calls: Calls { shared: Arc::new(Shared { subject, options, limits }) } }
    }

    /// Answers one request. Dropping the future drops the call: each session is changed or is not.
    pub fn call<B>(self, request: Request<B>) -> impl Future<Output = Response<ResponseBody>>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        let limit = self.calls.shared.options.call_timeout;
        let is_grpc = is_grpc(&request);
        let (Parts { uri, headers, .. }, body) = request.into_parts();
        // Calls of one message look for it only when they have to wait.
        let wish = if is_unary(uri.path()) { None } else { deadline::wish(&headers) };
        let answer = answer(self.calls, known_method(uri), is_grpc, wish, body);
        deadline::within(answer, headers, limit).map(|answer| answer.unwrap_or_else(ResponseBody::error))
    }
}

// A call's future is moved several times on its way into a task, and the room that it takes is held while a stream lives.
#[expect(clippy::manual_async_fn, reason = "the future of an async fn holds twice what it was called with")]
fn answer<B>(
    calls: Calls,
    method: Result<&'static str, Uri>,
    is_grpc: bool,
    wish: Option<Duration>,
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
        match method {
            Ok("SessionService/HasSession") => unary(calls, body, Calls::has).await,
            Ok("SessionService/LookupSession") => unary(calls, body, Calls::lookup).await,
            Ok("SessionService/CreateSession") => unary(calls, body, Calls::create).await,
            Ok("SessionService/DestroySession") => unary(calls, body, Calls::destroy).await,
            // In a box, as is all that is rare or large: the future of every call is as large as the largest of these.
            Ok("SessionService/BatchHasSessions") => Box::pin(unary(calls, body, Calls::batch_has)).await,
            Ok("SessionService/BatchLookupSessions") => Box::pin(unary(calls, body, Calls::batch_lookup)).await,
            Ok("SessionService/BatchCreateSessions") => Box::pin(unary(calls, body, Calls::batch_create)).await,
            Ok("SessionService/BatchDestroySessions") => Box::pin(unary(calls, body, Calls::batch_destroy)).await,
            Ok("SessionService/Subscribe") => Box::pin(subscribe(calls, wish, body)).await,
            Ok("LeaseService/GrantLease") => unary(calls, body, Calls::grant_lease).await,
            Ok("LeaseService/KeepLeaseAlive") => unary(calls, body, Calls::keep_lease_alive).await,
            Ok("LeaseService/RevokeLease") => Box::pin(unary(calls, body, Calls::revoke_lease)).await,
            Ok("LeaseService/ListLeases") => Box::pin(unary(calls, body, Calls::list_leases)).await,
            Ok(method) => Err(ServiceError::UnknownMethod(method.to_owned())),
            Err(uri) => Err(ServiceError::UnknownMethod(uri.path().to_owned())),
        }
    }
}

/// Returns the method that a request is for, by a name of our own: a call that waits must not hold what a stranger has
/// sent.
fn known_method(uri: Uri) -> Result<&'static str, Uri> {
    let method = uri.path().strip_prefix(PATH);
    let mut names = METHODS.iter().filter_map(|name| name.strip_prefix(PACKAGE));
    names.find(|name| Some(*name) == method).ok_or(uri)
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    // Neither application/grpc-web, which is framed in another way, nor messages in another format, as application/grpc+json.
    let rest = content_type.strip_prefix(b"application/grpc").map(|rest| rest.strip_prefix(b"+proto").unwrap_or(rest));
    request.method() == Method::POST && matches!(rest, Some([] | [b';' | b' ', ..]))
}

/// Answers a call of one message with one message.
async fn unary<B, Q, R>(
    calls: Calls,
    body: B,
    call: impl AsyncFnOnce(Calls, Q) -> Result<R, ServiceError>,
) -> Result<Response<ResponseBody>, ServiceError>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
    Q: Message + Default,
    R: Message,
{
    let request = message::read(body, &calls.shared.limits).await?;
    let response = call(calls, request).await?;
    Ok(ResponseBody::message(&response))
}

async fn subscribe<B>(calls: Calls, wish: Option<Duration>, body: B) -> Result<Response<ResponseBody>, ServiceError>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let request: SubscribeRequest = message::read(body, &calls.shared.limits).await?;
    let heartbeat = convert::heartbeat(request.heartbeat)?;
    let options = convert::observe_options(request, calls.shared.subject.max_filter_ids())?;
    let resumes = matches!(options.start, Start::After(_));
    let observer = calls.shared.subject.observe(options).await?;
    let response = ResponseBody::observer(ObserverBody::new(observer, heartbeat, resumes));
    Ok(match wish {
        None => response,
        // Clients end their streams by themselves then, unless they are gone.
        Some(wish) => response.map(|body| {
            body.until(None, async move {
                tokio::time::sleep(wish).await;
                ServiceError::DeadlineExceeded
            })
        }),
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

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
        assert!(size_of_val(&call) <= 768, "{} bytes", size_of_val(&call));
    }
}
