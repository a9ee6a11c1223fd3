//! A storage whose log and snapshots a test can hold back.

use std::{convert::Infallible, future::pending};

use async_trait::async_trait;
use sessiond::storage::{BucketRun, Changes, LogError, LogPoint, RegistryId, SessionStorage, StorageError};
use tokio::sync::watch;

use crate::twisted::Twist;

/// A storage whose log and snapshots the test can hold back for one replica.
#[derive(Debug)]
pub(crate) struct Paced {
    expires_leases: bool,
    follows: watch::Sender<bool>,
    reads: watch::Sender<bool>,
}

impl Paced {
    pub(crate) fn new(expires_leases: bool) -> Self {
        Self { expires_leases, follows: watch::Sender::new(true), reads: watch::Sender::new(true) }
    }

    /// Sets whether the log may be followed. A replica that may not falls behind.
    pub(crate) fn let_follow(&self, follows: bool) {
        self.follows.send_replace(follows);
    }

    pub(crate) fn follows(&self) -> bool {
        *self.follows.borrow()
    }

    /// Sets whether snapshots may be read.
    pub(crate) fn let_read(&self, reads: bool) {
        self.reads.send_replace(reads);
    }
}

/// Waits until a gate is in this state. The gate lives as long as the storage.
async fn open(gate: &watch::Sender<bool>, is_open: bool) {
    gate.subscribe().wait_for(|now| *now == is_open).await.unwrap();
}

#[async_trait]
impl Twist for Paced {
    async fn expire_leases(&self, truth: &dyn SessionStorage) -> Result<Infallible, StorageError> {
        if self.expires_leases { truth.expire_leases().await } else { pending().await }
    }

    async fn changes_after(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        loop {
            open(&self.follows, true).await;
            tokio::select! {
                biased;
                () = open(&self.follows, false) => {}
                changes = truth.changes_after(registry_id, partition, after, limit) => return changes,
            }
        }
    }

    /// Reads as little at a time as a storage may, so that snapshots of few sessions take many steps.
    async fn read_buckets(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        _: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        open(&self.reads, true).await;
        truth.read_buckets(registry_id, known, buckets, 1, with_leases).await
    }
}
