//! How replicas find the registry, make it, and replace one that Redis has lost.
//!
//! A registry has a *birth*, a random number that all its partitions have, and a secret key of its hash. Every script
//! names the birth. So nothing is done for a registry that is not there any more.
//!
//! A replica reads the second partition's birth first, and then which registry the first partition has
//! (`registry_open`, which makes one where there is none). Then it lets the second partition join (`partition_join`):
//!
//! - If that partition is of this registry, the first one notes that it has joined (`registry_mark`).
//! - If it is of another registry, and has been since before the first partition was read, that registry is gone. The
//!   partition is disowned (`partition_disown`), and the search begins again.
//! - If it is of none, and had joined before, Redis has lost it. The registry moves to a new id (`registry_move`), so
//!   that cursors of the old one are foreign.
//! - If it is of none, and is new, the replica deletes what an older registry may have left there (`partition_wipe`), and
//!   makes it. It does not if the partition was disowned meanwhile: then sessions may have come after they were deleted.

use super::{
    check::{Promise, Protocol, Sight},
    guard::{Guard, Guards},
};

const FOREIGN: Promise = "no session of a registry that is gone is seen in another";
const WIPED: Promise = "replicas delete nothing of the registry that is there";
const NOTICED: Promise = "the registry's id moves when Redis has lost a partition";

/// The birth of a registry, and with it the key of its hash.
///
/// A session that was created with one key is in a bucket where nobody looks for it with another.
type Birth = u8;

/// What Redis holds of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct Partition {
    birth: Option<Birth>,
    /// The registry that its session was created in.
    session: Option<Birth>,
    /// A random number that tells when it was disowned from all other times. Here it is a count.
    disowned: u8,
    /// What the first partition says: the registry's id, and whether the second partition has joined.
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
    /// `partition_join`. To make the partition it names when that was disowned.
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
    NotThere { disowned: u8 },
}

/// A replica's search for the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Search {
    /// The command that it waits for.
    sent: Command,
    theirs: Option<Birth>,
    head: Option<Head>,
    /// When the second partition was disowned, as it was read.
    disowned: u8,
}

const BEGIN: Search = Search { sent: Command::ReadBirth, theirs: None, head: None, disowned: 0 };

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The registry's first partition, and the second, which has the session.
    partitions: [Partition; 2],
    /// The registry that each replica has found.
    found: [Option<Birth>; 2],
    searches: [Option<Search>; 2],
    /// The registry that Redis has lost the second partition of, and its id then. The protocol does not know.
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
    Looks { replica: u8 },
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
                None => Reply::NotThere { disowned: second.disowned },
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

    /// Returns a search with its next command, or nothing when the registry is found.
    fn go_on(&self, state: &mut State, replica: u8, search: Search, reply: Reply) -> Option<Search> {
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
            (Command::Join { make: None, .. }, Reply::NotThere { disowned }) => match search.head {
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
    const SIGHTS: &'static [Sight<State>] = &[
        ("the session is seen", |state| state.has_seen),
        ("a second registry has both partitions", |state| state.partitions[1].birth == Some(2)),
        ("the registry's id moves", |state| state.partitions[0].id > 0),
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
            let is_there = state.found[r].is_some_and(|birth| state.partitions[1].birth == Some(birth));
            if is_there || state.found[r].is_some() && !self.have(Guard::Birth) {
                actions.extend([Action::Creates { replica }, Action::Looks { replica }]);
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
                next.searches[replica as usize] = self.go_on(&mut next, replica, search, reply);
            }
            Action::Creates { replica } => next.partitions[1].session = state.found[replica as usize],
            Action::Looks { replica } => {
                let session = state.partitions[1].session;
                next.has_seen |= session.is_some();
                if session.is_some() && session != state.found[replica as usize] {
                    return Err(FOREIGN);
                }
            }
            Action::RedisLosesAll { partition } => {
                next.losses[partition as usize] += 1;
                let [first, second] = state.partitions;
                // While several replicas make the registry, a loss may come before one of them has noted the partition.
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
    fn a_script_for_another_registry_creates_sessions_that_nobody_finds() {
        mutant(Guard::Birth, REGISTRY, FOREIGN);
    }

    #[test]
    fn a_replica_disowns_a_partition_that_has_joined_meanwhile() {
        mutant(Guard::DisownNamesBirth, REGISTRY, WIPED);
    }

    #[test]
    fn a_replica_that_knows_an_old_registry_disowns_the_new_one() {
        mutant(Guard::BirthBeforeHead, REGISTRY, WIPED);
    }

    #[test]
    fn what_an_older_registry_left_is_seen_in_the_new_one() {
        mutant(Guard::WipesFirst, REGISTRY, FOREIGN);
    }

    #[test]
    fn a_slow_replica_wipes_a_partition_that_has_joined() {
        mutant(Guard::WipesNoRegistry, REGISTRY, WIPED);
    }

    #[test]
    fn a_partition_is_made_of_what_came_after_it_was_wiped() {
        mutant(Guard::MakeNamesDisown, REGISTRY, FOREIGN);
    }

    #[test]
    fn a_lost_partition_that_was_not_noted_is_made_anew_in_silence() {
        mutant(Guard::JoinIsNoted, ALONE, NOTICED);
    }
}
