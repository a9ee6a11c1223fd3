//! How long the storage is waited for and how often it fails, for Prometheus.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::MetricType,
    registry::Unit,
};

use super::call_metrics::{Count, encode_times};
use crate::subject::OperationStats;

/// The counts of one moment.
#[derive(Debug)]
pub(super) struct StorageCollector(pub(crate) Vec<OperationStats>);

impl Collector for StorageCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "How long the storage was waited for, where it did not answer at once";
        let mut times = encoder.encode_descriptor("storage_wait", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for stats in &self.0 {
            encode_times(times.encode_family(&[("operation", stats.operation.name())])?, &stats.times)?;
        }
        let help = "Operations that failed because the storage was out of reach, refused changes or was broken";
        let mut errors = encoder.encode_descriptor("storage_errors", help, None, MetricType::Counter)?;
        for stats in &self.0 {
            for (error, count) in
                [("unavailable", stats.unavailable), ("refused", stats.refused), ("broken", stats.broken)]
            {
                let labels = [("operation", stats.operation.name()), ("error", error)];
                Count(count).encode(errors.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
