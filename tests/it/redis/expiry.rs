//! Leases that expire beside large ones, in large numbers, or after an outage: each ends on time, and none early.
//!
//! `SESSIOND_TEST_LARGE_LEASE` and `SESSIOND_TEST_LEASES` scale the tests up. The registry is built for 200,000
//! sessions per lease and 10,000 leases.

use std::time::Duration;

use futures_util::{StreamExt as _, future::join_all, stream};
use sessiond::storage::StorageError;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    ROOMY,
    ends::{Abandoned, Ends},
    replica::{PATIENCE, Replica, keys},
    server::{RedisServer, is_installed},
};
use crate::long::number;

const SECOND: Duration = Duration::from_secs(1);

/// How many calls run at a time.
const CONCURRENCY: usize = 256;

/// Returns the longest delay.
fn slowest(lateness: impl IntoIterator<Item = Duration>) -> Duration {
    lateness.into_iter().max().expect("there is at least one")
}

/// Sweeping four large leases takes seconds. Small leases that are due meanwhile end as fast as they would alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_lease_does_not_wait_for_large_ones() {
    const LARGE: i64 = 4;
    const SMALL: i64 = 40;
    const BETWEEN: Duration = Duration::from_millis(50);
    if !is_installed() {
        return;
    }
    let sessions = i64::from(number("SESSIOND_TEST_LARGE_LEASE", 25_000));
    let ttl = 4 * SECOND;
    let server = RedisServer::start(&[]);
    let replica = Replica::start_with(&server.url(""), ROOMY.retain_events(1 << 21)).await;
    let mut ends = Ends::watch(&replica).await;

    let mut large = Vec::new();
    for _ in 0..LARGE {
        large.push(Abandoned::grant(&replica, ttl, Vec::new()).await);
    }
    let chunks: Vec<_> = (0..LARGE * sessions).step_by(1000).map(|n| keys(n..n + 1000)).collect();
    for (n, chunk) in chunks.iter().enumerate() {
        let lease = large[n % large.len()].lease;
        replica.storage.create(chunk, Some(lease)).await.unwrap();
        join_all(large.iter_mut().map(|large| large.keep(&replica))).await;
    }
    let due = large[0].due[1];

    // Grants leases from shortly before the sweeps begin until they are probably over.
    let mut small = Vec::new();
    sleep_until(due - SECOND - 2 * BETWEEN).await;
    for n in 0..SMALL {
        let sessions = keys(-10 * n - 10..-10 * n);
        small.push(Abandoned::grant(&replica, SECOND, sessions).await);
        sleep(BETWEEN).await;
    }
    ends.wait_for_count((LARGE * sessions + 10 * SMALL) as usize, PATIENCE).await;
    let lateness = slowest(small.iter().map(|small| small.lateness(&ends)));
    let swept = keys(0..LARGE * sessions).iter().map(|session| ends.of(session).expect("the session ended").0).max();
    let swept = swept.expect("there is at least one") - due;
    println!(
        "small leases ended up to {lateness:?} late beside {LARGE} leases of {sessions} sessions, which took {swept:?}"
    );
    assert!(lateness <= SECOND, "a small lease ended {lateness:?} late");
}

/// The time to end a lease does not depend on the sessions it once had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_a_lease_costs_only_its_remaining_sessions() {
    if !is_installed() {
        return;
    }
    let sessions = i64::from(number("SESSIOND_TEST_LARGE_LEASE", 25_000));
    let server = RedisServer::start(&[]);
    let replica = Replica::start(&server.url("")).await;
    let lease = replica.storage.grant_lease(3600 * SECOND, "gateway").await.unwrap();
    for first in (0..sessions).step_by(1000) {
        let some = keys(first..first + 1000);
        replica.storage.create(&some, Some(lease)).await.unwrap();
        let gone = if first == 0 { &some[10..] } else { &some[..] };
        replica.storage.destroy(gone, Some(lease)).await.unwrap();
    }
    let began = Instant::now();
    assert_eq!(replica.storage.revoke_lease(lease).await.unwrap(), 10);
    let took = began.elapsed();
    println!("a lease that had {sessions} sessions and has 10 ended within {took:?}");
    assert!(took <= SECOND, "10 sessions took {took:?}");
}

