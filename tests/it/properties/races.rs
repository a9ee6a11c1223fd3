//! Known difficult races, each provoked on purpose.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sessiond::{
    proto::subscribe_request,
    service::WireEncoder,
    session::{LeaseId, SessionId, SessionKey},
    storage::{
        BucketRun, Changes, LeaseBuckets, LogError, LogExtent, LogPoint, Mark, Position, RegistryId, SessionStorage,
        StorageError, memory::MemoryStorage,
    },
    subject::{Cursor, Filter, ObserveOptions, ResetReason, SessionSubject, Start},
};
use tokio::{sync::watch, time::Instant};

use super::{
    Memory,
    checker::{Started, Trace},
    faulty::Tamper,
    history::{Shape, all_sessions},
    message::{Content, Message},
    model::{Model, Place},
    replica::Replica,
    watcher::Watcher,
    wire::WireStream,
    world::{World, foreign_cursor, run},
};
use crate::twisted::{Twist, Twisted};

pub(super) const SHAPE: Shape = Shape {
    buckets: 16,
    partitions: 1,
    storage_events: 1 << 16,
    retain_events: 1 << 16,
    retain_bytes: 1 << 30,
    replicas: 1,
};

/// More events than a mailbox holds.
const MORE_THAN_A_MAILBOX: usize = 2000;

fn session(n: usize) -> SessionKey {
    SessionKey::new(7, n as i64)
}

/// Matches only session `n`.
fn only(n: usize) -> Filter {
    Filter::default().session_ids([SessionId(n as i64)])
}

/// Starts a replica over a memory storage, and the model of that storage.
pub(super) async fn replica(shape: &Shape) -> (Replica, Model) {
    let storage: Arc<dyn SessionStorage> = Arc::new(MemoryStorage::new(shape.storage_options()));
    let model = Model::new(Arc::clone(&storage)).await;
    (Replica::start(storage, shape.subject_options(), true).await, model)
}

pub(super) async fn watch(replica: &Replica, model: &Model, start: Start, filter: &Filter) -> Watcher {
    let observer =
        replica.subject.observe(ObserveOptions::from_start(start.clone()).filter(filter.clone())).await.unwrap();
    let started = match start {
        Start::Now => Started::Now { before: model.ends(), after: model.ends() },
        Start::Snapshot => Started::Snapshot,
        Start::After(cursor) => Started::After { cursor: cursor.to_string(), is_retained: false },
        other => panic!("{other:?} is not known to this test"),
    };
    Watcher::new(observer, Trace::new(started, filter.clone()))
}

pub(super) fn resets(watcher: &Watcher) -> Vec<ResetReason> {
    let reset = |message: &Message| match message.content {
        Content::Reset(reason) => Some(reason),
        _ => None,
    };
    watcher.trace.messages.iter().filter_map(reset).collect()
}

/// Reads a watcher up to the last change, and judges everything it received.
pub(super) async fn judge(mut watcher: Watcher, model: &Model) {
    watcher.drain().await;
    watcher.trace.drained = true;
    let (trace, broken) = watcher.leave();
    assert_eq!(broken, []);
    assert_eq!(trace.judge(model), [], "{trace:?}");
}

#[test]
fn the_cursor_of_subscribed_leads_to_the_same_start() {
    run(true, async {
        // Snapshots may begin at any bucket.
        let (replica, model) = replica(&Shape { buckets: 1, ..SHAPE }).await;
        replica.subject.create(&[session(1)], None).await.unwrap();
        let starts = [Start::Now, Start::Snapshot, Start::After(foreign_cursor(1).await)];
        for start in starts {
            let mut first = watch(&replica, &model, start.clone(), &Filter::default()).await;
            assert_eq!(first.poll(), Some(Content::Subscribed), "{start:?}");
            let cursor = first.cursor().unwrap_or_else(|| panic!("{start:?} has no cursor"));
            let mut second = watch(&replica, &model, Start::After(cursor), &Filter::default()).await;
            assert_eq!(second.poll(), Some(Content::Subscribed), "{start:?}");
            assert_eq!(first.poll(), second.poll(), "{start:?}");
        }
    });
}

