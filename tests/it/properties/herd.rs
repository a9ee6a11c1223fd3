//! Observers that take snapshots at the same time and share what is read.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use proptest::{collection::vec, prelude::*, strategy::ValueTree, test_runner::TestRunner};
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{BucketRun, LogError, LogPoint, RegistryId, SessionStorage, memory::MemoryStorage},
    subject::{Filter, RunCounts, Start},
};
use tokio::{sync::watch, time::timeout};

use super::{
    Fixture, Memory,
    concurrent::DEADLINE,
    history::{From, Shape, Step, all_sessions, change, filter, shape},
    message::{Content, Message},
    model::Model,
    play,
    races::{self, SHAPE, judge, resets, watch as observe},
    replica::Replica,
    watcher::Watcher,
    world::{World, run},
};
use crate::twisted::{Twist, Twisted};

/// Lets other tasks run before and after each read, so that observers find it in progress and receive it late.
#[derive(Debug, Default)]
struct Leisurely(AtomicUsize);

#[async_trait]
impl Twist for Leisurely {
    async fn read_buckets(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        let count = self.0.fetch_add(1, Ordering::Relaxed);
        pause(count % 3).await;
        let run = truth.read_buckets(registry_id, known, buckets, limit, with_leases).await;
        pause(count % 5).await;
        run
    }
}

/// Waits until other tasks have run so many times.
async fn pause(times: usize) {
    for _ in 0..times {
        tokio::spawn(std::future::ready(())).await.unwrap();
    }
}

/// Memory storages that take their time.
struct Slow;

impl Fixture for Slow {
    /// Its reads need other tasks to run.
    const IS_PAUSED: bool = false;

    async fn storage(&self, shape: &Shape) -> Arc<dyn SessionStorage> {
        Memory.storage(shape).await
    }

    fn seen(&self, storage: &Arc<dyn SessionStorage>) -> Arc<dyn SessionStorage> {
        Twisted::new(Arc::clone(storage), Leisurely::default())
    }
}

/// Many observers that join, leave and read at different moments of one scan while sessions change.
pub(super) fn herd() -> impl Strategy<Value = (Shape, Vec<Step>)> {
    let filter = prop_oneof![
        3 => Just(Filter::default()),
        3 => Just(Filter::default().placements(true)),
        2 => filter(),
    ];
    let step = prop_oneof![
        8 => (any::<usize>(), filter)
            .prop_map(|(replica, filter)| Step::Join { replica, from: From::Snapshot, filter }),
        40 => (any::<usize>(), 1..5usize).prop_map(|(who, updates)| Step::Poll { who, updates }),
        12 => change(),
        6 => (1..4usize).prop_map(Step::Run),
        2 => any::<usize>().prop_map(Step::Settle),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(replica, follows)| Step::LetFollow(replica, follows)),
        1 => any::<usize>().prop_map(Step::Leave),
        1 => any::<usize>().prop_map(Step::Restart),
    ];
    let sessions = Step::Create { sessions: all_sessions(), lease: None, only_from: None };
    (shape(), vec(step, 40..120)).prop_map(move |(shape, steps)| {
        let shape = Shape { buckets: shape.buckets + 8, ..shape };
        (shape, [vec![sessions.clone()], steps].concat())
    })
}

proptest! {
    #![proptest_config(super::config())]

    #[test]
    fn observers_that_share_a_snapshot_keep_their_promises((shape, steps) in herd()) {
        let (broken, _) = play(&Memory, &shape, &steps);
        prop_assert!(broken.is_empty(), "{:#?}", broken);
    }

    #[test]
    fn observers_that_share_slow_reads_keep_their_promises((shape, steps) in herd()) {
        let (broken, _) = play(&Slow, &shape, &steps);
        prop_assert!(broken.is_empty(), "{:#?}", broken);
    }
}

/// Guards the properties above: they would hold trivially if nothing was shared.
#[test]
fn random_herds_share_what_is_read() {
    let mut runner = TestRunner::deterministic();
    let (mut read, mut shared) = (0, 0);
    for _ in 0..50 {
        let (shape, steps) = herd().new_tree(&mut runner).unwrap().current();
        run(false, async {
            let mut world = World::new(&Slow, &shape).await;
            for step in &steps {
                world.play(step).await;
            }
            for replica in &world.replicas {
                let counts = replica.subject.stats().snapshot_runs;
                read += counts.read;
                shared += counts.shared;
            }
        });
    }
    println!("{read} runs were read, {shared} shared");
    assert!(shared > read / 4, "{read} runs were read, but only {shared} shared");
}

