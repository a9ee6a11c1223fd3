//! What operators see of the server: the admin port, its probes and its metrics.

mod admin;
mod call_metrics;
mod metrics;
mod process;
mod stats;
mod storage_metrics;

pub(super) use self::{admin::Admin, stats::ServerStats};
