//! Faults of the disk, injected behind the database's own interface.

#[cfg(feature = "conformance")]
mod conformance;
mod faults;
mod history;
mod ledger;
mod probe;
mod sim;

use std::{path::PathBuf, sync::Arc};

use self::sim::Sim;
use super::FileStorage;
use crate::storage::StorageOptions;

async fn open(disk: &Sim, retain_events: usize) -> Arc<FileStorage> {
    let options = StorageOptions {
        retain_events,
        max_sessions: 1 << 20,
        max_leases: 1 << 16,
        outage_grace: StorageOptions::DEFAULT_OUTAGE_GRACE,
    };
    Arc::new(FileStorage::open_on(Arc::new(disk.clone()), PathBuf::from("registry"), options).await.unwrap())
}