#[test]
fn subscribed_names_the_observed_registry_and_not_that_of_the_cursor() {
    run(true, async {
        let storage = Arc::new(MemoryStorage::new(SHAPE.storage_options()));
        let registry_id = storage.log().await.unwrap().registry_id.to_string();
        let subject = SessionSubject::start(storage, SHAPE.subject_options(), WireEncoder).await.unwrap();
        let subject = Arc::new(subject);
        let cursor = foreign_cursor(1).await.to_string();
        let trace = Trace::new(Started::After { cursor: cursor.clone(), is_retained: false }, Filter::default());
        let start = Some(subscribe_request::Start::Cursor(cursor));
        let second = Duration::from_secs(1);
        let mut wire = WireStream::open(&subject, start, second, trace, Tamper::Nothing).await;
        wire.read_until(Instant::now() + second / 2).await;
        let contents: Vec<_> = wire.trace.messages.iter().map(|message| message.content.clone()).collect();
        assert_eq!(contents, [Content::Subscribed, Content::Reset(ResetReason::CursorForeign), Content::Synced(0)]);
        assert_eq!(wire.registry_id, registry_id);
    });
}

/// A storage whose log is read only when the test allows it, and which answers later still.
#[derive(Debug)]
struct SlowLog {
    reads: watch::Sender<bool>,
    answers: watch::Sender<bool>,
}

#[async_trait]
impl Twist for SlowLog {
    async fn log(&self, truth: &dyn SessionStorage) -> Result<LogExtent, StorageError> {
        let mut gates = (self.reads.subscribe(), self.answers.subscribe());
        gates.0.wait_for(|open| *open).await.unwrap();
        let extent = truth.log().await;
        gates.1.wait_for(|open| *open).await.unwrap();
        extent
    }
}

#[test]
fn a_starting_observer_receives_exactly_the_changes_after_its_cursor() {
    run(true, async {
        let truth = Arc::new(MemoryStorage::new(SHAPE.storage_options()));
        let mut model = Model::new(truth.clone()).await;
        let open = || watch::Sender::new(true);
        let storage = Twisted::new(truth, SlowLog { reads: open(), answers: open() });
        let replica = Replica::start(storage.clone(), SHAPE.subject_options(), true).await;
        let replica = Arc::new(tokio::sync::Mutex::new(replica));

        storage.answers.send_replace(false);
        let observing = Arc::clone(&replica);
        let observing =
            tokio::spawn(
                async move { observing.lock().await.subject.observe(ObserveOptions::default()).await.unwrap() },
            );
        tokio::task::yield_now().await;
        storage.create(&[session(1)], None).await.unwrap();
        storage.create(&[session(2)], None).await.unwrap();
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        storage.answers.send_replace(true);
        let observer = observing.await.unwrap();
        let cursor = observer.cursor().unwrap().to_string();
        let started = Started::Now { before: vec![0], after: vec![2] };
        let mut watcher = Watcher::new(observer, Trace::new(started, Filter::default()));
        assert_eq!(watcher.poll(), Some(Content::Subscribed));
        storage.create(&[session(3)], None).await.unwrap();
        replica.lock().await.settle(&mut model).await;
        watcher.drain().await;
        let Place::After(places) = model.place(&cursor) else { panic!("{cursor} leads to no place") };
        let received = watcher.trace.messages.iter().filter_map(|message| match &message.content {
            Content::Events(events) => Some(events.clone()),
            _ => None,
        });
        assert_eq!(received.flatten().collect::<Vec<_>>(), model.expected(0, places[0], 3, &Filter::default()));
        judge(watcher, &model).await;
    });
}

