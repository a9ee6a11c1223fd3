//! What callers get while the disk fails, and what the registry holds afterwards.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, pause, resume, sleep, timeout},
};

use super::{
    ledger::Ledger,
    open, open_with, options,
    sim::{Fault, Sim},
    try_open,
};
use crate::{
    session::{LeaseId, SessionKey},
    storage::{RefusalCause, SessionStorage, StorageError, StorageOptions, file::FileStorage},
};

const SOON: Duration = Duration::from_secs(30);

/// Runs writers that each change their own sessions, until changes are refused or each has made its share of `changes`.
async fn write(storage: &Arc<FileStorage>, ledger: &Ledger, changes: usize, seed: u64) {
    let mut following = JoinSet::new();
    following.spawn({
        let (storage, ledger) = (Arc::clone(storage), ledger.clone());
        async move { ledger.follow(&storage).await }
    });
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let (storage, ledger) = (Arc::clone(storage), ledger.clone());
        writers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed * 8 + writer as u64);
            let mut leases: Vec<LeaseId> = Vec::new();
            for _ in 0..changes / 8 {
                let session = SessionKey::new(writer, random.i64(0..40));
                let outcome = match random.u32(..20) {
                    0 if leases.len() < 3 => {
                        storage.grant_lease(Duration::from_secs(3600), "x").await.map(|lease| leases.push(lease))
                    }
                    0..8 => ledger.destroy(&storage, session).await,
                    8..14 => ledger.create(&storage, session, None).await,
                    _ => ledger.create(&storage, session, random.choice(leases.iter().copied())).await,
                };
                match outcome {
                    Ok(()) => {}
                    Err(StorageError::Refused(_)) => return,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    writers.join_all().await;
    following.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_survive_machine_crashes() {
    let crashes = std::env::var("SESSIOND_TEST_CRASHES").map_or(200, |n| n.parse().unwrap());
    let seed = fastrand::u64(..1 << 32);
    let mut random = fastrand::Rng::with_seed(seed);
    println!("seed {seed}");
    let (mut disk, ledger) = (Sim::default(), Ledger::default());
    drop(open(&disk, 1000).await);
    for crash in 0..crashes {
        disk.stop_after(random.u64(1..2000));
        // The machine may stop while the file is being opened.
        let opened = try_open(&disk, options(1000)).await;
        match opened.map(Arc::new) {
            Err(error) => assert!(disk.has_stopped(), "{error}"),
            // What the storage reports before the machine stops must be true.
            Ok(storage) => {
                ledger.check(&storage).await;
                // Sometimes so few changes that the machine stops while the file is being closed.
                write(&storage, &ledger, random.usize(8..4000), seed + crash).await;
            }
        }
        disk = disk.after_crash(&mut random);
    }
    ledger.check(&*open(&disk, 1000).await).await;
}

/// Waits until changes are accepted again.
async fn recovers(storage: &FileStorage, ledger: &Ledger) {
    let made = async {
        while ledger.create(storage, SessionKey::new(-1, 2), None).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, made).await.unwrap();
}

/// Makes the disk fail for a while, crashes the machine after the recovery, and checks the registry.
async fn outage(fault: Fault) {
    let (disk, ledger) = (Sim::default(), Ledger::default());
    let storage = open(&disk, 1000).await;
    write(&storage, &ledger, 2000, 0).await;
    let kept = SessionKey::new(-1, 0);
    ledger.create(&storage, kept, None).await.unwrap();
    let lease = storage.grant_lease(Duration::from_secs(3600), "x").await.unwrap();

    disk.set_fault(Some(fault));
    let began = Instant::now();
    write(&storage, &ledger, 1 << 20, 1).await;
    assert!(began.elapsed() < SOON, "callers wait for the disk");
    assert_eq!(storage.has(&[kept]).await.unwrap(), [true], "what is on disk can be read");
    storage.keep_lease_alive(lease).await.unwrap();
    for _ in 0..3 {
        let refused = ledger.create(&storage, SessionKey::new(-1, 1), None).await.unwrap_err();
        assert!(matches!(refused, StorageError::Refused(_)), "{refused}");
        sleep(Duration::from_millis(20)).await;
    }

    disk.set_fault(None);
    recovers(&storage, &ledger).await;
    ledger.check(&storage).await;
    write(&storage, &ledger, 2000, 2).await;
    // Crash while the process is still running, so that nothing is closed cleanly before.
    let crashed = disk.after_crash(&mut fastrand::Rng::with_seed(0));
    ledger.check(&*open(&crashed, 1000).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_resume_when_a_full_disk_has_room_again() {
    outage(Fault::Full).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_writes_are_repeated() {
    outage(Fault::TornWrites).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_is_rewritten_after_a_failed_sync() {
    outage(Fault::Syncs).await;
}

/// The clock is paused, and advances to the next timer.
#[tokio::test]
async fn callers_wait_ten_seconds_for_a_stalled_disk() {
    let (disk, ledger) = (Sim::default(), Ledger::default());
    let storage = open(&disk, 1000).await;
    write(&storage, &ledger, 2000, 0).await;
    let kept = SessionKey::new(-1, 0);
    ledger.create(&storage, kept, None).await.unwrap();

    disk.set_fault(Some(Fault::Stalled));
    pause();
    for patience in [Duration::from_secs(10), Duration::ZERO] {
        let began = Instant::now();
        let refused = ledger.create(&storage, SessionKey::new(-1, 1), None).await.unwrap_err();
        let StorageError::Refused(refusal) = refused else { panic!("{refused}") };
        assert_eq!(refusal.to_string(), "the disk does not complete writes (a write has not completed for 10s)");
        let waited = began.elapsed();
        assert!(patience <= waited && waited <= patience + Duration::from_millis(10), "{waited:?}");
    }
    assert_eq!(storage.has(&[kept]).await.unwrap(), [true], "what is on disk can be read");
    resume();

    disk.set_fault(None);
    recovers(&storage, &ledger).await;
    ledger.check(&storage).await;
    let crashed = disk.after_crash(&mut fastrand::Rng::with_seed(0));
    ledger.check(&*open(&crashed, 1000).await).await;
}

/// Runs the expiry of leases for a moment.
async fn expire(storage: &FileStorage) {
    let _ = timeout(Duration::from_millis(50), storage.expire_leases()).await;
}

#[tokio::test]
async fn leases_survive_a_disk_outage() {
    const TTL: Duration = Duration::from_secs(1);
    let disk = Sim::default();
    let storage = open_with(&disk, StorageOptions { outage_grace: TTL, ..options(1000) }).await;
    let lease = storage.grant_lease(TTL, "gateway").await.unwrap();
    let session = [SessionKey::new(0, 1)];
    storage.create(&session, Some(lease)).await.unwrap();

    disk.set_fault(Some(Fault::Full));
    storage.create(&[SessionKey::new(0, 2)], None).await.unwrap_err();
    let began = Instant::now();
    while began.elapsed() < TTL * 2 {
        expire(&storage).await;
    }
    assert_eq!(storage.has(&session).await.unwrap(), [true]);

    disk.set_fault(None);
    recovers(&storage, &Ledger::default()).await;
    let recovered = Instant::now();
    let ended = async {
        while storage.has(&session).await.unwrap() == [true] {
            expire(&storage).await;
        }
    };
    timeout(SOON, ended).await.unwrap();
    assert!(recovered.elapsed() >= TTL, "the lease has a full ttl again");
}

/// Whether the pages of a failed sync matter later depends on what was written when, so this runs many rounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_a_failed_sync_are_not_relied_on() {
    let (mut disk, ledger) = (Sim::default(), Ledger::default());
    let mut random = fastrand::Rng::new();
    for round in 0..40 {
        let storage = open(&disk, 1000).await;
        ledger.check(&storage).await;
        write(&storage, &ledger, random.usize(0..4000), round).await;
        disk.set_fault(Some(Fault::Syncs));
        write(&storage, &ledger, 1 << 20, round).await;
        disk.set_fault(None);
        recovers(&storage, &ledger).await;
        write(&storage, &ledger, random.usize(0..400), round).await;
        disk = disk.after_crash(&mut random);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_churn_needs_bounded_disk_space() {
    // Without freed pages, this churn would take 5 MB. Freed pages are reused one commit later, and the size of a
    // commit depends on how many changes happen to meet in it. The size therefore varies within a range.
    const BOUND: usize = 1 << 20;
    let (disk, ledger) = (Sim::default(), Ledger::default());
    let storage = open(&disk, 1000).await;
    let mut sizes = Vec::new();
    for round in 0..30 {
        write(&storage, &ledger, 10_000, round).await;
        sizes.push(disk.len());
    }
    assert!(sizes.iter().all(|size| *size <= BOUND), "{sizes:?}");
    ledger.check(&storage).await;
}

/// Waits until the storage reports `cause`, or `None` for writable. No call is made meanwhile.
async fn reports(storage: &FileStorage, cause: Option<RefusalCause>) {
    let began = Instant::now();
    loop {
        let writability = storage.writability();
        if writability.refusal().map(|refusal| refusal.cause) == cause {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{writability:?}, not {cause:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn idle_storage_notices_disk_failure_and_recovery() {
    let mut cases = JoinSet::new();
    for (fault, cause) in [
        (Fault::Full, RefusalCause::DiskFull),
        (Fault::TornWrites, RefusalCause::DiskFailed),
        (Fault::Syncs, RefusalCause::DiskFailed),
        (Fault::Stalled, RefusalCause::DiskStalled),
    ] {
        cases.spawn(async move {
            let disk = Sim::default();
            let storage = open(&disk, 1000).await;
            reports(&storage, None).await;
            let size = disk.len();
            disk.set_fault(Some(fault));
            reports(&storage, Some(cause)).await;
            disk.set_fault(None);
            reports(&storage, None).await;
            assert_eq!(disk.len(), size, "{fault:?}: a probe left something behind");
            storage.create(&[SessionKey::new(0, 1)], None).await.unwrap();
        });
    }
    cases.join_all().await;
}

#[tokio::test]
async fn refused_change_is_reported_immediately_with_its_cause() {
    let disk = Sim::default();
    let storage = open(&disk, 1000).await;
    disk.set_fault(Some(Fault::Full));
    let refused = storage.create(&[SessionKey::new(0, 1)], None).await.unwrap_err();
    let StorageError::Refused(refusal) = refused else { panic!("{refused}") };
    assert_eq!(refusal.cause, RefusalCause::DiskFull);
    assert_eq!(storage.writability().refusal(), Some(&refusal));
    // The change is still pending, so the storage cannot say whether the session exists.
    let unknown = storage.has(&[SessionKey::new(0, 1)]).await.unwrap_err();
    assert!(matches!(unknown, StorageError::Unavailable(_)), "{unknown}");
    disk.set_fault(None);
    reports(&storage, None).await;
    assert_eq!(storage.has(&[SessionKey::new(0, 1)]).await.unwrap(), [true]);
}
