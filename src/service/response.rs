//! The responses to calls.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body, Frame};
use tokio::time::Instant;
use tonic::Status;

use super::{call_stats::Begun, subscribe::ObserverBody};
use crate::service::error::{self, Answer, Refused, ServiceError};

/// The body of a response: one message, or a stream of messages, and then the gRPC status.
pub struct ResponseBody(Kind);

enum Kind {
    Observer(Box<ObserverBody>),
    Until(Box<Until>),
    Tonic(tonic::body::Body),
}

/// A body that ends early when a future completes.
struct Until {
    body: ResponseBody,
    /// Records the code that the body ends with.
    call: Option<Begun>,
    end: Pin<Box<dyn Future<Output = ServiceError> + Send>>,
}

impl ResponseBody {
    /// Converts the response of a generated service.
    pub(super) fn of_generated(mut response: Response<tonic::body::Body>) -> Response<Self> {
        if let Some(observer) = ObserverBody::carried_by(response.extensions_mut()) {
            return response.map(|_| Self(Kind::Observer(observer)));
        }
        // sessiond's own statuses have a reason. One without a reason is tonic's, for a request that it cannot decode.
        if let Some(status) = response.extensions().get::<Status>().filter(|status| Refused::of(status).is_none()) {
            return Self::error(ServiceError::MalformedRequest(status.message().to_owned()));
        }
        response.map(Self::from)
    }

    pub(crate) fn error(error: ServiceError) -> Response<Self> {
        Status::from(error).into_http::<tonic::body::Body>().map(Self::from)
    }

    /// Returns this body, but ends it with the error that `end` returns. `call` records how the body ends.
    pub(crate) fn until(self, call: Option<Begun>, end: impl Future<Output = ServiceError> + Send + 'static) -> Self {
        Self(Kind::Until(Box::new(Until { body: self, call, end: Box::pin(end) })))
    }

    /// Sets when an event stream ends: at this time, or later once it is synced. Returns whether this is an event
    /// stream.
    pub(crate) fn retire_at(&mut self, time: Option<Instant>) -> bool {
        match &mut self.0 {
            Kind::Observer(body) => {
                body.retire_at(time);
                true
            }
            Kind::Until(until) => until.body.retire_at(time),
            Kind::Tonic(_) => false,
        }
    }

    /// Returns a plain HTTP response, for a request that is not gRPC.
    pub(super) fn http(status: http::StatusCode) -> Response<Self> {
        let mut response = Response::new(Self::from(tonic::body::Body::empty()));
        *response.status_mut() = status;
        response
    }
}

/// Returns the trailers that end a stream with `status`.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Fails only for a message that no header can hold, and these are ours.
    let _ = status.add_header(&mut trailers);
    trailers
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
                    *kind = Kind::Tonic(tonic::body::Body::empty());
                    Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                }
            },
            Kind::Tonic(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Until(until) => until.body.is_end_stream(),
            Kind::Tonic(body) => body.is_end_stream(),
            Kind::Observer(_) => false,
        }
    }
}
