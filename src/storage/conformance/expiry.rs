//! Leases that expire: not early, and soon.

use std::{collections::HashMap, time::Duration};

use tokio::{
    task::consume_budget,
    time::{Instant, sleep, sleep_until},
};

use super::{
    StorageFactory,
    audit::{all_gone_by, audit, audit_settled, lease_count_becomes},
    registry::{LONG_TTL, Registry, TTL, Tasks, cut_short, keys, unless_gone, yes},
    tail::Tail,
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::session::{DestroyReason, LeaseId, SessionKey};

/// By how much the clocks of a storage and of the suite may differ over a ttl.
pub(super) const CLOCK_GRAIN: Duration = Duration::from_millis(5);

/// How late expiry may be, when few sessions expire.
pub(super) const SOON: Duration = Duration::from_secs(1);

/// A case with a lease of a second has to do things before that second is over. On a machine that stood still meanwhile
/// the lease has rightly expired, and the case begins again with a fresh registry.
pub(super) const ATTEMPTS: usize = 20;

/// Runs `attempt` until it was in time.
macro_rules! in_time {
    ($attempt:expr) => {{
        for _ in 0..ATTEMPTS {
            if $attempt.await?.is_some() {
                return Ok(());
            }
        }
        broken!(Answers, "in none of {ATTEMPTS} attempts was the storage fast enough for a lease of {TTL:?}")
    }};
}

pub(super) use in_time;

/// A lease of [`TTL`] with sessions under it, and when it was asked for: no earlier than [`TTL`] after that it may expire. None
/// when that was over before they were created.
async fn short_lease(registry: &Registry, sessions: &[SessionKey]) -> Outcome<Option<(LeaseId, Instant)>> {
    let asked = Instant::now();
    let lease = registry.grant(TTL).await?;
    let created = unless_gone(registry.storage().create(sessions, Some(lease)).await, lease)?;
    Ok((!gone_in_time(created.is_none(), asked)?).then_some((lease, asked)))
}

/// Whether a lease, or what was under it, was found gone, which must live for [`TTL`] from `since` on.
pub(super) fn gone_in_time(gone: bool, since: Instant) -> Outcome<bool> {
    let age = since.elapsed();
    ensure!(!gone || age + CLOCK_GRAIN >= TTL, Leased, "a lease of {TTL:?} was gone after {age:?}");
    Ok(gone)
}

pub(super) async fn a_lease_expires_after_its_ttl_and_soon(factory: &dyn StorageFactory) -> Outcome {
    in_time!(expires_after_its_ttl_and_soon(factory))
}

async fn expires_after_its_ttl_and_soon(factory: &dyn StorageFactory) -> Outcome<Option<()>> {
    let registry = Registry::open(factory).await?;
    let _expiring = registry.expire_leases();
    registry.create(&keys(100..110), None).await?;
    let longer = registry.grant(LONG_TTL).await?;
    registry.create(&keys(110..120), Some(longer)).await?;
    let mut tail = Tail::new(&registry).await?;
    let own = keys(0..20);
    let Some((_, asked)) = short_lease(&registry, &own).await? else { return Ok(None) };
    let deadline = Instant::now() + TTL + SOON + registry.slack;
    for (session, seen) in tail.all_destroyed(&own, DestroyReason::LeaseExpired, deadline).await? {
        let age = seen - asked;
        ensure!(age + CLOCK_GRAIN >= TTL, Leased, "{session:?} expired with a lease of {TTL:?} after {age:?}");
    }
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live.len(), 20, Leased, "sessions left that were not under that lease");
    Ok(Some(()))
}

pub(super) async fn a_lease_kept_alive_does_not_expire(factory: &dyn StorageFactory) -> Outcome {
    in_time!(kept_alive_does_not_expire(factory))
}

