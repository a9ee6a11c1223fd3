//! A storage that loses its newest changes and goes on differently, under the same registry id.

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
    model::Model,
    races::{resets, watch},
    replica::Replica,
    told::Told,
    twisted::{Twist, Twisted},
    watcher::Watcher,
    world::run,
};

/// With one bucket the sessions of both histories are in the same.
const SHAPE: Shape = Shape {
    buckets: 1,
    partitions: 1,
    storage_events: 1 << 16,
    retain_events: 1 << 16,
    retain_bytes: 1 << 30,
    replicas: 1,
};

/// The position up to which both histories agree.
const FORK: Position = Position(3);

const SHARED: Mark = Mark(1);
const LOST: Mark = Mark(2);
const NEXT: Mark = Mark(3);

/// One history until it is rolled back, then the next.
#[derive(Debug)]
struct RollsBack {
    next: Arc<MemoryStorage>,
    is_rolled_back: watch::Sender<bool>,
    /// Whether marks are told: they are looked up before that.
    tells_marks: watch::Sender<bool>,
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

    /// Whether the log contains what the caller has read.
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
        self.tells_marks.subscribe().wait_for(|tells| *tells).await.unwrap();
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

/// A storage with the changes up to the fork.
async fn storage() -> Arc<Twisted<RollsBack>> {
    let truth = Arc::new(MemoryStorage::new(SHAPE.storage_options()));
    let next = Arc::new(MemoryStorage::new(SHAPE.storage_options()));
    for n in 0..FORK.0 {
        truth.create(&[session(n)], None).await.unwrap();
        next.create(&[session(n)], None).await.unwrap();
    }
    let twist = RollsBack { next, is_rolled_back: watch::Sender::new(false), tells_marks: watch::Sender::new(true) };
    Twisted::new(truth, twist)
}

/// A process that serves the storage as it is now, and the model beside it.
async fn serve(storage: &Arc<Twisted<RollsBack>>) -> (Replica, Model) {
    let model = Model::new(storage.clone()).await;
    (Replica::start(storage.clone(), SHAPE.subject_options(), true).await, model)
}

/// Holds what follows the reset of a stream to what the registry is now.
async fn judge_after_reset(mut watcher: Watcher, model: &Model) {
    watcher.drain().await;
    let mut after = watcher.trace.after_reset(ResetReason::StorageRestarted, model.registry());
    after.drained = true;
    assert_eq!(after.judge(model), [], "{:?}", watcher.trace);
}

/// How a replica gets to know the new history.
#[derive(Clone, Copy, Debug)]
enum Follows {
    /// In one read, so that it knows but the mark at its end.
    AtOnce,
    /// Change by change, so that it knows each mark.
    EachChange,
    /// Not at all: whatever is asked for lies ahead of what it has read.
    Nothing,
}

#[test]
fn a_cursor_from_a_history_that_was_rolled_back_gives_a_reset_however_far_the_new_one_has_come() {
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
            storage.twist.is_rolled_back.send_replace(true);

            let (mut replica, mut model) = serve(&storage).await;
            if let Follows::AtOnce | Follows::Nothing = follows {
                // It has followed the log up to the fork.
                replica.settle(&mut model).await;
                replica.storage.twist.let_follow(false);
            }
            for n in 20..20 + 2 * LOST_CHANGES {
                storage.twist.next.create(&[session(n)], None).await.unwrap();
                model.catch_up().await;
                replica.settle(&mut model).await;
            }
            if let Follows::AtOnce = follows {
                replica.storage.twist.let_follow(true);
                replica.settle(&mut model).await;
            }
            let mut resumed = Vec::new();
            for cursor in cursors {
                let mut watcher = watch(&replica, &model, Start::After(cursor), &Filter::default()).await;
                watcher.drain().await;
                assert_eq!(resets(&watcher), [ResetReason::StorageRestarted], "{follows:?}");
                resumed.push(watcher);
            }
            let mut goes_on = watch(&replica, &model, Start::After(shared), &Filter::default()).await;
            goes_on.drain().await;
            replica.storage.twist.let_follow(true);
            replica.settle(&mut model).await;
            for watcher in resumed {
                judge_after_reset(watcher, &model).await;
            }
            goes_on.drain().await;
            assert_eq!(resets(&goes_on), [], "both histories agree up to this place");
            goes_on.trace.drained = true;
            assert_eq!(goes_on.trace.judge(&model), [], "{follows:?}");
        });
    }
}

