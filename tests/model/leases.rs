//! The life of a lease across several partitions.
//!
//! The first partition decides whether a lease lives. Every other partition must know on its own whether sessions may
//! be put under the lease, because most creates reach only that partition. So a lease ends in three steps, and its end
//! may be reported only after them:
//!
//! 1. It is *marked* in the first partition. From then on it cannot be kept alive or attached (`lease_look` for a
//!    deadline that has passed, `lease_revoke` for a call).
//! 2. It is *closed* in every partition (`lease_close`). From then on a create under it is refused there.
//! 3. Its end is *recorded* in the first partition (`lease_ended`).
//!
//! A replica that meets a marked lease does steps 2 and 3 before it answers. Afterwards `lease_sweep` destroys the
//! lease's sessions in each partition, and `lease_done` forgets the lease.
//!
//! **Closed does not mean ended.** A call that revokes a lease may fail half-way. Its mark must have no effect after
//! the failure was reported. So such a mark carries `until`: after that time `lease_ended` takes the mark back instead
//! of recording the end. The lease lives on, although some partitions have closed it. So a partition that meets a
//! closed lease asks the first partition, and attaches the lease again if it lives.
//!
//! **Attaching.** The first create under a lease in a partition attaches the lease there. The replica reads the
//! partition's `closing`, a random number that changes with each close. Then it asks the first partition whether the
//! lease lives (`lease_attach`). The partition adopts the lease only if `closing` is unchanged (`lease_adopt`):
//! otherwise this lease may have been closed in between.
//!
//! **Linger** takes the same three steps as the end. A lingering lease accepts no sessions and protects none.
//!
//! **Losses.** Closing a lease leaves nothing in the log, so a replica does not notice when Redis loses it. So each new
//! connection to a partition *reconciles* the partition: it sets `closing` to a new number, lists the partition's
//! leases and names them to the first partition (`lease_orphans`). Each of them that is not simply alive there gets a
//! new mark, and so is closed everywhere once more.

mod agent;
mod scripts;
mod tests;

use self::{
    agent::{Agent, Goal},
    scripts::Command,
};
use super::{
    check::{Promise, Protocol, Reachable},
    guard::{Guard, Guards},
};

const REPORTED: Promise = "the end or linger of a lease is reported only when no session can come under it any more";
const ENDED: Promise = "a lease whose end was reported never lives again";
const PROTECTED: Promise = "a create with only_from_lease_id never takes a session from another live lease";
const SWEPT: Promise = "a session is destroyed with its lease only if the lease has ended";
const MOVED: Promise = "a session that has moved is not destroyed with its previous lease";
const GHOST: Promise = "once all work is done, no session is or can come under a lease that is gone";
const ACKNOWLEDGED: Promise =
    "a revocation that failed takes effect before any call that starts after its failure, or never";
const KEPT: Promise = "a lease that was kept alive does not end at its older deadline";

const PARTITIONS: usize = 2;
const MOST_LEASES: usize = 2;
const ALL_PARTITIONS: u8 = 0b11;

/// The lease to which takeovers move sessions. It always lives.
const OTHER: u8 = 9;

/// The state of a lease, according to the first partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Life {
    /// It was never granted, or was forgotten.
    Unknown,
    Live,
    Lingering,
    /// Its sessions are being swept.
    Ended,
}

/// A change of a lease's life that is in progress.
///
/// Each mark has a random number, which is not modelled. `knows_mark` says whether an agent or a command knows the
/// number of the current mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Mark {
    to: Life,
    /// Whether it was set by a call, which may fail, rather than by a deadline.
    is_of_call: bool,
    /// Whether the call's time is over.
    is_late: bool,
    /// Whether the call's failure was reported. The protocol does not know this.
    has_failed: bool,
    /// Whether a caller was told that the lease lives, so that the mark must no longer take effect. The protocol does
    /// not know this.
    is_contradicted: bool,
}

/// A lease in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Entry {
    /// The partition does not know the lease. No session is under it.
    Absent,
    /// Sessions may come under it.
    Attached,
    /// No session can come under it. Some may still be under it.
    Closed,
}

