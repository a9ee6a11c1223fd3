//! A storage that loses its newest changes and continues differently under the same registry id.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{
        BucketRun, Changes, LeaseBuckets, LogError, LogExtent, LogPoint, Mark, Position, RegistryId, SessionStorage,
        StorageError, memory::MemoryStorage,
    },
    subject::{Filter, ResetReason, Start},
};
use tokio::sync::watch;

use super::{
    history::Shape,
    message::Content,
    model::Model,
    races::{resets, watch},
    replica::Replica,
    watcher::Watcher,
    world::run,
};
use crate::twisted::{Twist, Twisted};

/// With one bucket, the sessions of both histories share it.
const SHAPE: Shape = Shape {
    buckets: 1,
    partitions: 1,
    storage_events: 1 << 16,
    retain_events: 1 << 16,
    retain_bytes: 1 << 30,
    replicas: 1,
};

/// The last position at which both histories agree.
const FORK: Position = Position(3);

const SHARED: Mark = Mark(1);
const LOST: Mark = Mark(2);
const NEXT: Mark = Mark(3);

/// Serves one history until it is rolled back, then the next one.
#[derive(Debug)]
struct RollsBack {
    next: Arc<MemoryStorage>,
    is_rolled_back: watch::Sender<bool>,
    /// Whether looked-up marks are returned. A lookup takes place before it waits for this.
    returns_marks: watch::Sender<bool>,
}

impl RollsBack {
    fn mark(&self, position: Position) -> Mark {
        match *self.is_rolled_back.borrow() {
            _ if position <= FORK => SHARED,
            false => LOST,
            true => NEXT,
        }
    }

    fn contains(&self, point: LogPoint) -> bool {
        self.mark(point.position) == point.mark
    }

    /// Checks that the log contains what the caller has read.
    async fn check(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
    ) -> Result<(), LogError> {
        let is_known = registry_id == truth.log().await?.registry_id && known.iter().all(|point| self.contains(*point));
        is_known.then_some(()).ok_or(LogError::Restarted)
    }

    fn storage<'a>(&'a self, truth: &'a dyn SessionStorage) -> &'a dyn SessionStorage {
        if *self.is_rolled_back.borrow() { &*self.next } else { truth }
    }
}

#[async_trait]
impl Twist for RollsBack {
    async fn log(&self, truth: &dyn SessionStorage) -> Result<LogExtent, StorageError> {
        let RegistryId(id) = truth.log().await?.registry_id;
        let mut extent = self.storage(truth).log().await?;
        extent.registry_id = RegistryId(id);
        for held in &mut extent.partitions {
            held.start.mark = self.mark(held.start.position);
            held.end.mark = self.mark(held.end.position);
        }
        Ok(extent)
    }

    async fn changes_after(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        if registry_id != truth.log().await?.registry_id {
            return Err(LogError::Restarted);
        }
        loop {
            let mut rolled_back = self.is_rolled_back.subscribe();
            if !self.contains(after) {
                return Err(LogError::Restarted);
            }
            let storage = self.storage(truth);
            let log = storage.log().await?;
            let inner = LogPoint { position: after.position, ..log.partitions[partition as usize].end };
            tokio::select! {
                _ = rolled_back.changed() => {}
                changes = storage.changes_after(log.registry_id, partition, inner, limit) => {
                    let mut changes = changes?;
                    changes.mark = self.mark(after.past(&changes).position);
                    return Ok(changes);
                }
            }
        }
    }

    async fn marks(
        &self,
        truth: &dyn SessionStorage,
        positions: &[Position],
    ) -> Result<Vec<Option<Mark>>, StorageError> {
        let mut marks = self.storage(truth).marks(positions).await?;
        for (mark, position) in marks.iter_mut().zip(positions) {
            *mark = mark.map(|_| self.mark(*position));
        }
        self.returns_marks.subscribe().wait_for(|returns| *returns).await.unwrap();
        Ok(marks)
    }

