//! If a call fails because Redis does not answer in time, its change does not happen after a later call was answered.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{SessionStorage, StorageError},
    subject::Start,
};
use tokio::time::{Instant, sleep};

use super::{
    clock::start_with_clock,
    cluster::{MASTERS, RedisCluster},
    gate::Gate,
    replica::{Replica, eventually, keys},
    server::{RedisServer, is_installed},
};
use crate::wall_clock::WallClock;

const HOUR: Duration = Duration::from_secs(3600);

/// How long the tests watch for a late change. A running Redis executes what it was sent within milliseconds.
const WATCH_TIME: Duration = Duration::from_secs(1);

fn parameters(partitions: u32) -> String {
    format!("timeout_ms=200&partitions={partitions}&buckets=48")
}

/// Some sessions that exist and some that do not.
struct Sessions {
    existing: Vec<SessionKey>,
    missing: Vec<SessionKey>,
}

impl Sessions {
    async fn create(storage: &dyn SessionStorage) -> Self {
        let sessions = Self { existing: keys(0..6000), missing: keys(10_000..16_000) };
        storage.create(&sessions.existing, None).await.unwrap();
        sessions
    }

    fn all(&self) -> Vec<SessionKey> {
        [&self.existing[..], &self.missing].concat()
    }
}

fn assert_unavailable<T: std::fmt::Debug>(outcome: Result<T, StorageError>) {
    assert!(matches!(outcome, Err(StorageError::Unavailable(_))), "{outcome:?}");
}

/// Destroys the existing sessions and creates the missing ones while Redis does not answer. The batches fill several
/// scripts, and every call must fail.
async fn fail_changes(storages: &[&Arc<dyn SessionStorage>], sessions: &Sessions) {
    let callers = storages.iter().cycle();
    let creates = sessions.missing.chunks(700).zip(callers.clone()).map(async |(some, storage)| {
        assert_unavailable(storage.create(some, None).await);
    });
    let destroys = sessions.existing.chunks(1300).zip(callers).map(async |(some, storage)| {
        assert_unavailable(storage.destroy(some, None).await);
    });
    tokio::join!(join_all(creates), join_all(destroys));
}

async fn has(storage: &dyn SessionStorage, sessions: &[SessionKey]) -> Vec<bool> {
    eventually(|| async { storage.has(sessions).await.ok() }).await
}

