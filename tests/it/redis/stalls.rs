//! Redis does not answer or answers late. Every call is answered within twice `timeout_ms`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use redis::cmd;
use sessiond::{
    session::LeaseId,
    storage::{SessionStorage, StorageError},
};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep},
};

use crate::program::{Program, get};

use super::{
    ROOMY, open,
    replica::{eventually, keys},
    server::{RedisServer, ServerKind, is_installed},
};

const TIMEOUT_MS: u64 = 400;

/// The documented limit, and some slack for a busy machine.
const LIMIT: Duration = Duration::from_millis(2 * TIMEOUT_MS + 400);

/// How often the tests measure how long this machine delays a task.
const TICK: Duration = Duration::from_millis(10);

/// The kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    CreateBatch,
    HasBatch,
    DestroyBatch,
    Create,
    Has,
    Destroy,
    Grant,
    Keep,
    Revoke,
    Log,
    SessionCount,
    LeaseCount,
}

/// How many callers make calls of each kind.
const CALLERS: [(Kind, usize); 12] = [
    (Kind::CreateBatch, 3),
    (Kind::HasBatch, 3),
    (Kind::DestroyBatch, 2),
    (Kind::Create, 3),
    (Kind::Has, 6),
    (Kind::Destroy, 2),
    (Kind::Grant, 2),
    (Kind::Keep, 4),
    (Kind::Revoke, 1),
    (Kind::Log, 1),
    (Kind::SessionCount, 1),
    (Kind::LeaseCount, 1),
];

async fn call(storage: &dyn SessionStorage, kind: Kind, n: i64, lease: LeaseId) -> Result<(), StorageError> {
    let batch = || keys(n..n + fastrand::i64(600..2000));
    let one = || keys(n..n + 1);
    match kind {
        Kind::CreateBatch => storage.create(&batch(), Some(lease)).await.map(drop),
        Kind::HasBatch => storage.has(&batch()).await.map(drop),
        Kind::DestroyBatch => storage.destroy(&batch(), None).await.map(drop),
        Kind::Create => storage.create(&one(), Some(lease)).await.map(drop),
        Kind::Has => storage.has(&one()).await.map(drop),
        Kind::Destroy => storage.destroy(&one(), None).await.map(drop),
        Kind::Grant => storage.grant_lease(Duration::from_secs(3600), "").await.map(drop),
        Kind::Keep => storage.keep_lease_alive(lease).await.map(drop),
        Kind::Revoke => storage.revoke_lease(LeaseId::from_number(n as u64 + 1).unwrap()).await.map(drop),
        Kind::Log => storage.log().await.map(drop),
        Kind::SessionCount => storage.session_count().await.map(drop),
        Kind::LeaseCount => storage.lease_count().await.map(drop),
    }
}

/// The longest call of each kind, and how many calls failed.
type Longest = BTreeMap<Kind, (Duration, usize)>;

/// Measures the longest time that a runnable task had to wait for the machine, until `is_over` is set.
async fn scheduling_delay(is_over: Arc<AtomicBool>) -> Duration {
    let mut longest = Duration::ZERO;
    while !is_over.load(Ordering::Relaxed) {
        let began = Instant::now();
        sleep(TICK).await;
        longest = longest.max(began.elapsed() - TICK);
    }
    longest
}

