//! The clock that leases run on.
//!
//! Redis' wall clock may be set, and no lease can be kept alive while Redis or all replicas are paused. So leases run
//! on a clock of their own in the first partition. Only looks move it (`lease_look`, four a second by each replica),
//! each by at most 350 ms.
//!
//! A look needs to know how much time has passed since the newest look:
//!
//! - If the newest look was the replica's own, the replica's clock measures it.
//! - Otherwise Redis' wall clock measures it, unless it was set: then the time is negative, or longer than the time
//!   since the replica's own look, and the look does not move the clock.
//!
//! If that time is longer than a second, there was an outage. Every lease then gets its full ttl from the end of the
//! outage, and at least the length of the outage plus 20 s, up to the grace. If the length is unknown, every lease gets
//! the full grace.
//!
//! `lease_keep` and `lease_grant` cannot know how much time has passed since the newest look. They count the ttl from
//! the latest time to which the next look can move the clock.
//!
//! A tick is a quarter of a second.

use super::{
    check::{Promise, Protocol, Reachable},
    clock::Ticks,
    guard::{Guard, Guards},
};

const EARLY: Promise = "a lease ends no sooner than its ttl, and after an outage no sooner than its grace";
const LATE: Promise = "setting the wall clock delays the end of a lease by one look at most";

/// The most that one look moves the clock.
const LONGEST_LOOK: Ticks = 2;
/// A longer time without a look is an outage.
const OUTAGE: Ticks = 3;
const TTL: Ticks = 3;
/// After an outage of length T, a lease gets T plus this, up to the grace.
const BEYOND_OUTAGE: Ticks = 1;
const GRACE: Ticks = 7;
/// Longer than any time that matters here.
const FAR: Ticks = 20;
/// The longest time without a look.
const LONGEST: Ticks = 10;

/// What a replica knows about its newest look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct OwnLook {
    /// How long ago it was, by the replica's own clock.
    since: Ticks,
    /// Whether no other replica has looked since.
    is_newest: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The time that the lease had left at the newest look.
    left: Ticks,
    /// The same by a clock that counts time exactly. The protocol does not know this.
    truly_left: Ticks,
    /// How long ago the newest look was. The protocol does not know this.
    since_look: Ticks,
    /// How far Redis' wall clock has advanced since then.
    wall: Ticks,
    own_looks: [Option<OwnLook>; 2],
    is_outage: bool,
    has_ended: bool,
    was_revived: bool,
    sets: u8,
    outages: u8,
    restarts: u8,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    TimePasses,
    Looks { replica: u8 },
    LeaseIsKept,
    WallClockIsSet { by: Ticks },
    OutageBegins,
    OutageEnds,
    ReplicaRestarts { replica: u8 },
}

/// The model and its limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseClock {
    guards: Guards,
    replicas: u8,
    /// How often the wall clock is set, and how far in either direction.
    sets: u8,
    set: Ticks,
    outages: u8,
    restarts: u8,
}

/// What a look concludes about the time since the newest one.
struct Passed {
    /// How far it moves the clock.
    advance: Ticks,
    /// The length of the outage that it ends, if any.
    outage: Option<Ticks>,
}

impl LeaseClock {
    fn have(&self, guard: Guard) -> bool {
        self.guards.have(guard)
    }

    fn passed(&self, state: &State, own: Option<OwnLook>) -> Passed {
        let capped = |time: Ticks| {
            if self.have(Guard::LookIsCapped) { time.min(LONGEST_LOOK) } else { time }
        };
        let outage = |length: Ticks| (length > OUTAGE).then_some(length);
        if let Some(OwnLook { since, is_newest: true }) = own
            && self.have(Guard::OwnLook)
        {
            return Passed { advance: capped(since), outage: outage(since) };
        }
        let at_most = own.map(|own| own.since);
        let was_set = state.wall < 0 || at_most.is_some_and(|at_most| state.wall > at_most);
        if was_set && self.have(Guard::SetIsNoticed) {
            return Passed { advance: 0, outage: outage(at_most.unwrap_or(LONGEST)) };
        }
        let time = state.wall.max(0);
        Passed { advance: capped(time), outage: outage(time) }
    }

    fn look(&self, state: &mut State, replica: u8) -> Result<(), Promise> {
        let Passed { advance, outage } = self.passed(state, state.own_looks[replica as usize]);
        state.left = (state.left - advance).max(0);
        state.truly_left = (state.truly_left - state.since_look.min(LONGEST_LOOK)).max(0);
        if let Some(length) = outage
            && self.have(Guard::OutageRevives)
        {
            state.left = state.left.max(after_outage(length));
        }
        if state.since_look > OUTAGE {
            state.was_revived = true;
            state.truly_left = state.truly_left.max(after_outage(state.since_look));
        }
        (state.since_look, state.wall) = (0, 0);
        state.own_looks.iter_mut().flatten().for_each(|own| own.is_newest = false);
        state.own_looks[replica as usize] = Some(OwnLook { since: 0, is_newest: true });
        state.has_ended = state.left == 0;
        if state.has_ended && state.truly_left > 0 {
            return Err(EARLY);
        }
        // A keep rounds up by one look at most, and the look after the clock was set does not count.
        let delay = LONGEST_LOOK * (1 + state.sets as Ticks);
        let is_known = state.restarts == 0 && state.outages == 0;
        if is_known && state.left - state.truly_left > delay { Err(LATE) } else { Ok(()) }
    }

