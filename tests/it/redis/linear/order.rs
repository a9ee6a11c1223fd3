//! Checks whether some order of the calls on one session explains their answers.

use std::collections::HashSet;

/// The number of a lease within a history. 0 stands for no lease.
pub(super) type Lease = u8;

/// A call on the session.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Create(Lease),
    /// A create under the first lease that takes the session only from the second one.
    Take(Lease, Lease),
    Has,
    Lookup,
    Destroy(Lease),
}

/// The answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) yes: bool,
    /// The lease that the session is under, if the answer says so.
    pub(super) lease: Option<Lease>,
}

/// The lease of an existing session (0 for none), or None if the session does not exist.
type State = Option<Lease>;

/// A call, with its start and end by a clock that all callers share. A failed call has no answer. If it takes effect at
/// all, it does so before any call that begins after its end.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) action: Action,
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) answer: Option<Answer>,
}

impl Action {
    /// Returns the answer in this state, and the state that follows.
    fn apply(self, state: State) -> (Answer, State) {
        let (yes, then) = match (self, state) {
            (Self::Has | Self::Lookup, _) => (state.is_some(), state),
            (Self::Create(lease) | Self::Take(lease, _), None) => (true, Some(lease)),
            // A create without a lease leaves the session's lease unchanged.
            (Self::Create(0), Some(_)) => (false, state),
            (Self::Create(lease), Some(_)) => (false, Some(lease)),
            (Self::Take(lease, from), Some(held)) if held == 0 || held == from => (false, Some(lease)),
            (Self::Take(..), Some(_)) => (false, state),
            (Self::Destroy(_), None) => (false, None),
            (Self::Destroy(lease), Some(held)) if lease == 0 || lease == held => (true, None),
            (Self::Destroy(_), Some(_)) => (false, state),
        };
        (Answer { yes, lease: then }, then)
    }
}

/// Whether some order of the calls explains all answers. This is Wing and Gong's search with Lowe's memoization: no
/// state is examined twice.
pub(super) fn is_linearizable(history: &[Call]) -> bool {
    assert!(history.len() <= 128, "each call needs a bit of a u128");
    let set_of = |is_in: &dyn Fn(&Call) -> bool| {
        let some = history.iter().enumerate().filter(|(_, call)| is_in(call));
        some.fold(0u128, |set, (n, _)| set | 1 << n)
    };
    let answered = set_of(&|call| call.answer.is_some());
    // For each call, the calls that failed before it began. They can no longer take effect after it has.
    let failed_before: Vec<u128> =
        history.iter().map(|call| set_of(&|other| other.answer.is_none() && other.end < call.begin)).collect();
    let mut seen = HashSet::new();
    let mut open = vec![(0u128, None)];
    while let Some((done, state)) = open.pop() {
        if done & answered == answered {
            return true;
        }
        if !seen.insert((done, state)) {
            continue;
        }
        let left = || history.iter().enumerate().filter(|(n, _)| done >> n & 1 == 0);
        // A call that began after another one was answered cannot come before it.
        let first_end = left().filter(|(_, call)| call.answer.is_some()).map(|(_, call)| call.end).min();
        for (n, call) in left().filter(|(_, call)| first_end.is_none_or(|end| call.begin < end)) {
            let (answer, then) = call.action.apply(state);
            let fits =
                |given: Answer| given.yes == answer.yes && (given.lease.is_none() || given.lease == answer.lease);
            if call.answer.is_none_or(fits) {
                open.push((done | 1 << n | failed_before[n], then));
            }
        }
    }
    false
}

fn call(action: Action, begin: u64, end: u64, answer: Option<Answer>) -> Call {
    Call { action, begin, end, answer }
}

const YES: Option<Answer> = Some(Answer { yes: true, lease: None });
const NO: Option<Answer> = Some(Answer { yes: false, lease: None });

/// The answer of a call that reports the session's lease. `yes` is true if it created the session or found it.
fn under(yes: bool, lease: Lease) -> Option<Answer> {
    Some(Answer { yes, lease: Some(lease) })
}

