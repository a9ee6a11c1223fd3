//! Calls and streams while Redis fails.

use std::{sync::Arc, time::Duration};

use redis::cmd;
use sessiond::{
    session::SessionKey,
    storage::{SessionStorage, StorageError},
    subject::{ResetReason, Start},
};
use tokio::time::{Instant, sleep};

use super::{
    ROOMY,
    cluster::{MASTERS, NODE_TIMEOUT, RedisCluster},
    open,
    replica::{Replica, create, eventually, existing_of, key, keys},
    server::{RedisServer, ServerKind, is_installed, on_each_server},
};

/// The longest that a call may take with the `timeout_ms` below: one answer of Redis, one connection, and some slack
/// for a busy machine.
const CALL: Duration = Duration::from_secs(5);

/// Short timeouts, so that outages are noticed soon.
const PARAMETERS: &str = "timeout_ms=300&buckets=64";

impl RedisCluster {
    /// Restarts a node and waits until all nodes serve.
    fn restart(&mut self, node: usize) {
        tokio::task::block_in_place(|| {
            self.nodes[node].restart();
            self.wait("the cluster to serve", |cluster| {
                cluster.nodes.iter().all(|node| node.cluster_info().contains("cluster_state:ok"))
            });
        });
    }
}

/// Asserts that every unary call fails in time with Unavailable.
async fn assert_unavailable(storage: &dyn SessionStorage) {
    let began = Instant::now();
    let calls = futures_util::future::join_all((0..20).map(|n| async move {
        let one = [key(1000 + n)];
        match n % 4 {
            0 => storage.create(&one, None).await.map(drop),
            1 => storage.has(&one).await.map(drop),
            2 => storage.destroy(&one, None).await.map(drop),
            _ => storage.log().await.map(drop),
        }
    }));
    for outcome in calls.await {
        assert!(matches!(outcome, Err(StorageError::Unavailable(_))), "{outcome:?}");
    }
    let lease = storage.grant_lease(Duration::from_secs(9), "").await;
    assert!(matches!(lease, Err(StorageError::Unavailable(_))), "{lease:?}");
    assert!(began.elapsed() < CALL, "calls took {:?} to fail", began.elapsed());
}

