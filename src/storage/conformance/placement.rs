//! The leases of sessions in the answers of calls, and takeovers of sessions by another lease.

use std::{collections::HashMap, sync::Arc};

use super::{
    StorageFactory,
    audit::{audit_settled, read_log},
    registry::{LONG_TTL, Registry, Tasks, key, keys, unless_gone},
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::{
    session::{LeaseId, SessionKey},
    storage::{Answers, CreateOptions, Creation, Lookup, Takeover},
};

impl Registry {
    /// Creates sessions under a lease. Takes existing ones only from `from`.
    async fn take(&self, sessions: &[SessionKey], lease: LeaseId, from: Option<LeaseId>) -> Outcome<Vec<Creation>> {
        let options = CreateOptions { lease: Some(lease), takeover: Takeover::OnlyFrom(from) };
        Ok(self.create_with(sessions, options).await?.sessions)
    }

    pub(super) async fn create_with(
        &self,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Outcome<Answers<Creation>> {
        let answers = self.storage().create_with(sessions, options).await?;
        ensure_eq!(
            answers.sessions.len(),
            sessions.len(),
            Answers,
            "answers of create for {} sessions",
            sessions.len()
        );
        Ok(answers)
    }

    pub(super) async fn lookup(&self, sessions: &[SessionKey]) -> Outcome<Vec<Lookup>> {
        let found = self.storage().lookup(sessions).await?;
        ensure_eq!(found.len(), sessions.len(), Answers, "answers of lookup for {} sessions", sessions.len());
        Ok(found)
    }
}

const ABSENT: Lookup = Lookup { exists: false, lease: None };

fn under(lease: impl Into<Option<LeaseId>>) -> Lookup {
    Lookup { exists: true, lease: lease.into() }
}

fn created(lease: LeaseId) -> Creation {
    Creation { created: true, lease: Some(lease) }
}

fn stays(lease: impl Into<Option<LeaseId>>) -> Creation {
    Creation { created: false, lease: lease.into() }
}

pub(super) async fn lookup_returns_the_lease_of_each_session(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let [first, second] = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    ensure_eq!(registry.lookup(&[]).await?, [], Answers, "a lookup of no sessions");
    registry.create(&keys(0..10), None).await?;
    registry.create(&keys(10..20), Some(first)).await?;
    registry.create(&keys(20..2000), Some(second)).await?;
    let found = registry.lookup(&[5, 3000, 15, 25, 15].map(key)).await?;
    let expected = [under(None), ABSENT, under(first), under(second), under(first)];
    ensure_eq!(found, expected, Placed, "a lookup of 5 3000 15 25 15");
    ensure_eq!(registry.lookup(&keys(20..2000)).await?, vec![under(second); 1980], Placed, "a lookup of a large batch");
    registry.create(&keys(0..15), Some(second)).await?;
    let found = registry.lookup(&[5, 14, 15].map(key)).await?;
    ensure_eq!(found, [under(second), under(second), under(first)], Placed, "a lookup of 5 14 15 after 5 and 14 moved");
    registry.destroy_one(key(5), None).await?;
    registry.create_one(key(5), None).await?;
    ensure_eq!(registry.lookup(&[key(5)]).await?, [under(None)], Placed, "a lookup of a recreated session");
    registry.revoke(second).await?;
    ensure_eq!(registry.lookup(&[key(14)]).await?, [ABSENT], Placed, "a lookup of a session whose lease was revoked");
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn create_returns_the_lease_of_each_session(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let [first, second] = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    registry.create(&[key(1)], Some(first)).await?;
    registry.create(&[key(2)], None).await?;
    let answers = registry.create_with(&[1, 2, 3].map(key), CreateOptions::default()).await?.sessions;
    let expected = [stays(first), stays(None), Creation { created: true, lease: None }];
    ensure_eq!(answers, expected, Placed, "create of 1 2 3 without a lease");
    let answers = registry.create_with(&[1, 4, 4].map(key), Some(second).into()).await?.sessions;
    ensure_eq!(answers, [stays(second), created(second), stays(second)], Placed, "create of 1 4 4 under another lease");
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn takeover_takes_only_from_the_named_lease(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let [a, b, c] = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    // 1 is under a, 2 under b, 3 under no lease, 4 does not exist.
    let prepare = async || {
        registry.destroy(&keys(1..5), None).await?;
        registry.create_one(key(1), Some(a)).await?;
        registry.create_one(key(2), Some(b)).await?;
        registry.create_one(key(3), None).await
    };
    let sessions = [1, 2, 3, 4].map(key);
    for (from, expected, what) in [
        (None, [stays(a), stays(b), stays(c), created(c)], "from no lease"),
        (Some(a), [stays(c), stays(b), stays(c), created(c)], "from the lease of 1"),
        (Some(c), [stays(a), stays(b), stays(c), created(c)], "from the lease itself"),
    ] {
        prepare().await?;
        ensure_eq!(registry.take(&sessions, c, from).await?, expected, Placed, "takeover of 1 2 3 4 {what}");
        let found: Vec<_> = registry.lookup(&sessions).await?.iter().map(|found| found.lease).collect();
        let leases: Vec<_> = expected.iter().map(|creation| creation.lease).collect();
        ensure_eq!(found, leases, Placed, "leases after a takeover of 1 2 3 4 {what}");
        let length = read_log(&registry).await?.concat().len();
        let again = registry.take(&sessions, c, from).await?;
        ensure_eq!(again, leases.into_iter().map(stays).collect::<Vec<_>>(), Placed, "a retried takeover {what}");
        ensure_eq!(read_log(&registry).await?.concat().len(), length, Alternating, "the log after a retry");
    }
    // A delayed takeover from the lease that the session was under earlier does not take it.
    prepare().await?;
    registry.take(&[key(1)], b, Some(a)).await?;
    ensure_eq!(registry.take(&[key(1)], c, Some(a)).await?, [stays(b)], Placed, "a delayed takeover");
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn ended_lease_protects_nothing(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let taker = registry.grant(LONG_TTL).await?;
    for round in 0..10 {
        let lease = registry.grant(LONG_TTL).await?;
        let own = keys(round * 1000..round * 1000 + 600);
        registry.create(&own, Some(lease)).await?;
        // Drops the revoke partway, so that the lease has ended but still has sessions.
        let storage = registry.first();
        let revoked = super::registry::poll_at_most(storage.revoke_lease(lease), round as usize).await;
        if unless_gone(registry.storage().keep_lease_alive(lease).await, lease)?.is_some() {
            continue;
        }
        let found = registry.lookup(&own).await?;
        ensure!(
            found.iter().all(|found| found.lease.is_none()),
            Placed,
            "a lookup returned a lease that had ended, in round {round}"
        );
        let taken = registry.take(&own, taker, None).await?;
        ensure!(
            taken.iter().all(|creation| creation.lease == Some(taker)),
            Placed,
            "a takeover left sessions under a lease that had ended, in round {round}: its revoke returned {revoked:?}"
        );
        let found = registry.lookup(&own).await?;
        ensure_eq!(
            found,
            vec![under(taker); own.len()],
            Placed,
            "a lookup of sessions that were taken, in round {round}"
        );
    }
    Ok(())
}

pub(super) async fn one_of_concurrent_takeovers_succeeds(factory: &dyn StorageFactory) -> Outcome {
    const TAKERS: usize = 4;
    let registry = Registry::open(factory).await?;
    let sessions = keys(0..200);
    let first = registry.grant(LONG_TTL).await?;
    registry.create(&sessions, Some(first)).await?;
    let mut takers = Tasks::new();
    for number in 0..TAKERS {
        let (registry, mut sessions) = (Arc::clone(&registry), sessions.clone());
        let lease = registry.grant(LONG_TTL).await?;
        sessions.rotate_left(number * 50);
        takers.spawn(async move {
            let mut won = Vec::new();
            for some in sessions.chunks(7) {
                let answers = registry.take(some, lease, Some(first)).await?;
                won.extend(
                    some.iter().zip(answers).filter(|(_, answer)| answer.lease == Some(lease)).map(|(key, _)| *key),
                );
            }
            Ok((lease, won))
        });
    }
    let mut holders = HashMap::new();
    for (lease, won) in takers.join().await? {
        for session in won {
            if let Some(other) = holders.insert(session, lease) {
                broken!(Placed, "{session:?} was taken from {first} by lease {other} and also by lease {lease}");
            }
        }
    }
    for (session, found) in sessions.iter().zip(registry.lookup(&sessions).await?) {
        ensure_eq!(
            found.lease,
            holders.get(session).copied(),
            Placed,
            "the lease of {session:?}, compared with the answers of takeovers"
        );
    }
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn answers_name_a_place_at_which_they_are_true(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let [a, b] = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    let mut random = fastrand::Rng::new();
    for step in 0..60 {
        let sessions: Vec<_> = (0..random.i64(1..6)).map(|_| key(random.i64(0..12))).collect();
        let lease = random.choice([None, Some(a), Some(b)]).flatten();
        let places = match random.u8(..3) {
            0 => registry.storage().destroy_with(&sessions, lease).await?.places,
            1 => registry.create_with(&sessions, lease.into()).await?.places,
            _ => {
                let takeover = Takeover::OnlyFrom(random.choice([None, Some(a)]).flatten());
                registry.create_with(&sessions, CreateOptions { lease, takeover }).await?.places
            }
        };
        let log = read_log(&registry).await?;
        let mut partitions: Vec<_> = sessions.iter().map(|session| registry.partition_of(session) as u32).collect();
        partitions.sort_unstable();
        partitions.dedup();
        let mut named: Vec<_> = places.iter().map(|place| place.partition).collect();
        named.sort_unstable();
        ensure_eq!(named, partitions, Placed, "partitions named in the answer for {sessions:?}, in step {step}");
        for place in places.iter() {
            let events = &log[place.partition as usize];
            let last = events.iter().rposition(|event| sessions.contains(&event.session)).map_or(0, |last| last + 1);
            let (last, end, at) = (last as u64, events.len() as u64, place.position.0);
            ensure!(
                (last..=end).contains(&at),
                Placed,
                "step {step} names position {at} of partition {}, but its sessions last changed at {last} of {end}",
                place.partition
            );
        }
    }
    audit_settled(&registry).await?;
    Ok(())
}
