//! Lingering leases: they take no sessions, protect none, and end later.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};

use super::{
    StorageFactory,
    audit::{all_gone_by, audit_settled, lease_count_becomes},
    expiry::{ATTEMPTS, CLOCK_GRAIN, SOON, in_time},
    registry::{LONG_TTL, Registry, TTL, Tasks, count_true, expect_lingers, key, keys, unless_gone, yield_randomly},
    tail::Tail,
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::{
    session::{DestroyReason, LeaseId, SessionKey},
    storage::{CreateOptions, MAX_LINGER, Takeover},
};

/// The shortest linger in the suite.
const LINGER: Duration = Duration::from_secs(1);

impl Registry {
    /// Revokes a lease with a linger.
    pub(super) async fn linger(&self, lease: LeaseId, linger: Duration) -> Outcome {
        let destroyed = self.storage().revoke_lease_with(lease, linger).await?;
        ensure_eq!(destroyed, 0, Leased, "sessions destroyed, in the answer of a revoke with a linger");
        Ok(())
    }
}

pub(super) async fn lingering_lease_takes_no_sessions(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let lease = registry.grant(LONG_TTL).await?;
    let own = keys(0..20);
    registry.create(&own, Some(lease)).await?;
    registry.linger(lease, MAX_LINGER).await?;
    // A handle may remember the lease from before it lingered, so each handle is called more than once.
    for n in 0..6 {
        expect_lingers(registry.storage().create(&[key(100 + n)], Some(lease)).await, lease)?;
        expect_lingers(registry.storage().create(&[own[n as usize]], Some(lease)).await, lease)?;
        let options = CreateOptions { lease: Some(lease), takeover: Takeover::OnlyFrom(None) };
        expect_lingers(registry.storage().create_with(&[key(100 + n)], options).await, lease)?;
        expect_lingers(registry.storage().keep_lease_alive(lease).await, lease)?;
        let found = registry.lookup(&[own[10]]).await?[0];
        ensure_eq!(found.lease, Some(lease), Placed, "the lease of a session whose lease lingers");
    }
    ensure_eq!(count_true(&registry.has(&own).await?), 20, Leased, "sessions under a lingering lease");
    ensure!(registry.storage().lease_owner(lease).await?.is_some(), Leased, "a lingering lease has no owner");
    ensure_eq!(
        count_true(&registry.destroy(&own[..5], Some(lease)).await?),
        5,
        Leased,
        "sessions destroyed under a lingering lease"
    );
    lease_count_becomes(&registry, 1).await?;
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.all_destroyed(DestroyReason::Released), 5, Leased, "sessions that were released");
    ensure_eq!(replay.live.len(), 15, Leased, "sessions left under the lease");
    Ok(())
}

pub(super) async fn lingering_lease_protects_nothing(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let [lease, taker] = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    for round in 0..3 {
        registry.create(&keys(round * 100..round * 100 + 50), Some(lease)).await?;
    }
    registry.linger(lease, MAX_LINGER).await?;
    for (round, takeover) in
        [Takeover::OnlyFrom(None), Takeover::OnlyFrom(Some(taker)), Takeover::Always].into_iter().enumerate()
    {
        let own = keys(round as i64 * 100..round as i64 * 100 + 50);
        let options = CreateOptions { lease: Some(taker), takeover };
        let answers = registry.create_with(&own, options).await?.sessions;
        let moved = answers.iter().all(|answer| !answer.created && answer.lease == Some(taker));
        ensure!(moved, Placed, "a takeover with {takeover:?} from a lingering lease returned {answers:?}");
    }
    ensure_eq!(registry.revoke(lease).await?, 0, Leased, "sessions left under a lease after all were taken from it");
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.live.len(), 150, Leased, "sessions taken from a lingering lease");
    Ok(())
}

pub(super) async fn lingering_lease_ends_after_its_linger(factory: &dyn StorageFactory) -> Outcome {
    in_time!(ends_after_its_linger(factory))
}