on_each_server! {
    [#[tokio::test]] events_cross_replicas_and_cursors_resume_on_another_replica;
    [#[tokio::test]] calls_fail_in_time_while_redis_is_down_and_an_empty_redis_resets_streams;
    [#[tokio::test]] a_flush_under_a_live_connection_resets_streams;
    [#[tokio::test]] an_old_dump_makes_cursors_of_lost_changes_foreign;
    [#[tokio::test]] a_restart_of_a_durable_redis_keeps_all_cursors;
    [#[tokio::test]] calls_fail_in_time_while_redis_hangs_and_work_again_afterwards;
    [#[tokio::test]] cut_connections_lose_and_repeat_no_events;
    [#[tokio::test]] a_change_on_too_few_redis_replicas_is_reported_as_failed;
    [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]] replicas_survive_a_cluster_failover_under_load;
}

async fn events_cross_replicas_and_cursors_resume_on_another_replica(kind: ServerKind) {
    let server = kind.start(&[]);
    let url = server.url(PARAMETERS);
    let (a, b) = (Replica::start(&url).await, Replica::start(&url).await);
    let mut held = a.watch(Start::Snapshot).await;
    held.converges_to(&[]).await;
    b.storage.create(&keys(0..50), None).await.unwrap();
    held.converges_to(&keys(0..50)).await;
    let cursor = held.observer.cursor().unwrap();
    // The observer's replica dies, and the registry changes before the observer resumes on another replica.
    drop((held.observer, a));
    b.storage.destroy(&keys(10..20), None).await.unwrap();
    let c = Replica::start(&url).await;
    for replica in [&b, &c] {
        let mut resumed = replica.watch(Start::After(cursor.clone())).await;
        resumed.sessions.clone_from(&held.view.sessions);
        resumed.is_synced = true;
        resumed.converges_to(&[keys(0..10), keys(20..50)].concat()).await;
        assert_eq!(resumed.resets, []);
    }
}

async fn calls_fail_in_time_while_redis_is_down_and_an_empty_redis_resets_streams(kind: ServerKind) {
    let mut server = kind.start(&[]);
    let url = server.url(PARAMETERS);
    let (a, b) = (Replica::start(&url).await, Replica::start(&url).await);
    create(&*a.storage, &keys(0..50)).await;
    let mut held = [a.watch(Start::Snapshot).await, b.watch(Start::Snapshot).await];
    for held in &mut held {
        held.converges_to(&keys(0..50)).await;
    }
    let old = held[0].observer.cursor().unwrap();
    server.kill();
    assert_unavailable(&*a.storage).await;
    assert_unavailable(&*b.storage).await;
    // The restarted Redis is empty, so this is a new registry.
    server.restart();
    create(&*b.storage, &keys(100..110)).await;
    for held in &mut held {
        held.resyncs_after(ResetReason::StorageRestarted).await;
        held.converges_to(&keys(100..110)).await;
    }
    let c = Replica::start(&url).await;
    for replica in [&a, &b, &c] {
        let mut late = replica.watch(Start::After(old.clone())).await;
        late.resyncs_after(ResetReason::CursorForeign).await;
        late.converges_to(&keys(100..110)).await;
    }
}

async fn a_flush_under_a_live_connection_resets_streams(kind: ServerKind) {
    let server = kind.start(&[]);
    let a = Replica::start(&server.url(PARAMETERS)).await;
    create(&*a.storage, &keys(0..50)).await;
    let mut held = a.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..50)).await;
    let () = server.ask(&cmd("FLUSHALL")).unwrap();
    held.resyncs_after(ResetReason::StorageRestarted).await;
    held.converges_to(&[]).await;
}

async fn an_old_dump_makes_cursors_of_lost_changes_foreign(kind: ServerKind) {
    let mut server = kind.start(&[]);
    let url = server.url(PARAMETERS);
    let a = Replica::start(&url).await;
    create(&*a.storage, &keys(0..50)).await;
    let mut held = a.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..50)).await;
    let () = server.ask(&cmd("SAVE")).unwrap();
    create(&*a.storage, &keys(50..80)).await;
    held.converges_to(&keys(0..80)).await;
    let lost = held.observer.cursor().unwrap();
    server.restart();
    // The log grows past its old end, with other changes at the same positions.
    create(&*a.storage, &keys(200..260)).await;
    held.resyncs_after(ResetReason::StorageRestarted).await;
    let now = [keys(0..50), keys(200..260)].concat();
    held.converges_to(&now).await;
    let b = Replica::start(&url).await;
    let mut late = b.watch(Start::After(lost)).await;
    late.resyncs_after(ResetReason::CursorForeign).await;
    late.converges_to(&now).await;
}

async fn a_restart_of_a_durable_redis_keeps_all_cursors(kind: ServerKind) {
    let mut server = kind.start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let url = server.url(PARAMETERS);
    let a = Replica::start(&url).await;
    create(&*a.storage, &keys(0..50)).await;
    let mut held = a.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..50)).await;
    server.restart();
    create(&*a.storage, &keys(50..60)).await;
    held.converges_to(&keys(0..60)).await;
    assert_eq!(held.resets, [], "nothing was lost");
}

async fn calls_fail_in_time_while_redis_hangs_and_work_again_afterwards(kind: ServerKind) {
    let server = kind.start(&[]);
    let a = Replica::start(&server.url(PARAMETERS)).await;
    create(&*a.storage, &keys(0..50)).await;
    let mut held = a.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..50)).await;
    server.signal("STOP");
    assert_unavailable(&*a.storage).await;
    server.signal("CONT");
    // Changes whose calls failed may have taken effect; they are made again.
    create(&*a.storage, &keys(0..60)).await;
    a.storage.destroy(&keys(1000..1020), None).await.unwrap();
    held.converges_to(&keys(0..60)).await;
    assert_eq!(held.resets, [], "nothing was lost");
}

