//! Changes of Redis' clock while leases are running.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sessiond::{
    session::{LeaseId, SessionKey},
    storage::SessionStorage,
    subject::Start,
};
use tokio::{
    join,
    time::{Instant, sleep},
};

use super::{
    ROOMY,
    ends::{Abandoned, Ends},
    replica::{PATIENCE, Replica, key, keys},
    server::{RedisServer, ServerKind},
};
use crate::wall_clock::WallClock;

const SECOND: Duration = Duration::from_secs(1);

/// The grace that leases get when Redis seems to have been away.
const GRACE: Duration = Duration::from_secs(3);

/// Starts a server that takes its time from `clock`. Returns None if no installed server can: the allocator of Debian's
/// redis-server asks for the time before libfaketime is ready.
pub(super) fn start_with_clock(clock: Option<WallClock>) -> Option<(RedisServer, WallClock)> {
    let clock = clock?;
    let kind = [ServerKind::Valkey, ServerKind::Redis62].into_iter().find(|kind| kind.is_installed())?;
    Some((RedisServer::start_in(kind, &clock.environment(), &[]), clock))
}

/// Keeps a lease alive until `is_over` is set.
async fn keep(storage: &dyn SessionStorage, lease: LeaseId, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        storage.keep_lease_alive(lease).await.expect("the lease is kept alive");
        sleep(SECOND / 4).await;
    }
}

/// Creates and destroys a session repeatedly until `is_over` is set.
async fn call(storage: &dyn SessionStorage, session: SessionKey, is_over: &AtomicBool) {
    let one = [session];
    while !is_over.load(Ordering::Relaxed) {
        assert_eq!(storage.create(&one, None).await.unwrap(), [true]);
        assert_eq!(storage.has(&one).await.unwrap(), [true]);
        assert_eq!(storage.destroy(&one, None).await.unwrap(), [true]);
        sleep(SECOND / 100).await;
    }
}

/// Sets the clock to each of `jumps` in turn. Before and after each jump, one lease is abandoned.
async fn set_clock(clock: &WallClock, replica: &Replica, jumps: &[i64]) {
    let mut ends = Ends::watch(replica).await;
    for (n, jump) in (0..).zip(jumps) {
        let before = Abandoned::grant(replica, SECOND, keys(4 * n..4 * n + 2)).await;
        clock.set(*jump);
        let after = Abandoned::grant(replica, SECOND, keys(4 * n + 2..4 * n + 4)).await;
        let begun = Instant::now();
        let ended = async |lease: &Abandoned| {
            while lease.sessions.iter().any(|session| ends.of(session).is_none()) {
                assert!(begun.elapsed() < PATIENCE, "a dead lease is kept with the clock at {jump} s");
                sleep(SECOND / 100).await;
            }
        };
        join!(ended(&before), ended(&after));
        for lease in [&before, &after] {
            let lateness = lease.lateness(&ends);
            assert!(lateness <= GRACE + 2 * SECOND, "a dead lease ended {lateness:?} late with the clock at {jump} s");
        }
    }
    ends.wait_for_count(4 * jumps.len(), PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changing_the_redis_clock_neither_keeps_dead_leases_nor_ends_live_ones() {
    const JUMPS: [i64; 5] = [-600, 600, 0, 86_400, -1];
    let Some((server, clock)) = start_with_clock(WallClock::new()) else { return };
    let url = server.url("timeout_ms=1000&partitions=3&buckets=48");
    let options = ROOMY.outage_grace(GRACE);
    let [a, b] = [Replica::start_with(&url, options).await, Replica::start_with(&url, options).await];
    let kept = a.storage.grant_lease(2 * SECOND, "gateway").await.unwrap();
    let held = keys(1000..1030);
    a.storage.create(&held, Some(kept)).await.unwrap();

    let is_over = Arc::new(AtomicBool::new(false));
    let mut running = Vec::new();
    for (n, storage) in (0..).zip([&a.storage, &b.storage]) {
        let (storage, is_over) = (Arc::clone(storage), Arc::clone(&is_over));
        running.push(tokio::spawn(async move {
            join!(keep(&*storage, kept, &is_over), call(&*storage, key(2000 + n), &is_over));
        }));
    }
    set_clock(&clock, &a, &JUMPS).await;
    // A replica that starts under the new clock has never seen the old one.
    let c = Replica::start_with(&url, options).await;
    set_clock(&clock, &c, &[300, -300]).await;
    is_over.store(true, Ordering::Relaxed);
    for running in running {
        running.await.unwrap();
    }
    let mut now = b.watch(Start::Snapshot).await;
    now.converges_to(&held).await;
    assert_eq!(now.resets, []);
}
