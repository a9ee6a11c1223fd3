//! Who is told of calls: a tracer, and the log where it asks for them.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use http::HeaderMap;
use tonic::Code;
use tracing::Level;

/// What the log calls the spans of calls, in the directives of its filter: `sessiond::call=debug` has a line for each.
const TARGET: &str = "sessiond::call";

/// Makes spans of calls, for whoever collects them. Used by any number of threads at once, on the path of each call: it must
/// not block.
pub trait CallTracer: fmt::Debug + Send + Sync + 'static {
    /// A call begins. Gives nothing where the call is not sampled, which should cost as little as can be.
    fn begin(&self, call: &TracedCall<'_>) -> Option<Box<dyn CallSpan>>;
}

/// The span of one call.
pub trait CallSpan: fmt::Debug + Send + Sync {
    /// The trace that it is of, as 32 hexadecimal digits.
    fn trace_id(&self) -> String;

    /// The call has ended: it was answered, or its stream is over, or its client has gone ([`Code::Cancelled`]).
    fn end(self: Box<Self>, code: Code);
}

/// A call that begins.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TracedCall<'a> {
    /// The full name of its method, as in `sessiond.v1.SessionService/HasSession`: one of those that there are.
    pub method: &'static str,
    /// Who calls.
    pub peer: IpAddr,
    /// Its headers, `traceparent` and `tracestate` among them where the caller traces.
    pub headers: &'a HeaderMap,
}

/// A call that somebody wants to hear of.
#[derive(Debug)]
pub(super) struct Traced {
    span: Option<Box<dyn CallSpan>>,
    log: tracing::Span,
}

impl Traced {
    /// Begins a span where anybody wants one. Where there is no tracer and the log does not ask for it, a call pays for two
    /// looks at what does not change.
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

    /// The span in which what is logged belongs to the call.
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

/// The trace that a caller says its call is of, in the header `traceparent` of W3C Trace Context: a version of two digits, the
/// trace's 32, and more.
fn trace_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("traceparent")?.to_str().ok()?.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}
