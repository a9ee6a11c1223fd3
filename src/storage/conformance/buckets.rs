//! The buckets: their sessions, and reads of them.

use std::{collections::HashSet, sync::Arc};

use super::{
    StorageFactory,
    audit::{audit_settled, check_reads, read_all, read_log, read_some, replay},
    registry::{LONG_TTL, Registry, Tasks, key, keys, yield_randomly},
    violation::{Outcome, broken, ensure, ensure_eq},
};

pub(super) async fn buckets_and_partitions_never_change(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let layout = registry.layout();
    ensure!(layout.buckets >= 1 && layout.partitions >= 1, Divided, "the layout is {layout:?}");
    for bucket in 0..layout.buckets {
        let partition = registry.storage().partition_of(bucket);
        ensure!(partition < layout.partitions, Divided, "partition_of({bucket}) is {partition} in {layout:?}");
        ensure_eq!(registry.storage().partition_of(bucket), partition, Divided, "partition_of({bucket}), called again");
    }
    let sessions = keys(-500..500);
    let bucket_of = || -> Vec<u32> {
        let storage = registry.storage();
        sessions.iter().map(|session| storage.bucket_of(session)).collect()
    };
    let buckets = bucket_of();
    if let Some(outside) = buckets.iter().find(|bucket| **bucket >= layout.buckets) {
        broken!(Divided, "bucket_of returned {outside} in {layout:?}");
    }
    registry.create(&sessions, None).await?;
    ensure_eq!(bucket_of(), buckets, Divided, "the buckets of sessions after they were created");
    registry.destroy(&sessions, None).await?;
    ensure_eq!(bucket_of(), buckets, Divided, "the buckets of sessions after they were destroyed");
    ensure_eq!(registry.layout(), layout, Divided, "the layout after some changes");
    Ok(())
}

pub(super) async fn reading_all_buckets_returns_each_session_once(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    registry.create(&keys(0..1000), None).await?;
    registry.destroy(&keys(200..400), None).await?;
    let log = read_log(&registry).await?;
    let replay = replay(&registry, &log)?;
    ensure_eq!(replay.live.len(), 800, Alternating, "live sessions in the log");
    for limit in [1, 100, usize::MAX] {
        let reads = read_all(&registry, limit).await?;
        check_reads(&registry, &log, &reads)?;
    }
    audit_settled(&registry).await?;
    Ok(())
}

pub(super) async fn read_ends_with_the_bucket_that_reaches_the_limit(factory: &dyn StorageFactory) -> Outcome {
    let registry = Registry::open(factory).await?;
    let buckets = registry.layout().buckets;
    read_some(&registry, 0, usize::MAX).await?;
    read_some(&registry, buckets - 1, 1).await?;
    let sessions = keys(0..2000);
    registry.create(&sessions, None).await?;
    // `read_some` checks the limits. With limit 1, a read from a bucket that has sessions ends after this bucket.
    let storage = registry.storage();
    let filled: HashSet<u32> = sessions.iter().map(|session| storage.bucket_of(session)).take(100).collect();
    for first in filled {
        let one = read_some(&registry, first, 1).await?;
        ensure_eq!(one.len(), 1, Answers, "buckets read with limit 1 from {first} on, which has a session");
        read_some(&registry, first, 20).await?;
    }
    Ok(())
}

pub(super) async fn reads_are_exact_while_sessions_change(factory: &dyn StorageFactory) -> Outcome {
    const WRITERS: i64 = 4;
    const CALLS: usize = 150;
    let registry = Registry::open(factory).await?;
    let mut writers = Tasks::new();
    for _ in 0..WRITERS {
        let registry = Arc::clone(&registry);
        writers.spawn(async move {
            let mut random = fastrand::Rng::new();
            let mut lease = registry.grant(LONG_TTL).await?;
            for _ in 0..CALLS {
                let batch: Vec<_> = (0..random.i64(1..20)).map(|_| key(random.i64(0..300))).collect();
                match random.u8(..8) {
                    0..3 => drop(registry.create(&batch, None).await?),
                    3..5 => drop(registry.create(&batch, Some(lease)).await?),
                    5..7 => drop(registry.destroy(&batch, None).await?),
                    _ => {
                        registry.revoke(lease).await?;
                        lease = registry.grant(LONG_TTL).await?;
                    }
                }
                yield_randomly(&mut random).await;
            }
            Ok(())
        });
    }
    let writing = writers.join();
    let reading = async {
        let mut random = fastrand::Rng::new();
        let mut reads = Vec::new();
        // Does not wait for the writers, because those of some storages never yield to another task.
        for _ in 0..10 {
            let buckets = registry.layout().buckets;
            let mut first = 0;
            while first < buckets {
                let some = read_some(&registry, first, random.usize(1..100)).await?;
                first += some.len() as u32;
                reads.extend(some);
                yield_randomly(&mut random).await;
            }
        }
        Outcome::Ok(reads)
    };
    let (written, reads) = tokio::join!(writing, reading);
    written?;
    let log = read_log(&registry).await?;
    replay(&registry, &log)?;
    check_reads(&registry, &log, &reads?)?;
    audit_settled(&registry).await?;
    Ok(())
}
