//! Explores a model with stateright and prints counterexamples.

use std::{
    collections::BTreeSet,
    env,
    fmt::{Debug, Write},
    hash::Hash,
    time::Instant,
};

use stateright::{Checker, HasDiscoveries, Model, Property};

/// A promise of the contract, in words.
pub(crate) type Promise = &'static str;

/// A situation that the model must be able to reach: its name, and how to recognize it.
pub(crate) type Reachable<State> = (&'static str, fn(&State) -> bool);

/// A part of the protocol as a state machine.
pub(crate) trait Protocol: Clone + Send + Sync + 'static {
    type State: Clone + PartialEq + Hash + Debug + Send + Sync + 'static;
    type Action: Copy + PartialEq + Debug;

    /// What must hold in every state.
    const PROMISES: &'static [Promise];

    /// What must happen in some state. Otherwise a model that does nothing would keep every promise.
    const REACHABLE: &'static [Reachable<Self::State>];

    /// Returns the first state.
    fn start(&self) -> Self::State;

    /// Adds every action that can happen next.
    fn actions(&self, state: &Self::State, actions: &mut Vec<Self::Action>);

    /// Returns the state after an action, or the promise that the action breaks.
    fn next(&self, state: &Self::State, action: Self::Action) -> Result<Self::State, Promise>;
}

/// A protocol as a stateright model. A broken promise is a final state.
#[derive(Clone)]
struct Checked<P>(P);

impl<P: Protocol> Model for Checked<P> {
    type State = Result<P::State, Promise>;
    type Action = P::Action;

    fn init_states(&self) -> Vec<Self::State> {
        vec![Ok(self.0.start())]
    }

    fn actions(&self, state: &Self::State, actions: &mut Vec<Self::Action>) {
        if let Ok(state) = state {
            self.0.actions(state, actions);
        }
    }

    fn next_state(&self, state: &Self::State, action: Self::Action) -> Option<Self::State> {
        state.as_ref().ok().map(|state| self.0.next(state, action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        // stateright accepts only plain functions, which cannot capture their promise.
        let kept = [is_kept::<P, 0>, is_kept::<P, 1>, is_kept::<P, 2>, is_kept::<P, 3>];
        let more = [is_kept::<P, 4>, is_kept::<P, 5>, is_kept::<P, 6>, is_kept::<P, 7>];
        let seen = [is_seen::<P, 0>, is_seen::<P, 1>, is_seen::<P, 2>, is_seen::<P, 3>];
        assert!(P::PROMISES.len() <= kept.len() + more.len() && P::REACHABLE.len() <= seen.len());
        let promises = P::PROMISES.iter().zip(kept.into_iter().chain(more));
        let reachable = P::REACHABLE.iter().zip(seen);
        promises
            .map(|(promise, kept)| Property::always(promise, kept))
            .chain(reachable.map(|((name, _), seen)| Property::sometimes(name, seen)))
            .collect()
    }
}

fn is_kept<P: Protocol, const N: usize>(_: &Checked<P>, state: &Result<P::State, Promise>) -> bool {
    state.as_ref().err() != P::PROMISES.get(N)
}

fn is_seen<P: Protocol, const N: usize>(_: &Checked<P>, state: &Result<P::State, Promise>) -> bool {
    state.as_ref().is_ok_and(|state| P::REACHABLE.get(N).is_some_and(|(_, is_seen)| is_seen(state)))
}

/// Returns the long models if `SESSIOND_MODEL=long`, otherwise the short ones.
pub(crate) fn sized<P>(short: Vec<P>, long: Vec<P>) -> Vec<P> {
    if env::var("SESSIOND_MODEL").is_ok_and(|form| form == "long") { long } else { short }
}

/// Asserts that the protocol keeps every promise in every reachable state.
pub(crate) fn holds<P: Protocol>(protocol: &P) {
    let began = Instant::now();
    let finish = HasDiscoveries::AnyFailures;
    let checker = Checked(protocol.clone()).checker().finish_when(finish).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    eprintln!("{states} states, up to {depth} actions deep, in {:?}", began.elapsed());
    for promise in P::PROMISES {
        if let Some(trace) = trace(&checker, promise) {
            panic!("broken: {promise}\n{trace}");
        }
    }
    for (name, _) in P::REACHABLE {
        assert!(checker.discovery(name).is_some(), "never reached: {name}");
    }
}

/// Asserts that the protocol breaks a promise, and prints how.
pub(crate) fn breaks<P: Protocol>(protocol: &P, promise: Promise) {
    assert!(P::PROMISES.contains(&promise));
    let began = Instant::now();
    let finish = HasDiscoveries::AnyOf(BTreeSet::from([promise]));
    let checker = Checked(protocol.clone()).checker().finish_when(finish).spawn_bfs().join();
    let states = checker.unique_state_count();
    let Some(trace) = trace(&checker, promise) else { panic!("kept in {states} states: {promise}") };
    eprintln!("broken after {states} states, in {:?}: {promise}\n{trace}", began.elapsed());
}

/// Returns the shortest way to break a promise, one action per line, if there is one.
fn trace<P: Protocol>(checker: &impl Checker<Checked<P>>, promise: Promise) -> Option<String> {
    let path = checker.discovery(promise)?;
    let mut text = String::new();
    for (n, action) in path.into_actions().into_iter().enumerate() {
        let _ = writeln!(text, "{:3}. {action:?}", n + 1);
    }
    Some(text)
}
