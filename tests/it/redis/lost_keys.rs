//! A registry whose keys were deleted.

use std::{fmt, sync::Arc, time::Duration};

use redis::cmd;
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{SessionStorage, StorageError, StorageOptions},
    subject::Start,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    ROOMY, open,
    replica::{Replica, create, existing_of, keys, run_all},
    server::{RedisServer, is_installed},
};

/// The registry serves again within this time.
const HEAL_TIME: Duration = Duration::from_secs(10);

/// The ttl of leases that are not kept alive.
const TTL: Duration = Duration::from_secs(4);

/// How long after its ttl a lease may end that had to be rediscovered.
const SLACK: Duration = Duration::from_secs(10);

/// The endings of key names after `{registry:partition}:`, as patterns for KEYS. Every partition may have these keys.
const OF_EACH_PARTITION: [&str; 9] = [
    "meta",
    "log",
    // The leases with sessions in this partition: by lease, by slot, and their counts.
    "attached",
    "slots",
    "held",
    // The leases being swept, and the buckets of each lease.
    "closed",
    "l????????????????",
    "b*",
    "*",
];

/// The keys that only the first partition has.
const OF_THE_FIRST: [&str; 6] = ["leases", "deadlines", "ended", "claims", "ids", "quotas"];

/// The patterns that match keys in every registry.
const MUST_BE_THERE: [&str; 8] = ["meta", "log", "attached", "b*", "*", "leases", "deadlines", "ids"];

fn options() -> StorageOptions {
    // A short grace, because the test cannot wait for leases that are kept long after an outage.
    ROOMY.outage_grace(Duration::from_secs(1))
}

#[tokio::test]
async fn a_registry_that_loses_keys_heals_with_at_most_one_reset_and_no_ghosts() {
    if !is_installed() {
        return;
    }
    let server = Arc::new(RedisServer::start(&[]));
    run_all(losses(&server).map(|loss| (loss.to_string(), heals(loss)))).await;
}

#[tokio::test]
async fn a_registry_that_lost_keys_while_no_server_ran_serves_again() {
    if !is_installed() {
        return;
    }
    let server = Arc::new(RedisServer::start(&[]));
    run_all(losses(&server).map(|loss| (loss.to_string(), heals_at_the_start(loss)))).await;
}

/// The keys that one registry loses.
struct Loss {
    server: Arc<RedisServer>,
    registry: String,
    partition: u32,
    keys: &'static str,
}

fn losses(server: &Arc<RedisServer>) -> impl Iterator<Item = Loss> {
    let first = OF_EACH_PARTITION.into_iter().chain(OF_THE_FIRST).map(|keys| (0, keys));
    let second = OF_EACH_PARTITION.into_iter().map(|keys| (1, keys));
    (0..).zip(first.chain(second)).map(|(number, (partition, keys))| {
        let (server, registry) = (Arc::clone(server), format!("r{number}"));
        Loss { server, registry, partition, keys }
    })
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of partition {}", self.keys, self.partition)
    }
}

impl Loss {
    fn url(&self) -> String {
        self.server.url(&format!("registry={}&buckets=48&partitions=3", self.registry))
    }

    /// Deletes the keys. Returns whether there were any.
    fn inflict(&self) -> bool {
        let pattern = format!("{{{}:{}}}:{}", self.registry, self.partition, self.keys);
        let found: Vec<String> = self.server.ask(cmd("KEYS").arg(&pattern)).unwrap();
        assert!(!found.is_empty() || !MUST_BE_THERE.contains(&self.keys), "no key matches {pattern}");
        !found.is_empty() && self.server.ask::<u32>(cmd("DEL").arg(found)).unwrap() > 0
    }

    /// Whether sessiond can detect the loss. It cannot tell that a bucket is gone, so observers keep its sessions.
    fn is_detectable(&self) -> bool {
        self.keys != "b*"
    }
}

