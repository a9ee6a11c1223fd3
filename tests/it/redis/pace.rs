//! How often the replicas of a fleet read the log.

use std::time::Duration;

use futures_util::future::join_all;
use redis::cmd;
use sessiond::{storage::SessionStorage, subject::Start};
use tokio::{
    join,
    time::{Instant, sleep},
};

use super::{
    ROOMY, open,
    refusals::{Trouble, writability_becomes},
    replica::{Held, Replica, eventually, keys, run_all},
    server::{RedisServer, ServerKind, is_installed, on_each_server},
};

/// The key of the partition's replicas, by the time of their last probe.
const REPLICAS: &str = "{r:0}:replicas";

/// A time that never comes.
const NEVER: u64 = 1 << 52;

/// More replicas than a test can start.
const LARGE: u32 = 100;

/// The pause of a fleet of this size, at least.
const PAUSE: Duration = Duration::from_micros(19_400);

fn url(server: &RedisServer) -> String {
    server.url("registry=r&partitions=1&buckets=64&timeout_ms=10000")
}

/// Adds so many replicas whose last probe was at this time.
fn add_replicas(server: &RedisServer, count: u32, time: u64) {
    let mut add = cmd("ZADD");
    add.arg(REPLICAS);
    for replica in 0..count {
        add.arg(time).arg(format!("{time}-{replica}"));
    }
    assert_eq!(server.ask::<u32>(&add).unwrap(), count);
}

/// Waits until a replica knows of at least so many replicas.
async fn counts_at_least(storage: &dyn SessionStorage, replicas: u32) {
    eventually(|| async { (storage.replicas() >= replicas).then_some(()) }).await;
}

/// Starts two replicas of a large fleet.
async fn start_in_large_fleet(server: &RedisServer) -> [Replica; 2] {
    // The registry is created.
    drop(open(&url(server), ROOMY).await);
    add_replicas(server, LARGE - 2, NEVER);
    let replicas = [Replica::start(&url(server)).await, Replica::start(&url(server)).await];
    for replica in &replicas {
        counts_at_least(&*replica.storage, LARGE).await;
    }
    replicas
}

/// Returns how often Redis has been asked to read a log.
fn reads(server: &RedisServer) -> f64 {
    let stats = server.info("commandstats", "cmdstat_xread").unwrap();
    let calls = stats.split(',').find_map(|field| field.strip_prefix("calls="));
    calls.unwrap().parse().unwrap()
}

on_each_server! {
    [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]] replicas_are_counted_while_they_probe;
    [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]] a_large_fleet_pauses_between_reads_of_a_busy_log;
}

async fn replicas_are_counted_while_they_probe(kind: ServerKind) {
    let server = kind.start(&[]);
    let [a, b] = [open(&url(&server), ROOMY).await, open(&url(&server), ROOMY).await];
    let count = async |replicas: u32| {
        let is_counted = || async { (a.replicas() == replicas && b.replicas() == replicas).then_some(()) };
        eventually(is_counted).await;
    };
    count(2).await;
    add_replicas(&server, 1, NEVER);
    count(3).await;
    // Replicas that have not probed for a long time are forgotten.
    add_replicas(&server, 50, 1);
    eventually(|| async { (server.ask::<u32>(cmd("ZCARD").arg(REPLICAS)).unwrap() == 3).then_some(()) }).await;
    count(3).await;
}

async fn a_large_fleet_pauses_between_reads_of_a_busy_log(kind: ServerKind) {
    const CHANGES: i64 = 800;
    let server = kind.start(&[]);
    let [a, b] = start_in_large_fleet(&server).await;
    let mut early = [a.watch(Start::Snapshot).await, b.watch(Start::Snapshot).await];
    for held in &mut early {
        held.converges_to(&[]).await;
    }
    let began = Instant::now();
    let before = reads(&server);
    let writing = async {
        for n in 0..CHANGES {
            assert_eq!(a.storage.create(&keys(n..n + 1), None).await.unwrap(), [true]);
        }
    };
    // These take their snapshots while the tails are behind the log.
    let observing = async {
        let late = [&a, &b].map(async |replica| {
            let mut held = replica.watch(Start::Snapshot).await;
            held.converges_to(&keys(0..CHANGES)).await;
            assert_eq!(held.resets, []);
        });
        join_all(late).await;
    };
    join!(writing, observing);
    let count = reads(&server) - before;
    let seconds = began.elapsed().as_secs_f64();
    for held in &mut early {
        held.converges_to(&keys(0..CHANGES)).await;
        assert_eq!(held.resets, []);
    }
    // Besides the paced reads, there is one at each check of the log, that is once a second.
    let most = 2.0 * (seconds / PAUSE.as_secs_f64() + seconds + 5.0);
    assert!(count <= most, "{count} reads in {seconds:.3} s, which is more than {most:.1}");
}

/// Creates a session through one replica. Returns after how long an observer of the other receives it.
async fn delay(n: i64, writer: &Replica, observer: &mut Held) -> Duration {
    let began = Instant::now();
    assert_eq!(writer.storage.create(&keys(n..n + 1), None).await.unwrap(), [true]);
    observer.converges_to(&keys(0..n + 1)).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_after_a_quiet_time_is_read_without_a_pause() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let [a, b] = start_in_large_fleet(&server).await;
    let mut held = b.watch(Start::Snapshot).await;
    held.converges_to(&[]).await;
    let mut least = Duration::MAX;
    for n in 0..20 {
        // Both tails wait for a change, and have done so for longer than a pause.
        sleep(2 * PAUSE).await;
        let is_waiting = || async { server.info("clients", "blocked_clients").filter(|blocked| blocked == "2") };
        eventually(is_waiting).await;
        least = least.min(delay(n, &a, &mut held).await);
    }
    assert!(least < PAUSE / 2, "a change took at least {least:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_read_without_a_pause() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let [a, b] = [Replica::start(&url(&server)).await, Replica::start(&url(&server)).await];
    counts_at_least(&*b.storage, 2).await;
    let mut held = b.watch(Start::Snapshot).await;
    held.converges_to(&[]).await;
    let mut delays = Vec::new();
    for n in 0..200 {
        delays.push(delay(n, &a, &mut held).await);
    }
    // Each change is in a read of its own, so with pauses there would be at least three in the time of five changes.
    let least = delays.windows(5).map(|five| five.iter().sum::<Duration>()).min().unwrap();
    assert!(least < 2 * PAUSE, "five changes took at least {least:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_count_stays_while_redis_refuses_changes() {
    if is_installed() {
        run_all(Trouble::ALL.map(|trouble| (format!("{trouble:?}"), count_stays(trouble)))).await;
    }
}

async fn count_stays(trouble: Trouble) {
    let server = RedisServer::start(&[]);
    let storage = open(&server.url("registry=r&partitions=1&buckets=64&timeout_ms=300"), ROOMY).await;
    add_replicas(&server, LARGE, NEVER);
    counts_at_least(&*storage, LARGE + 1).await;
    trouble.begin(&server).await;
    writability_becomes(&*storage, Some(trouble.cause())).await;
    assert_eq!(storage.replicas(), LARGE + 1);
    trouble.end(&server).await;
    writability_becomes(&*storage, None).await;
    assert_eq!(storage.replicas(), LARGE + 1);
}
