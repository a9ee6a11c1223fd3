//! The suite for storages, on Redis.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use sessiond::storage::{
    SessionStorage, StorageOptions, StorageUrl,
    conformance::{StorageFactory, cases},
};

use super::server::{RedisServer, is_installed};

/// Registries in one redis-server, each with two replicas.
struct Single {
    server: OnceLock<RedisServer>,
    parameters: &'static str,
    count: AtomicUsize,
}

const fn single(parameters: &'static str) -> Single {
    Single { server: OnceLock::new(), parameters, count: AtomicUsize::new(0) }
}

/// The handles of so many replicas.
pub(super) async fn replicas(url: &str, options: StorageOptions, count: usize) -> Vec<Arc<dyn SessionStorage>> {
    let url: StorageUrl = url.parse().unwrap();
    let mut handles = Vec::new();
    for _ in 0..count {
        handles.push(
            url.open(options).await.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error))),
        );
    }
    handles
}

/// All cases, where there is no Redis to run them on.
fn all_unless_installed() -> &'static [&'static str] {
    static SKIPPED: OnceLock<Vec<&str>> = OnceLock::new();
    SKIPPED.get_or_init(|| if is_installed() { Vec::new() } else { cases().iter().map(|case| case.name()).collect() })
}

#[async_trait::async_trait]
impl StorageFactory for Single {
    async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
        let server = self.server.get_or_init(|| RedisServer::start(&[]));
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        replicas(&server.url(&format!("registry=r{number}&{}", self.parameters)), options, 2).await
    }

    fn skipped(&self) -> &'static [&'static str] {
        all_unless_installed()
    }
}

mod with_one_partition {
    sessiond::storage_conformance_tests!([#[tokio::test]] super::single("buckets=64"));
}

mod with_three_partitions {
    sessiond::storage_conformance_tests!([#[tokio::test(flavor = "multi_thread", worker_threads = 2)]] super::single("buckets=48&partitions=3"));
}
