//! How replicas find the registry, create it, and replace one that Redis has lost.
//!
//! A registry has a *birth*, a random number that all its partitions share, and a secret hash key. Every script names
//! the birth, so no script has an effect on a registry that no longer exists.
//!
//! A replica first reads the second partition's birth, and then which registry the first partition has
//! (`registry_open`, which creates one if there is none). Then it lets the second partition join (`partition_join`):
//!
//! - If that partition belongs to this registry, the first partition records that it has joined (`registry_mark`).
//! - If it belongs to another registry, and did so before the first partition was read, that other registry is gone.
//!   The replica disowns the partition (`partition_disown`) and starts over.
//! - If it belongs to none but had joined, Redis has lost it. The replica moves the registry to a new id
//!   (`registry_move`), so that cursors of the old id become foreign.
//! - If it belongs to none and is new, the replica deletes the leftovers of any older registry (`partition_wipe`), and
//!   creates the partition. It does not create it if the partition was disowned meanwhile: sessions may then have been
//!   added after the deletion.

use super::{
    check::{Promise, Protocol, Reachable},
    guard::{Guard, Guards},
};

const FOREIGN: Promise = "no session of an old registry appears in a new one";
const WIPED: Promise = "replicas delete nothing of the current registry";
const NOTICED: Promise = "the registry moves to a new id when Redis has lost a partition";

/// The birth of a registry. It also stands for the registry's hash key.
///
/// A session that was created with one key is in a bucket where it is not looked for with another key.
type Birth = u8;

/// What Redis holds of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct Partition {
    birth: Option<Birth>,
    /// The registry that its session was created in.
    session: Option<Birth>,
    /// A random number that identifies the newest disowning. Here it is a count.
    disowned: u8,
    /// In the first partition: the registry's id, and whether the second partition has joined.
    id: u8,
    has_joined: bool,
}

/// What a replica has read of the first partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Head {
    birth: Birth,
    id: u8,
    has_joined: bool,
}

/// A script with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Command {
    /// Reads the second partition's birth.
    ReadBirth,
    /// `registry_open`.
    Open { make: bool },
    /// `partition_wipe`.
    Wipe,
    /// `partition_join`. With `make`, creates the partition, if that names its newest disowning.
    Join { birth: Birth, make: Option<u8> },
    /// `partition_disown`.
    Disown { theirs: Birth },
    /// `registry_move`.
    Move { birth: Birth, id: u8 },
    /// `registry_mark`.
    Mark { birth: Birth },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Done,
    Refused,
    Birth(Option<Birth>),
    Head(Option<Head>),
    Joined,
    Foreign,
    Missing { disowned: u8 },
}

/// A replica's search for the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Search {
    /// The command whose answer it waits for.
    sent: Command,
    theirs: Option<Birth>,
    head: Option<Head>,
    /// The newest disowning of the second partition, as it was read.
    disowned: u8,
}

const BEGIN: Search = Search { sent: Command::ReadBirth, theirs: None, head: None, disowned: 0 };

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The first partition of the registry, and the second, which holds the session.
    partitions: [Partition; 2],
    /// The registry that each replica has found.
    found: [Option<Birth>; 2],
    searches: [Option<Search>; 2],
    /// The registry whose second partition Redis has lost, and its id then. The protocol does not know this.
    lost: Option<(Birth, u8)>,
    has_seen: bool,
    births: u8,
    disowns: u8,
    searched: u8,
    losses: [u8; 2],
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    Searches { replica: u8 },
    Executes { replica: u8, command: Command },
    Creates { replica: u8 },
    Reads { replica: u8 },
    RedisLosesAll { partition: u8 },
}

/// The model and its limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registry {
    guards: Guards,
    replicas: u8,
    /// How many searches there are, and how often Redis loses each partition.
    searches: u8,
    losses: u8,
}

impl Registry {
    fn have(&self, guard: Guard) -> bool {
        self.guards.have(guard)
    }

