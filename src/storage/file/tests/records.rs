//! The records of changes in the file's log.

use std::{path::Path, time::Duration};

use redb::{ReadableDatabase as _, ReadableTable as _};

use super::{open, sim::Sim};
use crate::{
    session::{DestroyReason, SessionEvent, SessionKey},
    storage::{
        SessionStorage,
        file::store::{LOG, LOG_HEADER, open_database},
        journal::{ReadRecord, Records},
    },
};

#[tokio::test]
async fn each_change_is_recorded_with_the_lease_of_its_session() {
    let disk = Sim::default();
    let storage = open(&disk, 1000).await;
    let [a, b] = [0, 1].map(|id| SessionKey::new(0, id));
    let first = storage.grant_lease(Duration::from_secs(60), "first").await.unwrap();
    let second = storage.grant_lease(Duration::from_secs(60), "second").await.unwrap();
    storage.create(&[a], None).await.unwrap();
    storage.create(&[a], Some(first)).await.unwrap();
    storage.create(&[a, b], Some(second)).await.unwrap();
    storage.destroy(&[a], None).await.unwrap();
    storage.destroy(&[b], Some(second)).await.unwrap();
    storage.create(&[a], None).await.unwrap();
    storage.destroy(&[a], None).await.unwrap();
    storage.create(&[b], Some(first)).await.unwrap();
    storage.revoke_lease(first).await.unwrap();
    drop(storage);

    let (_, database) = open_database(&disk, Path::new("registry")).unwrap();
    let log = database.begin_read().unwrap().open_table(LOG).unwrap();
    let mut found = Vec::new();
    for row in log.iter().unwrap() {
        let (_, row) = row.unwrap();
        let records = Records::new(&row.value()[LOG_HEADER..]).map(Result::unwrap);
        found.extend(records.filter(|record| *record != ReadRecord::Lease));
    }
    let created = |session, lease| ReadRecord::Event(SessionEvent::created(session, lease));
    let destroyed = |session, reason, lease| ReadRecord::Event(SessionEvent::destroyed(session, reason, lease));
    let moved = |session, lease, previous| ReadRecord::Event(SessionEvent::moved(session, lease, previous));
    let [first, second] = [first, second].map(Some);
    let wanted = [
        created(a, None),
        moved(a, first.unwrap(), None),
        moved(a, second.unwrap(), first),
        created(b, second),
        destroyed(a, DestroyReason::Requested, second),
        destroyed(b, DestroyReason::Released, second),
        created(a, None),
        destroyed(a, DestroyReason::Requested, None),
        created(b, first),
        destroyed(b, DestroyReason::LeaseRevoked, first),
    ];
    assert_eq!(found, wanted);
}
