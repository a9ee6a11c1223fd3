//! Storages that delegate to another one and change some calls.

use std::{convert::Infallible, fmt, ops::Deref, sync::Arc, time::Duration};

use async_trait::async_trait;
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{
        Answers, BucketRun, Changes, CreateOptions, Creation, Layout, LeaseBuckets, LeasePage, LeaseQuery, LogError,
        LogExtent, LogPoint, Lookup, Mark, Position, RegistryId, SessionStorage, StorageError, Writability,
    },
};

/// Defines [`Twist`] with these calls, and [`Twisted`], which makes them through its twist.
macro_rules! twisted {
    ($(async fn $call:ident($($argument:ident: $type:ty),*) -> $answer:ty;)+) => {
        /// The calls that differ from the true storage. By default each delegates to it.
        #[async_trait]
        pub(crate) trait Twist: fmt::Debug + Send + Sync + 'static {
            /// Is called before each of the calls below, with its name. An error is the answer of the call.
            fn before(&self, _call: &str) -> Result<(), StorageError> {
                Ok(())
            }

            fn bucket_of(&self, truth: &dyn SessionStorage, session: &SessionKey) -> u32 {
                truth.bucket_of(session)
            }

            fn writability(&self, truth: &dyn SessionStorage) -> Writability {
                truth.writability()
            }

            fn failed_task(&self) -> Option<&'static str> {
                None
            }

            $(async fn $call(&self, truth: &dyn SessionStorage, $($argument: $type),*) -> $answer {
                truth.$call($($argument),*).await
            })+
        }

        #[async_trait]
        impl<T: Twist> SessionStorage for Twisted<T> {
            fn layout(&self) -> Layout {
                self.truth.layout()
            }

            fn bucket_of(&self, session: &SessionKey) -> u32 {
                self.twist.bucket_of(&*self.truth, session)
            }

            fn partition_of(&self, bucket: u32) -> u32 {
                self.truth.partition_of(bucket)
            }

            fn writability(&self) -> Writability {
                self.twist.writability(&*self.truth)
            }

            fn failed_task(&self) -> Option<&'static str> {
                self.twist.failed_task()
            }

            $(async fn $call(&self, $($argument: $type),*) -> $answer {
                self.twist.before(stringify!($call))?;
                self.twist.$call(&*self.truth, $($argument),*).await
            })+
        }
    };
}

twisted! {
    async fn create_with(sessions: &[SessionKey], options: CreateOptions) -> Result<Answers<Creation>, StorageError>;
    async fn has(sessions: &[SessionKey]) -> Result<Vec<bool>, StorageError>;
    async fn lookup(sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError>;
    async fn destroy_with(sessions: &[SessionKey], lease: Option<LeaseId>) -> Result<Answers<bool>, StorageError>;
    async fn grant_lease(ttl: Duration, owner: &str) -> Result<LeaseId, StorageError>;
    async fn keep_lease_alive(lease: LeaseId) -> Result<Duration, StorageError>;
    async fn lease_owner(lease: LeaseId) -> Result<Option<Arc<str>>, StorageError>;
    async fn revoke_lease_with(lease: LeaseId, linger: Duration) -> Result<u64, StorageError>;
    async fn list_leases(query: &LeaseQuery) -> Result<LeasePage, StorageError>;
    async fn expire_leases() -> Result<Infallible, StorageError>;
    async fn lease_count() -> Result<u64, StorageError>;
    async fn session_count() -> Result<u64, StorageError>;
    async fn log() -> Result<LogExtent, StorageError>;
    async fn changes_after(
        registry_id: RegistryId, partition: u32, after: LogPoint, limit: usize
    ) -> Result<Changes, LogError>;
    async fn marks(positions: &[Position]) -> Result<Vec<Option<Mark>>, StorageError>;
    async fn buckets_under(
        registry_id: RegistryId, known: &[LogPoint], leases: &[LeaseId]
    ) -> Result<LeaseBuckets, LogError>;
    async fn read_buckets(
        registry_id: RegistryId, known: &[LogPoint], buckets: &[u32], limit: usize, with_leases: bool
    ) -> Result<BucketRun, LogError>;
}

/// A storage with a twist.
#[derive(Debug)]
pub(crate) struct Twisted<T> {
    pub(crate) truth: Arc<dyn SessionStorage>,
    twist: T,
}

impl<T: Twist> Twisted<T> {
    pub(crate) fn new(truth: Arc<dyn SessionStorage>, twist: T) -> Arc<Self> {
        Arc::new(Self { truth, twist })
    }
}

impl<T> Deref for Twisted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.twist
    }
}
