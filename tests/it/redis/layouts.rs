//! Layouts of a registry, and other URL parameters from the README's table.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use sessiond::subject::Start;

use super::{
    ROOMY, open,
    replica::{Replica, keys},
    server::{RedisServer, is_installed},
};

/// The README advises two to four partitions per master of a cluster. Their number need not divide the number of
/// buckets.
#[tokio::test]
async fn any_number_of_partitions_works_with_the_default_buckets() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    join_all([6, 7, 9, 12].map(async |partitions| {
        let url = server.url(&format!("registry=r{partitions}&partitions={partitions}"));
        let a = Replica::start(&url).await;
        let layout = a.storage.layout();
        assert_eq!(layout.partitions, partitions);
        let mut buckets = BTreeMap::<u32, u32>::new();
        for bucket in 0..layout.buckets {
            *buckets.entry(a.storage.partition_of(bucket)).or_default() += 1;
        }
        assert!(buckets.keys().copied().eq(0..partitions), "each partition has buckets");
        let (least, most) = (buckets.values().min().unwrap(), buckets.values().max().unwrap());
        assert!(most - least <= 1, "from {least} to {most} buckets in each of {partitions} partitions");

        let all = keys(0..1000);
        let lease = a.storage.grant_lease(std::time::Duration::from_secs(60), "").await.unwrap();
        a.storage.create(&all[..500], Some(lease)).await.unwrap();
        a.storage.create(&all[500..], None).await.unwrap();
        let mut held = a.watch(Start::Snapshot).await;
        held.converges_to(&all).await;
        // Parameters that the URL leaves out are taken from the registry.
        let b = open(&server.url(&format!("registry=r{partitions}")), ROOMY).await;
        assert_eq!(b.layout(), layout);
        assert!(b.has(&all).await.unwrap().into_iter().all(|exists| exists));
        assert_eq!(b.revoke_lease(lease).await.unwrap(), 500);
        held.converges_to(&all[500..]).await;
        assert_eq!(b.destroy(&all, None).await.unwrap().into_iter().filter(|destroyed| *destroyed).count(), 500);
        held.converges_to(&[]).await;
    }))
    .await;
}

#[tokio::test]
async fn wait_replicas_accepts_its_default_of_zero() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let storage = open(&server.url("buckets=64&wait_replicas=0"), ROOMY).await;
    assert_eq!(storage.create(&keys(0..2), None).await.unwrap(), [true, true]);
}