/// Fails if the sessions change after a call has seen them.
async fn assert_unchanged(replicas: &[&Replica], sessions: &[SessionKey], seen: &[bool]) {
    let mut held = replicas[0].watch(Start::Snapshot).await;
    let until = Instant::now() + WATCH_TIME;
    while Instant::now() < until {
        for replica in replicas {
            let now = has(&*replica.storage, sessions).await;
            let changed = now.iter().zip(seen).filter(|(now, seen)| now != seen).count();
            assert_eq!(
                changed, 0,
                "sessions changed after a later call was answered, because of a call that had failed"
            );
        }
        sleep(WATCH_TIME / 20).await;
    }
    let exist: Vec<_> = sessions.iter().zip(seen).filter(|(_, exists)| **exists).map(|(session, _)| *session).collect();
    held.converges_to(&exist).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_fail_while_redis_is_paused_change_nothing_later() {
    const ROUNDS: usize = 3;
    if !is_installed() {
        return;
    }
    for round in 0..ROUNDS {
        let server = RedisServer::start(&[]);
        let url = server.url(&parameters([1, 3][round % 2]));
        let replicas = [Replica::start(&url).await, Replica::start(&url).await, Replica::start(&url).await];
        let [a, b, c] = &replicas;
        let sessions = Sessions::create(&*a.storage).await;
        server.signal("STOP");
        fail_changes(&[&a.storage, &b.storage], &sessions).await;
        server.signal("CONT");
        let seen = has(&*c.storage, &sessions.all()).await;
        assert_unchanged(&[c, a, b], &sessions.all(), &seen).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_fail_while_a_cluster_node_is_paused_change_nothing_later() {
    if !is_installed() {
        return;
    }
    let cluster = RedisCluster::start(0);
    let url = cluster.url(&parameters(6));
    let [a, b, c] = [Replica::start(&url).await, Replica::start(&url).await, Replica::start(&url).await];
    for (node, first) in (0..MASTERS).zip((0..).step_by(100_000)) {
        let all = keys(first..first + 9000);
        cluster.nodes[node].signal("STOP");
        let callers = [&a.storage, &b.storage].into_iter().cycle();
        // Some of the sessions are in partitions on other nodes, which do answer.
        let creates = all.chunks(3000).zip(callers).map(async |(some, storage)| storage.create(some, None).await);
        join_all(creates).await.into_iter().for_each(assert_unavailable);
        cluster.nodes[node].signal("CONT");
        let seen = has(&*c.storage, &all).await;
        assert_unchanged(&[&c, &a, &b], &all, &seen).await;
        eventually(|| async { c.storage.destroy(&all, None).await.ok() }).await;
    }
}

/// Redis answers the other replica all the time; only the connections of one replica are stuck.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_fail_over_a_stuck_connection_change_nothing_later() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let gate = Gate::before(&server).await;
    for (round, partitions) in [1, 3].into_iter().enumerate() {
        let parameters = format!("{}&registry=r{round}", parameters(partitions));
        let [a, b] = [Replica::start(&gate.url(&parameters)).await, Replica::start(&server.url(&parameters)).await];
        let sessions = Sessions::create(&*b.storage).await;
        gate.shut();
        fail_changes(&[&a.storage], &sessions).await;
        // These calls see the sessions that the failed calls were to destroy, and change some of them.
        let again = &sessions.existing[..500];
        assert_eq!(b.storage.destroy(again, None).await.unwrap(), [true; 500]);
        assert_eq!(b.storage.create(again, None).await.unwrap(), [true; 500]);
        let seen = has(&*b.storage, &sessions.all()).await;
        gate.open();
        assert_unchanged(&[&b, &a], &sessions.all(), &seen).await;
    }
}

/// If the clock is set back by far more than the timeout, a waiting script does not get more time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_fail_before_the_clock_is_set_back_change_nothing_later() {
    let Some((server, clock)) = start_with_clock(WallClock::new()) else { return };
    let gate = Gate::before(&server).await;
    let parameters = parameters(2);
    let [a, b] = [Replica::start(&gate.url(&parameters)).await, Replica::start(&server.url(&parameters)).await];
    // The test avoids the first partition, whose clock is stored more often because the leases' clock moves there.
    let in_second = |session: &SessionKey| a.storage.partition_of(a.storage.bucket_of(session)) == 1;
    for round in 1..=3 {
        let first = 1000 * round;
        let sessions: Vec<_> = keys(first..first + 300).into_iter().filter(in_second).collect();
        let (existing, missing) = sessions.split_at(sessions.len() / 2);
        b.storage.create(existing, None).await.unwrap();
        eventually(|| async { a.storage.create(existing, None).await.ok() }).await;
        gate.shut();
        let (created, destroyed) =
            tokio::join!(a.storage.create(missing, None), async { a.storage.destroy(existing, None).await });
        clock.set(-600 * round);
        assert_unavailable(created);
        assert_unavailable(destroyed);
        let seen = has(&*b.storage, &sessions).await;
        gate.open();
        assert_unchanged(&[&b, &a], &sessions, &seen).await;
        b.storage.destroy(&sessions, None).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_calls_that_fail_over_a_stuck_connection_change_nothing_later() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let gate = Gate::before(&server).await;
    let parameters = parameters(3);
    let [a, b] = [Replica::start(&gate.url(&parameters)).await, Replica::start(&server.url(&parameters)).await];
    let [lives, moved_from] =
        [b.storage.grant_lease(HOUR, "").await.unwrap(), b.storage.grant_lease(HOUR, "").await.unwrap()];
    let (held, moved, late) = (keys(0..500), keys(500..1000), keys(1000..1500));
    b.storage.create(&held, Some(lives)).await.unwrap();
    b.storage.create(&moved, Some(moved_from)).await.unwrap();
    gate.shut();
    tokio::join!(
        async { assert_unavailable(a.storage.revoke_lease(lives).await) },
        async { assert_unavailable(a.storage.grant_lease(HOUR, "").await) },
        async { assert_unavailable(a.storage.create(&moved, Some(lives)).await) },
        async { assert_unavailable(a.storage.create(&late, Some(moved_from)).await) },
        async { assert_unavailable(a.storage.destroy(&held, Some(lives)).await) },
    );
    b.storage.keep_lease_alive(lives).await.expect("a failed revocation has no effect");
    let leases = b.storage.lease_count().await.unwrap();
    assert_eq!(leases, 2);
    let all = [held.clone(), moved.clone(), late].concat();
    let seen = has(&*b.storage, &all).await;
    gate.open();
    assert_unchanged(&[&b, &a], &all, &seen).await;
    assert_eq!(b.storage.lease_count().await.unwrap(), leases);
    // No session moved either: each lease ends with the sessions it had.
    let revoke = async |lease: LeaseId| b.storage.revoke_lease(lease).await.unwrap();
    assert_eq!([revoke(lives).await, revoke(moved_from).await], [500, 500]);
}