async fn kept_alive_does_not_expire(factory: &dyn StorageFactory) -> Outcome<Option<()>> {
    let registry = Registry::open(factory).await?;
    let _expiring = registry.expire_leases();
    let own = keys(0..10);
    let Some((lease, asked)) = short_lease(&registry, &own).await? else { return Ok(None) };
    let mut kept = asked;
    while asked.elapsed() < 3 * TTL {
        sleep(TTL / 4).await;
        let asked_now = Instant::now();
        let ttl = unless_gone(registry.storage().keep_lease_alive(lease).await, lease)?;
        gone_in_time(ttl.is_none(), kept)?;
        let Some(ttl) = ttl else { return Ok(None) };
        ensure_eq!(ttl, TTL, Answers, "the ttl that keep_lease_alive gives");
        kept = asked_now;
    }
    let mut tail = Tail::new(&registry).await?;
    let exist = registry.has(&own).await?;
    if gone_in_time(yes(&exist) < own.len(), kept)? {
        return Ok(None);
    }
    let deadline = Instant::now() + TTL + SOON + registry.slack;
    for (session, seen) in tail.all_destroyed(&own, DestroyReason::LeaseExpired, deadline).await? {
        let age = seen - kept;
        ensure!(
            age + CLOCK_GRAIN >= TTL,
            Leased,
            "{session:?} expired {age:?} after its lease of {TTL:?} was kept alive"
        );
    }
    audit_settled(&registry).await?;
    Ok(Some(()))
}

pub(super) async fn an_expired_lease_is_gone(factory: &dyn StorageFactory) -> Outcome {
    in_time!(expired_is_gone(factory))
}

async fn expired_is_gone(factory: &dyn StorageFactory) -> Outcome<Option<()>> {
    let registry = Registry::open(factory).await?;
    let own = keys(0..10);
    let Some((lease, _)) = short_lease(&registry, &own).await? else { return Ok(None) };
    let _expiring = registry.expire_leases();
    all_gone_by(&registry, &own, Instant::now() + TTL + SOON + registry.slack).await?;
    let created = unless_gone(registry.storage().create(&keys(0..5), Some(lease)).await, lease)?;
    ensure!(created.is_none(), Leased, "sessions were created under a lease that had expired");
    registry.create(&keys(0..5), None).await?;
    let destroyed = registry.destroy(&keys(0..5), Some(lease)).await?;
    ensure_eq!(yes(&destroyed), 0, Leased, "sessions destroyed under a lease that had expired");
    let kept = unless_gone(registry.storage().keep_lease_alive(lease).await, lease)?;
    ensure!(kept.is_none(), Leased, "a lease was kept alive after it had expired");
    let revoked = unless_gone(registry.storage().revoke_lease(lease).await, lease)?;
    ensure!(revoked.is_none(), Leased, "a lease was revoked after it had expired");
    lease_count_becomes(&registry, 0).await?;
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live.len(), 5, Leased, "sessions created anew without a lease");
    Ok(Some(()))
}

pub(super) async fn many_leases_expire_side_by_side(factory: &dyn StorageFactory) -> Outcome {
    in_time!(many_expire(factory))
}

async fn many_expire(factory: &dyn StorageFactory) -> Outcome<Option<()>> {
    const LEASES: i64 = 100;
    let registry = Registry::open(factory).await?;
    let mut tail = Tail::new(&registry).await?;
    let mut granting = Tasks::new();
    for n in 0..LEASES {
        let registry = registry.clone();
        granting.spawn(async move {
            // Some have no session at all.
            let own = keys(n * 10..n * 10 + n % 4);
            Ok(short_lease(&registry, &own).await?.map(|(_, asked)| (asked, own)))
        });
    }
    let _expiring = registry.expire_leases();
    let Some(granted) = granting.join().await?.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
    let asked: HashMap<SessionKey, Instant> =
        granted.into_iter().flat_map(|(asked, own)| own.into_iter().map(move |session| (session, asked))).collect();
    let all: Vec<SessionKey> = asked.keys().copied().collect();
    let deadline = Instant::now() + TTL + SOON + registry.slack;
    for (session, seen) in tail.all_destroyed(&all, DestroyReason::LeaseExpired, deadline).await? {
        let age = seen - asked[&session];
        ensure!(age + CLOCK_GRAIN >= TTL, Leased, "{session:?} expired with one of {LEASES} leases after {age:?}");
    }
    lease_count_becomes(&registry, 0).await?;
    audit_settled(&registry).await?;
    Ok(Some(()))
}

