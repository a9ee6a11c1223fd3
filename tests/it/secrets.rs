//! The secret key of the hash that assigns sessions to buckets. Anyone who can guess it can fill a single bucket.

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

/// Returns the buckets of the same 64 sessions.
fn buckets(storage: &dyn SessionStorage) -> Vec<u32> {
    (0..64).map(|n| storage.bucket_of(&SessionKey::new(0, n))).collect()
}

/// Opens two storages, each after seeding the public random number generator with the same seed. This models an
/// attacker who has recovered the generator's state from public numbers.
async fn opened_twice<F: Future<Output = Arc<dyn SessionStorage>>>(open: impl Fn(usize) -> F) -> [Vec<u32>; 2] {
    let mut found = [Vec::new(), Vec::new()];
    for (number, found) in found.iter_mut().enumerate() {
        fastrand::seed(7);
        *found = buckets(&*open(number).await);
    }
    found
}

#[tokio::test]
async fn public_random_numbers_do_not_reveal_buckets_in_memory() {
    let [first, second] =
        opened_twice(async |_| Arc::new(MemoryStorage::new(MemoryOptions::default())) as Arc<dyn SessionStorage>).await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn public_random_numbers_do_not_reveal_buckets_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = opened_twice(async |number| {
        let path = folder.path().join(number.to_string());
        StorageUrl::File(path).open(ROOMY).await.unwrap()
    })
    .await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn public_random_numbers_do_not_reveal_buckets_in_redis() {
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
