//! Leases that are granted and revoked, and sessions that move between them. No lease expires here.

use super::{
    StorageFactory,
    audit::{all_gone_by, audit, audit_settled, lease_count_becomes, read_log},
    registry::{LONG_TTL, PATIENCE, ROOMY, Registry, TTL, count_true, key, keys, poll_at_most, unless_gone},
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::{
    session::{DestroyReason, LeaseId, SessionKey},
    storage::{StorageError, StorageOptions},
};

/// Returns a lease that is gone, and one that never existed.
pub(super) async fn gone_leases(registry: &Registry) -> Outcome<[LeaseId; 2]> {
    let gone = registry.grant(LONG_TTL).await?;
    registry.revoke(gone).await?;
    let never = LeaseId::from_number(gone.number() ^ 0x5555_0000).unwrap_or(LeaseId(std::num::NonZeroU64::MAX));
    Ok([gone, never])
}

pub(super) async fn lease_lives_until_revoked(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let longest = TTL * 24 * 3600;
    let label = "é".repeat(64);
    for (ttl, owner) in [(TTL, "gateway-1"), (LONG_TTL, ""), (longest, &label)] {
        let lease = registry.storage().grant_lease(ttl, owner).await?;
        if let Some(found) = registry.storage().lease_owner(lease).await? {
            ensure_eq!(&*found, owner, Answers, "the owner of a lease");
        } else {
            ensure_eq!(ttl, TTL, Leased, "the ttl of a lease that was immediately gone");
        }
        // The shortest lease lives for a second. It can only be gone if the machine stalled for that long.
        if let Some(answer) = unless_gone(registry.storage().keep_lease_alive(lease).await, lease)? {
            ensure_eq!(answer, ttl, Answers, "the ttl that keep_lease_alive returns");
        } else {
            ensure_eq!(ttl, TTL, Leased, "the ttl of a lease that was immediately gone");
        }
    }
    let registry = Registry::open(factory).await?;
    let mut leases = Vec::new();
    for _ in 0..20 {
        leases.push(registry.grant(LONG_TTL).await?);
    }
    lease_count_becomes(&registry, 20).await?;
    let mut all = leases.clone();
    for lease in leases {
        ensure_eq!(registry.revoke(lease).await?, 0, Leased, "sessions of a lease that has none");
        let kept = unless_gone(registry.storage().keep_lease_alive(lease).await, lease)?;
        ensure!(kept.is_none(), Leased, "a lease was kept alive after it was revoked");
        let revoked = unless_gone(registry.storage().revoke_lease(lease).await, lease)?;
        ensure!(revoked.is_none(), Leased, "a lease was revoked twice");
        let owner = registry.storage().lease_owner(lease).await?;
        ensure_eq!(owner, None, Leased, "the owner of a lease that was revoked");
        all.push(registry.grant(LONG_TTL).await?);
    }
    lease_count_becomes(&registry, 20).await?;
    all.sort_unstable();
    all.dedup();
    ensure_eq!(all.len(), 40, Leased, "distinct ids of 40 leases, half of them revoked");
    let too_large = all.iter().filter(|lease| lease.number() > LeaseId::MAX).count();
    ensure_eq!(too_large, 0, Leased, "ids too large for numbers in JavaScript");
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn gone_lease_takes_no_sessions(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let held = registry.grant(LONG_TTL).await?;
    registry.create_one(key(1), Some(held)).await?;
    registry.create_one(key(2), None).await?;
    for lease in gone_leases(&registry).await? {
        for sessions in [&[key(3)][..], &[key(3), key(1), key(2), key(4)], &[key(1)]] {
            let created = unless_gone(registry.storage().create(sessions, Some(lease)).await, lease)?;
            ensure!(created.is_none(), Leased, "create under a lease that is gone returned {created:?}");
        }
        let exist = registry.has(&[1, 2, 3, 4].map(key)).await?;
        ensure_eq!(exist, [true, true, false, false], Leased, "has of 1 2 3 4, where the creates of 3 and 4 failed");
        let destroyed = registry.destroy(&[1, 2, 3].map(key), Some(lease)).await?;
        ensure_eq!(count_true(&destroyed), 0, Leased, "sessions destroyed under a lease that is gone");
        let kept = unless_gone(registry.storage().keep_lease_alive(lease).await, lease)?;
        ensure!(kept.is_none(), Leased, "a lease that is gone was kept alive");
        let revoked = unless_gone(registry.storage().revoke_lease(lease).await, lease)?;
        ensure!(revoked.is_none(), Leased, "a lease that is gone was revoked");
    }
    ensure_eq!(read_log(&registry).await?.concat().len(), 2, Alternating, "changes in the log");
    ensure_eq!(registry.revoke(held).await?, 1, Leased, "sessions that kept their lease");
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn create_moves_session_to_its_lease(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let [first, second] = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    let (moving, free, staying) = (keys(0..10), keys(10..20), keys(20..30));
    registry.create(&moving, Some(first)).await?;
    registry.create(&free, None).await?;
    registry.create(&staying, Some(first)).await?;
    let length = async |registry: &Registry| {
        let held = registry.extent().await?.partitions;
        Outcome::Ok(held.iter().map(|held| held.end.position.0).sum::<u64>())
    };
    let before = length(&registry).await?;
    for sessions in [&moving, &free] {
        let created = registry.create(sessions, Some(second)).await?;
        ensure_eq!(count_true(&created), 0, Leased, "sessions created instead of moved");
        let created = registry.create(sessions, Some(second)).await?;
        ensure_eq!(count_true(&created), 0, Leased, "sessions created instead of kept");
    }
    ensure_eq!(length(&registry).await? - before, 20, Placed, "changes logged for twenty sessions that moved once");
    ensure_eq!(registry.revoke(first).await?, 10, Leased, "sessions that had not moved away");
    ensure_eq!(
        count_true(&registry.has(&moving).await?),
        10,
        Leased,
        "sessions that survive because they moved to another lease"
    );
    ensure_eq!(count_true(&registry.has(&staying).await?), 0, Leased, "sessions left of a revoked lease");
    ensure_eq!(registry.revoke(second).await?, 20, Leased, "sessions destroyed with the lease that they moved to");
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live.len(), 0, Leased, "sessions left at the end");
    Ok(())
}

pub(super) async fn create_without_lease_keeps_the_sessions_lease(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let lease = registry.grant(LONG_TTL).await?;
    registry.create(&keys(0..10), Some(lease)).await?;
    ensure_eq!(
        count_true(&registry.create(&keys(0..12), None).await?),
        2,
        Answers,
        "sessions created in a batch of which ten exist"
    );
    ensure_eq!(registry.revoke(lease).await?, 10, Leased, "sessions that kept their lease on a create without one");
    ensure_eq!(count_true(&registry.has(&keys(0..12)).await?), 2, Leased, "sessions that never had a lease");
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn recreated_session_is_not_under_its_old_lease(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let lease = registry.grant(LONG_TTL).await?;
    let other = registry.grant(LONG_TTL).await?;
    registry.create(&keys(0..30), Some(lease)).await?;
    registry.destroy(&keys(0..20), None).await?;
    registry.create(&keys(0..10), None).await?;
    registry.create(&keys(10..20), Some(other)).await?;
    let destroyed = registry.destroy(&keys(0..20), Some(lease)).await?;
    ensure_eq!(count_true(&destroyed), 0, Leased, "recreated sessions destroyed under their old lease");
    ensure_eq!(
        registry.revoke(lease).await?,
        10,
        Leased,
        "sessions that were never recreated, destroyed with their lease"
    );
    ensure_eq!(
        count_true(&registry.has(&keys(0..30)).await?),
        20,
        Leased,
        "recreated sessions that outlive their old lease"
    );
    ensure_eq!(registry.revoke(other).await?, 10, Leased, "recreated sessions destroyed with their new lease");
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn destroy_under_a_lease_spares_other_sessions(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let [own, other] = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    registry.create(&[1, 2].map(key), Some(own)).await?;
    registry.create(&[3, 4].map(key), Some(other)).await?;
    registry.create(&[5].map(key), None).await?;
    let destroyed = registry.destroy(&[3, 1, 5, 1, 6].map(key), Some(own)).await?;
    ensure_eq!(
        destroyed,
        [false, true, false, false, false],
        Leased,
        "destroy of 3 1 5 1 6 under the lease of 1 and 2"
    );
    let destroyed = registry.destroy(&[3, 2].map(key), Some(other)).await?;
    ensure_eq!(destroyed, [true, false], Leased, "destroy of 3 2 under the lease of 3 and 4");
    ensure!(
        registry.destroy_one(key(4), None).await?,
        Answers,
        "destroy without a lease did not destroy a session under a lease"
    );
    registry.create_one(key(2), Some(other)).await?;
    ensure!(
        !registry.destroy_one(key(2), Some(own)).await?,
        Leased,
        "destroy under a lease destroyed a session that had moved away"
    );
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live, [2, 5].map(key).into(), Leased, "the remaining sessions");
    ensure_eq!(replay.all_destroyed(DestroyReason::Requested), 1, Answers, "sessions destroyed with reason Requested");
    ensure_eq!(replay.all_destroyed(DestroyReason::Released), 2, Answers, "sessions destroyed with reason Released");
    Ok(())
}

pub(super) async fn revoke_destroys_each_session_once(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let own = registry.grant(LONG_TTL).await?;
    let other = registry.grant(LONG_TTL).await?;
    // Enough for several steps of any storage, even in one bucket.
    let (under, beside, free) = (keys(0..3000), keys(3000..3100), keys(3100..3200));
    registry.create(&under, Some(own)).await?;
    registry.create(&beside, Some(other)).await?;
    registry.create(&free, None).await?;
    ensure_eq!(registry.revoke(own).await?, 3000, Leased, "sessions destroyed, in the answer of a revoke");
    ensure_eq!(count_true(&registry.has(&under).await?), 0, Visible, "sessions left after revoke_lease has returned");
    let replay = audit_settled(&registry).await?;
    for session in &under {
        let count = replay.destroyed(*session, DestroyReason::LeaseRevoked);
        ensure_eq!(count, 1, Leased, "destructions of {session:?} with reason LeaseRevoked");
    }
    ensure_eq!(replay.live.len(), 200, Leased, "sessions left that were not under the revoked lease");
    ensure_eq!(registry.revoke(other).await?, 100, Leased, "sessions of the other lease");
    Ok(())
}

pub(super) async fn batch_under_a_lease_counts_duplicates_once(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let lease = registry.grant(LONG_TTL).await?;
    registry.create_one(key(2), None).await?;
    let created = registry.create(&[1, 2, 1, 2, 3].map(key), Some(lease)).await?;
    ensure_eq!(
        created,
        [true, false, false, false, true],
        Answers,
        "create of 1 2 1 2 3 under a lease, where 2 exists"
    );
    let destroyed = registry.destroy(&[3, 3].map(key), Some(lease)).await?;
    ensure_eq!(destroyed, [true, false], Leased, "destroy of 3 3 under its lease");
    ensure_eq!(
        registry.revoke(lease).await?,
        2,
        Leased,
        "sessions destroyed with a lease under which each was created more than once"
    );
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn leases_over_the_limit_are_refused(factory: &dyn StorageFactory) -> Outcome {
    const LIMIT: u64 = 3;
    let registry = Registry::open_with(factory, StorageOptions { max_leases: LIMIT, ..ROOMY }).await?;
    let mut leases = Vec::new();
    for _ in 0..LIMIT {
        leases.push(registry.grant(LONG_TTL).await?);
    }
    for lease in leases {
        match registry.storage().grant_lease(LONG_TTL, "one more").await {
            Err(StorageError::TooManyLeases { limit }) => {
                ensure_eq!(limit, LIMIT, Answers, "the limit that TooManyLeases names");
            }
            other => broken!(Bounded, "one lease over the limit returned {other:?} instead of TooManyLeases"),
        }
        registry.storage().keep_lease_alive(lease).await?;
        registry.create(&keys(0..5), Some(lease)).await?;
        ensure_eq!(registry.revoke(lease).await?, 5, Leased, "sessions destroyed with a lease at the limit");
        // The revoked lease no longer counts.
        registry.grant(LONG_TTL).await?;
    }
    lease_count_becomes(&registry, LIMIT).await?;
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn dropped_revoke_is_finished_by_expiry(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let mut all: Vec<SessionKey> = Vec::new();
    for polls in [0, 1, 2, 3, 4, 5, 8, 13, 20, 21] {
        let lease = registry.grant(LONG_TTL).await?;
        let number = polls as i64 * 1000;
        // So few sessions that any storage needs few steps, or many.
        let own = keys(number..number + if polls % 2 == 0 { 20 } else { 700 });
        registry.create(&own, Some(lease)).await?;
        let storage = registry.storage();
        let revoked = poll_at_most(storage.revoke_lease(lease), polls).await;
        audit(&registry).await.map_err(|broken| broken.in_step(format!("revoke dropped after {polls} polls")))?;
        if let Some(revoked) = revoked {
            ensure_eq!(revoked?, own.len() as u64, Leased, "sessions destroyed, in the answer of a revoke");
        } else if unless_gone(registry.storage().revoke_lease(lease).await, lease)?.is_none() {
            // The revoke had begun. The remaining sessions must be destroyed by `expire_leases`.
            let mut expiring = registry.expire_leases();
            let deadline = tokio::time::Instant::now() + PATIENCE;
            let gone = all_gone_by(&registry, &own, deadline).await;
            gone.map_err(|broken| broken.in_step(format!("revoke dropped after {polls} polls")))?;
            expiring.shutdown().await;
        }
        all.extend(own);
    }
    let replay = audit_settled(&registry).await?;
    for session in all {
        let count = replay.destroyed(session, DestroyReason::LeaseRevoked);
        ensure_eq!(count, 1, Leased, "destructions of {session:?} with reason LeaseRevoked after a dropped revoke");
    }
    lease_count_becomes(&registry, 0).await
}
