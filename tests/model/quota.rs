//! The session limit over several partitions.
//!
//! The first partition keeps a register of each partition's quota: how many sessions it may hold. The sum of the quotas
//! never exceeds the limit. A call that finds its partition full raises that partition's quota in the register
//! (`quota_raise`) and then sets it in the partition (`quota_set`). If the register has no room left, the call lowers
//! the other partition's quota to what is used (`quota_lower`), records that in the register (`quota_return`), and
//! tries again.
//!
//! Each quota has a number. So a command that arrives late, or never, does no harm: a partition may hold less than the
//! register says, but never more.

use super::{
    check::{Promise, Protocol, Reachable},
    guard::{Guard, Guards},
};

const LIMITED: Promise = "all partitions together hold no more sessions than the limit";
const FAIR: Promise =
    "no call is refused while there is room, unless other calls change quotas or sessions at the same time";

const LIMIT: u8 = 2;
const PARTITIONS: usize = 2;

/// How many sessions a partition may hold, and the number of this quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub(crate) struct Quota {
    most: u8,
    number: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct Partition {
    quota: Quota,
    sessions: u8,
}

/// A script with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Command {
    /// Reads a partition's quota.
    Read { partition: u8 },
    /// `quota_raise`, in the register.
    Raise { partition: u8, known: Quota },
    /// `quota_set`.
    Set { partition: u8, quota: Quota },
    /// `quota_lower`.
    Lower { partition: u8 },
    /// `quota_return`, in the register.
    Return { partition: u8, lowered: Quota },
}

/// A call that found its partition full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Agent {
    partition: u8,
    /// The command that it waits for.
    sent: Command,
    /// How often it has asked the other partition to give up room.
    lowered: u8,
    /// Whether nothing else has happened since it began.
    is_alone: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    partitions: [Partition; PARTITIONS],
    register: [Quota; PARTITIONS],
    agents: [Option<Agent>; 2],
    /// Commands of crashed agents. They may still be executed.
    late: Vec<Command>,
    was_refused: bool,
    calls: u8,
    crashes: u8,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    Creates { partition: u8 },
    Destroys { partition: u8 },
    FindsItFull { agent: u8, partition: u8 },
    Executes { agent: u8, command: Command },
    Crashes { agent: u8, command: Command },
    ExecutesLate { command: Command },
}

/// The model and its limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quotas {
    guards: Guards,
    /// How many calls find their partition full, and how many of them crash.
    calls: u8,
    crashes: u8,
}

impl Quotas {
    fn have(&self, guard: Guard) -> bool {
        self.guards.have(guard)
    }

    /// Runs a script. Returns the quota in its answer, if any.
    fn run(&self, state: &mut State, command: Command) -> Option<Quota> {
        match command {
            Command::Read { partition } => Some(state.partitions[partition as usize].quota),
            Command::Raise { partition, known } => {
                let noted = state.register[partition as usize];
                if known.number < noted.number && self.have(Guard::RaiseNumber) {
                    return Some(noted);
                }
                state.register[partition as usize] = known;
                let taken: u8 = state.register.iter().map(|quota| quota.most).sum();
                if taken >= LIMIT {
                    return None;
                }
                let raised = Quota { most: known.most + 1, number: known.number + 1 };
                state.register[partition as usize] = raised;
                Some(raised)
            }
            Command::Set { partition, quota } => {
                let here = &mut state.partitions[partition as usize].quota;
                if quota.number > here.number || !self.have(Guard::SetNumber) {
                    *here = quota;
                }
                None
            }
            Command::Lower { partition } => {
                let Partition { quota, sessions } = &mut state.partitions[partition as usize];
                if quota.most > *sessions {
                    *quota = Quota { most: *sessions, number: quota.number + 1 };
                }
                Some(*quota)
            }
            Command::Return { partition, lowered } => {
                let noted = &mut state.register[partition as usize];
                if lowered.number >= noted.number || !self.have(Guard::ReturnNumber) {
                    *noted = lowered;
                }
                Some(*noted)
            }
        }
    }

    /// Returns the agent with its next command, or `None` if it is done.
    fn proceed(&self, state: &mut State, agent: Agent, answer: Option<Quota>) -> Result<Option<Agent>, Promise> {
        let other = 1 - agent.partition;
        let read_again = Command::Read { partition: agent.partition };
        let sent = match (agent.sent, answer) {
            (Command::Read { partition }, Some(known)) => Command::Raise { partition, known },
            (Command::Raise { partition, .. }, Some(quota)) => Command::Set { partition, quota },
            (Command::Raise { .. }, None) if agent.lowered == 0 => Command::Lower { partition: other },
            (Command::Raise { .. }, None) => {
                state.was_refused = true;
                let sessions: u8 = state.partitions.iter().map(|partition| partition.sessions).sum();
                return if agent.is_alone && sessions < LIMIT { Err(FAIR) } else { Ok(None) };
            }
            (Command::Lower { partition }, Some(lowered)) => {
                let sent = Command::Return { partition, lowered };
                return Ok(Some(Agent { sent, lowered: agent.lowered + 1, ..agent }));
            }
            (Command::Return { partition, lowered }, Some(noted))
                if noted.number > lowered.number && self.have(Guard::LowersAgain) =>
            {
                Command::Set { partition, quota: noted }
            }
            (Command::Return { .. }, _) => read_again,
            (Command::Set { partition, .. }, _) if partition == other && agent.lowered < 2 => {
                Command::Lower { partition }
            }
            (Command::Set { partition, .. }, _) if partition == other => read_again,
            _ => return Ok(None),
        };
        Ok(Some(Agent { sent, ..agent }))
    }
}

