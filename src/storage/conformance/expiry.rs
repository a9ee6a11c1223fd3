//! Leases that expire: neither early nor much too late.

use std::{collections::HashMap, time::Duration};

use tokio::{
    task::consume_budget,
    time::{Instant, sleep, sleep_until},
};

use super::{
    StorageFactory,
    audit::{all_gone_by, audit, audit_settled, lease_count_becomes},
    registry::{LONG_TTL, Registry, TTL, Tasks, count_true, keys, poll_at_most, unless_gone},
    tail::Tail,
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::session::{DestroyReason, LeaseId, SessionKey};

/// The tolerated difference between the clocks of the storage and the suite over a ttl.
pub(super) const CLOCK_GRAIN: Duration = Duration::from_millis(5);

/// How late a lease with few sessions may expire.
pub(super) const SOON: Duration = Duration::from_secs(1);

/// How often a case is repeated with a fresh registry. A case with a lease of one second must take some steps before
/// the lease expires. If the machine stalls meanwhile, the lease rightly expires too early for the case.
pub(super) const ATTEMPTS: usize = 20;

/// Repeats `attempt` until it was in time, which means that it returned `Some`.
macro_rules! in_time {
    ($attempt:expr) => {{
        for _ in 0..ATTEMPTS {
            if $attempt.await?.is_some() {
                return Ok(());
            }
        }
        broken!(Answers, "the storage was too slow for a lease of {TTL:?} in all {ATTEMPTS} attempts")
    }};
}

pub(super) use in_time;

/// Grants a lease of [`TTL`], and creates sessions under it. Also returns the time before the grant: the lease must not
/// expire within [`TTL`] from then on. Returns `None` if it expired before the sessions were created.
async fn short_lease(registry: &Registry, sessions: &[SessionKey]) -> Outcome<Option<(LeaseId, Instant)>> {
    let asked = Instant::now();
    let lease = registry.grant(TTL).await?;
    let created = unless_gone(registry.storage().create(sessions, Some(lease)).await, lease)?;
    Ok((!gone_after_ttl(created.is_none(), asked)?).then_some((lease, asked)))
}

/// Returns `gone`: whether a lease, or a session under it, was found gone. Fails the case if that was within [`TTL`]
/// from `since`.
pub(super) fn gone_after_ttl(gone: bool, since: Instant) -> Outcome<bool> {
    let age = since.elapsed();
    ensure!(!gone || age + CLOCK_GRAIN >= TTL, Leased, "a lease of {TTL:?} was gone after {age:?}");
    Ok(gone)
}

pub(super) async fn lease_expires_soon_after_its_ttl(factory: &dyn StorageFactory) -> Outcome {
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
        ensure!(age + CLOCK_GRAIN >= TTL, Leased, "{session:?} expired after {age:?} with a lease of {TTL:?}");
    }
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live.len(), 20, Leased, "sessions left that were not under the expired lease");
    Ok(Some(()))
}

pub(super) async fn lease_kept_alive_does_not_expire(factory: &dyn StorageFactory) -> Outcome {
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
        gone_after_ttl(ttl.is_none(), kept)?;
        let Some(ttl) = ttl else { return Ok(None) };
        ensure_eq!(ttl, TTL, Answers, "the ttl that keep_lease_alive returns");
        kept = asked_now;
    }
    let mut tail = Tail::new(&registry).await?;
    let exist = registry.has(&own).await?;
    if gone_after_ttl(count_true(&exist) < own.len(), kept)? {
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

pub(super) async fn expired_lease_is_gone(factory: &dyn StorageFactory) -> Outcome {
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
    ensure_eq!(count_true(&destroyed), 0, Leased, "sessions destroyed under a lease that had expired");
    let kept = unless_gone(registry.storage().keep_lease_alive(lease).await, lease)?;
    ensure!(kept.is_none(), Leased, "a lease was kept alive after it had expired");
    let revoked = unless_gone(registry.storage().revoke_lease(lease).await, lease)?;
    ensure!(revoked.is_none(), Leased, "a lease was revoked after it had expired");
    lease_count_becomes(&registry, 0).await?;
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live.len(), 5, Leased, "sessions recreated without a lease");
    Ok(Some(()))
}