async fn ends_after_its_linger(factory: &dyn StorageFactory) -> Outcome<Option<()>> {
    let registry = Registry::open(factory).await?;
    let _expiring = registry.expire_leases();
    // The ttl of the second lease ends before its linger.
    for (round, ttl, linger) in [(0, LONG_TTL, LINGER), (1, TTL, 2 * TTL + LINGER)] {
        let mut tail = Tail::new(&registry).await?;
        let taker = registry.grant(LONG_TTL).await?;
        let own = keys(round * 100..round * 100 + 40);
        let lease = registry.grant(ttl).await?;
        if unless_gone(registry.storage().create(&own, Some(lease)).await, lease)?.is_none() {
            // The machine stalled for the whole ttl.
            return Ok(None);
        }
        let asked = Instant::now();
        match unless_gone(registry.storage().revoke_lease_with(lease, linger).await, lease)? {
            Some(destroyed) => ensure_eq!(destroyed, 0, Leased, "sessions destroyed by a revoke with a linger"),
            None => return Ok(None),
        }
        let lingering_since = Instant::now();
        let moved = registry.create(&own[..10], Some(taker)).await?;
        if asked.elapsed() >= linger {
            // The machine stalled, and the lease may have ended before its sessions moved.
            return Ok(None);
        }
        ensure_eq!(count_true(&moved), 0, Leased, "sessions created that were under a lingering lease");
        // Only the sessions that did not move must end.
        let deadline = lingering_since + linger + SOON + registry.slack;
        for (session, seen) in tail.all_destroyed(&own[10..], DestroyReason::LeaseRevoked, deadline).await? {
            let age = seen - asked;
            ensure!(
                age + CLOCK_GRAIN >= linger,
                Leased,
                "{session:?} was destroyed after {age:?} of a linger of {linger:?}"
            );
        }
        ensure_eq!(count_true(&registry.has(&own[..10]).await?), 10, Leased, "sessions that moved during a linger");
        let gone = unless_gone(registry.storage().keep_lease_alive(lease).await, lease)?;
        ensure!(gone.is_none(), Leased, "a lease was kept alive after its linger");
        let gone = unless_gone(registry.storage().revoke_lease_with(lease, MAX_LINGER).await, lease)?;
        ensure!(gone.is_none(), Leased, "a lease was revoked after its linger");
    }
    audit_settled(&registry).await?;
    Ok(Some(()))
}

pub(super) async fn second_revoke_only_brings_the_end_forward(factory: &dyn StorageFactory) -> Outcome {
    in_time!(second_revoke_brings_the_end_forward(factory))
}

async fn second_revoke_brings_the_end_forward(factory: &dyn StorageFactory) -> Outcome<Option<()>> {
    let registry = Registry::open(factory).await?;
    let _expiring = registry.expire_leases();
    let leases = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    for (nth, lease) in (0..).zip(leases) {
        registry.create(&keys(nth * 100..nth * 100 + 10), Some(lease)).await?;
    }
    registry.linger(leases[0], MAX_LINGER).await?;
    registry.linger(leases[0], LINGER).await?;
    let asked = Instant::now();
    registry.linger(leases[1], LINGER).await?;
    let second = registry.storage().revoke_lease_with(leases[1], MAX_LINGER).await;
    if unless_gone(second, leases[1])?.is_none() {
        let age = asked.elapsed();
        ensure!(age + CLOCK_GRAIN >= LINGER, Leased, "a lease with a linger of {LINGER:?} was gone after {age:?}");
        return Ok(None);
    }
    registry.linger(leases[2], MAX_LINGER).await?;
    let deadline = Instant::now() + LINGER + SOON + registry.slack;
    ensure_eq!(registry.revoke(leases[2]).await?, 10, Leased, "sessions destroyed by a revoke of a lingering lease");
    ensure_eq!(count_true(&registry.has(&keys(200..210)).await?), 0, Leased, "sessions left after that revoke");
    let own: Vec<SessionKey> = keys(0..10).into_iter().chain(keys(100..110)).collect();
    all_gone_by(&registry, &own, deadline).await?;
    let replay = audit_settled(&registry).await?;
    ensure_eq!(replay.all_destroyed(DestroyReason::LeaseRevoked), 30, Leased, "sessions of leases that lingered");
    Ok(Some(()))
}

