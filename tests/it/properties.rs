//! The promises of a stream as properties: random histories with a model beside them.

mod broken;
mod checker;
mod concurrent;
mod faulty;
mod file;
mod history;
mod live;
mod model;
mod races;
mod redis;
pub(crate) mod replica;
mod rollback;
mod segment;
mod twisted;
mod watcher;
mod wire;
mod world;

use std::{future::Future, sync::Arc};

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use sessiond::{
    session::{DestroyReason, SessionChange},
    storage::{SessionStorage, memory::MemoryStorage},
    subject::{ResetReason, SubjectOptions},
};

use self::{
    checker::{Broken, Started, Told, Trace},
    history::{Shape, Step, shape, steps},
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

/// A property of streams to which nothing happens would hold of any.
#[test]
fn histories_lead_streams_to_all_that_can_happen_to_them() {
    let mut runner = TestRunner::deterministic();
    let mut resets = [0; ResetReason::ALL.len()];
    let (mut resumed, mut events_in_snapshots, mut ended_leases) = (0, 0, 0);
    for _ in 0..100 {
        let (shape, steps) = (shape(), steps(60..120)).new_tree(&mut runner).unwrap().current();
        for trace in play(&Memory, &shape, &steps).1 {
            let mut in_snapshot = false;
            for (told, _) in &trace.told {
                match told {
                    Told::Reset(reason) => resets[*reason as usize] += 1,
                    Told::Events(events) => {
                        let by_lease = SessionChange::Destroyed(DestroyReason::LeaseExpired);
                        ended_leases += events.iter().filter(|event| event.change == by_lease).count();
                        events_in_snapshots += usize::from(in_snapshot);
                        resumed += usize::from(matches!(trace.started, Started::After { .. }));
                    }
                    _ => {}
                }
                in_snapshot = matches!(told, Told::Snapshot(_)) || in_snapshot && !matches!(told, Told::Synced(_));
            }
        }
    }
    let [expired, foreign, lagged, _] = resets;
    for count in [expired, foreign, lagged, resumed, events_in_snapshots, ended_leases] {
        assert!(count > 0, "{resets:?}, {resumed}, {events_in_snapshots}, {ended_leases}");
    }
}
