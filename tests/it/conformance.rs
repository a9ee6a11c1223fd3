//! Runs the conformance suite on the memory storage in several layouts, on the file storage, and on storages that are
//! broken on purpose.

mod broken;

use std::{sync::Arc, time::Duration};

use sessiond::storage::{
    SessionStorage, StorageOptions,
    conformance::{StorageFactory, cases},
    file::FileStorage,
    memory::{MemoryOptions, MemoryStorage},
};
use tokio::task::JoinSet;

/// Makes memory storages with a given number of buckets and partitions.
#[derive(Clone, Copy)]
struct Memory {
    buckets: u32,
    partitions: u32,
    slack: Duration,
}

const DEFAULT: Memory = Memory { buckets: 4096, partitions: 1, slack: Duration::ZERO };

impl Memory {
    fn storage(&self, options: StorageOptions) -> MemoryStorage {
        MemoryStorage::new(MemoryOptions::from(options).buckets(self.buckets).partitions(self.partitions))
    }
}

#[async_trait::async_trait]
impl StorageFactory for Memory {
    async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
        vec![Arc::new(self.storage(options))]
    }

    fn slack(&self) -> Duration {
        self.slack
    }
}

mod with_default_layout {
    sessiond::storage_conformance_tests!([#[tokio::test(start_paused = true)]] super::DEFAULT);
}

mod with_three_partitions {
    const DIVIDED: super::Memory = super::Memory { buckets: 8, partitions: 3, ..super::DEFAULT };
    sessiond::storage_conformance_tests!([#[tokio::test(start_paused = true)]] DIVIDED);
}

mod with_one_bucket {
    const WHOLE: super::Memory = super::Memory { buckets: 1, ..super::DEFAULT };
    sessiond::storage_conformance_tests!([#[tokio::test(start_paused = true)]] WHOLE);
}

/// With several threads, calls really run at the same time. All cases run concurrently, because most of them wait for
/// leases to expire.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_memory_storage_conforms_on_several_threads() {
    // The machine may be busy, and a process that was paused extends its leases by another ttl.
    let shape = Memory { buckets: 16, partitions: 3, slack: Duration::from_secs(60) };
    let mut running = JoinSet::new();
    for case in cases() {
        running.spawn(async move { case.run(&shape).await });
    }
    for outcome in running.join_all().await {
        outcome.unwrap_or_else(|violation| panic!("{violation}"));
    }
}

/// Makes registries, each in its own file.
struct File(tempfile::TempDir);

#[async_trait::async_trait]
impl StorageFactory for File {
    async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
        let path = self.0.path().join(format!("{:x}", fastrand::u64(..)));
        vec![Arc::new(FileStorage::open(path, options).await.unwrap())]
    }

    fn slack(&self) -> Duration {
        Duration::from_secs(60)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_file_storage_conforms() {
    let files = Arc::new(File(tempfile::tempdir().unwrap()));
    let mut running = JoinSet::new();
    for case in cases() {
        let files = Arc::clone(&files);
        running.spawn(async move { case.run(&*files).await });
    }
    for outcome in running.join_all().await {
        outcome.unwrap_or_else(|violation| panic!("{violation}"));
    }
}
