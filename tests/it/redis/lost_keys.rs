//! Keys of a registry that somebody deleted.

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
    replica::{Replica, create, keys, left_of, run_all},
    server::{RedisServer, is_installed},
};

/// The registry serves again within this time.
const HEALS: Duration = Duration::from_secs(10);

/// The ttl of a lease that nobody keeps alive.
const TTL: Duration = Duration::from_secs(4);

/// So much later than its ttl a lease may end that had to be found again.
const SLACK: Duration = Duration::from_secs(10);

/// What is between `{registry:partition}:` and the end of the names of a partition's keys, as patterns of KEYS.
const OF_EACH_PARTITION: [&str; 9] = [
    "meta",
    "log",
    // Which leases have sessions here, by lease, by slot, and how many.
    "attached",
    "slots",
    "held",
    // Leases that are being swept, and the buckets of each lease.
    "closed",
    "l????????????????",
    "b*",
    "*",
];

/// The same of keys in the first partition alone.
const OF_THE_FIRST: [&str; 6] = ["leases", "deadlines", "ended", "claims", "ids", "quotas"];

/// Those that every registry has.
const MUST_BE_THERE: [&str; 8] = ["meta", "log", "attached", "b*", "*", "leases", "deadlines", "ids"];

fn options() -> StorageOptions {
    // The test has no patience for leases that are kept long after an outage.
    StorageOptions { outage_grace: Duration::from_secs(1), ..ROOMY }
}

#[tokio::test]
async fn a_registry_that_lost_keys_heals_with_one_reset_and_without_ghosts() {
    if !is_installed() {
        return;
    }
    let server = Arc::new(RedisServer::start(&[]));
    run_all(losses(&server).map(|loss| (loss.to_string(), heals(loss)))).await;
}

#[tokio::test]
async fn a_registry_that_lost_keys_while_nobody_ran_serves_again() {
    if !is_installed() {
        return;
    }
    let server = Arc::new(RedisServer::start(&[]));
    run_all(losses(&server).map(|loss| (loss.to_string(), heals_at_the_start(loss)))).await;
}

/// Which keys a registry of its own loses.
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

    /// Deletes the keys; tells whether there were any.
    fn happens(&self) -> bool {
        let pattern = format!("{{{}:{}}}:{}", self.registry, self.partition, self.keys);
        let found: Vec<String> = self.server.ask(cmd("KEYS").arg(&pattern)).unwrap();
        assert!(!found.is_empty() || !MUST_BE_THERE.contains(&self.keys), "no key is like {pattern}");
        !found.is_empty() && self.server.ask::<u32>(cmd("DEL").arg(found)).unwrap() > 0
    }

    /// Nobody can tell that a bucket is gone, so those who held its sessions hold them still.
    fn is_told(&self) -> bool {
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
        held.comes_to_hold(&keys(0..210)).await;
    }

    if !loss.happens() {
        return;
    }
    if !loss.is_told() {
        held = [a.watch(Start::Snapshot).await, b.watch(Start::Snapshot).await];
    }

    for (replica, some) in [(&a, keys(300..330)), (&b, keys(330..360))] {
        works_by(&case, HEALS, async || replica.storage.create(&some, None).await.map(drop)).await;
    }
    is_gone(&case, &*a.storage, &keys(150..210), TTL + SLACK).await;
    ends(&case, &*a.storage, kept).await;
    is_gone(&case, &*a.storage, &keys(90..150), SLACK).await;

    // Where a partition is lost as a whole, what was created before anybody noticed may be lost with it. By now it is noticed.
    create(&*a.storage, &keys(360..390)).await;
    let left = held[0].comes_to_agree(&keys(0..390), &a).await;
    assert!(left.ends_with(&keys(360..390)), "{case}: what was created afterwards is there");
    assert_eq!(left_of(keys(0..390), &b).await, left, "{case}");
    for held in &mut held {
        held.comes_to_hold(&left).await;
        assert!(held.resets.len() <= 1, "{case}: {:?}", held.resets);
    }
    let late = open(&url, options()).await;
    serves(&case, &late, &left).await;
    for replica in [&a, &b] {
        replica.watch(Start::Snapshot).await.comes_to_hold(&left).await;
        if loss.is_told() {
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
    held.comes_to_hold(&keys(0..150)).await;
    let cursor = held.observer.cursor().unwrap();
    drop((held, a));
    if !loss.happens() {
        return;
    }

    let b = Replica::start_with(&url, options()).await;
    works_by(&case, HEALS, async || b.storage.create(&keys(200..230), None).await.map(drop)).await;
    is_gone(&case, &*b.storage, &keys(90..150), TTL + SLACK).await;
    let mut fresh = b.watch(Start::Snapshot).await;
    let left = fresh.comes_to_agree(&keys(0..230), &b).await;
    assert!(left.ends_with(&keys(200..230)), "{case}: what was created afterwards is there");
    serves(&case, &b.storage, &left).await;
    if loss.is_told() {
        b.resume(cursor, &keys(0..150)).await.comes_to_hold(&left).await;
        assert_eq!(b.storage.session_count().await.unwrap(), left.len() as u64, "{case}");
    }
}

/// Waits until a call succeeds.
async fn works_by(case: &str, limit: Duration, call: impl AsyncFn() -> Result<(), StorageError>) {
    let mut last = None;
    let trying = async {
        while let Err(error) = call().await {
            last = Some(error);
            sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(limit, trying).await.is_ok(), "{case}: after {limit:?} a call still fails: {last:?}");
}

/// Waits until none of these sessions exists.
async fn is_gone(case: &str, storage: &dyn SessionStorage, sessions: &[SessionKey], limit: Duration) {
    let deadline = Instant::now() + limit;
    loop {
        let exist = storage.has(sessions).await;
        let left = exist.as_ref().map(|exist| exist.iter().filter(|exists| **exists).count());
        if matches!(left, Ok(0)) {
            return;
        }
        assert!(Instant::now() < deadline, "{case}: ghosts after {limit:?}: {left:?} of {}", sessions.len());
        sleep(Duration::from_millis(50)).await;
    }
}

/// Ends a lease that may be gone already.
async fn ends(case: &str, storage: &dyn SessionStorage, lease: LeaseId) {
    works_by(case, HEALS, async || match storage.revoke_lease(lease).await {
        Ok(_) | Err(StorageError::UnknownLease(_)) => Ok(()),
        Err(error) => Err(error),
    })
    .await;
}

/// A replica that starts later does all that there is to do.
async fn serves(case: &str, storage: &Arc<dyn SessionStorage>, left: &[SessionKey]) {
    assert!(storage.has(left).await.unwrap().into_iter().all(|exists| exists), "{case}");
    let lease = storage.grant_lease(Duration::from_secs(600), "").await.unwrap();
    assert_eq!(storage.create(&keys(400..430), Some(lease)).await.unwrap(), [true; 30], "{case}");
    assert_eq!(storage.revoke_lease(lease).await.unwrap(), 30, "{case}");
}
