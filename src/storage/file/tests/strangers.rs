//! What others do to the file while it is open.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::{
    open,
    sim::{Deed, Sim},
};
use crate::{
    session::SessionKey,
    storage::{RefusalCause, SessionStorage, StorageError, file::FileStorage},
};

async fn is_lost(storage: &FileStorage) -> bool {
    let kept = storage.has(&[SessionKey::new(0, 0)]).await.unwrap();
    assert_eq!(kept, [true], "what was on disk can be told");
    storage.writability().refusal().is_some_and(|refusal| refusal.cause == RefusalCause::FileReplaced)
}

#[tokio::test]
async fn no_change_is_answered_after_the_file_was_taken_away_or_changed() {
    for deed in Deed::ALL {
        for operations in 0..40 {
            let disk = Sim::default();
            let storage = open(&disk, 1000).await;
            storage.create(&[SessionKey::new(0, 0)], None).await.unwrap();
            disk.meddle_after(operations, "registry", deed);
            let refused = async {
                for id in 1.. {
                    let is_late = disk.has_meddled();
                    match storage.create(&[SessionKey::new(0, id)], None).await {
                        Ok(_) => assert!(!is_late, "{deed:?} after {operations} operations: answered"),
                        Err(StorageError::Refused(refusal)) => return refusal,
                        Err(error) => panic!("{error}"),
                    }
                }
                unreachable!()
            };
            let refusal = timeout(Duration::from_secs(30), refused).await.unwrap();
            assert_eq!(refusal.cause, RefusalCause::FileReplaced, "{deed:?} after {operations} operations: {refusal}");
            assert!(is_lost(&storage).await);
            let refused = storage.create(&[SessionKey::new(1, 0)], None).await.unwrap_err();
            assert!(matches!(refused, StorageError::Refused(_)), "{refused}");
        }
    }
}

#[tokio::test]
async fn an_idle_storage_notices_that_its_file_was_taken_away_and_leaves_alone_what_is_there() {
    let mut cases = tokio::task::JoinSet::new();
    for deed in Deed::ALL {
        cases.spawn(async move {
            let disk = Sim::default();
            let storage = open(&disk, 1000).await;
            storage.create(&[SessionKey::new(0, 0)], None).await.unwrap();
            disk.meddle_after(0, "registry", deed);
            let began = Instant::now();
            while !is_lost(&storage).await {
                assert!(began.elapsed() < Duration::from_secs(5), "{deed:?} is not noticed");
                sleep(Duration::from_millis(10)).await;
            }
            let left = disk.content("registry");
            let refused = storage.create(&[SessionKey::new(0, 1)], None).await.unwrap_err();
            assert!(matches!(refused, StorageError::Refused(_)), "{refused}");
            assert_eq!(storage.has(&[SessionKey::new(0, 1)]).await.unwrap(), [false], "it was not even begun");
            drop(storage);
            assert_eq!(disk.content("registry"), left, "{deed:?}: something was written there");
        });
    }
    cases.join_all().await;
}