pub(super) async fn a_session_that_moved_in_time_survives(factory: &dyn StorageFactory) -> Outcome {
    in_time!(moved_in_time_survives(factory))
}

async fn moved_in_time_survives(factory: &dyn StorageFactory) -> Outcome<Option<()>> {
    let registry = Registry::open(factory).await?;
    let _expiring = registry.expire_leases();
    let (moving, staying) = (keys(0..10), keys(10..20));
    let Some((_, asked)) = short_lease(&registry, &keys(0..20)).await? else { return Ok(None) };
    let other = registry.grant(LONG_TTL).await?;
    let created = registry.create(&moving, Some(other)).await?;
    if gone_in_time(yes(&created) > 0, asked)? {
        return Ok(None);
    }
    all_gone_by(&registry, &staying, Instant::now() + TTL + SOON + registry.slack).await?;
    ensure_eq!(yes(&registry.has(&moving).await?), 10, Leased, "sessions that moved before their lease expired");
    ensure_eq!(registry.revoke(other).await?, 10, Leased, "sessions under the lease that they moved to");
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.all_destroyed(DestroyReason::LeaseExpired), 10, Leased, "sessions that expired");
    Ok(Some(()))
}

pub(super) async fn expiry_goes_on_after_it_was_dropped(factory: &dyn StorageFactory) -> Outcome {
    let mut rounds = Tasks::new();
    for polls in [0, 1, 2, 3, 5, 8] {
        for tired in [false, true] {
            // All at once, but each in a registry of its own: whoever holds a storage expires its leases once.
            rounds.spawn(expiry_dropped(Registry::open(factory).await?, polls, tired));
        }
    }
    rounds.join().await?;
    Ok(())
}

/// Expires leases with a call that is dropped after so many polls, and then with one that is not.
async fn expiry_dropped(registry: std::sync::Arc<Registry>, polls: usize, tired: bool) -> Outcome {
    let sessions = keys(0..60);
    for own in sessions.chunks(20) {
        let lease = registry.grant(TTL).await?;
        if unless_gone(registry.storage().create(own, Some(lease)).await, lease)?.is_none() {
            // Too late: no session is under it, which is all the same to this case.
            registry.create(own, None).await?;
            registry.destroy(own, None).await?;
        }
    }
    sleep(TTL + Duration::from_millis(20)).await;
    if tired {
        // A task that has done a lot is told to wait by whatever it polls, before any of that has done a thing.
        while cut_short(consume_budget(), 1).await.is_some() {}
    }
    let storage = registry.first();
    // It never ends by itself; what it waits for may be over before it was polled that often.
    drop(tokio::time::timeout(Duration::from_millis(100), cut_short(storage.expire_leases(), polls)).await);
    let step = || format!("expire_leases dropped at poll {polls}{}", if tired { ", out of budget" } else { "" });
    audit(&registry).await.map_err(|broken| broken.in_step(step()))?;
    let _expiring = registry.expire_leases();
    let deadline = Instant::now() + TTL + SOON + registry.slack;
    all_gone_by(&registry, &sessions, deadline).await.map_err(|broken| broken.in_step(step()))?;
    audit_settled(&registry).await.map_err(|broken| broken.in_step(step()))?;
    Ok(())
}

/// The moment about which a lease asked for at `asked` expires, and some milliseconds before or after it.
pub(super) async fn near_expiry(asked: Instant, early: u64, late: u64) {
    sleep_until(asked + TTL + Duration::from_millis(late) - Duration::from_millis(early)).await;
}
