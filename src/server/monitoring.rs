//! Shows operators the state of the server: the admin port, its probes and its metrics.

mod admin;
mod call_metrics;
mod metrics;
mod process;
mod server_stats;
mod storage_metrics;

pub(super) use self::{admin::Admin, server_stats::ServerStats};
