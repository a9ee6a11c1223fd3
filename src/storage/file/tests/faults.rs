//! What callers are told while the disk fails, and what is there afterwards.

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

/// Many who change sessions of their own, until changes are refused or they have made enough changes.
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
async fn what_was_answered_survives_crashes_of_the_machine() {
    let crashes = std::env::var("SESSIOND_TEST_CRASHES").map_or(200, |n| n.parse().unwrap());
    let seed = fastrand::u64(..1 << 32);
    let mut random = fastrand::Rng::with_seed(seed);
    println!("seed {seed}");
    let (mut disk, ledger) = (Sim::default(), Ledger::default());
    drop(open(&disk, 1000).await);
    for crash in 0..crashes {
        disk.stop_after(random.u64(1..2000));
        // It may stop while it is being opened.
        let opened = try_open(&disk, options(1000)).await;
        match opened.map(Arc::new) {
            Err(error) => assert!(disk.has_stopped(), "{error}"),
            // What it tells before it stops holds.
            Ok(storage) => {
                ledger.check(&storage).await;
                // So few at times that it stops while the file is being closed.
                write(&storage, &ledger, random.usize(8..4000), seed + crash).await;
            }
        }
        disk = disk.after_crash(&mut random);
    }
    ledger.check(&*open(&disk, 1000).await).await;
}

/// Waits until changes can be made again.
async fn recovers(storage: &FileStorage, ledger: &Ledger) {
    let made = async {
        while ledger.create(storage, SessionKey::new(-1, 2), None).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, made).await.unwrap();
}

/// Lets the disk fail for a while, and looks at what is left when its machine crashes afterwards.
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
    assert_eq!(storage.has(&[kept]).await.unwrap(), [true], "what is on disk can be told");
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
    // With the process still running: nothing is put in order before the machine crashes.
    let crashed = disk.after_crash(&mut fastrand::Rng::with_seed(0));
    ledger.check(&*open(&crashed, 1000).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_waited_for() {
    outage(Fault::Full).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_fail_halfway_are_made_again() {
    outage(Fault::TornWrites).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_sync_failed_is_written_anew() {
    outage(Fault::Syncs).await;
}

/// Time is stopped for those who wait, and goes to what they wait for next.
#[tokio::test]
async fn a_disk_that_does_not_answer_is_given_ten_seconds() {
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
    assert_eq!(storage.has(&[kept]).await.unwrap(), [true], "what is on disk can be told");
    resume();

    disk.set_fault(None);
    recovers(&storage, &ledger).await;
    ledger.check(&storage).await;
    let crashed = disk.after_crash(&mut fastrand::Rng::with_seed(0));
    ledger.check(&*open(&crashed, 1000).await).await;
}

/// Expires leases for a moment.
async fn expire(storage: &FileStorage) {
    let _ = timeout(Duration::from_millis(50), storage.expire_leases()).await;
}

#[tokio::test]
async fn no_lease_ends_because_the_disk_was_out_of_reach() {
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

/// Whether the pages of a sync that failed are needed later depends on what was written when.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_sync_failed_is_not_relied_on() {
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
async fn endless_churn_takes_a_bounded_disk() {
    // Nothing given up, this churn takes 5 MB. Pages that are given up are reused one commit later, and what a commit takes
    // is up to how many changes happened to meet in it: the size settles within a range, and not on a number.
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

/// Waits until the storage reports `cause`, or that it can be changed. Nobody calls it meanwhile.
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
async fn an_idle_storage_notices_that_its_disk_fails_and_recovers() {
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
            assert_eq!(disk.len(), size, "{fault:?}: a probe has left something");
            storage.create(&[SessionKey::new(0, 1)], None).await.unwrap();
        });
    }
    cases.join_all().await;
}

#[tokio::test]
async fn a_refused_change_is_reported_at_once_with_its_cause() {
    let disk = Sim::default();
    let storage = open(&disk, 1000).await;
    disk.set_fault(Some(Fault::Full));
    let refused = storage.create(&[SessionKey::new(0, 1)], None).await.unwrap_err();
    let StorageError::Refused(refusal) = refused else { panic!("{refused}") };
    assert_eq!(refusal.cause, RefusalCause::DiskFull);
    assert_eq!(storage.writability().refusal(), Some(&refusal));
    // The change is still to be put on disk: nobody can be told whether it was made.
    let unknown = storage.has(&[SessionKey::new(0, 1)]).await.unwrap_err();
    assert!(matches!(unknown, StorageError::Unavailable(_)), "{unknown}");
    disk.set_fault(None);
    reports(&storage, None).await;
    assert_eq!(storage.has(&[SessionKey::new(0, 1)]).await.unwrap(), [true]);
}