#[test]
fn a_stream_from_a_cursor_ahead_of_its_replica_waits() {
    run(true, async {
        let shape = Shape { replicas: 2, partitions: 3, ..SHAPE };
        let mut world = World::new(&Memory, &shape).await;
        world.replicas[1].storage.let_follow(false);
        world.observe(0, Start::Now, &Filter::default(), Tamper::Nothing).await;
        for n in 0..9 {
            world.create(&[session(n)], None).await;
            world.settle(0).await;
            world.poll(0, 99).await;
            let cursor = world.cursor(0);
            for filter in [Filter::default(), only(n), only(n + 1)] {
                world.observe(1, Start::After(cursor.clone()), &filter, Tamper::Nothing).await;
            }
        }
        world.replicas[1].storage.let_follow(true);
        assert_eq!(world.finish().await, []);
    });
}

#[test]
fn snapshots_are_exact_while_their_sessions_keep_changing() {
    run(true, async {
        for partitions in [1, 3] {
            let mut world = World::new(&Memory, &Shape { partitions, ..SHAPE }).await;
            let all = all_sessions();
            for n in 0..200 {
                world.observe(0, Start::Snapshot, &Filter::default(), Tamper::Nothing).await;
                let some = &all[n % all.len()..];
                if n % 2 == 0 {
                    world.create(some, None).await;
                } else {
                    world.destroy(some, None).await;
                }
                if n % 5 == 0 {
                    world.settle(0).await;
                }
                // Polls the youngest few, so that each is polled one step in each state of the registry.
                for who in n.saturating_sub(20)..=n {
                    world.poll(who, 1).await;
                }
            }
            assert_eq!(world.finish().await, []);
        }
    });
}

#[test]
fn a_full_mailbox_falls_back_to_the_log_and_loses_nothing() {
    run(true, async {
        let (mut replica, mut model) = replica(&SHAPE).await;
        let mut watcher = watch(&replica, &model, Start::Now, &only(1)).await;
        watcher.drain().await;
        for _ in 0..MORE_THAN_A_MAILBOX / 2 {
            replica.subject.create(&[session(1), session(2)], None).await.unwrap();
            replica.subject.destroy(&[session(1), session(2)], None).await.unwrap();
            replica.settle(&mut model).await;
        }
        watcher.drain().await;
        // From here on, the mailbox delivers events again.
        replica.subject.create(&[session(1)], None).await.unwrap();
        replica.settle(&mut model).await;
        assert!(!watcher.is_idle());
        assert_eq!(resets(&watcher), []);
        judge(watcher, &model).await;
    });
}

#[test]
fn a_message_larger_than_a_mailbox_is_read_from_the_log() {
    run(true, async {
        let (mut replica, mut model) = replica(&SHAPE).await;
        let all = Filter::default().auth_key_ids([session(0).auth_key_id]);
        let mut watcher = watch(&replica, &model, Start::Now, &all).await;
        watcher.drain().await;
        let sessions: Vec<_> = (0..MORE_THAN_A_MAILBOX).map(session).collect();
        replica.subject.create(&sessions, None).await.unwrap();
        replica.settle(&mut model).await;
        assert!(!watcher.is_idle());
        watcher.drain().await;
        assert_eq!(resets(&watcher), []);
        judge(watcher, &model).await;
    });
}

#[test]
fn a_full_mailbox_and_a_trimmed_log_cause_one_reset() {
    run(true, async {
        let (mut replica, mut model) = replica(&Shape { retain_events: 64, ..SHAPE }).await;
        let mut watcher = watch(&replica, &model, Start::Now, &only(1)).await;
        watcher.drain().await;
        for _ in 0..MORE_THAN_A_MAILBOX / 2 {
            replica.subject.create(&[session(1)], None).await.unwrap();
            replica.subject.destroy(&[session(1)], None).await.unwrap();
            replica.settle(&mut model).await;
        }
        watcher.drain().await;
        assert_eq!(resets(&watcher), [ResetReason::Lagged]);
        judge(watcher, &model).await;
    });
}

