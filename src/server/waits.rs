//! How long the storage is waited for and how often it fails, for Prometheus.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::MetricType,
    registry::Unit,
};

use super::calls::{Count, encode_times};
use crate::subject::StorageWaits;

/// The counts of one moment.
#[derive(Debug)]
pub(super) struct WaitCollector(pub(super) Vec<StorageWaits>);

impl Collector for WaitCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "How long the storage was waited for, where it did not answer at once";
        let mut times = encoder.encode_descriptor("storage_wait", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for waits in &self.0 {
            encode_times(times.encode_family(&[("operation", waits.operation.name())])?, &waits.times)?;
        }
        let help = "Operations that failed because the storage was out of reach, refused changes or was broken";
        let mut errors = encoder.encode_descriptor("storage_errors", help, None, MetricType::Counter)?;
        for waits in &self.0 {
            for (error, count) in
                [("unavailable", waits.unavailable), ("refused", waits.refused), ("broken", waits.broken)]
            {
                let labels = [("operation", waits.operation.name()), ("error", error)];
                Count(count).encode(errors.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
