//! Steps, and their time limits.
//!
//! A replica changes sessions in steps, each an `apply` script. A step may wait in the network or in Redis for longer
//! than its caller does. So each step carries `until`, a time of the partition's own [clock](super::clock). From then
//! on Redis refuses the step (LATE). The replica computes `until` as its estimate of that clock plus the timeout. The
//! estimate is a lower bound: the newest time that an answer carried, plus the time since that answer arrived. So a
//! step that was not answered within the timeout can no longer take effect, and its failure may be reported.
//!
//! A lane sends one step after the other. A call whose step was refused as LATE, or that waits behind other calls, is
//! sent again only while it is younger than the timeout. So every call is over within two timeouts.

mod call;
mod tests;

use self::call::{Call, Kind, Outcome, Part, is_linearizable};
use super::{
    check::{Promise, Protocol, Reachable},
    clock::{PartitionClock, Ticks},
    guard::{Guard, Guards},
};

/// How long a replica waits for a step: `timeout_ms`.
const TIMEOUT: Ticks = 2;

const ACKNOWLEDGED: Promise = "a call that failed takes effect before any call that starts after its failure, or never";
const LINEARIZABLE: Promise = "the answers about one session are linearizable";
const BATCH_ORDER: Promise = "the sessions of a batch that share a partition are changed in the order of the batch";
const IN_TIME: Promise = "a call is over within two timeouts";

/// Which sessions the calls are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// One session.
    One,
    /// A create is a batch of two sessions in one partition, which takes two steps.
    TwoSteps,
    /// A create is a batch of two sessions in two partitions.
    TwoPartitions,
}

/// A step on its way to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Step {
    call: u8,
    part: u8,
    until: Ticks,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Partition {
    clock: PartitionClock,
    /// Whether the clock was stored since the last tick.
    is_stored: bool,
    is_paused: bool,
    /// Unordered: a step can overtake another on a connection of its own.
    in_flight: Vec<Step>,
    /// Each replica's lower estimate of the clock.
    estimates: [Ticks; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    sessions: [bool; 2],
    partitions: [Partition; 2],
    calls: Vec<Call>,
    sets: u8,
    breaks: u8,
    pauses: u8,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    Starts { replica: u8, kind: Kind },
    ConnectionBreaks { call: u8, part: u8 },
    SendsAgain { call: u8, part: u8 },
    Executes { partition: u8, step: Step },
    GivesUp { call: u8, part: u8 },
    TimePasses,
    StoresClock { partition: u8 },
    WallClockIsSet { by: Ticks },
    RedisPauses { partition: u8 },
    RedisResumes { partition: u8 },
}

/// The model and its limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steps {
    guards: Guards,
    shape: Shape,
    /// How many calls there are, how often a connection breaks, how often the wall clock is set, and how often Redis
    /// pauses.
    calls: u8,
    breaks: u8,
    sets: u8,
    pauses: u8,
    /// How far the wall clock is set back.
    set: Ticks,
    /// Whether the wall clock is also set forward.
    set_forward: bool,
}

impl Steps {
    fn have(&self, guard: Guard) -> bool {
        self.guards.have(guard)
    }

    fn partitions(&self) -> usize {
        if self.shape == Shape::TwoPartitions { 2 } else { 1 }
    }

    fn partition_of(&self, part: u8) -> usize {
        if self.shape == Shape::TwoPartitions { part as usize } else { 0 }
    }

