use futures_util::FutureExt;
use tokio::time::{Instant, advance};

use super::*;

/// The maximum delay of a lease's end.
const SOON: Duration = Duration::from_secs(1);

const TTL: Duration = Duration::from_secs(60);

#[tokio::test]
async fn lease_that_ends_during_a_batch_destroy_spares_the_next_lease_in_its_slot() {
    let storage = MemoryStorage::new(MemoryOptions::default());
    let sessions: Vec<_> = (0..=SESSIONS_BETWEEN_YIELDS as i64).map(|id| SessionKey::new(0, id)).collect();
    let last = &sessions[SESSIONS_BETWEEN_YIELDS..];
    let old = storage.grant_lease(TTL, "").await.unwrap();
    let mut destroying = storage.destroy(&sessions, Some(old));
    assert!((&mut destroying).now_or_never().is_none(), "the call yields before the last session");
    storage.revoke_lease(old).await.unwrap();
    // The new lease reuses the slot of the old one.
    let new = storage.grant_lease(TTL, "").await.unwrap();
    assert_eq!(storage.create(last, Some(new)).await.unwrap(), [true]);
    assert!(destroying.await.unwrap().iter().all(|destroyed| !destroyed));
    assert_eq!(storage.has(last).await.unwrap(), [true]);
}

#[tokio::test]
async fn destroying_absent_sessions_does_not_grow_a_bucket() {
    let storage = MemoryStorage::new(MemoryOptions { buckets: 1, ..MemoryOptions::default() });
    let absent = [SessionKey::new(1, 0), SessionKey::new(1, 1)];
    let is_full = || storage.buckets[0].lock().need(false).is_some();
    assert!(is_full());
    assert_eq!(storage.destroy(&absent, None).await.unwrap(), [false, false]);
    assert!(is_full(), "the empty bucket has grown");
    storage.create(&[SessionKey::new(0, 0)], None).await.unwrap();
    // Fills the bucket directly, because calls leave room for the next session.
    for id in 1.. {
        let mut bucket = storage.buckets[0].lock();
        if bucket.need(false).is_some() {
            break;
        }
        let session = SessionKey::new(0, id);
        assert!(bucket.insert(storage.hash.within(&session), session, 0, &storage.hash));
    }
    assert_eq!(storage.destroy(&absent, None).await.unwrap(), [false, false]);
    assert!(is_full(), "the full bucket has grown");
}

#[tokio::test]
async fn each_call_leaves_room_for_the_next_session() {
    let storage = MemoryStorage::new(MemoryOptions { buckets: 1, ..MemoryOptions::default() });
    let lease = storage.grant_lease(TTL, "").await.unwrap();
    let needs = |is_leased| storage.buckets[0].lock().need(is_leased);
    for id in 0..2000 {
        let lease = (id >= 1000).then_some(lease);
        storage.create(&[SessionKey::new(0, id)], lease).await.unwrap();
        assert!(needs(lease.is_some()).is_none(), "after {id} were created: {:?}", needs(lease.is_some()));
    }
    for id in 0..2000 {
        storage.destroy(&[SessionKey::new(0, id)], None).await.unwrap();
        assert!(needs(false).is_none(), "after {id} were destroyed: {:?}", needs(false));
    }
}

#[tokio::test]
async fn changes_are_removed_sooner_once_they_are_read() {
    const RETAIN: u64 = 200_000;
    const KEPT_OF_READ: u64 = 65_536;
    const SEGMENT: u64 = 4096;
    let storage = MemoryStorage::new(MemoryOptions { retain_events: RETAIN as usize, ..MemoryOptions::default() });
    let mut written = 0;
    let mut write = async |count: u64| {
        let sessions: Vec<_> = (written..written + count).map(|id| SessionKey::new(0, id as i64)).collect();
        written += count;
        storage.create(&sessions, None).await.unwrap();
        let log = storage.log().await.unwrap();
        let held = log.partitions[0].clone();
        (log.registry_id, held.start.mark, held.start.position..held.end.position)
    };
    let (registry_id, mark, held) = write(RETAIN).await;
    assert_eq!(held, Position(0)..Position(RETAIN), "no follower has read them");
    let read = |after| storage.changes_after(registry_id, 0, LogPoint { position: Position(after), mark }, 1);
    assert_eq!(read(0).await.unwrap().events.len(), 1);
    let (.., held) = write(1).await;
    assert_eq!(held.start, Position(0), "the follower may not have received what the call returned");
    assert_eq!(read(150_000).await.unwrap().events.len(), 1);
    let of_read = (150_000 - KEPT_OF_READ) / SEGMENT * SEGMENT;
    assert_eq!(storage.log().await.unwrap().partitions[0].start.position.0, of_read);
    // A follower behind the furthest one keeps its place, however many unread changes arrive.
    let (.., held) = write(50_000).await;
    assert_eq!(held.start.0, of_read);
    let (.., held) = write(RETAIN).await;
    assert!(held.start.0 > 150_000 && held.end.0 - held.start.0 >= RETAIN, "{held:?}");
    assert!(matches!(read(150_000).await, Err(LogError::Trimmed)));
}