/// A replica over a memory storage with some sessions, which it has followed.
async fn replica(shape: &Shape) -> (Replica, Model) {
    let (mut replica, mut model) = races::replica(shape).await;
    replica.subject.create(&all_sessions(), None).await.unwrap();
    replica.settle(&mut model).await;
    (replica, model)
}

async fn join(replica: &Replica, model: &Model) -> Watcher {
    let mut watcher = observe(replica, model, Start::Snapshot, &Filter::default()).await;
    assert_eq!(watcher.poll(), Some(Content::Subscribed));
    watcher
}

fn is_synced(watcher: &Watcher) -> bool {
    matches!(watcher.trace.messages.last().unwrap().content, Content::Synced(_))
}

/// Reads up to the end of the snapshot, however long its reads take.
async fn read_until_synced(watcher: &mut Watcher) {
    while !is_synced(watcher) {
        timeout(DEADLINE, watcher.next()).await.unwrap();
    }
}

#[test]
fn each_bucket_is_read_once_for_all_observers_that_wait_for_it() {
    run(true, async {
        let (replica, model) = replica(&SHAPE).await;
        let before = replica.subject.stats().snapshot_runs;
        replica.storage.let_read(false);
        let mut watchers = Vec::new();
        for _ in 0..20 {
            let mut watcher = join(&replica, &model).await;
            assert_eq!(watcher.poll(), None);
            watchers.push(watcher);
        }
        replica.storage.let_read(true);
        for watcher in &mut watchers {
            read_until_synced(watcher).await;
        }
        let RunCounts { read, shared, .. } = replica.subject.stats().snapshot_runs;
        let (read, shared) = (read - before.read, shared - before.shared);
        assert!((1..=u64::from(SHAPE.buckets)).contains(&read), "{read} runs were read");
        assert_eq!(shared, 19 * read);
        for watcher in watchers {
            judge(watcher, &model).await;
        }
    });
}

#[test]
fn an_observer_that_stops_or_leaves_in_a_read_does_not_delay_the_others() {
    for leaves in [false, true] {
        run(true, async {
            let (replica, model) = replica(&SHAPE).await;
            replica.storage.let_read(false);
            let mut first = join(&replica, &model).await;
            assert_eq!(first.poll(), None);
            let mut second = join(&replica, &model).await;
            assert_eq!(second.poll(), None);
            // The first observer has begun the read, and is not polled from now on.
            let first = (!leaves).then_some(first);
            replica.storage.let_read(true);
            read_until_synced(&mut second).await;
            judge(second, &model).await;
            if let Some(first) = first {
                judge(first, &model).await;
            }
        });
    }
}

#[test]
fn an_observer_takes_what_was_read_before_it_joined_unless_something_has_changed() {
    run(true, async {
        let (replica, mut model) = replica(&SHAPE).await;
        let mut slow = join(&replica, &model).await;
        slow.poll();
        let read = || replica.subject.stats().snapshot_runs.read;
        let mut full = Vec::new();
        for (changes, is_read) in [(false, true), (false, false), (true, true), (true, true), (false, false)] {
            if changes {
                replica.subject.create(&[SessionKey::new(8, full.len() as i64)], None).await.unwrap();
                model.catch_up().await;
            }
            let before = read();
            let mut watcher = join(&replica, &model).await;
            for _ in 0..4 {
                watcher.drain().await;
                tokio::task::yield_now().await;
            }
            assert!(is_synced(&watcher));
            let reads = read() - before;
            assert_eq!(reads > 1, is_read, "{reads} runs were read");
            full.push(watcher);
        }
        full.push(slow);
        for watcher in full {
            judge(watcher, &model).await;
        }
    });
}

/// Reads at once, but answers only when the test allows it.
#[derive(Debug)]
struct LateAnswers(watch::Sender<bool>);

#[async_trait]
impl Twist for LateAnswers {
    async fn read_buckets(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        let run = truth.read_buckets(registry_id, known, buckets, limit, with_leases).await;
        self.0.subscribe().wait_for(|answers| *answers).await.unwrap();
        run
    }
}

