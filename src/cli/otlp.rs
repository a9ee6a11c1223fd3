//! Exports spans of calls to an OpenTelemetry collector over OTLP.

mod span;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Args;
use http::{Uri, uri::Scheme};
use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter},
};
use sessiond::service::CallTracer;
use tokio::runtime::{self, Runtime};
use tonic::transport::ClientTlsConfig;

use self::span::Tracer;
use super::exit::{CliError, Exit};

#[derive(Debug, Args)]
pub(crate) struct OtlpArgs {
    /// Where spans of calls are sent: an OpenTelemetry collector that accepts OTLP over gRPC, as http://HOST:4317 or
    /// https://HOST:4317 [default: none].
    ///
    /// Further settings are OpenTelemetry's own variables: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
    /// OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_TIMEOUT, and those that begin with OTEL_BSP_.
    #[arg(long, env = "SESSIOND_OTLP_ENDPOINT", value_name = "URL", value_parser = endpoint,
        hide_env_values = true)]
    otlp_endpoint: Option<Uri>,

    /// The share of calls that is sampled, from 0 to 1.
    ///
    /// If the caller traces, the call is sampled when the caller's span is, whatever the share.
    #[arg(long, env = "SESSIOND_TRACE_SAMPLE_RATIO", value_name = "RATIO", default_value = "0.01",
        value_parser = ratio)]
    trace_sample_ratio: f64,
}

fn endpoint(text: &str) -> Result<Uri, String> {
    if text.contains('@') {
        return Err("an endpoint cannot contain a login: put it into OTEL_EXPORTER_OTLP_HEADERS".to_owned());
    }
    let is_usable = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    let usable = text.parse().ok().filter(is_usable);
    usable.ok_or_else(|| "not the address of a collector: use http://HOST:4317 or https://HOST:4317".to_owned())
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "not a share: use a number from 0 to 1, such as 0.01 for one call in a hundred".to_owned())
}

/// Sends spans to a collector from its own threads.
///
/// Its queue is bounded. If the queue is full, further spans are dropped and no call waits.
#[derive(Debug)]
pub(crate) struct Otlp {
    provider: SdkTracerProvider,
    sample_ratio: f64,
    /// `Some` until this is dropped.
    runtime: Option<Runtime>,
}

impl Otlp {
    /// Starts the export if an endpoint is set. The collector need not be running yet.
    ///
    /// # Errors
    ///
    /// Returns an error if the endpoint or one of OpenTelemetry's environment variables is invalid, or if no thread can
    /// be started.
    pub(crate) fn start(args: &OtlpArgs) -> Result<Option<Self>, CliError> {
        let Some(endpoint) = &args.otlp_endpoint else { return Ok(None) };
        // Keep this work off the threads that serve connections.
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).thread_name("otlp").enable_all().build();
        let runtime = runtime.map_err(|error| {
            let what = format!("cannot start the export of spans: {error}: check the resource limits of this process");
            CliError::new(Exit::No, what)
        })?;
        // The connection to the collector spawns its tasks on this runtime.
        let entered = runtime.enter();
        let mut exporter = OtlpExporter::builder().with_tonic().with_endpoint(endpoint.to_string());
        if endpoint.scheme() == Some(&Scheme::HTTPS) {
            exporter = exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
        }
        let exporter = exporter.build().map_err(|error| {
            CliError::new(Exit::Usage, format!("--otlp-endpoint {endpoint} cannot be used: {error}"))
        })?;
        let exporter = Exporter { exporter, endpoint: endpoint.to_string(), is_failing: AtomicBool::new(false) };
        let provider = SdkTracerProvider::builder()
            // The tracer below decides what is sampled, before a span exists.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource())
            .with_batch_exporter(exporter)
            .build();
        drop(entered);
        Ok(Some(Self { provider, sample_ratio: args.trace_sample_ratio, runtime: Some(runtime) }))
    }

    /// Returns the tracer that makes the spans.
    pub(crate) fn tracer(&self) -> Arc<dyn CallTracer> {
        Arc::new(Tracer { tracer: self.provider.tracer("sessiond"), sample_ratio: self.sample_ratio })
    }

    /// Exports the spans that have ended, and stops. Takes no longer than `within`.
    pub(crate) async fn flush(self, within: Duration) {
        let provider = self.provider.clone();
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(within)).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "the last spans may not have been exported");
        }
    }
}

impl Drop for Otlp {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping a runtime waits for its tasks, which panics inside another runtime.
            runtime.shutdown_background();
        }
    }
}

/// Returns the resource that the spans belong to: what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, with the
/// name `sessiond` by default.
fn resource() -> Resource {
    let name = KeyValue::new("service.name", "sessiond");
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let found = Resource::builder().with_attribute(version).build();
    let is_named = found.get(&name.key).is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    if is_named {
        return found;
    }
    let attributes = found.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    Resource::builder_empty().with_attributes(attributes).with_attribute(name).build()
}

/// An exporter that logs once that spans are lost, and once that they are exported again.
#[derive(Debug)]
struct Exporter {
    exporter: OtlpExporter,
    endpoint: String,
    is_failing: AtomicBool,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !was_failing => {
                tracing::warn!(endpoint = self.endpoint, %error, "spans are lost: the collector does not accept them");
            }
            Ok(()) if was_failing => tracing::info!(endpoint = self.endpoint, "spans are exported again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
