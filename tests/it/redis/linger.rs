//! Lingering leases over several partitions and replicas, through outages, crashes and clock changes.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use redis::cmd;
use sessiond::{
    session::{DestroyReason, LeaseId, SessionKey},
    storage::{CreateOptions, LeaseQuery, LeaseStatus, MAX_LINGER, SessionStorage, StorageError, Takeover},
};
use tokio::time::{Instant, sleep};

use super::{
    ROOMY,
    clock::start_with_clock,
    ends::Ends,
    open,
    replica::{PATIENCE, Replica, eventually, keys},
    server::{RedisServer, is_installed},
};
use crate::wall_clock::WallClock;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// How long after its linger a lease may end.
const SLACK: Duration = Duration::from_secs(1);

const PARAMETERS: &str = "timeout_ms=1000&partitions=4&buckets=64";

/// A lingering lease.
struct Lingering {
    lease: LeaseId,
    sessions: Vec<SessionKey>,
    /// The linger ends between these two times.
    due: [Instant; 2],
}

impl Lingering {
    async fn start(replica: &Replica, ttl: Duration, linger: Duration, sessions: Vec<SessionKey>) -> Self {
        let lease = replica.storage.grant_lease(ttl, "gateway").await.unwrap();
        replica.storage.create(&sessions, Some(lease)).await.unwrap();
        let before = Instant::now();
        assert_eq!(replica.storage.revoke_lease_with(lease, linger).await.unwrap(), 0);
        Self { lease, sessions, due: [before + linger, Instant::now() + linger] }
    }

    /// Returns how long after the end of the linger the last session ended. Fails if a session ended early or has not
    /// ended.
    fn lateness(&self, ends: &Ends) -> Duration {
        let late = self.sessions.iter().map(|session| {
            let (end, reason) = ends.of(session).unwrap_or_else(|| panic!("{session:?} has not ended"));
            assert_eq!(reason, DestroyReason::LeaseRevoked);
            assert!(end >= self.due[0], "{session:?} ended {:?} early", self.due[0] - end);
            end.saturating_duration_since(self.due[1])
        });
        late.max().expect("there is at least one")
    }
}

/// Returns the status of a lease from the list, or None if it is not listed.
async fn listed(storage: &dyn SessionStorage, lease: LeaseId) -> Option<LeaseStatus> {
    let query = LeaseQuery::first(10).owner("gateway").lease_ids(vec![lease]);
    storage.list_leases(&query).await.unwrap().leases.pop()
}

