//! Lists of many leases, and of leases whose keys were lost.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use redis::cmd;
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{LeaseQuery, LeaseStatus, SessionStorage},
};

use super::{
    ROOMY, open,
    replica::{Replica, eventually, keys, run_all},
    server::{RedisServer, is_installed},
};

const HOUR: Duration = Duration::from_secs(3600);

const ALL: LeaseQuery = LeaseQuery::first(10_000);

/// Lists all leases page by page. Also returns the number of pages.
async fn list(storage: &dyn SessionStorage, mut query: LeaseQuery) -> (Vec<LeaseStatus>, usize) {
    let (mut all, mut pages) = (Vec::new(), 0);
    loop {
        let page = storage.list_leases(&query).await.unwrap();
        assert!(page.leases.len() <= query.limit);
        all.extend(page.leases);
        pages += 1;
        if page.next.is_none() {
            assert!(all.is_sorted_by(|one, next| one.lease < next.lease));
            return (all, pages);
        }
        query.after = page.next;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_leases_are_listed_page_by_page() {
    const LEASES: usize = 12_000;
    const CONCURRENCY: usize = 256;
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let url = server.url("partitions=3&buckets=48");
    let [a, b] = [open(&url, ROOMY).await, open(&url, ROOMY).await];
    let grant = async |n: usize| {
        let lease = a.grant_lease(HOUR, if n.is_multiple_of(1000) { "rare" } else { "common" }).await.unwrap();
        if n.is_multiple_of(100) {
            let first = 100 * n as i64;
            a.create(&keys(first..first + 10), Some(lease)).await.unwrap();
        }
        (lease, if n.is_multiple_of(100) { 10 } else { 0 })
    };
    let granted: BTreeMap<LeaseId, u64> =
        stream::iter((0..LEASES).map(grant)).buffer_unordered(CONCURRENCY).collect().await;

    let (all, pages) = list(&*b, ALL).await;
    let received: BTreeMap<LeaseId, u64> = all.iter().map(|status| (status.lease, status.session_count)).collect();
    assert_eq!((all.len(), received), (LEASES, granted.clone()));
    assert!(pages <= 3, "{LEASES} leases took {pages} pages");
    let (rare, _) = list(&*b, LeaseQuery::first(5).owner("rare")).await;
    assert_eq!(rare.len(), LEASES / 1000);
    assert!(rare.iter().all(|status| &*status.owner == "rare"));

    let ids: Vec<LeaseId> = granted.keys().copied().rev().step_by(7).collect();
    let unknown = LeaseId::from_number((1 << 53) - 1);
    let lease_ids: Vec<_> = ids.iter().copied().chain(unknown).chain(ids[..3].iter().copied()).collect();
    let (named, _) = list(&*b, LeaseQuery::first(1000).lease_ids(lease_ids)).await;
    assert_eq!(named.iter().rev().map(|status| status.lease).collect::<Vec<_>>(), ids);
}

/// Every session is under its own lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_lookup_spans_thousands_of_leases() {
    const LEASES: usize = 10_000;
    const CONCURRENCY: usize = 256;
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let url = server.url("buckets=48&timeout_ms=5000");
    let [a, b] = [open(&url, ROOMY).await, open(&url, ROOMY).await];
    let sessions = keys(0..LEASES as i64);
    let create = async |session: &SessionKey| {
        let lease = a.grant_lease(HOUR, "").await.unwrap();
        a.create(&[*session], Some(lease)).await.unwrap();
        lease
    };
    let leases: Vec<LeaseId> = stream::iter(sessions.iter().map(create)).buffered(CONCURRENCY).collect().await;
    for _ in 0..2 {
        let found = b.lookup(&sessions).await.unwrap();
        assert!(found.iter().zip(&leases).all(|(found, lease)| found.exists && found.lease == Some(*lease)));
    }
}

/// A registry whose keys the test deletes.
struct LossyRegistry {
    server: Arc<RedisServer>,
    registry: String,
}

impl LossyRegistry {
    fn url(&self) -> String {
        self.server.url(&format!("registry={}&partitions=3&buckets=48", self.registry))
    }

    /// Deletes every partition's keys whose names match this pattern.
    fn delete_keys(&self, name: &str) {
        let pattern = format!("{{{}:*}}:{name}", self.registry);
        let found: Vec<String> = self.server.ask(cmd("KEYS").arg(pattern)).unwrap();
        assert!(self.server.ask::<u32>(cmd("DEL").arg(found)).unwrap() > 0, "no keys match {name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_stay_listed_and_lingering_after_a_key_is_lost() {
    if !is_installed() {
        return;
    }
    let server = Arc::new(RedisServer::start(&[]));
    let names = ["ids", "deadlines", "attached", "slots", "l????????????????"];
    let cases = (0..).zip(names).map(|(number, name)| {
        let registry = LossyRegistry { server: Arc::clone(&server), registry: format!("r{number}") };
        (name.to_owned(), survives_loss(registry, name))
    });
    run_all(cases).await;
}

async fn survives_loss(registry: LossyRegistry, name: &str) {
    let a = Replica::start(&registry.url()).await;
    let [live, lingering] = [a.storage.grant_lease(HOUR, "live").await.unwrap(), grant_lingering(&*a.storage).await];
    a.storage.create(&keys(0..60), Some(live)).await.unwrap();
    let linger = Duration::from_secs(5);
    assert_eq!(a.storage.revoke_lease_with(lingering, linger).await.unwrap(), 0);
    registry.delete_keys(name);

    eventually(|| async {
        let (all, _) = list(&*a.storage, ALL).await;
        let received: BTreeMap<_, _> =
            all.iter().map(|status| (status.lease, (status.session_count, status.lingers))).collect();
        (received == BTreeMap::from([(live, (60, false)), (lingering, (60, true))])).then_some(())
    })
    .await;
    // A lease whose slot was lost may be attached again, but a lingering lease accepts no session.
    let refused = a.storage.create(&keys(200..203), Some(lingering)).await;
    assert!(refused.is_err(), "{refused:?}");
    eventually(|| async { (!a.storage.has(&keys(60..120)).await.ok()?.contains(&true)).then_some(()) }).await;
    assert_eq!(list(&*a.storage, ALL).await.0.len(), 1);
    assert_eq!(a.storage.has(&keys(0..60)).await.unwrap(), [true; 60]);
}

async fn grant_lingering(storage: &dyn SessionStorage) -> LeaseId {
    let lease = storage.grant_lease(HOUR, "lingers").await.unwrap();
    storage.create(&keys(60..120), Some(lease)).await.unwrap();
    lease
}

/// The buckets of a lease are still reported after its bucket sets were lost, even if more sessions have come under it
/// since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losing_a_leases_bucket_set_hides_no_session() {
    if !is_installed() {
        return;
    }
    let registry = LossyRegistry { server: Arc::new(RedisServer::start(&[])), registry: "r".to_owned() };
    let storage = open(&registry.url(), ROOMY).await;
    let [lease, other] = [storage.grant_lease(HOUR, "").await.unwrap(), storage.grant_lease(HOUR, "").await.unwrap()];
    let own = keys(0..30);
    storage.create(&own, Some(lease)).await.unwrap();
    storage.create(&keys(100..101), Some(other)).await.unwrap();
    assert_buckets_of(&*storage, lease, &own).await;
    assert_eq!(assert_buckets_of(&*storage, other, &keys(100..101)).await, 1);
    registry.delete_keys("l????????????????");
    assert_buckets_of(&*storage, lease, &own).await;
    storage.create(&keys(30..31), Some(lease)).await.unwrap();
    assert_buckets_of(&*storage, lease, &keys(0..31)).await;
    // Now no key says which leases have sessions here, until `attached` is rebuilt.
    registry.delete_keys("attached");
    assert_buckets_of(&*storage, lease, &keys(0..31)).await;
}

/// Asserts that the reported buckets of a lease contain its sessions. Returns the number of buckets.
async fn assert_buckets_of(storage: &dyn SessionStorage, lease: LeaseId, sessions: &[SessionKey]) -> usize {
    let log = storage.log().await.unwrap();
    let known: Vec<_> = log.partitions.iter().map(|held| held.end).collect();
    let found = storage.buckets_under(log.registry_id, &known, &[lease]).await.unwrap();
    for session in sessions {
        assert!(found.buckets.contains(&storage.bucket_of(session)), "the bucket of {session:?} is missing");
    }
    found.buckets.len()
}
