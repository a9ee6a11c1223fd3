//! The Redis storage, tested on real Redis servers.

mod balancer;
mod clock;
pub(crate) mod cluster;
mod cluster_kills;
mod conformance;
mod ends;
mod evictions;
mod expiry;
mod failing;
mod failover;
mod failovers;
mod faults;
mod fleet;
mod full;
mod full_bucket;
mod gap;
mod gate;
mod handover;
mod histories;
mod late_calls;
mod layouts;
mod lease_end;
mod linear;
mod linger;
mod listing;
mod lost_keys;
mod name;
mod name_failover;
mod order;
mod pace;
mod permissions;
mod recreated;
mod refusals;
mod replica;
mod rolling;
mod sentinel;
pub(crate) mod sentinels;
pub(crate) mod server;
mod slots;
mod stalls;
mod starts;
mod tls;
mod writable;

use std::{error::Error, sync::Arc};

use sessiond::storage::{SessionStorage, StorageOptions, StorageUrl};
use tokio::time::Instant;

use self::replica::PATIENCE;

/// Limits that no test reaches by accident.
pub(crate) const ROOMY: StorageOptions =
    StorageOptions::DEFAULT.retain_events(1 << 18).max_sessions(1 << 20).max_leases(1 << 16);

/// Opens the storage, as another replica would. Retries errors that may pass.
pub(crate) async fn open(url: &str, options: StorageOptions) -> Arc<dyn SessionStorage> {
    let url: StorageUrl = url.parse().unwrap_or_else(|error| panic!("{error}"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match url.open(options).await {
            Ok(storage) => return storage,
            // On a busy machine, Redis may answer too late.
            Err(error) if error.may_pass() && Instant::now() < deadline => {}
            Err(error) => panic!("{error}: {:?}", error.source()),
        }
    }
}
