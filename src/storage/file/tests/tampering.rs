//! Other processes that tamper with the file while it is open.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::{
    open,
    sim::{Sim, Tampering},
};
use crate::{
    session::SessionKey,
    storage::{RefusalCause, SessionStorage, StorageError, file::FileStorage},
};

async fn is_lost(storage: &FileStorage) -> bool {
    let kept = storage.has(&[SessionKey::new(0, 0)]).await.unwrap();
    assert_eq!(kept, [true], "what was on disk can be read");
    storage.writability().refusal().is_some_and(|refusal| refusal.cause == RefusalCause::FileReplaced)
}

#[tokio::test]
async fn no_change_is_acknowledged_after_the_file_was_tampered_with() {
    for tampering in Tampering::ALL {
        for operations in 0..40 {
            let disk = Sim::default();
            let storage = open(&disk, 1000).await;
            storage.create(&[SessionKey::new(0, 0)], None).await.unwrap();
            disk.tamper_after(operations, "registry", tampering);
            let refused = async {
                for id in 1.. {
                    let is_late = disk.was_tampered_with();
                    match storage.create(&[SessionKey::new(0, id)], None).await {
                        Ok(_) => assert!(!is_late, "{tampering:?} after {operations} operations: acknowledged"),
                        Err(StorageError::Refused(refusal)) => return refusal,
                        Err(error) => panic!("{error}"),
                    }
                }
                unreachable!()
            };
            let refusal = timeout(Duration::from_secs(30), refused).await.unwrap();
            assert_eq!(
                refusal.cause,
                RefusalCause::FileReplaced,
                "{tampering:?} after {operations} operations: {refusal}"
            );
            assert!(is_lost(&storage).await);
            let refused = storage.create(&[SessionKey::new(1, 0)], None).await.unwrap_err();
            assert!(matches!(refused, StorageError::Refused(_)), "{refused}");
        }
    }
}

#[tokio::test]
async fn idle_storage_notices_tampering_and_does_not_write_to_the_file() {
    let mut cases = tokio::task::JoinSet::new();
    for tampering in Tampering::ALL {
        cases.spawn(async move {
            let disk = Sim::default();
            let storage = open(&disk, 1000).await;
            storage.create(&[SessionKey::new(0, 0)], None).await.unwrap();
            disk.tamper_after(0, "registry", tampering);
            let began = Instant::now();
            while !is_lost(&storage).await {
                assert!(began.elapsed() < Duration::from_secs(5), "{tampering:?} is not noticed");
                sleep(Duration::from_millis(10)).await;
            }
            let left = disk.content("registry");
            let refused = storage.create(&[SessionKey::new(0, 1)], None).await.unwrap_err();
            assert!(matches!(refused, StorageError::Refused(_)), "{refused}");
            assert_eq!(
                storage.has(&[SessionKey::new(0, 1)]).await.unwrap(),
                [false],
                "the change was not even started"
            );
            drop(storage);
            assert_eq!(disk.content("registry"), left, "{tampering:?}: the storage wrote to the file");
        });
    }
    cases.join_all().await;
}