    async fn buckets_under(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError> {
        self.check(truth, registry_id, known).await?;
        let storage = self.storage(truth);
        let log = storage.log().await?;
        let known: Vec<_> = log.partitions.iter().map(|held| held.end).collect();
        storage.buckets_under(log.registry_id, &known, leases).await
    }

    async fn read_buckets(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        self.check(truth, registry_id, known).await?;
        let storage = self.storage(truth);
        let log = storage.log().await?;
        let known: Vec<_> = log.partitions.iter().map(|held| held.end).collect();
        storage.read_buckets(log.registry_id, &known, buckets, limit, with_leases).await
    }
}

fn session(n: u64) -> SessionKey {
    SessionKey::new(7, n as i64)
}

/// Creates a storage with the changes up to the fork.
async fn storage() -> Arc<Twisted<RollsBack>> {
    let truth = Arc::new(MemoryStorage::new(SHAPE.storage_options()));
    let next = Arc::new(MemoryStorage::new(SHAPE.storage_options()));
    for n in 0..FORK.0 {
        truth.create(&[session(n)], None).await.unwrap();
        next.create(&[session(n)], None).await.unwrap();
    }
    let twist = RollsBack { next, is_rolled_back: watch::Sender::new(false), returns_marks: watch::Sender::new(true) };
    Twisted::new(truth, twist)
}

/// Starts a process that serves the storage as it is now, and its model.
async fn serve(storage: &Arc<Twisted<RollsBack>>) -> (Replica, Model) {
    let model = Model::new(storage.clone()).await;
    (Replica::start(storage.clone(), SHAPE.subject_options(), true).await, model)
}

/// Checks what follows a stream's reset against the current registry.
async fn judge_after_reset(mut watcher: Watcher, model: &Model) {
    watcher.drain().await;
    let mut after = watcher.trace.after_reset(ResetReason::StorageRestarted, model.registry());
    after.drained = true;
    assert_eq!(after.judge(model), [], "{:?}", watcher.trace);
}

/// How a replica learns the new history.
#[derive(Clone, Copy, Debug)]
enum Follows {
    /// In one read, so that it knows only the mark at the end.
    AtOnce,
    /// One change at a time, so that it knows every mark.
    EachChange,
    /// Not at all, so that every cursor is ahead of what it has read.
    Nothing,
}

#[test]
fn a_cursor_from_a_lost_history_resets_however_long_the_new_history_is() {
    const LOST_CHANGES: u64 = 5;
    for follows in [Follows::AtOnce, Follows::EachChange, Follows::Nothing] {
        run(true, async {
            let storage = storage().await;
            let (mut replica, mut model) = serve(&storage).await;
            let mut watcher = watch(&replica, &model, Start::Now, &Filter::default()).await;
            let shared = watcher.cursor().unwrap();
            let mut cursors = Vec::new();
            for n in 10..10 + LOST_CHANGES {
                storage.create(&[session(n)], None).await.unwrap();
                replica.settle(&mut model).await;
                watcher.drain().await;
                cursors.push(watcher.cursor().unwrap());
            }
            drop((watcher, replica));
            storage.is_rolled_back.send_replace(true);

            let (mut replica, mut model) = serve(&storage).await;
            if let Follows::AtOnce | Follows::Nothing = follows {
                // The replica has followed the log up to the fork.
                replica.settle(&mut model).await;
                replica.storage.let_follow(false);
            }
            for n in 20..20 + 2 * LOST_CHANGES {
                storage.next.create(&[session(n)], None).await.unwrap();
                model.catch_up().await;
                replica.settle(&mut model).await;
            }
            if let Follows::AtOnce = follows {
                replica.storage.let_follow(true);
                replica.settle(&mut model).await;
            }
            let mut resumed = Vec::new();
            for cursor in cursors {
                let mut watcher = watch(&replica, &model, Start::After(cursor), &Filter::default()).await;
                watcher.drain().await;
                assert_eq!(resets(&watcher), [ResetReason::StorageRestarted], "{follows:?}");
                resumed.push(watcher);
            }
            let mut shared_watcher = watch(&replica, &model, Start::After(shared), &Filter::default()).await;
            shared_watcher.drain().await;
            replica.storage.let_follow(true);
            replica.settle(&mut model).await;
            for watcher in resumed {
                judge_after_reset(watcher, &model).await;
            }
            shared_watcher.drain().await;
            assert_eq!(resets(&shared_watcher), [], "both histories agree up to this place");
            shared_watcher.trace.drained = true;
            assert_eq!(shared_watcher.trace.judge(&model), [], "{follows:?}");
        });
    }
}

#[test]
fn a_rollback_resets_the_running_streams() {
    run(true, async {
        let storage = storage().await;
        let (mut replica, mut model) = serve(&storage).await;
        storage.create(&[session(10), session(11)], None).await.unwrap();
        replica.settle(&mut model).await;
        let mut watchers = Vec::new();
        let placed = Filter::default().placements(true);
        let plain = Filter::default();
        for (start, filter) in
            [(Start::Now, &plain), (Start::Snapshot, &plain), (Start::Now, &placed), (Start::Snapshot, &placed)]
        {
            let mut watcher = watch(&replica, &model, start, filter).await;
            watcher.drain().await;
            watchers.push(watcher);
        }
        let sessions: Vec<_> = (20..40).map(session).collect();
        storage.next.create(&sessions, None).await.unwrap();
        storage.is_rolled_back.send_replace(true);
        let mut model = Model::new(storage.clone()).await;
        replica.settle(&mut model).await;
        for watcher in watchers {
            judge_after_reset(watcher, &model).await;
        }
    });
}

#[test]
fn a_snapshot_during_a_rollback_waits_for_the_log() {
    run(true, async {
        let storage = storage().await;
        let (mut replica, mut model) = serve(&storage).await;
        storage.create(&[session(10), session(11)], None).await.unwrap();
        replica.settle(&mut model).await;
        replica.storage.let_read(false);
        let mut watcher = watch(&replica, &model, Start::Snapshot, &Filter::default()).await;
        watcher.drain().await;
        // The replica reads the storage before it reads the log.
        replica.storage.let_follow(false);
        let sessions: Vec<_> = (20..40).map(session).collect();
        storage.next.create(&sessions, None).await.unwrap();
        storage.is_rolled_back.send_replace(true);
        replica.storage.let_read(true);
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            watcher.drain().await;
            assert_eq!(watcher.trace.messages.len(), 1, "{:?}", watcher.trace);
        }
        replica.storage.let_follow(true);
        let mut model = Model::new(storage.clone()).await;
        replica.settle(&mut model).await;
        judge_after_reset(watcher, &model).await;
    });
}