#[test]
fn a_takeover_moves_a_session_only_from_the_named_lease() {
    let history = |from, answer, found| {
        [
            call(Action::Create(1), 0, 1, YES),
            call(Action::Take(2, from), 2, 3, answer),
            call(Action::Lookup, 4, 5, found),
        ]
    };
    for (from, holder) in [(1, 2), (0, 1), (2, 1)] {
        assert!(is_linearizable(&history(from, under(false, holder), under(true, holder))), "from {from}");
        let other = 3 - holder;
        assert!(!is_linearizable(&history(from, under(false, other), under(true, other))), "from {from}");
        assert!(!is_linearizable(&history(from, under(false, holder), under(true, other))), "a stale lookup");
    }
    // Only one of two takeovers from the same lease succeeds.
    let both = |answers: [Option<Answer>; 2]| {
        [
            call(Action::Create(0), 0, 1, YES),
            call(Action::Take(1, 0), 2, 5, answers[0]),
            call(Action::Take(2, 0), 3, 4, answers[1]),
        ]
    };
    assert!(is_linearizable(&both([under(false, 2), under(false, 2)])));
    assert!(is_linearizable(&both([under(false, 1), under(false, 1)])));
    assert!(!is_linearizable(&both([under(false, 1), under(false, 2)])));
}

#[test]
fn only_one_of_two_concurrent_creates_can_create_a_session() {
    let create = Action::Create(0);
    assert!(!is_linearizable(&[call(create, 0, 2, YES), call(create, 1, 3, YES)]));
    assert!(is_linearizable(&[call(create, 0, 2, YES), call(create, 1, 3, NO)]));
}

#[test]
fn a_session_disappears_only_if_a_call_destroys_it() {
    let stale = [call(Action::Create(0), 0, 9, YES), call(Action::Has, 1, 2, YES), call(Action::Has, 3, 4, NO)];
    assert!(!is_linearizable(&stale));
    // A failed call explains the answer only if it began before.
    let failed = |begin| call(Action::Destroy(0), begin, begin + 1, None);
    assert!(is_linearizable(&[&stale[..], &[failed(2)]].concat()));
    assert!(!is_linearizable(&[&stale[..], &[failed(5)]].concat()));
}

#[test]
fn a_failed_call_takes_effect_before_later_calls_or_never() {
    let failed = |end| call(Action::Destroy(0), 2, end, None);
    let history = |end, first, second| {
        [
            call(Action::Create(0), 0, 1, YES),
            failed(end),
            call(Action::Has, 4, 5, first),
            call(Action::Has, 6, 7, second),
        ]
    };
    for (first, second) in [(YES, YES), (NO, NO)] {
        assert!(is_linearizable(&history(3, first, second)), "{first:?}, {second:?}");
    }
    assert!(!is_linearizable(&history(3, YES, NO)), "the destroy took effect late");
    assert!(is_linearizable(&history(5, YES, NO)), "the destroy had not failed yet");
    // A call does not take effect before it began.
    let early = [call(Action::Create(0), 0, 1, YES), call(Action::Has, 2, 3, NO), call(Action::Destroy(0), 4, 5, None)];
    assert!(!is_linearizable(&early));
    // The same holds for a create, whose effect only a later destroy could hide.
    let late = [call(Action::Create(0), 0, 1, None), call(Action::Has, 2, 3, NO), call(Action::Create(0), 4, 5, NO)];
    assert!(!is_linearizable(&late));
}

#[test]
fn a_failed_call_can_explain_only_one_answer() {
    let destroyed = |begin| call(Action::Destroy(0), begin, begin + 1, YES);
    let create = call(Action::Create(0), 0, 1, None);
    assert!(is_linearizable(&[create.clone(), destroyed(2)]));
    assert!(!is_linearizable(&[create, destroyed(2), destroyed(4)]));
}

#[test]
fn a_destroy_with_a_lease_needs_the_sessions_own_lease() {
    let history = |moved_to, by, answer| {
        [
            call(Action::Create(1), 0, 1, YES),
            call(Action::Create(moved_to), 2, 3, NO),
            call(Action::Destroy(by), 4, 5, answer),
        ]
    };
    for (moved_to, by, answer) in [(2, 2, YES), (2, 1, NO), (0, 1, YES), (0, 2, NO), (2, 0, YES)] {
        assert!(is_linearizable(&history(moved_to, by, answer)), "{moved_to}, {by}");
        assert!(
            !is_linearizable(&history(moved_to, by, answer.map(|answer| Answer { yes: !answer.yes, ..answer }))),
            "{moved_to}, {by}"
        );
    }
    // A failed move either happened or did not; the outcome cannot change later.
    let failed = |answers: [Option<Answer>; 2]| {
        [
            call(Action::Create(1), 0, 1, YES),
            call(Action::Create(2), 2, 3, None),
            call(Action::Destroy(1), 4, 5, answers[0]),
            call(Action::Destroy(2), 6, 7, answers[1]),
        ]
    };
    assert!(is_linearizable(&failed([YES, NO])));
    assert!(is_linearizable(&failed([NO, YES])));
    assert!(!is_linearizable(&failed([NO, NO])));
    assert!(!is_linearizable(&failed([YES, YES])));
}