/// Asserts that the lease lingers in every partition, as seen through this replica. `n` is the first of 100 unused
/// session numbers.
async fn assert_lingers(storage: &dyn SessionStorage, lease: LeaseId, n: i64) {
    let refused = |answer: Result<(), StorageError>| {
        assert!(matches!(answer, Err(StorageError::LeaseLingers(named)) if named == lease), "{answer:?}");
    };
    refused(storage.keep_lease_alive(lease).await.map(drop));
    let some = keys(n..n + 100);
    for session in &some {
        refused(storage.create(&[*session], Some(lease)).await.map(drop));
    }
    assert_eq!(storage.has(&some).await.unwrap(), vec![false; some.len()]);
    assert!(listed(storage, lease).await.expect("the lease is listed").lingers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_lingers_on_every_replica_and_in_every_partition() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let url = server.url(PARAMETERS);
    let [a, b] = [Replica::start(&url).await, Replica::start(&url).await];
    let taker = b.storage.grant_lease(HOUR, "taker").await.unwrap();
    let own = keys(0..400);
    // The second replica caches the slots of the lease before it lingers.
    let lease = a.storage.grant_lease(HOUR, "gateway").await.unwrap();
    a.storage.create(&own, Some(lease)).await.unwrap();
    assert!(b.storage.lookup(&own).await.unwrap().iter().all(|found| found.lease == Some(lease)));
    assert_eq!(a.storage.revoke_lease_with(lease, 2 * SECOND).await.unwrap(), 0);
    let ends = Ends::watch(&a).await;

    assert_lingers(&*b.storage, lease, 1000).await;
    assert_lingers(&*a.storage, lease, 1000).await;
    assert!(b.storage.lookup(&own).await.unwrap().iter().all(|found| found.lease == Some(lease)));
    assert_eq!(b.storage.destroy(&own[..100], Some(lease)).await.unwrap(), vec![true; 100]);
    let options = CreateOptions::from(Some(taker)).takeover(Takeover::OnlyFrom(None));
    let taken = b.storage.create_with(&own[100..200], options).await.unwrap().sessions;
    assert!(taken.iter().all(|taken| !taken.created && taken.lease == Some(taker)));
    assert_eq!(listed(&*b.storage, lease).await.unwrap().session_count, 200);

    let left = &own[200..];
    eventually(|| async { (!b.storage.has(left).await.unwrap().contains(&true)).then_some(()) }).await;
    assert!(
        left.iter().all(|session| ends.of(session).is_none_or(|(_, reason)| reason == DestroyReason::LeaseRevoked))
    );
    assert!(b.storage.has(&own[100..200]).await.unwrap().iter().all(|exists| *exists));
    assert!(matches!(b.storage.keep_lease_alive(lease).await, Err(StorageError::UnknownLease(_))));
    assert_eq!(listed(&*b.storage, lease).await, None);
}

/// The replica that revokes a lease with a linger dies at a random moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_lingers_everywhere_or_nowhere_if_the_revoking_replica_dies() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let url = server.url(PARAMETERS);
    let b = Replica::start(&url).await;
    let mut left = Vec::new();
    for round in 0..30 {
        let dying = open(&url, ROOMY).await;
        let lease = dying.grant_lease(HOUR, "gateway").await.unwrap();
        let sessions = keys(1000 * round..1000 * round + 200);
        dying.create(&sessions, Some(lease)).await.unwrap();
        let revoking = tokio::spawn(async move { dying.revoke_lease_with(lease, 2 * SECOND).await });
        sleep(Duration::from_micros(fastrand::u64(0..4000))).await;
        revoking.abort();
        let was_reported = matches!(revoking.await, Ok(Ok(_)));
        match b.storage.keep_lease_alive(lease).await {
            Err(StorageError::LeaseLingers(_)) => {}
            Ok(_) => {
                assert!(!was_reported, "a lingering lease was kept alive");
                // The lease accepts sessions in every partition, even where it had been closed.
                let more = keys(1000 * round + 200..1000 * round + 300);
                assert_eq!(b.storage.create(&more, Some(lease)).await.unwrap(), vec![true; 100]);
                assert_eq!(b.storage.revoke_lease_with(lease, 2 * SECOND).await.unwrap(), 0);
                left.extend(more);
            }
            Err(error) => panic!("{error}"),
        }
        for session in keys(1000 * round + 300..1000 * round + 330) {
            let created = b.storage.create(&[session], Some(lease)).await;
            assert!(matches!(created, Err(StorageError::LeaseLingers(_))), "{created:?}");
        }
        left.extend(sessions);
    }
    eventually(|| async { (!b.storage.has(&left).await.ok()?.contains(&true)).then_some(()) }).await;
}

