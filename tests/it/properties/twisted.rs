//! Storages that delegate to another one and change some calls.

use std::{convert::Infallible, fmt, future::pending, sync::Arc, time::Duration};

use async_trait::async_trait;
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{
        Answers, BucketRun, Changes, CreateOptions, Creation, Layout, LeaseBuckets, LeasePage, LeaseQuery, LogError,
        LogExtent, LogPoint, Lookup, Mark, Position, RegistryId, SessionStorage, StorageError,
    },
};
use tokio::sync::watch;

/// The calls that differ from the true storage. By default each delegates to it.
#[async_trait]
pub(crate) trait Twist: fmt::Debug + Send + Sync + 'static {
    fn expires_leases(&self) -> bool {
        true
    }

    async fn create_with(
        &self,
        truth: &dyn SessionStorage,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        truth.create_with(sessions, options).await
    }

    async fn destroy_with(
        &self,
        truth: &dyn SessionStorage,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, StorageError> {
        truth.destroy_with(sessions, lease).await
    }

    async fn lookup(&self, truth: &dyn SessionStorage, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError> {
        truth.lookup(sessions).await
    }

    async fn log(&self, truth: &dyn SessionStorage) -> Result<LogExtent, StorageError> {
        truth.log().await
    }

    async fn changes_after(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        truth.changes_after(registry_id, partition, after, limit).await
    }

    async fn marks(
        &self,
        truth: &dyn SessionStorage,
        positions: &[Position],
    ) -> Result<Vec<Option<Mark>>, StorageError> {
        truth.marks(positions).await
    }

    async fn buckets_under(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError> {
        truth.buckets_under(registry_id, known, leases).await
    }

    async fn read_buckets(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        truth.read_buckets(registry_id, known, buckets, limit, with_leases).await
    }
}

#[derive(Debug)]
pub(crate) struct Twisted<T> {
    truth: Arc<dyn SessionStorage>,
    pub(crate) twist: T,
}

impl<T: Twist> Twisted<T> {
    pub(crate) fn new(truth: Arc<dyn SessionStorage>, twist: T) -> Arc<Self> {
        Arc::new(Self { truth, twist })
    }
}

#[async_trait]
impl<T: Twist> SessionStorage for Twisted<T> {
    fn layout(&self) -> Layout {
        self.truth.layout()
    }

    fn bucket_of(&self, session: &SessionKey) -> u32 {
        self.truth.bucket_of(session)
    }

    fn partition_of(&self, bucket: u32) -> u32 {
        self.truth.partition_of(bucket)
    }

    async fn create_with(
        &self,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        self.twist.create_with(&*self.truth, sessions, options).await
    }

    async fn has(&self, sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError> {
        self.truth.has(sessions).await
    }

    async fn lookup(&self, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError> {
        self.twist.lookup(&*self.truth, sessions).await
    }

    async fn destroy_with(
        &self,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, StorageError> {
        self.twist.destroy_with(&*self.truth, sessions, lease).await
    }

    async fn grant_lease(&self, ttl: Duration, owner: &str) -> Result<LeaseId, StorageError> {
        self.truth.grant_lease(ttl, owner).await
    }

    async fn keep_lease_alive(&self, lease: LeaseId) -> Result<Duration, StorageError> {
        self.truth.keep_lease_alive(lease).await
    }

    async fn lease_owner(&self, lease: LeaseId) -> Result<Option<Arc<str>>, StorageError> {
        self.truth.lease_owner(lease).await
    }

    async fn revoke_lease_with(&self, lease: LeaseId, linger: Duration) -> Result<u64, StorageError> {
        self.truth.revoke_lease_with(lease, linger).await
    }

    async fn list_leases(&self, query: &LeaseQuery) -> Result<LeasePage, StorageError> {
        self.truth.list_leases(query).await
    }

    async fn buckets_under(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError> {
        self.twist.buckets_under(&*self.truth, registry_id, known, leases).await
    }

    async fn expire_leases(&self) -> Result<Infallible, StorageError> {
        if self.twist.expires_leases() { self.truth.expire_leases().await } else { pending().await }
    }

    async fn lease_count(&self) -> Result<u64, StorageError> {
        self.truth.lease_count().await
    }

    async fn session_count(&self) -> Result<u64, StorageError> {
        self.truth.session_count().await
    }

    async fn log(&self) -> Result<LogExtent, StorageError> {
        self.twist.log(&*self.truth).await
    }

    async fn changes_after(
        &self,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        self.twist.changes_after(&*self.truth, registry_id, partition, after, limit).await
    }

    async fn marks(&self, positions: &[Position]) -> Result<Vec<Option<Mark>>, StorageError> {
        self.twist.marks(&*self.truth, positions).await
    }

    async fn read_buckets(
        &self,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        self.twist.read_buckets(&*self.truth, registry_id, known, buckets, limit, with_leases).await
    }
}

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
    fn expires_leases(&self) -> bool {
        self.expires_leases
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