impl Protocol for Quotas {
    type State = State;
    type Action = Action;

    const PROMISES: &'static [Promise] = &[LIMITED, FAIR];
    const REACHABLE: &'static [Reachable<State>] = &[
        ("one partition holds as many sessions as the limit", |state| state.partitions[0].sessions == LIMIT),
        ("a call is refused", |state| state.was_refused),
    ];

    fn start(&self) -> State {
        State {
            partitions: [Partition::default(); PARTITIONS],
            register: [Quota::default(); PARTITIONS],
            agents: [None; 2],
            late: Vec::new(),
            was_refused: false,
            calls: 0,
            crashes: 0,
        }
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (partition, here) in (0..).zip(&state.partitions) {
            if here.sessions < here.quota.most {
                actions.push(Action::Creates { partition });
            } else if let Some(agent) = state.agents.iter().position(Option::is_none)
                && state.calls < self.calls
            {
                actions.push(Action::FindsItFull { agent: agent as u8, partition });
            }
            if here.sessions > 0 {
                actions.push(Action::Destroys { partition });
            }
        }
        for (number, agent) in (0..).zip(&state.agents) {
            let Some(agent) = agent else { continue };
            actions.push(Action::Executes { agent: number, command: agent.sent });
            if state.crashes < self.crashes {
                actions.push(Action::Crashes { agent: number, command: agent.sent });
            }
        }
        actions.extend(state.late.iter().map(|command| Action::ExecutesLate { command: *command }));
    }

    fn next(&self, state: &State, action: Action) -> Result<State, Promise> {
        let mut next = state.clone();
        let actor = match action {
            Action::Executes { agent, .. } => Some(agent),
            _ => None,
        };
        for (number, agent) in (0..).zip(&mut next.agents) {
            if let Some(agent) = agent {
                agent.is_alone &= actor == Some(number);
            }
        }
        match action {
            Action::Creates { partition } => next.partitions[partition as usize].sessions += 1,
            Action::Destroys { partition } => next.partitions[partition as usize].sessions -= 1,
            Action::FindsItFull { agent, partition } => {
                next.calls += 1;
                let is_alone = state.late.is_empty() && state.agents.iter().all(Option::is_none);
                let sent = Command::Read { partition };
                next.agents[agent as usize] = Some(Agent { partition, sent, lowered: 0, is_alone });
            }
            Action::Executes { agent, command } => {
                let answer = self.run(&mut next, command);
                let this = next.agents[agent as usize].take().unwrap();
                next.agents[agent as usize] = self.proceed(&mut next, this, answer)?;
            }
            Action::Crashes { agent, command } => {
                next.crashes += 1;
                next.agents[agent as usize] = None;
                next.late.push(command);
                next.late.sort();
            }
            Action::ExecutesLate { command } => {
                let place = next.late.iter().position(|late| *late == command).unwrap();
                next.late.remove(place);
                self.run(&mut next, command);
            }
        }
        let most: u8 = next.partitions.iter().map(|partition| partition.quota.most).sum();
        if most > LIMIT { Err(LIMITED) } else { Ok(next) }
    }
}

mod tests {
    use super::*;
    use crate::check::{breaks, holds, sized};

    const QUOTAS: Quotas = Quotas { guards: Guards::ALL, calls: 4, crashes: 1 };

    fn mutant(guard: Guard, promise: Promise) {
        breaks(&Quotas { guards: Guards::without(guard), ..QUOTAS }, promise);
    }

    #[test]
    fn quotas_keep_the_limit() {
        sized(vec![QUOTAS], vec![Quotas { calls: 5, crashes: 2, ..QUOTAS }]).iter().for_each(holds);
    }

    #[test]
    fn register_that_accepts_an_old_quota_exceeds_the_limit() {
        mutant(Guard::RaiseNumber, LIMITED);
    }

    #[test]
    fn partition_that_accepts_an_old_quota_exceeds_the_limit() {
        mutant(Guard::SetNumber, LIMITED);
    }

    #[test]
    fn register_that_records_an_old_return_exceeds_the_limit() {
        mutant(Guard::ReturnNumber, LIMITED);
    }

    #[test]
    fn room_that_never_reached_its_partition_is_lost() {
        mutant(Guard::LowersAgain, FAIR);
    }
}
