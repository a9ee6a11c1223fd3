//! Leases that end while other calls are in flight: no session is left behind, and none is destroyed twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};

use super::{
    StorageFactory,
    audit::{all_gone_by, audit_settled},
    expiry::{SOON, gone_after_ttl, near_expiry},
    registry::{LONG_TTL, Registry, TTL, Tasks, count_true, key, keys, poll_at_most, unless_gone, yield_randomly},
    violation::{Outcome, ensure, ensure_eq},
};
use crate::session::{DestroyReason, LeaseId, SessionKey};

/// Milliseconds before and after the expiry of a lease, at which the revokes are made.
const OFFSETS: [(u64, u64); 12] =
    [(50, 0), (10, 0), (3, 0), (2, 0), (1, 0), (0, 0), (0, 1), (0, 2), (0, 3), (0, 10), (0, 30), (0, 100)];

pub(super) async fn revoke_racing_expiry_destroys_once(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let _expiring = registry.expire_leases();
    let mut revoking = Tasks::new();
    for (n, (early, late)) in (0..).zip(OFFSETS) {
        let registry = Arc::clone(&registry);
        revoking.spawn(async move {
            let own = keys(n * 100..n * 100 + 40);
            let asked = Instant::now();
            let lease = registry.grant(TTL).await?;
            let created = unless_gone(registry.storage().create(&own, Some(lease)).await, lease)?;
            if gone_after_ttl(created.is_none(), asked)? {
                return Ok(None);
            }
            near_expiry(asked, early, late).await;
            let revoked = unless_gone(registry.storage().revoke_lease(lease).await, lease)?;
            if let Some(count) = revoked {
                ensure_eq!(count, own.len() as u64, Leased, "sessions destroyed by a revoke close to expiry");
                ensure_eq!(
                    count_true(&registry.has(&own).await?),
                    0,
                    Leased,
                    "sessions left after a revoke close to expiry"
                );
                return Ok(Some((own, DestroyReason::LeaseRevoked)));
            }
            gone_after_ttl(true, asked)?;
            all_gone_by(&registry, &own, Instant::now() + SOON + registry.slack).await?;
            Ok(Some((own, DestroyReason::LeaseExpired)))
        });
    }
    let ended = revoking.join().await?;
    let replay = audit_settled(&registry).await?;
    for (own, reason) in ended.into_iter().flatten() {
        for session in own {
            let count = replay.destroyed(session, reason);
            ensure_eq!(count, 1, Leased, "destructions of {session:?} with {reason:?}");
        }
    }
    Ok(())
}

pub(super) async fn creates_racing_expiry_leave_no_ghost(factory: &dyn StorageFactory) -> Outcome {
    const LEASES: i64 = 12;
    let registry = Registry::open(factory).await?;
    let _expiring = registry.expire_leases();
    let mut creating = Tasks::new();
    for n in 0..LEASES {
        let registry = Arc::clone(&registry);
        creating.spawn(async move {
            let mut random = fastrand::Rng::new();
            let asked = Instant::now();
            let lease = registry.grant(TTL).await?;
            near_expiry(asked, 20, 0).await;
            let mut tried = Vec::new();
            loop {
                let next = n * 100_000 + tried.len() as i64;
                let some = keys(next..next + random.i64(1..6));
                tried.extend_from_slice(&some);
                let created = unless_gone(registry.storage().create(&some, Some(lease)).await, lease)?;
                if gone_after_ttl(created.is_none(), asked)? {
                    return Ok(tried);
                }
                let age = asked.elapsed();
                let due = TTL + SOON + registry.slack;
                ensure!(age <= due, Leased, "a lease of {TTL:?} still took sessions after {age:?}");
                sleep(Duration::from_millis(random.u64(..2))).await;
                yield_randomly(&mut random).await;
            }
        });
    }
    let tried = creating.join().await?.concat();
    all_gone_by(&registry, &tried, Instant::now() + SOON + registry.slack).await?;
    let replay = audit_settled(&registry).await?;
    for session in tried {
        let (created, expired) = (replay.created(session), replay.destroyed(session, DestroyReason::LeaseExpired));
        ensure_eq!(
            expired,
            created,
            Leased,
            "expiries of {session:?}, which was created around the end of its lease, compared with its creations"
        );
    }
    Ok(())
}

