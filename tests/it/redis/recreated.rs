//! A registry that is created again while calls wait for it.

use futures_util::future::join_all;
use redis::cmd;
use sessiond::subject::Start;

use super::{
    ROOMY,
    gate::Gate,
    open,
    replica::{Replica, eventually, existing_of, keys},
    server::{RedisServer, is_installed},
};

const PARAMETERS: &str = "timeout_ms=3000&partitions=4&buckets=64";

/// The new registry puts sessions into other partitions than the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_waiting_during_a_flush_are_routed_to_the_new_registry() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let gate = Gate::before(&server).await;
    let storage = open(&gate.url(PARAMETERS), ROOMY).await;
    storage.has(&keys(0..100)).await.unwrap();
    gate.shut();
    let all = keys(0..3000);
    let creating = join_all(all.chunks(100).map(|some| storage.create(some, None)));
    let looking = join_all(all.chunks(100).map(|some| storage.has(some)));
    let replacing = async {
        // By now every call waits, some of them behind the first script or the first read.
        tokio::task::yield_now().await;
        let () = server.ask(&cmd("FLUSHALL")).unwrap();
        gate.open();
    };
    let (created, looked, ()) = tokio::join!(creating, looking, replacing);
    assert!(looked.iter().all(Result::is_ok), "{looked:?}");
    for (some, outcome) in all.chunks(100).zip(created) {
        assert_eq!(outcome.unwrap(), [true; 100]);
        let there = eventually(|| async { storage.has(some).await.ok() }).await;
        assert_eq!(there, [true; 100], "lookups use the new registry's partitions");
    }
    let other = Replica::start(&server.url(PARAMETERS)).await;
    assert_eq!(existing_of(all.clone(), &other).await, all);
    other.watch(Start::Snapshot).await.converges_to(&all).await;
    assert_eq!(other.storage.destroy(&all, None).await.unwrap(), [true; 3000]);
}
