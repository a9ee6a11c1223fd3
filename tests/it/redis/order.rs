//! The order of a batch's events in the log.

use std::{collections::HashMap, sync::Arc};

use futures_util::future::join_all;
use sessiond::{
    session::{SessionChange, SessionEvent, SessionKey},
    storage::SessionStorage,
    subject::{Observer, Start, Update},
};
use tokio::time::timeout;

use super::{
    cluster::RedisCluster,
    replica::{PATIENCE, Replica},
    server::{RedisServer, is_installed},
};

/// More sessions than fit into one script.
const BATCH: usize = 2000;

/// Reads `count` events.
async fn events(observer: &mut Observer, count: usize) -> Vec<SessionEvent> {
    let mut read = Vec::new();
    while read.len() < count {
        match timeout(PATIENCE, observer.next()).await.expect("more events arrive").expect("the stream continues") {
            Update::Events(events) => read.extend_from_slice(events.events()),
            Update::Subscribed => {}
            other => panic!("{other:?}"),
        }
    }
    read
}

/// Groups sessions by partition, in their order.
fn by_partition(
    storage: &dyn SessionStorage,
    sessions: impl IntoIterator<Item = SessionKey>,
) -> HashMap<u32, Vec<SessionKey>> {
    let mut parts: HashMap<u32, Vec<SessionKey>> = HashMap::new();
    for session in sessions {
        parts.entry(storage.partition_of(storage.bucket_of(&session))).or_default().push(session);
    }
    parts
}

/// Several callers send batches concurrently through both replicas.
async fn check(replicas: &[Replica; 2], rounds: usize) {
    let storage = Arc::clone(&replicas[0].storage);
    let mut observer = replicas[1].watch(Start::Now).await.observer;
    let lease = storage.grant_lease(std::time::Duration::from_secs(3600), "gateway").await.unwrap();
    for round in 0..rounds {
        let lease = (round % 2 == 1).then_some(lease);
        let batches: Vec<Vec<SessionKey>> = (0..4)
            .map(|caller| {
                let mut ids: Vec<i64> = (0..BATCH as i64).collect();
                fastrand::shuffle(&mut ids);
                ids.into_iter().map(|id| SessionKey::new(caller, id)).collect()
            })
            .collect();
        for is_created in [true, false] {
            let calls = batches.iter().zip(replicas.iter().cycle()).map(async |(batch, replica)| {
                let changed = match is_created {
                    true => replica.storage.create(batch, lease).await,
                    false => replica.storage.destroy(batch, lease).await,
                };
                assert_eq!(changed.unwrap(), vec![true; BATCH]);
            });
            join_all(calls).await;
            let received = events(&mut observer, 4 * BATCH).await;
            assert!(received.iter().all(|event| (event.change == SessionChange::Created) == is_created));
            for (caller, batch) in (0..).zip(&batches) {
                let received =
                    received.iter().map(|event| event.session).filter(|received| received.auth_key_id.0 == caller);
                assert!(
                    by_partition(&*storage, received) == by_partition(&*storage, batch.iter().copied()),
                    "the events of a batch are out of order within a partition"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_batch_keep_its_order_within_each_partition() {
    if is_installed() {
        let server = RedisServer::start(&[]);
        let url = server.url("partitions=4&buckets=64");
        check(&[Replica::start(&url).await, Replica::start(&url).await], 4).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_batch_keep_its_order_within_each_cluster_partition() {
    if is_installed() {
        let cluster = RedisCluster::start(0);
        let url = cluster.url("partitions=6&buckets=96");
        check(&[Replica::start(&url).await, Replica::start(&url).await], 2).await;
    }
}