    fn kinds(&self) -> &'static [Kind] {
        if self.shape == Shape::One { &[Kind::Create, Kind::Destroy, Kind::Has] } else { &[Kind::Create, Kind::Has] }
    }

    fn parts(&self, kind: Kind) -> [Part; 2] {
        let is_batch = self.shape != Shape::One && kind == Kind::Create;
        [Part::Waiting, if is_batch { Part::Waiting } else { Part::Unused }]
    }

    fn send(&self, state: &mut State, call: u8, part: u8) {
        let this = &mut state.calls[call as usize];
        let partition = &mut state.partitions[self.partition_of(part)];
        let until = partition.estimates[this.replica as usize] + TIMEOUT;
        this.parts[part as usize] = Part::Sent { left: TIMEOUT, broken: false };
        partition.in_flight.push(Step { call, part, until });
    }

    /// Returns whether a replica's lane to a partition must wait for an answer.
    fn is_busy(&self, state: &State, replica: u8, partition: usize) -> bool {
        let of_replica = state.calls.iter().filter(|call| call.replica == replica);
        of_replica.into_iter().any(|call| {
            (0..2).filter(|part| self.partition_of(*part) == partition).any(|part| match call.parts[part as usize] {
                Part::Sent { broken, .. } => !broken || self.have(Guard::LaneWaits),
                _ => false,
            })
        })
    }

    /// Sends the waiting steps whose lanes are free.
    fn send_waiting(&self, state: &mut State) {
        for call in 0..state.calls.len() as u8 {
            for part in 0..2 {
                let Call { replica, age, parts, .. } = state.calls[call as usize];
                let waits = parts[part as usize] == Part::Waiting && age < TIMEOUT;
                if waits && !self.is_busy(state, replica, self.partition_of(part)) {
                    self.send(state, call, part);
                }
            }
        }
    }

    /// Drops what makes no difference any more, so that equivalent states are equal.
    fn simplify(&self, state: &mut State) {
        let State { partitions, calls, .. } = state;
        for partition in &mut partitions[..self.partitions()] {
            // Drop steps that will be refused and whose answer is not awaited.
            partition.in_flight.retain(|step| {
                let part = calls[step.call as usize].parts[step.part as usize];
                let is_over = step.until <= 0 && self.have(Guard::Until);
                !is_over || matches!(part, Part::Sent { broken: false, .. })
            });
            for step in &mut partition.in_flight {
                step.until = step.until.max(0);
            }
            partition.in_flight.sort();
            for (replica, estimate) in partition.estimates.iter_mut().enumerate() {
                let is_of_use = |call: &Call| call.outcome == Outcome::Nothing && call.replica as usize == replica;
                if calls.len() == self.calls as usize && !calls.iter().any(is_of_use) {
                    *estimate = 0;
                }
            }
        }
    }

    fn store_clock(&self, partition: &mut Partition) {
        let advanced = partition.clock.store(self.guards);
        partition.is_stored = true;
        partition.in_flight.iter_mut().for_each(|step| step.until -= advanced);
        for estimate in &mut partition.estimates {
            *estimate = (*estimate - advanced).max(-2 * TIMEOUT);
        }
    }

    /// Reports the outcome of a call to its caller, once it is known.
    fn conclude(&self, state: &mut State, call: u8) -> Result<(), Promise> {
        let this = &mut state.calls[call as usize];
        if this.outcome != Outcome::Nothing {
            return Ok(());
        }
        let has_failed = this.parts.contains(&Part::Failed);
        if has_failed {
            for part in this.parts.iter_mut().filter(|part| **part == Part::Waiting) {
                *part = Part::Failed;
            }
        }
        let is_pending = this.parts.iter().any(|part| part.is_pending());
        if is_pending && (!has_failed || self.have(Guard::BatchWaits)) {
            return Ok(());
        }
        if this.age > 2 * TIMEOUT {
            return Err(IN_TIME);
        }
        this.outcome = if has_failed { Outcome::Failure } else { Outcome::Answers };
        this.age = 0;
        let is_fine = (0..2).all(|session| is_linearizable(&state.calls, session));
        if is_fine { Ok(()) } else { Err(LINEARIZABLE) }
    }

    /// Runs `apply`.
    fn execute(&self, state: &mut State, partition: usize, step: Step) -> Result<(), Promise> {
        let State { partitions, calls, sessions, .. } = state;
        let here = &mut partitions[partition];
        let place = here.in_flight.iter().position(|other| *other == step).unwrap();
        here.in_flight.remove(place);
        let now = here.clock.now(self.guards);
        let is_late = now >= step.until && self.have(Guard::Until);
        let (index, part) = (step.call as usize, step.part as usize);
        let replica = calls[index].replica as usize;
        let answers = matches!(calls[index].parts[part], Part::Sent { broken: false, .. });
        if answers {
            // The answer carries the time.
            let since_sent = if self.have(Guard::EstimateIsLower) { 0 } else { calls[index].parts[part].age() };
            let reported = if self.have(Guard::ReportedTimeIsStored) {
                self.store_clock(here);
                0
            } else {
                now
            };
            here.estimates[replica] = reported + since_sent;
            calls[index].parts[part] = Part::Waiting;
        }
        if is_late {
            return Ok(());
        }
        if self.shape == Shape::TwoSteps && part == 0 && calls[index].executed[1] {
            return Err(BATCH_ORDER);
        }
        let (answer, then) = calls[index].kind.apply(sessions[part]);
        if then != sessions[part] {
            let was_contradicted = calls.iter().any(|later| later.after & 1 << index != 0 && later.executed[part]);
            if calls[index].outcome == Outcome::Failure && was_contradicted {
                return Err(ACKNOWLEDGED);
            }
            self.store_clock(here);
        }
        sessions[part] = then;
        calls[index].executed[part] = true;
        if answers {
            calls[index].parts[part] = Part::Answered(answer);
        }
        self.conclude(state, step.call)
    }

    fn pass_time(&self, state: &mut State) {
        for call in &mut state.calls {
            if call.outcome == Outcome::Nothing {
                call.age = (call.age + 1).min(2 * TIMEOUT + 1);
            }
            for part in &mut call.parts {
                if let Part::Sent { left, .. } = part {
                    *left = (*left - 1).max(0);
                }
            }
        }
        for partition in &mut state.partitions[..self.partitions()] {
            partition.is_stored = false;
            partition.clock.move_wall(1);
            partition.estimates.iter_mut().for_each(|estimate| *estimate += 1);
        }
    }
}

