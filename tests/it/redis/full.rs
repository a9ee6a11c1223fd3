//! Redis has reached `maxmemory` and evicts nothing. It refuses growth, but sessions and leases can still end.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use sessiond::{
    session::SessionKey,
    storage::{RefusalCause, SessionStorage, StorageError},
    subject::Start,
};
use tokio::{
    join,
    time::{Instant, sleep, timeout},
};

use super::{
    ROOMY,
    cluster::{MASTERS, RedisCluster},
    open,
    replica::{Replica, create, eventually, keys},
    server::{RedisServer, ServerKind, is_installed, on_each_server},
};

const SECOND: Duration = Duration::from_secs(1);

/// Short timeouts, so that a failing test ends soon.
const PARAMETERS: &str = "timeout_ms=500";

/// How far a server's `maxmemory` is from its used memory.
#[derive(Clone, Copy, Debug)]
enum Limit {
    /// Far below the used memory: Redis refuses every command that needs memory.
    Far,
    /// Slightly above the used memory, with room for some more sessions.
    Near,
    None,
}

fn limit(servers: &[&RedisServer], limit: Limit) {
    for server in servers {
        let used: u64 = server.info("memory", "used_memory").unwrap().parse().unwrap();
        let most = match limit {
            Limit::Far => 1,
            Limit::Near => used + (1 << 20),
            Limit::None => 0,
        };
        server.set("maxmemory", &most.to_string());
    }
}

/// Whether the outcome is a refusal of growth. Fails if the call succeeded.
fn is_refused<T: std::fmt::Debug>(outcome: Result<T, StorageError>) -> bool {
    match outcome {
        Err(StorageError::Refused(refusal)) => refusal.cause == RefusalCause::OutOfMemory,
        Err(StorageError::Unavailable(_)) => true,
        other => panic!("a change that needs memory was not refused: {other:?}"),
    }
}

/// Creates sessions until Redis refuses one. Returns the sessions that exist.
async fn fill(storage: &dyn SessionStorage) -> Vec<SessionKey> {
    let mut filled = Vec::new();
    for first in (1_000_000..2_000_000).step_by(500) {
        let some = keys(first..first + 500);
        if let Err(error) = storage.create(&some, None).await {
            assert!(is_refused::<()>(Err(error)));
            // Some sessions of the refused batch may have been created.
            let exist = eventually(|| async { storage.has(&some).await.ok() }).await;
            filled.extend(some.iter().zip(exist).filter(|(_, exists)| *exists).map(|(session, _)| *session));
            return filled;
        }
        filled.extend(some);
    }
    panic!("Redis did not fill up");
}