pub(super) async fn creates_racing_a_linger_stop_at_its_start(factory: &dyn StorageFactory) -> Outcome {
    const ROUNDS: i64 = 20;
    const CREATORS: i64 = 3;
    const MOST: i64 = 500;
    let registry = Registry::open(factory).await?;
    let mut random = fastrand::Rng::new();
    for round in 0..ROUNDS {
        let lease = registry.grant(LONG_TTL).await?;
        let mut creating = Tasks::new();
        for creator in 0..CREATORS {
            let registry = Arc::clone(&registry);
            creating.spawn(async move {
                let mut random = fastrand::Rng::new();
                let first = (round * CREATORS + creator) * 2 * MOST;
                let (mut next, mut created) = (first, 0);
                while next < first + MOST {
                    let some = keys(next..next + random.i64(1..6));
                    next += some.len() as i64;
                    match registry.storage().create(&some, Some(lease)).await {
                        Ok(answers) => created += count_true(&answers),
                        refused => {
                            expect_lingers(refused, lease)?;
                            // Some of the batch may have been created before the lease lingered.
                            created += count_true(&registry.has(&some).await?);
                            break;
                        }
                    }
                    yield_randomly(&mut random).await;
                }
                Ok((first..next, created))
            });
        }
        for _ in 0..random.u32(..60) {
            yield_now().await;
        }
        registry.linger(lease, MAX_LINGER).await?;
        let under_before = registry.under(lease).await?;
        let created = creating.join().await?;
        let under = registry.under(lease).await?;
        ensure_eq!(under, under_before, Leased, "sessions under a lease, compared with those when its linger began");
        let answered: usize = created.iter().map(|(_, created)| created).sum();
        ensure_eq!(under as usize, answered, Leased, "sessions under a lingering lease, compared with the answers");
        ensure_eq!(
            registry.revoke(lease).await?,
            under,
            Leased,
            "sessions destroyed by the revoke of a lingering lease"
        );
    }
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn moves_racing_the_end_of_a_linger_keep_their_sessions(factory: &dyn StorageFactory) -> Outcome {
    const SESSIONS: i64 = 2000;
    let registry = Registry::open(factory).await?;
    let _expiring = registry.expire_leases();
    let [lease, taker] = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    registry.create(&keys(0..SESSIONS), Some(lease)).await?;
    let asked = Instant::now();
    registry.linger(lease, LINGER).await?;
    let mut moving = Tasks::new();
    for part in 0..4 {
        let registry = Arc::clone(&registry);
        moving.spawn(async move {
            let mut random = fastrand::Rng::new();
            let mut answered = Vec::new();
            for some in keys(part * SESSIONS / 4..(part + 1) * SESSIONS / 4).chunks(5) {
                // Spreads the moves over the time before and after the end.
                sleep(Duration::from_millis(random.u64(10..40))).await;
                let options = CreateOptions { lease: Some(taker), takeover: Takeover::OnlyFrom(None) };
                let answers = registry.create_with(some, options).await?.sessions;
                for (session, answer) in some.iter().zip(answers) {
                    ensure_eq!(answer.lease, Some(taker), Placed, "the lease of a session after its move");
                    answered.push((*session, answer.created));
                }
            }
            Ok(answered)
        });
    }
    let answered = moving.join().await?.concat();
    let deadline = asked + 2 * LINGER + SOON + registry.slack;
    while registry.storage().lease_count().await? > 1 {
        ensure!(Instant::now() < deadline, Leased, "a lease has not ended long after its linger");
        sleep(Duration::from_millis(20)).await;
    }
    let replay = audit_settled(&registry).await?;
    for (session, created) in answered {
        ensure!(replay.live.contains(&session), Leased, "{session:?} was lost although its move was answered");
        let ended = replay.destroyed(session, DestroyReason::LeaseRevoked);
        ensure_eq!(ended, u64::from(created), Leased, "ends of {session:?}, whose move answered created = {created}");
    }
    Ok(())
}
