//! Copies of a file that are put back: their logs continue differently, with other marks.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use redb::ReadableTableMetadata;
use tokio::time::{sleep, timeout};

use super::{
    open,
    sim::{Fault, Sim},
};
use crate::{
    session::{SessionEvent, SessionKey},
    storage::{
        LogError, LogPoint, Mark, Position, SessionStorage, StorageError,
        file::{FileStorage, openings::OPENINGS, store::Store},
    },
};

async fn create(storage: &FileStorage, ids: std::ops::Range<i64>) {
    let sessions: Vec<_> = ids.map(|id| SessionKey::new(0, id)).collect();
    storage.create(&sessions, None).await.unwrap();
}

async fn mark(storage: &FileStorage, position: u64) -> Option<Mark> {
    storage.marks(&[Position(position)]).await.unwrap()[0]
}

/// Returns all changes of a log that still has its first one.
async fn changes(storage: &FileStorage, limit: usize) -> Vec<SessionEvent> {
    let log = storage.log().await.unwrap();
    let (mut after, end) = (log.partitions[0].start, log.partitions[0].end);
    let mut events = Vec::new();
    while after.position < end.position {
        let changes = storage.changes_after(log.registry_id, 0, after, limit).await.unwrap();
        after = after.past(&changes);
        assert_eq!(mark(storage, after.position.0).await, Some(after.mark));
        events.extend(changes.events);
    }
    assert_eq!(after, end);
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_with_the_same_mark_at_a_position_agree_up_to_it() {
    let seed = fastrand::u64(..1 << 32);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut disks = vec![Sim::default()];
    let mut known: HashMap<(u64, Mark), Vec<SessionEvent>> = HashMap::new();
    for _ in 0..150 {
        // One of the last few disks, so that some histories become long and others end where they branch.
        let recent = disks.len().saturating_sub(4);
        let disk = disks[random.usize(recent..disks.len())].copy();
        let storage = open(&disk, 1 << 16).await;
        for _ in 0..random.usize(..4) {
            let session = [SessionKey::new(0, random.i64(0..8))];
            if random.bool() {
                storage.create(&session, None).await.unwrap();
            } else {
                storage.destroy(&session, None).await.unwrap();
            }
        }
        let events = changes(&storage, random.usize(1..5)).await;
        for end in 0..=events.len() {
            let mark = mark(&storage, end as u64).await.expect("the log reaches this position");
            let agreed = known.entry((end as u64, mark)).or_insert_with(|| events[..end].to_vec());
            assert_eq!(agreed, &events[..end]);
        }
        assert_eq!(mark(&storage, events.len() as u64 + 1).await, None);
        disks.push(if random.bool() {
            drop(storage);
            disk
        } else {
            disk.after_crash(&mut random)
        });
    }
    let longest = known.keys().map(|(position, _)| *position as usize).max().unwrap_or(0);
    let branched = known.len() - longest;
    assert!(branched > 20, "too few histories branched: {branched} changes outside the longest, which has {longest}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reader_of_a_rolled_back_history_gets_an_error() {
    let disk = Sim::default();
    create(&*open(&disk, 1000).await, 0..10).await;
    let copy = disk.copy();
    let storage = open(&disk, 1000).await;
    create(&storage, 10..20).await;
    let log = storage.log().await.unwrap();
    let known = log.partitions[0].end;
    drop(storage);

    let storage = open(&copy, 1000).await;
    create(&storage, 20..100).await;
    let lost = storage.changes_after(log.registry_id, 0, known, 10).await;
    assert!(matches!(lost, Err(LogError::Restarted)), "{lost:?}");
    let lost = storage.read_buckets(log.registry_id, &[known], &[0], 10, false).await;
    assert!(matches!(lost, Err(LogError::Restarted)), "{lost:?}");
    let shared = LogPoint { position: Position(10), mark: mark(&storage, 10).await.unwrap() };
    storage.changes_after(log.registry_id, 0, shared, 10).await.unwrap();
    storage.read_buckets(log.registry_id, &[shared], &[0], 10, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openings_are_removed_with_the_changes_before_them() {
    let disk = Sim::default();
    let mut birth = None;
    for round in 0..12 {
        // An opening without changes leaves no row behind.
        drop(open(&disk, 100).await);
        let storage = open(&disk, 100).await;
        birth = birth.or(mark(&storage, 0).await);
        for part in 0..30 {
            let first = round * 3000 + part * 100;
            create(&storage, first..first + 100).await;
        }
        let held = storage.log().await.unwrap().partitions[0].clone();
        for position in [held.start.position.0, held.end.position.0 - 2999, held.end.position.0] {
            assert!(mark(&storage, position).await.is_some(), "{position} of {held:?}");
        }
    }
    let storage = open(&disk, 100).await;
    assert!(birth.is_some());
    assert_eq!(mark(&storage, 0).await, None, "the changes of the first opening are no longer held");
    drop(storage);
    let store = Store::open(Arc::new(disk), Path::new("registry"), 1).unwrap();
    let openings = store.read().unwrap().open_table(OPENINGS).unwrap().len().unwrap();
    assert!(openings <= 10, "{openings} of 26 openings are kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_put_back_during_a_disk_failure_is_not_written_to() {
    let disk = Sim::default();
    create(&*open(&disk, 1000).await, 0..10).await;
    let copy = disk.copy();
    let storage = open(&disk, 1000).await;
    create(&storage, 10..20).await;
    let session = [SessionKey::new(0, 20)];
    disk.set_fault(Some(Fault::Full));
    storage.create(&session, None).await.unwrap_err();
    disk.put_back(&copy);
    disk.set_fault(None);
    let refused = async {
        loop {
            match storage.create(&session, None).await.unwrap_err() {
                StorageError::Refused(refusal) if refusal.detail.contains("another file") => break,
                StorageError::Refused(_) => sleep(Duration::from_millis(5)).await,
                error => panic!("{error}"),
            }
        }
    };
    timeout(Duration::from_secs(30), refused).await.unwrap();
    drop(storage);
    let storage = open(&copy, 1000).await;
    assert_eq!(storage.log().await.unwrap().partitions[0].end.position, Position(10));
}