async fn cut_connections_lose_and_repeat_no_events(kind: ServerKind) {
    const ROUNDS: i64 = 30;
    let server = kind.start(&[]);
    let url = server.url(PARAMETERS);
    let (a, b) = (Replica::start(&url).await, Replica::start(&url).await);
    let mut held = b.watch(Start::Snapshot).await;
    let cutting = async {
        for _ in 0..ROUNDS {
            let _: i64 =
                server.ask(cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes")).unwrap();
            sleep(Duration::from_millis(20)).await;
        }
    };
    let writing = async {
        for n in 0..ROUNDS {
            let some = keys(n * 100..n * 100 + 40);
            for _ in 0..2 {
                create(&*a.storage, &some).await;
                eventually(|| async { a.storage.destroy(&some[..20], None).await.ok() }).await;
            }
        }
    };
    tokio::join!(cutting, writing);
    let left: Vec<SessionKey> = (0..ROUNDS).flat_map(|n| keys(n * 100 + 20..n * 100 + 40)).collect();
    held.converges_to(&left).await;
    assert_eq!(held.resets, []);
    assert_eq!(a.storage.session_count().await.unwrap(), left.len() as u64);
}

#[tokio::test]
async fn a_replica_behind_a_trimmed_log_resets_and_is_exact() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let url = server.url(PARAMETERS);
    let options = ROOMY.retain_events(100);
    let slow = Replica::start_with(&url, options).await;
    let mut held = slow.watch(Start::Snapshot).await;
    held.converges_to(&[]).await;
    // The writer runs on its own thread, while the slow replica's thread is blocked in `join`.
    let writer = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fast = open(&url, options).await;
            for n in 0..20 {
                fast.create(&keys(n * 100..n * 100 + 100), None).await.unwrap();
            }
        });
    });
    writer.join().unwrap();
    held.resyncs_after(ResetReason::Lagged).await;
    held.converges_to(&keys(0..2000)).await;
}

/// If a replica dies during a sweep, another one finishes it and destroys each session once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_finishes_an_interrupted_sweep() {
    const SESSIONS: i64 = 20_000;
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let url = server.url("timeout_ms=300&buckets=1024");
    let b = Replica::start(&url).await;
    let mut held = b.watch(Start::Snapshot).await;
    let dying = open(&url, ROOMY).await;
    let lease = dying.grant_lease(Duration::from_secs(600), "gateway").await.unwrap();
    for some in keys(0..SESSIONS).chunks(2000) {
        dying.create(some, Some(lease)).await.unwrap();
    }
    dying.create(&keys(SESSIONS..SESSIONS + 10), None).await.unwrap();
    let all = keys(0..SESSIONS + 10);
    held.converges_to(&all).await;
    let revoking = tokio::spawn({
        let dying = Arc::clone(&dying);
        async move { dying.revoke_lease(lease).await }
    });
    while held.sessions.len() == all.len() {
        held.read().await;
    }
    revoking.abort();
    let _ = revoking.await;
    drop(dying);
    held.converges_to(&keys(SESSIONS..SESSIONS + 10)).await;
    assert_eq!(held.resets, []);
}

/// An outage of Redis ends no session: each lease gets its full ttl again afterwards.
#[tokio::test]
async fn leases_get_their_full_ttl_again_after_an_outage() {
    const TTL: Duration = Duration::from_secs(2);
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let a = Replica::start(&server.url(PARAMETERS)).await;
    let lease = a.storage.grant_lease(TTL, "gateway").await.unwrap();
    a.storage.create(&keys(0..5), Some(lease)).await.unwrap();
    let mut held = a.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..5)).await;
    server.signal("STOP");
    // The ttl passes by Redis' clock while the lease cannot be kept alive.
    sleep(TTL + Duration::from_secs(1)).await;
    server.signal("CONT");
    let back = Instant::now();
    held.converges_to(&[]).await;
    let after = back.elapsed();
    assert!(
        after >= TTL - Duration::from_millis(50),
        "the lease expired {after:?} after an outage, with a ttl of {TTL:?}"
    );
}

