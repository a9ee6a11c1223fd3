//! What may be true of some sessions after one caller's calls, some of which failed.

use std::collections::BTreeSet;

use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{SessionStorage, StorageError},
};

use super::world::LONG;

/// How many callers act concurrently, each on its own sessions and leases.
pub(super) const GROUPS: usize = 3;
/// How many sessions each caller has.
pub(super) const SESSIONS: usize = 8;

/// A call. The numbers choose among the caller's sessions and leases.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Create { sessions: Vec<usize>, lease: Option<usize> },
    Destroy { sessions: Vec<usize>, lease: Option<usize> },
    Grant,
    KeepAlive(usize),
    Revoke(usize),
}

/// Whether a session exists, and the leases that it may be under.
struct Session {
    key: SessionKey,
    exists: bool,
    /// Indexes into the list of leases; None stands for no lease.
    under: BTreeSet<Option<usize>>,
}

struct Lease {
    id: LeaseId,
    /// The lease may have ended or may end at any time.
    may_end: bool,
    /// The lease has ended.
    is_over: bool,
}

/// One caller's sessions and leases.
pub(super) struct Story {
    sessions: Vec<Session>,
    leases: Vec<Lease>,
}

/// The outcome of a call.
#[derive(Debug)]
pub(super) enum Outcome {
    Changed(Vec<bool>),
    Granted(LeaseId),
    Kept,
    Revoked(u64),
    /// The lease is unknown.
    Gone,
    /// The call failed, and may have taken effect.
    Failed,
    /// There was nothing to call.
    Nothing,
}

