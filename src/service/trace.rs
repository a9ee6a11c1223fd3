//! Traces calls, with a tracer and in the log.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use http::HeaderMap;
use tonic::Code;
use tracing::Level;

/// The log target of calls. The filter directive `sessiond::call=debug` logs a line for each call.
const TARGET: &str = "sessiond::call";

/// Creates the trace spans of calls. It is called at the start of each call, from many threads, and must not block.
pub trait CallTracer: fmt::Debug + Send + Sync + 'static {
    /// Starts the span of a call. Returns `None` if the call is not sampled. That case should be as cheap as possible.
    fn begin(&self, call: &TracedCall<'_>) -> Option<Box<dyn CallSpan>>;
}

/// The span of one call.
pub trait CallSpan: fmt::Debug + Send + Sync {
    /// Returns the id of the span's trace, as 32 hexadecimal digits.
    fn trace_id(&self) -> String;

    /// Ends the span: the call was answered, its stream ended, or its client went away ([`Code::Cancelled`]).
    fn end(self: Box<Self>, code: Code);
}

/// A call that starts.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TracedCall<'a> {
    /// The full name of the method, for example `sessiond.v1.SessionService/HasSession`. Unknown methods are not
    /// traced.
    pub method: &'static str,
    /// The client's address.
    pub peer: IpAddr,
    /// The headers of the call, including `traceparent` and `tracestate` if the caller traces.
    pub headers: &'a HeaderMap,
}

/// A call that is traced by a tracer, in the log, or both.
#[derive(Debug)]
pub(super) struct Traced {
    span: Option<Box<dyn CallSpan>>,
    log: tracing::Span,
}

impl Traced {
    /// Starts a span if there is a tracer or the log shows calls. Otherwise this costs a call only two checks.
    #[inline]
    pub(super) fn begin(tracer: Option<&Arc<dyn CallTracer>>, call: TracedCall<'_>) -> Option<Box<Self>> {
        if tracer.is_none() && !tracing::enabled!(target: TARGET, Level::DEBUG) {
            return None;
        }
        Self::begin_wanted(tracer, call)
    }

    fn begin_wanted(tracer: Option<&Arc<dyn CallTracer>>, call: TracedCall<'_>) -> Option<Box<Self>> {
        let span = tracer.and_then(|tracer| tracer.begin(&call));
        let log = if tracing::enabled!(target: TARGET, Level::DEBUG) {
            let trace_id = span.as_ref().map(|span| span.trace_id()).or_else(|| trace_id(call.headers));
            tracing::debug_span!(target: TARGET, "call", method = call.method, peer = %call.peer, trace_id)
        } else {
            tracing::Span::none()
        };
        (span.is_some() || !log.is_disabled()).then(|| Box::new(Self { span, log }))
    }

    /// Returns the log span of the call.
    pub(super) fn log(&self) -> &tracing::Span {
        &self.log
    }

    pub(super) fn end(self, code: Code, took: Duration) {
        tracing::debug!(target: TARGET, parent: &self.log, ?code, ?took, "ended");
        if let Some(span) = self.span {
            span.end(code);
        }
    }
}

/// Returns the trace id from the caller's `traceparent` header (W3C Trace Context), which has a two-digit version, then
/// the 32 digits of the trace id, then more.
fn trace_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("traceparent")?.to_str().ok()?.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}