impl Protocol for Steps {
    type State = State;
    type Action = Action;

    const PROMISES: &'static [Promise] = &[ACKNOWLEDGED, LINEARIZABLE, BATCH_ORDER, IN_TIME];
    const REACHABLE: &'static [Reachable<State>] = &[
        ("a call fails and has had its effect", |state| {
            state.calls.iter().any(|call| call.outcome == Outcome::Failure && call.executed[0])
        }),
        ("a call fails and has no effect", |state| {
            state.calls.iter().any(|call| call.outcome == Outcome::Failure && !call.executed[0])
        }),
    ];

    fn start(&self) -> State {
        let partition = Partition { is_stored: true, ..Partition::default() };
        State {
            sessions: [false; 2],
            partitions: [partition.clone(), partition],
            calls: Vec::new(),
            sets: 0,
            breaks: 0,
            pauses: 0,
        }
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let is_over = |call: &Call| call.outcome != Outcome::Nothing;
        let calls_left = state.calls.len() < self.calls as usize;
        if !calls_left
            && state.calls.iter().all(is_over)
            && state.partitions.iter().all(|partition| partition.in_flight.is_empty())
        {
            return;
        }
        if calls_left {
            // The replicas are interchangeable, so the first call uses the first.
            let replicas = if state.calls.is_empty() { 0..1 } else { 0..2 };
            for replica in replicas {
                actions.extend(self.kinds().iter().map(|kind| Action::Starts { replica, kind: *kind }));
            }
        }
        // Replicas are on time: time does not pass before they have done what is due.
        let mut is_due = false;
        for (call, this) in (0..).zip(&state.calls) {
            for part in 0..2 {
                match this.parts[part as usize] {
                    Part::Waiting if this.age >= TIMEOUT => {
                        actions.push(Action::GivesUp { call, part });
                        is_due = true;
                    }
                    Part::Sent { left, broken } => {
                        if !broken && state.breaks < self.breaks {
                            actions.push(Action::ConnectionBreaks { call, part });
                        }
                        if broken && !self.have(Guard::NoHiddenRetry) {
                            actions.push(Action::SendsAgain { call, part });
                        }
                        if left == 0 || broken && !self.have(Guard::FailureWaits) {
                            actions.push(Action::GivesUp { call, part });
                            is_due |= left == 0;
                        }
                    }
                    _ => {}
                }
            }
        }
        for (number, partition) in (0..self.partitions() as u8).zip(&state.partitions) {
            if partition.is_paused {
                actions.push(Action::RedisResumes { partition: number });
                continue;
            }
            actions.extend(partition.in_flight.iter().map(|step| Action::Executes { partition: number, step: *step }));
            if !partition.is_stored && self.have(Guard::ClockIsStored) {
                actions.push(Action::StoresClock { partition: number });
                is_due = true;
            }
            if state.pauses < self.pauses {
                actions.push(Action::RedisPauses { partition: number });
            }
        }
        if !is_due {
            actions.push(Action::TimePasses);
        }
        if state.sets < self.sets {
            actions.push(Action::WallClockIsSet { by: -self.set });
            if self.set_forward {
                actions.push(Action::WallClockIsSet { by: self.set });
            }
        }
    }

    fn next(&self, state: &State, action: Action) -> Result<State, Promise> {
        let mut next = state.clone();
        match action {
            Action::Starts { replica, kind } => {
                let is_over = |n: &usize| state.calls[*n].outcome != Outcome::Nothing;
                let after = (0..state.calls.len()).filter(is_over).map(|n| 1 << n).sum();
                let (parts, outcome) = (self.parts(kind), Outcome::Nothing);
                next.calls.push(Call { replica, kind, age: 0, after, parts, executed: [false; 2], outcome });
            }
            Action::ConnectionBreaks { call, part } => {
                next.breaks += 1;
                if let Part::Sent { broken, .. } = &mut next.calls[call as usize].parts[part as usize] {
                    *broken = true;
                }
            }
            Action::SendsAgain { call, part } => self.send(&mut next, call, part),
            Action::Executes { partition, step } => self.execute(&mut next, partition as usize, step)?,
            Action::GivesUp { call, part } => {
                next.calls[call as usize].parts[part as usize] = Part::Failed;
                self.conclude(&mut next, call)?;
            }
            Action::TimePasses => self.pass_time(&mut next),
            Action::StoresClock { partition } => self.store_clock(&mut next.partitions[partition as usize]),
            Action::WallClockIsSet { by } => {
                next.sets += 1;
                for partition in &mut next.partitions[..self.partitions()] {
                    partition.clock.move_wall(by);
                }
            }
            Action::RedisPauses { partition } => {
                next.pauses += 1;
                next.partitions[partition as usize].is_paused = true;
            }
            Action::RedisResumes { partition } => next.partitions[partition as usize].is_paused = false,
        }
        self.send_waiting(&mut next);
        self.simplify(&mut next);
        Ok(next)
    }
}
