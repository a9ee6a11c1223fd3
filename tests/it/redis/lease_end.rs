//! The end of a lease over several partitions: once anybody was told of it, no session comes under it any more.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{SessionStorage, StorageError},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    ROOMY,
    cluster::RedisCluster,
    ends::Ends,
    open,
    replica::{PATIENCE, Replica, eventually, keys},
    server::{RedisServer, is_installed},
};

const HOUR: Duration = Duration::from_secs(3600);

/// How long leases linger that do.
const LINGER: Duration = Duration::from_secs(1);

const PARTITIONS: u32 = 4;
const PARAMETERS: &str = "timeout_ms=1000&partitions=4&buckets=64";

/// New sessions, one in each partition.
fn one_in_each(storage: &dyn SessionStorage) -> Vec<SessionKey> {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    let mut found = HashMap::new();
    while found.len() < PARTITIONS as usize {
        let session = SessionKey::new(77, NEXT.fetch_add(1, Ordering::Relaxed));
        found.entry(storage.partition_of(storage.bucket_of(&session))).or_insert(session);
    }
    found.into_values().collect()
}

/// Waits until a keep-alive tells that the lease is gone.
async fn is_gone(storage: &dyn SessionStorage, lease: LeaseId) {
    let began = Instant::now();
    loop {
        match storage.keep_lease_alive(lease).await {
            Ok(_) => assert!(began.elapsed() < PATIENCE, "the lease does not end"),
            Err(StorageError::UnknownLease(_)) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Whether a create, or a keep-alive, was refused because the lease has ended or lingers.
fn is_over<T>(answer: &Result<T, StorageError>) -> bool {
    matches!(answer, Err(StorageError::UnknownLease(_) | StorageError::LeaseLingers(_)))
}

/// Tries to create a session under a lease that is gone or lingers, in each partition.
async fn takes_no_more(storage: &dyn SessionStorage, lease: LeaseId) {
    for session in one_in_each(storage) {
        let created = storage.create(&[session], Some(lease)).await;
        let partition = storage.partition_of(storage.bucket_of(&session));
        assert!(
            is_over(&created),
            "a lease that is gone, or lingers, takes a session in partition {partition}: {created:?}"
        );
        assert_eq!(storage.has(&[session]).await.unwrap(), [false]);
    }
}

/// Waits until none of the sessions is left.
async fn vanish(storage: &dyn SessionStorage, sessions: &[SessionKey]) {
    eventually(|| async { (!storage.has(sessions).await.ok()?.contains(&true)).then_some(()) }).await;
}

/// One replica is told of the end while the other still sweeps.
async fn told_while_swept(url: &str, rounds: usize) {
    let [a, b] = [Replica::start(url).await, Replica::start(url).await];
    for _ in 0..rounds {
        let lease = a.storage.grant_lease(HOUR, "gateway").await.unwrap();
        let sessions = keys(0..4000);
        a.storage.create(&sessions, Some(lease)).await.unwrap();
        // The second replica remembers the lease.
        assert!(b.storage.lookup(&sessions).await.unwrap().iter().all(|found| found.lease == Some(lease)));
        let revoking = tokio::spawn({
            let storage = Arc::clone(&a.storage);
            async move { storage.revoke_lease(lease).await }
        });
        is_gone(&*b.storage, lease).await;
        let found = b.storage.lookup(&sessions).await.unwrap();
        assert!(found.iter().all(|found| found.lease.is_none()), "a session is under a lease that is gone");
        takes_no_more(&*b.storage, lease).await;
        takes_no_more(&*a.storage, lease).await;
        assert_eq!(revoking.await.unwrap().unwrap(), 4000);
        assert_eq!(b.storage.has(&sessions).await.unwrap(), vec![false; sessions.len()]);
    }
}

/// The replica that ends a lease dies somewhere on the way. Each time, another one comes to sweep the lease; all of them at once.
async fn ender_dies(url: &str, rounds: u64) {
    let b = Replica::start(url).await;
    let mut left = Vec::new();
    for round in 0..rounds as i64 {
        let dying = open(url, ROOMY).await;
        let lease = dying.grant_lease(HOUR, "gateway").await.unwrap();
        let sessions = keys(10_000 + 400 * round..10_400 + 400 * round);
        dying.create(&sessions, Some(lease)).await.unwrap();
        let revoking = tokio::spawn(async move { dying.revoke_lease(lease).await });
        sleep(Duration::from_micros(fastrand::u64(0..6000))).await;
        revoking.abort();
        let revoked = revoking.await;
        let told = match (&revoked, b.storage.keep_lease_alive(lease).await) {
            (Ok(Ok(_)), Ok(_)) => panic!("a lease that was revoked lives"),
            (_, Ok(_)) => false,
            (_, Err(StorageError::UnknownLease(_))) => true,
            (_, Err(error)) => panic!("{error}"),
        };
        if !told {
            b.storage.revoke_lease(lease).await.unwrap();
        }
        takes_no_more(&*b.storage, lease).await;
        left.extend(sessions);
    }
    vanish(&*b.storage, &left).await;
}

/// What happened to a lease, in the order of a clock that all callers share.
#[derive(Default)]
struct Story {
    clock: AtomicU64,
    /// When somebody had first been told that the lease is gone, or lingers. 0 until then.
    told: AtomicU64,
}

impl Story {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn tell(&self) {
        let _ = self.told.compare_exchange(0, self.now(), Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// Creates sessions under a lease until that is refused. Gives those that were created, each with the time at which its call
/// began.
async fn create_until_refused(
    storage: Arc<dyn SessionStorage>,
    story: Arc<Story>,
    lease: LeaseId,
) -> Vec<(u64, SessionKey)> {
    let mut created = Vec::new();
    loop {
        for session in one_in_each(&*storage) {
            let begin = story.now();
            match storage.create(&[session], Some(lease)).await {
                Ok(answers) => {
                    assert_eq!(answers, [true]);
                    created.push((begin, session));
                }
                refused if is_over(&refused) => {
                    story.tell();
                    return created;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Callers of three replicas create sessions under a lease while it ends: it is revoked, with a linger or without, it expires, or
/// who revokes it dies. Gives the sessions that were created.
async fn race(url: &str, replicas: &[Replica; 3], round: usize) -> Vec<SessionKey> {
    let expires = round % 3 == 1;
    let linger = if round.is_multiple_of(2) { Duration::ZERO } else { LINGER };
    let ttl = if expires { Duration::from_millis(fastrand::u64(20..60)) } else { HOUR };
    let lease = replicas[round % 3].storage.grant_lease(ttl, "gateway").await.unwrap();
    let story = Arc::new(Story::default());
    let mut creating = JoinSet::new();
    for replica in replicas {
        creating.spawn(create_until_refused(Arc::clone(&replica.storage), Arc::clone(&story), lease));
    }
    sleep(Duration::from_micros(fastrand::u64(0..20_000))).await;
    if !expires {
        let storage = open(url, ROOMY).await;
        let teller = Arc::clone(&story);
        let revoking = tokio::spawn(async move {
            let revoked = storage.revoke_lease_with(lease, linger).await;
            teller.tell();
            revoked
        });
        if round % 3 == 2 {
            sleep(Duration::from_micros(fastrand::u64(0..4000))).await;
            revoking.abort();
        }
        if !matches!(revoking.await, Ok(Ok(_))) {
            match replicas[1].storage.revoke_lease_with(lease, linger).await {
                Ok(_) | Err(StorageError::UnknownLease(_)) => story.tell(),
                Err(error) => panic!("{error}"),
            }
        }
    }
    let created = creating.join_all().await.concat();
    let told = story.told.load(Ordering::SeqCst);
    let late = created.iter().filter(|(begin, _)| *begin > told).count();
    assert_eq!(late, 0, "creates under a lease succeeded after somebody was told that it is gone, or lingers");
    takes_no_more(&*replicas[0].storage, lease).await;
    created.into_iter().map(|(_, session)| session).collect()
}

/// Has several leases end at once, again and again.
async fn races(url: &str, rounds: usize) {
    const AT_ONCE: usize = 5;
    let replicas = [Replica::start(url).await, Replica::start(url).await, Replica::start(url).await];
    let mut ends = Ends::watch(&replicas[0]).await;
    let mut created = Vec::new();
    for first in (0..rounds).step_by(AT_ONCE) {
        let under_way = (first..first + AT_ONCE).map(|round| race(url, &replicas, round));
        created.extend(join_all(under_way).await.concat());
    }
    vanish(&*replicas[2].storage, &created).await;
    ends.come_to(created.len(), PATIENCE).await;
}

/// As soon as an observer is told of the first session that ended with its lease, the lease takes no more.
async fn told_by_an_event(url: &str, rounds: u64) {
    let [a, b] = [Replica::start(url).await, Replica::start(url).await];
    for round in 0..rounds {
        let mut ends = Ends::watch(&b).await;
        let expires = round.is_multiple_of(2);
        let ttl = if expires { Duration::from_secs(1) } else { HOUR };
        let lease = a.storage.grant_lease(ttl, "gateway").await.unwrap();
        let sessions = keys(0..4000);
        a.storage.create(&sessions, Some(lease)).await.unwrap();
        let revoking = tokio::spawn({
            let storage = Arc::clone(&a.storage);
            async move { if expires { Ok(0) } else { storage.revoke_lease(lease).await } }
        });
        ends.come_to(1, PATIENCE).await;
        takes_no_more(&*b.storage, lease).await;
        ends.come_to(sessions.len(), PATIENCE).await;
        revoking.await.unwrap().unwrap();
    }
}

async fn all(url: &str, rounds: usize) {
    told_while_swept(url, 3).await;
    told_by_an_event(url, 2).await;
    ender_dies(url, rounds as u64).await;
    races(url, rounds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_gone_takes_no_session_in_any_partition() {
    if is_installed() {
        let server = RedisServer::start(&[]);
        all(&server.url(PARAMETERS), 30).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_gone_takes_no_session_on_any_node_of_a_cluster() {
    if is_installed() {
        let cluster = RedisCluster::start(0);
        all(&cluster.url(PARAMETERS), 15).await;
    }
}