/// Runs many callers concurrently until `trouble` is over. Also returns how long the machine delayed tasks.
async fn callers(storage: &Arc<dyn SessionStorage>, trouble: impl Future<Output = ()>) -> (Longest, Duration) {
    let lease = eventually(|| async { storage.grant_lease(Duration::from_secs(3600), "gateway").await.ok() }).await;
    let (is_over, longest) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Longest::new())));
    let next = Arc::new(AtomicI64::new(0));
    let scheduling_delay = tokio::spawn(scheduling_delay(Arc::clone(&is_over)));
    let mut calling = JoinSet::new();
    for kind in CALLERS.into_iter().flat_map(|(kind, count)| vec![kind; count]) {
        let (storage, next) = (Arc::clone(storage), Arc::clone(&next));
        let (is_over, longest) = (Arc::clone(&is_over), Arc::clone(&longest));
        calling.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let n = next.fetch_add(1, Ordering::Relaxed) % 50_000;
                let began = Instant::now();
                let outcome = call(&*storage, kind, n, lease).await;
                let took = began.elapsed();
                let failed = match outcome {
                    Ok(()) | Err(StorageError::UnknownLease(_)) => 0,
                    Err(StorageError::Unavailable(_)) => 1,
                    Err(error) => panic!("{kind:?}: {error:?}"),
                };
                let mut longest = longest.lock();
                let (most, failures) = longest.entry(kind).or_default();
                (*most, *failures) = ((*most).max(took), *failures + failed);
            }
        });
    }
    trouble.await;
    is_over.store(true, Ordering::Relaxed);
    while let Some(caller) = calling.join_next().await {
        caller.unwrap();
    }
    (Arc::into_inner(longest).unwrap().into_inner(), scheduling_delay.await.unwrap())
}

fn check((longest, scheduling_delay): &(Longest, Duration)) {
    assert!(
        longest.values().any(|(_, failures)| *failures > 0),
        "no call failed, so Redis was never stuck: {longest:?}"
    );
    let late: Vec<_> = longest.iter().filter(|(_, (took, _))| *took > LIMIT + *scheduling_delay).collect();
    assert!(
        late.is_empty(),
        "calls took longer than {LIMIT:?} although the machine delayed tasks for at most {scheduling_delay:?}: {late:?}"
    );
}

async fn storage(server: &RedisServer, partitions: u32) -> Arc<dyn SessionStorage> {
    open(&server.url(&format!("timeout_ms={TIMEOUT_MS}&partitions={partitions}&buckets=96")), ROOMY).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_answered_in_time_while_redis_is_paused() {
    if !is_installed() {
        return;
    }
    for (partitions, times) in [(1, &[2500, 300, 700][..]), (3, &[1000])] {
        let server = RedisServer::start(&[]);
        let storage = storage(&server, partitions).await;
        let stopping = async {
            sleep(Duration::from_millis(200)).await;
            for stuck in times {
                server.signal("STOP");
                sleep(Duration::from_millis(*stuck)).await;
                server.signal("CONT");
                sleep(Duration::from_millis(200)).await;
            }
        };
        check(&callers(&storage, stopping).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_answered_in_time_while_redis_is_slow() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(ServerKind::Redis.with_debug());
    let storage = storage(&server, 1).await;
    let sleeping = spawn_blocking(move || {
        for seconds in ["1.1", "0.3", "0.35", "0.5", "0.2", "0.5"] {
            let () = server.ask(cmd("DEBUG").arg("SLEEP").arg(seconds)).unwrap();
        }
        server
    });
    check(&callers(&storage, async { drop(sleeping.await.unwrap()) }).await);
}

#[tokio::test]
async fn metrics_do_not_wait_for_a_stuck_redis() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&[]);
    let program = Program::start(&["--storage", &redis.url("")]).await;
    assert_eq!(program.metric("sessiond_sessions").await, 0);
    assert_eq!(program.metric("sessiond_leases").await, 0);
    redis.signal("STOP");
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let began = Instant::now();
        let page = get(program.admin, "/metrics").await;
        slowest = slowest.max(began.elapsed());
        assert_eq!(page.status, 200);
        assert!(page.body.contains("sessiond_connections"));
    }
    redis.signal("CONT");
    assert!(slowest < Duration::from_millis(800), "{slowest:?}");
    // The figures from Redis come back.
    eventually(async || get(program.admin, "/metrics").await.body.contains("\nsessiond_sessions ").then_some(())).await;
}