    /// Runs a script.
    fn run(&self, state: &mut State, command: Command) -> Result<Reply, Promise> {
        let [first, second] = &mut state.partitions;
        Ok(match command {
            Command::ReadBirth => Reply::Birth(second.birth),
            Command::Open { make } => {
                if first.birth.is_none() && make {
                    state.births += 1;
                    *first = Partition { birth: Some(state.births), ..Partition::default() };
                }
                Reply::Head(first.birth.map(|birth| Head { birth, id: first.id, has_joined: first.has_joined }))
            }
            Command::Wipe => {
                if second.birth.is_some() && self.have(Guard::WipesNoRegistry) {
                    return Ok(Reply::Refused);
                }
                if second.session.is_some() && second.session == first.birth {
                    return Err(WIPED);
                }
                second.session = None;
                Reply::Done
            }
            Command::Join { birth, make } => match second.birth {
                Some(theirs) if theirs == birth => Reply::Joined,
                Some(_) => Reply::Foreign,
                None if make.is_some_and(|known| known == second.disowned || !self.have(Guard::MakeNamesDisown)) => {
                    second.birth = Some(birth);
                    if first.birth == Some(birth) && state.lost == Some((birth, first.id)) {
                        return Err(NOTICED);
                    }
                    Reply::Joined
                }
                None => Reply::Missing { disowned: second.disowned },
            },
            Command::Disown { theirs } => {
                if second.birth == Some(theirs) || !self.have(Guard::DisownNamesBirth) {
                    if second.birth.is_some() && second.birth == first.birth {
                        return Err(WIPED);
                    }
                    state.disowns += 1;
                    (second.birth, second.disowned) = (None, state.disowns);
                }
                Reply::Done
            }
            Command::Move { birth, id } => {
                if first.birth == Some(birth) && first.id == id {
                    (first.id, first.has_joined) = (id + 1, false);
                }
                Reply::Done
            }
            Command::Mark { birth } => {
                if first.birth == Some(birth) && self.have(Guard::JoinIsNoted) {
                    first.has_joined = true;
                }
                Reply::Done
            }
        })
    }

    /// Returns the search with its next command, or `None` if the registry is found.
    fn proceed(&self, state: &mut State, replica: u8, search: Search, reply: Reply) -> Option<Search> {
        let birth = search.head.map_or(0, |head| head.birth);
        let has_joined = search.head.is_some_and(|head| head.has_joined);
        let sent = match (search.sent, reply) {
            (_, Reply::Birth(theirs)) => {
                return Some(Search { sent: Command::Open { make: false }, theirs, ..search });
            }
            (Command::Open { .. }, Reply::Head(Some(head))) => {
                let sent = Command::Join { birth: head.birth, make: None };
                return Some(Search { sent, head: Some(head), ..search });
            }
            (Command::Open { .. }, _) => Command::Open { make: true },
            (Command::Join { .. }, Reply::Joined) if !has_joined => Command::Mark { birth },
            (Command::Join { .. }, Reply::Joined) | (Command::Mark { .. }, _) => {
                state.found[replica as usize] = Some(birth);
                return None;
            }
            (Command::Join { .. }, Reply::Foreign) => {
                let has_been = |theirs: &Birth| *theirs != birth;
                let theirs = search.theirs.filter(has_been);
                let theirs = if self.have(Guard::BirthBeforeHead) { theirs } else { state.partitions[1].birth };
                match theirs {
                    Some(theirs) => Command::Disown { theirs },
                    None => return Some(BEGIN),
                }
            }
            (Command::Join { make: None, .. }, Reply::Missing { disowned }) => match search.head {
                Some(Head { birth, id, has_joined: true }) => Command::Move { birth, id },
                _ if self.have(Guard::WipesFirst) => {
                    return Some(Search { sent: Command::Wipe, disowned, ..search });
                }
                _ => Command::Join { birth, make: Some(disowned) },
            },
            (Command::Wipe, Reply::Done) => Command::Join { birth, make: Some(search.disowned) },
            _ => return Some(BEGIN),
        };
        Some(Search { sent, ..search })
    }
}

impl Protocol for Registry {
    type State = State;
    type Action = Action;