    fn keep(&self, state: &mut State) {
        let is_within_look = (0..=LONGEST_LOOK).contains(&state.wall);
        let passed = if is_within_look && !self.have(Guard::KeepRoundsUp) { state.wall } else { LONGEST_LOOK };
        state.left = TTL + passed;
        state.truly_left = TTL + state.since_look.min(LONGEST_LOOK);
    }
}

/// Returns the least time that a lease has left after an outage.
fn after_outage(length: Ticks) -> Ticks {
    TTL.max((length + BEYOND_OUTAGE).min(GRACE))
}

impl Protocol for LeaseClock {
    type State = State;
    type Action = Action;

    const PROMISES: &'static [Promise] = &[EARLY, LATE];
    const REACHABLE: &'static [Reachable<State>] =
        &[("the lease ends", |state| state.has_ended), ("the lease outlives an outage", |state| state.was_revived)];

    fn start(&self) -> State {
        State {
            left: TTL,
            truly_left: TTL,
            since_look: 0,
            wall: 0,
            own_looks: [true, false].map(|is_newest| Some(OwnLook { since: 0, is_newest })),
            is_outage: false,
            has_ended: false,
            was_revived: false,
            sets: 0,
            outages: 0,
            restarts: 0,
        }
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.has_ended {
            return;
        }
        let replicas = 0..self.replicas;
        // Every replica looks at least every other tick, except during an outage.
        let is_due = |own: &Option<OwnLook>| own.is_none_or(|own| own.since >= LONGEST_LOOK);
        let may_wait = state.is_outage || !state.own_looks[..self.replicas as usize].iter().any(is_due);
        if may_wait && state.since_look < LONGEST {
            actions.push(Action::TimePasses);
        }
        if state.is_outage {
            actions.push(Action::OutageEnds);
        } else {
            actions.push(Action::LeaseIsKept);
            actions.extend(replicas.clone().map(|replica| Action::Looks { replica }));
            if state.outages < self.outages {
                actions.push(Action::OutageBegins);
            }
        }
        if state.sets < self.sets {
            actions.extend([-self.set, self.set].map(|by| Action::WallClockIsSet { by }));
        }
        if state.restarts < self.restarts {
            actions.extend(replicas.map(|replica| Action::ReplicaRestarts { replica }));
        }
    }

    fn next(&self, state: &State, action: Action) -> Result<State, Promise> {
        let mut next = *state;
        match action {
            Action::TimePasses => {
                next.since_look += 1;
                next.wall += 1;
                let own_looks = next.own_looks.iter_mut().flatten();
                own_looks.for_each(|own| own.since = (own.since + 1).min(LONGEST));
            }
            Action::Looks { replica } => self.look(&mut next, replica)?,
            Action::LeaseIsKept => self.keep(&mut next),
            Action::WallClockIsSet { by } => {
                next.sets += 1;
                next.wall += by;
            }
            Action::OutageBegins => {
                next.outages += 1;
                next.is_outage = true;
            }
            Action::OutageEnds => next.is_outage = false,
            Action::ReplicaRestarts { replica } => {
                next.restarts += 1;
                next.own_looks[replica as usize] = None;
            }
        }
        Ok(next)
    }
}

mod tests {
    use super::*;
    use crate::check::{breaks, holds, sized};

    /// The wall clock is set by a long time.
    const CLOCK: LeaseClock =
        LeaseClock { guards: Guards::ALL, replicas: 2, sets: 1, set: FAR, outages: 1, restarts: 1 };

    /// With one replica, the wall clock does not matter.
    const ALONE: LeaseClock = LeaseClock { replicas: 1, sets: 2, set: 2, restarts: 0, ..CLOCK };

    fn mutant(guard: Guard, model: LeaseClock, promise: Promise) {
        breaks(&LeaseClock { guards: Guards::without(guard), ..model }, promise);
    }

    #[test]
    fn leases_end_on_time_whatever_the_wall_clock_says() {
        let long = LeaseClock { sets: 2, outages: 2, restarts: 2, ..CLOCK };
        sized(vec![CLOCK], vec![long]).iter().for_each(holds);
    }

    #[test]
    fn one_replica_needs_no_wall_clock() {
        for set in [1, 2, 4, FAR] {
            holds(&LeaseClock { set, ..ALONE });
        }
    }

    #[test]
    fn look_without_a_limit_ends_leases_in_a_pause() {
        mutant(Guard::LookIsCapped, CLOCK, EARLY);
    }

    #[test]
    fn look_by_the_wall_clock_alone_ends_leases_early() {
        mutant(Guard::OwnLook, ALONE, EARLY);
    }

    #[test]
    fn look_that_trusts_a_clock_that_was_set_ends_leases_early() {
        mutant(Guard::SetIsNoticed, CLOCK, EARLY);
    }

    #[test]
    fn keep_by_the_wall_clock_ends_a_lease_early() {
        mutant(Guard::KeepRoundsUp, ALONE, EARLY);
    }

    #[test]
    fn outage_without_grace_ends_leases() {
        mutant(Guard::OutageRevives, LeaseClock { sets: 0, restarts: 0, ..CLOCK }, EARLY);
    }

    #[test]
    fn small_step_forward_is_not_excluded() {
        breaks(&LeaseClock { set: 1, ..CLOCK }, EARLY);
    }
}
