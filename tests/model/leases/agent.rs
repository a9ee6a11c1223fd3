//! Agents: what replicas do, one command after another.

use super::{
    ALL_PARTITIONS, Guard, Leases, Life, State,
    scripts::{Command, Reply},
};

/// The goal of an agent: a call, or background work of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Goal {
    /// CreateSession under a lease, for the session of a partition.
    Create { partition: u8, lease: u8 },
    /// CreateSession under the other lease with `only_from_lease_id = 0`.
    Take { partition: u8 },
    /// KeepLeaseAlive.
    Keep { lease: u8 },
    /// RevokeLease.
    Revoke { lease: u8 },
    /// RevokeLease with `linger`.
    Linger { lease: u8 },
    /// Continues with a lease that is marked or has ended.
    Work { lease: u8 },
    /// Compares the leases of a partition with the first partition's, after a new connection.
    Reconcile { partition: u8 },
}

impl Goal {
    /// Returns whether it is a call of a client.
    pub(super) fn is_call(self) -> bool {
        !matches!(self, Self::Work { .. } | Self::Reconcile { .. })
    }

    fn partition(self) -> Option<u8> {
        match self {
            Self::Create { partition, .. } | Self::Take { partition } => Some(partition),
            _ => None,
        }
    }

    fn lease(self) -> Option<u8> {
        match self {
            Self::Create { lease, .. }
            | Self::Keep { lease }
            | Self::Revoke { lease }
            | Self::Linger { lease }
            | Self::Work { lease } => Some(lease),
            Self::Take { .. } | Self::Reconcile { .. } => None,
        }
    }

    fn first_command(self) -> Command {
        match self {
            Self::Create { partition, lease } => Command::Create { partition, lease },
            Self::Take { partition } => Command::Take { partition, over: None },
            Self::Keep { lease } | Self::Revoke { lease } | Self::Linger { lease } | Self::Work { lease } => {
                Command::Ask { lease, goal: self }
            }
            Self::Reconcile { partition } => Command::List { partition },
        }
    }
}

/// A task of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Agent {
    pub(super) goal: Goal,
    /// The command whose answer it waits for.
    pub(super) sent: Command,
    /// The lease that it ends or asks about.
    lease: Option<u8>,
    /// The `closing` of its partition, read before it asked the first partition.
    closing: Option<u8>,
    /// The partitions that it still has to close, as a bit set.
    left: u8,
    /// Whether it knows the number of the lease's mark.
    pub(super) knows_mark: bool,
    /// Whether it has set a mark itself.
    pub(super) has_marked: bool,
    /// Leases that were marked by a call whose failure was reported before this agent started, as a bit set.
    pub(super) after_failure: u8,
}

impl Agent {
    pub(super) fn new(goal: Goal, after_failure: u8) -> Self {
        let (sent, lease) = (goal.first_command(), goal.lease());
        Self { goal, sent, lease, closing: None, left: 0, knows_mark: false, has_marked: false, after_failure }
    }

    pub(super) fn is_about(&self, lease: u8) -> bool {
        self.lease == Some(lease)
    }

    /// Returns the values of a partition's `closing` that it knows.
    pub(super) fn closings(&mut self, of: u8) -> impl Iterator<Item = &mut u8> {
        let is_there = self.goal.partition() == Some(of);
        self.closing.as_mut().filter(|_| is_there).into_iter().chain(self.sent.closing(of))
    }

    fn send(self, sent: Command) -> Option<Self> {
        Some(Self { sent, ..self })
    }

    fn ask(self, lease: u8) -> Option<Self> {
        Self { lease: Some(lease), ..self }.send(Command::Ask { lease, goal: self.goal })
    }
}