async fn heals(loss: Loss) {
    let (case, url) = (loss.to_string(), loss.url());
    let (a, b) = (Replica::start_with(&url, options()).await, Replica::start_with(&url, options()).await);
    let kept = a.storage.grant_lease(Duration::from_secs(600), "kept").await.unwrap();
    a.storage.create(&keys(0..90), None).await.unwrap();
    a.storage.create(&keys(90..150), Some(kept)).await.unwrap();
    let left_alone = a.storage.grant_lease(TTL, "left alone").await.unwrap();
    a.storage.create(&keys(150..210), Some(left_alone)).await.unwrap();
    let mut held = [a.watch(Start::Snapshot).await, b.watch(Start::Snapshot).await];
    for held in &mut held {
        held.converges_to(&keys(0..210)).await;
    }

    if !loss.inflict() {
        return;
    }
    if !loss.is_detectable() {
        held = [a.watch(Start::Snapshot).await, b.watch(Start::Snapshot).await];
    }

    for (replica, some) in [(&a, keys(300..330)), (&b, keys(330..360))] {
        succeeds_within(&case, HEAL_TIME, async || replica.storage.create(&some, None).await.map(drop)).await;
    }
    wait_until_gone(&case, &*a.storage, &keys(150..210), TTL + SLACK).await;
    end_lease(&case, &*a.storage, kept).await;
    wait_until_gone(&case, &*a.storage, &keys(90..150), SLACK).await;

    // A partition that is lost as a whole may lose what was created before the loss was noticed. By now it has been
    // noticed.
    create(&*a.storage, &keys(360..390)).await;
    let left = held[0].converges_with(&keys(0..390), &a).await;
    assert!(left.ends_with(&keys(360..390)), "{case}: sessions created afterwards exist");
    assert_eq!(existing_of(keys(0..390), &b).await, left, "{case}");
    for held in &mut held {
        held.converges_to(&left).await;
        assert!(held.resets.len() <= 1, "{case}: {:?}", held.resets);
    }
    let late = open(&url, options()).await;
    assert_serves(&case, &late, &left).await;
    for replica in [&a, &b] {
        replica.watch(Start::Snapshot).await.converges_to(&left).await;
        if loss.is_detectable() {
            assert_eq!(replica.storage.session_count().await.unwrap(), left.len() as u64, "{case}");
        }
    }
}

async fn heals_at_the_start(loss: Loss) {
    let (case, url) = (loss.to_string(), loss.url());
    let a = Replica::start_with(&url, options()).await;
    let lease = a.storage.grant_lease(TTL, "left alone").await.unwrap();
    a.storage.create(&keys(0..90), None).await.unwrap();
    a.storage.create(&keys(90..150), Some(lease)).await.unwrap();
    let mut held = a.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..150)).await;
    let cursor = held.observer.cursor().unwrap();
    drop((held, a));
    if !loss.inflict() {
        return;
    }

    let b = Replica::start_with(&url, options()).await;
    succeeds_within(&case, HEAL_TIME, async || b.storage.create(&keys(200..230), None).await.map(drop)).await;
    wait_until_gone(&case, &*b.storage, &keys(90..150), TTL + SLACK).await;
    let mut fresh = b.watch(Start::Snapshot).await;
    let left = fresh.converges_with(&keys(0..230), &b).await;
    assert!(left.ends_with(&keys(200..230)), "{case}: sessions created afterwards exist");
    assert_serves(&case, &b.storage, &left).await;
    if loss.is_detectable() {
        b.resume(cursor, &keys(0..150)).await.converges_to(&left).await;
        assert_eq!(b.storage.session_count().await.unwrap(), left.len() as u64, "{case}");
    }
}

/// Waits until a call succeeds. Fails after `limit`.
async fn succeeds_within(case: &str, limit: Duration, call: impl AsyncFn() -> Result<(), StorageError>) {
    let mut last = None;
    let trying = async {
        while let Err(error) = call().await {
            last = Some(error);
            sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(limit, trying).await.is_ok(), "{case}: after {limit:?} a call still fails: {last:?}");
}

/// Waits until none of the sessions exists. Fails after `limit`.
async fn wait_until_gone(case: &str, storage: &dyn SessionStorage, sessions: &[SessionKey], limit: Duration) {
    let deadline = Instant::now() + limit;
    loop {
        let exist = storage.has(sessions).await;
        let left = exist.as_ref().map(|exist| exist.iter().filter(|exists| **exists).count());
        if matches!(left, Ok(0)) {
            return;
        }
        assert!(Instant::now() < deadline, "{case}: after {limit:?}, ghosts remain: {left:?} of {}", sessions.len());
        sleep(Duration::from_millis(50)).await;
    }
}

/// Revokes a lease that may be gone already.
async fn end_lease(case: &str, storage: &dyn SessionStorage, lease: LeaseId) {
    succeeds_within(case, HEAL_TIME, async || match storage.revoke_lease(lease).await {
        Ok(_) | Err(StorageError::UnknownLease(_)) => Ok(()),
        Err(error) => Err(error),
    })
    .await;
}

/// Asserts that a handle opened later can look up, create and revoke.
async fn assert_serves(case: &str, storage: &Arc<dyn SessionStorage>, left: &[SessionKey]) {
    assert!(storage.has(left).await.unwrap().into_iter().all(|exists| exists), "{case}");
    let lease = storage.grant_lease(Duration::from_secs(600), "").await.unwrap();
    assert_eq!(storage.create(&keys(400..430), Some(lease)).await.unwrap(), [true; 30], "{case}");
    assert_eq!(storage.revoke_lease(lease).await.unwrap(), 30, "{case}");
}
