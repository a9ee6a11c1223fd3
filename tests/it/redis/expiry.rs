//! Leases that expire beside large ones, in large numbers, and after an outage: each ends in its time, and none early.
//!
//! `SESSIOND_TEST_LARGE_LEASE` and `SESSIOND_TEST_LEASES` make the tests larger: 200,000 sessions a lease and 10,000 leases are
//! what the registry is built for.

use std::time::Duration;

use futures_util::{StreamExt as _, future::join_all, stream};
use sessiond::storage::StorageOptions;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    ROOMY,
    clock::start_with_clock,
    ends::{Abandoned, Ends},
    replica::{PATIENCE, Replica, keys},
    server::{RedisServer, is_installed},
};
use crate::{long::number, wall_clock::WallClock};

const SECOND: Duration = Duration::from_secs(1);

/// How many calls are made at once where there are many.
const AT_ONCE: usize = 256;

/// The slowest of some times after their due.
fn slowest(lateness: impl IntoIterator<Item = Duration>) -> Duration {
    lateness.into_iter().max().expect("there are some")
}

/// Four leases with many sessions are swept for seconds. Small leases that are due meanwhile end as if they were alone.
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
    let replica = Replica::start_with(&server.url(""), StorageOptions { retain_events: 1 << 21, ..ROOMY }).await;
    let mut ends = Ends::watch(&replica).await;

    let mut large = Vec::new();
    for _ in 0..LARGE {
        large.push(Abandoned::leave(&replica, ttl, Vec::new()).await);
    }
    let chunks: Vec<_> = (0..LARGE * sessions).step_by(1000).map(|n| keys(n..n + 1000)).collect();
    for (n, chunk) in chunks.iter().enumerate() {
        let lease = large[n % large.len()].lease;
        replica.storage.create(chunk, Some(lease)).await.unwrap();
        join_all(large.iter_mut().map(|large| large.keep(&replica))).await;
    }
    let due = large[0].due[1];

    // From a little before the sweeps begin until they may well be over.
    let mut small = Vec::new();
    sleep_until(due - SECOND - 2 * BETWEEN).await;
    for n in 0..SMALL {
        let sessions = keys(-10 * n - 10..-10 * n);
        small.push(Abandoned::leave(&replica, SECOND, sessions).await);
        sleep(BETWEEN).await;
    }
    ends.come_to((LARGE * sessions + 10 * SMALL) as usize, PATIENCE).await;
    let lateness = slowest(small.iter().map(|small| small.lateness(&ends)));
    let swept = keys(0..LARGE * sessions).iter().map(|session| ends.of(session).expect("it ended").0).max();
    let swept = swept.expect("there are some") - due;
    println!(
        "small leases ended up to {lateness:?} late beside {LARGE} leases of {sessions} sessions, which took {swept:?}"
    );
    assert!(lateness <= SECOND, "a small lease ended {lateness:?} late");
}

/// What a lease had in the past does not slow down its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_had_many_sessions_ends_as_fast_as_what_is_left() {
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

/// A fleet that dies at once: thousands of leases are due within a moment, each with a few sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_leases_end_in_their_time() {
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
    let leave = |n: i64| Abandoned::leave(&replica, ttl, keys(n * SESSIONS..(n + 1) * SESSIONS));
    let mut abandoned: Vec<_> = stream::iter(0..leases).map(leave).buffer_unordered(AT_ONCE).collect().await;
    stream::iter(&mut abandoned).for_each_concurrent(AT_ONCE, |lease| lease.keep(&replica)).await;
    ends.come_to((leases * SESSIONS) as usize, ttl + PATIENCE).await;
    let lateness = slowest(abandoned.iter().map(|lease| lease.lateness(&ends)));
    println!("{leases} leases of {SESSIONS} sessions ended up to {lateness:?} late");
    assert!(lateness <= LIMIT, "a lease ended {lateness:?} late");
}

/// Every lease is due when Redis comes back, and each has its ttl again. A dead one ends when that has passed, however
/// many there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_lease_ends_in_its_time_after_an_outage_of_many() {
    const TTL: Duration = Duration::from_secs(4);
    if !is_installed() {
        return;
    }
    let leases = number("SESSIOND_TEST_LEASES", 10_000);
    let server = RedisServer::start(&[]);
    let options = StorageOptions { outage_grace: SECOND, ..ROOMY };
    let replica = Replica::start_with(&server.url("timeout_ms=500&buckets=64"), options).await;
    let mut ends = Ends::watch(&replica).await;
    let grants = stream::iter(0..leases).map(|_| replica.storage.grant_lease(TTL, "gateway"));
    grants.buffer_unordered(AT_ONCE).for_each(async |granted| assert!(granted.is_ok(), "{granted:?}")).await;
    let dead = Abandoned::leave(&replica, TTL, keys(0..10)).await;

    server.signal("STOP");
    sleep_until(dead.due[1] + SECOND).await;
    server.signal("CONT");
    let back = Instant::now();
    ends.come_to(10, TTL + PATIENCE).await;
    let last = dead.sessions.iter().map(|session| ends.of(session).expect("it ended").0).max().expect("there are some");
    let after = last - back;
    println!("with {leases} leases, a dead one of {TTL:?} ended {after:?} after the outage");
    assert!(after >= TTL - Duration::from_millis(50), "it ended {after:?} after the outage, with a ttl of {TTL:?}");
    assert!(after <= TTL + 2 * SECOND, "it ended {after:?} after the outage, with a ttl of {TTL:?}");
}

/// Redis' clock goes so slowly that a millisecond of it can be told from the time that a call takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_ends_before_its_ttl() {
    const SLOWER: u32 = 50;
    const LEASES: i64 = 40;
    const TTL: Duration = Duration::from_millis(40);
    let Some((server, _clock)) = start_with_clock(WallClock::slow(SLOWER)) else { return };
    let replica = Replica::start(&server.url("buckets=64")).await;
    let mut ends = Ends::watch(&replica).await;
    let mut granted = Vec::new();
    for n in 0..LEASES {
        // Anywhere within a millisecond of Redis.
        sleep(Duration::from_micros(fastrand::u64(..u64::from(SLOWER) * 1000))).await;
        let abandoned = Abandoned::leave(&replica, TTL, keys(n..n + 1)).await;
        granted.push((abandoned.due[0] - TTL, abandoned));
    }
    ends.come_to(LEASES as usize, PATIENCE).await;
    let early = granted.iter().filter_map(|(granted, lease)| {
        let (end, _) = ends.of(&lease.sessions[0]).expect("it ended");
        // By Redis' clock; the grant took effect after it began, and the end was told after it happened.
        TTL.checked_sub((end - *granted) / SLOWER)
    });
    let early: Vec<Duration> = early.collect();
    assert!(early.is_empty(), "of {LEASES} leases of {TTL:?} some ended early: {early:?}");
}