async fn check(servers: &[&RedisServer], url: &str, how_full: Limit) {
    let [a, b] = [Replica::start(url).await, Replica::start(url).await];
    let kept = a.storage.grant_lease(2 * SECOND, "lives").await.unwrap();
    let (of_kept, of_expired, of_revoked) = (keys(0..100), keys(100..700), keys(700..1300));
    a.storage.create(&of_kept, Some(kept)).await.unwrap();
    let revoked = a.storage.grant_lease(3600 * SECOND, "is revoked").await.unwrap();
    a.storage.create(&of_revoked, Some(revoked)).await.unwrap();
    let (stays, goes) = (keys(1300..1400), keys(1400..1700));
    a.storage.create(&[&stays[..], &goes].concat(), None).await.unwrap();
    a.storage.keep_lease_alive(kept).await.unwrap();
    let expired = a.storage.grant_lease(2 * SECOND, "expires").await.unwrap();
    a.storage.create(&of_expired, Some(expired)).await.unwrap();
    let mut held = b.watch(Start::Snapshot).await;

    limit(servers, how_full);
    let is_over = AtomicBool::new(false);
    let keeping = async {
        while !is_over.load(Ordering::Relaxed) {
            b.storage.keep_lease_alive(kept).await.expect("the lease can be kept alive");
            sleep(SECOND / 4).await;
        }
    };
    let ending = async {
        let filled = match how_full {
            Limit::Near => fill(&*a.storage).await,
            _ => Vec::new(),
        };
        let began = Instant::now();
        if matches!(how_full, Limit::Far) {
            assert!(is_refused(a.storage.create(&keys(5000..5200), None).await));
            assert!(is_refused(a.storage.create(&keys(5000..5200), Some(kept)).await));
            assert!(is_refused(a.storage.create(&stays, Some(kept)).await));
            assert!(is_refused(a.storage.grant_lease(9 * SECOND, "").await));
        }
        assert_eq!(a.storage.has(&goes).await.unwrap(), vec![true; goes.len()]);

        assert_eq!(b.storage.revoke_lease(revoked).await.unwrap(), of_revoked.len() as u64);
        assert_eq!(a.storage.has(&of_revoked).await.unwrap(), vec![false; of_revoked.len()]);
        assert_eq!(a.storage.destroy(&goes, None).await.unwrap(), vec![true; goes.len()]);
        assert_eq!(b.storage.destroy(&of_kept[..50], Some(kept)).await.unwrap(), vec![true; 50]);
        // A replica that starts now works, too.
        let c = open(url, ROOMY).await;
        assert_eq!(c.has(&of_kept).await.unwrap(), [vec![false; 50], vec![true; 50]].concat());
        c.keep_lease_alive(kept).await.unwrap();
        let is_expired = async || !b.storage.has(&of_expired).await.unwrap().contains(&true);
        while !is_expired().await {
            assert!(began.elapsed() < 5 * SECOND, "the sessions of an expired lease still exist");
            sleep(SECOND / 20).await;
        }
        let gone = b.storage.keep_lease_alive(expired).await;
        assert!(matches!(gone, Err(StorageError::UnknownLease(_))), "{gone:?}");
        is_over.store(true, Ordering::Relaxed);
        filled
    };
    let ((), filled) = join!(keeping, ending);
    let left: HashSet<_> = [&of_kept[50..], &stays, &filled].concat().into_iter().collect();
    let left: Vec<_> = left.into_iter().collect();
    held.converges_to(&left).await;
    assert_eq!(a.storage.session_count().await.unwrap(), left.len() as u64);
    assert_eq!(a.storage.lease_count().await.unwrap(), 1);

    limit(servers, Limit::None);
    create(&*a.storage, &keys(6000..6100)).await;
    held.converges_to(&[left, keys(6000..6100)].concat()).await;
    assert_eq!(held.resets, []);
    assert_eq!(b.storage.revoke_lease(kept).await.unwrap(), 50);
}

async fn leases_end_and_sessions_can_be_destroyed_while_redis_is_full(kind: ServerKind) {
    for (partitions, how_full) in [(1, Limit::Far), (3, Limit::Near)] {
        let server = kind.start(&["--maxmemory-policy", "noeviction"]);
        let url = server.url(&format!("{PARAMETERS}&partitions={partitions}&buckets=96"));
        let done = timeout(60 * SECOND, check(&[&server], &url, how_full)).await;
        done.unwrap_or_else(|_| panic!("{how_full:?}: the check timed out"));
    }
}

on_each_server! {
    [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]] leases_end_and_sessions_can_be_destroyed_while_redis_is_full;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_end_and_sessions_can_be_destroyed_while_a_cluster_is_full() {
    if !is_installed() {
        return;
    }
    let cluster = RedisCluster::start(0);
    let nodes: Vec<&RedisServer> = cluster.nodes.iter().collect();
    let url = cluster.url(&format!("{PARAMETERS}&partitions=6&buckets=96"));
    check(&nodes, &url, Limit::Far).await;
}

/// Fills one node of the cluster at a time, including the node that holds the leases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_end_and_sessions_can_be_destroyed_while_one_cluster_node_is_full() {
    if !is_installed() {
        return;
    }
    let cluster = RedisCluster::start(0);
    for node in 0..MASTERS {
        let url = cluster.url(&format!("{PARAMETERS}&partitions=6&buckets=96&registry=r{node}"));
        let [a, b] = [Replica::start(&url).await, Replica::start(&url).await];
        let mut held = b.watch(Start::Snapshot).await;
        let revoked = a.storage.grant_lease(3600 * SECOND, "is revoked").await.unwrap();
        a.storage.create(&keys(0..300), Some(revoked)).await.unwrap();
        let expired = a.storage.grant_lease(SECOND, "expires").await.unwrap();
        a.storage.create(&keys(300..600), Some(expired)).await.unwrap();
        held.converges_to(&keys(0..600)).await;
        limit(&[&cluster.nodes[node]], Limit::Far);
        assert_eq!(b.storage.revoke_lease(revoked).await.unwrap(), 300);
        held.converges_to(&[]).await;
        assert_eq!(a.storage.session_count().await.unwrap(), 0);
        limit(&[&cluster.nodes[node]], Limit::None);
    }
}