pub(super) async fn many_leases_expire_together(factory: &dyn StorageFactory) -> Outcome {
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
            // Some leases have no sessions.
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
        ensure!(age + CLOCK_GRAIN >= TTL, Leased, "{session:?} expired after {age:?} with one of {LEASES} leases");
    }
    lease_count_becomes(&registry, 0).await?;
    audit_settled(&registry).await?;
    Ok(Some(()))
}

pub(super) async fn session_moved_before_expiry_survives(factory: &dyn StorageFactory) -> Outcome {
    in_time!(moved_in_time_survives(factory))
}

async fn moved_in_time_survives(factory: &dyn StorageFactory) -> Outcome<Option<()>> {
    let registry = Registry::open(factory).await?;
    let _expiring = registry.expire_leases();
    let (moving, staying) = (keys(0..10), keys(10..20));
    let Some((_, asked)) = short_lease(&registry, &keys(0..20)).await? else { return Ok(None) };
    let other = registry.grant(LONG_TTL).await?;
    let created = registry.create(&moving, Some(other)).await?;
    if gone_after_ttl(count_true(&created) > 0, asked)? {
        return Ok(None);
    }
    all_gone_by(&registry, &staying, Instant::now() + TTL + SOON + registry.slack).await?;
    ensure_eq!(count_true(&registry.has(&moving).await?), 10, Leased, "sessions that moved before their lease expired");
    ensure_eq!(registry.revoke(other).await?, 10, Leased, "sessions destroyed with the lease that they moved to");
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.all_destroyed(DestroyReason::LeaseExpired), 10, Leased, "sessions that expired");
    Ok(Some(()))
}

pub(super) async fn expiry_continues_after_a_dropped_call(factory: &dyn StorageFactory) -> Outcome {
    let mut rounds = Tasks::new();
    for polls in [0, 1, 2, 3, 5, 8] {
        for tired in [false, true] {
            // Concurrent, but in separate registries, because each handle runs `expire_leases` only once.
            rounds.spawn(expiry_dropped(Registry::open(factory).await?, polls, tired));
        }
    }
    rounds.join().await?;
    Ok(())
}

/// Expires leases with a call that is dropped after some polls, and then with one that is not. With `tired`, the first
/// call is made by a task that has used up its cooperative budget.
async fn expiry_dropped(registry: std::sync::Arc<Registry>, polls: usize, tired: bool) -> Outcome {
    let sessions = keys(0..60);
    for own in sessions.chunks(20) {
        let lease = registry.grant(TTL).await?;
        if unless_gone(registry.storage().create(own, Some(lease)).await, lease)?.is_none() {
            // The lease has already expired. The case works with sessions that are already destroyed, too.
            registry.create(own, None).await?;
            registry.destroy(own, None).await?;
        }
    }
    sleep(TTL + Duration::from_millis(20)).await;
    if tired {
        // Without budget, everything that the task polls returns pending before it does anything.
        while poll_at_most(consume_budget(), 1).await.is_some() {}
    }
    let storage = registry.first();
    // The call never returns, and may need fewer polls than that.
    drop(tokio::time::timeout(Duration::from_millis(100), poll_at_most(storage.expire_leases(), polls)).await);
    let step = || format!("expire_leases dropped after {polls} polls{}", if tired { ", out of budget" } else { "" });
    audit(&registry).await.map_err(|broken| broken.in_step(step()))?;
    let _expiring = registry.expire_leases();
    let deadline = Instant::now() + TTL + SOON + registry.slack;
    all_gone_by(&registry, &sessions, deadline).await.map_err(|broken| broken.in_step(step()))?;
    audit_settled(&registry).await.map_err(|broken| broken.in_step(step()))?;
    Ok(())
}

/// Waits until some milliseconds before or after the earliest expiry of a lease that was requested at `asked`.
pub(super) async fn near_expiry(asked: Instant, early: u64, late: u64) {
    sleep_until(asked + TTL + Duration::from_millis(late) - Duration::from_millis(early)).await;
}
