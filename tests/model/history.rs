//! Histories of the log, and how replicas and observers distinguish them.
//!
//! Redis may lose its newest changes and continue differently. So each entry of a log carries a random number, its
//! *mark*, and the mark of the entry before it. Two logs that have the same mark at a position agree on every change up
//! to that position.
//!
//! - A **tail** (XREAD) accepts an entry only if it names the mark that was read last. If the log is quiet, the tail
//!   asks once a second for the mark at the end of what it has read (`extent`). If that mark differs, Redis has lost
//!   changes: the replica moves the registry to a new id (`registry_move`), resets its observers and starts over with
//!   the current log.
//! - A **snapshot** reads one bucket after the other (`read`). The script refuses unless the log contains the point
//!   that the observer has reached, and returns the point that the bucket reflects. The observer follows the tail until
//!   it has passed that point. If the tail's mark there differs, the bucket was read in another history.
//! - A **cursor** names the registry's id and a point in each partition. A replica honours it once its tail has reached
//!   these points, if at one moment the log contains both the cursor's point and the tail's end (`marks`). Then the
//!   cursor's history is a prefix of the tail's.
//! - A script is refused (**BEHIND**) if the log ends before a place that the replica has read or reported.

mod log;
mod tests;

use self::log::{Entry, Log, Point};
use super::{
    check::{Promise, Protocol, Reachable},
    guard::{Guard, Guards},
};

const CURSOR: Promise = "a cursor is honoured only if its history is a prefix of the current one";
const EXACT: Promise = "an observer that was not reset holds exactly what the log says";
const SNAPSHOT: Promise = "a snapshot never mixes two histories";
const NOTICED: Promise = "an observer is reset within a quiet second after Redis lost a change that it received";
const PLACES: Promise = "the places that a replica reports only grow within one registry id";
const ONE_MOVE: Promise = "one loss moves the registry to a new id once";