/// What Redis holds of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Partition {
    /// The random number of the newest close.
    closing: u8,
    entries: [Entry; MOST_LEASES],
    /// The lease of the partition's only session.
    session: Option<u8>,
    /// Whether that session came under its lease since Redis last lost something. The protocol does not know this.
    is_fresh: bool,
    /// The state of each lease. Used only in the first partition.
    lives: [Life; MOST_LEASES],
    marks: [Option<Mark>; MOST_LEASES],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    partitions: [Partition; PARTITIONS],
    /// The older state to which Redis goes back.
    saved: [Partition; PARTITIONS],
    agents: [Option<Agent>; 2],
    /// Commands of crashed agents. They may still be executed.
    late: Vec<Command>,
    /// Bit sets of the leases that were granted, whose end or linger was reported, and whose end was reported.
    granted: u8,
    reported: u8,
    reported_ended: u8,
    /// Partitions that must be reconciled, as a bit set.
    unreconciled: u8,
    was_swept: bool,
    calls: u8,
    crashes: u8,
    expiries: u8,
    closes: u8,
    losses: u8,
    saves: u8,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    Grants {
        lease: u8,
    },
    Starts {
        agent: u8,
        goal: Goal,
    },
    Executes {
        agent: u8,
        command: Command,
    },
    /// The agent's replica crashes. Its command may be executed later.
    Crashes {
        agent: u8,
        command: Command,
    },
    /// The call's failure is reported to the agent's caller.
    Fails {
        agent: u8,
    },
    ExecutesLate {
        command: Command,
    },
    /// A look finds that a lease's deadline has passed, and marks the lease.
    Expires {
        lease: u8,
    },
    /// The time of the call that marked a lease is over.
    TimeIsOver {
        lease: u8,
    },
    AnotherLeaseIsClosed {
        partition: u8,
    },
    RedisSaves {
        partition: u8,
    },
    RedisLosesChanges {
        partition: u8,
    },
}

/// The model and its limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leases {
    guards: Guards,
    leases: u8,
    /// How many calls there are, and of which kinds besides creates under a lease.
    calls: u8,
    takes: bool,
    keeps: bool,
    revokes: bool,
    lingers: bool,
    /// How many agents crash, how many deadlines pass, and how many other leases are closed.
    crashes: u8,
    expiries: u8,
    closes: u8,
    /// How often Redis loses something, in which partitions, and how often it saves the state to which it goes back.
    losses: u8,
    lossy: u8,
    saves: u8,
}

impl Leases {
    fn have(&self, guard: Guard) -> bool {
        self.guards.have(guard)
    }

    fn leases(&self) -> std::ops::Range<u8> {
        0..self.leases
    }

    /// Returns the calls that may start.
    fn calls(&self, state: &State) -> Vec<Goal> {
        let mut goals = Vec::new();
        let partitions = 0..PARTITIONS as u8;
        for lease in self.leases().filter(|lease| state.granted & 1 << lease != 0) {
            goals.extend(partitions.clone().map(|partition| Goal::Create { partition, lease }));
            let more = [
                (self.keeps, Goal::Keep { lease }),
                (self.revokes, Goal::Revoke { lease }),
                (self.lingers, Goal::Linger { lease }),
            ];
            goals.extend(more.into_iter().filter(|(is_asked, _)| *is_asked).map(|(_, goal)| goal));
        }
        if self.takes {
            goals.extend(partitions.map(|partition| Goal::Take { partition }));
        }
        goals
    }

    /// Returns the background work that is due.
    fn work(&self, state: &State) -> Vec<Goal> {
        let first = &state.partitions[0];
        let is_due = |lease: &u8| first.marks[*lease as usize].is_some() || first.lives[*lease as usize] == Life::Ended;
        let mut goals: Vec<Goal> = self.leases().filter(is_due).map(|lease| Goal::Work { lease }).collect();
        if self.have(Guard::Reconcile) {
            let is_due = |partition: &u8| state.unreconciled & 1 << partition != 0;
            goals.extend((0..PARTITIONS as u8).filter(is_due).map(|partition| Goal::Reconcile { partition }));
        }
        goals
    }

    /// Returns whether an agent may report to its caller that the call failed.
    fn may_fail(&self, state: &State, agent: &Agent) -> bool {
        let (Goal::Revoke { lease } | Goal::Linger { lease }) = agent.goal else {
            return false;
        };
        let mark = state.partitions[0].marks[lease as usize];
        let is_in_time = agent.has_marked && agent.knows_mark && mark.is_some_and(|mark| !mark.is_late);
        !is_in_time || !self.have(Guard::FailureWaits)
    }