/// The state of a stream when its subject is closed.
#[derive(Clone, Copy, Debug)]
enum At {
    Unopened,
    Subscribed,
    MidSnapshot,
    WaitingForTheStorage,
    Behind,
    Resting,
    AheadOfTheLog,
}

#[test]
fn closing_ends_a_stream_in_any_state_with_its_last_cursor() {
    use At::{AheadOfTheLog, Behind, MidSnapshot, Resting, Subscribed, Unopened, WaitingForTheStorage};
    let all = [Unopened, Subscribed, MidSnapshot, WaitingForTheStorage, Behind, Resting, AheadOfTheLog];
    for (at, filter) in all.into_iter().flat_map(|at| [(at, Filter::default()), (at, only(1))]) {
        run(true, async {
            let (mut replica, mut model) = replica(&SHAPE).await;
            replica.subject.create(&[session(1), session(2)], None).await.unwrap();
            replica.settle(&mut model).await;
            let start = match at {
                MidSnapshot | WaitingForTheStorage => Start::Snapshot,
                _ => Start::Now,
            };
            if let AheadOfTheLog = at {
                replica.storage.let_follow(false);
                replica.subject.destroy(&[session(1)], None).await.unwrap();
                model.catch_up().await;
            }
            let mut watcher = watch(&replica, &model, start, &filter).await;
            match at {
                Unopened => {}
                Subscribed => drop(watcher.poll()),
                MidSnapshot => while !matches!(watcher.poll(), Some(Content::Snapshot(_))) {},
                WaitingForTheStorage => {
                    replica.storage.let_read(false);
                    watcher.drain().await;
                }
                Resting | AheadOfTheLog => watcher.drain().await,
                Behind => {
                    watcher.drain().await;
                    replica.subject.destroy(&[session(1)], None).await.unwrap();
                    replica.settle(&mut model).await;
                }
            }
            replica.subject.close();
            assert!(!watcher.is_idle(), "a waiting stream ({at:?}) was not woken by the close");
            watcher.drain().await;
            assert!(watcher.is_over(), "{at:?}: {:?}", watcher.trace);
            assert_eq!(watcher.next().await, None);
            // Bucket placement is random, so the snapshot may have been read to its last bucket already. It then still
            // completes.
            let is_synced = watcher.trace.messages.iter().any(|message| matches!(message.content, Content::Synced(_)));
            let expected = match at {
                MidSnapshot | WaitingForTheStorage if !is_synced => None,
                _ => Some(Place::After(model.ends())),
            };
            assert_eq!(watcher.cursor().map(|cursor| model.place(&cursor.to_string())), expected, "{at:?}");
            watcher.trace.drained = expected.is_some();
            assert_eq!(watcher.trace.judge(&model), [], "{at:?}: {:?}", watcher.trace);
        });
    }
}

/// A storage that restarts as `next` when the test says so.
#[derive(Debug)]
struct Restarts {
    next: Arc<MemoryStorage>,
    restarted: watch::Sender<bool>,
}

impl Restarts {
    fn has(&self) -> bool {
        *self.restarted.borrow()
    }
}

#[async_trait]
impl Twist for Restarts {
    async fn log(&self, truth: &dyn SessionStorage) -> Result<LogExtent, StorageError> {
        if self.has() { self.next.log().await } else { truth.log().await }
    }

    async fn changes_after(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        partition: u32,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        if self.has() {
            return self.next.changes_after(registry_id, partition, after, limit).await;
        }
        let mut restarted = self.restarted.subscribe();
        tokio::select! {
            _ = restarted.changed() => Err(LogError::Restarted),
            changes = truth.changes_after(registry_id, partition, after, limit) => changes,
        }
    }

    async fn marks(
        &self,
        truth: &dyn SessionStorage,
        positions: &[Position],
    ) -> Result<Vec<Option<Mark>>, StorageError> {
        if self.has() { self.next.marks(positions).await } else { truth.marks(positions).await }
    }