pub(super) async fn creates_racing_a_revoke_leave_no_ghost(factory: &dyn StorageFactory) -> Outcome {
    const ROUNDS: i64 = 30;
    const CREATORS: i64 = 3;
    /// Enough for a creator to be busy when the lease is revoked. Limits the creator if the revoke takes long.
    const MOST: i64 = 500;
    let registry = Registry::open(factory).await?;
    let mut random = fastrand::Rng::new();
    let mut revokes = Vec::new();
    for round in 0..ROUNDS {
        let lease = registry.grant(LONG_TTL).await?;
        let revoked = Arc::new(AtomicBool::new(false));
        let mut creating = Tasks::new();
        for creator in 0..CREATORS {
            let (registry, revoked) = (Arc::clone(&registry), Arc::clone(&revoked));
            creating.spawn(async move {
                let mut random = fastrand::Rng::new();
                let first = (round * CREATORS + creator) * 2 * MOST;
                let mut next = first;
                while next < first + MOST {
                    let some = keys(next..next + random.i64(1..6));
                    next += some.len() as i64;
                    let late = revoked.load(Ordering::Acquire);
                    if unless_gone(registry.storage().create(&some, Some(lease)).await, lease)?.is_none() {
                        break;
                    }
                    ensure!(!late, Leased, "sessions were created under a lease after its revoke had returned");
                    yield_randomly(&mut random).await;
                }
                Ok(keys(first..next))
            });
        }
        for _ in 0..random.u32(..60) {
            yield_now().await;
        }
        let count = registry.revoke(lease).await?;
        revoked.store(true, Ordering::Release);
        let tried = creating.join().await?.concat();
        let left = count_true(&registry.has(&tried).await?);
        ensure_eq!(left, 0, Leased, "sessions left after a revoke during their creation");
        revokes.push((tried, count));
    }
    let replay = audit_settled(&registry).await?;
    for (tried, count) in revokes {
        let destroyed: u64 = tried.iter().map(|session| replay.destroyed(*session, DestroyReason::LeaseRevoked)).sum();
        ensure_eq!(count, destroyed, Leased, "sessions destroyed, in the answer of a revoke, compared with the log");
    }
    Ok(())
}

pub(super) async fn moves_racing_a_revoke_keep_their_sessions(factory: &dyn StorageFactory) -> Outcome {
    const ROUNDS: i64 = 30;
    const SESSIONS: i64 = 60;
    let registry = Registry::open(factory).await?;
    for round in 0..ROUNDS {
        let own = keys(round * 100..round * 100 + SESSIONS);
        let [from, to] = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
        registry.create(&own, Some(from)).await?;
        let mut moving = Tasks::new();
        for some in own.chunks(own.len() / 3) {
            let (registry, some) = (Arc::clone(&registry), some.to_vec());
            moving.spawn(async move {
                let mut random = fastrand::Rng::new();
                let mut created = 0;
                for session in some {
                    created += u64::from(registry.create_one(session, Some(to)).await?);
                    yield_randomly(&mut random).await;
                }
                Ok(created)
            });
        }
        let mut random = fastrand::Rng::new();
        for _ in 0..random.u32(..30) {
            yield_now().await;
        }
        let revoked = registry.revoke(from).await?;
        let created: u64 = moving.join().await?.iter().sum();
        let exist = count_true(&registry.has(&own).await?);
        ensure_eq!(exist, own.len(), Leased, "sessions that survive because they moved or were recreated");
        ensure_eq!(created, revoked, Leased, "sessions recreated, compared with those destroyed before they moved");
        ensure_eq!(
            registry.revoke(to).await?,
            own.len() as u64,
            Leased,
            "sessions destroyed with the lease that they moved to"
        );
    }
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live.len(), 0, Leased, "sessions left at the end");
    Ok(())
}

