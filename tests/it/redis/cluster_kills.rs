//! Kills the masters of a Redis Cluster one after another. Every replica of sessiond recovers, whether busy or idle.
//!
//! `SESSIOND_TEST_KILLS` sets how many masters are killed, with a node timeout of five seconds. The default is two
//! kills with a shorter timeout.

use std::{env, ops::Range, sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::cmd;
use sessiond::{
    session::SessionKey,
    storage::{SessionStorage, StorageError},
    subject::Start,
};
use tokio::{
    sync::watch,
    task::block_in_place,
    time::{Instant, sleep, timeout_at},
};

use super::{
    ROOMY,
    cluster::{MASTERS, NODE_TIMEOUT, RedisCluster},
    open,
    replica::{PATIENCE, Replica, existing_of, keys},
    server::{ServerKind, is_installed},
};

const LONG_NODE_TIMEOUT: Duration = Duration::from_secs(5);

const WRITERS: usize = 6;
const BUSY: usize = 4;
const IDLE: usize = 2;

/// Every replica answers within this time after the cluster serves again.
const RECOVERY: Duration = Duration::from_secs(5);

/// Enough sessions that every partition holds some.
const EVERYWHERE: Range<i64> = 1_000_000..1_000_400;

/// The sessions of a writer.
fn own_sessions(writer: usize) -> Vec<SessionKey> {
    let first = writer as i64 * 1000;
    keys(first..first + 600)
}

/// Creates and destroys the writer's own sessions until told to stop. Calls may fail while the storage is unavailable.
async fn write(writer: usize, storage: Arc<dyn SessionStorage>, stopped: watch::Receiver<bool>) {
    let own = own_sessions(writer);
    let is_expected = |error: &StorageError| matches!(error, StorageError::Unavailable(_));
    while !*stopped.borrow() {
        let first = fastrand::usize(..own.len() - 12);
        let some = &own[first..first + fastrand::usize(1..12)];
        let outcome = match fastrand::u8(..3) {
            0 => storage.destroy(some, None).await.map(drop),
            1 => storage.has(some).await.map(drop),
            _ => storage.create(some, None).await.map(drop),
        };
        if let Err(error) = outcome {
            assert!(is_expected(&error), "{error:?}");
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Makes every kind of call, and reaches every partition.
async fn make_every_call(storage: &dyn SessionStorage) -> Result<(), StorageError> {
    let everywhere = keys(EVERYWHERE);
    storage.has(&everywhere).await?;
    storage.create(&everywhere, None).await?;
    storage.destroy(&everywhere, None).await?;
    let lease = storage.grant_lease(Duration::from_secs(60), "").await?;
    storage.revoke_lease(lease).await?;
    storage.log().await.map(drop)
}

async fn answers_by(number: usize, storage: &dyn SessionStorage, deadline: Instant) -> Result<(), String> {
    let mut last = None;
    let asking = async {
        while let Err(error) = make_every_call(storage).await {
            last = Some(error);
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout_at(deadline, asking).await.map_err(|_| format!("replica {number}: {last:?}"))
}

impl RedisCluster {
    /// Kills a master and waits until the other nodes serve without it.
    fn lose(&mut self, master: usize) {
        let lost: String = self.nodes[master].ask(cmd("CLUSTER").arg("MYID")).unwrap();
        self.nodes[master].kill();
        self.wait_for_successor(master, &lost);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_answers_soon_after_a_master_is_killed() {
    if !is_installed() {
        return;
    }
    let kills: Option<usize> = env::var("SESSIOND_TEST_KILLS").ok().map(|kills| kills.parse().unwrap());
    let node_timeout = if kills.is_some() { LONG_NODE_TIMEOUT } else { NODE_TIMEOUT };
    let args = ["--appendonly", "yes", "--appendfsync", "everysec"];
    let mut cluster = block_in_place(|| RedisCluster::start_kind(ServerKind::Redis, 1, node_timeout, &args));
    let url = cluster.url("buckets=1024");
    let mut replicas = Vec::new();
    for _ in 0..BUSY + IDLE {
        replicas.push(Replica::start(&url).await);
    }
    let (stop, stopped) = watch::channel(false);
    let mut observers = Vec::new();
    for replica in &replicas {
        observers.push(replica.watch(Start::Snapshot).await.read_until(stopped.clone()));
    }
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(writer, Arc::clone(&replicas[writer % BUSY].storage), stopped.clone())))
        .collect();

    for round in 0..kills.unwrap_or(2) {
        sleep(Duration::from_millis(500)).await;
        let masters = cluster.masters();
        assert_eq!(masters.len(), MASTERS);
        let master = masters[round % MASTERS];
        block_in_place(|| cluster.lose(master));
        let deadline = Instant::now() + RECOVERY;
        let asked =
            replicas.iter().enumerate().map(|(number, replica)| answers_by(number, &*replica.storage, deadline));
        let silent: Vec<String> = join_all(asked).await.into_iter().filter_map(Result::err).collect();
        // A fresh replica shows that the cluster itself works.
        let fresh = open(&url, ROOMY).await;
        answers_by(replicas.len(), &*fresh, Instant::now() + PATIENCE).await.unwrap();
        assert!(silent.is_empty(), "round {round}: no answer {RECOVERY:?} after the cluster served again: {silent:#?}");
        block_in_place(|| {
            cluster.nodes[master].restart();
            cluster.wait("the node to follow its successor", RedisCluster::is_whole);
        });
    }

    stop.send_replace(true);
    for writer in writers {
        writer.await.unwrap();
    }
    let all: Vec<SessionKey> = (0..WRITERS).flat_map(own_sessions).chain(keys(EVERYWHERE)).collect();
    let left = existing_of(all, &replicas[0]).await;
    for (observer, replica) in observers.into_iter().zip(&replicas) {
        observer.await.unwrap().converges_to(&left).await;
        replica.watch(Start::Snapshot).await.converges_to(&left).await;
    }
}
