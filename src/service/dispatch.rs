//! From the path of a request to the call it makes.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Body;
use prost::Message;

use super::{Calls, convert, message, response::ResponseBody, subscribe::ObserverBody};
use crate::{proto::SubscribeRequest, status::ServiceError, subject::SessionSubject};

/// The prefix of the paths of `sessiond.v1.SessionService`.
pub(crate) const PATH: &str = "/sessiond.v1.SessionService/";

/// `sessiond.v1.SessionService` over a subject, for any HTTP/2 server.
///
/// The subject must have been started with [`WireEncoder`](super::WireEncoder): the events of a stream are sent as they were
/// encoded there.
///
/// It is dispatched by hand, and not by tonic's generated server behind its router: that halves the cost of a call.
#[derive(Clone, Debug)]
pub struct SessionService {
    calls: Calls,
    max_message_bytes: usize,
}

impl SessionService {
    /// The service over `subject`; requests of more than `max_message_bytes` are refused.
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
        let is_grpc = |value: &http::HeaderValue| value.as_bytes().starts_with(b"application/grpc");
        if !request.headers().get(CONTENT_TYPE).is_some_and(is_grpc) {
            return ResponseBody::http(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        let answer = match request.uri().path().strip_prefix(PATH) {
            Some("HasSession") => self.unary(request, Calls::has).await,
            Some("CreateSession") => self.unary(request, Calls::create).await,
            Some("DestroySession") => self.unary(request, Calls::destroy).await,
            Some("BatchHasSessions") => self.unary(request, Calls::batch_has).await,
            Some("BatchCreateSessions") => self.unary(request, Calls::batch_create).await,
            Some("BatchDestroySessions") => self.unary(request, Calls::batch_destroy).await,
            Some("Subscribe") => self.subscribe(request).await,
            _ => Err(ServiceError::UnknownMethod(request.uri().path().to_owned())),
        };
        answer.unwrap_or_else(ResponseBody::error)
    }

    async fn unary<B, Q, R>(
        self,
        request: Request<B>,
        call: impl AsyncFnOnce(Calls, Q) -> Result<R, ServiceError>,
    ) -> Result<Response<ResponseBody>, ServiceError>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Display,
        Q: Message + Default,
        R: Message,
    {
        let request = message::read(request.into_body(), self.max_message_bytes).await?;
        let response = call(self.calls, request).await?;
        Ok(ResponseBody::message(&response))
    }

    async fn subscribe<B>(self, request: Request<B>) -> Result<Response<ResponseBody>, ServiceError>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        let request: SubscribeRequest = message::read(request.into_body(), self.max_message_bytes).await?;
        let heartbeat = convert::heartbeat(request.heartbeat)?;
        let observer = self.calls.subject.observe(convert::observe_options(request)?).await?;
        Ok(ResponseBody::observer(ObserverBody::new(observer, heartbeat)))
    }
}
