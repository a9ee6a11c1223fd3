//! Random histories in which Redis fails at random moments: it takes permissions away, runs out of memory, loses keys,
//! cuts connections, or changes its clock. After a change fails, either the session is as before or its event is in the
//! log.
//!
//! `SESSIOND_TEST_FAILING` sets how many histories each test plays.

mod mirror;
mod story;
mod trouble;
mod world;

use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};

use self::{
    story::{Action, GROUPS, SESSIONS},
    trouble::{Servers, Trouble},
    world::World,
};
use super::server::is_installed;
use crate::long::number;

/// A call by one group through one replica.
#[derive(Clone, Debug)]
struct Call {
    replica: usize,
    action: Action,
}

/// Concurrent calls: at most one by each group.
type Move = Vec<Option<Call>>;

/// A fault, with the calls made during and after it.
#[derive(Clone, Debug)]
struct Episode {
    trouble: Trouble,
    /// The fault begins this many microseconds after the first calls.
    delay: u64,
    moves: Vec<Move>,
    /// Calls made after the fault has ended.
    calm: Vec<Move>,
}

fn action() -> impl Strategy<Value = Action> {
    let some = || vec(0..SESSIONS, 1..=SESSIONS);
    let lease = || prop_oneof![1 => Just(None), 2 => (0..2usize).prop_map(Some)];
    prop_oneof![
        6 => (some(), lease()).prop_map(|(sessions, lease)| Action::Create { sessions, lease }),
        5 => (some(), lease()).prop_map(|(sessions, lease)| Action::Destroy { sessions, lease }),
        2 => Just(Action::Grant),
        1 => any::<usize>().prop_map(Action::KeepAlive),
        2 => any::<usize>().prop_map(Action::Revoke),
    ]
}

fn moves(count: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<Move>> {
    let call = (0..2usize, action()).prop_map(|(replica, action)| Call { replica, action });
    vec(vec(prop::option::weighted(0.8, call), GROUPS), count)
}

/// `clock` says whether the clock can be set.
fn trouble(clock: bool) -> BoxedStrategy<Trouble> {
    let general = prop_oneof![
        6 => select(trouble::COMMANDS).prop_map(Trouble::Forbid),
        3 => Just(Trouble::Full),
        4 => (select(trouble::KEYS), 0..3u32).prop_map(|(key, partition)| Trouble::Lose(key, partition)),
        2 => Just(Trouble::Cut),
        2 => (20..500u64).prop_map(Trouble::Stop),
    ];
    if clock {
        let set = select(&[-600, 600, -3, 3][..]).prop_map(Trouble::SetClock);
        prop_oneof![5 => general, 1 => set].boxed()
    } else {
        general.boxed()
    }
}

fn history(clock: bool) -> impl Strategy<Value = Vec<Episode>> {
    let episode = (trouble(clock), 0..3000u64, moves(1..=3), moves(0..=2));
    let episode = episode.prop_map(|(trouble, delay, moves, calm)| Episode { trouble, delay, moves, calm });
    vec(episode, 2..=5)
}

fn play(servers: &Servers, partitions: u32, cases: u32) {
    let cases = number("SESSIOND_TEST_FAILING", cases);
    let config = Config { cases, max_shrink_iters: 12, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&history(servers.has_clock()), |episodes| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let played = runtime.block_on(async {
            let mut world = World::new(servers, partitions).await;
            let played = world.play(&episodes).await;
            servers.recover();
            played
        });
        prop_assert!(played.is_ok(), "{}", played.unwrap_err());
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_failed_change_is_undone_or_logged() {
    if let Some(servers) = Servers::single() {
        play(&servers, 1, 4);
    }
}

#[test]
fn a_failed_change_across_partitions_is_undone_or_logged() {
    if let Some(servers) = Servers::single() {
        play(&servers, 3, 4);
    }
}

#[test]
fn a_failed_change_in_a_cluster_is_undone_or_logged() {
    if is_installed() {
        play(&Servers::cluster(), 3, 3);
    }
}
