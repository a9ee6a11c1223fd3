//! The promises of streams as properties: random histories are played and compared with a model.

mod answers;
mod broken;
mod checker;
mod concurrent;
mod faulty;
mod file;
mod herd;
mod history;
mod live;
mod message;
mod misplaced;
mod model;
mod paced;
mod places;
mod races;
mod redis;
pub(crate) mod replica;
mod rollback;
mod segment;
mod takeover;
mod watcher;
mod wire;
mod world;

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use sessiond::{
    session::{DestroyReason, LeaseId, SessionChange},
    storage::{SessionStorage, memory::MemoryStorage},
    subject::{ResetReason, SubjectOptions},
};

use self::{
    checker::{Broken, Started, Trace},
    history::{Shape, Step, shape, steps},
    message::Content,
    world::{World, run},
};

/// Makes the storages that the properties are tested on.
pub(crate) trait Fixture: Sync {
    /// Whether the clock may be paused. It cannot be if the storage answers over a socket.
    const IS_PAUSED: bool;

    /// Makes an empty storage, of this shape as far as the storage supports it.
    fn storage(&self, shape: &Shape) -> impl Future<Output = Arc<dyn SessionStorage>>;

    /// Opens the storage as another replica.
    fn another(
        &self,
        storage: &Arc<dyn SessionStorage>,
        _shape: &Shape,
    ) -> impl Future<Output = Arc<dyn SessionStorage>> {
        std::future::ready(Arc::clone(storage))
    }

    /// Returns the storage that subjects use. A fixture may wrap it here to inject faults.
    fn seen(&self, storage: &Arc<dyn SessionStorage>) -> Arc<dyn SessionStorage> {
        Arc::clone(storage)
    }

    /// Returns the options of the subjects.
    fn subject_options(&self, shape: &Shape) -> SubjectOptions {
        shape.subject_options()
    }
}

struct Memory;

impl Fixture for Memory {
    const IS_PAUSED: bool = true;

    async fn storage(&self, shape: &Shape) -> Arc<dyn SessionStorage> {
        Arc::new(MemoryStorage::new(shape.storage_options()))
    }
}

/// Plays a history. Returns the promises that it broke, and what every stream received.
fn play<F: Fixture>(fixture: &F, shape: &Shape, steps: &[Step]) -> (Vec<Broken>, Vec<Trace>) {
    run(F::IS_PAUSED, async {
        let mut world = World::new(fixture, shape).await;
        for step in steps {
            world.play(step).await;
        }
        world.end().await
    })
}

/// Runs 256 cases, or the number in `PROPTEST_CASES`.
fn config() -> ProptestConfig {
    ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_stream_keeps_its_promises_in_random_histories(shape in shape(), steps in steps(1..120)) {
        let (broken, _) = play(&Memory, &shape, &steps);
        prop_assert!(broken.is_empty(), "{:#?}", broken);
    }
}

/// Counts what happened to the streams.
#[derive(Debug, Default)]
struct Counts {
    resets: HashMap<ResetReason, usize>,
    resumed: usize,
    events_in_snapshots: usize,
    /// Sessions that ended with an expired lease, as reported by streams without and with placements.
    expired: [usize; 2],
    /// The same for leases that lingered.
    lingered: [usize; 2],
    released: usize,
    moved: usize,
    moved_in: usize,
    moved_out: usize,
    moved_in_snapshots: usize,
    /// Moves in or out of the filtered leases during a snapshot.
    crossed_in_snapshots: usize,
    moved_after_resume: usize,
    leases_in_snapshots: usize,
}

impl Counts {
    fn add(&mut self, trace: &Trace) {
        let has_placements = trace.filter.has_placements();
        let mut in_snapshot = false;
        for message in &trace.messages {
            match &message.content {
                Content::Reset(reason) => *self.resets.entry(*reason).or_default() += 1,
                Content::Events(events) => {
                    let is_resumed = matches!(trace.started, Started::After { .. });
                    self.events_in_snapshots += usize::from(in_snapshot);
                    self.resumed += usize::from(is_resumed);
                    for event in events {
                        match event.change {
                            SessionChange::Destroyed(DestroyReason::LeaseExpired) => {
                                self.expired[usize::from(has_placements)] += 1;
                            }
                            SessionChange::Destroyed(DestroyReason::LeaseRevoked) => {
                                self.lingered[usize::from(has_placements)] += 1;
                            }
                            SessionChange::Destroyed(DestroyReason::Released) => self.released += 1,
                            SessionChange::Moved { previous } => {
                                let leases = &trace.filter.lease_ids;
                                let is_outside = |lease: Option<LeaseId>| {
                                    !leases.is_empty() && !lease.is_some_and(|lease| leases.contains(&lease))
                                };
                                self.moved += 1;
                                let (moved_in, moved_out) = (is_outside(previous), is_outside(event.lease));
                                self.moved_in += usize::from(moved_in);
                                self.moved_out += usize::from(moved_out);
                                self.crossed_in_snapshots += usize::from(in_snapshot && (moved_in || moved_out));
                                self.moved_in_snapshots += usize::from(in_snapshot);
                                self.moved_after_resume += usize::from(is_resumed);
                            }
                            _ => {}
                        }
                    }
                }
                Content::Snapshot(sessions) => {
                    in_snapshot = true;
                    self.leases_in_snapshots += sessions.iter().filter(|(_, lease)| lease.is_some()).count();
                }
                Content::Synced(_) => in_snapshot = false,
                _ => {}
            }
        }
    }
}

/// Guards the other properties: they would hold trivially if the histories left out what can go wrong.
#[test]
fn random_histories_cover_everything_that_can_happen_to_a_stream() {
    let mut runner = TestRunner::deterministic();
    let mut counts = Counts::default();
    for _ in 0..100 {
        let (shape, mut steps) = (shape(), steps(60..120)).new_tree(&mut runner).unwrap().current();
        // Without revokes that end a lease immediately, every session that ends with LEASE_REVOKED has lingered.
        steps.retain(|step| !matches!(step, Step::Revoke(_, Duration::ZERO)));
        play(&Memory, &shape, &steps).1.iter().for_each(|trace| counts.add(trace));
    }
    let Counts { resets, expired, lingered, .. } = &counts;
    let [cursor_expired, foreign, lagged] =
        [ResetReason::CursorExpired, ResetReason::CursorForeign, ResetReason::Lagged]
            .map(|reason| resets.get(&reason).copied().unwrap_or_default());
    let others = [
        counts.resumed,
        counts.events_in_snapshots,
        counts.released,
        counts.moved,
        counts.moved_in,
        counts.moved_out,
        counts.moved_in_snapshots,
        counts.crossed_in_snapshots,
        counts.moved_after_resume,
        counts.leases_in_snapshots,
    ];
    let all = [&[cursor_expired, foreign, lagged], &expired[..], &lingered[..], &others[..]].concat();
    assert!(all.iter().all(|count| *count > 0), "{counts:?}");
}
