//! Encodes the metrics for Prometheus, in the OpenMetrics text format.

use std::time::Duration;

use futures_util::future::join;
use prometheus_client::{
    encoding::text,
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        info::Info,
    },
    registry::{Registry, Unit},
};
use tokio::time::timeout;

use super::{
    call_metrics::CallCollector, process::Process, server_stats::ServerStats, storage_metrics::StorageCollector,
};
use crate::{
    storage::RefusalCause,
    subject::{ResetReason, SessionSubject},
};

/// How long a scrape waits for figures from the storage. The other metrics matter most while the storage hangs.
const STORAGE_TIMEOUT: Duration = Duration::from_millis(250);

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Encodes all metrics.
///
/// The counts live where they arise. Each scrape builds a new registry from them, with a fixed number of series. While
/// the storage is still being opened, there is no subject, and the metrics of the registry are missing.
pub(super) async fn encode(subject: Option<&SessionSubject>, stats: &ServerStats) -> String {
    let mut registry = Registry::default();
    // This lists a folder with an entry for each connection, so it does not run on a thread that serves connections.
    let process = tokio::task::spawn_blocking(Process::read).await.unwrap_or_default();
    registry.register_with_unit(
        "process_resident_memory",
        "Resident memory",
        Unit::Bytes,
        gauge(process.resident_bytes),
    );
    registry.register_with_unit("process_virtual_memory", "Virtual memory", Unit::Bytes, gauge(process.virtual_bytes));
    registry.register("process_open_fds", "Open file descriptors", gauge(process.open_fds));
    registry.register("process_max_fds", "Maximum number of open file descriptors", gauge(process.max_fds));
    let cpu = ConstCounter::new(process.cpu_seconds);
    registry.register_with_unit("process_cpu", "Processor time, user and system", Unit::Seconds, cpu);
    let start = ConstGauge::new(process.start_seconds);
    registry.register_with_unit("process_start_time", "Start time of the process, in Unix time", Unit::Seconds, start);
    registry.register_collector(Box::new(CallCollector(stats.calls.methods())));

    let registry_of_ours = registry.sub_registry_with_prefix("sessiond");
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry_of_ours.register("build", "Version of this server", build);
    register_storage(registry_of_ours, subject);
    if let Some(subject) = subject {
        register(registry_of_ours, subject).await;
    }
    registry_of_ours.register("connections", "Client connections", gauge(stats.connections()));
    registry_of_ours.register(
        "connections_full",
        "Connections that have reached --max-streams",
        gauge(stats.full_connections()),
    );
    registry_of_ours.register(
        "connection_streams_used_up",
        "Times that a connection reached --max-streams",
        ConstCounter::new(stats.times_streams_used_up()),
    );
    let refused = Family::<[(&str, &str); 1], Counter>::default();
    for (reason, count) in stats.calls.refused() {
        refused.get_or_create(&[("reason", reason)]).inc_by(count);
    }
    registry_of_ours.register("refused", "Calls answered with an error, by reason", refused);
    registry_of_ours.register("sessions_limit", "Maximum number of sessions", gauge(stats.max_sessions));

    let mut out = String::new();
    if let Err(error) = text::encode(&mut out, &registry) {
        tracing::error!(%error, "cannot encode the metrics");
    }
    out
}

/// Registers whether the storage can be read and changed. Without a subject, the storage is not open yet.
fn register_storage(registry: &mut Registry, subject: Option<&SessionSubject>) {
    let is_up = subject.is_some_and(SessionSubject::is_following);
    registry.register("storage_up", "1 while the storage is reachable, else 0", gauge(u8::from(is_up)));
    let refusal = match subject {
        Some(subject) => subject.writability().refusal().map(|refusal| refusal.cause),
        None => Some(RefusalCause::Unreachable),
    };
    let writable = Family::<[(&str, &str); 1], Gauge>::default();
    for cause in RefusalCause::ALL {
        writable.get_or_create(&[("cause", cause.name())]).set(i64::from(refusal != Some(cause)));
    }
    registry.register("storage_writable", "0 for the cause for which the storage refuses changes, else 1", writable);
}

/// Registers the metrics of the subject and its storage.
async fn register(registry: &mut Registry, subject: &SessionSubject) {
    registry.register_collector(Box::new(StorageCollector(subject.storage_stats())));
    // If the storage is unreachable or hangs, these two metrics are absent.
    let sessions = timeout(STORAGE_TIMEOUT, subject.session_count());
    let leases = timeout(STORAGE_TIMEOUT, subject.lease_count());
    let (sessions, leases) = join(sessions, leases).await;
    if let Ok(Ok(count)) = sessions {
        registry.register("sessions", "Existing sessions", gauge(count));
    }
    if let Ok(Ok(count)) = leases {
        registry.register("leases", "Leases that have not ended", gauge(count));
    }
    let stats = subject.stats();
    registry.register("observers", "Subscribed observers", gauge(stats.observers));
    registry.register("observer_filter_ids", "Ids in the filters of all observers", gauge(stats.filter_ids));
    registry.register("observers_behind", "Observers that have unread events", gauge(stats.observers_behind));
    registry.register(
        "observer_lag_max_events",
        "Number of events that the slowest observer is behind",
        gauge(stats.max_lag_events),
    );
    let changes = Family::<[(&str, &str); 2], Counter>::default();
    for (kind, reason, count) in [
        ("created", "none", stats.changes.created),
        ("destroyed", "requested", stats.changes.destroyed_by_request),
        ("destroyed", "lease_expired", stats.changes.lease_expired),
        ("destroyed", "lease_revoked", stats.changes.lease_revoked),
        ("destroyed", "released", stats.changes.released),
        ("moved", "none", stats.changes.moved),
    ] {
        changes.get_or_create(&[("type", kind), ("reason", reason)]).inc_by(count);
    }
    registry.register("changes", "Sessions created, moved and destroyed, as seen by this replica", changes);
    registry.register(
        "log_retained_events",
        "Events retained for observers to resume from",
        gauge(stats.retained_events),
    );
    registry.register_with_unit(
        "log_retained",
        "Memory of the retained events",
        Unit::Bytes,
        gauge(stats.retained_bytes),
    );
    registry.register(
        "storage_evicts_keys",
        "1 if the store may evict sessions when its memory is full, else 0",
        gauge(u8::from(subject.evicts_keys() == Some(true))),
    );
    registry.register("replicas", "Replicas that share the registry", gauge(subject.replicas()));
    let resets = Family::<[(&str, &str); 1], Counter>::default();
    for (reason, count) in [
        (ResetReason::CursorExpired, stats.resets.cursor_expired),
        (ResetReason::CursorForeign, stats.resets.cursor_foreign),
        (ResetReason::Lagged, stats.resets.lagged),
        (ResetReason::StorageRestarted, stats.resets.storage_restarted),
    ] {
        resets.get_or_create(&[("reason", reason.name())]).inc_by(count);
    }
    registry.register("observer_resets", "Observers that had to start again with a snapshot, by reason", resets);
    let runs = Family::<[(&str, &str); 1], Counter>::default();
    for (source, count) in [("read", stats.snapshot_runs.read), ("shared", stats.snapshot_runs.shared)] {
        runs.get_or_create(&[("source", source)]).inc_by(count);
    }
    registry.register(
        "snapshot_runs",
        "Runs of buckets that snapshots read from the storage, or shared with another observer",
        runs,
    );
}

fn gauge(value: impl TryInto<i64>) -> ConstGauge<i64> {
    ConstGauge::new(value.try_into().unwrap_or(i64::MAX))
}
