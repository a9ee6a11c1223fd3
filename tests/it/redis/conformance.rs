//! The conformance suite on Redis, on the oldest supported Redis, on Valkey, and on a Redis Cluster.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use sessiond::storage::{
    RefusalCause, SessionStorage, StorageOptions,
    conformance::{Refusable, RefusalSwitch, StorageFactory, cases},
};

use super::{
    cluster::RedisCluster,
    open,
    permissions::smallest_user,
    refusals::Trouble,
    server::{RedisServer, ServerKind, is_installed},
};

/// Registries in one server. Each has two replicas, which log in as the smallest user that the README documents.
struct Single {
    kind: ServerKind,
    server: OnceLock<RedisServer>,
    parameters: &'static str,
    count: AtomicUsize,
}

const fn single(kind: ServerKind, parameters: &'static str) -> Single {
    Single { kind, server: OnceLock::new(), parameters, count: AtomicUsize::new(0) }
}

#[async_trait::async_trait]
impl StorageFactory for Single {
    async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
        let server = self.server.get_or_init(|| {
            let server = self.kind.start(&[]);
            server.set_user("smallest", &smallest_user());
            server
        });
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let url = server.url_for("smallest", &format!("registry=r{number}&{}", self.parameters));
        vec![open(&url, options).await, open(&url, options).await]
    }

    fn skipped(&self) -> &'static [&'static str] {
        static SKIPPED: OnceLock<Vec<&str>> = OnceLock::new();
        SKIPPED
            .get_or_init(|| if is_installed() { Vec::new() } else { cases().iter().map(|case| case.name()).collect() })
    }
}

mod with_one_partition {
    sessiond::storage_conformance_tests!([#[tokio::test]] super::single(super::ServerKind::Redis, "timeout_ms=10000&buckets=64"));
}

mod with_three_partitions {
    sessiond::storage_conformance_tests!(
        [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]]
        super::single(super::ServerKind::Redis, "timeout_ms=10000&buckets=48&partitions=3")
    );
}

/// Registries in one cluster, each with three replicas.
struct Cluster {
    cluster: RedisCluster,
    count: AtomicUsize,
}

#[async_trait::async_trait]
impl StorageFactory for Cluster {
    async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let url = self.cluster.url(&format!("registry=r{number}&timeout_ms=10000&partitions=5&buckets=40"));
        vec![open(&url, options).await, open(&url, options).await, open(&url, options).await]
    }

    fn slack(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// Runs all cases in one test, several at a time, because most wait for leases to expire.
async fn all_cases(factory: &dyn StorageFactory) {
    const CONCURRENCY: usize = 12;
    let outcomes = stream::iter(cases()).map(|case| case.run(factory)).buffer_unordered(CONCURRENCY);
    outcomes.for_each(|outcome| async { outcome.unwrap_or_else(|violation| panic!("{violation}")) }).await;
}

/// All cases share one cluster, because a cluster takes seconds to form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster() {
    if is_installed() {
        all_cases(&Cluster { cluster: RedisCluster::start(0), count: AtomicUsize::new(0) }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_6_2() {
    if ServerKind::Redis62.is_installed() {
        all_cases(&single(ServerKind::Redis62, "timeout_ms=10000&buckets=48&partitions=3")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_valkey() {
    if ServerKind::Valkey.is_installed() {
        all_cases(&single(ServerKind::Valkey, "timeout_ms=10000&buckets=48&partitions=3")).await;
    }
}

/// Registries that can be made to refuse changes. Each has its own server and two replicas.
#[derive(Clone, Copy)]
struct Refusing(Trouble);

async fn open_two(server: &RedisServer, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
    let url = server.url("timeout_ms=2000&buckets=48&partitions=3");
    vec![open(&url, options).await, open(&url, options).await]
}

#[async_trait::async_trait]
impl StorageFactory for Refusing {
    async fn open(&self, _: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
        unreachable!("only the cases about refusals run here")
    }

    async fn open_refusable(&self, options: StorageOptions) -> Option<Refusable> {
        let server = RedisServer::start(&[]);
        let handles = open_two(&server, options).await;
        Some(Refusable::new(handles, Switch { server, trouble: self.0 }))
    }
}

struct Switch {
    server: RedisServer,
    trouble: Trouble,
}

#[async_trait::async_trait]
impl RefusalSwitch for Switch {
    fn cause(&self) -> RefusalCause {
        self.trouble.cause()
    }

    fn leases_go_on(&self) -> bool {
        self.trouble == Trouble::OutOfMemory
    }

    async fn refuse(&self) {
        self.trouble.begin(&self.server).await;
    }

    async fn accept(&self) {
        self.trouble.end(&self.server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_refuses_changes() {
    if !is_installed() {
        return;
    }
    for name in ["refused_changes_change_nothing", "leases_are_kept_and_end_without_room"] {
        let case = cases().iter().find(|case| case.name() == name).expect("the suite has this case");
        for trouble in Trouble::ALL {
            let outcome = case.run(&Refusing(trouble)).await;
            outcome.unwrap_or_else(|violation| panic!("{trouble:?}: {violation}"));
        }
    }
}