/// A whole fleet dies: thousands of leases, with a few sessions each, are due at almost the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_leases_end_on_time() {
    const SESSIONS: i64 = 10;
    const LIMIT: Duration = Duration::from_secs(2);
    if !is_installed() {
        return;
    }
    let leases = i64::from(number("SESSIOND_TEST_LEASES", 1000));
    let server = RedisServer::start(&[]);
    let replica = Replica::start(&server.url("")).await;
    let mut ends = Ends::watch(&replica).await;
    let ttl = Duration::from_millis(5000 + 2 * leases.unsigned_abs());
    let grant = |n: i64| Abandoned::grant(&replica, ttl, keys(n * SESSIONS..(n + 1) * SESSIONS));
    let mut abandoned: Vec<_> = stream::iter(0..leases).map(grant).buffer_unordered(CONCURRENCY).collect().await;
    stream::iter(&mut abandoned).for_each_concurrent(CONCURRENCY, |lease| lease.keep(&replica)).await;
    ends.wait_for_count((leases * SESSIONS) as usize, ttl + PATIENCE).await;
    let lateness = slowest(abandoned.iter().map(|lease| lease.lateness(&ends)));
    println!("{leases} leases of {SESSIONS} sessions ended up to {lateness:?} late");
    assert!(lateness <= LIMIT, "a lease ended {lateness:?} late");
}

/// Every lease is due when Redis comes back, and each gets its ttl again. A dead lease ends when that has passed,
/// however many leases there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_lease_ends_on_time_after_an_outage_with_many_leases() {
    const TTL: Duration = Duration::from_secs(4);
    if !is_installed() {
        return;
    }
    let leases = number("SESSIOND_TEST_LEASES", 10_000);
    let server = RedisServer::start(&[]);
    let options = ROOMY.outage_grace(SECOND);
    let replica = Replica::start_with(&server.url("timeout_ms=500&buckets=64"), options).await;
    let mut ends = Ends::watch(&replica).await;
    let grants = stream::iter(0..leases).map(|_| replica.storage.grant_lease(TTL, "gateway"));
    grants.buffer_unordered(CONCURRENCY).for_each(async |granted| assert!(granted.is_ok(), "{granted:?}")).await;
    let dead = Abandoned::grant(&replica, TTL, keys(0..10)).await;

    server.signal("STOP");
    sleep_until(dead.due[1] + SECOND).await;
    server.signal("CONT");
    let back = Instant::now();
    ends.wait_for_count(10, TTL + PATIENCE).await;
    let last = dead
        .sessions
        .iter()
        .map(|session| ends.of(session).expect("the session ended").0)
        .max()
        .expect("there is at least one");
    let after = last - back;
    println!("with {leases} leases, a dead one of {TTL:?} ended {after:?} after the outage");
    assert!(
        after >= TTL - Duration::from_millis(50),
        "the lease ended {after:?} after the outage, with a ttl of {TTL:?}"
    );
    assert!(after <= TTL + 2 * SECOND, "the lease ended {after:?} after the outage, with a ttl of {TTL:?}");
}

/// Grants leases with ttls of 40 to 100 ms at random moments, while three replicas constantly look for due leases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_ends_before_its_ttl() {
    const LEASES: i64 = 300;
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let url = server.url("buckets=64");
    let [a, b, c] = [Replica::start(&url).await, Replica::start(&url).await, Replica::start(&url).await];
    let mut ends = Ends::watch(&b).await;
    let mut granted = Vec::new();
    for (n, replica) in (0..LEASES).zip([&a, &b, &c].into_iter().cycle()) {
        let pause = Duration::from_micros(fastrand::u64(..3000));
        sleep(pause).await;
        let (ttl, sessions) = (20 * pause + SECOND / 25, keys(n..n + 1));
        let before = Instant::now();
        let lease = replica.storage.grant_lease(ttl, "").await.unwrap();
        let due = [before + ttl, Instant::now() + ttl];
        match replica.storage.create(&sessions, Some(lease)).await {
            Ok(_) => granted.push(Abandoned { lease, sessions, due }),
            // This happens on a busy machine.
            Err(StorageError::UnknownLease(_)) => assert!(before.elapsed() >= ttl, "a lease of {ttl:?} ended early"),
            Err(error) => panic!("{error}"),
        }
    }
    ends.wait_for_count(granted.len(), PATIENCE).await;
    // `lateness` fails for a session that ended early.
    let lateness = slowest(granted.iter().map(|lease| lease.lateness(&ends)));
    println!("of {} leases, none ended early, and none more than {lateness:?} late", granted.len());
}
