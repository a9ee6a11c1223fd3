//! Lists of leases, and the buckets of their sessions.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    StorageFactory,
    audit::{audit_settled, read_log},
    expiry::CLOCK_GRAIN,
    registry::{LONG_TTL, Registry, Tasks, key, keys, yield_randomly},
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::{
    session::{LeaseId, SessionChange, SessionKey},
    storage::{LeaseBuckets, LeaseQuery, LeaseStatus, LogError, LogPoint, MAX_LINGER, RegistryId},
};

/// All leases, in one page.
const ALL: LeaseQuery = LeaseQuery { after: None, limit: 10_000, owner: None, lease_ids: Vec::new() };

impl Registry {
    /// Lists leases page by page. Checks their order and the size of the pages.
    pub(super) async fn list(&self, mut query: LeaseQuery) -> Outcome<Vec<LeaseStatus>> {
        let mut all: Vec<LeaseStatus> = Vec::new();
        for _ in 0..100_000 {
            let page = self.storage().list_leases(&query).await?;
            let (count, limit) = (page.leases.len(), query.limit);
            ensure!(count <= limit, Answers, "list_leases returned {count} leases with limit {limit}");
            for status in page.leases {
                let last = all.last().map(|last| last.lease).max(query.after);
                ensure!(last < Some(status.lease), Answers, "list_leases returned {} after {last:?}", status.lease);
                all.push(status);
            }
            let Some(next) = page.next else { return Ok(all) };
            ensure!(
                Some(next) > query.after,
                Answers,
                "list_leases returned the next page's start {next} after {:?}",
                query.after
            );
            query.after = Some(next);
        }
        broken!(Answers, "list_leases returns endless pages")
    }

    /// Returns the number of sessions under a lease, according to the list.
    pub(super) async fn under(&self, lease: LeaseId) -> Outcome<u64> {
        let list = self.list(LeaseQuery { lease_ids: vec![lease], ..ALL }).await?;
        let [status] = &list[..] else { broken!(Leased, "the list of lease {lease} alone is {list:?}") };
        Ok(status.session_count)
    }

    async fn buckets_under(&self, leases: &[LeaseId]) -> Outcome<LeaseBuckets> {
        let extent = self.extent().await?;
        let known: Vec<_> = extent.partitions.iter().map(|held| held.end).collect();
        let found = self.storage().buckets_under(extent.registry_id, &known, leases).await?;
        ensure_eq!(found.points.len(), known.len(), Answers, "points of buckets_under");
        for (point, known) in found.points.iter().zip(&known) {
            ensure!(
                point.position >= known.position,
                Visible,
                "buckets_under reflects {point:?}, which is before {known:?}"
            );
        }
        ensure!(
            found.buckets.is_sorted_by(|one, next| one < next),
            Answers,
            "the buckets are not in order: {:?}",
            found.buckets
        );
        let end = self.layout().buckets;
        ensure!(
            found.buckets.last().is_none_or(|last| *last < end),
            Answers,
            "a bucket is outside the layout: {:?}",
            found.buckets
        );
        Ok(found)
    }
}