/// Redis is paused. Other leases get more time for the outage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_does_not_extend_a_lingering_lease() {
    const TTL: Duration = Duration::from_secs(2);
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let url = server.url(PARAMETERS);
    let options = ROOMY.outage_grace(20 * SECOND);
    let [a, b] = [Replica::start_with(&url, options).await, Replica::start_with(&url, options).await];
    let mut ends = Ends::watch(&b).await;
    let live = a.storage.grant_lease(TTL, "gateway").await.unwrap();
    a.storage.create(&keys(100..110), Some(live)).await.unwrap();
    // One lease is due to end during the outage, the other one after it.
    let short = Lingering::start(&a, TTL, SECOND, keys(0..50)).await;
    let long = Lingering::start(&a, TTL, 6 * SECOND, keys(50..100)).await;
    server.signal("STOP");
    sleep(3 * SECOND).await;
    server.signal("CONT");
    let back = Instant::now();
    ends.wait_for_count(100, PATIENCE).await;
    let late = long.lateness(&ends);
    let short = short.due[1] + short.lateness(&ends) - back;
    println!("a lease due during the outage ended {short:?} after it, a later one {late:?} late");
    // The replicas have to reconnect first.
    assert!(
        short <= 3 * SECOND && late <= SLACK,
        "lingering leases ended {short:?} after the outage and {late:?} late"
    );
    assert_eq!(b.storage.has(&keys(100..110)).await.unwrap(), [true; 10], "the outage ended a lease");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_all_replicas_does_not_extend_a_lingering_lease() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let url = server.url(PARAMETERS);
    let a = Replica::start(&url).await;
    let lingering = Lingering::start(&a, HOUR, 4 * SECOND, keys(0..50)).await;
    drop(a);
    sleep(2 * SECOND).await;
    let b = Replica::start(&url).await;
    let mut ends = Ends::watch(&b).await;
    let left = listed(&*b.storage, lingering.lease).await.unwrap().expires_in;
    assert!(left <= 2 * SECOND, "{left:?} remain of a 4 s linger after 2 s");
    ends.wait_for_count(50, PATIENCE).await;
    let lateness = lingering.lateness(&ends);
    assert!(lateness <= SLACK, "a lingering lease ended {lateness:?} late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_lingering_leases_due_together_end_on_time() {
    const LEASES: i64 = 300;
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let replica = Replica::start(&server.url(PARAMETERS)).await;
    let mut ends = Ends::watch(&replica).await;
    let grant = async |n: i64| {
        let lease = replica.storage.grant_lease(HOUR, "gateway").await.unwrap();
        replica.storage.create(&keys(10 * n..10 * n + 10), Some(lease)).await.unwrap();
        lease
    };
    let leases = join_all((0..LEASES).map(grant)).await;
    let revoked = Instant::now();
    let linger = async |lease: &LeaseId| replica.storage.revoke_lease_with(*lease, 5 * SECOND).await.unwrap();
    join_all(leases.iter().map(linger)).await;
    let answered = Instant::now();
    ends.wait_for_count(10 * LEASES as usize, PATIENCE).await;
    let ended: Vec<_> = keys(0..10 * LEASES).iter().map(|session| ends.of(session).unwrap().0).collect();
    let (first, last) = (ended.iter().min().unwrap(), ended.iter().max().unwrap());
    assert!(*first >= revoked + 5 * SECOND);
    let lateness = last.saturating_duration_since(answered + 5 * SECOND);
    println!("{LEASES} lingering leases ended up to {lateness:?} late");
    assert!(lateness <= 2 * SECOND, "lingering leases ended up to {lateness:?} late");
}

/// A partition comes back in the state from before the lease lingered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_forgot_a_linger_learns_it_again() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let url = server.url("registry=r&timeout_ms=1000&partitions=4&buckets=64");
    let a = Replica::start(&url).await;
    let lingering = Lingering::start(&a, HOUR, 8 * SECOND, keys(0..200)).await;
    let before = listed(&*a.storage, lingering.lease).await.unwrap();
    let attached = "{r:2}:attached";
    let id = lingering.lease.number().to_be_bytes();
    let slot: String = server.ask(cmd("HGET").arg(attached).arg(&id[..])).unwrap();
    let plain = slot.strip_prefix('~').expect("the lease lingers in this partition");
    let _: u32 = server.ask(cmd("HSET").arg(attached).arg(&id[..]).arg(plain)).unwrap();

    let b = Replica::start(&url).await;
    let mut ends = Ends::watch(&b).await;
    eventually(|| async {
        let now: String = server.ask(cmd("HGET").arg(attached).arg(&id[..])).unwrap();
        (now == slot).then_some(())
    })
    .await;
    eventually(|| async { listed(&*b.storage, lingering.lease).await.filter(|status| status.lingers).map(drop) }).await;
    assert_eq!(listed(&*b.storage, lingering.lease).await.unwrap().session_count, before.session_count);
    ends.wait_for_count(200, PATIENCE).await;
    let lateness = lingering.lateness(&ends);
    assert!(lateness <= SLACK, "the lease ended {lateness:?} late");
}