impl Story {
    pub(super) fn new(group: usize) -> Self {
        let key = |n| SessionKey::new(group as i64, n as i64);
        let sessions = (0..SESSIONS).map(|n| Session { key: key(n), exists: false, under: BTreeSet::new() });
        Self { sessions: sessions.collect(), leases: Vec::new() }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = SessionKey> {
        self.sessions.iter().map(|session| session.key)
    }

    /// Maps a number to the index of a lease, counting from the newest.
    fn lease(&self, number: usize) -> Option<usize> {
        let count = self.leases.len();
        (count > 0).then(|| count - 1 - number % count)
    }

    fn lease_id(&self, lease: Option<usize>) -> Option<LeaseId> {
        self.lease(lease?).map(|place| self.leases[place].id)
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.iter().map(|lease| lease.id)
    }

    /// Makes a call.
    pub(super) async fn act(&self, storage: &dyn SessionStorage, action: &Action) -> Result<Outcome, String> {
        let keys = |some: &[usize]| -> Vec<SessionKey> { some.iter().map(|n| self.sessions[*n].key).collect() };
        let outcome = match action {
            Action::Create { sessions, lease } => {
                storage.create(&keys(sessions), self.lease_id(*lease)).await.map(Outcome::Changed)
            }
            Action::Destroy { sessions, lease } => {
                storage.destroy(&keys(sessions), self.lease_id(*lease)).await.map(Outcome::Changed)
            }
            Action::Grant => storage.grant_lease(LONG, "history").await.map(Outcome::Granted),
            Action::KeepAlive(lease) => match self.lease_id(Some(*lease)) {
                Some(lease) => storage.keep_lease_alive(lease).await.map(|_| Outcome::Kept),
                None => Ok(Outcome::Nothing),
            },
            Action::Revoke(lease) => match self.lease_id(Some(*lease)) {
                Some(lease) => storage.revoke_lease(lease).await.map(Outcome::Revoked),
                None => Ok(Outcome::Nothing),
            },
        };
        match outcome {
            Ok(outcome) => Ok(outcome),
            Err(StorageError::UnknownLease(_)) => Ok(Outcome::Gone),
            Err(StorageError::Unavailable(_) | StorageError::Refused(_)) => Ok(Outcome::Failed),
            Err(error) => Err(format!("{action:?} fails with {error:?}")),
        }
    }

    /// Records the outcome of a call: what is now known of the sessions. Returns the sessions whose state is uncertain
    /// because of it. Fails if the answer cannot be true.
    pub(super) fn note(&mut self, action: &Action, outcome: &Outcome) -> Result<BTreeSet<usize>, String> {
        let mut open = BTreeSet::new();
        let wrong = |what: &str| Err(format!("{action:?} returned {outcome:?}: {what}"));
        match (action, outcome) {
            (Action::Create { sessions, lease }, outcome) => {
                let lease = lease.and_then(|lease| self.lease(lease));
                if matches!(outcome, Outcome::Gone) {
                    let Some(place) = lease.filter(|place| self.leases[*place].may_end) else {
                        return wrong("no call has ended the lease");
                    };
                    self.leases[place].is_over = true;
                }
                if let Outcome::Changed(_) = outcome
                    && lease.is_some_and(|place| self.leases[place].is_over)
                {
                    return wrong("the lease has ended");
                }
                for (place, n) in sessions.iter().enumerate() {
                    let is_sure = self.is_sure(*n);
                    let is_first = !sessions[..place].contains(n);
                    let session = &mut self.sessions[*n];
                    if let Outcome::Changed(created) = outcome {
                        if is_first && is_sure && created[place] == session.exists {
                            return wrong("that contradicts the session's state");
                        }
                        if lease.is_some() || created[place] {
                            session.under = BTreeSet::from([lease]);
                        }
                        session.exists = true;
                    } else {
                        // An existing session keeps its lease if the call names none.
                        if lease.is_some() || !session.exists || !is_sure {
                            session.under.insert(lease);
                        }
                        open.insert(*n);
                    }
                }
            }
            (Action::Destroy { sessions, lease }, outcome) => {
                let given = lease.is_some();
                let lease = lease.and_then(|lease| self.lease(lease));
                for (place, n) in sessions.iter().enumerate() {
                    let is_sure = self.is_sure(*n);
                    let is_first = !sessions[..place].contains(n);
                    let session = &mut self.sessions[*n];
                    let is_under = if given && lease.is_some() { session.under.contains(&lease) } else { true };
                    let is_certain = is_sure && (!(given && lease.is_some()) || session.under.len() == 1);
                    if let Outcome::Changed(destroyed) = outcome {
                        if is_first && is_certain && destroyed[place] != (session.exists && is_under) {
                            return wrong("that contradicts the session's state");
                        }
                        if destroyed[place] && !is_first {
                            return wrong("the session was destroyed twice");
                        }
                        if destroyed[place] {
                            session.exists = false;
                        } else if is_first && !is_certain {
                            open.insert(*n);
                        }
                    } else if is_under {
                        open.insert(*n);
                    }
                }
            }
            (Action::Grant, Outcome::Granted(id)) => {
                self.leases.push(Lease { id: *id, may_end: false, is_over: false });
            }
            (Action::KeepAlive(lease), outcome) => {
                if let Some(place) = self.lease(*lease) {
                    let lease = &mut self.leases[place];
                    match outcome {
                        Outcome::Kept if lease.is_over => return wrong("the lease has ended"),
                        Outcome::Gone if !lease.may_end => return wrong("no call has ended the lease"),
                        Outcome::Gone => lease.is_over = true,
                        _ => {}
                    }
                }
            }
            (Action::Revoke(lease), outcome) => {
                if let Some(place) = self.lease(*lease) {
                    let may_end = self.leases[place].may_end;
                    match outcome {
                        Outcome::Revoked(_) if self.leases[place].is_over => return wrong("the lease has ended"),
                        Outcome::Gone if !may_end => return wrong("no call has ended the lease"),
                        Outcome::Revoked(count) if !may_end && !self.revoke(place, *count) => {
                            return wrong("the lease had a different number of sessions");
                        }
                        _ => {}
                    }
                    self.leases[place].is_over |= matches!(outcome, Outcome::Revoked(_) | Outcome::Gone);
                    self.leases[place].may_end = true;
                }
            }
            _ => {}
        }
        Ok(open)
    }

    /// Records that a lease was revoked with `count` sessions. Returns whether it may have had that many.
    fn revoke(&mut self, place: usize, count: u64) -> bool {
        let (mut least, mut most) = (0, 0);
        for session in self.sessions.iter_mut().filter(|session| session.exists && session.under.contains(&Some(place)))
        {
            most += 1;
            if session.under.len() == 1 {
                least += 1;
                session.exists = false;
            }
        }
        (least..=most).contains(&count)
    }

    /// Whether only a call can change the session.
    fn is_sure(&self, session: usize) -> bool {
        self.sessions[session].under.iter().flatten().all(|place| !self.leases[*place].may_end)
    }

    /// Compares the sessions that exist with what is known. `open` are the sessions that calls left uncertain;
    /// `is_lost` means that any session may have been lost.
    pub(super) fn compare(&mut self, now: &[bool], open: &BTreeSet<usize>, is_lost: bool) -> Result<(), String> {
        for (n, exists) in now.iter().enumerate() {
            let may_vanish = !self.is_sure(n);
            let session = &mut self.sessions[n];
            let is_right = *exists == session.exists || open.contains(&n) || is_lost || may_vanish && !exists;
            if !is_right {
                let what = if *exists { "exists but was destroyed" } else { "is gone but was created" };
                return Err(format!("{:?} {what}", session.key));
            }
            session.exists = *exists;
            if is_lost {
                session.under.extend((0..self.leases.len()).map(Some).chain([None]));
            }
        }
        Ok(())
    }

    /// Records that any lease may have been lost.
    pub(super) fn lose_leases(&mut self) {
        self.leases.iter_mut().for_each(|lease| lease.may_end = true);
    }

    /// Returns the sessions that must be gone once all leases have ended.
    pub(super) fn leased(&self) -> impl Iterator<Item = SessionKey> {
        let leased = self.sessions.iter().filter(|session| !session.under.contains(&None));
        leased.map(|session| session.key)
    }

    /// Records that every lease has ended.
    pub(super) fn end_leases(&mut self) {
        self.leases.iter_mut().for_each(|lease| (lease.may_end, lease.is_over) = (true, true));
    }
}