/// Returns a storage that has been expiring leases for some time, and a lease with one session. The clock must be
/// paused.
async fn with_lease(
    ttl: Duration,
    outage_grace: Duration,
) -> (Arc<MemoryStorage>, LeaseId, tokio::task::JoinHandle<()>) {
    let storage = Arc::new(MemoryStorage::new(MemoryOptions { outage_grace, ..MemoryOptions::default() }));
    let expiring = tokio::spawn({
        let storage = Arc::clone(&storage);
        async move { drop(storage.expire_leases().await) }
    });
    // The task that expires leases has waited for a long time without leases.
    sleep(Duration::from_secs(1000)).await;
    let lease = storage.grant_lease(ttl, "").await.unwrap();
    storage.create(&[SessionKey::new(0, 0)], Some(lease)).await.unwrap();
    (storage, lease, expiring)
}

/// Returns how long it takes until the session is destroyed.
async fn ends_after(storage: &MemoryStorage) -> Duration {
    let began = Instant::now();
    while storage.has(&[SessionKey::new(0, 0)]).await.unwrap() == [true] {
        sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn pause_delays_deadlines_by_its_own_length() {
    const TTL: Duration = Duration::from_secs(2);
    for pause in [0, 600, 900, 1000, 1100, 1700, 3000, 4500].map(Duration::from_millis) {
        let (storage, _, expiring) = with_lease(TTL, Duration::from_secs(150)).await;
        sleep(Duration::from_millis(500)).await;
        // No task runs in the meantime.
        advance(pause).await;
        let rest = ends_after(&storage).await;
        let wanted = TTL - Duration::from_millis(500);
        assert!(rest + Duration::from_millis(350) >= wanted, "after a pause of {pause:?} it ends in {rest:?}");
        assert!(rest <= wanted + Duration::from_millis(500), "after a pause of {pause:?} it ends in {rest:?}");
        expiring.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn pause_does_not_delay_the_end_of_a_lingering_lease() {
    for pause in [900, 4500, 60_000].map(Duration::from_millis) {
        let (storage, lease, expiring) = with_lease(TTL, Duration::from_secs(150)).await;
        storage.revoke_lease_with(lease, pause + Duration::from_secs(2)).await.unwrap();
        sleep(Duration::from_millis(500)).await;
        advance(pause).await;
        let rest = ends_after(&storage).await;
        let wanted = Duration::from_millis(1500);
        assert!(wanted <= rest && rest <= wanted + SOON, "after a pause of {pause:?} it ends in {rest:?}");
        expiring.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn kept_alive_lease_survives_pauses_as_long_as_its_ttl() {
    let (storage, lease, expiring) = with_lease(Duration::from_secs(1), Duration::from_secs(150)).await;
    for pause in 0..20 {
        for _ in 0..3 {
            storage.keep_lease_alive(lease).await.unwrap();
            sleep(Duration::from_millis(333)).await;
        }
        advance(Duration::from_millis(900 + 10 * pause)).await;
        // The first keep-alive after the pause is a bit late.
        sleep(Duration::from_millis(100)).await;
    }
    storage.keep_lease_alive(lease).await.unwrap();
    expiring.abort();
}

#[tokio::test(start_paused = true)]
async fn long_pause_gives_leases_the_grace_of_an_outage() {
    for (pause, ttl, least) in [(10, 2, 30), (60, 2, 80), (3600, 2, 150), (60, 500, 500)] {
        let (storage, _, expiring) = with_lease(Duration::from_secs(ttl), Duration::from_secs(150)).await;
        sleep(Duration::from_millis(500)).await;
        advance(Duration::from_secs(pause)).await;
        let rest = ends_after(&storage).await;
        let least = Duration::from_secs(least);
        assert!(least <= rest + Duration::from_millis(20) && rest <= least + SOON, "{pause} s: it ends in {rest:?}");
        expiring.abort();
    }
}

#[tokio::test]
async fn free_slots_do_not_raise_the_limit_of_leases() {
    let storage = MemoryStorage::new(MemoryOptions { max_leases: 2, ..MemoryOptions::default() });
    let gone: Vec<_> = (1..60).filter_map(LeaseId::from_number).map(|id| storage.leases.restore_gone(id)).collect();
    gone.iter().for_each(|lease| storage.leases.restore_free(lease));
    for _ in 0..2 {
        storage.grant_lease(TTL, "").await.unwrap();
    }
    let refused = storage.grant_lease(TTL, "").await.unwrap_err();
    assert!(matches!(refused, StorageError::TooManyLeases { limit: 2 }), "{refused}");
}