/// What Redis holds of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct Partition {
    /// The registry's id. Used only in the first partition.
    id: u8,
    log: Log,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct Replica {
    id: u8,
    /// What its tails have read.
    tails: [Log; 2],
    /// Whether each tail has checked the mark at its end since Redis last lost something.
    has_checked: [bool; 2],
    /// Whether it has noticed a loss and not moved the registry yet.
    has_noticed: bool,
    /// The newest place that it has read or reported, for BEHIND.
    newest: [u8; 2],
    /// The newest place that it has reported under this id. The protocol does not know this.
    reported: [u8; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cursor {
    id: u8,
    points: [Point; 2],
}

/// The only observer. Its sessions are in `State::held`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Observer {
    Away(Option<Cursor>),
    /// Reads the buckets in turn, one for each session. `run` is the point at which the bucket before `next` was read,
    /// until the observer has passed it.
    Snapshot {
        replica: u8,
        at: [u8; 2],
        next: u8,
        run: Option<Point>,
    },
    Live {
        replica: u8,
        at: [Point; 2],
        has_resumed: bool,
    },
    /// Its cursor is being compared with the log. `overtaken`: the replica has reset its observers meanwhile.
    Resuming {
        replica: u8,
        cursor: Cursor,
        agreed: [bool; 2],
        overtaken: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    redis: [Partition; 2],
    /// The older state to which Redis goes back.
    saved: [Partition; 2],
    replicas: [Replica; 2],
    observer: Observer,
    /// The sessions that the observer holds, as a bit set.
    held: u8,
    was_reset: bool,
    writes: u8,
    saves: u8,
    losses: u8,
    moves: u8,
    leaves: u8,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    /// A create or a destroy, called at a replica.
    Writes {
        replica: u8,
        session: u8,
    },
    RedisSaves {
        partition: u8,
    },
    RedisLosesChanges {
        partition: u8,
    },
    TailReads {
        replica: u8,
        partition: u8,
    },
    TailChecks {
        replica: u8,
        partition: u8,
    },
    MovesRegistry {
        replica: u8,
    },
    ObserverComes {
        replica: u8,
    },
    ObserverReadsBucket,
    ObserverFollows {
        partition: u8,
    },
    ObserverLeaves,
    AsksForMark {
        partition: u8,
    },
    ObserverResumes,
}

/// The model and its limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Histories {
    guards: Guards,
    /// With one partition, it holds both sessions.
    partitions: u8,
    writes: u8,
    saves: u8,
    losses: u8,
    /// How often the observer leaves.
    leaves: u8,
    /// Whether both replicas receive calls, and report places to their callers.
    places: bool,
}

const REPLICAS: u8 = 2;
const SESSIONS: u8 = 2;

impl Histories {
    fn have(&self, guard: Guard) -> bool {
        self.guards.have(guard)
    }

    fn partition_of(&self, session: u8) -> usize {
        if self.partitions == 2 { session as usize } else { 0 }
    }

    fn begin_snapshot(&self, state: &mut State, replica: u8) {
        let at = state.replicas[replica as usize].tails.map(|tail| tail.end());
        state.observer = Observer::Snapshot { replica, at, next: 0, run: None };
        state.held = 0;
    }

    /// Starts over with the current log, and resets the observers of a replica.
    fn start_anew(&self, state: &mut State, replica: u8) {
        let id = state.redis[0].id;
        let tails = state.redis.map(|partition| partition.log);
        let here = &mut state.replicas[replica as usize];
        let reported = if here.id == id { here.reported } else { [0; 2] };
        let newest = tails.map(|tail| tail.end());
        *here = Replica { id, tails, has_checked: [true; 2], has_noticed: false, newest, reported };
        match &mut state.observer {
            Observer::Snapshot { replica: at, .. } | Observer::Live { replica: at, .. } if *at == replica => {
                state.was_reset = true;
                self.begin_snapshot(state, replica);
            }
            Observer::Resuming { replica: at, overtaken, .. } if *at == replica => *overtaken = true,
            _ => {}
        }
    }

    /// Returns whether a write is refused as BEHIND.
    fn is_behind(&self, state: &State, replica: u8, partition: usize) -> bool {
        let newest = state.replicas[replica as usize].newest[partition];
        self.places && state.redis[partition].log.end() < newest && self.have(Guard::Behind)
    }

    fn write(&self, state: &mut State, replica: u8, session: u8) -> Result<(), Promise> {
        state.writes += 1;
        let partition = self.partition_of(session);
        let log = &mut state.redis[partition].log;
        log.push(Entry { mark: state.writes, session });
        let place = log.end();
        if !self.places {
            return Ok(());
        }
        let here = &mut state.replicas[replica as usize];
        if place < here.reported[partition] {
            return Err(PLACES);
        }
        here.reported[partition] = place;
        if self.have(Guard::BehindCountsAnswers) {
            here.newest[partition] = here.newest[partition].max(place);
        }
        Ok(())
    }

    /// Reads the next entry with XREAD.
    fn read_tail(&self, state: &mut State, replica: u8, partition: usize) {
        let log = state.redis[partition].log;
        let here = &mut state.replicas[replica as usize];
        let tail = &mut here.tails[partition];
        let end = tail.point(tail.end());
        if !log.contains(end) && self.have(Guard::PredecessorMark) {
            here.has_noticed = true;
            return;
        }
        tail.push(log.after(end.position));
        here.newest[partition] = here.newest[partition].max(tail.end());
        if self.places {
            here.reported[partition] = here.reported[partition].max(tail.end());
        }
    }

    /// Asks `extent` for the mark at the tail's end and for the registry's id.
    fn check_tail(&self, state: &mut State, replica: u8, partition: usize) {
        let log = state.redis[partition].log;
        let here = &mut state.replicas[replica as usize];
        here.has_checked[partition] = true;
        let tail = here.tails[partition];
        let is_same = if self.have(Guard::CheckComparesMarks) {
            log.contains(tail.point(tail.end()))
        } else {
            tail.end() <= log.end()
        };
        if !is_same {
            here.has_noticed = true;
        } else if partition == 0 && here.id != state.redis[0].id {
            self.start_anew(state, replica);
        }
    }

    fn move_registry(&self, state: &mut State, replica: u8) -> Result<(), Promise> {
        let is_known = state.redis[0].id == state.replicas[replica as usize].id;
        if self.have(Guard::RegistryIdMoves) && (is_known || !self.have(Guard::CompareAndSetMove)) {
            state.moves += 1;
            state.redis[0].id = state.moves;
            if state.moves > state.losses {
                return Err(ONE_MOVE);
            }
        }
        self.start_anew(state, replica);
        Ok(())
    }

    /// Runs `read` for the observer's next bucket.
    fn read_bucket(&self, state: &mut State) -> Result<(), Promise> {
        let Observer::Snapshot { replica, at, next, .. } = state.observer else {
            return Ok(());
        };
        let partition = self.partition_of(next);
        let known = state.replicas[replica as usize].tails[partition].point(at[partition]);
        let log = &state.redis[partition].log;
        if !log.contains(known) && self.have(Guard::KnownMark) {
            return Ok(());
        }
        state.held |= log.sessions(log.end()) & 1 << next;
        let run = Some(log.point(log.end()));
        state.observer = Observer::Snapshot { replica, at, next: next + 1, run };
        self.pass(state)
    }

    /// Continues a snapshot once the observer has passed the point at which it read the last bucket.
    fn pass(&self, state: &mut State) -> Result<(), Promise> {
        let Observer::Snapshot { replica, at, next, run: Some(run) } = state.observer else {
            return Ok(());
        };
        let partition = self.partition_of(next - 1);
        if at[partition] < run.position {
            return Ok(());
        }
        let tails = state.replicas[replica as usize].tails;
        if !tails[partition].contains(run) && self.have(Guard::RunMark) {
            state.was_reset = true;
            self.begin_snapshot(state, replica);
            return Ok(());
        }
        if next < SESSIONS {
            state.observer = Observer::Snapshot { replica, at, next, run: None };
            return Ok(());
        }
        if state.held != tails[0].sessions(at[0]) ^ tails[1].sessions(at[1]) {
            return Err(SNAPSHOT);
        }
        let at = [tails[0].point(at[0]), tails[1].point(at[1])];
        state.observer = Observer::Live { replica, at, has_resumed: false };
        Ok(())
    }

    /// Gives the observer the next change that its replica's tail has read.
    fn follow(&self, state: &mut State, partition: usize) -> Result<(), Promise> {
        let tails = state.replicas.map(|replica| replica.tails[partition]);
        match &mut state.observer {
            Observer::Snapshot { replica, at, next, run } => {
                let entry = tails[*replica as usize].after(at[partition]);
                at[partition] += 1;
                // Changes to a bucket that is yet to be read will be in it when it is read.
                let is_received = match run {
                    Some(run) if entry.session + 1 == *next => at[partition] > run.position,
                    _ => entry.session < *next,
                };
                if is_received {
                    state.held ^= 1 << entry.session;
                }
                self.pass(state)?;
            }
            Observer::Live { replica, at, .. } => {
                let entry = tails[*replica as usize].after(at[partition].position);
                at[partition] = Point { position: at[partition].position + 1, mark: entry.mark };
                state.held ^= 1 << entry.session;
            }
            _ => {}
        }
        Ok(())
    }

    fn come(&self, state: &mut State, replica: u8) {
        let Observer::Away(cursor) = state.observer else {
            return;
        };
        match cursor {
            Some(cursor) if cursor.id == state.replicas[replica as usize].id => {
                let agreed = [!self.have(Guard::CursorMarks); 2];
                state.observer = Observer::Resuming { replica, cursor, agreed, overtaken: false };
            }
            _ => self.begin_snapshot(state, replica),
        }
    }

    fn leave(&self, state: &mut State) {
        let Observer::Live { replica, at, .. } = state.observer else {
            return;
        };
        state.leaves += 1;
        let id = state.replicas[replica as usize].id;
        state.observer = Observer::Away(Some(Cursor { id, points: at }));
    }

    /// Runs `marks` for a cursor's point in one partition.
    fn ask_for_mark(&self, state: &mut State, partition: usize) {
        let Observer::Resuming { replica, cursor, agreed, .. } = &mut state.observer else {
            return;
        };
        let tail = state.replicas[*replica as usize].tails[partition];
        let log = state.redis[partition].log;
        let point = cursor.points[partition];
        let follows_this_log = log.contains(tail.point(tail.end())) || !self.have(Guard::KnownMarkOfCursor);
        let has_come_as_far = tail.end() >= point.position || !self.have(Guard::CursorAfterTail);
        if !follows_this_log {
            // The tail will notice, and the replica will start over.
        } else if !log.contains(point) {
            state.was_reset = true;
            let replica = *replica;
            self.begin_snapshot(state, replica);
        } else if has_come_as_far {
            agreed[partition] = true;
        }
    }

    /// Honours a cursor that agrees in every partition.
    fn resume(&self, state: &mut State) {
        let Observer::Resuming { replica, cursor, overtaken, .. } = state.observer else {
            return;
        };
        state.observer = if overtaken && self.have(Guard::EpochAroundCheck) {
            Observer::Resuming { replica, cursor, agreed: [false; 2], overtaken: false }
        } else {
            Observer::Live { replica, at: cursor.points, has_resumed: true }
        };
    }

    /// Checks what the observer holds.
    fn check(&self, state: &State) -> Result<(), Promise> {
        let Observer::Live { replica, at, has_resumed } = state.observer else {
            return Ok(());
        };
        let here = &state.replicas[replica as usize];
        let partitions = 0..self.partitions as usize;
        if partitions.clone().any(|p| here.tails[p].end() < at[p].position) {
            // The observer waits for the tail.
            return Ok(());
        }
        if partitions.clone().any(|p| !here.tails[p].contains(at[p])) {
            return Err(if has_resumed { CURSOR } else { EXACT });
        }
        if state.held != here.tails[0].sessions(at[0].position) ^ here.tails[1].sessions(at[1].position) {
            return Err(EXACT);
        }
        let is_quiet = !here.has_noticed
            && partitions.clone().all(|p| {
                let has_read_all = here.tails[p].end() >= state.redis[p].log.end();
                let has_checked = here.has_checked[p] || !self.have(Guard::QuietCheck);
                has_read_all && has_checked && at[p].position == here.tails[p].end()
            });
        if is_quiet && partitions.into_iter().any(|p| here.tails[p] != state.redis[p].log) {
            return Err(NOTICED);
        }
        Ok(())
    }
}

impl Protocol for Histories {
    type State = State;
    type Action = Action;

    const PROMISES: &'static [Promise] = &[CURSOR, EXACT, SNAPSHOT, NOTICED, PLACES, ONE_MOVE];
    const REACHABLE: &'static [Reachable<State>] = &[
        ("an observer holds both sessions", |state| {
            matches!(state.observer, Observer::Live { .. }) && state.held == 0b11
        }),
        ("an observer is reset", |state| state.was_reset),
        ("the registry moves to a new id", |state| state.moves > 0),
    ];

    fn start(&self) -> State {
        let replica = Replica { has_checked: [true; 2], ..Replica::default() };
        State {
            redis: [Partition::default(); 2],
            saved: [Partition::default(); 2],
            replicas: [replica; REPLICAS as usize],
            observer: Observer::Away(None),
            held: 0,
            was_reset: false,
            writes: 0,
            saves: 0,
            losses: 0,
            moves: 0,
            leaves: 0,
        }
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.writes < self.writes {
            let replicas = if self.places { 0..REPLICAS } else { 0..1 };
            for replica in replicas {
                let may_write = |session: &u8| !self.is_behind(state, replica, self.partition_of(*session));
                let sessions = (0..SESSIONS).filter(may_write);
                actions.extend(sessions.map(|session| Action::Writes { replica, session }));
            }
        }
        for partition in 0..self.partitions {
            let p = partition as usize;
            if state.saved[p] != state.redis[p] {
                if state.saves < self.saves {
                    actions.push(Action::RedisSaves { partition });
                }
                if state.losses < self.losses {
                    actions.push(Action::RedisLosesChanges { partition });
                }
            }
            for (replica, here) in (0..).zip(&state.replicas) {
                if here.has_noticed {
                    continue;
                }
                if here.tails[p].end() < state.redis[p].log.end() {
                    actions.push(Action::TailReads { replica, partition });
                }
                if !here.has_checked[p] && self.have(Guard::QuietCheck) {
                    actions.push(Action::TailChecks { replica, partition });
                }
            }
        }
        let have_noticed = (0..).zip(&state.replicas).filter(|(_, here)| here.has_noticed);
        actions.extend(have_noticed.map(|(replica, _)| Action::MovesRegistry { replica }));
        match state.observer {
            // The replicas are interchangeable, so the observer uses the first.
            Observer::Away(None) => actions.push(Action::ObserverComes { replica: 0 }),
            Observer::Away(Some(_)) => {
                actions.extend((0..REPLICAS).map(|replica| Action::ObserverComes { replica }));
            }
            Observer::Snapshot { run: None, .. } => actions.push(Action::ObserverReadsBucket),
            Observer::Snapshot { replica, at, .. } => {
                let has_more = |p: &u8| at[*p as usize] < state.replicas[replica as usize].tails[*p as usize].end();
                let partitions = (0..self.partitions).filter(has_more);
                actions.extend(partitions.map(|partition| Action::ObserverFollows { partition }));
            }
            Observer::Live { replica, at, .. } => {
                let tails = &state.replicas[replica as usize].tails;
                let has_more = |p: &u8| at[*p as usize].position < tails[*p as usize].end();
                let partitions = (0..self.partitions).filter(has_more);
                actions.extend(partitions.map(|partition| Action::ObserverFollows { partition }));
                if state.leaves < self.leaves {
                    actions.push(Action::ObserverLeaves);
                }
            }
            Observer::Resuming { agreed, .. } => {
                let disagree = (0..self.partitions).filter(|partition| !agreed[*partition as usize]);
                actions.extend(disagree.map(|partition| Action::AsksForMark { partition }));
                if agreed[..self.partitions as usize].iter().all(|agreed| *agreed) {
                    actions.push(Action::ObserverResumes);
                }
            }
        }
    }

    fn next(&self, state: &State, action: Action) -> Result<State, Promise> {
        let mut next = state.clone();
        match action {
            Action::Writes { replica, session } => self.write(&mut next, replica, session)?,
            Action::RedisSaves { partition } => {
                next.saves += 1;
                next.saved[partition as usize] = next.redis[partition as usize];
            }
            Action::RedisLosesChanges { partition } => {
                next.losses += 1;
                next.redis[partition as usize] = next.saved[partition as usize];
                next.replicas.iter_mut().for_each(|replica| replica.has_checked = [false; 2]);
            }
            Action::TailReads { replica, partition } => self.read_tail(&mut next, replica, partition as usize),
            Action::TailChecks { replica, partition } => self.check_tail(&mut next, replica, partition as usize),
            Action::MovesRegistry { replica } => self.move_registry(&mut next, replica)?,
            Action::ObserverComes { replica } => self.come(&mut next, replica),
            Action::ObserverReadsBucket => self.read_bucket(&mut next)?,
            Action::ObserverFollows { partition } => self.follow(&mut next, partition as usize)?,
            Action::ObserverLeaves => self.leave(&mut next),
            Action::AsksForMark { partition } => self.ask_for_mark(&mut next, partition as usize),
            Action::ObserverResumes => self.resume(&mut next),
        }
        self.check(&next)?;
        Ok(next)
    }
}