impl Leases {
    /// Returns the agent with its next command, or `None` if it is done.
    pub(super) fn proceed(&self, state: &mut State, agent: Agent, reply: Reply) -> Option<Agent> {
        match (agent.sent, reply) {
            (_, Reply::Meets { lease, closing }) => Agent { closing: Some(closing), ..agent }.ask(lease),
            (Command::Create { lease, .. }, _) => {
                self.report_alive(state, &agent, lease);
                None
            }
            (Command::Take { .. } | Command::Done { .. }, _) => None,
            (Command::Ask { lease, .. }, Reply::Life(life)) => self.on_life(state, agent, lease, life),
            (Command::Ask { lease, .. }, _) => self.finish(agent, lease),
            (Command::Adopt { .. }, _) => agent.send(agent.goal.first_command()),
            (Command::Mark { lease, .. }, Reply::Done) => self.finish(Agent { has_marked: true, ..agent }, lease),
            (Command::Mark { lease, .. }, _) => agent.ask(lease),
            (Command::Close { partition, lease }, _) => {
                let agent = Agent { left: agent.left & !(1 << partition), ..agent };
                agent.send(match agent.left {
                    0 => Command::Record { lease, knows_mark: agent.knows_mark },
                    left => Command::Close { partition: left.trailing_zeros() as u8, lease },
                })
            }
            (Command::Record { lease, .. }, Reply::Life(life)) => self.on_recorded(state, agent, lease, life),
            (Command::Record { lease, .. }, _) => agent.ask(lease),
            (Command::Sweep { partition: 0, lease }, _) => agent.send(Command::Sweep { partition: 1, lease }),
            (Command::Sweep { lease, .. }, _) => agent.send(Command::Done { lease, knows_mark: agent.knows_mark }),
            (Command::List { partition }, _) => self.next_orphan(state, agent, partition, 0),
            (Command::Orphan { lease }, _) => {
                let Goal::Reconcile { partition } = agent.goal else {
                    return None;
                };
                self.next_orphan(state, agent, partition, lease + 1)
            }
        }
    }

    /// Closes a marked lease in every partition, one after the other, and then records its new state.
    fn finish(&self, agent: Agent, lease: u8) -> Option<Agent> {
        let left = if self.have(Guard::CloseEverywhere) { ALL_PARTITIONS } else { 0b01 };
        let agent = Agent { lease: Some(lease), closing: None, left, knows_mark: true, ..agent };
        agent.send(Command::Close { partition: 0, lease })
    }

    /// Continues with the first partition's answer about a lease.
    fn on_life(&self, state: &mut State, agent: Agent, lease: u8, life: Life) -> Option<Agent> {
        match (agent.goal, life) {
            (Goal::Create { partition, .. } | Goal::Take { partition }, Life::Live) => match agent.closing {
                Some(closing) => {
                    let agent = Agent { closing: None, ..agent };
                    agent.send(Command::Adopt { partition, lease, closing })
                }
                None => agent.send(agent.goal.first_command()),
            },
            (Goal::Keep { .. }, Life::Live) => {
                self.report_alive(state, &agent, lease);
                if let Some(mark) = &mut state.partitions[0].marks[lease as usize] {
                    mark.is_contradicted |= !mark.is_of_call;
                }
                None
            }
            // Its mark was taken back, so the call has failed.
            (Goal::Revoke { .. } | Goal::Linger { .. }, Life::Live | Life::Lingering) if agent.has_marked => None,
            (Goal::Revoke { .. }, Life::Live | Life::Lingering) => {
                agent.send(Command::Mark { lease, to: Life::Ended, is_of_call: true })
            }
            (Goal::Linger { .. }, Life::Live) => {
                agent.send(Command::Mark { lease, to: Life::Lingering, is_of_call: true })
            }
            (Goal::Work { .. }, Life::Ended) => {
                Agent { knows_mark: true, ..agent }.send(Command::Sweep { partition: 0, lease })
            }
            (Goal::Work { .. } | Goal::Reconcile { .. }, _) => None,
            (goal, life) => {
                self.report(state, lease, life);
                let Goal::Take { partition } = goal else {
                    return None;
                };
                agent.send(Command::Take { partition, over: Some(lease) })
            }
        }
    }

    /// Continues once a change of a lease's life was recorded or taken back.
    fn on_recorded(&self, state: &mut State, agent: Agent, lease: u8, life: Life) -> Option<Agent> {
        match (agent.goal, life) {
            (Goal::Revoke { .. }, Life::Ended) | (Goal::Linger { .. }, Life::Lingering) => {
                self.report(state, lease, life);
                None
            }
            _ => agent.ask(lease),
        }
    }

    /// Reports to a caller that a lease lingers or is gone.
    fn report(&self, state: &mut State, lease: u8, life: Life) {
        if life == Life::Lingering {
            state.reported |= 1 << lease;
        } else {
            self.report_ended(state, lease);
        }
    }

    /// Reports to a caller that a lease lives. A call that had failed before must not end the lease any more.
    fn report_alive(&self, state: &mut State, agent: &Agent, lease: u8) {
        if agent.after_failure & 1 << lease != 0
            && let Some(mark) = &mut state.partitions[0].marks[lease as usize]
        {
            mark.is_contradicted |= mark.has_failed;
        }
    }

    /// Names the next of a partition's leases to the first partition.
    fn next_orphan(&self, state: &State, agent: Agent, partition: u8, from: u8) -> Option<Agent> {
        let entries = &state.partitions[partition as usize].entries;
        let lease = (from..self.leases).find(|lease| entries[*lease as usize] != super::Entry::Absent)?;
        agent.send(Command::Orphan { lease })
    }
}