/// An observer that followed the log during a read would skip changes that the read does not contain.
#[test]
fn an_observer_does_not_move_on_while_a_read_takes_long() {
    run(true, async {
        let ids = all_sessions().into_iter().map(|session| session.auth_key_id);
        for filter in [Filter::default(), Filter::default().auth_key_ids(ids)] {
            let shape = Shape { retain_events: 40, ..SHAPE };
            let truth = Arc::new(MemoryStorage::new(shape.storage_options()));
            let mut model = Model::new(truth.clone()).await;
            let storage = Twisted::new(truth, LateAnswers(watch::Sender::new(true)));
            let mut replica = Replica::start(storage.clone(), shape.subject_options(), true).await;
            replica.subject.create(&all_sessions(), None).await.unwrap();
            replica.settle(&mut model).await;
            let mut watcher = observe(&replica, &model, Start::Snapshot, &filter).await;
            assert_eq!(watcher.poll(), Some(Content::Subscribed));
            storage.0.send_replace(false);
            // More changes than a half of what is retained.
            for session in all_sessions().iter().cycle().take(30) {
                assert_eq!(watcher.poll(), None);
                if replica.subject.destroy(&[*session], None).await.unwrap() == [false] {
                    replica.subject.create(&[*session], None).await.unwrap();
                }
                replica.settle(&mut model).await;
            }
            storage.0.send_replace(true);
            read_until_synced(&mut watcher).await;
            judge(watcher, &model).await;
        }
    });
}

/// The runs that others have read need no changes. The observer must follow the log all the same, also if the log has
/// many small chunks from a quiet time and then few large ones.
#[test]
fn an_observer_that_takes_what_others_have_read_does_not_fall_behind() {
    // The snapshot takes longer than any change is retained.
    for (quiet, storm) in [(0, 5), (30, 9)] {
        run(true, async {
            let shape = Shape { retain_events: 40, ..SHAPE };
            let (mut replica, mut model) = replica(&shape).await;
            for id in 0..quiet {
                replica.subject.create(&[SessionKey::new(99, id)], None).await.unwrap();
                replica.settle(&mut model).await;
            }
            let mut slow = join(&replica, &model).await;
            slow.poll();
            let mut first = join(&replica, &model).await;
            first.drain().await;
            let mut late = join(&replica, &model).await;
            for n in 0.. {
                match late.poll() {
                    Some(Content::Synced(_)) => break,
                    None if late.is_idle() => break,
                    Some(Content::Snapshot(_)) => {}
                    _ => continue,
                }
                let sessions: Vec<_> = (0..storm).map(|id| SessionKey::new(100 + n, id)).collect();
                replica.subject.create(&sessions, None).await.unwrap();
                model.catch_up().await;
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
            }
            judge(first, &model).await;
            late.drain().await;
            assert_eq!(resets(&late), [], "after {quiet} changes one by one");
            judge(late, &model).await;
            drop(slow);
        });
    }
}

/// A client that subscribes after its change was answered expects it in the snapshot, even if the replica has not
/// followed the log to that change.
#[test]
fn a_snapshot_contains_what_was_answered_before_it_began() {
    run(true, async {
        let (replica, mut model) = replica(&SHAPE).await;
        let mut slow = join(&replica, &model).await;
        slow.poll();
        let mut first = join(&replica, &model).await;
        replica.storage.let_follow(false);
        let count =
            |watcher: &Watcher| watcher.trace.messages.iter().map(|part| sessions_in(part).len()).sum::<usize>();
        while count(&first) < all_sessions().len() {
            first.poll();
        }
        // Both are in a snapshot, so what the first one has read is kept for the other.
        let new = SessionKey::new(7, 77);
        replica.subject.create(&[new], None).await.unwrap();
        model.catch_up().await;
        let mut late = join(&replica, &model).await;
        late.drain().await;
        assert!(!is_synced(&late), "it waits for the change");
        replica.storage.let_follow(true);
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        late.drain().await;
        assert!(is_synced(&late));
        assert_eq!(count(&late), all_sessions().len() + 1);
        for watcher in [slow, first, late] {
            judge(watcher, &model).await;
        }
    });
}

fn sessions_in(message: &Message) -> &[(SessionKey, Option<LeaseId>)] {
    match &message.content {
        Content::Snapshot(sessions) => sessions,
        _ => &[],
    }
}