pub(super) async fn list_has_each_lease_with_its_session_count(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    ensure_eq!(registry.list(ALL).await?, [], Answers, "a list of no leases");
    let mut expected = HashMap::new();
    let asked = Instant::now();
    for n in 0..25i64 {
        let ttl = Duration::from_secs(3600 + n as u64);
        let owner = format!("gateway-{}", n % 3);
        let lease = registry.storage().grant_lease(ttl, &owner).await?;
        registry.create(&keys(n * 100..n * 100 + n), Some(lease)).await?;
        expected.insert(lease, (owner, ttl, n as u64));
    }
    let ids: Vec<LeaseId> = registry.list(ALL).await?.iter().map(|status| status.lease).collect();
    // One session moves to another lease, one is recreated without a lease, and one lease lingers.
    registry.create_one(expected_session(&expected, ids[0]), Some(ids[1])).await?;
    registry.destroy_one(key(501), None).await?;
    registry.create_one(key(501), None).await?;
    for (session, change) in [(expected_session(&expected, ids[0]), -1), (key(501), -1)] {
        let from = if session == key(501) { nth_lease(&expected, 5) } else { ids[0] };
        let count = &mut expected.get_mut(&from).unwrap_or_else(|| unreachable!("every lease is expected")).2;
        *count = count.saturating_add_signed(change);
    }
    expected.get_mut(&ids[1]).unwrap_or_else(|| unreachable!("every lease is expected")).2 += 1;
    registry.storage().revoke_lease_with(ids[2], MAX_LINGER / 2).await?;
    let check = |list: &[LeaseStatus], what: &str| -> Outcome {
        for LeaseStatus { lease, owner, ttl, expires_in, session_count, lingers } in list {
            let (known_owner, known_ttl, sessions) = &expected[lease];
            ensure_eq!(**owner, **known_owner, Answers, "the owner of a lease in a list {what}");
            ensure_eq!(ttl, known_ttl, Answers, "the ttl of a lease in a list {what}");
            ensure_eq!(session_count, sessions, Answers, "the sessions of lease {lease} in a list {what}");
            ensure_eq!(*lingers, *lease == ids[2], Answers, "whether lease {lease} lingers in a list {what}");
            let most = if *lingers { MAX_LINGER / 2 } else { *known_ttl };
            let age = asked.elapsed() + CLOCK_GRAIN;
            ensure!(*expires_in <= most + CLOCK_GRAIN, Answers, "lease {lease} of {most:?} ends in {expires_in:?}");
            ensure!(
                *expires_in + age >= most,
                Answers,
                "lease {lease} of {most:?} ends in {expires_in:?} after {age:?}"
            );
        }
        Ok(())
    };
    for limit in [1, 2, 7, 25, 26, 10_000] {
        let list = registry.list(LeaseQuery { limit, ..ALL }).await?;
        check(&list, "in pages")?;
        ensure_eq!(list.len(), 25, Answers, "leases in pages of {limit}");
        // Among them is the lingering lease.
        let owner = &expected[&ids[2]].0;
        let list = registry.list(LeaseQuery { limit, owner: Some(owner.clone()), ..ALL }).await?;
        check(&list, "of an owner")?;
        let count = expected.values().filter(|(known, ..)| known == owner).count();
        ensure_eq!(list.len(), count, Answers, "leases of an owner in pages of {limit}");
        let unknown = LeaseId::from_number(LeaseId::MAX - 1);
        let lease_ids = ids[3..9].iter().rev().chain(&ids[3..4]).copied().chain(unknown).collect();
        let list = registry.list(LeaseQuery { limit, lease_ids, ..ALL }).await?;
        check(&list, "by ids")?;
        let listed: Vec<LeaseId> = list.iter().map(|status| status.lease).collect();
        ensure_eq!(listed, ids[3..9], Answers, "leases by ids in pages of {limit}");
    }
    ensure_eq!(
        registry.list(LeaseQuery { owner: Some("gateway".to_owned()), ..ALL }).await?,
        [],
        Answers,
        "leases of an unknown owner"
    );
    registry.revoke(ids[4]).await?;
    registry.revoke(ids[2]).await?;
    let left: Vec<LeaseId> = registry.list(ALL).await?.iter().map(|status| status.lease).collect();
    let expected: Vec<LeaseId> = ids.iter().copied().filter(|id| ![ids[2], ids[4]].contains(id)).collect();
    ensure_eq!(left, expected, Leased, "leases in a list after two were revoked");
    audit_settled(&registry).await?;
    Ok(())
}

type Expected = HashMap<LeaseId, (String, Duration, u64)>;

/// Returns the nth lease that was granted.
fn nth_lease(expected: &Expected, nth: u64) -> LeaseId {
    let ttl = Duration::from_secs(3600 + nth);
    let found = expected.iter().find(|(_, (_, known, _))| *known == ttl);
    found.map(|(lease, _)| *lease).unwrap_or_else(|| unreachable!("each lease has a different ttl"))
}

/// Returns a session under a lease, or a session that does not exist yet if the lease has none.
fn expected_session(expected: &Expected, lease: LeaseId) -> SessionKey {
    let (_, ttl, _) = &expected[&lease];
    key((ttl.as_secs() as i64 - 3600) * 100)
}