    const PROMISES: &'static [Promise] = &[FOREIGN, WIPED, NOTICED];
    const REACHABLE: &'static [Reachable<State>] = &[
        ("the session is read", |state| state.has_seen),
        ("a second registry has both partitions", |state| state.partitions[1].birth == Some(2)),
        ("the registry moves to a new id", |state| state.partitions[0].id > 0),
    ];

    fn start(&self) -> State {
        State {
            partitions: [Partition::default(); 2],
            found: [None; 2],
            searches: [None; 2],
            lost: None,
            has_seen: false,
            births: 0,
            disowns: 0,
            searched: 0,
            losses: [0; 2],
        }
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for replica in 0..self.replicas {
            let r = replica as usize;
            if let Some(search) = state.searches[r] {
                actions.push(Action::Executes { replica, command: search.sent });
                continue;
            }
            if state.searched < self.searches {
                actions.push(Action::Searches { replica });
            }
            let is_present = state.found[r].is_some_and(|birth| state.partitions[1].birth == Some(birth));
            if is_present || state.found[r].is_some() && !self.have(Guard::Birth) {
                actions.extend([Action::Creates { replica }, Action::Reads { replica }]);
            }
        }
        let may_be_lost = |partition: &u8| state.losses[*partition as usize] < self.losses;
        actions.extend((0..2).filter(may_be_lost).map(|partition| Action::RedisLosesAll { partition }));
    }

    fn next(&self, state: &State, action: Action) -> Result<State, Promise> {
        let mut next = state.clone();
        match action {
            Action::Searches { replica } => {
                next.searched += 1;
                next.searches[replica as usize] = Some(BEGIN);
            }
            Action::Executes { replica, command } => {
                let reply = self.run(&mut next, command)?;
                let search = next.searches[replica as usize].take().unwrap();
                next.searches[replica as usize] = self.proceed(&mut next, replica, search, reply);
            }
            Action::Creates { replica } => next.partitions[1].session = state.found[replica as usize],
            Action::Reads { replica } => {
                let session = state.partitions[1].session;
                next.has_seen |= session.is_some();
                if session.is_some() && session != state.found[replica as usize] {
                    return Err(FOREIGN);
                }
            }
            Action::RedisLosesAll { partition } => {
                next.losses[partition as usize] += 1;
                let [first, second] = state.partitions;
                // While several replicas create the registry, a loss may come before any of them has recorded that the
                // partition joined.
                if partition == 1 && second.birth.is_some() && second.birth == first.birth && self.replicas == 1 {
                    next.lost = first.birth.map(|birth| (birth, first.id));
                }
                next.partitions[partition as usize] = Partition::default();
            }
        }
        Ok(next)
    }
}

mod tests {
    use super::*;
    use crate::check::{breaks, holds, sized};

    const REGISTRY: Registry = Registry { guards: Guards::ALL, replicas: 2, searches: 4, losses: 1 };
    const ALONE: Registry = Registry { replicas: 1, ..REGISTRY };

    fn mutant(guard: Guard, model: Registry, promise: Promise) {
        breaks(&Registry { guards: Guards::without(guard), ..model }, promise);
    }

    #[test]
    fn replicas_find_one_registry() {
        let long = Registry { searches: 5, ..REGISTRY };
        sized(vec![REGISTRY], vec![long]).iter().for_each(holds);
    }

    #[test]
    fn one_replica_notices_a_lost_partition() {
        holds(&ALONE);
    }

    #[test]
    fn script_for_another_registry_creates_sessions_that_are_not_found() {
        mutant(Guard::Birth, REGISTRY, FOREIGN);
    }

    #[test]
    fn replica_disowns_a_partition_that_has_joined_meanwhile() {
        mutant(Guard::DisownNamesBirth, REGISTRY, WIPED);
    }

    #[test]
    fn replica_that_knows_an_old_registry_disowns_the_new_one() {
        mutant(Guard::BirthBeforeHead, REGISTRY, WIPED);
    }

    #[test]
    fn leftovers_of_an_older_registry_appear_in_the_new_one() {
        mutant(Guard::WipesFirst, REGISTRY, FOREIGN);
    }

    #[test]
    fn slow_replica_wipes_a_partition_that_has_joined() {
        mutant(Guard::WipesNoRegistry, REGISTRY, WIPED);
    }

    #[test]
    fn partition_is_created_with_sessions_added_after_the_wipe() {
        mutant(Guard::MakeNamesDisown, REGISTRY, FOREIGN);
    }

    #[test]
    fn lost_partition_that_was_not_recorded_is_silently_recreated() {
        mutant(Guard::JoinIsNoted, ALONE, NOTICED);
    }
}
