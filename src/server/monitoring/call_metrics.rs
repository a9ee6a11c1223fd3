//! What became of the calls, in the names and labels of go-grpc-middleware
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

/// The counts of one moment.
#[derive(Debug)]
pub(super) struct CallCollector(pub(crate) Vec<MethodStats>);

/// A counter.
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

/// The name of a code in Go, where these metrics come from: two of them are spelled in another way than here.
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
            encoder.encode_descriptor("grpc_server_started", "Calls that began", None, MetricType::Counter)?;
        for stats in &self.0 {
            Count(stats.started).encode(started.encode_family(&labels(stats))?)?;
        }
        let mut handled =
            encoder.encode_descriptor("grpc_server_handled", "Calls that ended, by code", None, MetricType::Counter)?;
        for stats in &self.0 {
            for (code, count) in (0..).zip(stats.handled) {
                // The usual ends are there from the start, so that their rates are; the others come when they are needed.
                if count > 0 || [Code::Ok as i32, Code::Cancelled as i32].contains(&code) {
                    let [kind, service, method] = labels(stats);
                    let labels = [kind, service, method, ("grpc_code", name(Code::from(code)))];
                    Count(count).encode(handled.encode_family(&labels)?)?;
                }
            }
        }
        let help = "How long unary calls took in the server";
        let unit = Some(&Unit::Seconds);
        let mut times = encoder.encode_descriptor("grpc_server_handling", help, unit, MetricType::Histogram)?;
        for stats in self.0.iter().filter(|stats| stats.is_unary) {
            encode_times(times.encode_family(&labels(stats))?, &stats.times)?;
        }
        Ok(())
    }
}
