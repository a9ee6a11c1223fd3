//! Records what callers and followers were told, and checks that a registry still agrees.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{
    session::{LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::{LogPoint, Position, SessionStorage, StorageError, file::FileStorage},
};

/// A record of the changes to some sessions. Each session is changed by one caller at a time.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<Books>>);

#[derive(Default)]
struct Books {
    /// Whether each session exists. `None` if a call to change it failed.
    exists: BTreeMap<SessionKey, Option<bool>>,
    /// The events that a follower received, from the first change on.
    received: Vec<SessionEvent>,
    /// The points that a follower reached.
    points: Vec<LogPoint>,
}

impl Ledger {
    pub(super) async fn create(
        &self,
        storage: &FileStorage,
        session: SessionKey,
        lease: Option<LeaseId>,
    ) -> Result<(), StorageError> {
        self.change(session, true, storage.create(&[session], lease)).await
    }

    pub(super) async fn destroy(&self, storage: &FileStorage, session: SessionKey) -> Result<(), StorageError> {
        self.change(session, false, storage.destroy(&[session], None)).await
    }

    async fn change(
        &self,
        session: SessionKey,
        exists: bool,
        call: impl Future<Output = Result<Vec<bool>, StorageError>>,
    ) -> Result<(), StorageError> {
        let before = self.0.lock().exists.insert(session, None).unwrap_or(Some(false));
        let changed = call.await?;
        if let Some(before) = before {
            assert_eq!(changed, [before != exists], "{session:?}");
        }
        self.0.lock().exists.insert(session, Some(exists));
        Ok(())
    }

    /// Follows the log until it is cancelled.
    pub(super) async fn follow(&self, storage: &FileStorage) {
        let registry_id = storage.log().await.unwrap().registry_id;
        let received = self.0.lock().received.len();
        let mut after = point(storage, received).await;
        loop {
            let changes = storage.changes_after(registry_id, 0, after, 100).await.unwrap();
            after = after.past(&changes);
            let mut books = self.0.lock();
            books.points.push(after);
            books.received.extend(changes.events);
        }
    }

    /// Checks that a registry agrees with what was acknowledged. Takes over its state where that was unknown.
    pub(super) async fn check(&self, storage: &FileStorage) {
        let sessions: Vec<SessionKey> = self.0.lock().exists.keys().copied().collect();
        let found = storage.has(&sessions).await.unwrap();
        let log = storage.log().await.unwrap();
        let held = log.partitions[0].clone();
        let (start, end) = (held.start.position, held.end.position);
        assert!(start <= end);

        let points = mem::take(&mut self.0.lock().points);
        for point in points {
            let mark = storage.marks(&[point.position]).await.unwrap()[0];
            let is_held = point.position >= held.start.position;
            assert!(mark == Some(point.mark) || (mark.is_none() && !is_held), "{point:?} now has the mark {mark:?}");
        }
        let mut books = self.0.lock().take();
        assert!(books.received.len() as u64 <= end.0, "followers received more events than the log has");
        let start = start.0 as usize;
        let mut events = Vec::new();
        let mut after = held.start;
        while after.position < end {
            let changes = storage.changes_after(log.registry_id, 0, after, 1000).await.unwrap();
            after = after.past(&changes);
            events.extend(changes.events);
        }
        let both = books.received.len().saturating_sub(start);
        assert!(events.starts_with(&books.received[books.received.len() - both..]), "the log has changed");
        // A placeholder stands for each change that was trimmed before a follower read it.
        let trimmed = SessionEvent::created(SessionKey::new(0, 0), None);
        books.received.resize(start, trimmed);
        books.received.extend(&events);

        let mut last = BTreeMap::new();
        for event in &events {
            if let SessionChange::Moved { .. } = event.change {
                continue;
            }
            let is_created = event.change == SessionChange::Created;
            assert_ne!(last.insert(event.session, is_created), Some(is_created), "{event:?} does not alternate");
        }
        let mut existing = BTreeSet::new();
        for (session, found) in sessions.into_iter().zip(found) {
            let acknowledged = books.exists.insert(session, Some(found)).flatten();
            assert!(
                acknowledged.is_none_or(|exists| exists == found),
                "{session:?}: acknowledged as existing: {acknowledged:?}, but found: {found}"
            );
            if let Some(logged) = last.get(&session) {
                assert_eq!(*logged, found, "{session:?}: the set and the log disagree");
            }
            existing.extend(found.then_some(session));
        }
        let mut read = BTreeSet::new();
        let all: Vec<u32> = (0..storage.layout().buckets).collect();
        let mut first = 0;
        while first < all.len() {
            let run =
                storage.read_buckets(log.registry_id, &[held.end], &all[first..], usize::MAX, false).await.unwrap();
            first += run.points.len();
            read.extend(run.sessions);
        }
        assert_eq!(read, existing);
        assert_eq!(storage.session_count().await.unwrap(), existing.len() as u64);
        books.points = vec![held.start, held.end];
        *self.0.lock() = books;
    }
}

/// Returns the point at a position of the log.
async fn point(storage: &FileStorage, position: usize) -> LogPoint {
    let position = Position(position as u64);
    let mark = storage.marks(&[position]).await.unwrap()[0].expect("the log reaches this position");
    LogPoint { position, mark }
}

impl Books {
    fn take(&mut self) -> Self {
        mem::take(self)
    }
}
