//! Breaks each promise on purpose, and expects the checker to report that promise and no other.

use std::{collections::BTreeSet, sync::Arc};

use sessiond::{
    session::SessionKey,
    storage::SessionStorage,
    subject::{Filter, Start, SubjectOptions},
};

use super::{
    Fixture, Memory,
    checker::{Broken, Promise},
    faulty::{DelaysWriters, LogsAhead, ReadsUnderOldPositions, SwapsChanges, Tamper},
    history::Shape,
    world::{World, run},
};
use crate::twisted::{Twist, Twisted};

pub(super) const SHAPE: Shape =
    Shape { buckets: 1, partitions: 1, storage_events: 4096, retain_events: 64, retain_bytes: 1 << 20, replicas: 1 };

pub(super) const A: SessionKey = SessionKey::new(0, 1);
pub(super) const B: SessionKey = SessionKey::new(0, 2);
pub(super) const C: SessionKey = SessionKey::new(0, 3);

/// Subjects over faulty views of memory storages. The model reads the storages themselves.
pub(super) struct Faulty<T>(pub(super) fn() -> T);

impl<T: Twist> Fixture for Faulty<T> {
    const IS_PAUSED: bool = true;

    async fn storage(&self, shape: &Shape) -> Arc<dyn SessionStorage> {
        Memory.storage(shape).await
    }

    fn seen(&self, storage: &Arc<dyn SessionStorage>) -> Arc<dyn SessionStorage> {
        Twisted::new(Arc::clone(storage), (self.0)())
    }
}

/// Subjects that retain more than the shape allows.
struct Hoarding;

impl Fixture for Hoarding {
    const IS_PAUSED: bool = true;

    async fn storage(&self, shape: &Shape) -> Arc<dyn SessionStorage> {
        Memory.storage(shape).await
    }

    fn subject_options(&self, _: &Shape) -> SubjectOptions {
        SubjectOptions::default()
    }
}

/// Creates and destroys two sessions while one observer watches from the start and another takes a snapshot in the
/// middle. `tamper` changes what both receive.
async fn short_history(fixture: &impl Fixture, tamper: Tamper) -> Vec<Broken> {
    let all = Filter::default();
    let mut world = World::new(fixture, &SHAPE).await;
    world.observe(0, Start::Now, &all, tamper).await;
    world.create(&[A], None).await;
    world.destroy(&[A], None).await;
    world.settle(0).await;
    world.poll(0, 9).await;
    world.create(&[B, A], None).await;
    world.settle(0).await;
    world.observe(0, Start::Snapshot, &all, tamper).await;
    world.poll(0, 9).await;
    world.poll(1, 1).await;
    world.create(&[C], None).await;
    // The snapshot is ahead of what the subject has followed.
    world.poll(1, 1).await;
    world.settle(0).await;
    world.destroy(&[B], None).await;
    world.settle(0).await;
    world.poll(0, 9).await;
    world.poll(1, 9).await;
    world.create(&[B], None).await;
    world.settle(0).await;
    world.finish().await
}

/// An observer leaves and resumes from a cursor `back` messages before the one that the checker expects.
async fn resumed_elsewhere(back: isize) -> Vec<Broken> {
    let all = Filter::default();
    let mut world = World::new(&Memory, &SHAPE).await;
    world.observe(0, Start::Now, &all, Tamper::Nothing).await;
    let mut cursors = Vec::new();
    for session in [A, B, C] {
        world.create(&[session], None).await;
        world.settle(0).await;
        world.poll(0, 9).await;
        cursors.push(Start::After(world.cursor(0)));
    }
    drop(world.leave(0));
    let given = cursors[(1 - back) as usize].clone();
    world.observe_as(0, cursors[1].clone(), given, &all, Tamper::Nothing).await;
    world.poll(0, 1).await;
    world.create(&[SessionKey::new(0, 4)], None).await;
    world.finish().await
}

pub(super) fn promises(broken: &[Broken]) -> Vec<Promise> {
    broken.iter().map(|broken| broken.promise).collect::<BTreeSet<_>>().into_iter().collect()
}

fn tampered(tamper: Tamper) -> Vec<Promise> {
    promises(&run(true, short_history(&Memory, tamper)))
}

fn faulty<T: Twist>(twist: fn() -> T) -> Vec<Promise> {
    promises(&run(true, short_history(&Faulty(twist), Tamper::Nothing)))
}

#[test]
fn a_registry_without_faults_keeps_every_promise() {
    assert_eq!(tampered(Tamper::Nothing), []);
}

#[test]
fn swapped_events_break_ordered() {
    assert_eq!(tampered(Tamper::SwapEvents), [Promise::Ordered]);
    assert_eq!(faulty(|| SwapsChanges), [Promise::Ordered]);
}

#[test]
fn repeated_events_break_unique() {
    assert_eq!(tampered(Tamper::RepeatEvents), [Promise::Unique]);
    assert_eq!(promises(&run(true, resumed_elsewhere(1))), [Promise::Unique], "across a resume");
}

#[test]
fn lost_events_break_reliable() {
    assert_eq!(tampered(Tamper::LoseEvents), [Promise::Reliable]);
    assert_eq!(faulty(|| LogsAhead), [Promise::Reliable]);
}

#[test]
fn snapshots_that_differ_from_the_registry_break_exact() {
    for tamper in [Tamper::LoseFromSnapshot, Tamper::RepeatInSnapshot, Tamper::MiscountSynced] {
        assert_eq!(tampered(tamper), [Promise::Exact], "{tamper:?}");
    }
    assert_eq!(faulty(|| ReadsUnderOldPositions), [Promise::Exact]);
}

#[test]
fn cursors_that_lead_elsewhere_break_resumable() {
    for tamper in [Tamper::StaleCursors, Tamper::LoseCursors, Tamper::CursorsInSnapshot] {
        assert_eq!(tampered(tamper), [Promise::Resumable], "{tamper:?}");
    }
    assert_eq!(promises(&run(true, resumed_elsewhere(-1))), [Promise::Resumable]);
    assert_eq!(promises(&run(true, resumed_elsewhere(0))), []);
}

#[test]
fn delayed_writers_and_excess_retention_break_bounded() {
    assert_eq!(faulty(|| DelaysWriters), [Promise::Bounded]);
    let broken = run(true, async {
        let mut world = World::new(&Hoarding, &SHAPE).await;
        for _ in 0..SHAPE.retain_events {
            world.create(&[A], None).await;
            world.destroy(&[A], None).await;
            world.settle(0).await;
        }
        world.finish().await
    });
    assert_eq!(promises(&broken), [Promise::Bounded]);
}
