//! The end of a lease over several partitions. As soon as the end is reported, no session can come under the lease.

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

/// The linger of the leases that linger.
const LINGER: Duration = Duration::from_secs(1);

const PARTITIONS: u32 = 4;
const PARAMETERS: &str = "timeout_ms=1000&partitions=4&buckets=64";

/// Returns new session keys, one in each partition.
fn one_in_each(storage: &dyn SessionStorage) -> Vec<SessionKey> {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    let mut found = HashMap::new();
    while found.len() < PARTITIONS as usize {
        let session = SessionKey::new(77, NEXT.fetch_add(1, Ordering::Relaxed));
        found.entry(storage.partition_of(storage.bucket_of(&session))).or_insert(session);
    }
    found.into_values().collect()
}

/// Waits until a keep-alive reports that the lease is gone.
async fn wait_until_lease_is_gone(storage: &dyn SessionStorage, lease: LeaseId) {
    let began = Instant::now();
    loop {
        match storage.keep_lease_alive(lease).await {
            Ok(_) => assert!(began.elapsed() < PATIENCE, "the lease did not end"),
            Err(StorageError::UnknownLease(_)) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Whether a create or keep-alive was refused because the lease has ended or lingers.
fn is_over<T>(answer: &Result<T, StorageError>) -> bool {
    matches!(answer, Err(StorageError::UnknownLease(_) | StorageError::LeaseLingers(_)))
}

/// Asserts that no partition accepts a session under a lease that has ended or lingers.
async fn assert_accepts_no_session(storage: &dyn SessionStorage, lease: LeaseId) {
    for session in one_in_each(storage) {
        let created = storage.create(&[session], Some(lease)).await;
        let partition = storage.partition_of(storage.bucket_of(&session));
        assert!(
            is_over(&created),
            "an ended or lingering lease accepted a session in partition {partition}: {created:?}"
        );
        assert_eq!(storage.has(&[session]).await.unwrap(), [false]);
    }
}

/// Waits until none of the sessions exists.
async fn wait_until_gone(storage: &dyn SessionStorage, sessions: &[SessionKey]) {
    eventually(|| async { (!storage.has(sessions).await.ok()?.contains(&true)).then_some(()) }).await;
}

/// One replica learns of the end while the other is still sweeping.
async fn end_is_reported_during_the_sweep(url: &str, rounds: usize) {
    let [a, b] = [Replica::start(url).await, Replica::start(url).await];
    for _ in 0..rounds {
        let lease = a.storage.grant_lease(HOUR, "gateway").await.unwrap();
        let sessions = keys(0..4000);
        a.storage.create(&sessions, Some(lease)).await.unwrap();
        // The second replica now caches the lease.
        assert!(b.storage.lookup(&sessions).await.unwrap().iter().all(|found| found.lease == Some(lease)));
        let revoking = tokio::spawn({
            let storage = Arc::clone(&a.storage);
            async move { storage.revoke_lease(lease).await }
        });
        wait_until_lease_is_gone(&*b.storage, lease).await;
        let found = b.storage.lookup(&sessions).await.unwrap();
        assert!(found.iter().all(|found| found.lease.is_none()), "a session is under an ended lease");
        assert_accepts_no_session(&*b.storage, lease).await;
        assert_accepts_no_session(&*a.storage, lease).await;
        assert_eq!(revoking.await.unwrap().unwrap(), 4000);
        assert_eq!(b.storage.has(&sessions).await.unwrap(), vec![false; sessions.len()]);
    }
}

/// The replica that revokes a lease dies at a random moment, again and again. Another replica then sweeps all these
/// leases together.
async fn revoking_replica_dies(url: &str, rounds: u64) {
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
        let is_gone = match (&revoked, b.storage.keep_lease_alive(lease).await) {
            (Ok(Ok(_)), Ok(_)) => panic!("a revoked lease still exists"),
            (_, Ok(_)) => false,
            (_, Err(StorageError::UnknownLease(_))) => true,
            (_, Err(error)) => panic!("{error}"),
        };
        if !is_gone {
            b.storage.revoke_lease(lease).await.unwrap();
        }
        assert_accepts_no_session(&*b.storage, lease).await;
        left.extend(sessions);
    }
    wait_until_gone(&*b.storage, &left).await;
}

/// When a lease's end was first reported, by a clock that all callers share.
#[derive(Default)]
struct LeaseEnd {
    clock: AtomicU64,
    /// The time at which a call first reported that the lease has ended or lingers; 0 before that.
    reported: AtomicU64,
}

impl LeaseEnd {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn report(&self) {
        let _ = self.reported.compare_exchange(0, self.now(), Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// Creates sessions under a lease until one is refused. Returns the created sessions, each with the time at which its
/// call began.
async fn create_until_refused(
    storage: Arc<dyn SessionStorage>,
    end: Arc<LeaseEnd>,
    lease: LeaseId,
) -> Vec<(u64, SessionKey)> {
    let mut created = Vec::new();
    loop {
        for session in one_in_each(&*storage) {
            let begin = end.now();
            match storage.create(&[session], Some(lease)).await {
                Ok(answers) => {
                    assert_eq!(answers, [true]);
                    created.push((begin, session));
                }
                refused if is_over(&refused) => {
                    end.report();
                    return created;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Creates sessions under a lease through three replicas while it ends. The lease is revoked with or without a linger,
/// expires, or its revoking replica dies. Returns the created sessions.
async fn race(url: &str, replicas: &[Replica; 3], round: usize) -> Vec<SessionKey> {
    let expires = round % 3 == 1;
    let linger = if round.is_multiple_of(2) { Duration::ZERO } else { LINGER };
    let ttl = if expires { Duration::from_millis(fastrand::u64(20..60)) } else { HOUR };
    let lease = replicas[round % 3].storage.grant_lease(ttl, "gateway").await.unwrap();
    let end = Arc::new(LeaseEnd::default());
    let mut creating = JoinSet::new();
    for replica in replicas {
        creating.spawn(create_until_refused(Arc::clone(&replica.storage), Arc::clone(&end), lease));
    }
    sleep(Duration::from_micros(fastrand::u64(0..20_000))).await;
    if !expires {
        let storage = open(url, ROOMY).await;
        let reporter = Arc::clone(&end);
        let revoking = tokio::spawn(async move {
            let revoked = storage.revoke_lease_with(lease, linger).await;
            reporter.report();
            revoked
        });
        if round % 3 == 2 {
            sleep(Duration::from_micros(fastrand::u64(0..4000))).await;
            revoking.abort();
        }
        if !matches!(revoking.await, Ok(Ok(_))) {
            match replicas[1].storage.revoke_lease_with(lease, linger).await {
                Ok(_) | Err(StorageError::UnknownLease(_)) => end.report(),
                Err(error) => panic!("{error}"),
            }
        }
    }
    let created = creating.join_all().await.concat();
    let reported = end.reported.load(Ordering::SeqCst);
    let late = created.iter().filter(|(begin, _)| *begin > reported).count();
    assert_eq!(late, 0, "creates succeeded after the end or linger of their lease was reported");
    assert_accepts_no_session(&*replicas[0].storage, lease).await;
    created.into_iter().map(|(_, session)| session).collect()
}

/// Ends several leases concurrently, in several rounds.
async fn races(url: &str, rounds: usize) {
    const CONCURRENCY: usize = 5;
    let replicas = [Replica::start(url).await, Replica::start(url).await, Replica::start(url).await];
    let mut ends = Ends::watch(&replicas[0]).await;
    let mut created = Vec::new();
    for first in (0..rounds).step_by(CONCURRENCY) {
        let under_way = (first..first + CONCURRENCY).map(|round| race(url, &replicas, round));
        created.extend(join_all(under_way).await.concat());
    }
    wait_until_gone(&*replicas[2].storage, &created).await;
    ends.wait_for_count(created.len(), PATIENCE).await;
}

/// As soon as an observer receives the first event of a lease's end, the lease accepts no more sessions.
async fn end_is_reported_by_an_event(url: &str, rounds: u64) {
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
        ends.wait_for_count(1, PATIENCE).await;
        assert_accepts_no_session(&*b.storage, lease).await;
        ends.wait_for_count(sessions.len(), PATIENCE).await;
        revoking.await.unwrap().unwrap();
    }
}

async fn all(url: &str, rounds: usize) {
    end_is_reported_during_the_sweep(url, 3).await;
    end_is_reported_by_an_event(url, 2).await;
    revoking_replica_dies(url, rounds as u64).await;
    races(url, rounds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_lease_accepts_no_session_in_any_partition() {
    if is_installed() {
        let server = RedisServer::start(&[]);
        all(&server.url(PARAMETERS), 30).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_lease_accepts_no_session_on_any_cluster_node() {
    if is_installed() {
        let cluster = RedisCluster::start(0);
        all(&cluster.url(PARAMETERS), 15).await;
    }
}
