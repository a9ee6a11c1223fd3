//! What must not be guessed: the key of the hash that puts sessions into buckets. Who knows it can fill one bucket.

use std::sync::Arc;

use sessiond::{
    session::SessionKey,
    storage::{
        SessionStorage, StorageUrl,
        memory::{MemoryOptions, MemoryStorage},
    },
};

use crate::redis::{
    ROOMY,
    server::{RedisServer, is_installed},
};

/// The bucket of each of many sessions.
fn buckets(storage: &dyn SessionStorage) -> Vec<u32> {
    (0..64).map(|n| storage.bucket_of(&SessionKey::new(0, n))).collect()
}

/// The generator that other random numbers come from starts twice from the same seed, as it does for who has found out its state
/// from a number that is public.
async fn opened_twice<F: Future<Output = Arc<dyn SessionStorage>>>(open: impl Fn(usize) -> F) -> [Vec<u32>; 2] {
    let mut found = [Vec::new(), Vec::new()];
    for (number, found) in found.iter_mut().enumerate() {
        fastrand::seed(7);
        *found = buckets(&*open(number).await);
    }
    found
}

#[tokio::test]
async fn no_public_random_number_tells_the_bucket_of_a_session_in_memory() {
    let [first, second] =
        opened_twice(async |_| Arc::new(MemoryStorage::new(MemoryOptions::default())) as Arc<dyn SessionStorage>).await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn no_public_random_number_tells_the_bucket_of_a_session_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = opened_twice(async |number| {
        let path = folder.path().join(number.to_string());
        StorageUrl::File(path).open(ROOMY).await.unwrap()
    })
    .await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn no_public_random_number_tells_the_bucket_of_a_session_in_redis() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&[]);
    let [first, second] = opened_twice(async |number| {
        crate::redis::open(&redis.url(&format!("registry=r{number}&buckets=4096")), ROOMY).await
    })
    .await;
    assert_ne!(first, second);
}
