//! Resends calls that were never sent.

use std::{
    error::Error,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use http_body_util::{BodyExt as _, Full};
use tonic::{
    body::Body,
    codegen::{Service, http},
    transport::Channel,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// A channel that makes a call once more if its connection closed before the call was sent.
///
/// A server closes a connection that has become too old, and all of them when it drains. A call made at that moment may
/// still be queued for the connection. hyper then returns the call unsent, and this channel sends it over a new
/// connection.
#[derive(Clone, Debug)]
pub(super) struct Resend(pub(super) Channel);

impl Service<http::Request<Body>> for Resend {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context).map_err(BoxError::from)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let spare = self.0.clone();
        // Use the channel that `poll_ready` has been called on.
        let mut channel = mem::replace(&mut self.0, spare);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            // Every request is a single message and already in memory.
            let message = body.collect().await?.to_bytes();
            let request = || http::Request::from_parts(head.clone(), Body::new(Full::new(message.clone())));
            match channel.call(request()).await {
                Err(error) if was_not_sent(&error) => {
                    std::future::poll_fn(|context| channel.poll_ready(context)).await?;
                    Ok(channel.call(request()).await?)
                }
                answer => Ok(answer?),
            }
        })
    }
}

fn was_not_sent(error: &(dyn Error + 'static)) -> bool {
    let is_canceled = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
    is_canceled || error.source().is_some_and(was_not_sent)
}