pub(super) async fn destroys_racing_a_revoke_destroy_once(factory: &dyn StorageFactory) -> Outcome {
    const ROUNDS: i64 = 30;
    const SESSIONS: i64 = 90;
    let registry = Registry::open(factory).await?;
    for round in 0..ROUNDS {
        let own = keys(round * 100..round * 100 + SESSIONS);
        let lease = registry.grant(LONG_TTL).await?;
        registry.create(&own, Some(lease)).await?;
        let mut destroying = Tasks::new();
        for conditional in [true, false] {
            let (registry, mut own) = (Arc::clone(&registry), own.clone());
            destroying.spawn(async move {
                let mut random = fastrand::Rng::new();
                random.shuffle(&mut own);
                let mut destroyed = 0;
                for some in own[..60].chunks(3) {
                    destroyed += count_true(&registry.destroy(some, conditional.then_some(lease)).await?) as u64;
                    yield_randomly(&mut random).await;
                }
                Ok(destroyed)
            });
        }
        let mut random = fastrand::Rng::new();
        for _ in 0..random.u32(..30) {
            yield_now().await;
        }
        let revoked = registry.revoke(lease).await?;
        let destroyed: u64 = destroying.join().await?.iter().sum();
        ensure_eq!(
            revoked + destroyed,
            own.len() as u64,
            Leased,
            "sessions destroyed by a revoke and by concurrent calls"
        );
        ensure_eq!(
            count_true(&registry.has(&own).await?),
            0,
            Leased,
            "sessions left after a revoke and concurrent calls"
        );
    }
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn late_destroy_under_an_ended_lease_spares_new_sessions(factory: &dyn StorageFactory) -> Outcome {
    const OTHERS: i64 = 60_000;
    let registry = Registry::open(factory).await?;
    for round in 0..4 {
        let own = keys(-8..0);
        let old = registry.grant(LONG_TTL).await?;
        registry.create(&own, Some(old)).await?;
        // A long batch that reaches these sessions late, when their lease has ended and new leases may use its
        // resources.
        let batch: Vec<SessionKey> = keys(0..OTHERS).into_iter().chain(own.iter().copied()).collect();
        let mut destroying = Tasks::new();
        let beside = Arc::clone(&registry);
        destroying.spawn(async move { beside.destroy(&batch, Some(old)).await });
        for _ in 0..round {
            yield_now().await;
        }
        registry.revoke(old).await?;
        let mut later = Vec::new();
        for session in &own {
            let lease = registry.grant(LONG_TTL).await?;
            registry.create_one(*session, Some(lease)).await?;
            later.push(lease);
        }
        destroying.join().await?;
        let exist = count_true(&registry.has(&own).await?);
        ensure_eq!(exist, own.len(), Leased, "sessions under new leases after a destroy under an ended lease");
        for lease in later {
            ensure_eq!(registry.revoke(lease).await?, 1, Leased, "sessions destroyed with a new lease");
        }
    }
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn restarting_gateways_leave_no_ghost(factory: &dyn StorageFactory) -> Outcome {
    const GATEWAYS: usize = 5;
    const LIVES: usize = 8;
    let registry = Registry::open(factory).await?;
    let _expiring = registry.expire_leases();
    let clients = Arc::new(Clients { registry: Arc::clone(&registry), new: AtomicI64::new(Clients::KNOWN) });
    let mut gateways = Tasks::new();
    for _ in 0..GATEWAYS {
        let clients = Arc::clone(&clients);
        gateways.spawn(async move {
            let mut destroyed = 0;
            for _ in 0..LIVES {
                destroyed += gateway(&clients).await?;
            }
            Ok(destroyed)
        });
    }
    let destroyed: u64 = gateways.join().await?.iter().sum();
    all_gone_by(&registry, &keys(0..clients.new.load(Ordering::Relaxed)), Instant::now() + TTL + SOON + registry.slack)
        .await?;
    let replay = audit_settled(&registry).await?;
    let logged = replay.all_destroyed(DestroyReason::Requested) + replay.all_destroyed(DestroyReason::Released);
    ensure_eq!(logged, destroyed, Leased, "sessions destroyed on request in the log, compared with the answers");
    Ok(())
}

/// The clients of all gateways.
struct Clients {
    registry: Arc<Registry>,
    /// The number of the next new session.
    new: AtomicI64,
}

impl Clients {
    /// The number of sessions that move between gateways.
    const KNOWN: i64 = 40;

    /// Returns a session that other gateways may also hold, or a new one. If a new one is left behind, no other gateway
    /// takes it over.
    fn session(&self, random: &mut fastrand::Rng) -> SessionKey {
        key(if random.bool() { random.i64(0..Self::KNOWN) } else { self.new.fetch_add(1, Ordering::Relaxed) })
    }
}

/// Simulates one life of a gateway. Its connections create sessions only under its lease, and it ends in a random way.
/// Returns the number of sessions that it destroyed.
async fn gateway(clients: &Arc<Clients>) -> Outcome<u64> {
    let registry = &clients.registry;
    let mut random = fastrand::Rng::new();
    let lease = registry.grant(TTL).await?;
    let closed = Arc::new(AtomicBool::new(false));
    let mut connections = Tasks::new();
    for _ in 0..3 {
        let (clients, closed) = (Arc::clone(clients), Arc::clone(&closed));
        connections.spawn(async move { connection(&clients, lease, &closed).await });
    }
    sleep(Duration::from_millis(random.u64(0..30))).await;
    match random.u8(..5) {
        0 => drop(unless_gone(registry.storage().revoke_lease(lease).await, lease)?),
        1 => {
            let revoked = poll_at_most(registry.storage().revoke_lease(lease), random.usize(..6)).await;
            revoked.map(|answer| unless_gone(answer, lease)).transpose()?;
        }
        // It crashes, and its lease expires. Or it hangs, so that its lease expires while its connections still work.
        2 | 3 => closed.store(true, Ordering::Release),
        _ => sleep(TTL).await,
    }
    // After a revoke that was dropped before it began, the connections can still use the lease.
    let closing = sleep(Duration::from_millis(random.u64(..30)));
    let (destroyed, ()) = tokio::join!(connections.join(), async {
        closing.await;
        closed.store(true, Ordering::Release);
    });
    Ok(destroyed?.iter().sum())
}

/// Creates and destroys sessions until the gateway closes or has lost its lease. Returns the number destroyed.
async fn connection(clients: &Clients, lease: LeaseId, closed: &AtomicBool) -> Outcome<u64> {
    let registry = &clients.registry;
    let mut random = fastrand::Rng::new();
    let mut destroyed = 0;
    while !closed.load(Ordering::Acquire) {
        let some: Vec<_> = (0..random.i64(1..5)).map(|_| clients.session(&mut random)).collect();
        match random.u8(..10) {
            0..6 => {
                if unless_gone(registry.storage().create(&some, Some(lease)).await, lease)?.is_none() {
                    break;
                }
            }
            6 => destroyed += count_true(&registry.destroy(&some, None).await?) as u64,
            7 => destroyed += count_true(&registry.destroy(&some, Some(lease)).await?) as u64,
            _ => sleep(Duration::from_millis(random.u64(..20))).await,
        }
        yield_randomly(&mut random).await;
    }
    Ok(destroyed)
}