#[test]
fn a_storage_that_is_rolled_back_resets_the_streams_that_run() {
    run(true, async {
        let storage = storage().await;
        let (mut replica, mut model) = serve(&storage).await;
        storage.create(&[session(10), session(11)], None).await.unwrap();
        replica.settle(&mut model).await;
        let mut watchers = Vec::new();
        let placed = Filter { placements: true, ..Filter::default() };
        let plain = Filter::default();
        for (start, filter) in
            [(Start::Now, &plain), (Start::Snapshot, &plain), (Start::Now, &placed), (Start::Snapshot, &placed)]
        {
            let mut watcher = watch(&replica, &model, start, filter).await;
            watcher.drain().await;
            watchers.push(watcher);
        }
        let sessions: Vec<_> = (20..40).map(session).collect();
        storage.twist.next.create(&sessions, None).await.unwrap();
        storage.twist.is_rolled_back.send_replace(true);
        let mut model = Model::new(storage.clone()).await;
        replica.settle(&mut model).await;
        for watcher in watchers {
            judge_after_reset(watcher, &model).await;
        }
    });
}

#[test]
fn a_snapshot_of_a_history_that_was_rolled_back_waits_until_the_log_says_so() {
    run(true, async {
        let storage = storage().await;
        let (mut replica, mut model) = serve(&storage).await;
        storage.create(&[session(10), session(11)], None).await.unwrap();
        replica.settle(&mut model).await;
        replica.storage.twist.let_read(false);
        let mut watcher = watch(&replica, &model, Start::Snapshot, &Filter::default()).await;
        watcher.drain().await;
        // The storage is read before the log is.
        replica.storage.twist.let_follow(false);
        let sessions: Vec<_> = (20..40).map(session).collect();
        storage.twist.next.create(&sessions, None).await.unwrap();
        storage.twist.is_rolled_back.send_replace(true);
        replica.storage.twist.let_read(true);
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            watcher.drain().await;
            assert_eq!(watcher.trace.told.len(), 1, "{:?}", watcher.trace);
        }
        replica.storage.twist.let_follow(true);
        let mut model = Model::new(storage.clone()).await;
        replica.settle(&mut model).await;
        judge_after_reset(watcher, &model).await;
    });
}

#[test]
fn a_history_that_is_rolled_back_while_a_cursor_is_looked_up_is_not_gone_on_with() {
    run(true, async {
        let storage = storage().await;
        let (mut replica, mut model) = serve(&storage).await;
        storage.create(&[session(10)], None).await.unwrap();
        replica.settle(&mut model).await;
        replica.storage.twist.let_follow(false);
        storage.create(&[session(11)], None).await.unwrap();
        model.catch_up().await;
        // It lies ahead of what the replica has followed, so only the storage knows the mark there.
        let cursor = watch(&replica, &model, Start::Now, &Filter::default()).await.cursor().unwrap();
        storage.twist.tells_marks.send_replace(false);
        let looked_up = async {
            // The answer of the history that is lost is on its way while the replica goes on to the next one.
            tokio::task::yield_now().await;
            let sessions: Vec<_> = (20..40).map(session).collect();
            storage.twist.next.create(&sessions, None).await.unwrap();
            storage.twist.is_rolled_back.send_replace(true);
            replica.storage.twist.let_follow(true);
            tokio::time::sleep(Duration::from_secs(1)).await;
            storage.twist.tells_marks.send_replace(true);
        };
        let all = Filter::default();
        let (mut watcher, ()) = tokio::join!(watch(&replica, &model, Start::After(cursor), &all), looked_up);
        watcher.drain().await;
        assert_eq!(watcher.trace.told[1].told, Told::Reset(ResetReason::StorageRestarted), "{:?}", watcher.trace);
        let mut model = Model::new(storage.clone()).await;
        replica.settle(&mut model).await;
        judge_after_reset(watcher, &model).await;
    });
}
