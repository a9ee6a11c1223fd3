//! The promises of a stream as properties: random histories with a model beside them.

mod answers;
mod broken;
mod checker;
mod concurrent;
mod faulty;
mod file;
mod held;
mod history;
mod live;
mod message;
mod misplaced;
mod model;
mod places;
mod races;
mod redis;
pub(crate) mod replica;
mod rollback;
mod segment;
mod takeover;
mod twisted;
mod watcher;
mod wire;
mod world;

use std::{future::Future, sync::Arc, time::Duration};

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
    /// Whether the clock may be paused: not where a storage answers over a socket.
    const IS_PAUSED: bool;

    /// A storage with nothing in it, of that shape as far as it has one.
    fn storage(&self, shape: &Shape) -> impl Future<Output = Arc<dyn SessionStorage>>;

    /// The storage as another replica has opened it.
    fn another(
        &self,
        storage: &Arc<dyn SessionStorage>,
        _shape: &Shape,
    ) -> impl Future<Output = Arc<dyn SessionStorage>> {
        std::future::ready(Arc::clone(storage))
    }

    /// What the subjects see of that storage: faults come in between.
    fn seen(&self, storage: &Arc<dyn SessionStorage>) -> Arc<dyn SessionStorage> {
        Arc::clone(storage)
    }

    /// The bounds that the subjects get.
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

/// What a history breaks of the promises, and what every stream of it was told.
fn play<F: Fixture>(fixture: &F, shape: &Shape, steps: &[Step]) -> (Vec<Broken>, Vec<Trace>) {
    run(F::IS_PAUSED, async {
        let mut world = World::new(fixture, shape).await;
        for step in steps {
            world.play(step).await;
        }
        world.end().await
    })
}

/// 256 cases, or as many as `PROPTEST_CASES` says.
fn config() -> ProptestConfig {
    ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_stream_of_a_history_keeps_its_promises(shape in shape(), steps in steps(1..120)) {
        let (broken, _) = play(&Memory, &shape, &steps);
        prop_assert!(broken.is_empty(), "{:#?}", broken);
    }
}

/// How often something happened to a stream.
#[derive(Debug, Default)]
struct Counts {
    resets: [usize; ResetReason::ALL.len()],
    resumed: usize,
    events_in_snapshots: usize,
    /// Sessions that ended with their leases, as streams with and without placements are told.
    expired: [usize; 2],
    lingered: [usize; 2],
    released: usize,
    moved: usize,
    moved_in: usize,
    moved_out: usize,
    moved_in_snapshots: usize,
    /// In or out of a part.
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
                Content::Reset(reason) => self.resets[*reason as usize] += 1,
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

/// A property of streams to which nothing happens would hold of any.
#[test]
fn histories_lead_streams_to_all_that_can_happen_to_them() {
    let mut runner = TestRunner::deterministic();
    let mut counts = Counts::default();
    for _ in 0..100 {
        let (shape, mut steps) = (shape(), steps(60..120)).new_tree(&mut runner).unwrap().current();
        // What ends with a lease that was revoked has lingered.
        steps.retain(|step| !matches!(step, Step::Revoke(_, Duration::ZERO)));
        play(&Memory, &shape, &steps).1.iter().for_each(|trace| counts.add(trace));
    }
    let Counts { resets, expired, lingered, .. } = &counts;
    let [cursor_expired, foreign, lagged, _] = *resets;
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
