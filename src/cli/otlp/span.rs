//! The span of a call, following OpenTelemetry's conventions for RPC servers.

use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, Span},
};
use sessiond::service::{CallSpan, CallTracer, TracedCall};
use tonic::Code;

/// Makes spans for calls whose caller's span is sampled, and for a share of the calls whose caller does not trace.
#[derive(Debug)]
pub(super) struct Tracer {
    pub(super) tracer: SdkTracer,
    /// The share of the calls without a parent span, from 0 to 1.
    pub(super) sample_ratio: f64,
}

impl CallTracer for Tracer {
    fn begin(&self, call: &TracedCall<'_>) -> Option<Box<dyn CallSpan>> {
        let parent = parent(call.headers);
        let is_sampled = match &parent {
            Some(parent) => parent.is_sampled(),
            None => fastrand::f64() < self.sample_ratio,
        };
        if !is_sampled {
            return None;
        }
        let context = parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        let (service, method) = call.method.split_once('/').unwrap_or_default();
        let span = SpanBuilder::from_name(call.method).with_kind(SpanKind::Server).with_attributes([
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", service),
            KeyValue::new("rpc.method", method),
            KeyValue::new("network.peer.address", call.peer.to_string()),
        ]);
        Some(Box::new(OtlpSpan(self.tracer.build_with_context(span, &context))))
    }
}

/// Returns the caller's span, if the call has valid W3C Trace Context headers.
fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    if !headers.contains_key("traceparent") {
        return None;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[derive(Debug)]
struct OtlpSpan(Span);

impl CallSpan for OtlpSpan {
    fn trace_id(&self) -> String {
        self.0.span_context().trace_id().to_string()
    }

    fn end(mut self: Box<Self>, code: Code) {
        self.0.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(code as i32)));
        // The conventions count the other codes as errors of the caller, not of the server.
        if let Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss = code
        {
            self.0.set_status(Status::error(""));
        }
        self.0.end();
    }
}
