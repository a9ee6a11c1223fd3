use futures_util::FutureExt;

use super::*;

const TTL: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_lease_that_ends_within_a_batch_does_not_destroy_what_is_under_the_next() {
    let storage = MemoryStorage::new(MemoryOptions::default());
    let sessions: Vec<_> = (0..=SESSIONS_BETWEEN_YIELDS as i64).map(|id| SessionKey::new(0, id)).collect();
    let last = &sessions[SESSIONS_BETWEEN_YIELDS..];
    let old = storage.grant_lease(TTL, "").await.unwrap();
    let mut destroying = storage.destroy(&sessions, Some(old));
    assert!((&mut destroying).now_or_never().is_none(), "it pauses before the last session");
    storage.revoke_lease(old).await.unwrap();
    // It takes the place of the old one.
    let new = storage.grant_lease(TTL, "").await.unwrap();
    assert_eq!(storage.create(last, Some(new)).await.unwrap(), [true]);
    assert!(destroying.await.unwrap().iter().all(|destroyed| !destroyed));
    assert_eq!(storage.has(last).await.unwrap(), [true]);
}

#[tokio::test]
async fn a_destroy_of_what_is_not_there_asks_for_no_room() {
    let storage = MemoryStorage::new(MemoryOptions { buckets: 1, ..MemoryOptions::default() });
    let absent = [SessionKey::new(1, 0), SessionKey::new(1, 1)];
    let is_full = || storage.buckets[0].lock().need(false).is_some();
    assert!(is_full());
    assert_eq!(storage.destroy(&absent, None).await.unwrap(), [false, false]);
    assert!(is_full(), "the empty bucket has grown");
    storage.create(&[SessionKey::new(0, 0)], None).await.unwrap();
    // Not by calls, which leave room for the next one.
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
async fn a_call_leaves_room_for_the_next_one() {
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
