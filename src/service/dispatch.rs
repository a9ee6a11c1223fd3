//! From the path of a request to the call it makes.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Body;
use prost::Message;

use super::{Calls, convert, message, response::ResponseBody, subscribe::ObserverBody};
use crate::{proto::SubscribeRequest, status::ServiceError, subject::SessionSubject};

/// The prefix of the paths of all services of the package `sessiond.v1`.
pub(crate) const PATH: &str = "/sessiond.v1.";

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
    max_message_bytes: usize,
}

impl Service {
    /// The services over `subject`; requests of more than `max_message_bytes` are refused.
    #[must_use]
    pub fn new(subject: Arc<SessionSubject>, max_message_bytes: usize) -> Self {
        Self { calls: Calls { subject }, max_message_bytes }
    }

    /// Answers one request. Dropping the future drops the call: each session is changed or is not.
    pub async fn call<B>(self, request: Request<B>) -> Response<ResponseBody>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        if !is_grpc(&request) {
            return ResponseBody::http(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        let Self { calls, max_message_bytes: limit } = self;
        let answer = match request.uri().path().strip_prefix(PATH) {
            Some("SessionService/HasSession") => unary(calls, request, limit, Calls::has).await,
            Some("SessionService/CreateSession") => unary(calls, request, limit, Calls::create).await,
            Some("SessionService/DestroySession") => unary(calls, request, limit, Calls::destroy).await,
            Some("SessionService/BatchHasSessions") => unary(calls, request, limit, Calls::batch_has).await,
            Some("SessionService/BatchCreateSessions") => unary(calls, request, limit, Calls::batch_create).await,
            Some("SessionService/BatchDestroySessions") => unary(calls, request, limit, Calls::batch_destroy).await,
            // In a box, as is all that is rare and large: a call's future is as large as the largest of these, and is moved
            // several times on its way into a task.
            Some("SessionService/Subscribe") => Box::pin(subscribe(calls, request, limit)).await,
            Some("LeaseService/GrantLease") => unary(calls, request, limit, Calls::grant_lease).await,
            Some("LeaseService/KeepLeaseAlive") => unary(calls, request, limit, Calls::keep_lease_alive).await,
            Some("LeaseService/RevokeLease") => unary(calls, request, limit, Calls::revoke_lease).await,
            _ => Err(ServiceError::UnknownMethod(request.uri().path().to_owned())),
        };
        answer.unwrap_or_else(ResponseBody::error)
    }
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    // Not application/grpc-web, which is framed in another way.
    let rest = content_type.strip_prefix(b"application/grpc");
    request.method() == Method::POST && matches!(rest, Some([] | [b'+' | b';', ..]))
}

/// Answers a call of one message with one message.
async fn unary<B, Q, R>(
    calls: Calls,
    request: Request<B>,
    limit: usize,
    call: impl AsyncFnOnce(Calls, Q) -> Result<R, ServiceError>,
) -> Result<Response<ResponseBody>, ServiceError>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
    Q: Message + Default,
    R: Message,
{
    let request = message::read(request.into_body(), limit).await?;
    let response = call(calls, request).await?;
    Ok(ResponseBody::message(&response))
}

async fn subscribe<B>(calls: Calls, request: Request<B>, limit: usize) -> Result<Response<ResponseBody>, ServiceError>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let request: SubscribeRequest = message::read(request.into_body(), limit).await?;
    let heartbeat = convert::heartbeat(request.heartbeat)?;
    let observer = calls.subject.observe(convert::observe_options(request)?).await?;
    Ok(ResponseBody::observer(ObserverBody::new(observer, heartbeat)))
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
        let call = Service::new(Arc::new(subject), 1024).call(Request::new(Full::<Bytes>::default()));
        println!("{} bytes", size_of_val(&call));
        assert!(size_of_val(&call) <= 1536, "{} bytes", size_of_val(&call));
    }
}
