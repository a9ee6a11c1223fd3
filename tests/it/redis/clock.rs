//! The clock of Redis is set while leases run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{SessionStorage, StorageOptions},
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

/// How long a lease may live on when it looks as if Redis had been away.
const GRACE: Duration = Duration::from_secs(3);

/// Starts a server that goes by `clock`. None where no program takes one: the allocator of Debian's redis-server asks for the
/// time before libfaketime can tell it.
pub(super) fn start_with_clock(clock: Option<WallClock>) -> Option<(RedisServer, WallClock)> {
    let clock = clock?;
    let kind = [ServerKind::Valkey, ServerKind::Redis62].into_iter().find(|kind| kind.is_installed())?;
    Some((RedisServer::start_in(kind, &clock.environment(), &[]), clock))
}

/// Keeps a lease alive.
async fn keep(storage: &dyn SessionStorage, lease: LeaseId, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        storage.keep_lease_alive(lease).await.expect("the lease lives");
        sleep(SECOND / 4).await;
    }
}

/// Creates and destroys a session again and again.
async fn call(storage: &dyn SessionStorage, session: SessionKey, is_over: &AtomicBool) {
    let one = [session];
    while !is_over.load(Ordering::Relaxed) {
        assert_eq!(storage.create(&one, None).await.unwrap(), [true]);
        assert_eq!(storage.has(&one).await.unwrap(), [true]);
        assert_eq!(storage.destroy(&one, None).await.unwrap(), [true]);
        sleep(SECOND / 100).await;
    }
}

/// Sets the clock again and again. Each time one lease is abandoned just before and one just after.
async fn set_clock(clock: &WallClock, replica: &Replica, jumps: &[i64]) {
    let mut ends = Ends::watch(replica).await;
    for (n, jump) in (0..).zip(jumps) {
        let before = Abandoned::leave(replica, SECOND, keys(4 * n..4 * n + 2)).await;
        clock.set(*jump);
        let after = Abandoned::leave(replica, SECOND, keys(4 * n + 2..4 * n + 4)).await;
        let begun = Instant::now();
        let ended = async |lease: &Abandoned| {
            while lease.sessions.iter().any(|session| ends.of(session).is_none()) {
                assert!(begun.elapsed() < PATIENCE, "at {jump} s a dead lease is kept");
                sleep(SECOND / 100).await;
            }
        };
        join!(ended(&before), ended(&after));
        for lease in [&before, &after] {
            let lateness = lease.lateness(&ends);
            assert!(lateness <= GRACE + 2 * SECOND, "at {jump} s a dead lease ended {lateness:?} late");
        }
    }
    ends.come_to(4 * jumps.len(), PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_neither_keeps_dead_leases_nor_ends_live_ones() {
    const JUMPS: [i64; 5] = [-600, 600, 0, 86_400, -1];
    let Some((server, clock)) = start_with_clock(WallClock::new()) else { return };
    let url = server.url("timeout_ms=1000&partitions=3&buckets=48");
    let options = StorageOptions { outage_grace: GRACE, ..ROOMY };
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
    // A replica that starts by the new clock knows nothing of the old one.
    let c = Replica::start_with(&url, options).await;
    set_clock(&clock, &c, &[300, -300]).await;
    is_over.store(true, Ordering::Relaxed);
    for running in running {
        running.await.unwrap();
    }
    let mut now = b.watch(Start::Snapshot).await;
    now.comes_to_hold(&held).await;
    assert_eq!(now.resets, []);
}
