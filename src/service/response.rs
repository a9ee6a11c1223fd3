//! What a call is answered with.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    message,
    stats::{Begun, Refused},
    subscribe::ObserverBody,
};
use crate::{
    reason::ErrorReason,
    service::error::{self, Answer, ServiceError},
};

/// Tells a library that retries by itself how many milliseconds to wait, or not to retry if negative
/// (<https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback>).
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The body of a response.
pub struct ResponseBody(Kind);

enum Kind {
    /// One message, then the status.
    Message(Bytes),
    /// The status.
    Ok,
    /// Nothing, or nothing more.
    Empty,
    Observer(Box<ObserverBody>),
    Until(Box<Until>),
    Tonic(tonic::body::Body),
}

/// A body that may be ended from outside.
struct Until {
    body: ResponseBody,
    /// Hears what the body ends with.
    call: Option<Begun>,
    end: Pin<Box<dyn Future<Output = ServiceError> + Send>>,
}

impl ResponseBody {
    pub(super) fn message(message: &impl Message) -> Response<Self> {
        respond(Kind::Message(message::encode(message)))
    }

    pub(super) fn observer(body: ObserverBody) -> Response<Self> {
        respond(Kind::Observer(Box::new(body)))
    }

    pub(crate) fn error(error: ServiceError) -> Response<Self> {
        let Answer { status, reason, retry_after } = error::answer(error);
        let is_exhausted = status.code() == Code::ResourceExhausted;
        let mut response = status.into_http::<tonic::body::Body>().map(Self::from);
        response.extensions_mut().insert(Refused(reason));
        let headers = response.headers_mut();
        if let Some(delay) = retry_after {
            headers.insert(PUSHBACK, HeaderValue::from(delay.as_millis() as u64));
        } else if is_exhausted {
            // A service config retries by code, and some limits of this code pass.
            headers.insert(PUSHBACK, HeaderValue::from_static("-1"));
        }
        if reason == ErrorReason::CompressedRequest {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        response
    }

    /// The same body, which ends with an error as soon as there is one. `call` hears how it ends.
    pub(crate) fn until(self, call: Option<Begun>, end: impl Future<Output = ServiceError> + Send + 'static) -> Self {
        Self(Kind::Until(Box::new(Until { body: self, call, end: Box::pin(end) })))
    }

    /// Has a stream of events end at this time, or when it is synced after that. Returns whether it is such a stream.
    pub(crate) fn retire_at(&mut self, time: Option<Instant>) -> bool {
        match &mut self.0 {
            Kind::Observer(body) => {
                body.retire_at(time);
                true
            }
            Kind::Until(until) => until.body.retire_at(time),
            _ => false,
        }
    }

    /// An answer of plain HTTP, to what is no gRPC.
    pub(super) fn http(status: http::StatusCode) -> Response<Self> {
        let mut response = Response::new(Self(Kind::Empty));
        *response.status_mut() = status;
        response
    }
}

/// What a stream ends with.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Fails only for a message that no header can hold, and these are ours.
    let _ = status.add_header(&mut trailers);
    trailers
}

fn respond(kind: Kind) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody(kind));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

impl From<tonic::body::Body> for ResponseBody {
    fn from(body: tonic::body::Body) -> Self {
        Self(Kind::Tonic(body))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let kind = &mut self.0;
        match kind {
            Kind::Message(message) => {
                let message = std::mem::take(message);
                *kind = Kind::Ok;
                Poll::Ready(Some(Ok(Frame::data(message))))
            }
            Kind::Ok => {
                *kind = Kind::Empty;
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(Status::GRPC_STATUS, const { HeaderValue::from_static("0") });
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Kind::Empty => Poll::Ready(None),
            Kind::Observer(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Kind::Until(until) => match until.end.as_mut().poll(context) {
                Poll::Pending => {
                    let polled = Pin::new(&mut until.body).poll_frame(context);
                    if let Poll::Ready(Some(Ok(frame))) = &polled
                        && let (Some(trailers), Some(call)) = (frame.trailers_ref(), &mut until.call)
                    {
                        call.ends_with(trailers);
                    }
                    polled
                }
                Poll::Ready(error) => {
                    let Answer { status, reason, .. } = error::answer(error);
                    let trailers = trailers(&status);
                    if let Some(call) = &mut until.call {
                        call.is_refused(reason, &trailers);
                    }
                    *kind = Kind::Empty;
                    Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                }
            },
            Kind::Tonic(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Until(until) => until.body.is_end_stream(),
            Kind::Tonic(body) => body.is_end_stream(),
            _ => false,
        }
    }
}