#[tokio::test]
async fn opening_with_a_different_layout_is_refused() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let a = open(&server.url("partitions=2&buckets=64"), ROOMY).await;
    assert_eq!(
        open(&server.url(""), ROOMY).await.layout(),
        a.layout(),
        "a URL without a layout takes the registry's own"
    );
    let other: sessiond::storage::StorageUrl = server.url("partitions=4&buckets=64").parse().unwrap();
    let error = other.open(ROOMY).await.unwrap_err().to_string();
    assert!(error.contains("partitions=2&buckets=64"), "{error}");
    let one = open(&server.url("registry=one"), ROOMY).await;
    assert!(one.log().await.unwrap().registry_id != a.log().await.unwrap().registry_id, "registries are separate");
}

async fn a_change_on_too_few_redis_replicas_is_reported_as_failed(kind: ServerKind) {
    let server = kind.start(&[]);
    let plain = open(&server.url("buckets=64"), ROOMY).await;
    let strict = open(&server.url("buckets=64&wait_replicas=1&wait_timeout_ms=100"), ROOMY).await;
    let outcome = strict.create(&keys(0..1), None).await;
    assert!(matches!(outcome, Err(StorageError::Unavailable(_))), "{outcome:?}");
    assert_eq!(plain.has(&keys(0..1)).await.unwrap(), [true], "the change took effect, and a retry is safe");
    let follower = kind.start_replica(&server, &[]);
    let created = eventually(|| async { strict.create(&keys(0..2), None).await.ok() }).await;
    assert!(!created[0]);
    let _: i64 = follower.ask(&cmd("DBSIZE")).unwrap();
}

/// One of three masters dies for good under load, and its replica takes over.
async fn replicas_survive_a_cluster_failover_under_load(kind: ServerKind) {
    let mut cluster = RedisCluster::start_kind(kind, 1, NODE_TIMEOUT, &[]);
    let url = cluster.url("timeout_ms=500&partitions=6&buckets=48");
    let (a, b) = (Replica::start(&url).await, Replica::start(&url).await);
    let mut held = b.watch(Start::Snapshot).await;
    held.converges_to(&[]).await;
    let storage = Arc::clone(&a.storage);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn(async move {
        let mut n = 0;
        while !*stopped.borrow() {
            let some = keys(n..n + 8);
            create(&*storage, &some).await;
            if n % 16 == 0 {
                eventually(|| async { storage.destroy(&some, None).await.ok() }).await;
            }
            n += 8;
            sleep(Duration::from_millis(1)).await;
        }
        n
    });
    let following = async {
        for _ in 0..100 {
            held.read().await;
        }
    };
    following.await;
    tokio::task::block_in_place(|| {
        cluster.nodes[1].kill();
        cluster.wait("the cluster to fail over", |cluster| {
            let nodes: String = cluster.nodes[0].ask(cmd("CLUSTER").arg("NODES")).unwrap();
            let masters = nodes.lines().filter(|line| line.contains("master") && !line.contains("fail")).count();
            masters == MASTERS && cluster.nodes[0].cluster_info().contains("cluster_state:ok")
        });
    });
    let survived = eventually(|| async { a.storage.create(&keys(-100..0), None).await.ok() });
    survived.await;
    sleep(Duration::from_millis(300)).await;
    stop.send_replace(true);
    let written = writing.await.unwrap();
    // Changes that the dead master had not replicated are lost, which resets the observers. They hold what exists now.
    let now = existing_of(keys(-100..written), &a).await;
    assert!(now.len() > 100);
    held.converges_to(&now).await;
    let mut fresh = a.watch(Start::Snapshot).await;
    fresh.converges_to(&now).await;
}