    fn fail(&self, state: &mut State, agent: u8) {
        let Some(Agent { goal, has_marked: true, knows_mark: true, .. }) = state.agents[agent as usize].take() else {
            return;
        };
        if let Goal::Revoke { lease } | Goal::Linger { lease } = goal
            && let Some(mark) = &mut state.partitions[0].marks[lease as usize]
        {
            mark.has_failed = true;
        }
    }

    fn start_agent(&self, state: &mut State, agent: u8, goal: Goal) {
        let marks = &state.partitions[0].marks;
        let has_failed = |lease: &u8| marks[*lease as usize].is_some_and(|mark| mark.has_failed);
        let after_failure = self.leases().filter(has_failed).map(|lease| 1 << lease).sum();
        state.agents[agent as usize] = Some(Agent::new(goal, after_failure));
    }

    fn execute(&self, state: &mut State, agent: u8, command: Command) -> Result<(), Promise> {
        let reply = self.run(state, command)?;
        let this = state.agents[agent as usize].take().unwrap();
        let remaining = self.proceed(state, this, reply);
        if let (Goal::Reconcile { partition }, None) = (this.goal, remaining) {
            state.unreconciled &= !(1 << partition);
        }
        state.agents[agent as usize] = remaining;
        Ok(())
    }

    fn lose(&self, state: &mut State, partition: u8) {
        state.losses += 1;
        state.partitions[partition as usize] = state.saved[partition as usize];
        state.partitions.iter_mut().for_each(|partition| partition.is_fresh = false);
        // Every replica has to reconnect to that partition.
        let is_all = partition == 0 && self.have(Guard::ReconcileAll);
        state.unreconciled |= if is_all { ALL_PARTITIONS } else { 1 << partition };
    }

    /// Checks the promises that concern states.
    fn check(&self, state: &State) -> Result<(), Promise> {
        let first = &state.partitions[0];
        for lease in self.leases().filter(|_| state.losses == 0) {
            let l = lease as usize;
            let is_attached = state.partitions.iter().any(|partition| partition.entries[l] == Entry::Attached);
            if state.reported & 1 << lease != 0 && is_attached {
                return Err(REPORTED);
            }
            let lives = matches!(first.lives[l], Life::Live | Life::Lingering);
            if state.reported_ended & 1 << lease != 0 && lives {
                return Err(ENDED);
            }
        }
        let is_quiet = state.agents.iter().all(Option::is_none) && state.late.is_empty() && self.work(state).is_empty();
        let has_ghost = |lease: u8| {
            first.lives[lease as usize] == Life::Unknown
                && state.partitions.iter().any(|partition| {
                    partition.session == Some(lease) || partition.entries[lease as usize] == Entry::Attached
                })
        };
        if is_quiet && self.leases().any(has_ghost) { Err(GHOST) } else { Ok(()) }
    }

    /// Replaces random numbers by their ranks, so that equivalent states are equal.
    fn rename_closings(&self, state: &mut State) {
        let State { partitions, saved, agents, late, .. } = state;
        for (number, (partition, saved)) in (0..).zip(partitions.iter_mut().zip(saved)) {
            let mut all = vec![&mut partition.closing, &mut saved.closing];
            all.extend(agents.iter_mut().flatten().flat_map(|agent| agent.closings(number)));
            all.extend(late.iter_mut().filter_map(|command| command.closing(number)));
            let mut values: Vec<u8> = all.iter().map(|closing| **closing).collect();
            values.sort_unstable();
            values.dedup();
            for closing in all {
                *closing = if self.have(Guard::ClosingsAreRandom) {
                    values.iter().position(|value| value == closing).unwrap() as u8
                } else {
                    *closing - values[0]
                };
            }
        }
        late.sort();
    }
}

impl Protocol for Leases {
    type State = State;
    type Action = Action;