/// A failed call has no later effect on a lease or on its linger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_revoke_leaves_the_lease_unchanged() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let url = server.url("registry=r&timeout_ms=500&partitions=4&buckets=64");
    let [a, b] = [Replica::start(&url).await, Replica::start(&url).await];
    let [live, lingering] = [(); 2].map(|()| a.storage.grant_lease(HOUR, "gateway"));
    let (live, lingering) = (live.await.unwrap(), lingering.await.unwrap());
    let (own, other) = (keys(0..200), keys(200..400));
    a.storage.create(&own, Some(live)).await.unwrap();
    a.storage.create(&other, Some(lingering)).await.unwrap();
    a.storage.revoke_lease_with(lingering, MAX_LINGER).await.unwrap();
    // Makes it impossible to close leases in one partition.
    let closed = "{r:3}:closed";
    let _: u32 = server.ask(cmd("DEL").arg(closed)).unwrap();
    let () = server.ask(cmd("SET").arg(closed).arg("not a hash")).unwrap();
    let failed = a.storage.revoke_lease_with(live, SECOND).await;
    assert!(failed.is_err(), "{failed:?}");
    let failed = a.storage.revoke_lease(lingering).await;
    assert!(failed.is_err(), "{failed:?}");
    let _: u32 = server.ask(cmd("DEL").arg(closed)).unwrap();

    for storage in [&a.storage, &b.storage] {
        eventually(|| async { storage.keep_lease_alive(live).await.ok() }).await;
        assert!(!listed(&**storage, live).await.unwrap().lingers);
        let kept = eventually(|| async {
            let kept = storage.keep_lease_alive(lingering).await;
            (!matches!(kept, Err(StorageError::Unavailable(_) | StorageError::Broken(_)))).then_some(kept)
        });
        let kept = kept.await;
        assert!(matches!(kept, Err(StorageError::LeaseLingers(_))), "{kept:?}");
    }
    assert_eq!(b.storage.create(&keys(400..500), Some(live)).await.unwrap(), vec![true; 100]);
    assert!(b.storage.lookup(&other).await.unwrap().iter().all(|found| found.lease == Some(lingering)));
    assert_eq!(b.storage.destroy(&other, Some(lingering)).await.unwrap(), vec![true; 200]);
    let there: HashSet<bool> = b.storage.has(&own).await.unwrap().into_iter().collect();
    assert_eq!(there, HashSet::from([true]));
}

/// Changes Redis' clock while a lease lingers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changing_the_redis_clock_ends_no_linger_early() {
    let Some((server, clock)) = start_with_clock(WallClock::new()) else { return };
    let url = server.url(PARAMETERS);
    let [a, b] = [Replica::start(&url).await, Replica::start(&url).await];
    let mut ends = Ends::watch(&b).await;
    let lingering = Lingering::start(&a, HOUR, 6 * SECOND, keys(0..50)).await;
    for jump in [600, 86_400, 0, -600] {
        sleep(SECOND).await;
        clock.set(jump);
    }
    ends.wait_for_count(50, PATIENCE).await;
    let lateness = lingering.lateness(&ends);
    println!("a lease ended {lateness:?} after its linger, while Redis' clock was set");
    // Time that passes before a look notices a clock change may not count.
    assert!(lateness <= 4 * SECOND, "a lingering lease ended {lateness:?} late");
}