/// A cluster node comes back empty. The sessions of the other nodes survive under a new registry id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_node_that_comes_back_empty_resets_streams_and_leaves_no_ghosts() {
    if !is_installed() {
        return;
    }
    let mut cluster = RedisCluster::start(0);
    let url = cluster.url("timeout_ms=500&partitions=6&buckets=48");
    let (a, b) = (Replica::start(&url).await, Replica::start(&url).await);
    for node in 0..MASTERS {
        let mut held = b.watch(Start::Snapshot).await;
        create(&*a.storage, &keys(0..300)).await;
        let lease = a.storage.grant_lease(Duration::from_secs(600), "").await.unwrap();
        a.storage.create(&keys(300..400), Some(lease)).await.unwrap();
        held.converges_to(&keys(0..400)).await;
        let old = held.observer.cursor().unwrap();
        cluster.restart(node);
        held.resyncs_after(ResetReason::StorageRestarted).await;
        let left = existing_of(keys(0..400), &a).await;
        assert!(left.len() < 400);
        held.converges_to(&left).await;
        // The replica may not have switched to the new id yet.
        let mut late = a.watch(Start::After(old)).await;
        while !late.is_synced || late.resets.is_empty() {
            late.read().await;
        }
        late.converges_to(&left).await;
        assert_eq!(a.storage.session_count().await.unwrap(), left.len() as u64);
        // The lease was lost with its node or still exists. In both cases it leaves no ghosts.
        match a.storage.revoke_lease(lease).await {
            Ok(_) | Err(StorageError::UnknownLease(_)) => {}
            Err(error) => panic!("{error}"),
        }
        let leased = a.storage.has(&keys(300..400)).await.unwrap();
        assert!(leased.iter().all(|exists| !exists), "an ended lease still has a session");
        a.storage.destroy(&keys(0..300), None).await.unwrap();
        held.converges_to(&[]).await;
    }
}

/// A cluster node comes back with an old dump. If it held the leases, those granted since the dump are lost, and so are
/// their sessions on other nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_node_with_an_old_dump_leaves_no_ghosts() {
    if !is_installed() {
        return;
    }
    let mut cluster = RedisCluster::start(0);
    let url = cluster.url("timeout_ms=500&partitions=6&buckets=48");
    let (a, b) = (Replica::start(&url).await, Replica::start(&url).await);
    for node in 0..MASTERS {
        let mut held = b.watch(Start::Snapshot).await;
        create(&*a.storage, &keys(0..100)).await;
        let () = cluster.nodes[node].ask(&cmd("SAVE")).unwrap();
        let lease = a.storage.grant_lease(Duration::from_secs(600), "").await.unwrap();
        a.storage.create(&keys(100..300), Some(lease)).await.unwrap();
        held.converges_to(&keys(0..300)).await;
        cluster.restart(node);
        held.resyncs_after(ResetReason::StorageRestarted).await;
        match a.storage.revoke_lease(lease).await {
            Ok(_) | Err(StorageError::UnknownLease(_)) => {}
            Err(error) => panic!("{error}"),
        }
        held.converges_to(&keys(0..100)).await;
        assert_eq!(a.storage.session_count().await.unwrap(), 100);
    }
}

/// The first partition loses the newest leases but no change. No stream is reset, and the sessions of those leases end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_forgotten_by_redis_leave_no_ghosts() {
    if !is_installed() {
        return;
    }
    let mut cluster = RedisCluster::start(0);
    let a = Replica::start(&cluster.url("timeout_ms=500&partitions=6&buckets=48")).await;
    let node_of = |partition: u32| {
        let slot: usize =
            cluster.nodes[0].ask(cmd("CLUSTER").arg("KEYSLOT").arg(format!("{{sessiond:{partition}}}"))).unwrap();
        (0..MASTERS).rev().find(|node| slot >= node * 16_384 / MASTERS).unwrap()
    };
    let first = node_of(0);
    let elsewhere: Vec<bool> = (0..6).map(|partition| node_of(partition) != first).collect();
    let is_elsewhere = |session: &SessionKey| elsewhere[a.storage.partition_of(a.storage.bucket_of(session)) as usize];
    let leased: Vec<SessionKey> = keys(0..300).into_iter().filter(is_elsewhere).collect();
    let mut held = a.watch(Start::Snapshot).await;
    create(&*a.storage, &keys(300..400)).await;
    let () = cluster.nodes[first].ask(&cmd("SAVE")).unwrap();
    let lease = a.storage.grant_lease(Duration::from_secs(600), "").await.unwrap();
    a.storage.create(&leased, Some(lease)).await.unwrap();
    held.converges_to(&[leased, keys(300..400)].concat()).await;
    tokio::task::block_in_place(|| cluster.nodes[first].restart());
    held.converges_to(&keys(300..400)).await;
    assert_eq!(held.resets, [], "no change was lost");
}