#[test]
fn a_rollback_during_a_cursor_lookup_leads_to_a_reset() {
    run(true, async {
        let storage = storage().await;
        let (mut replica, mut model) = serve(&storage).await;
        storage.create(&[session(10)], None).await.unwrap();
        replica.settle(&mut model).await;
        replica.storage.let_follow(false);
        storage.create(&[session(11)], None).await.unwrap();
        model.catch_up().await;
        // The cursor is ahead of what the replica has followed, so only the storage knows the mark there.
        let cursor = watch(&replica, &model, Start::Now, &Filter::default()).await.cursor().unwrap();
        storage.returns_marks.send_replace(false);
        let looked_up = async {
            // The answer from the lost history is in flight while the replica moves on to the next one.
            tokio::task::yield_now().await;
            let sessions: Vec<_> = (20..40).map(session).collect();
            storage.next.create(&sessions, None).await.unwrap();
            storage.is_rolled_back.send_replace(true);
            replica.storage.let_follow(true);
            tokio::time::sleep(Duration::from_secs(1)).await;
            storage.returns_marks.send_replace(true);
        };
        let all = Filter::default();
        let (mut watcher, ()) = tokio::join!(watch(&replica, &model, Start::After(cursor), &all), looked_up);
        watcher.drain().await;
        assert_eq!(
            watcher.trace.messages[1].content,
            Content::Reset(ResetReason::StorageRestarted),
            "{:?}",
            watcher.trace
        );
        let mut model = Model::new(storage.clone()).await;
        replica.settle(&mut model).await;
        judge_after_reset(watcher, &model).await;
    });
}
