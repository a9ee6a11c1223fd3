//! Tests of the file storage on simulated disks, whose faults are injected beneath the database.

#[cfg(feature = "conformance")]
mod conformance;
mod creation;
mod downtime;
mod faults;
mod history;
mod ledger;
mod panics;
mod probe;
mod records;
mod reporting;
mod sim;
mod tampering;

use std::{path::PathBuf, sync::Arc};

use self::sim::Sim;
use super::{FileError, FileStorage};
use crate::storage::StorageOptions;

fn options(retain_events: usize) -> StorageOptions {
    StorageOptions {
        retain_events,
        max_sessions: 1 << 20,
        max_leases: 1 << 16,
        outage_grace: StorageOptions::DEFAULT_OUTAGE_GRACE,
    }
}

async fn open(disk: &Sim, retain_events: usize) -> Arc<FileStorage> {
    open_with(disk, options(retain_events)).await
}

async fn open_with(disk: &Sim, options: StorageOptions) -> Arc<FileStorage> {
    Arc::new(try_open(disk, options).await.unwrap())
}

async fn try_open(disk: &Sim, options: StorageOptions) -> Result<FileStorage, FileError> {
    FileStorage::open_on(Arc::new(disk.clone()), PathBuf::from("registry"), options).await
}