    async fn buckets_under(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError> {
        let truth = if self.has() { &*self.next } else { truth };
        truth.buckets_under(registry_id, known, leases).await
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
        if self.has() {
            return self.next.read_buckets(registry_id, known, buckets, limit, with_leases).await;
        }
        truth.read_buckets(registry_id, known, buckets, limit, with_leases).await
    }
}

#[test]
fn a_restarted_storage_resets_streams_in_every_state() {
    run(true, async {
        // With one bucket, the sessions of both storages share it.
        let shape = Shape { buckets: 1, ..SHAPE };
        let storage = || Arc::new(MemoryStorage::new(shape.storage_options()));
        let (truth, next) = (storage(), storage());
        let mut model = Model::new(truth.clone()).await;
        let mut next_model = Model::new(next.clone()).await;
        let twist = Restarts { next: next.clone(), restarted: watch::Sender::new(false) };
        let storage = Twisted::new(truth, twist);
        let mut replica = Replica::start(storage.clone(), shape.subject_options(), true).await;
        replica.subject.create(&[session(1), session(2), session(3)], None).await.unwrap();
        // From here on, the replica waits for a change, and there is none.
        replica.settle(&mut model).await;

        let mut watchers = Vec::new();
        // A snapshot that has not begun becomes one of the new registry, and needs no reset.
        let placed = Filter::default().placements(true);
        for (start, polls) in [(Start::Now, 1..5), (Start::Snapshot, 2..6)] {
            for filter in [Filter::default(), only(1), placed.clone()] {
                for polls in polls.clone() {
                    let mut watcher = watch(&replica, &model, start.clone(), &filter).await;
                    (0..polls).for_each(|_| drop(watcher.poll()));
                    watchers.push(watcher);
                }
            }
        }
        next.create(&[session(1), session(4)], None).await.unwrap();
        let old = watchers[0].cursor().unwrap();
        storage.restarted.send_replace(true);
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        next.destroy(&[session(1)], None).await.unwrap();
        next_model.catch_up().await;
        let mut late = watch(&replica, &model, Start::After(old), &Filter::default()).await;
        late.drain().await;
        assert_eq!(resets(&late), [ResetReason::CursorForeign]);
        for mut watcher in watchers {
            watcher.drain().await;
            // The messages after the reset form a stream of the new registry.
            let mut after = watcher.trace.after_reset(ResetReason::StorageRestarted, next_model.registry());
            after.drained = true;
            assert_eq!(after.judge(&next_model), [], "{:?}", watcher.trace);
        }
    });
}

#[test]
fn an_idle_stream_is_woken_when_its_storage_restarts() {
    run(true, async {
        let shape = Shape { buckets: 1, ..SHAPE };
        let storage = || Arc::new(MemoryStorage::new(shape.storage_options()));
        let truth = storage();
        let mut model = Model::new(truth.clone()).await;
        // The new storage is empty, so no event wakes the stream.
        let twist = Restarts { next: storage(), restarted: watch::Sender::new(false) };
        let storage = Twisted::new(truth, twist);
        let mut replica = Replica::start(storage.clone(), shape.subject_options(), true).await;
        replica.subject.create(&[session(1)], None).await.unwrap();
        replica.settle(&mut model).await;
        let mut watchers = Vec::new();
        for filter in [Filter::default(), only(1)] {
            let mut watcher = watch(&replica, &model, Start::Now, &filter).await;
            watcher.drain().await;
            watchers.push(watcher);
        }
        storage.restarted.send_replace(true);
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        for mut watcher in watchers {
            assert!(!watcher.is_idle(), "{:?}", watcher.trace);
            watcher.drain().await;
            assert_eq!(resets(&watcher), [ResetReason::StorageRestarted]);
        }
    });
}

#[test]
fn a_cursor_resumes_exactly_as_long_as_its_events_are_retained() {
    const RETAINED: usize = 8;
    run(true, async {
        let (mut replica, mut model) = replica(&Shape { retain_events: RETAINED, ..SHAPE }).await;
        let mut watcher = watch(&replica, &model, Start::Now, &Filter::default()).await;
        let mut cursors = Vec::new();
        for n in 0..3 * RETAINED {
            replica.subject.create(&[session(n)], None).await.unwrap();
            replica.settle(&mut model).await;
            watcher.drain().await;
            cursors.push(watcher.cursor().unwrap());
            // Each change was published alone, so it is retained alone.
            for (age, cursor) in cursors.iter().rev().enumerate() {
                let mut resumed = watch(&replica, &model, Start::After(cursor.clone()), &Filter::default()).await;
                resumed.drain().await;
                let expected: &[_] = if age <= RETAINED { &[] } else { &[ResetReason::CursorExpired] };
                assert_eq!(resets(&resumed), expected, "{age} changes back");
                judge(resumed, &model).await;
            }
        }
    });
}

#[test]
fn ten_thousand_stuck_observers_delay_no_writer_and_reset_once_each() {
    const OBSERVERS: usize = 10_000;
    const SESSIONS: usize = 50;
    // 100,000 changes in total.
    const ROUNDS: usize = MORE_THAN_A_MAILBOX / 2;
    run(true, async {
        let (mut replica, mut model) = replica(&Shape { retain_events: 4096, ..SHAPE }).await;
        let mut watchers = Vec::new();
        for n in 0..OBSERVERS {
            let filter = if n % 2 == 0 { Filter::default() } else { only(n % SESSIONS) };
            let mut watcher = watch(&replica, &model, Start::Now, &filter).await;
            // Some observers are never polled, some wait for the log, and some for their mailboxes.
            if n % 4 > 1 {
                watcher.drain().await;
            }
            watchers.push(watcher);
        }
        let sessions: Vec<_> = (0..SESSIONS).map(session).collect();
        let first_began = Instant::now();
        for _ in 0..ROUNDS {
            let began = Instant::now();
            replica.subject.create(&sessions, None).await.unwrap();
            replica.subject.destroy(&sessions, None).await.unwrap();
            assert_eq!(began.elapsed(), Duration::ZERO, "the writer waited");
            replica.settle(&mut model).await;
            let stats = replica.subject.stats();
            assert!(stats.retained_events <= 4096, "{stats:?}");
            assert!(stats.retained_bytes <= 4096 * 64, "{stats:?}");
        }
        // The follower pauses for a millisecond under this many changes. Nothing else waits.
        assert!(first_began.elapsed() <= Duration::from_millis(ROUNDS as u64), "{:?}", first_began.elapsed());
        replica.subject.create(&sessions, None).await.unwrap();
        replica.settle(&mut model).await;
        for watcher in &mut watchers {
            watcher.drain().await;
            assert_eq!(resets(watcher), [ResetReason::Lagged]);
            let last = watcher.trace.messages.last().map(|message| &message.content);
            assert!(matches!(last, Some(Content::Synced(1 | 50))), "{:?}", watcher.trace);
        }
        drop(watchers);
        assert_eq!(replica.end().1, []);
    });
}

#[test]
fn malformed_cursors_are_refused() {
    run(true, async {
        let (replica, model) = replica(&SHAPE).await;
        let cursor = watch(&replica, &model, Start::Now, &Filter::default()).await.cursor().unwrap().to_string();
        assert_eq!(cursor.parse::<Cursor>().unwrap().to_string(), cursor);
        for at in 0..cursor.len() {
            let mut bent: Vec<_> = cursor.bytes().collect();
            bent[at] = if bent[at] == b'1' { b'2' } else { b'1' };
            let bent = String::from_utf8(bent).unwrap();
            assert!(bent.parse::<Cursor>().is_err(), "{bent:?} was accepted as a cursor");
            assert!(cursor[..at].parse::<Cursor>().is_err(), "{:?} was accepted as a cursor", &cursor[..at]);
        }
    });
}