    const PROMISES: &'static [Promise] = &[REPORTED, ENDED, PROTECTED, SWEPT, MOVED, GHOST, ACKNOWLEDGED, KEPT];
    const REACHABLE: &'static [Reachable<State>] = &[
        ("a session is destroyed with its lease", |state| state.was_swept),
        ("a lease that ended is forgotten", |state| {
            state.granted & 1 != 0 && state.partitions[0].lives[0] == Life::Unknown
        }),
    ];

    fn start(&self) -> State {
        let partition = Partition {
            closing: 0,
            entries: [Entry::Absent; MOST_LEASES],
            session: None,
            is_fresh: false,
            lives: [Life::Unknown; MOST_LEASES],
            marks: [None; MOST_LEASES],
        };
        State {
            partitions: [partition; PARTITIONS],
            saved: [partition; PARTITIONS],
            agents: [None; 2],
            late: Vec::new(),
            granted: 0,
            reported: 0,
            reported_ended: 0,
            unreconciled: 0,
            was_swept: false,
            calls: 0,
            crashes: 0,
            expiries: 0,
            closes: 0,
            losses: 0,
            saves: 0,
        }
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if let Some(agent) = state.agents.iter().position(Option::is_none) {
            let agent = agent as u8;
            let calls = if state.calls < self.calls { self.calls(state) } else { Vec::new() };
            let goals = calls.into_iter().chain(self.work(state));
            actions.extend(goals.map(|goal| Action::Starts { agent, goal }));
        }
        for (number, agent) in (0..).zip(&state.agents) {
            let Some(agent) = agent else { continue };
            actions.push(Action::Executes { agent: number, command: agent.sent });
            if state.crashes < self.crashes {
                actions.push(Action::Crashes { agent: number, command: agent.sent });
            }
            if self.may_fail(state, agent) {
                actions.push(Action::Fails { agent: number });
            }
        }
        actions.extend(state.late.iter().map(|command| Action::ExecutesLate { command: *command }));
        let first = &state.partitions[0];
        for lease in self.leases() {
            let (life, mark) = (first.lives[lease as usize], first.marks[lease as usize]);
            if state.granted & 1 << lease == 0 {
                actions.push(Action::Grants { lease });
            }
            let lives = matches!(life, Life::Live | Life::Lingering);
            if lives && mark.is_none() && state.expiries < self.expiries {
                actions.push(Action::Expires { lease });
            }
            if mark.is_some_and(|mark| mark.is_of_call && !mark.is_late) {
                actions.push(Action::TimeIsOver { lease });
            }
        }
        for partition in 0..PARTITIONS as u8 {
            let p = partition as usize;
            if state.closes < self.closes {
                actions.push(Action::AnotherLeaseIsClosed { partition });
            }
            if state.saved[p] != state.partitions[p] {
                if state.saves < self.saves {
                    actions.push(Action::RedisSaves { partition });
                }
                if state.losses < self.losses && self.lossy & 1 << p != 0 {
                    actions.push(Action::RedisLosesChanges { partition });
                }
            }
        }
    }

    fn next(&self, state: &State, action: Action) -> Result<State, Promise> {
        let mut next = state.clone();
        match action {
            Action::Grants { lease } => {
                next.granted |= 1 << lease;
                next.partitions[0].lives[lease as usize] = Life::Live;
                next.partitions[0].entries[lease as usize] = Entry::Attached;
            }
            Action::Starts { agent, goal } => {
                next.calls += u8::from(goal.is_call());
                self.start_agent(&mut next, agent, goal);
            }
            Action::Executes { agent, command } => self.execute(&mut next, agent, command)?,
            Action::Crashes { agent, command } => {
                next.crashes += 1;
                next.agents[agent as usize] = None;
                if command.has_effect() {
                    next.late.push(command);
                }
            }
            Action::Fails { agent } => self.fail(&mut next, agent),
            Action::ExecutesLate { command } => {
                let place = next.late.iter().position(|late| *late == command).unwrap();
                next.late.remove(place);
                self.run(&mut next, command)?;
            }
            Action::Expires { lease } => {
                next.expiries += 1;
                self.run(&mut next, Command::Mark { lease, to: Life::Ended, is_of_call: false })?;
            }
            Action::TimeIsOver { lease } => {
                if let Some(mark) = &mut next.partitions[0].marks[lease as usize] {
                    mark.is_late = true;
                }
            }
            Action::AnotherLeaseIsClosed { partition } => {
                next.closes += 1;
                self.renew_closing(&mut next, partition);
            }
            Action::RedisSaves { partition } => {
                next.saves += 1;
                next.saved[partition as usize] = next.partitions[partition as usize];
            }
            Action::RedisLosesChanges { partition } => self.lose(&mut next, partition),
        }
        self.check(&next)?;
        self.rename_closings(&mut next);
        Ok(next)
    }
}
