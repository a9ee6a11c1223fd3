//! Metrics of calls, with the names and labels of go-grpc-middleware
//! (<https://github.com/grpc-ecosystem/go-grpc-middleware/tree/main/providers/prometheus>).

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};
use tonic::Code;

use crate::{service::MethodStats, subject::Times};

/// Collects the call metrics from a snapshot of the counts.
#[derive(Debug)]
pub(super) struct CallCollector(pub(crate) Vec<MethodStats>);

/// A counter's value.
pub(super) struct Count(pub(crate) u64);

impl EncodeMetric for Count {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, _, u64>(&self.0, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// Writes a histogram.
pub(super) fn encode_times(mut encoder: MetricEncoder<'_>, times: &Times) -> fmt::Result {
    encoder.encode_histogram::<NoLabelSet>(times.seconds, times.count(), &times.within, None)
}

fn labels(stats: &MethodStats) -> [(&'static str, String); 3] {
    let kind = if stats.is_unary { "unary" } else { "server_stream" };
    [
        ("grpc_type", kind.to_owned()),
        ("grpc_service", stats.service.to_owned()),
        ("grpc_method", stats.method.to_owned()),
    ]
}

/// Returns the code's name in Go, which these metrics use. Two codes have different names in Rust.
fn name(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}

impl Collector for CallCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut started =
            encoder.encode_descriptor("grpc_server_started", "Calls that have started", None, MetricType::Counter)?;
        for stats in &self.0 {
            Count(stats.started).encode(started.encode_family(&labels(stats))?)?;
        }
        let mut handled = encoder.encode_descriptor(
            "grpc_server_handled",
            "Calls that have ended, by code",
            None,
            MetricType::Counter,
        )?;
        for stats in &self.0 {
            for (code, count) in (0..).zip(stats.handled) {
                // OK and Cancelled are exported from the start, so that their rates exist. Other codes are exported
                // once they have occurred.
                if count > 0 || [Code::Ok as i32, Code::Cancelled as i32].contains(&code) {
                    let [kind, service, method] = labels(stats);
                    let labels = [kind, service, method, ("grpc_code", name(Code::from(code)))];
                    Count(count).encode(handled.encode_family(&labels)?)?;
                }
            }
        }
        let help = "Time that unary calls took in the server";
        let unit = Some(&Unit::Seconds);
        let mut times = encoder.encode_descriptor("grpc_server_handling", help, unit, MetricType::Histogram)?;
        for stats in self.0.iter().filter(|stats| stats.is_unary) {
            encode_times(times.encode_family(&labels(stats))?, &stats.times)?;
        }
        Ok(())
    }
}
