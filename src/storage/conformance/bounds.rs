//! The edges of what calls may be given: empty lists, duplicates, limits of 0, and the longest ttl, linger and owner.

use std::time::Duration;

use super::{
    StorageFactory,
    audit::{audit_settled, read_log, read_some},
    leases::gone_leases,
    registry::{LONG_TTL, Registry, key, keys},
    violation::{Outcome, broken, ensure, ensure_eq},
};
use crate::{
    session::LeaseId,
    storage::{
        Answers, BucketRun, CreateOptions, LeaseBuckets, LeaseQuery, Lookup, MAX_LINGER, MAX_OWNER_BYTES, MAX_TTL,
        Takeover,
    },
};

/// All leases, in pages of one.
const BY_ONES: LeaseQuery = LeaseQuery { after: None, limit: 0, owner: None, lease_ids: Vec::new() };

pub(super) async fn empty_lists_are_answered_with_nothing(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let [gone, never] = gone_leases(&registry).await?;
    let [live, lingers] = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    registry.linger(lingers, MAX_LINGER).await?;
    registry.create(&keys(0..10), Some(live)).await?;
    for lease in [None, Some(live), Some(gone), Some(never), Some(lingers)] {
        for takeover in [Takeover::Always, Takeover::OnlyFrom(Some(live))] {
            let answer = registry.storage().create_with(&[], CreateOptions { lease, takeover }).await;
            ensure_eq!(answer.ok(), Some(Answers::default()), Answers, "create of no session under {lease:?}");
        }
        let answer = registry.storage().destroy_with(&[], lease).await;
        ensure_eq!(answer.ok(), Some(Answers::default()), Answers, "destroy of no session under {lease:?}");
    }
    ensure_eq!(registry.has(&[]).await?, Vec::<bool>::new(), Answers, "has of no session");
    ensure_eq!(registry.lookup(&[]).await?, Vec::<Lookup>::new(), Answers, "lookup of no session");

    let extent = registry.extent().await?;
    let known: Vec<_> = extent.partitions.iter().map(|held| held.end).collect();
    for with_leases in [false, true] {
        let run = registry.storage().read_buckets(extent.registry_id, &known, &[], 10, with_leases).await?;
        let nothing = BucketRun { points: Vec::new(), sessions: Vec::new(), leases: Vec::new() };
        ensure_eq!(run, nothing, Answers, "a read of no bucket");
    }
    let under = registry.storage().buckets_under(extent.registry_id, &known, &[]).await?;
    ensure_eq!(under, LeaseBuckets { points: known, buckets: Vec::new() }, Answers, "the buckets under no lease");
    ensure_eq!(read_log(&registry).await?.concat().len(), 10, Alternating, "changes in the log");
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn duplicates_are_answered_each(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let [a, b] = [registry.grant(LONG_TTL).await?, registry.grant(LONG_TTL).await?];
    registry.create_one(key(1), Some(a)).await?;
    let found = registry.lookup(&[1, 2, 1, 1, 2].map(key)).await?;
    let (present, absent) = (Lookup { exists: true, lease: Some(a) }, Lookup::default());
    ensure_eq!(found, [present, absent, present, present, absent], Answers, "lookup of 1 2 1 1 2, where 1 is");
    // The first of the duplicates takes the session, and the others find that it is there.
    let options = CreateOptions { lease: Some(b), takeover: Takeover::OnlyFrom(Some(a)) };
    let answers = registry.create_with(&[1, 1, 2, 2].map(key), options).await?;
    let told: Vec<_> = answers.sessions.iter().map(|creation| (creation.created, creation.lease)).collect();
    let expected = [(false, Some(b)), (false, Some(b)), (true, Some(b)), (false, Some(b))];
    ensure_eq!(told, expected, Answers, "takeover of 1 1 2 2, where 1 is");
    ensure_eq!(read_log(&registry).await?.concat().len(), 3, Alternating, "changes in the log");

    let partitions = registry.layout().partitions as usize;
    let points: Vec<_> = registry.extent().await?.partitions.iter().map(|held| held.end).collect();
    let id = registry.extent().await?.registry_id;
    let once = registry.storage().buckets_under(id, &points, &[b]).await?;
    let thrice = registry.storage().buckets_under(id, &points, &[b, b, b]).await?;
    ensure_eq!(thrice, once, Answers, "the buckets under a lease that is named three times");
    ensure_eq!(thrice.points.len(), partitions, Answers, "points of buckets_under");
    let page = registry.storage().list_leases(&LeaseQuery { limit: 10, lease_ids: vec![b, a, b], ..BY_ONES }).await?;
    let listed: Vec<LeaseId> = page.leases.iter().map(|status| status.lease).collect();
    ensure_eq!(listed, [a.min(b), a.max(b)], Answers, "a list of two leases, one of which is named twice");
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn a_limit_of_zero_counts_as_one(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let mut granted = Vec::new();
    for _ in 0..3 {
        granted.push(registry.grant(LONG_TTL).await?);
    }
    granted.sort_unstable();
    let (mut query, mut listed) = (BY_ONES, Vec::new());
    // Pages without a lease may come, too.
    for _ in 0..100 {
        let page = registry.storage().list_leases(&query).await?;
        ensure!(page.leases.len() <= 1, Answers, "a page of limit 0 has {} leases", page.leases.len());
        listed.extend(page.leases.into_iter().map(|status| status.lease));
        query.after = page.next;
        if page.next.is_none() {
            break;
        }
    }
    ensure_eq!(listed, granted, Answers, "leases in pages of limit 0");

    registry.create(&keys(0..50), None).await?;
    for (partition, held) in registry.extent().await?.partitions.into_iter().enumerate() {
        if held.start.position < held.end.position {
            let changes = registry.changes_after(partition, held.start, 0).await?;
            ensure_eq!(changes.events.len(), 1, Answers, "changes of partition {partition} with limit 0");
        }
    }
    // One bucket at least, and no more after the first session.
    read_some(&registry, 0, 0).await?;
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn a_ttl_or_linger_beyond_the_longest_is_cut(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let second = Duration::from_secs(1);
    for ttl in [MAX_TTL, MAX_TTL + second, 1000 * MAX_TTL, Duration::MAX] {
        let lease = registry.storage().grant_lease(ttl, "").await?;
        let kept = registry.storage().keep_lease_alive(lease).await?;
        ensure_eq!(kept, MAX_TTL, Answers, "the ttl of a lease that was to have {ttl:?}");
        let status = listed(&registry, lease).await?;
        ensure_eq!(status.ttl, MAX_TTL, Answers, "the ttl in a list of a lease that was to have {ttl:?}");
    }
    for linger in [MAX_LINGER, MAX_LINGER + second, 1000 * MAX_LINGER, Duration::MAX] {
        let lease = registry.grant(LONG_TTL).await?;
        registry.linger(lease, linger).await?;
        let status = listed(&registry, lease).await?;
        ensure!(status.lingers, Answers, "a lease does not linger that was to linger for {linger:?}");
        let left = status.expires_in;
        ensure!(left <= MAX_LINGER + second, Answers, "a lease lingers for {left:?} that was to linger for {linger:?}");
    }
    Ok(())
}

pub(super) async fn an_owner_is_any_text(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let longest = "é".repeat(MAX_OWNER_BYTES / 2);
    let owners = ["", " ", " a ", "~1 2", "0", "a\nb", "a\0b", "%s", "\u{1f511} ~", "10.0.0.1:443", &longest];
    for owner in owners {
        let lease = registry.storage().grant_lease(LONG_TTL, owner).await?;
        for lingers in [false, true] {
            if lingers {
                registry.linger(lease, MAX_LINGER).await?;
            }
            let told = registry.storage().lease_owner(lease).await?;
            ensure_eq!(told.as_deref(), Some(owner), Answers, "the owner of a lease");
            let query = LeaseQuery { limit: 10_000, owner: Some(owner.to_owned()), ..BY_ONES };
            let list = registry.list(query).await?;
            let found: Vec<_> = list.iter().map(|status| (status.lease, &*status.owner, status.lingers)).collect();
            ensure_eq!(found, [(lease, owner, lingers)], Answers, "the leases of {owner:?}");
        }
    }
    Ok(())
}

async fn listed(registry: &Registry, lease: LeaseId) -> Outcome<crate::storage::LeaseStatus> {
    let list = registry.list(LeaseQuery { limit: 10, lease_ids: vec![lease], ..BY_ONES }).await?;
    match list.into_iter().next() {
        Some(status) => Ok(status),
        None => broken!(Answers, "lease {lease} is in no list"),
    }
}