pub(super) async fn buckets_of_leases_have_all_their_sessions(factory: &dyn StorageFactory) -> Outcome {
    const ROUNDS: i64 = 20;
    let registry = Registry::open(factory).await?;
    let leases = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    let mut changing = Tasks::new();
    for writer in 0..3 {
        let registry = Arc::clone(&registry);
        changing.spawn(async move {
            let mut random = fastrand::Rng::new();
            for _ in 0..100 {
                let some: Vec<_> = (0..random.i64(1..6)).map(|_| key(random.i64(0..400))).collect();
                match random.u8(..4) {
                    0 => drop(registry.destroy(&some, None).await?),
                    _ => drop(registry.create(&some, Some(leases[(writer + random.usize(..2)) % 3])).await?),
                }
                yield_randomly(&mut random).await;
            }
            Ok(())
        });
    }
    let mut found = Vec::new();
    for round in 0..ROUNDS {
        let asked: Vec<LeaseId> =
            leases.iter().copied().cycle().skip(round as usize).take(1 + round as usize % 2).collect();
        found.push((registry.buckets_under(&asked).await?, asked));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    changing.join().await?;
    // A lease that has ended, but may still have some sessions.
    let storage = registry.first();
    drop(super::registry::poll_at_most(storage.revoke_lease(leases[0]), 2).await);
    found.push((registry.buckets_under(&leases[..1]).await?, leases[..1].to_vec()));
    let unknown = LeaseId::from_number(LeaseId::MAX - 1).into_iter().collect::<Vec<_>>();
    ensure_eq!(
        registry.buckets_under(&unknown).await?.buckets,
        Vec::<u32>::new(),
        Answers,
        "the buckets of an unknown lease"
    );

    let log = read_log(&registry).await?;
    for (LeaseBuckets { points, buckets }, asked) in found {
        let buckets: BTreeSet<u32> = buckets.into_iter().collect();
        for (events, LogPoint { position, .. }) in log.iter().zip(points) {
            let mut under = HashMap::new();
            for event in &events[..events.len().min(position.0 as usize)] {
                match event.change {
                    SessionChange::Destroyed(_) => under.remove(&event.session),
                    _ => under.insert(event.session, event.lease),
                };
            }
            for (session, lease) in under {
                let bucket = registry.storage().bucket_of(&session);
                let is_asked = lease.is_some_and(|lease| asked.contains(&lease));
                ensure!(
                    !is_asked || buckets.contains(&bucket),
                    ExactReads,
                    "{session:?} is under {lease:?} at {position:?}, but its bucket was not returned"
                );
            }
        }
    }
    Ok(())
}

pub(super) async fn non_adjacent_buckets_can_be_read(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let lease = registry.grant(LONG_TTL).await?;
    let (own, all) = (keys(0..30), keys(0..1000));
    registry.create(&all, None).await?;
    registry.create(&own, Some(lease)).await?;
    let LeaseBuckets { buckets, .. } = registry.buckets_under(&[lease]).await?;
    let read = read_listed(&registry, &buckets).await?;
    let under = |(session, held): (&SessionKey, &Option<LeaseId>)| held.map(|_| *session);
    let read: BTreeSet<SessionKey> = read.iter().filter_map(under).collect();
    ensure_eq!(read, own.into_iter().collect(), ExactReads, "the sessions of a lease in its buckets");
    let every_other: Vec<u32> = (0..registry.layout().buckets).step_by(2).collect();
    let read: BTreeSet<SessionKey> = read_listed(&registry, &every_other).await?.into_keys().collect();
    let expected = all.into_iter().filter(|session| registry.storage().bucket_of(session) % 2 == 0).collect();
    ensure_eq!(read, expected, ExactReads, "the sessions of every other bucket");

    let extent = registry.extent().await?;
    let known: Vec<_> = extent.partitions.iter().map(|held| held.end).collect();
    let foreign = RegistryId(extent.registry_id.0 ^ 1);
    match registry.storage().buckets_under(foreign, &known, &[lease]).await {
        Err(LogError::Restarted) => Ok(()),
        other => broken!(Histories, "buckets_under of another registry returned {other:?} instead of Restarted"),
    }
}

/// Reads only these buckets, some sessions at a time.
async fn read_listed(registry: &Registry, buckets: &[u32]) -> Outcome<HashMap<SessionKey, Option<LeaseId>>> {
    let extent = registry.extent().await?;
    let known: Vec<_> = extent.partitions.iter().map(|held| held.end).collect();
    let mut read = HashMap::new();
    let mut rest = buckets;
    while !rest.is_empty() {
        let run = registry.storage().read_buckets(extent.registry_id, &known, rest, 200, true).await?;
        let count = run.points.len();
        ensure!((1..=rest.len()).contains(&count), Answers, "{count} buckets of {} were read", rest.len());
        let (now, later) = rest.split_at(count);
        for (session, lease) in run.sessions.into_iter().zip(run.leases) {
            let bucket = registry.storage().bucket_of(&session);
            ensure!(now.contains(&bucket), Answers, "{session:?} of bucket {bucket} was returned by a read of {now:?}");
            ensure!(read.insert(session, lease).is_none(), ExactReads, "{session:?} was read twice");
        }
        rest = later;
    }
    Ok(read)
}
