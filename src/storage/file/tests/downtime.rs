//! The time that leases get after a restart.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redb::ReadableDatabase as _;
use tokio::time::{pause, resume, sleep, timeout};

use super::{open, options, sim::Sim, try_open};
use crate::storage::{
    SessionStorage,
    file::store::{META, META_SERVED, open_database},
};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Returns when the registry was last in service, according to the file.
fn served(disk: &Sim) -> Option<u64> {
    let (_, database) = open_database(disk, Path::new("registry")).unwrap();
    let meta = database.begin_read().unwrap().open_table(META).unwrap();
    meta.get(META_SERVED).unwrap().map(|served| served.value())
}

fn set_served(disk: &Sim, served: Option<u64>) {
    let (_, database) = open_database(disk, Path::new("registry")).unwrap();
    let transaction = database.begin_write().unwrap();
    match served {
        Some(served) => drop(transaction.open_table(META).unwrap().insert(META_SERVED, served).unwrap()),
        None => drop(transaction.open_table(META).unwrap().remove(META_SERVED).unwrap()),
    }
    transaction.commit().unwrap();
}

#[tokio::test]
async fn leases_get_the_grace_of_an_outage_after_a_restart() {
    const MINUTE: u64 = 60_000;
    let cases = [
        (Some(now()), 2, 20),
        (Some(now() - MINUTE), 2, 80),
        (Some(now() - 60 * MINUTE), 2, 150),
        (Some(now() - MINUTE), 500, 500),
        // The clock was set back, or the time is unknown.
        (Some(now() + 60 * MINUTE), 2, 150),
        (None, 2, 150),
    ];
    for (served, ttl, grace) in cases {
        let disk = Sim::default();
        let storage = open(&disk, 1000).await;
        storage.grant_lease(Duration::from_secs(ttl), "gateway").await.unwrap();
        drop(storage);
        set_served(&disk, served);
        let storage = open(&disk, 1000).await;
        // The paused clock advances to the next timer.
        pause();
        let _ = timeout(Duration::from_secs(grace - 1), storage.expire_leases()).await;
        assert_eq!(storage.lease_count().await.unwrap(), 1, "the grace of {grace} s is not over");
        let _ = timeout(Duration::from_secs(15), storage.expire_leases()).await;
        resume();
        let ended = async {
            while storage.lease_count().await.unwrap() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(30), ended).await.unwrap();
    }
}

#[tokio::test]
async fn time_in_service_is_written_unless_leases_still_have_their_grace() {
    let disk = Sim::default();
    let began = now();
    let storage = open(&disk, 1000).await;
    storage.grant_lease(Duration::from_secs(60), "gateway").await.unwrap();
    assert!(served(&disk.copy()) >= Some(began), "the first change writes the time");
    drop(storage);
    let closed = served(&disk).unwrap();
    assert!(closed >= began);
    // A crash while gateways may still be away because of the last one.
    let storage = open(&disk, 1000).await;
    storage.grant_lease(Duration::from_secs(60), "gateway").await.unwrap();
    let crashed = disk.after_crash(&mut fastrand::Rng::new());
    assert_eq!(served(&crashed), Some(closed));
}

#[tokio::test]
async fn lease_limit_holds_after_a_restart() {
    let disk = Sim::default();
    let storage = open(&disk, 1000).await;
    for id in 0..60 {
        let lease = storage.grant_lease(Duration::from_secs(60), "gateway").await.unwrap();
        storage.create(&[crate::session::SessionKey::new(0, id)], Some(lease)).await.unwrap();
        storage.revoke_lease(lease).await.unwrap();
    }
    drop(storage);
    let options = crate::storage::StorageOptions { max_leases: 5, ..options(1000) };
    let storage = try_open(&disk, options).await.unwrap();
    let mut granted = 0;
    while storage.grant_lease(Duration::from_secs(60), "gateway").await.is_ok() {
        granted += 1;
    }
    assert_eq!(granted, 5);
}
